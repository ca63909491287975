"""Whole runs of fakes whose workers come and go: pools that grow and shrink, nodes that are taken away, engines that change their pool."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from loop_support import World, audited, replayed

from fr3e_async.control.progress import load_control_state
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import WorkerUp
from fr3e_async.store.journal import read_journal
from fr3e_async.testing.fakes import ActorFault, FakeLearner, always

CALLS = {GENERATORS: "sample", EXPLORERS: "branch", VERIFIERS: "judge"}
ONE_EACH = dict.fromkeys(CALLS, 1)
TWO_WANTED = {"generators": {"count": 2}, "explorers": {"count": 2}}
QUICK = {"grow_after_s": 0.1, "shrink_after_s": 0.4, "replace_backoff_s": 0.01, "drain_timeout_s": 10.0}
ELASTIC = {
    "generators": {"count": 1, "max": 4, "rollouts_in_flight": 3},
    "explorers": {"count": 1, "max": 3, "rollouts_in_flight": 4},
    "observe": {"heartbeat_s": 0.03},
    "flow": {"max_staleness": 3},
}


class Cloud(World):
    """A run whose workers live on a node each, in a cluster that takes ``start_s`` for a new one and takes nodes away."""

    def __init__(self, folder: Path, *, start_s: float = 0.0, pools: dict[str, Any] | None = None, **settings: Any) -> None:
        self.start_s, self.ended_starts = start_s, 0
        self.going: dict[str, float] = {}  # node -> notice
        self.wants: list[tuple[str, int]] = []
        super().__init__(folder, **{"prompts": 400, "pools": QUICK | (pools or {})} | settings)
        self.workers.start, self.workers.draining = self._start_somewhere, self._nodes_that_go
        self.workers.set_target = lambda role, actors: self.wants.append((role, actors))

    def worker(self, role: str) -> Any:
        made = super().worker(role)
        made.node = f"node of {made.name}"
        return made

    async def _start_somewhere(self, role: str) -> Any:
        try:
            await asyncio.sleep(self.start_s)
        except asyncio.CancelledError:
            self.ended_starts += 1
            raise
        return await self.start_worker(role)

    async def _nodes_that_go(self) -> dict[str, float]:
        return self.going

    def take_away(self, name: str, notice: float = 0.0) -> None:
        self.going[f"node of {name}"] = notice

    def staying(self, role: str) -> int:
        return self.controller.machine.dispatcher.staying(role)

    def told(self, kind: str) -> list[Any]:
        """Events of the last session."""
        return [e.event for e in read_journal(self.journal.path)[1] if type(e.event).__name__ == kind]

    def play(self, scenario: Any) -> str:
        """A run, and beside it ``scenario``."""

        async def both() -> str:
            run = asyncio.create_task(self.go())
            told = asyncio.create_task(scenario())
            done, _ = await asyncio.wait({run, told}, return_when=asyncio.FIRST_COMPLETED)
            if told in done:
                told.result()
            else:
                told.cancel()
            return await run

        return virtual_time.run(both())

    def require_sound(self) -> None:
        """Ledger log and journal say so, nothing was trained twice, and all that it had ended."""
        audited(self.folder, self.config)
        assert replayed(self.folder, self.config) > 0
        ids = [row.payload.ids[row.row] for batch in self.learner.trained for row in batch]
        assert len(ids) == len(set(ids))
        machine = self.controller.machine
        if self.ledger.finished:  # one that was told to leave while it receives its first weights is not waited for
            assert all(slot.receiving and not slot.tasks for slot in machine.dispatcher.slots.values() if slot.leaving)


def require_current(world: Cloud, name: str) -> None:
    """One that joined late, with weights v0, made nothing with weights older than those that were live when it came."""
    live = 0
    for entry in read_journal(world.journal.path)[1]:
        if isinstance(entry.event, WorkerUp) and entry.event.worker == name:
            break
        live = max([live, *(int(command.split()[1]) for command in entry.commands if command.startswith("live "))])
    engine = world.workers.worker(name)
    rows = [row for batch in world.learner.trained for row in batch]
    mine = {int(v) for row in rows if row.payload.ids[row.row] in engine.made for v in row.payload.completion(row.row).versions}
    assert all(version >= live for version in mine)
    assert live == 0 or engine.loaded[0] >= live


# ---- pools that grow and shrink ----


def test_pools_grow_while_tasks_wait_and_shrink_when_the_learner_is_what_all_wait_for(tmp_path):
    world = Cloud(tmp_path, counts=ONE_EACH, delay_s=0.1, start_s=0.05, run={"steps": 100_000}, **ELASTIC)

    async def scenario():
        await world.until(lambda: world.staying(GENERATORS) == 4)
        await world.until(lambda: world.ledger.version >= 1)
        world.learner.delay_s = 0.4
        for engine in world.engines:
            engine.delay_s = 0.0
        await world.until(lambda: world.staying(GENERATORS) == world.staying(EXPLORERS) == 1)
        version = world.ledger.version
        await world.until(lambda: world.ledger.version > version)
        world.controller.stop("enough")

    assert world.play(scenario) == "enough"
    assert world.started, "new ones have joined"
    assert set(world.wants) >= {(GENERATORS, 1), (GENERATORS, 4)}
    assert world.said("has left: the pool is made smaller")
    assert (world.replaced(), world.ledger.failed, world.ledger.retries) == ({}, 0, 0), "nobody lost anything"
    world.require_sound()


def test_a_run_begins_with_what_is_there_and_the_others_join_with_the_current_weights(tmp_path):
    """A generator, an explorer and a verifier do the first steps; two more engines come when they come."""
    world = Cloud(tmp_path, counts=ONE_EACH, delay_s=0.005, **TWO_WANTED)
    room = asyncio.Event()
    start = world.start_worker

    async def when_there_is_room(role):
        await room.wait()
        return await start(role)

    world.start_worker = when_there_is_room

    async def scenario():
        await world.until(lambda: world.ledger.version >= 3)
        assert world.engines == [world.workers.worker("generator-0"), world.workers.worker("explorer-0")]
        room.set()
        await world.until(lambda: len(world.started) == 2)

    assert world.play(scenario) == "finished"
    assert sorted(world.started) == ["explorer-1", "generator-1"]
    for name in world.started:
        assert world.workers.worker(name).loaded[0] >= 3
        require_current(world, name)
    assert all(engine.version == 8 for engine in world.engines)
    world.require_sound()


def test_one_that_is_still_asked_for_when_the_run_ends_is_not_waited_for(tmp_path):
    world = Cloud(tmp_path, counts=ONE_EACH, start_s=600.0, **TWO_WANTED)
    assert world.run() == "finished"
    assert (world.started, world.ended_starts) == ([], 2)
    world.require_sound()


def test_one_that_is_not_needed_any_more_is_not_waited_for_either(tmp_path):
    """Generators are asked for, the load falls before they are there, and the run continues without them."""
    world = Cloud(tmp_path, counts=ONE_EACH, delay_s=0.1, start_s=600.0, run={"steps": 100_000}, **ELASTIC)

    async def scenario():
        await world.until(lambda: (GENERATORS, 2) in world.wants)
        world.learner.delay_s = 0.3
        for engine in world.engines:
            engine.delay_s = 0.0
        await world.until(lambda: (GENERATORS, 1) in world.wants[world.wants.index((GENERATORS, 2)) :])
        await world.until(lambda: world.ended_starts > 0)
        world.controller.stop("enough")

    assert world.play(scenario) == "enough"
    assert world.started == []
    world.require_sound()


def test_an_engine_that_has_nothing_to_do_changes_its_pool(tmp_path):
    """Three quick generators, one slow explorer, and no room for more."""
    pools = {
        "generators": {"count": 3, "min": 1, "rollouts_in_flight": 16},
        "explorers": {"count": 1, "max": 3, "rollouts_in_flight": 4},
    }
    counts = {GENERATORS: 3, EXPLORERS: 1, VERIFIERS: 1}
    world = Cloud(tmp_path, counts=counts, delay_s=0.0, start_s=600.0, run={"steps": 100_000}, **ELASTIC | pools)
    world.workers.worker("explorer-0").delay_s = 0.1

    async def scenario():
        await world.until(lambda: bool(world.said("works for the explorers from now on")))
        moved = [name for name in world.workers.names(EXPLORERS) if name.startswith("generator")]
        assert moved
        await world.until(lambda: world.workers.worker(moved[0]).calls["branch"] > 2)
        version = world.ledger.version
        await world.until(lambda: world.ledger.version >= version + 2)
        assert world.workers.worker(moved[0]).version >= version, "it is given weights as before"
        world.controller.stop("enough")

    assert world.play(scenario) == "enough"
    assert world.started == []
    world.require_sound()


# ---- nodes that are taken away ----


@pytest.mark.parametrize("role", CALLS)
@pytest.mark.parametrize("hangs", [False, True], ids=["its tasks end", "its tasks do not end"])
def test_a_worker_whose_node_goes_leaves_and_another_one_takes_its_place(tmp_path, role, hangs):
    """With tasks that do not end they are taken from it after half of the notice, and others get them."""
    name = f"{role.removesuffix('s')}-0"
    faults = {role: always(CALLS[role], ActorFault.HANG, first=4)} if hangs else {}
    world = Cloud(tmp_path, faults=faults, delay_s=0.01, flow={"lease_s": 60.0}, run={"steps": 6})

    async def scenario():
        worker = world.workers.worker(name)
        await world.until(lambda: worker.calls[CALLS[role]] >= 4)
        world.take_away(name, 0.3)
        await world.until(lambda: world.workers.worker(name) is None)

    assert world.play(scenario) == "finished"
    assert world.said(f"{name} has left: its node is taken away")
    assert len(world.started) == 1
    assert [event.worker for event in world.told("Leaving")] == [name]
    assert bool([event for event in world.told("Lost") if event.reason == "withdrawn"]) or not hangs
    assert all(not event.counted for event in world.told("Lost"))
    assert (world.replaced(), world.ledger.failed) == ({}, 0)
    assert world.workers.payloads.fetched >= 0, "what lay on the node is brought here"
    if role != VERIFIERS:
        require_current(world, world.started[0])
    world.require_sound()


@pytest.mark.parametrize("update", ["in_flight", "wait_idle", "abort_retry"])
def test_all_engines_are_taken_away_one_after_another_and_all_at_once(tmp_path, update):
    world = Cloud(tmp_path, delay_s=0.004, weights={"update": update}, flow={"max_staleness": 2}, start_s=0.02, run={"steps": 12})

    async def scenario():
        for number, engine in enumerate(list(world.engines)):
            await world.until(lambda number=number: world.ledger.version >= number + 1)
            world.take_away(engine.name, (0.0, 0.2)[number % 2])
        await world.until(lambda: len(world.started) >= 4)
        for engine in world.engines:
            world.take_away(engine.name, 5.0)
        await world.until(lambda: len(world.started) >= 8)

    assert world.play(scenario) == "finished"
    assert (world.ledger.version, world.ledger.failed, world.replaced()) == (12, 0, {})
    assert len(world.engines) == 4
    for engine in world.engines:
        assert engine.version == 12
        require_current(world, engine.name)
    world.require_sound()


def test_a_node_that_goes_before_its_time_is_a_loss_like_any_other(tmp_path):
    world = Cloud(tmp_path, faults={GENERATORS: always("sample", ActorFault.HANG, first=4)}, delay_s=0.01, flow={"lease_s": 60.0})

    async def scenario():
        worker = world.workers.worker("generator-0")
        await world.until(lambda: worker.calls["sample"] >= 4)
        world.take_away("generator-0", 600.0)
        await world.until(lambda: bool(world.started))  # another one at once
        worker.suffer(ActorFault.DIE)

    assert world.play(scenario) == "finished"
    assert world.started == ["generator-2"]
    assert world.replaced() == {GENERATORS: 1}
    assert world.ledger.failed == 0
    world.require_sound()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_and_goes_the_run_ends_with_a_ledger_that_balances(tmp_path, seed):
    """Nodes are taken away with and without notice, nodes die, new ones take a while or do not start."""
    rng = random.Random(seed)
    world = Cloud(
        tmp_path, counts=ONE_EACH, delay_s=0.01, run={"steps": 15, "checkpoint_every": 4}, start_s=0.03,
        pools={"max_deaths_in_a_row": 10**6}, **{**ELASTIC, "verifiers": {"max": 3}},
    )  # fmt: skip

    async def scenario():
        while True:
            await asyncio.sleep(rng.uniform(0.0, 0.1))
            worker = rng.choice(world.workers.workers() or [None])
            if worker is not None:
                match rng.randrange(4):
                    case 0:
                        worker.suffer(ActorFault.DIE)
                    case 1:
                        world.no_room += 1
                    case _:
                        world.take_away(worker.name, rng.choice([0.0, 0.1, 5.0]))

    assert world.play(scenario) == "finished"
    assert world.ledger.version == 15
    world.require_sound()


# ---- the learner's node ----


def go_on(first: Cloud, **settings: Any) -> Cloud:
    """A new learner group on other nodes, and the same workers, from the newest checkpoint."""
    latest = first.store.latest()
    first.workers.learner = FakeLearner(version=load_control_state(latest).ledger.version if latest else 0)
    return Cloud(first.folder, resume=latest is not None, workers=first.workers, **settings)


WHEN = {
    "idle": lambda world: not world.ledger.training and not world.learner.running["save"],
    "training": lambda world: world.learner.running["train"] > 0,
    "exporting": lambda world: world.learner.running["export"] > 0,
    "checkpointing": lambda world: world.learner.running["save"] > 0,
}


@pytest.mark.parametrize(("doing", "every"), [*((doing, 1) for doing in WHEN), *((doing, 0) for doing in list(WHEN)[:3])])
def test_a_learner_whose_node_goes_writes_a_checkpoint_and_is_made_again_elsewhere(tmp_path, doing, every):
    settings = {"run": {"checkpoint_every": every}, "delay_s": 0.03 if doing == "idle" else 0.01}
    first = Cloud(tmp_path, **settings)
    first.learner.nodes, first.learner.delay_s = ["learner's"], 0.0 if doing == "idle" else 0.12

    async def scenario():
        await first.until(lambda: first.ledger.version >= 3 and WHEN[doing](first))
        first.going["learner's"] = 120.0

    with pytest.raises(LearnerLost, match="a node of the learner group will be taken away"):
        first.play(scenario)
    trained = [step for step, _ in enumerate(first.learner.trained, start=1)]
    saved = load_control_state(first.store.latest()).ledger.version
    assert saved == trained[-1] == first.ledger.version < 8, "nothing that was trained is lost"
    second = go_on(first, **settings)
    assert second.run() == "finished"
    assert sorted(second.notes.steps) == list(range(saved + 1, 9)), "and no step is made twice"
    assert not set(first.trained_groups()) & set(second.trained_groups())
    assert all(engine.version == 8 for engine in second.engines)
    report = audited(tmp_path, second.config)
    assert (report.counts["trained"], report.sessions, report.open) == (32, 2, ())
    replayed(tmp_path, second.config)


def test_a_learner_whose_node_goes_before_the_first_batch_begins_again(tmp_path):
    first = Cloud(tmp_path, delay_s=0.05)
    first.learner.nodes = ["learner's"]
    first.going["learner's"] = 0.0
    with pytest.raises(LearnerLost, match="a node of the learner group"):
        first.run()
    assert first.store.latest() is None
    assert go_on(first).run() == "finished"
    audited(tmp_path, first.config)


@pytest.mark.parametrize("first", ["the notice", "the stop"])
def test_a_run_that_is_told_to_stop_ends_and_leaves_the_learner_where_it_is(tmp_path, first):
    world = Cloud(tmp_path, delay_s=0.01)
    world.learner.nodes, world.learner.delay_s = ["learner's"], 0.3

    async def scenario():
        await world.until(lambda: world.ledger.version >= 2 and WHEN["training"](world))
        if first == "the stop":
            world.controller.stop("enough")
        world.going["learner's"] = 120.0
        await asyncio.sleep(0.15)  # two beats
        world.controller.stop("enough")

    assert world.play(scenario) == "enough"
    assert load_control_state(world.store.latest()).ledger.version == world.ledger.version == len(world.learner.trained)
    world.require_sound()


def test_a_learner_whose_node_goes_when_all_steps_are_made_is_not_made_again(tmp_path):
    """The last evaluation needs none."""
    world = Cloud(tmp_path, evaluate=True, delay_s=0.02, run={"steps": 2})
    world.learner.nodes = ["learner's"]

    async def scenario():
        await world.until(lambda: bool(world.store.steps()))
        world.going["learner's"] = 120.0
        for engine in world.engines:
            engine.delay_s = 0.3

    assert world.play(scenario) == "finished"
    assert [e["label"] for e in world.controller.progress.evaluations] == ["before", "after"]
    world.require_sound()


def test_a_pool_that_nobody_joins_any_more_ends_the_run_with_the_reason(tmp_path):
    limits = {"watchdog": {"timeout_s": 0.2, "stuck_s": 60.0}, "ray": {"room_timeout_s": 0.6}}
    world = Cloud(tmp_path, start_s=600.0, delay_s=0.02, run={"steps": 1_000}, **limits)

    async def scenario():
        await world.until(lambda: world.ledger.version >= 1)
        for engine in world.of(GENERATORS):
            world.take_away(engine.name)

    with pytest.raises(RunFailed, match=r"nothing moved for .* \(ray.room_timeout_s is 0.6\)") as caught:
        world.play(scenario)
    assert "2 more of generators asked for, and not up: the cluster may have no room for them" in str(caught.value)


def test_a_node_with_the_learner_and_a_generator_goes(tmp_path):
    """The generator is still there in the second session, is told again, and leaves."""
    first = Cloud(tmp_path, delay_s=0.02)
    first.learner.nodes = ["node of generator-0"]

    async def scenario():
        await first.until(lambda: first.ledger.version >= 2)
        first.take_away("generator-0", 30.0)

    with pytest.raises(LearnerLost):
        first.play(scenario)
    second = go_on(first, delay_s=0.02)
    assert second.run() == "finished"
    assert second.workers.worker("generator-0") is None
    assert sorted(second.workers.names(GENERATORS)) == ["generator-1", "generator-2"]
    report = audited(tmp_path, second.config)
    assert (report.counts["trained"], report.sessions) == (32, 2)
    replayed(tmp_path, second.config)


def test_pools_that_have_grown_stay_so_when_the_learner_is_made_again(tmp_path):
    settings = {"delay_s": 0.1, "run": {"steps": 100_000}, **ELASTIC, "pools": {"shrink_after_s": 600.0}}
    first = Cloud(tmp_path, counts=ONE_EACH, **settings)
    first.learner.nodes = ["learner's"]

    async def scenario():
        await first.until(lambda: first.staying(GENERATORS) == 4 and first.ledger.version >= 1)
        first.going["learner's"] = 0.0

    with pytest.raises(LearnerLost):
        first.play(scenario)
    second = go_on(first, **settings)

    async def goes_on():
        await second.until(lambda: second.ledger.version > second.state.version)
        assert second.staying(GENERATORS) == 4
        second.controller.stop("enough")

    assert second.play(goes_on) == "enough"
    assert second.wants[0] == (GENERATORS, 4)
    audited(tmp_path, second.config)
    replayed(tmp_path, second.config)
