"""Commands are carried out each as its own task that ends in exactly one event; handles are kept as long as their group."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import virtual_time
from builders import prompt
from hypothesis import given
from hypothesis import strategies as st
from loop_support import LooseContext, loop_config

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.control.context import PayloadTable
from fr3e_async.control.executor import Executor
from fr3e_async.control.ports import TaskLost, WorkerLost
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.workers import Workers
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import (
    Acked,
    Answered,
    Asked,
    Delivered,
    Due,
    Event,
    Lost,
    Refused,
    Scored,
    Unhired,
    WorkerDown,
    WorkerUp,
)
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import (
    Assign,
    Branch,
    Dismiss,
    Hire,
    Move,
    Release,
    Sample,
    Score,
    Send,
    SetPoolTarget,
    Wait,
    Withdraw,
)
from fr3e_async.testing.fakes import ActorFault, FakeEngineWorker, FakeLearner, FakePayloads, FakeVerifier, fake_anchors
from fr3e_async.types import RolloutId

Q = prompt("q")
TRUNK = RolloutId("q@0", 0, 0)


class Loop:
    """An executor with a generator, an explorer and a verifier, and what they say."""

    def __init__(self, *, faults: dict[str, Any] | None = None, lease_s: float = 5.0, start: Any = None) -> None:
        faults = faults or {}
        self.engine = FakeEngineWorker("generator-0", faults=faults.get(GENERATORS))
        self.verifier = FakeVerifier("verifier-0", faults=faults.get(VERIFIERS))
        self.explorer = FakeEngineWorker("explorer-0", faults=faults.get(EXPLORERS))
        self.workers = Workers(
            config=loop_config(flow={"lease_s": lease_s}, weights={"ack_timeout_s": 0.1}),
            learner=FakeLearner(),
            payloads=FakePayloads(),
            start=start or self._start,
            workers=[(GENERATORS, self.engine), (EXPLORERS, self.explorer), (VERIFIERS, self.verifier)],
        )
        config = self.workers.config
        self.publisher = Publisher(ack_timeout_s=0.1, clock=lambda: 0.0)
        self.context = LooseContext(
            config=config, machine=Machine(config, make_strategy(config.algorithm)), workers=self.workers, publisher=self.publisher,
            stream=PromptStream([Q], seed=0), clock=lambda: 0.0,
        )  # fmt: skip
        self.events, self.notes, self.table = self.context.told, self.context.reporter.lines, self.context.table
        self.table.open("q@0")
        self.executor = Executor(self.context)

    async def _start(self, role: str) -> Any:
        return FakeEngineWorker("generator-1")

    async def all(self, *commands: Any) -> None:
        for command in commands:
            self.executor.carry_out(command)
        await asyncio.gather(*self.context.running)
        await asyncio.gather(*self.executor.endings)
        self.context.running.clear()

    def do(self, *commands: Any) -> list[Event]:
        """Carry these out side by side; all events until now."""
        virtual_time.run(self.all(*commands))
        return self.events


def sample(task: int = 1, *, branches: tuple[int, ...] = (0,)) -> Assign:
    ids = tuple(RolloutId("q@0", 0, branch) for branch in branches)
    return Assign(task=task, worker="generator-0", work=Sample(task=task, ids=ids, trunk=True))


# ---- the payload table ----


def test_a_payload_is_held_until_its_group_retires_and_a_late_one_not_atall():
    table = PayloadTable()
    table.open("a")
    table.open("b")
    first, second, other = table.keep("a", "one"), table.keep("a", "two"), table.keep("b", "three")
    assert [table[key] for key in (first, second, other)] == ["one", "two", "three"]
    table.release("a")
    assert (len(table), first in table, other in table) == (1, False, True)
    late = table.keep("a", "late")
    assert late not in table
    assert late > other, "its key is nobody else's"
    table.release("a")


@given(st.lists(st.integers(1, 50), unique=True), st.integers(1, 5))
def test_keys_of_a_checkpoint_are_kept_and_never_given_again(keys, more):
    table = PayloadTable()
    table.open("a")
    assert [table.keep("a", key, key=key) for key in keys] == keys
    new = [table.keep("a", "new") for _ in range(more)]
    assert len({*keys, *new}) == len(keys) + more
    assert [table[key] for key in keys] == keys


# ---- tasks ----


def test_a_task_ends_in_one_event_and_its_payload_is_in_the_table():
    loop = Loop()
    (made,) = loop.do(sample())
    assert isinstance(made, Delivered)
    assert (made.task, made.notes[0].id, made.anchors) == (1, TRUNK, fake_anchors(0))
    assert loop.table[made.payload].ids == (TRUNK,)
    ids = (RolloutId("q@0", 1, 0), RolloutId("q@0", 2, 0))
    work = Branch(task=2, group="q@0", ids=ids, trunk=TRUNK, trunk_payload=made.payload)
    branched = loop.do(Assign(task=2, worker="explorer-0", work=work))[-1]
    assert isinstance(branched, Delivered)
    assert [note.id for note in branched.notes] == list(ids)
    assert branched.anchors is None
    score = Score(task=3, payload=branched.payload, ids=ids[1:], rows=(1,))
    judged = loop.do(Assign(task=3, worker="verifier-0", work=score))[-1]
    assert isinstance(judged, Scored)
    assert (judged.ids, len(judged.verdicts)) == (ids[1:], 1)
    assert len(loop.events) == 3
    assert not loop.executor.calls, "calls that are over are forgotten"


def test_a_dead_worker_is_told_before_the_task_that_it_had():
    loop = Loop(faults={GENERATORS: {("sample", 1): ActorFault.DIE}})
    down, lost = loop.do(sample(branches=(0, 1)))
    assert down == WorkerDown(worker="generator-0", why="generator-0 lost: generator-0 died (injected)")
    assert isinstance(lost, Lost)
    assert (lost.task, lost.ids, lost.counted, lost.scoring) == (1, (TRUNK, RolloutId("q@0", 0, 1)), True, False)


def test_a_lease_that_runs_out_says_nothing_against_the_worker():
    loop = Loop(faults={GENERATORS: {("sample", 1): ActorFault.HANG}}, lease_s=0.05)
    (lost,) = loop.do(sample())
    assert isinstance(lost, Lost)
    assert "the lease of flow.lease_s (0.05 s) ran out" in lost.reason


def test_a_scoring_task_that_is_lost_names_its_payload():
    loop = Loop(faults={VERIFIERS: {("judge", 1): ActorFault.HANG}}, lease_s=0.05)
    made = loop.do(sample())[0]
    score = Score(task=2, payload=made.payload, ids=(TRUNK,), rows=(0,))
    lost = loop.do(Assign(task=2, worker="verifier-0", work=score))[-1]
    assert isinstance(lost, Lost)
    assert (lost.scoring, lost.payload) == (True, made.payload)


def test_a_task_for_a_worker_that_is_gone_meanwhile_is_lost():
    loop = Loop()
    loop.workers.remove("generator-0")
    (lost,) = loop.do(sample())
    assert isinstance(lost, Lost)
    assert "generator-0 is out of service" in lost.reason


def test_withdrawn_tasks_end_uncounted_and_those_that_are_done_as_they_are():
    loop = Loop(faults={GENERATORS: {("sample", 2): ActorFault.HANG}})

    async def scenario():
        loop.executor.carry_out(sample(1))
        await asyncio.gather(*loop.context.running)
        loop.executor.carry_out(sample(2, branches=(1,)))
        await asyncio.sleep(0.01)
        await loop.all(Withdraw(worker="generator-0", tasks=(1, 2, 99)))

    virtual_time.run(scenario())
    delivered, lost = loop.events
    assert isinstance(delivered, Delivered)
    assert isinstance(lost, Lost)
    assert (lost.task, lost.reason, lost.counted) == (2, "withdrawn", False)


def test_a_task_that_is_withdrawn_twice_ends_once():
    """For new weights, and because its worker is to leave."""
    loop = Loop(faults={GENERATORS: {("sample", 1): ActorFault.HANG}})
    take = Withdraw(worker="generator-0", tasks=(1,))

    async def scenario():
        loop.executor.carry_out(sample())
        await asyncio.sleep(0.01)
        await loop.all(take, take)
        await loop.all(take)

    virtual_time.run(scenario())
    (lost,) = loop.events
    assert isinstance(lost, Lost)
    assert (lost.task, lost.counted) == (1, False)
    assert not loop.executor.withdrawn


def test_a_scoring_task_that_is_withdrawn_names_its_payload():
    """Or nobody would judge those rollouts any more."""
    loop = Loop(faults={VERIFIERS: {("judge", 1): ActorFault.HANG}})
    made = loop.do(sample())[0]

    async def scenario():
        loop.executor.carry_out(
            Assign(task=2, worker="verifier-0", work=Score(task=2, payload=made.payload, ids=(TRUNK,), rows=(0,)))
        )
        await asyncio.sleep(0.01)
        await loop.all(Withdraw(worker="verifier-0", tasks=(2,)))

    virtual_time.run(scenario())
    lost = loop.events[-1]
    assert isinstance(lost, Lost)
    assert (lost.task, lost.counted, lost.scoring, lost.payload) == (2, False, True, made.payload)


def test_a_task_that_is_withdrawn_before_it_has_begun_ends_too():
    loop = Loop()
    (lost,) = loop.do(sample(1), Withdraw(worker="generator-0", tasks=(1,)))
    assert isinstance(lost, Lost)
    assert (lost.task, lost.counted, loop.engine.made) == (1, False, [])


# ---- loans ----


@pytest.mark.parametrize(
    ("error", "down"), [(None, False), (TaskLost("slow"), False), (TaskLost("gone", dead="generator-0"), True)]
)
def test_a_loan_is_asked_for_and_always_given_back(error, down):
    loop = Loop()

    async def scenario():
        async with loop.executor.lend(GENERATORS, 64, priority=-1) as name:
            loop.events.append(name)
            if error:
                raise error

    async def both():
        borrower = asyncio.ensure_future(scenario())
        await asyncio.sleep(0)
        asked = loop.events[0]
        assert isinstance(asked, Asked)
        assert (asked.role, asked.weight, asked.priority, asked.task < 0) == (GENERATORS, 64, -1, True)
        loop.executor.carry_out(Assign(task=asked.task, worker="generator-0", work=None))
        await asyncio.gather(borrower, return_exceptions=True)
        return asked.task

    task = virtual_time.run(both())
    assert loop.events[1] == "generator-0"
    assert loop.events[-1] == Answered(task=task, proof=error is None)
    assert any(isinstance(event, WorkerDown) for event in loop.events) == down
    loop.do(Assign(task=task, worker="generator-0", work=None))  # that came too late


def test_a_loan_that_nobody_waits_for_any_more_is_given_back():
    loop = Loop()

    async def scenario():
        async def borrow():
            async with loop.executor.lend(VERIFIERS, 1, priority=-1):
                raise AssertionError("never lent")

        borrower = asyncio.ensure_future(borrow())
        await asyncio.sleep(0)
        borrower.cancel()
        await asyncio.gather(borrower, return_exceptions=True)

    virtual_time.run(scenario())
    asked, answered = loop.events
    assert answered == Answered(task=asked.task, proof=False)


# ---- workers and weights ----

LOST = Release(worker="generator-0", why="it died")
HIRE = Hire(ticket=7, role=GENERATORS)


def test_a_lost_worker_is_ended_and_a_new_one_joins():
    loop = Loop()
    assert loop.do(LOST, HIRE) == [WorkerUp(role=GENERATORS, worker="generator-1", ticket=7)]
    assert loop.workers.names(GENERATORS) == ["generator-1"]
    assert loop.notes == ["generator-0 is lost: it died", "generator-1 has joined"]
    with pytest.raises(WorkerLost):
        virtual_time.run(loop.engine.stats())


def test_what_a_stuck_worker_had_is_given_back_at_once():
    loop = Loop(faults={GENERATORS: {("sample", 1): ActorFault.BLOCK}})

    async def scenario():
        loop.executor.carry_out(sample())
        await asyncio.sleep(0.01)
        loop.executor.carry_out(Release(worker="generator-0", why="stuck"))
        await asyncio.sleep(0.05)
        for task in loop.context.running:
            task.cancel()

    virtual_time.run(scenario())
    (lost,) = loop.events  # the worker is out of service already: it is not said to be down again
    assert isinstance(lost, Lost)


@pytest.mark.parametrize("error", [RunFailed("no room"), WorkerLost("died while starting"), TimeoutError("too slow")])
def test_one_that_does_not_start_is_told(error):
    async def start(role):
        raise error

    loop = Loop(start=start)
    assert loop.do(HIRE) == [Unhired(ticket=7, role=GENERATORS, why=str(error))]
    assert loop.workers.names(GENERATORS) == ["generator-0"]


def test_a_learner_that_is_lost_meanwhile_is_no_failed_start():
    async def start(role):
        raise LearnerLost("rank 0")

    with pytest.raises(LearnerLost):
        Loop(start=start).do(HIRE)


@pytest.mark.parametrize("delay_s", [0.0, 60.0])
def test_one_that_is_not_needed_any_more_is_not_waited_for_and_leaves_nothing(delay_s):
    ended = []

    async def start(role):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(role)
            raise

    loop = Loop(start=start)

    async def scenario():
        loop.executor.carry_out(Hire(ticket=7, role=GENERATORS, delay_s=delay_s))
        await asyncio.sleep(0.01)
        loop.executor.carry_out(Dismiss(ticket=7))
        loop.executor.carry_out(Dismiss(ticket=8))  # that one is up already
        await asyncio.wait(loop.context.running, timeout=5)

    virtual_time.run(scenario())
    assert loop.events == []
    assert ended == ([GENERATORS] if not delay_s else [])


def test_a_hire_waits_for_its_turn_and_for_the_cluster():
    """A wait of its own first, then as long as it takes; a task of the run all the time, so that the end of the run ends it."""
    room, ended = asyncio.Event(), []

    async def start(role):
        try:
            await room.wait()
        except asyncio.CancelledError:
            ended.append(role)
            raise
        return FakeEngineWorker("generator-1")

    loop = Loop(start=start)

    async def scenario():
        loop.executor.carry_out(Hire(ticket=7, role=GENERATORS, delay_s=0.02))
        await asyncio.sleep(0)
        loop.executor.carry_out(HIRE)
        loop.executor.carry_out(Hire(ticket=8, role=GENERATORS))
        await asyncio.sleep(0.05)
        assert loop.events == []
        loop.executor.hires[8].cancel()
        await asyncio.sleep(0)
        room.set()
        await asyncio.gather(*loop.context.running, return_exceptions=True)

    virtual_time.run(scenario())
    assert [event.ticket for event in loop.events] == [7, 7]
    assert ended == [GENERATORS]


def test_one_that_leaves_is_ended_without_a_word_to_the_machine():
    loop = Loop()
    assert loop.do(Release(worker="explorer-0", why="the pool is made smaller", lost=False)) == []
    assert loop.workers.names(EXPLORERS) == []
    assert loop.notes == ["explorer-0 has left: the pool is made smaller"]
    with pytest.raises(WorkerLost):
        virtual_time.run(loop.explorer.stats())


def test_what_a_worker_has_made_is_fetched_before_it_goes():
    loop = Loop()
    loop.table.keep("q@0", "a batch")
    kinds = []

    async def scenario():
        close = loop.explorer.close

        async def closed():
            kinds.append(loop.workers.payloads.fetched)
            await close()

        loop.explorer.close = closed
        loop.executor.carry_out(Release(worker="explorer-0", why="its node is taken away", lost=False))
        while not kinds:
            await asyncio.sleep(0.001)

    virtual_time.run(scenario())
    assert kinds == [1]


def test_an_engine_that_is_moved_keeps_its_name():
    loop = Loop()
    loop.do(Move(worker="explorer-0", role=GENERATORS), Move(worker="gone", role=GENERATORS))
    assert loop.workers.names(GENERATORS) == ["generator-0", "explorer-0"]
    assert loop.workers.names(EXPLORERS) == []
    assert loop.workers.role("gone") == ""


def test_the_cluster_is_told_how_many_are_wanted_and_a_person_only_of_changes():
    loop = Loop()
    targets = []
    loop.workers.set_target = lambda role, actors: targets.append((role, actors))
    loop.do(*(SetPoolTarget(role=GENERATORS, actors=actors) for actors in (2, 3)))
    assert targets == [(GENERATORS, 2), (GENERATORS, 3)]
    assert loop.notes == ["generators: 3 wanted, 2 before"]


def test_a_worker_is_down_only_once():
    loop = Loop()
    loop.context.down("generator-0", "dead")
    loop.workers.remove("generator-0")
    loop.context.down("generator-0", "still dead")
    assert loop.events == [WorkerDown(worker="generator-0", why="dead")]


def test_weights_end_in_a_word_for_each_engine_that_is_there():
    loop = Loop(faults={EXPLORERS: {("load_weights", 1): ActorFault.HANG}})

    async def scenario():
        loop.publisher.offer(await FakeLearner().export(4))
        await loop.all(Send(version=4, workers=("generator-0", "explorer-0", "gone-9")))

    virtual_time.run(scenario())
    assert sorted(loop.events, key=repr) == [
        Acked(worker="generator-0", version=4),
        Refused(worker="explorer-0", version=4, why="no answer within weights.ack_timeout_s (0.1 s)"),
    ]


def test_a_wait_ends():
    assert Loop().do(Wait(key="task 7", seconds=0.01)) == [Due(key="task 7")]


def test_the_end_of_a_run_ends_every_call():
    """Cancelled from outside: no event is made up, and the engine's call does not continue by itself."""
    loop = Loop(faults={GENERATORS: {("sample", 1): ActorFault.HANG}})

    async def scenario():
        loop.executor.carry_out(sample())
        await asyncio.sleep(0.01)
        (task,) = loop.context.running
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtual_time.run(scenario())
    assert loop.events == []
