"""Benchmarks in their smallest form, as a user starts them: each ends well, and its JSON holds what docs and logs quote of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import chaos
import common
import numpy as np
import pytest
from make_support import figures, make

from fr3e_async.types import Completion, Finish, RolloutBatch, RolloutId


def test_prefill_is_counted_against_prefixes_and_whole_blocks(repository, monkeypatch):
    """Contexts of 10, 8 and 5 tokens of one sequence, then one of 8 that leaves it after 6; blocks of 4."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from prefill import Known, Prefill, rounding

    spine = np.arange(10, dtype=np.int32)
    contexts = [spine, spine[:8], spine[:5], np.array([0, 1, 2, 3, 4, 5, 77, 78], dtype=np.int32)]
    one = np.zeros(1, dtype=np.float32)
    completions = [
        Completion(
            tokens=np.array([9], dtype=np.int32), logprobs=one, entropies=one, entropy_errors=one,
            versions=np.zeros(1, dtype=np.int32), finish=Finish.LENGTH, cached_tokens=cached,
        )
        for cached in (0, 4, 0, 4)
    ]  # fmt: skip
    batch = RolloutBatch.build(
        ids=[RolloutId("q@0", 1, m) for m in range(4)], contexts=contexts, prompt_lens=[1] * 4, context_of=range(4),
        completions=completions,
    )  # fmt: skip
    sums = Prefill()
    sums.add(batch, contexts=Known(), cache=Known(), block=4)
    assert sums.asked == 10 + 8 + 5 + 8
    assert sums.computed == 10 + 4 + 5 + 4
    assert sums.unique == 10 + 2
    assert sums.blocks == 10 + 4 + 1 + 4, "8 known tokens are two blocks, but the last token is computed, and so its block"
    assert rounding(prompt=200, response=1000, block=1) == pytest.approx(1 + 14 / (400 + 750), abs=0.001)


def test_a_short_plan_has_one_kill_a_kind_and_the_drivers_last():
    kinds = ["generator", "driver", "verifier"]
    assert chaos.short_plan(9, kinds) == [("generator", "any moment"), ("verifier", "any moment"), ("driver", "any moment")]
    assert [victim for victim, _ in chaos.short_plan(2, kinds)] == ["generator", "driver"]
    assert [victim for victim, _ in chaos.short_plan(1, ["verifier"])] == ["verifier"]
    assert len(chaos.short_plan(32, list(chaos.VICTIMS))) == 6


def test_figures_do_not_take_the_place_of_the_facts_of_the_machine(tmp_path):
    args = SimpleNamespace(json=tmp_path / "out.json", quick=True)
    common.finish(args, {"rows": [1]}, {"cores": 2})
    assert json.loads(args.json.read_text()) == {"machine": {"cores": 2}, "quick": True, "rows": [1]}
    with pytest.raises(ValueError, match="'machine'"):
        common.finish(args, {"machine": {}}, {"cores": 2})


# ---- long tails ----


def test_the_bounds_of_a_batch_by_hand(monkeypatch, repository):
    """64 requests at once in each of 4 engines, 10 ms a step whatever the load: 6,400 tokens are 25 steps."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from long_tails import Batches, Bounds, Cell, least, spread_s

    from fr3e_async.simulate.service import EngineTimes, LearnerTimes, Service, VerifierTimes, WeightTimes

    times = Service(
        engine=EngineTimes(step_s=0.01, request_s=0.0, prefill_s=1e-3), weights=WeightTimes(fetch_s=1.0, pause_s=2.0),
        verifier=VerifierTimes(answer_s=0.0), learner=LearnerTimes(fixed_s=1.0, token_s=0.1, export_s=3.0),
    )  # fmt: skip
    batch = Batches(tokens=6400, prefill=400, trained=800, chain=100, filled=0.5)
    bounds = Bounds.of(Cell(staleness=1), batch, times)
    assert bounds.engines == pytest.approx(0.25 + 0.1 + 2)
    assert bounds.engines_per_task == pytest.approx(0.5 + 0.1 + 2)
    assert bounds.learner == pytest.approx(1 + 80 / 4 + 3)
    assert bounds.slots == pytest.approx((1 + 24 + 3) / 2), "two batches follow each other within one chain"
    assert bounds.period(Cell(staleness=1)) == bounds.learner
    assert Bounds.of(Cell(staleness=0, colocated=True), batch, times).slots == pytest.approx(1 + 1 + 80 / 8 + 3 + 3)
    assert spread_s(EngineTimes(step_s=0.01, request_s=5e-4, prefill_s=0.0), 1000) == pytest.approx(0.02), "20 requests at once"
    assert least(lambda seconds: 9 / seconds) == pytest.approx(3)


def test_per_task_delivery_keeps_what_has_ended(monkeypatch, repository):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from long_tails import Cell, Span, simulated

    from fr3e_async.machine.events import Delivered
    from fr3e_async.simulate.service import EngineTimes, LearnerTimes, Service, VerifierTimes

    times = Service(
        engine=EngineTimes(step_s=0.01, request_s=0.0, prefill_s=0.0), verifier=VerifierTimes(answer_s=0.0),
        learner=LearnerTimes(fixed_s=1.0, token_s=0.0),
    )  # fmt: skip
    parts: dict[str, list[int]] = {"rollout": [], "task": []}
    for delivery, left in parts.items():
        log = SimpleNamespace(
            write=lambda event, commands, now, left=left: isinstance(event, Delivered) and left.append(event.left)
        )
        report = simulated(Cell(staleness=0, groups=2, delivery=delivery), times, Span(warmup=1, batches=1), log=log)
        assert report.steps == 1
    assert set(parts["task"]) == {0}
    assert max(parts["rollout"]) > 0
    assert parts["rollout"].count(0) == len(parts["task"]), "the same tasks"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_long_tails_in_the_simulator_and_over_ray(tmp_path, repository):
    """Three batches of four groups, 200 times as fast as the model; then again, when all cells are there."""
    out = tmp_path / "out.json"
    command = [sys.executable, str(repository / "benchmarks" / "long_tails.py"), "--quick", "--json", str(out)]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    told = [subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout for _ in range(2)]
    found = figures(out)["cells"]
    rollout, task = found["simulator"].values()
    assert (rollout["delivery"], task["delivery"]) == ("rollout", "task")
    assert task["seconds"] >= rollout["seconds"] >= rollout["bound"] > 0
    assert rollout["ages"].keys() <= {"0", "1"}
    (played,) = found["ray"].values()
    assert played["seconds"] == pytest.approx(played["simulated"]["seconds"], rel=0.5), "200 times as fast, every hop counts"
    assert played["cores"]["driver"] > 0
    assert told[0].count("| 4 engines") > told[1].count("| 4 engines") == 3


# ---- as a user starts them ----


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_branching_recomputes_nothing_but_partial_blocks(tmp_path):
    make("bench-branching", "--quick", "--json", str(tmp_path / "out.json"))
    found = figures(tmp_path / "out.json")
    assert set(found["loads"]) == {"long", "short"}
    for load in found["loads"].values():
        assert set(load["prefill"]) == {"two engines", "- generator", "- explorer", "one engine", "explorer uncached"}
        for name, row in load["prefill"].items():
            cached = name != "explorer uncached"
            assert (row["computed"] == row["blocks"]) == cached
            assert (row["computed"] == row["asked"]) == (not cached)
            assert (row["computed_to_blocks"] <= found["goal"]) == cached
            assert 0 < row["unique"] < row["asked"]
        for comparison in ("tree / independent, one engine", "tree / independent, two engines"):
            assert set(load["time"][comparison]) == {"generated", "wall", "cpu", "wall_to_floor", "cpu_to_floor"}
            assert all(value > 0 for value in load["time"][comparison].values())
        assert set(load["time"]["branches cached / uncached"]) == {"busy", "wall", "cpu"}
    for row in found["rounding"].values():
        assert (np.diff(list(row.values())) < 0).all(), "the longer the responses, the less whole blocks matter"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_entropies_are_compared_with_the_plain_engine(tmp_path):
    done = make("bench-entropy", "--quick", "--models", "tiny", "--repetitions", "1", "--json", str(tmp_path / "out.json"))
    (row,) = figures(tmp_path / "out.json")["rows"]
    assert (row["model"], row["engine"], row["temperature"]) == ("tiny", "columns", 1.0)
    assert row["low"] == row["ratio"] == row["high"] > 0, "one repetition"
    assert row["ratio"] == pytest.approx(row["plain_tokens_per_s"] / row["tokens_per_s"])
    assert f"| {row['ratio']:.3f} (" in done.stdout


def test_a_run_too_short_for_a_tick_of_cpu_time_has_a_ratio_all_the_same(monkeypatch, capsys):
    import verifier

    monkeypatch.setattr(verifier, "run_bare", lambda pairs: verifier.Run(0.5, 2 * verifier.TICK, 1))
    monkeypatch.setattr(verifier, "run_pool", lambda pairs, judge, count: verifier.Run(0.25, 0.0, 1))
    found = verifier.compare("few", [[("1", "1")]], [1])
    assert (found["judge 1 ratio"], found["judge 1 cpu ratio"]) == (2.0, 2.0)
    assert "of bare (goal 1.8): by wall time 2.00, by CPU time 2.00" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_verifiers_agree_with_bare_math_verify(tmp_path):
    done = make("bench-verifier", "--quick", "--workers", "1", "--json", str(tmp_path / "out.json"))
    found = figures(tmp_path / "out.json")["figures"]
    assert set(found) == {"one answer to a gold", "8 answers to a gold"}
    for row in found.values():
        assert row["pairs"] >= 30
        assert 0.2 < row["bare right"] == row["same 1 right"] < 0.9
        assert row["bare right"] <= row["judge 1 right"] < 0.9, "the judge knows forms that math-verify alone does not"
        assert min(row["bare"], row["same 1"], row["judge 1"], row["same 1 cpu ratio"]) > 0
    assert "8 answers to a gold" in done.stdout


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_weights_are_handed_over(tmp_path):
    make("bench-weights", "--quick", "--json", str(tmp_path / "out.json"))
    found = figures(tmp_path / "out.json")["sizes"]["1M"]
    assert set(found["engines"]) == {"1"}
    for engines, rows in found["engines"].items():
        assert set(rows) == {"all", "half", "none"}
        for row in rows.values():
            assert row["ratio"] * (1 + int(engines)) == pytest.approx(row["ratio_model"])
            assert row["ratio_model"] == pytest.approx((row["export"] + row["transfer"]) / row["memcpy"])
            assert row["whole"] > row["pause"] >= row["load"] + row["verify"]
        assert rows["all"]["sent"] == rows["all"]["copied"] == found["bytes"]
        assert rows["half"]["copied"] == pytest.approx(found["bytes"] / 2, rel=0.2)
        assert rows["none"]["sent"] == rows["none"]["copied"] == rows["none"]["load"] == 0


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_resumes_after_a_kill(tmp_path):
    """One kill, of the verifier; rewards by chance, so that every group is trained. Audit and replay belong to the target."""
    out = ("--json", str(tmp_path / "out.json"))
    done = make("chaos", "run.steps=5", "--quick", "--spread", "--kills", "1", "--victims", "verifier", *out)
    found = figures(tmp_path / "out.json")
    (kill,) = found["kills"]
    assert (kill["victim"], found["starts"]) == ("verifier", 1)
    assert kill["back_s"] > 0
    assert "| verifier | 1 |" in done.stdout
    assert "audit:" in done.stdout
    assert "replay:" in done.stdout
    assert "FAIL" not in done.stdout


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_seed_is_a_row(tmp_path):
    """One engine and no branches: two batches of the job that a user starts."""
    flat = ("explorers.count=0", "algorithm.strategy=grpo_pp", "algorithm.bases=8", "flow.groups_per_step=8")
    done = make("seeds", *flat, "--quick", "--json", str(tmp_path / "out.json"))
    run = figures(tmp_path / "out.json")["runs"]["0"]
    assert run["steps"] == 2
    assert run["wall_s"] > run["first_step_s"] > 0
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 0 |"))
    assert f"{run['tokens_generated']:,}" in row
    assert "no target is checked" in done.stdout
