"""A suite beside training, on fakes: who is lent, what is told, what a loss or a resume leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import virtual_time
from builders import prompt
from loop_support import World, replayed

from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.ports import TaskLost
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.machine.dispatch import GENERATORS
from fr3e_async.store.summary import write_problems


def bench(name: str = "amc23", problems: int = 6, samples: int = 3, **fields: Any) -> TestSet:
    return TestSet(name=name, problems=tuple(prompt(f"{name}/{i}") for i in range(problems)), samples=samples, **fields)


def with_suite(folder: Path, suite: Sequence[TestSet], *, heldout: bool = True, **arguments: Any) -> World:
    world = World(folder, evaluate=heldout, **arguments)
    world.evaluator = Evaluator(world.workers, world.problems[:10] if heldout else (), suite)
    return world


def labels(world: World) -> list[tuple[str, str]]:
    return sorted((row["label"], row["benchmark"]) for row in world.notes.rows)


def test_a_suite_is_evaluated_beside_the_held_out_set(tmp_path: Path) -> None:
    world = with_suite(tmp_path, [bench(), bench("aime24", 2, 4)], evaluation={"every": 3})
    assert world.run() == "finished"
    names = ("aime24", "amc23", "heldout")
    assert labels(world) == sorted((label, name) for label in ("before", "step 3", "step 6", "after") for name in names)
    row = next(row for row in world.notes.rows if (row["label"], row["benchmark"]) == ("step 6", "aime24"))
    assert (row["version"], row["problems"], row["samples"], row["k"]) == (6, 2, 8, 4)
    assert row["trained"] > 0
    assert row["took_s"] > 0
    assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert set(row["pass_at"]) == {"1", "2", "4"}
    before = [row for row in world.notes.rows if row["label"] == "before"]
    assert {row["newest_version"] for row in before} == {0}, "weights stay until the first figures are known"
    assert [e["label"] for e in world.controller.progress.evaluations] == ["before", "step 3", "step 6", "after"]
    by_problem = world.notes.by_problem["step 3-amc23"]
    assert [len(r["outcomes"]) for r in by_problem] == [3] * 6
    assert all(answer in ("1", "2") for r in by_problem for answer in r["answers"])
    assert [r["responses"] for r in by_problem] == [[f"so {r['answers'][0]}"] for r in by_problem]
    shown = world.notes.shown["aime24", 6]
    assert [(row[0], row[1], row[2][:3]) for row in shown] == [(f"problem aime24/{i}", "1", "so ") for i in (0, 1)]
    assert {(row[3], row[4]) for rows in world.notes.shown.values() for row in rows} == {("correct", "1"), ("wrong", "0")}
    row = next(row for row in world.notes.rows if row["benchmark"] == "amc23")
    assert row["reward"] == {"value": row["accuracy"], "low": row["low"], "high": row["high"]}
    assert replayed(tmp_path, world.config) > 0, "the machine decides the same again"


def test_a_suite_without_a_held_out_set(tmp_path: Path) -> None:
    world = with_suite(tmp_path, [bench()], heldout=False, evaluation={"before": False})
    assert world.run() == "finished"
    assert labels(world) == [("after", "amc23")]
    assert world.controller.progress.evaluations == []


def test_a_benchmark_that_is_lost_leaves_training_and_the_others_alone(tmp_path: Path) -> None:
    class Broken(Evaluator):
        async def attempt(self, part: Any, lend: Any) -> Any:
            if part[0].problem.uid.startswith("amc23"):
                raise TaskLost("injected")
            return await super().attempt(part, lend)

    world = with_suite(tmp_path, [])
    world.evaluator = Broken(world.workers, world.problems[:10], [bench()])
    assert world.run() == "finished"
    assert labels(world) == [("after", "heldout"), ("before", "heldout")]
    assert world.notes.kinds.count("evaluation_lost") == 2
    assert any("amc23 avg@3, failed" in line for line in world.notes.lines)


def test_what_a_checkpoint_knows_is_not_evaluated_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"run": {"steps": 8, "checkpoint_every": 4}, "evaluation": {"every": 2}}
    first = with_suite(tmp_path, [bench()], **settings)
    first.run()
    longer = {**settings, "run": {"steps": 12, "checkpoint_every": 4}}
    again = with_suite(tmp_path, [bench()], resume=True, **longer)
    again.run()
    mine = [label for label, name in labels(again) if name == "amc23"]
    assert sorted(mine) == sorted(["before", "step 2", "step 4", "step 6", "step 8", "step 10", "after"])


def test_a_benchmark_takes_its_share_of_the_generators_while_the_run_trains(tmp_path: Path) -> None:
    world = with_suite(tmp_path, [], evaluation={"share": 0.5})
    evaluator = Evaluator(world.workers, (), [bench(problems=40, samples=4)])
    running, most = 0, 0

    class Counting:
        def __init__(self, role: str) -> None:
            self.role = role

        async def __aenter__(self) -> str:
            nonlocal running, most
            running += self.role == GENERATORS
            most = max(most, running)
            return world.workers.names(self.role)[0]

        async def __aexit__(self, *_: object) -> None:
            nonlocal running
            running -= self.role == GENERATORS

    def lend(role: str, weight: int, *, priority: int) -> Any:
        return Counting(role)

    for trains, expected in ((True, 4), (False, 40)):  # 2 engines of 16 rollouts, 4 rollouts a part
        most = 0
        virtual_time.run(
            evaluator.measure(evaluator.sets[0], "x", lend=lend, on_progress=lambda: None, trains=trains, clock=lambda: 0.0)
        )
        assert most == expected


def test_results_by_problem_stay_within_their_bound(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "outcomes": "r" * 1000} for i in range(400)]  # 0.4 MiB
    for step in range(6):
        write_problems(tmp_path, f"step {step}-gsm8k", rows, keep_mib=1)
        os.utime(tmp_path / "evaluations" / f"step-{step}-gsm8k.jsonl", ns=(step, step))
    assert sorted(path.name for path in (tmp_path / "evaluations").iterdir()) == ["step-4-gsm8k.jsonl", "step-5-gsm8k.jsonl"]
