"""The run's page without a browser: what is read of a run, and where its metrics are computed."""

from __future__ import annotations

import ast
import functools
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from report_support import START, page_of, write_rows, write_run

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.errors import StorageError
from fr3e_async.observe.metrics import METRICS
from fr3e_async.report.page import ASSETS, locate
from fr3e_async.report.runs import axes, defaults, distinct, evaluations, flat, read_run
from fr3e_async.report.timeline import read_timeline
from fr3e_async.report.trees import clean_tree

ROLES = {"generators", "explorers", "verifiers"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain", steps=3, trees=5)


# ---- from a metric to its code ----


def test_the_code_that_a_metric_declares_gives_a_value_its_name() -> None:
    assert [metric for metric in METRICS if not named(metric)] == []


def named(metric: str, *, like: str = "") -> bool:
    """A text in the code that the metric (or ``like``) declares is this name, or an f-string that is filled with such texts, roles and ages."""
    found = [literals(place) for place in METRICS[like or metric].made_by]
    constants = set().union(*(texts for texts, _ in found))
    hole = "|".join(re.escape(word) for word in {*constants, *ROLES, *AGE_BUCKETS} if len(word) < 40)
    return metric in constants or any(re.fullmatch(form.replace("{}", f"(?:{hole})"), metric) for form in found[0][1])


@functools.cache
def literals(place: str) -> tuple[set[str], list[str]]:
    """Texts in a place's code, and its f-strings as regular expressions with a ``{}`` for each hole."""
    tree = ast.parse(textwrap.dedent(locate(place)["source"]))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    forms = ["".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else "{}" for p in node.values) for node in joined]
    return constants, forms


def test_a_name_that_the_code_does_not_give_is_found() -> None:
    assert named("staleness/2_3_ratio_max")
    assert not named("staleness/2_3_ratio_min", like="staleness/2_3_ratio_max")
    assert not named("groups/all_red", like="groups/trained")
    assert not named("queue/nobody", like="queue/generators")


def test_every_function_that_a_metric_names_exists() -> None:
    places = {place for metric in METRICS.values() for place in metric.made_by}
    assert all(metric.made_by for metric in METRICS.values())
    assert all(locate(place)["source"] for place in places)


def test_a_place_has_its_line_and_text() -> None:
    place = locate("machine/tally.py:Tally.take")
    lines = (ASSETS.parent.parent / "machine" / "tally.py").read_text().split("\n")
    assert lines[place["line"] - 1].strip().startswith("def take")
    assert '"reward/accuracy"' in place["source"]
    assert locate("control/publisher.py:Sync.pause_s")["source"].lstrip().startswith("@property")


@pytest.mark.parametrize("place", ["control/none.py:f", "machine/tally.py:Tally.gone", "machine/tally.py:Gone.take"])
def test_a_place_that_has_gone_is_told(place: str) -> None:
    with pytest.raises(LookupError, match=re.escape(place)):
        locate(place)


# ---- what a run says ----


def test_axes_are_sums_and_time_at_work(run: Path) -> None:
    found = read_run(run)["axes"]
    assert found["step"] == [1, 2, 3]
    assert found["generated"] == [1000, 2000, 3000]
    assert found["trained"] == [500, 1000, 1500]
    assert found["wall"] == [16, 21, 26]  # the program began 9 s before its actors were up, which was at second 8


def test_the_time_between_two_sessions_does_not_count() -> None:
    rows = [{"step": 1, "time_s": 110.0}, {"step": 2, "time_s": 1010.0}]
    events = [{"time": 100.0, "event": "run_started", "seconds": 0}, {"time": 120.0, "event": "note", "seconds": 0}]
    events += [{"time": 1000.0, "event": "run_resumed", "seconds": 0}]
    assert axes(rows, events)["wall"] == [10, 30]
    assert axes(rows, [])["wall"] == [0, 900]  # no events: seconds since the first row


def test_evaluations_stand_where_they_were_made(run: Path) -> None:
    before, after = (row for row in read_run(run)["evaluations"] if row["benchmark"] == "heldout")
    assert before["at"] == {"step": 0, "generated": 0, "trained": 0, "wall": 11}
    assert after["at"] == {"step": 3, "generated": 3000, "trained": 1500, "wall": 26}


def test_evaluations_of_a_run_that_continues_are_read_off_its_events(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    measured = {"label": "step 2", "version": 2, "accuracy": 0.406, "low": 0.295, "high": 0.529}
    said = {"event": "evaluation", "version": 2, "measured": measured, "text": "held-out accuracy, step 2: 0.406"}
    write_rows(tmp_path / "logs" / "events.jsonl", [said, {"event": "note", "text": "held-out accuracy, step 3: 0.5"}])
    found = {"step": [1, 2, 3], "generated": [10, 20, 30], "trained": [1, 2, 3], "wall": [5, 6, 7]}
    (row,) = evaluations(tmp_path, None, found)
    assert (row["label"], row["accuracy"], row["low"], row["high"]) == ("step 2", 0.406, 0.295, 0.529)
    assert row["at"] == {"step": 2, "generated": 20, "trained": 2, "wall": 6}


def test_benchmarks_are_told_apart_and_stand_before_the_summary(tmp_path: Path) -> None:
    rows = [
        {"label": "step 2", "benchmark": name, "accuracy": 0.5, "version": 2, "wall_s": 9.0, "maj": {"value": 0.6}}
        for name in ("heldout", "gsm8k")
    ]
    write_rows(tmp_path / "evaluations.jsonl", [*rows, {"label": "later", "benchmark": "gsm8k"}])
    found = {"step": [1, 2], "generated": [10, 20], "trained": [1, 2], "wall": [5, 6]}
    first, second = evaluations(tmp_path, {"evaluations": [{"accuracy": 0.1}]}, found)
    assert (first["benchmark"], second["benchmark"], second["maj"]) == ("heldout", "gsm8k", {"value": 0.6})
    assert second["at"] == {"step": 2, "generated": 20, "trained": 2, "wall": 9}


def test_an_evaluation_that_ran_alone_has_no_place_on_an_axis(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"benchmarks": {"aime24": {"accuracy": 0.25, "newest_version": 0}}}))
    (row,) = evaluations(tmp_path, None, {"step": [], "generated": [], "trained": [], "wall": []})
    assert (row["label"], row["benchmark"]) == ("alone", "aime24")
    assert set(row["at"].values()) == {None}


def test_groups_are_counted_by_outcome(run: Path) -> None:
    groups = read_run(run)["groups"]
    assert {outcome: item["groups"] for outcome, item in groups.items()} == {
        "trained": 6, "rejected_all_correct": 2, "rejected_all_wrong": 2, "rejected_no_spread": 2,
    }  # fmt: skip
    assert groups["trained"]["useful"] == 600
    assert groups["trained"]["reasons"] == {"integer": 18, "cpu limit": 6}
    assert groups["rejected_all_correct"]["trained"] == 0


def test_a_run_of_an_older_version_is_read_by_the_words_of_today(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "verify/right": 3, "verify/given_up": 1, "prompt/all_right_fraction": 0.5}\n'
    )
    (tmp_path / "groups.jsonl").write_text('{"group": "g", "fate": "rejected_all_right", "states": [{"dropped": "all_right"}]}\n')
    (tmp_path / "summary.json").write_text('{"steps": 1, "groups": {"failed_given_up": 2}, "verdicts": {"right": 3, "wrong": 1}}')
    run = read_run(tmp_path)
    assert run["metrics"] == {"verify/correct": [3], "verify/failed": [1], "prompt/all_correct_fraction": [0.5]}
    assert run["groups"]["rejected_all_correct"]["states"] == {"all_correct": 1}
    assert (run["summary"]["groups"], run["summary"]["verdicts"]) == ({"failed": 2}, {"correct": 3, "wrong": 1})
    state = {"node": 0, "right": 1.5, "judged": 3, "dropped": "all_right"}
    tree = clean_tree({"fate": "failed_given_up", "states": [state], "rollouts": [{"outcome": "right"}, {"outcome": "given_up"}]})
    assert (tree["outcome"], [rollout["outcome"] for rollout in tree["rollouts"]]) == ("failed", ["correct", "failed"])
    assert [tree["states"][0][key] for key in ("reward_sum", "scored", "dropped")] == [1.5, 3, "all_correct"]


def test_settings_are_flat_and_the_defaults_are_known(run: Path) -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert read_run(run)["config"]["algorithm.strategy"] == "fr3e"
    assert defaults()["flow.max_staleness"] >= 0


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert distinct(["run", "run"], paths) == ["a/run", "b/run"]
    assert distinct(["run", "run"], [paths[0], paths[0]]) == ["run (1)", "run (2)"]


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: young}\n")
    found = read_run(tmp_path)
    assert (found["metrics"], found["groups"], found["timeline"], found["summary"]) == ({}, None, None, None)
    assert "young" not in page_of(tmp_path)  # nothing of a run stands in the page as text but the folder's name


# ---- who worked when ----


def test_lanes_are_the_tasks_between_decision_and_event(run: Path) -> None:
    line = read_timeline(run)
    assert line is not None
    lanes = {lane["actor"]: lane for lane in line["lanes"]}
    assert list(lanes) == ["learner", "generator-0", "explorer-0", "verifier-0"]
    # the journal begins at second 8; step n is admitted at 5 + 5 n
    assert lanes["generator-0"]["work"]["base"] == [2, 3, 7, 8, 12, 13]
    assert lanes["explorer-0"]["work"]["branch"] == [3, 5, 8, 10, 13, 15]
    assert lanes["verifier-0"]["work"]["verify"] == [5, 5.5, 10, 10.5, 15, 15.5]
    assert lanes["learner"]["work"] == {"train": [5.5, 6.5, 10.5, 11.5, 15.5, 16.5], "export": [6.5, 6.6, 11.5, 11.6, 16.5, 16.6]}
    assert lanes["generator-0"]["work"]["weights"] == [6.6, 6.8, 11.6, 11.8, 16.6, 16.8]
    assert (lanes["generator-0"]["busy_s"], lanes["generator-0"]["wait_s"]) == (3, 4)
    assert lanes["generator-0"]["up_s"] == pytest.approx(16.9)
    assert line["open"][1] == [1, 0, 1, 0, 1, 0]


def test_a_batch_that_is_ready_waits_for_the_export_before_it(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    rows: list[dict[str, Any]] = [
        {"t": START, "e": {"type": "Due", "key": "x"}, "c": ["train 1 4 a@0"]},
        {"t": START + 1, "e": {"type": "Trained", "version": 1}, "c": ["train 2 4 b@0"]},
        {"t": START + 3, "e": {"type": "Exported", "version": 1}, "c": []},
        {"t": START + 4, "e": {"type": "Trained", "version": 2}, "c": []},
    ]
    write_rows(tmp_path / "journal" / "0000.jsonl", [{"journal": "0.1.0"}, *rows])
    line = read_timeline(tmp_path)
    assert line is not None
    assert line["lanes"][0]["work"] == {"train": [0, 1, 3, 4], "export": [1, 3]}


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    write_rows(tmp_path / "journal" / "0000.jsonl", [{"journal": "0.1.0"}, {"t": 1.0, "e": {"type": "Delivered"}, "c": []}])
    with pytest.raises(StorageError, match=r"0000\.jsonl:2 is damaged"):
        read_timeline(tmp_path)


def test_a_lane_ends_with_its_actor_and_open_tasks_with_the_session(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    rows: list[dict[str, Any]] = [
        {
            "t": START,
            "e": {"type": "WorkerUp", "role": "explorers", "worker": "explorer-7"},
            "c": ["assign 1 explorer-7 Branch 4"],
        },
        {
            "t": START + 2,
            "e": {"type": "WorkerDown", "worker": "explorer-7", "why": "gone"},
            "c": ["release explorer-7 lost", "assign 2 generator-0 Sample 1"],
        },
        {"t": START + 2, "e": {"type": "Lost", "task": 1, "group": "a@0", "ids": [], "reason": "gone"}, "c": []},
        {"t": START + 5, "e": {"type": "Due", "key": "x"}, "c": []},
    ]
    write_rows(tmp_path / "journal" / "0000.jsonl", [{"journal": "0.1.0"}, *rows])
    line = read_timeline(tmp_path)
    assert line is not None
    lanes = {lane["actor"]: lane for lane in line["lanes"]}
    assert (lanes["explorer-7"]["up"], lanes["explorer-7"]["work"]) == ([0, 2], {"branch": [0, 2]})
    assert lanes["generator-0"]["work"] == {"base": [2, 5]}
    assert lanes["generator-0"]["role"] == "generators"


def test_a_journal_of_an_earlier_version_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    write_rows(tmp_path / "journal" / "0000.jsonl", [{"format": 2}, {"t": 1.0, "e": ["Trained", 1], "c": []}])
    assert read_timeline(tmp_path) is None


def test_a_damaged_line_is_named_and_a_cut_one_is_not(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "cut", steps=2, trees=1)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "ti')
    assert read_run(folder)["axes"]["step"] == [1, 2]
    (folder / "groups.jsonl").write_text("[]\n")
    with pytest.raises(StorageError, match=r"groups\.jsonl:1 is damaged"):
        read_run(folder)
    (folder / "groups.jsonl").unlink()
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(StorageError, match=r"config\.yaml is not readable"):
        read_run(folder)
