"""``python -m fr3e_async.verify`` on files of pairs, and reference answers that are flagged when data is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_support import ROWS, TOY, Cli, assert_one_line, guarded_cli, make_model, write_rows

from fr3e_async.cli.main import run as fr3e
from fr3e_async.config import Config, DataConfig, EngineConfig, VerifierPoolConfig
from fr3e_async.data.rows import Rows, read_rows
from fr3e_async.errors import DataError
from fr3e_async.run.preparing import prepare
from fr3e_async.settings.loader import load_config
from fr3e_async.verify import process, references
from fr3e_async.verify.references import ReferenceFlag, Screened, flag_references, screen_references

CASES: list[dict[str, Any]] = [
    {"gold": "5", "prediction": "so \\boxed{5}", "correct": True, "source": "github:a/b@0123abc:tests/x.py", "id": "one"},
    {"gold": "5", "prediction": "so \\boxed{6}", "correct": True, "source": "github:a/b@0123abc:tests/y.py"},
    {"gold": "\\frac12", "prediction": "$0.5$", "correct": False, "kind": "bare", "source": "c"},
    {"gold": "cut it along the long midline", "prediction": "\\boxed{x^2}", "correct": False, "kind": "full", "source": "c"},
    {"gold": "5", "prediction": "I cannot tell", "correct": False, "kind": "full", "source": "c"},
    {"gold": 5, "prediction": 5, "source": "d"},
]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*argv: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = fr3e(["verify", *map(str, argv)])
    return code, *capsys.readouterr()


def cells(table: str, row: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.split(" ")[0] == row]
    return line.split()[1:]


# ---- the command ----


def test_the_table_counts_by_source_and_tells_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(write(tmp_path / "cases.jsonl", CASES), capsys=capsys)
    assert (code, err) == (0, "")
    columns = [
        "cases",
        "correct",
        "policy",
        "wrong",
        "unproven",
        "unanswered",
        "unknown",
        "agree",
        "agree",
        "%",
        "false",
        "+",
        "false",
        "-",
    ]
    assert cells(out, "source") == columns
    assert cells(out, "github:a/b") == ["2", "1", "0", "1", "0", "0", "0", "1", "50.0", "0", "1"]
    assert cells(out, "c") == [
        "3",
        "1",
        "0",
        "1",
        "0",
        "1",
        "1",
        "1",
        "33.3",
        "1",
        "0",
    ]  # unknown is no agreement with "not correct"
    assert cells(out, "d") == ["1", "1", "0", "0", "0", "0", "0", "0", "-", "0", "0"]  # nobody says what is correct
    assert cells(out, "all") == ["6", "3", "0", "2", "0", "1", "1", "2", "40.0", "1", "1"]
    assert "unknown: the reference is a sentence" in out
    assert "6 cases in " in out
    assert "mean reward" not in out
    assert "category" not in out


def test_categories_have_a_table_and_labels_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"gold": "5", "prediction": p, "category": c, "label_by": "me"} for p, c in (("5", "x"), ("6", "x"), ("5", "y"))]
    code, out, _ = run(write(tmp_path / "cases.jsonl", rows), "--workers", 1, capsys=capsys)
    assert code == 0
    assert cells(out, "category") == ["cases", "correct", "policy", "wrong", "unproven", "unanswered", "unknown"]
    assert cells(out, "me,") == ["bare", "3", "2", "0", "1", "0", "0", "0"]
    assert cells(out, "x") == ["2", "1", "0", "1", "0", "0", "0"]
    assert cells(out, "y") == ["1", "1", "0", "0", "0", "0", "0"]
    assert "agree" not in out


def test_json_holds_a_row_for_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(write(tmp_path / "cases.jsonl", CASES), "--json", tmp_path / "out.json", capsys=capsys)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert code == 0
    assert [row["id"] for row in rows] == ["one", "2", "3", "4", "5", "6"]
    assert [row["outcome"] for row in rows] == ["correct", "wrong", "correct", "unknown", "wrong", "correct"]
    assert rows[0]["reason"] == "integer"
    assert rows[3]["reason"].startswith("the reference is ")
    assert [row["correct"] for row in rows] == [True, True, False, False, False, None]
    assert all(0 <= row["time_s"] < 10 for row in rows)


def test_explain_prints_rule_and_proof(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--explain", r"so \boxed{1200\text{ cm}}", r"$12\text{ m}$", capsys=capsys)
    assert code == 0
    assert out.splitlines()[:2] == [r"answer:    1200\text{cm}", r"reference: 12\text{m}"]
    assert r"amount: 1200\text{cm} | 12\text{m}: correct (units converted)" in out
    assert "correct: units converted" in out
    assert "Units agree, by pint" in out
    code, out, _ = run("--explain", "3x^2", "3", capsys=capsys)
    assert "wrong: " in out


def test_a_reward_of_ones_own_can_be_tried_on_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what a process does not flush is lost
    (tmp_path / "prefix.py").write_text("def score(response, gold, prompt):\n    return gold in response and prompt == 'q'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"gold": "a", "prediction": "cat", "problem": p} for p in ("q", "r")]
    code, out, _ = run(write(tmp_path / "cases.jsonl", rows), "--reward", "prefix:score", capsys=capsys)
    assert code == 0
    assert cells(out, "-") == ["2", "1", "0", "1", "0", "0", "0"]
    assert "mean reward: 0.5, of 2 that are known\n" in out


def test_several_rewards_of_a_file_have_their_mean_and_the_rows_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """math 1, and 0.5 times what the row says, in batches: 1 + 1, 0 - 0.5, and one outside of the range."""
    (tmp_path / "rows.py").write_text(
        "def many(responses, golds, prompts, length, finish, bonus):\n"
        "    return [b if (n, f) == (3, 'length') else 9 for b, n, f in zip(bonus, length, finish, strict=True)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    said = [
        {"gold": "5", "prediction": f"\\boxed{{{n}}}", "bonus": b, "length": 3, "finish": "length"} for n, b in ((5, 2), (6, -1))
    ]
    rewards = json.dumps([{"function": "math"}, {"function": "rows:many", "weight": 0.5, "range": [-1, 2], "batch": 3}])
    path = write(tmp_path / "cases.jsonl", [*said, {**said[0], "finish": "stop", "correct": False}])
    code, out, err = run(path, "--rewards", rewards, "--json", tmp_path / "out.json", capsys=capsys)
    assert (code, err) == (0, "")
    assert "mean reward: 0.75, of 2 that are known; 1 unknown\n" in out
    assert "unknown: rows:many: reward outside [-1, 2] 1" in out
    assert [row["score"] for row in json.loads((tmp_path / "out.json").read_text())] == [2.0, -0.5, None]
    assert cells(out, "-") == ["3", "1", "0", "1", "0", "0", "1", "0", "0.0", "0", "0"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "cases.jsonl:2: not JSON"),
        ("[1]", "cases.jsonl:2: a JSON object was expected, got list"),
        ('{"gold": "1"}', "cases.jsonl:2: no text in field 'prediction'; the row has 'gold'"),
        ('{"gold": null, "prediction": "1"}', "cases.jsonl:2: no text in field 'gold'"),
        ('{"gold": "1", "prediction": "1", "kind": "bear"}', "cases.jsonl:2: kind must be bare, raw or full, got 'bear'"),
        ('{"gold": "1", "prediction": "1", "correct": "yes"}', "cases.jsonl:2: correct must be true or false, got 'yes'"),
        (b"\xff", "cases.jsonl:2: not JSON in UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str | bytes, says: str) -> None:
    path = write_rows(tmp_path / "cases.jsonl", json.dumps(CASES[0]), line)
    code, out, err = run(path, capsys=capsys)
    assert (code, out) == (2, "")
    assert_one_line(err, [says])


def test_an_interrupt_is_told_apart_from_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fr3e_async.verify.cases.judge_cases", interrupted)
    assert run(write(tmp_path / "cases.jsonl", CASES), capsys=capsys) == (130, "", "interrupted\n")


def test_other_bad_input_is_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, empty = write(tmp_path / "good.jsonl", CASES), write(tmp_path / "empty.jsonl", [])
    for argv, says in (
        ([tmp_path / "none.jsonl"], "none.jsonl: cannot be read (No such file or directory)"),
        ([tmp_path], "cannot be read (Is a directory)"),
        ([empty], "holds no cases"),
        ([good, "--json", tmp_path / "no" / "out"], "cannot be written (No such file or directory); see --json"),
        ([good, "--workers", 0], "verifiers.workers must be positive, got 0"),
        ([good, "--reward", "nowhere:f"], "reward=nowhere:f: no module named nowhere"),
        ([good, "--rewards", "{"], "--rewards must be a JSON list like"),
        ([good, "--rewards", '[{"name": "m:f"}]'], "--rewards: unknown setting name"),
        (
            [good, "--rewards", '[{"function": "m:f", "range": [1, 0]}]'],
            "rewards[0].range must be [lowest, highest], got [1.0, 0.0]",
        ),
        ([good, "--unheard-of"], "No such option '--unheard-of'"),
        ([], "one of CASES.jsonl and --explain ANSWER REFERENCE is expected"),
    ):
        code, out, err = run(*argv, capsys=capsys)
        assert (code, out) == (2, ""), argv
        assert_one_line(err, [says])


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fr3e_async.verify", str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert_one_line(done.stderr, ["none.jsonl: cannot be read"])


# ---- golds ----


WITHOUT_TOY_DATA = [word for word in TOY if not word.startswith("toy.")]  # they would do nothing


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


def test_golds_that_can_be_matched_as_text_only_are_flagged_once_each() -> None:
    given = ["5", "\\frac12", "the empty set", "$2\\pi$", "the empty set", "x" * 50, "an odd number", "\\boxed{-3}"]
    config = VerifierPoolConfig(max_answer_chars=40, wall_limit_s=240.0)
    assert flag_references(given, config) == [
        ReferenceFlag(reference="the empty set", reason="not mathematics"),
        ReferenceFlag(reference="x" * 50, reason=references.TOO_LONG),
        ReferenceFlag(reference="an odd number", reason="not mathematics"),
    ]


def test_plain_integers_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(process, "ForkServer", forbidden)
    assert flag_references(["5", "-1,200", "$7$", "\\boxed{3}"], VerifierPoolConfig(wall_limit_s=240.0)) == []


def test_a_gold_that_exceeds_a_limit_is_flagged_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (flag,) = flag_references([f"{'(' * 600}x{')' * 600}"], VerifierPoolConfig(cpu_limit_s=0.01, wall_limit_s=240.0))
    assert flag.reason in ("cpu limit", "nested too deeply")


def test_work_that_takes_long_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MANY", 2)
    said: list[str] = []
    assert flag_references(["1/2", "1/3", "5"], VerifierPoolConfig(wall_limit_s=240.0), said.append) == []
    assert said == []
    flag_references(["1/2", "1/3", "1/4"], VerifierPoolConfig(wall_limit_s=240.0), said.append)
    assert said == ["parsing 3 reference answers, see data.on_string_gold"]


def loaded(tmp_path: Path, **data: Any) -> tuple[Rows, Config]:
    train = [
        {"problem": f"p{i}", "answer": answer}
        for i, answer in enumerate(["5", "the empty set", "1/2", "an odd number", "the empty set", "an even one"])
    ]
    heldout = [{"problem": "q", "answer": "7"}, {"problem": "r", "answer": "the empty set"}]
    files = {name: str(write(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("train", train), ("heldout", heldout))}
    config = Config(data=DataConfig(**files, **data), engine=EngineConfig(kv_cache_gib=1.0))
    return read_rows(config), config


def test_flag_keeps_all_problems_and_names_the_first_few(tmp_path: Path) -> None:
    rows, config = loaded(tmp_path)
    screened = screen_references(rows, config)
    assert screened.rows == rows
    assert screened.note.startswith("5 problems have a reference answer that can be matched as text at most: ")
    assert all(f"train.jsonl:{line} (not mathematics)" in screened.note for line in (2, 4, 5))
    assert "and 2 more" in screened.note
    assert "data.on_string_gold" in screened.note


def test_drop_leaves_them_out_and_counts_them(tmp_path: Path) -> None:
    rows, config = loaded(tmp_path, on_string_gold="drop")
    screened = screen_references(rows, config)
    assert [row.answer for row in screened.rows.train] == ["5", "1/2"]
    assert [row.answer for row in screened.rows.heldout] == ["7"]
    assert screened.note.startswith("5 problems have")
    assert screened.note.endswith("left out (data.on_string_gold=drop)")


def test_drop_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    rows, config = loaded(tmp_path, on_string_gold="drop")
    with pytest.raises(DataError, match=r"data\.heldout: nothing is left with data\.on_string_gold=drop"):
        screen_references(Rows(train=rows.train, heldout=rows.heldout[1:]), config)


def test_a_users_reward_knows_its_golds_itself(tmp_path: Path) -> None:
    rows, config = loaded(tmp_path, on_string_gold="error")
    own = replace(config, reward="my.module:function")
    assert screen_references(rows, own) == Screened(rows=rows, note="")


def test_error_ends_the_command_with_one_line(cli: Cli) -> None:
    model = make_model(cli.folder / "model")
    train = write_rows(cli.folder / "train.jsonl", *ROWS, '{"problem": "a", "answer": "the empty set"}')
    arguments = [*WITHOUT_TOY_DATA, f"model.path={model}", f"data.train={train}", "data.heldout="]
    says = ["1 problem has a reference answer that can be matched as text at most", "train.jsonl:4 (not mathematics)"]
    cli.refused(*arguments, "data.on_string_gold=error", says=[*says, "data.on_string_gold=drop"])


@pytest.mark.parametrize(("policy", "kept"), [("flag", 4), ("drop", 3)])
def test_a_run_is_told_of_them_once_it_has_a_console(cli: Cli, policy: str, kept: int) -> None:
    model = make_model(cli.folder / "model")
    train = write_rows(cli.folder / "train.jsonl", *ROWS, '{"problem": "4+1", "answer": "the empty set"}')
    arguments = [
        *WITHOUT_TOY_DATA,
        f"model.path={model}",
        f"data.train={train}",
        "data.heldout=",
        f"data.on_string_gold={policy}",
    ]
    with prepare(load_config(arguments)) as session:
        ((kind, note),) = session.notes
        assert "train.jsonl:4 (not mathematics)" in note
        assert kind == ("data_dropped" if policy == "drop" else "note")
        assert len(session.datasets.train) == kept
