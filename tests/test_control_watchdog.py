"""Who is stuck is found, named with its stacks, and repaired, or the run ends with that diagnosis; who works or rests is left alone."""

from __future__ import annotations

import asyncio
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import virtual_time
from hypothesis import given
from hypothesis import strategies as st
from loop_support import LooseContext, World, audited, loop_config, replayed

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.control.watchdog import LOOKS, TURNS, Watchdog, looks
from fr3e_async.control.workers import Workers
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Leaving, Pressure, Utilization, WorkerDown, WorkerUp
from fr3e_async.machine.machine import Machine
from fr3e_async.testing.fakes import ActorFault, FakeEngineWorker, FakeLearner, FakePayloads, FakeVerifier, always

CALLS = {GENERATORS: "sample", EXPLORERS: "branch", VERIFIERS: "judge"}
QUICK = {"watchdog": {"stuck_s": 0.4, "timeout_s": 20.0}, "flow": {"lease_s": 60.0}, "run": {"steps": 4}}
SILENT_TEXT = "does not answer at all: its process or its node has stopped"


@pytest.mark.parametrize("role", CALLS)
@pytest.mark.parametrize("fault", [ActorFault.HANG, ActorFault.BLOCK, ActorFault.SILENT])
def test_a_stuck_worker_is_named_with_its_stacks_and_replaced(tmp_path, role, fault):
    world = World(tmp_path, faults={role: {(CALLS[role], 3): fault}}, **QUICK)
    assert world.run() == "finished"
    name = f"{role.removesuffix('s')}-0"
    message = world.said(f"{name} is stuck: ")
    answers = fault is ActorFault.HANG or (
        fault is ActorFault.BLOCK and role == VERIFIERS
    )  # an engine's stats come from its main thread
    assert ("it has work and has not got on for" if answers else "it has not answered for") in message
    assert f"{name} with tasks " in message
    assert (SILENT_TEXT if fault is ActorFault.SILENT else f"{name} in {CALLS[role]}") in message
    assert "object store: answers" in message
    assert (world.replaced(), len(world.started), world.ledger.failed) == ({role: 1}, 1, 0)
    assert sum("is stuck: " in line for line in world.notes.lines) == 1
    audited(tmp_path, world.config)
    replayed(tmp_path, world.config)


@pytest.mark.parametrize("fault", [ActorFault.HANG, ActorFault.BLOCK, ActorFault.SILENT])
@pytest.mark.parametrize(("call", "doing"), [("train", "trains v2"), ("export", "trains v2"), ("save", "writes checkpoint v1")])
def test_a_stuck_learner_is_named_with_its_stacks(tmp_path, call, doing, fault):
    number = 1 if call == "save" else 2
    sections = QUICK | {"run": {"steps": 4, "checkpoint_every": 1 if call == "save" else 0}}
    world = World(tmp_path, faults={"learner": {(call, number): fault}}, **sections)
    with pytest.raises(LearnerLost) as caught:
        world.run()
    message = str(caught.value)
    assert message.startswith(f"the learner is stuck: it {doing} and has not got on for")
    assert "learner rank 0:" in message
    assert ("does not answer within" if fault is ActorFault.SILENT else f"learner in {call}") in message


def test_a_learner_that_dies_unseen_is_found_by_its_pulse(tmp_path):
    """The call itself says nothing: it hangs in a collective."""
    world = World(tmp_path, faults={"learner": {("train", 2): ActorFault.HANG}}, **QUICK | {"watchdog": {"stuck_s": 60.0}})

    async def gone():
        raise LearnerLost("rank 1 is dead")

    async def scenario():
        run = asyncio.create_task(world.go())
        await world.until(lambda: world.learner.calls["train"] == 2)
        world.learner.pulse = gone
        await run

    with pytest.raises(LearnerLost, match="rank 1 is dead"):
        virtual_time.run(scenario())


def test_an_object_store_that_hangs_is_named(tmp_path):
    sections = QUICK | {"run": {"steps": 8, "checkpoint_every": 2}, "watchdog": {"stuck_s": 0.4, "timeout_s": 0.8}}
    world = World(tmp_path, **sections)

    async def scenario():
        run = asyncio.create_task(world.go())
        await world.until(lambda: bool(world.store.steps()))
        world.workers.payloads.open.clear()
        await run

    try:
        with pytest.raises(RunFailed) as caught:
            virtual_time.run(scenario())
    finally:
        world.workers.payloads.open.set()  # let its thread end
    assert str(caught.value).startswith("nothing moved for ")
    assert "the control loop writes checkpoint v" in str(caught.value)
    assert not isinstance(caught.value, LearnerLost), "the learner has done its part"
    assert "object store: does not answer: nothing that is large can be handed on" in str(caught.value)


def test_a_slow_disk_is_not_the_learners_fault(tmp_path):
    """A checkpoint takes four times watchdog.stuck_s, all of it in the hands of the control loop."""
    world = World(tmp_path, **QUICK | {"run": {"steps": 2}, "watchdog": {"stuck_s": 0.3, "timeout_s": 20.0}})
    commit = world.store.commit
    world.store.commit = lambda folder, step: (virtual_time.sleep_in_thread(1.2), commit(folder, step))[1]
    assert world.run() == "finished"


def test_long_work_that_moves_is_not_stuck_and_neither_is_who_waits_for_it(tmp_path):
    """A sample takes 2 s, far longer than the limit, and moves every 0.2 s; the explorers wait for the trunks."""
    sections = QUICK | {"watchdog": {"stuck_s": 1.0, "timeout_s": 20.0}, "run": {"steps": 1}, "weights": {"ack_timeout_s": 60.0}}
    world = World(tmp_path, flow={"lease_s": 60.0, "groups_per_step": 2}, **{k: v for k, v in sections.items() if k != "flow"})
    for engine in world.of(GENERATORS):
        engine.delay_s, engine.call = 2.0, _in_parts(engine, 10)
    assert world.run() == "finished"
    assert world.said("is stuck") == ""
    assert (world.replaced(), world.ledger.retries) == ({}, 0)


def _in_parts(engine, count):
    call = engine.call
    return lambda name, parts=4: call(name, parts=count if parts else 0)


def test_a_learner_that_moves_keeps_the_run_alive(tmp_path):
    """A batch takes 1.4 s, far longer than watchdog.timeout_s, and nothing else has anything to do."""
    world = World(tmp_path, watchdog={"stuck_s": 0.7, "timeout_s": 0.7}, flow={"max_staleness": 0}, run={"steps": 1})
    train = world.learner.train

    async def slowly(rows, *, version):
        world.learner.delay_s = 1.4
        try:
            return await train(rows, version=version)
        finally:
            world.learner.delay_s = 0.0

    world.learner.train = slowly
    assert world.run() == "finished"


@pytest.mark.parametrize("full", [False, True])
def test_nothing_moving_ends_the_run_with_a_diagnosis(tmp_path, full):
    """Also when an engine says at every heartbeat that its cache is full."""
    world = World(
        tmp_path, faults={VERIFIERS: always("judge", ActorFault.HANG)}, watchdog={"timeout_s": 0.5, "stuck_s": 60.0}, flow={"lease_s": 60.0}
    )  # fmt: skip
    world.of(GENERATORS)[0].kv_used = 0.99 if full else 0.0
    with pytest.raises(RunFailed, match=r"nothing moved for .*watchdog.timeout_s is 0\.5") as caught:
        world.run()
    message = str(caught.value)
    assert "verifiers: " in message
    assert "at 1 actors" in message
    assert " to be scored" in message, "what the oldest groups wait for"
    assert "verifier-0 with tasks " in message
    assert "verifier-0 in judge" in message
    assert "learner: has nothing to do" in message
    assert "weights: v0 trained, v0 to be served, v0 served by all engines" in message
    assert not isinstance(caught.value, LearnerLost), "another learner would not help"


def test_the_diagnosis_names_engines_on_the_way_to_new_weights(tmp_path):
    slow = {"weights": {"ack_timeout_s": 60.0}, "watchdog": {"timeout_s": 0.5, "stuck_s": 60.0}}
    world = World(
        tmp_path, faults={EXPLORERS: always("load_weights", ActorFault.HANG)}, flow={"max_staleness": 0, "lease_s": 60.0}, **slow
    )
    with pytest.raises(RunFailed) as caught:
        world.run()
    assert "explorer-0 is receiving at v0" in str(caught.value)
    assert "weights: v1 trained, v1 to be served, v0 served by all engines" in str(caught.value)


# ---- by hand, with a clock of our own ----


class ByHand:
    """A watch over one generator, at times that the test chooses; other workers may join."""

    def __init__(self, **sections) -> None:
        self.now = 0.0
        self.relocated: list[str] = []
        self.going: dict[str, float] = {}  # nodes that will be taken away
        config = loop_config(**sections)
        self.machine = Machine(config, make_strategy(config.algorithm))
        self.workers = Workers(
            config=config,
            learner=FakeLearner(),
            payloads=FakePayloads(),
            start=None,
            draining=self._draining,
            clock=lambda: self.now,
        )
        self.worker = self.join(GENERATORS, FakeEngineWorker("generator-0"))
        self.context = LooseContext(config=config, machine=self.machine, workers=self.workers, clock=lambda: self.now)
        self.told, self.notes = self.context.told, self.context.reporter.lines
        self.learner = self.context.learner = SimpleNamespace(does="")
        checkpointing: Any = SimpleNamespace(relocate=self.relocated.append, soon=lambda: self.notes.append("saved"))
        self.watch = Watchdog(self.context, checkpointing)

    async def _draining(self):
        return self.going

    def join(self, role, worker):
        self.machine.handle(WorkerUp(role=role, worker=worker.name))
        self.workers.add(role, worker)
        worker.clock = lambda: self.now
        return worker

    @property
    def pressed(self) -> list[Pressure]:
        return [event for event in self.told if isinstance(event, Pressure)]

    def beat(self, **stats) -> None:
        for name, value in stats.items():
            setattr(self.worker, name, value)
        virtual_time.run(self.watch.beat())


def test_idle_and_overlap_of_a_timeline_made_by_hand():
    """Generator at work 0-4 and 5-8, learner 2-6, looked at from 0 to 10."""
    hand = ByHand()
    hand.watch.learned((2.0, 6.0))
    hand.beat(busy=[(0.0, 3.0), (3.0, 4.0), (5.0, 8.0)])
    hand.now = 10.0
    measured = hand.watch.utilisation()
    assert measured["idle/generators_fraction"] == pytest.approx(0.3)
    assert measured["idle/learner_fraction"] == pytest.approx(0.6)
    assert measured["overlap/fraction"] == pytest.approx(0.75)
    assert "idle/explorers_fraction" not in measured


def test_folding_changes_no_sum():
    """The same timeline told in pieces, with a beat after each of them."""
    hand = ByHand()
    for end, busy, learned in ((3.0, [(0.0, 3.0)], []), (6.5, [(3.0, 4.0), (5.0, 6.5)], [(2.0, 6.0)]), (9.0, [(6.5, 8.0)], [])):
        hand.now = end
        hand.learner.does = "trains v1" if end == 3.0 else ""
        for interval in learned:
            hand.watch.learned(interval)
        hand.beat(busy=busy)
    hand.now = 10.0
    measured = hand.watch.utilisation()
    assert measured["idle/generators_fraction"] == pytest.approx(0.3)
    assert measured["overlap/fraction"] == pytest.approx(0.75)


def test_evictions_are_pressure_in_a_full_cache_but_not_those_of_an_update():
    hand = ByHand()
    hand.beat(preempted=5, kv_used=0.5)
    hand.beat(preempted=7, kv_used=0.5)
    assert hand.pressed == [], "an update of the weights throws requests out of a cache with room, too"
    hand.beat(preempted=9, kv_used=0.9)
    assert [(event.worker, event.preempted) for event in hand.pressed] == [("generator-0", 2)]
    hand.beat(preempted=50, version=1, kv_used=0.9)
    assert hand.pressed[-1] == Pressure(worker="generator-0", kv_used=0.9, waiting=0, preempted=0)


def test_an_engine_with_room_is_not_reported():
    hand = ByHand()
    hand.beat(kv_used=0.2)
    hand.beat(kv_used=0.84)
    assert hand.pressed == []


ELASTIC = {"generators": {"count": 1, "max": 4}, "explorers": {"count": 1, "max": 4}}


def test_how_much_the_pools_had_to_do_is_told_at_every_beat():
    """A generator at work 0-4 and 5-8, another one that has just come, a verifier that judged from 6 to 8."""
    hand = ByHand(**ELASTIC)
    verifier = hand.join(VERIFIERS, FakeVerifier("verifier-0"))
    hand.now = 4.0
    hand.beat(busy=[(0.0, 4.0)])
    hand.join(GENERATORS, FakeEngineWorker("generator-1"))
    hand.now = 6.0
    hand.workers.meters[verifier.name].enter(6.0)
    hand.now = 8.0
    hand.workers.meters[verifier.name].leave(8.0)
    hand.beat(busy=[(5.0, 8.0)])
    hand.now = 10.0
    hand.beat(busy=[])
    assert hand.told == [
        Utilization(at=4.0, idle=((GENERATORS, 0.0), (VERIFIERS, 1.0))),
        Utilization(at=8.0, idle=((GENERATORS, 0.625), (VERIFIERS, 0.5))),
        Utilization(at=10.0, idle=((GENERATORS, 1.0), (VERIFIERS, 1.0))),
    ]


def test_pools_of_a_fixed_size_are_not_looked_at():
    hand = ByHand()
    hand.now = 4.0
    hand.beat()
    assert hand.told == []


def test_what_an_engine_did_before_it_was_moved_makes_nobody_busier_than_always():
    hand = ByHand(**ELASTIC)
    other = hand.join(EXPLORERS, FakeEngineWorker("explorer-0"))
    hand.machine.dispatcher.move(other.name, GENERATORS)
    hand.workers.move(other.name, GENERATORS)
    hand.now = 4.0
    other.busy = [(0.0, 4.0)]
    hand.beat(busy=[(0.0, 4.0)])
    assert hand.told == [Utilization(at=4.0, idle=((GENERATORS, 0.0),))]


def test_idle_fractions_of_a_pool_that_comes_and_goes_are_of_the_time_that_its_actors_were_there():
    """One at work from 0 to 10; three more that are there from 10 to 20 and have nothing to do; then again the one, at work."""
    hand = ByHand(**ELASTIC)
    hand.now = 10.0
    hand.beat(busy=[(0.0, 10.0)])
    more = [hand.join(GENERATORS, FakeEngineWorker(f"generator-{n}")) for n in (1, 2, 3)]
    hand.now = 20.0
    hand.beat(busy=[(10.0, 20.0)])
    for engine in more:
        hand.machine.handle(WorkerDown(worker=engine.name, why="gone"))
        hand.workers.remove(engine.name)
    hand.now = 30.0
    hand.beat(busy=[(20.0, 30.0)])
    hand.now = 40.0
    hand.watch.busy_s[GENERATORS] += 10.0  # at work since, and not told by a beat
    assert hand.watch.utilisation()["idle/generators_fraction"] == pytest.approx(1 - 40 / (10 + 40 + 10 + 10))


def test_workers_on_a_node_that_goes_are_told_once_and_the_learner_moves():
    hand = ByHand()
    verifier = hand.join(VERIFIERS, FakeVerifier("verifier-0"))
    hand.worker.node, verifier.node, hand.workers.learner.nodes = "a", "b", ["c", "d"]
    hand.beat()
    assert (hand.told, hand.notes) == ([], [])
    hand.going = {"a": 30.0}
    hand.beat()
    hand.beat()
    assert hand.told == [Leaving(worker="generator-0", why="its node is taken away", seconds=30.0)]
    assert hand.notes == ["the node of generator-0 will be taken away in 30 s"]
    hand.going = {"b": 0.0, "d": 0.0}
    hand.beat()
    assert hand.told[1:] == [Leaving(worker="verifier-0", why="its node is taken away", seconds=0.0)]
    assert hand.notes[1:] == ["the node of verifier-0 will be taken away"]
    assert hand.relocated == ["a node of the learner group will be taken away"]


def test_a_second_notice_counts_if_it_leaves_less_time():
    hand = ByHand()
    hand.worker.node = "a"
    for seconds in (0.0, 100.0, 99.0, 300.0, 40.0):
        hand.going = {"a": seconds}
        hand.beat()
    assert [event.seconds for event in hand.told] == [0.0, 100.0, 40.0]


def test_the_node_of_the_control_loop_itself_is_worth_a_checkpoint():
    hand = ByHand()
    hand.workers.node, hand.going = "head", {"head": 60.0, "nobody's": 5.0}
    hand.beat()
    hand.beat()
    assert hand.notes == ["the node of the control loop itself will be taken away: a checkpoint is written", "saved"]
    assert hand.watch.notices == {"head"}, "nodes that an autoscaler gives up are no notices"


def test_two_looks_that_wait_for_the_same_answer_both_have_it():
    hand = ByHand()

    async def goes():
        await asyncio.sleep(0)
        return {"a": 60.0}

    async def both():
        return await asyncio.gather(hand.watch.draining(), hand.watch.draining())

    hand.workers.draining = goes
    assert virtual_time.run(both()) == [{"a": 60.0}, {"a": 60.0}]
    assert hand.notes == []


def test_a_cluster_that_cannot_say_which_nodes_go_does_not_end_the_run():
    hand = ByHand()

    async def fails():
        raise RuntimeError("no such call in this Ray")

    hand.workers.draining = fails
    hand.beat()
    hand.beat()
    assert hand.notes == ["notices of nodes cannot be had: no such call in this Ray"]
    assert hand.told == []


def test_a_cluster_that_does_not_say_in_time_which_nodes_go_holds_up_no_beat():
    hand = ByHand(observe={"heartbeat_s": 0.02})

    async def never():
        await asyncio.Event().wait()

    hand.workers.draining = never
    hand.beat()
    assert hand.told == []


def test_of_many_workers_a_heartbeat_looks_at_a_part_and_each_has_its_turns():
    """300 engines, a beat every 2 s, stuck after 60: 4 · 2 / 60 of 300 are 40, so ``LOOKS``; nobody waits longer than 15 s."""
    hand = ByHand(observe={"heartbeat_s": 2.0}, watchdog={"stuck_s": 60.0})
    seen: dict[str, list[float]] = {}
    for number in range(1, 300):
        hand.join(GENERATORS, FakeEngineWorker(f"generator-{number}"))
    for worker in hand.workers.workers():
        worker.pulse = lambda name=worker.name, real=worker.pulse: (seen.setdefault(name, []).append(hand.now), real())[1]
    for _ in range(20):
        asked = sum(map(len, seen.values()))
        hand.beat()
        assert sum(map(len, seen.values())) - asked == LOOKS == 128
        hand.now += 2.0
    assert len(seen) == 300
    for times in seen.values():
        assert times[0] < 60.0 / TURNS
        assert all(after - before <= 60.0 / TURNS for before, after in itertools.pairwise(times))


@given(workers=st.integers(0, 20_000), heartbeat=st.floats(0.1, 30.0), stuck=st.floats(1.0, 900.0))
def test_looks_are_enough_for_the_turns_and_no_more_than_there_are_workers(workers, heartbeat, stuck):
    config = loop_config(observe={"heartbeat_s": heartbeat}, watchdog={"stuck_s": stuck})
    found = looks(workers, config)
    assert min(workers, LOOKS) <= found <= workers
    beats = math.ceil(workers / found) if found else 0  # until each has had a turn
    assert found == workers or (beats - 1) * heartbeat <= stuck / TURNS
