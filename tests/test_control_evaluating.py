"""When evaluations are made and with which weights, what they may take of the engines, and what becomes of those that do not end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from builders import prompt
from hypothesis import given
from hypothesis import strategies as st
from loop_support import World

from fr3e_async.control.evaluator import Evaluator, Gate
from fr3e_async.control.ports import TaskLost
from fr3e_async.control.progress import load_control_state
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.store.checkpoints import CheckpointStore


def bench(name: str = "amc23", problems: int = 6, samples: int = 2) -> TestSet:
    return TestSet(name=name, problems=tuple(prompt(f"{name}/{i}") for i in range(problems)), samples=samples)


def slow_loads(world: World, seconds: float) -> None:
    for engine in world.of("generators") + world.of("explorers"):
        load = engine.load_weights

        async def slowly(weights: Any, load: Any = load) -> Any:
            await asyncio.sleep(seconds)
            return await load(weights)

        engine.load_weights = slowly


def test_an_evaluation_is_sampled_from_its_weights_however_late_these_come(tmp_path: Path) -> None:
    world = World(tmp_path, evaluate=True, evaluation={"every": 2}, run={"steps": 6})
    slow_loads(world, 0.1)
    assert world.run() == "finished"
    found = world.controller.progress.evaluations
    assert [e["label"] for e in found] == ["before", "step 2", "step 4", "after"]
    for row in found:
        assert row["oldest_version"] >= row["version"]
    assert [row["version"] for row in found[1:]] == [2, 4, 6]
    assert any("step 4" in line and " (v" in line for line in world.notes.lines)


@pytest.mark.parametrize("every", [0, 1])
def test_the_checkpoint_of_the_best_evaluation_stays(tmp_path: Path, every: int) -> None:
    """Answers become worse, so the best one is soon old; with ``every`` of 0 the evaluations alone ask for checkpoints."""
    run = {"steps": 8, "keep_best": True, "checkpoint_every": every}
    world = World(tmp_path, evaluate=True, evaluation={"every": 2}, run=run, correct=0.9, gain=-0.1)
    world.store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    assert world.run() == "finished"
    trained = [e for e in world.controller.progress.evaluations if e["version"]]
    assert [e["version"] for e in trained] == [2, 4, 6, 8]
    best = max(trained, key=lambda e: e["accuracy"])["version"]
    assert best < 8
    assert (tmp_path / "checkpoints" / "best").read_text() == f"step-{best:08d}\n"
    assert world.store.steps() == [8, best]
    assert world.store.latest() == tmp_path / "checkpoints" / "step-00000008"


def test_an_evaluation_that_skips_its_version_says_that_its_checkpoint_may_not_be_kept(tmp_path: Path) -> None:
    """Weights are slow: from version 0 the engines come to 9, so what was due at 8 is sampled from 9."""
    run, flow = {"steps": 9, "keep_best": True}, {"max_staleness": 4}
    world = World(tmp_path, evaluate=True, evaluation={"every": 2}, run=run, flow=flow, correct=0.9)
    slow_loads(world, 2.0)
    assert world.run() == "finished"
    assert [(e["label"], e["version"]) for e in world.controller.progress.evaluations] == [
        ("before", 0),
        ("step 8", 9),
        ("after", 9),
    ]
    (told,) = [line for line in world.notes.lines if "run.keep_best" in line]
    assert "evaluation 'step 8' samples from v9" in told


def test_without_keep_best_evaluations_ask_for_no_checkpoint(tmp_path: Path) -> None:
    world = World(tmp_path, evaluate=True, evaluation={"every": 2}, run={"steps": 8})
    assert world.run() == "finished"
    assert world.store.steps() == [8]
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_models_are_exported_every_so_many_batches_with_the_weights_of_their_batch(tmp_path: Path) -> None:
    world = World(tmp_path, run={"steps": 7, "export_every": 3})
    seen = []
    save = world.learner.save_model

    async def saved(folder: Path) -> None:
        seen.append((folder.name, world.learner.version))
        await save(folder)

    world.learner.save_model = saved
    assert world.run() == "finished"
    assert seen == [("step-00000003", 3), ("step-00000006", 6)]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["step-00000003", "step-00000006"]


def test_a_given_up_evaluation_samples_nothing_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    begun = []

    class Broken(Evaluator):
        async def attempt(self, part: Any, lend: Any) -> Any:
            begun.append(part)
            if len(begun) > 1:
                raise TaskLost("injected")
            await asyncio.sleep(30)

    evaluator = Broken(world.workers, (), [bench(problems=40, samples=4)])

    async def scenario() -> int:
        others = len(asyncio.all_tasks())
        with pytest.raises(TaskLost, match="was lost 3 times"):
            await evaluator.sample(evaluator.sets[0], "x", lend=lambda *a, **k: None, gated=True)
        count = len(begun)
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == others, "the part that hung was cancelled"
        return count

    assert virtual_time.run(scenario()) == len(begun)


def test_a_set_without_problems_is_told_and_harms_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, run={"steps": 3})
    world.evaluator = Evaluator(world.workers, (), [bench(problems=0), bench("aime24")])
    assert world.run() == "finished"
    assert sorted((row["label"], row["benchmark"]) for row in world.notes.rows) == [("after", "aime24"), ("before", "aime24")]
    assert any("amc23" in line and "data.max_prompt" in line for line in world.notes.lines)


def hold_evaluations(world: World, label: str) -> asyncio.Event:
    """Evaluations with this label do not end before the event is set."""
    released = asyncio.Event()

    class Held(Evaluator):
        async def measure(self, test_set: Any, label_: str, **arguments: Any) -> Any:
            if label_ == label:
                await released.wait()
            return await super().measure(test_set, label_, **arguments)

    world.evaluator = Held(world.workers, (), [bench()])
    return released


@pytest.mark.parametrize(("stop_at", "made"), [(3, False), (2, True)])
def test_an_evaluation_that_a_stop_cut_short(tmp_path: Path, stop_at: int, made: bool) -> None:
    """Made by the next session if it resumes from the same weights; else it says that it is lost."""
    sections: dict[str, Any] = {"evaluation": {"every": 2, "before": False}, "run": {"steps": 6, "checkpoint_every": 1}}
    first = World(tmp_path, **sections)
    hold_evaluations(first, "step 2")

    async def scenario() -> str:
        run = asyncio.create_task(first.go())
        await first.until(lambda: "step 2" in first.controller.progress.pending)
        await first.until(lambda: first.ledger.version >= stop_at)
        first.controller.stop("a test")
        return await run

    virtual_time.run(scenario())
    state = load_control_state(first.store.latest())
    assert state.progress.pending == {"step 2": 2}
    again = World(tmp_path, resume=True, **sections)
    again.evaluator = Evaluator(again.workers, (), [bench()])
    assert again.run() == "finished"
    labels = [row["label"] for row in again.notes.rows]
    lost = [line for line in again.notes.lines if "'step 2'" in line]
    if state.ledger.version == 2:
        assert made or lost == []
        assert "step 2" in labels
    else:
        assert "step 2" not in labels
        assert len(lost) == 1
    assert again.controller.progress.pending == {}
    assert {"step 4", "after"} <= set(labels)


def test_all_benchmarks_together_keep_to_the_share(tmp_path: Path) -> None:
    world = World(tmp_path, evaluation={"share": 0.5})
    sets = [bench(name, problems=20, samples=4) for name in ("amc23", "aime24", "aime25")]
    evaluator = Evaluator(world.workers, (), sets)
    room = 0.5 * 2 * 16
    taken = most = 0

    async def attempt(part: Any, lend: Any) -> Any:
        nonlocal taken, most
        taken += len(part)
        most = max(most, taken)
        await asyncio.sleep(0.001)
        taken -= len(part)
        return await Evaluator.attempt(evaluator, part, lend)

    evaluator.attempt = attempt  # type: ignore[method-assign]

    class Anyone:
        def __init__(self, role: str) -> None:
            self._role = role

        async def __aenter__(self) -> str:
            return world.workers.names(self._role)[0]

        async def __aexit__(self, *_: object) -> None:
            pass

    async def scenario() -> None:
        await asyncio.gather(
            *(evaluator.sample(one, "x", lend=lambda role, weight, priority: Anyone(role), gated=True) for one in sets)
        )

    virtual_time.run(scenario())
    assert 0 < most <= room


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 12), st.data())
def test_the_gate_keeps_its_limit_and_loses_no_room(sizes: list[int], limit: int, data: Any) -> None:
    cancelled = data.draw(st.sets(st.integers(0, len(sizes) - 1)))

    async def scenario() -> None:
        gate, inside = Gate(lambda: limit), [0]

        async def visit(size: int) -> None:
            async with gate.room(size):
                inside[0] += size
                try:
                    assert inside[0] <= max(limit, size)
                    await asyncio.sleep(0)
                finally:
                    inside[0] -= size

        tasks = [asyncio.create_task(visit(size)) for size in sizes]
        await asyncio.sleep(0)
        for index in cancelled:
            tasks[index].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in results if isinstance(error, AssertionError)]
        assert gate.taken == 0
        assert not gate.waiting

    virtual_time.run(scenario())
