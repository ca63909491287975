"""The comparison: its statistics by hand, its arms as settings that load, its tables; and a short one with everything real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import compare
import compare_arms
import compare_report
import psutil
import pytest
from compare_stats import Mean, at, holm, mean_over, paired
from hypothesis import given
from hypothesis import strategies as st
from make_support import make

from fr3e_async.settings.loader import load_config

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))


CURVE = [(0.0, 0.0), (10.0, 0.5), (30.0, 0.7)]


def test_curves_by_hand():
    assert [at(CURVE, x) for x in (-1, 0, 5, 10, 20, 99)] == pytest.approx([0.0, 0.0, 0.25, 0.5, 0.6, 0.7])
    assert mean_over(CURVE, 10) == pytest.approx(0.25)
    assert mean_over(CURVE, 30) == pytest.approx((10 * 0.25 + 20 * 0.6) / 30)
    assert mean_over([(0.0, 0.4)], 50) == pytest.approx(0.4)
    assert mean_over([(0.0, 0.2), (20.0, 0.6)], 10) == pytest.approx(0.3), "what comes after the end does not count"


def test_means_with_t_intervals_by_hand():
    mean = Mean.of([0.1, 0.2, 0.3])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert (mean.mean, mean.low, mean.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    alone = Mean.of([0.3])
    assert (alone.mean, alone.low, alone.high) == (0.3, -math.inf, math.inf)


def test_pairs_by_hand():
    test = paired({0: 0.5, 1: 0.6, 2: 0.8, 7: 9.0}, {0: 0.4, 1: 0.4, 2: 0.5, 8: 0.0})
    assert test.difference.n == 3, "seeds that one arm lacks are left out"
    assert test.difference.mean == pytest.approx(0.2)
    assert test.p == pytest.approx(0.0741799, abs=1e-6), "t = 2 * sqrt(3) with 2 degrees of freedom"
    assert test.p_signs == pytest.approx(2 / 8), "of the 8 sign patterns all + and all - are as extreme"
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_what_others_take_is_counted_without_this_process_and_its_own(monkeypatch):
    """By hand: user, system, and both of the children that it has reaped; waiting for input and output is not CPU time."""
    with subprocess.Popen(["sleep", "30"]) as child:
        ours = [psutil.Process(), psutil.Process(child.pid)]
        for process in ours:
            process.info = {"cpu_times": (100.0, 100.0, 100.0, 100.0, 100.0)}
        theirs = SimpleNamespace(pid=0, info={"cpu_times": (1.0, 2.0, 3.0, 4.0, 50.0)})
        gone = SimpleNamespace(pid=-1, info={"cpu_times": None})
        monkeypatch.setattr(psutil, "process_iter", lambda attributes: [*ours, theirs, gone])
        try:
            assert compare.others_s() == 10.0
        finally:
            child.kill()


def test_arms_without_a_difference_have_p_1():
    same = paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert (same.p, same.p_signs) == (1.0, 1.0)
    assert paired({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.6}).p < 1e-6, "the same difference each time"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[0] == pytest.approx(1.0)
    assert math.isnan(holm([0.5, math.nan])[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_helps_and_keeps_the_order(ps):
    adjusted = holm(ps)
    assert all(before <= after <= 1 for before, after in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))


@given(st.dictionaries(st.integers(0, 9), st.floats(-1, 1), min_size=1, max_size=6))
def test_exchanged_arms_have_the_opposite_difference_and_the_same_p(values):
    zero = dict.fromkeys(values, 0.0)
    one, other = paired(values, zero), paired(zero, values)
    assert one.difference.mean == pytest.approx(-other.difference.mean)
    assert one.p_signs == pytest.approx(other.p_signs)
    assert 2 ** (1 - len(values)) <= one.p_signs + 1e-12


@pytest.mark.parametrize("task", compare_arms.TASKS)
@pytest.mark.parametrize("arm", compare_arms.ARMS)
def test_every_arm_is_a_config_and_differs_from_the_reference_in_its_method_alone(arm: str, task: str):
    its = compare_arms.ARMS[arm]

    def load(*settings: str):
        return load_config([f"config={compare_arms.TASKS[task].config}", *compare_arms.COMMON, *settings]).config

    config, reference = load(*(compare_arms.FLAT if its.flat else ()), *its.settings), load()
    assert (config.algorithm.strategy in ("fr3e", "vineppo")) != its.flat
    for part in ("model", "data", "sampling", "toy", "evaluation", "learner", "engine"):
        assert getattr(config, part) == getattr(reference, part), part
    allowed = {"clip_low", "clip_high"} if arm == "grpo" else set()
    assert {field for field, value in asdict(config.loss).items() if value != getattr(reference.loss, field)} == allowed
    changed = {field for field, value in asdict(config.flow).items() if value != getattr(reference.flow, field)}
    assert changed == ({"groups_per_step"} if arm == "grpo_pp, G=4" else set())
    rollouts = config.flow.groups_per_step * (config.algorithm.bases if its.flat else 16)
    assert rollouts == 512 or its.equal_tokens


def row(task: str, seed: int, arm: str, accuracy: float) -> dict:
    tokens = compare_arms.TASKS[task].tokens
    evaluations = [
        {"label": label, "accuracy": value, "low": 0, "high": 1, "all_correct": 16, "all_wrong": 32, "problems": 128, "samples": 512,
         "unknown": 0, "truncated": 0, "mean_length": 20.0, "entropy": 0.2, "version": i, "generated": i * tokens // 2, "trained": i * 1000,
         "wall_s": 30.0 * i}
        for i, (label, value) in enumerate((("before", 0.1), ("step 3", accuracy / 2), ("after", accuracy)))
    ]  # fmt: skip
    return {
        "task": task, "seed": seed, "arm": arm, "digest": "d", "commit": "c0ffee", "date": "2026-11-23", "failure": "", "wall_s": 60.0,
        "foreign_cores": 0.02, "steps": 9, "optimiser_steps": 36, "tokens_generated": tokens, "tokens_trained": 2000, "tokens_useful": tokens // 4,
        "tokens_per_prompt": 250.0, "evaluations": evaluations, "useful": [[100, 0.5], [200, 0.4]],
        "anchors": [[0, 30, 24, 27, 25, 300], [3, 30, 6, 12, 25, 300]] if arm.startswith("fr3e") else [],
    }  # fmt: skip


def test_tables_by_hand(tmp_path):
    rows = [
        row("forks", seed, arm, accuracy + seed / 100) for seed in (0, 1, 2) for arm, accuracy in (("fr3e", 0.8), ("grpo", 0.6))
    ]
    page = tmp_path / "results.md"
    page.write_text(f"before\n{compare_report.BEGIN}\nold\n{compare_report.END}\nafter\n")
    compare_report.write_results(rows, tmp_path / "results", arms=["fr3e", "grpo"], tasks=["steps", "forks"], page=True)
    text = (tmp_path / "results" / "tables.md").read_text()
    shown = text.strip().replace("](forks-", "](results/forks-")
    assert page.read_text() == f"before\n{compare_report.BEGIN}\n\n{shown}\n\n{compare_report.END}\nafter\n"
    assert "](results/forks-accuracy-trained.svg)" in page.read_text()
    grpo = next(line for line in text.splitlines() if line.startswith("| grpo | 3"))
    cells = [cell.strip() for cell in grpo.strip("|").split("|")]
    assert cells[2].startswith("0.610 [")
    # 0.1 to 0.305 to 0.61 over two halves: 0.2025 and 0.4575; fr3e: 0.2525 and 0.6075
    assert cells[3].startswith("0.330 [")
    assert cells[4].startswith("-0.100 [")
    behaviour = next(line for line in text.splitlines() if line.startswith("| fr3e | 12.5 "))
    assert "25.0 [25.0, 25.0]" in behaviour
    anchors = next(line for line in text.splitlines() if line.startswith("| fr3e | 0.800"))
    assert [cell.split(" ")[1] for cell in anchors.strip().strip("|").split("|")[1:]] == [
        "0.800",
        "0.960",
        "0.500",
        "0.600",
        "0.650",
        "0.083",
    ]
    drawn = {path.name for path in (tmp_path / "results").glob("*.svg")}
    assert {
        "forks-accuracy-generated.svg",
        "forks-accuracy-wall_s.svg",
        "forks-all_wrong-generated.svg",
        "forks-useful-generated.svg",
    } <= drawn


def cell(arm: str = "fr3e", **others) -> compare.Cell:
    return compare.Cell(**{"task": "forks", "seed": 0, "arm": arm, **others})


def test_what_an_interruption_left_of_a_row_is_cut_off(tmp_path):
    path = tmp_path / "runs.jsonl"
    whole = row("forks", 0, "fr3e", 0.8) | {"digest": cell().digest}
    path.write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:100])
    runs = compare.Runs(path)
    assert runs.find(cell()) == whole
    runs.add(whole | {"seed": 1})
    assert [found["seed"] for found in compare.Runs(path).rows] == [0, 1]


def test_failed_rows_and_rows_of_other_settings_are_not_found(tmp_path, monkeypatch):
    runs = compare.Runs(tmp_path / "runs.jsonl")
    good = row("forks", 0, "fr3e", 0.8) | {"digest": cell().digest}
    runs.add(good | {"failure": "it diverged"})
    assert runs.find(cell()) is None
    runs.add(good | {"foreign_cores": 0.9, "wall_s": 100.0})
    assert runs.find(cell())["wall_s"] == 100.0
    runs.add(good)
    runs.add(good | {"foreign_cores": 0.9})
    assert runs.find(cell()) == good, "the one that had the machine to itself"
    monkeypatch.setattr(compare, "PROTOCOL", compare.PROTOCOL + 1)
    assert runs.find(cell()) is None


def test_the_digest_knows_settings_and_files_and_not_what_an_arm_is_told(tmp_path, monkeypatch):
    arm = cell("grpo_pp, equal tokens")
    assert "budget.tokens_per_prompt=240" in arm.settings({"tokens_per_prompt": 240.2})
    before = arm.digest
    assert len({before, cell().digest, cell(quick=True).digest, cell(seed=1).digest, cell(task="steps").digest}) == 5
    for name in ("toy", "forks"):
        (tmp_path / f"{name}.yaml").write_text((compare.CONFIGS / f"{name}.yaml").read_text().replace("lr: 3e-4", "lr: 1e-3"))
    monkeypatch.setattr(compare, "CONFIGS", tmp_path)
    assert arm.digest != before


def test_equal_tokens_need_a_reference(tmp_path, monkeypatch):
    class Nothing:
        async def accuracy(self, *settings):
            return dict.fromkeys(compare.KEPT, 0)

    @contextlib.asynccontextmanager
    async def stage(*arguments):
        yield Nothing()

    monkeypatch.setattr(compare, "open_stage", stage)
    with pytest.raises(SystemExit, match="needs a run of 'fr3e'"):
        asyncio.run(compare.run_cells(compare.Runs(tmp_path / "runs.jsonl"), [cell("grpo_pp, equal tokens")], tmp_path))


def test_the_reference_comes_first_and_the_others_in_turn():
    arms = ["grpo", "fr3e", "rloo", "vineppo"]
    assert [compare.turned(arms, seed) for seed in (0, 1, 4)] == [
        ["fr3e", "grpo", "rloo", "vineppo"], ["fr3e", "rloo", "vineppo", "grpo"], ["fr3e", "rloo", "vineppo", "grpo"]
    ]  # fmt: skip


def test_a_run_that_trained_nothing_is_in_the_tables(tmp_path):
    """Its budget went into groups that teach nothing: it has no batch, so no share of useful tokens."""
    nothing = row("forks", 0, "grpo", 0.1) | {"useful": [], "steps": 0, "tokens_trained": 0, "tokens_useful": 0}
    for point in nothing["evaluations"]:
        point["trained"] = 0
    for rows in ([row("forks", 0, "fr3e", 0.8), nothing], [nothing]):
        compare_report.write_results(rows, tmp_path, arms=["fr3e", "grpo"], tasks=["forks"], page=False)
        assert "| grpo | 1 | 0.100 |" in (tmp_path / "tables.md").read_text()


def test_the_same_rows_make_the_same_files(tmp_path):
    rows = [row("steps", 0, "fr3e", 0.8)]
    for name in ("a", "b"):
        compare_report.write_results(rows, tmp_path / name, arms=["fr3e"], tasks=["steps"], page=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_short_comparison_and_one_that_resumes(tmp_path):
    """Real engines, learner and verifier, two arms; the second start finds both and runs nothing."""
    words = ("--quick", "--out", str(tmp_path / "results"))
    make("compare", *words)
    rows = [json.loads(line) for line in (tmp_path / "results" / "runs.jsonl").read_text().splitlines()]
    assert [found["arm"] for found in rows] == list(compare_arms.QUICK_ARMS)
    for found in rows:
        assert found["tokens_generated"] >= compare_arms.QUICK_TOKENS
        assert found["evaluations"][0] == rows[0]["evaluations"][0], "one model, measured once"
        assert [e["label"] for e in found["evaluations"]].count("before") == 1
        assert all(e["oldest_version"] >= e["version"] for e in found["evaluations"])
        assert [e["generated"] for e in found["evaluations"]] == sorted(e["generated"] for e in found["evaluations"])
    assert rows[0]["anchors"]
    assert re.search(r"\| fr3e \| 1 \| 0\.\d+", (tmp_path / "results" / "tables.md").read_text())
    make("compare", *words)
    assert len((tmp_path / "results" / "runs.jsonl").read_text().splitlines()) == 2
