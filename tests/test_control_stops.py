"""A stop and a failure lose little: checkpoints by time, before a run fails, and what a person is told to wait for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from loop_support import World, audited

from fr3e_async.control.checkpointing import interval_s
from fr3e_async.control.progress import load_control_state
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.machine.dispatch import GENERATORS, VERIFIERS
from fr3e_async.machine.ledger_state import StarvedError
from fr3e_async.run.replay import replay
from fr3e_async.store.journal import read_journal
from fr3e_async.testing.fakes import ActorFault, FakeLearner, always

SLOW = {
    "observe": {"heartbeat_s": 10.0},
    "flow": {"groups_per_step": 4, "max_staleness": 1, "lease_s": 9e3, "retry_backoff_s": 0.01},
}
PATIENT = {"watchdog": {"timeout_s": 9e3, "stuck_s": 9e3}}


@pytest.mark.parametrize(("took", "after"), [(0.0, 300.0), (15.0, 300.0), (15.5, 310.0), (30.0, 600.0), (240.0, 4800.0)])
def test_a_checkpoint_is_due_by_time(took: float, after: float) -> None:
    assert interval_s(took) == after


class Timed(FakeLearner):
    """``train_s`` for a batch, ``save_s`` for a checkpoint; remembers when one was begun."""

    def __init__(self, *, train_s: float, save_s: float) -> None:
        super().__init__()
        self.seconds = {"train": train_s, "save": save_s}
        self.saves: list[tuple[float, int]] = []  # (s since the start, version)

    async def call(self, name: str, *, parts: int = 4) -> None:
        if name == "save":
            self.saves.append((virtual_time.now() - virtual_time.START_S, self.version))
        self.delay_s = self.seconds.get(name, 0.0)
        await super().call(name, parts=parts)


def timed(folder: Path, *, train_s: float = 0.0, save_s: float = 0.0, **sections: Any) -> World:
    world = World(folder, **{**SLOW, **PATIENT, **sections})
    world.workers.learner = Timed(train_s=train_s, save_s=save_s)
    return world


def test_short_batches_are_kept_after_five_minutes(tmp_path: Path) -> None:
    """Batches end at some 70, 140, ... s. At 300 s the fifth is in training: it is kept at 350 s, the next one is due at 650 s."""
    world = timed(tmp_path, train_s=70.0, run={"steps": 16, "checkpoint_every": 0})
    assert virtual_time.run(world.go(), limit_s=1e5) == "finished"
    learner: Any = world.workers.learner
    assert [(round(at), version) for at, version in learner.saves] == [(350, 5), (700, 10), (1050, 15), (1120, 16)]
    assert world.said("a checkpoint is written after 5 min at the latest")


def test_a_checkpoint_that_takes_long_is_due_more_seldom(tmp_path: Path) -> None:
    """Writing takes 30 s: the second one is due 600 s after the first was begun, and there are no more."""
    world = timed(tmp_path, train_s=60.0, save_s=30.0, run={"steps": 18, "checkpoint_every": 0})
    assert virtual_time.run(world.go(), limit_s=1e5) == "finished"
    learner: Any = world.workers.learner
    first, second, last = (at for at, _ in learner.saves)
    assert [version for _, version in learner.saves][-1] == 18
    assert 300 <= first <= 360
    assert 600 <= second - first <= 660
    assert world.said("in 30.0 s; the next one within 10 min")
    assert (world.ledger.version, last > second) == (18, True)


def test_a_first_batch_that_takes_long_to_generate_is_kept_too(tmp_path: Path) -> None:
    """No batch is trained for 2,000 s: what the engines have made by then is in a checkpoint of version 0."""
    config = {"run": {"steps": 1, "checkpoint_every": 0}, **SLOW, **PATIENT}
    world = World(tmp_path, delay_s=100.0, judge_s=500.0, **config)

    async def scenario() -> None:
        run = asyncio.create_task(world.go())
        await virtual_time.until(lambda: world.store.steps() == [0], step_s=10.0, limit_s=2000.0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    virtual_time.run(scenario(), limit_s=1e5)
    again = World(tmp_path, resume=True, **config)
    assert again.state is not None
    assert (again.state.version, again.kept != []) == (0, True)
    assert virtual_time.run(again.go(), limit_s=1e5) == "finished"
    assert audited(tmp_path, again.config).counts["trained"] == 4


# ---- failures ----


def starving(folder: Path, **sections: Any) -> World:
    flow = {"groups_per_step": 4, "max_staleness": 1, "retry_backoff_s": 0.01, "max_rejected_in_a_row": 20}
    return World(
        folder,
        prompts=40,
        correct=0.4,
        gain=0.0,
        run={"steps": 30, "checkpoint_every": 0},
        flow=flow | sections.pop("flow", {}),
        **sections,
    )


def starve(world: World) -> None:
    async def scenario() -> None:
        run = asyncio.create_task(world.go())
        await world.until(lambda: world.ledger.version >= 5)
        for engine in world.engines:
            engine.correct = 0.0
        await run

    with pytest.raises(StarvedError, match=r"^21 groups in a row taught nothing"):
        virtual_time.run(scenario())


def test_a_run_that_starves_leaves_a_checkpoint_and_resumes_with_another_bound(tmp_path: Path) -> None:
    first = starving(tmp_path)
    starve(first)
    version = first.ledger.version
    assert version >= 5
    assert first.store.steps() == [version]
    saved = load_control_state(first.store.root / f"step-{version:08d}").ledger
    assert (saved.outcomes, saved.settled, len(first.notes.groups)) == (
        first.ledger.outcomes,
        first.ledger.settled,
        first.ledger.settled,
    )
    second = starving(tmp_path, resume=True, flow={"max_rejected_in_a_row": 1000})
    assert second.run() == "finished"
    assert audited(tmp_path, second.config).counts["trained"] == 120
    assert all(step.same for path in sorted((tmp_path / "journal").glob("*")) for step in replay(*read_journal(path)))


def test_who_mends_the_cause_and_not_the_bound_is_not_ended_by_the_next_group(tmp_path: Path) -> None:
    starve(starving(tmp_path))
    second = starving(tmp_path, resume=True)
    assert second.state is not None
    assert second.state.rejected_in_a_row == 21
    assert second.ledger.state().rejected_in_a_row == 0
    assert second.run() == "finished"


@pytest.mark.parametrize("role", [GENERATORS, VERIFIERS])
def test_deaths_of_a_role_leave_the_batch_that_was_in_training(tmp_path: Path, role: str) -> None:
    """The learner is at version 3 when the last worker dies: its batch is waited for, so that ledger and weights agree."""
    world = timed(tmp_path, train_s=600.0, run={"steps": 9, "checkpoint_every": 0})
    call = {GENERATORS: "sample", VERIFIERS: "judge"}[role]

    async def scenario() -> None:
        run = asyncio.create_task(world.go())
        await virtual_time.until(lambda: world.ledger.version == 2 and world.learner_trains(), step_s=1.0, limit_s=1e4)
        for worker in world.of(role):
            worker.faults = always(call, ActorFault.DIE)
            worker.suffer(ActorFault.DIE)
        world.no_room = 10**6
        await run

    world.learner_trains = lambda: world.workers.learner.running["train"] > 0  # type: ignore[attr-defined]
    with pytest.raises(RunFailed):
        virtual_time.run(scenario(), limit_s=1e5)
    assert world.store.steps() == [3, 2], "the older one was due by time"
    assert (world.store.root / "step-00000003" / "learner" / "version").read_text() == "3"
    assert load_control_state(world.store.root / "step-00000003").ledger.version == 3
    again = World(tmp_path, resume=True, **SLOW, **PATIENT, run={"steps": 9, "checkpoint_every": 0})
    assert virtual_time.run(again.go(), limit_s=1e5) == "finished"
    assert audited(tmp_path, again.config).counts["trained"] == 36


@pytest.mark.parametrize("moment", range(12))
def test_a_failure_at_any_moment_leaves_a_ledger_and_weights_that_agree(tmp_path: Path, moment: int) -> None:
    """In the middle of a batch, an export, a periodic checkpoint, and between them; the learner takes most of the time."""
    sections = SLOW | PATIENT | {"run": {"steps": 6, "checkpoint_every": 2}}
    world = timed(tmp_path, train_s=1.0, save_s=0.7, **sections)

    async def fail() -> None:
        raise RunFailed("for a cause outside the learner")

    async def scenario() -> None:
        run = asyncio.create_task(world.go())
        await world.until(lambda: world.ledger.version >= 1)
        await asyncio.sleep(0.37 * moment)
        assert not run.done()
        world.controller.context.spawn(fail())
        await run

    with pytest.raises(RunFailed, match="outside the learner"):
        virtual_time.run(scenario())
    newest = world.store.latest()
    assert newest is not None
    versions = {
        load_control_state(newest).ledger.version,
        int((newest / "learner" / "version").read_text()),
        world.ledger.version,
    }
    assert versions == {world.workers.learner.version}
    again = World(tmp_path, resume=True, **sections)
    assert virtual_time.run(again.go(), limit_s=1e5) == "finished"
    assert audited(tmp_path, again.config).counts["trained"] == 24


@pytest.mark.parametrize("call", ["train", "save"])
def test_a_learner_that_dies_is_not_asked_for_a_checkpoint(tmp_path: Path, call: str) -> None:
    world = World(tmp_path, run={"steps": 6, "checkpoint_every": 2}, faults={"learner": {(call, 2): ActorFault.DIE}})
    with pytest.raises(LearnerLost):
        world.run()
    assert world.store.steps() == {"train": [], "save": [2]}[call]
    assert not world.said("no checkpoint could be written")


def test_a_learner_that_is_stuck_is_not_waited_for(tmp_path: Path) -> None:
    """It hangs in the batch that is waited for: ``watchdog.stuck_s`` later the failure is told, and that nothing was saved."""
    world = starving(tmp_path, watchdog={"stuck_s": 3.0})

    async def scenario() -> float:
        run = asyncio.create_task(world.go())
        await world.until(lambda: world.ledger.version >= 5)
        world.learner.faults = always("train", ActorFault.BLOCK)
        await world.until(lambda: world.learner.running["train"] > 0)
        world.controller.context.wake()
        began = virtual_time.now()
        for engine in world.engines:
            engine.correct = 0.0
        with pytest.raises((StarvedError, LearnerLost)):
            await run
        return virtual_time.now() - began

    assert virtual_time.run(scenario()) < 10
    assert world.store.steps() == []


# ---- what a stop says ----


def test_a_stop_tells_how_long_the_batch_in_training_takes(tmp_path: Path) -> None:
    world = timed(tmp_path, train_s=400.0, save_s=8.0, run={"steps": 9, "checkpoint_every": 1})
    messages: list[str] = []

    async def scenario() -> str:
        run = asyncio.create_task(world.go())
        messages.append(world.controller.awaited())
        await virtual_time.until(lambda: world.ledger.training, step_s=1.0)
        messages.append(world.controller.awaited())
        await virtual_time.until(lambda: world.store.steps() == [1] and world.ledger.training, step_s=1.0, limit_s=1e4)
        await asyncio.sleep(250)
        messages.append(world.controller.awaited())
        world.controller.stop("stopped by SIGINT")
        return await run

    assert virtual_time.run(scenario(), limit_s=1e5) == "stopped by SIGINT"
    assert messages == [
        "no batch is trained, so there is nothing to save",
        "the batch in training is waited for (the first of this session: nobody knows how long), then a checkpoint is written",
        messages[2],
    ]
    assert messages[2].startswith("the batch in training is waited for (about ")
    assert messages[2].endswith(" more), then a checkpoint is written (about 8 s)")
    assert world.store.steps()[0] == world.ledger.version == 2
