"""What may go wrong around a control machine, or come from outside: each action tells the machine of it, if it can happen now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from ledger_support import World
from machine_laws import ENGINES, History, Laws, Worker

from fr3e_async.config import Config
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine import events, messages
from fr3e_async.machine.dispatch import VERIFIERS
from fr3e_async.machine.machine import Machine
from fr3e_async.types import RolloutId

T = TypeVar("T")
Pick = Callable[[int], int]  # one of so many


def first(count: int) -> int:
    """The pick of a world without chance."""
    return 0


def script(numbers: list[int]) -> Pick:
    """Picks that follow a list; 0 when it is used up."""
    rest = list(numbers)
    return lambda count: rest.pop(0) % count if rest else 0


def one(pick: Pick, items: Sequence[T]) -> T | None:
    return items[pick(len(items))] if items else None


class Mishaps:
    """Half of a ``Cluster``. Actions return whether there was something to do."""

    BAD = (
        "lose",
        "repeat",
        "refuse",
        "die",
        "fail_to_start",
        "press",
        "ask",
        "answer",
        "look",
        "leave",
        "come_too_late",
        "come_late",
    )

    config: Config
    world: World | None
    machine: Machine
    laws: Laws
    history: History
    fails: Counter[Any]  # of rollouts, and of scorings
    repeatable: list[events.Event]  # that may be told again
    late: list[events.Event]  # of tasks that were taken for lost
    commands: list[Any]  # of this life, by event
    birth: int
    now: float  # of ``Utilization``
    asks: int

    tell: Callable[[events.Event], bool]
    worker_up: Callable[[str, int, int], bool]
    delivered: Callable[[int, Collection[RolloutId], Pick], events.Delivered]

    @property
    def ledger(self) -> Any:
        return self.machine.ledger

    @property
    def engines(self) -> list[Worker]:
        return [w for w in self.laws.workers.values() if w.role in ENGINES]

    @property
    def tasks(self) -> list[int]:
        """Of groups, that a worker has."""
        return [task for task in self.laws.given if task > 0]

    def aborts(self, id: RolloutId, pick: Pick, *, mishaps: bool) -> bool:
        if self.world is not None and self.world.doomed(id):
            return True
        return mishaps and pick(8) == 7 and self.may_fail(id)

    def may_fail(self, key: Any) -> bool:
        """With a world, what is not doomed comes in the end, however often the run is killed."""
        if self.world is not None and self.fails[key] + 1 >= self.config.flow.max_attempts:
            return False
        self.fails[key] += 1
        return True

    def lose(self, pick: Pick) -> bool:
        """A task does not come back. One that was withdrawn does so without blame."""
        task = one(pick, self.tasks)
        if task is None:
            return False
        work = self.laws.given[task].work
        counted = task not in self.laws.withdrawn
        if counted and not all([self.may_fail(("score", id) if isinstance(work, messages.Score) else id) for id in work.ids]):  # noqa: C419
            return False
        if counted and not isinstance(work, messages.Score):
            doomed = [id for id in work.ids if self.world and self.world.doomed(id)]
            self.late.append(self.delivered(task, doomed, pick))
        return self.lost(task, counted=counted)

    def come_late(self, pick: Pick) -> bool:
        """Rollouts arrive that were taken for lost."""
        event = one(pick, self.late)
        if event is None:
            return False
        self.late.remove(event)
        return self.tell(event)

    def lost(self, task: int, *, counted: bool) -> bool:
        work = self.laws.given[task].work
        scoring, payload = (True, work.payload) if isinstance(work, messages.Score) else (False, -1)
        group = work.ids[0].group
        return self.tell(
            events.Lost(task=task, group=group, ids=work.ids, reason="x", scoring=scoring, payload=payload, counted=counted)
        )

    def repeat(self, pick: Pick) -> bool:
        """An event comes twice: nothing changes but a counter."""
        event = one(pick, self.repeatable)
        if event is None:
            return False
        before = to_json(self.ledger.state())
        self.tell(event)
        self.repeatable.pop()
        assert self.commands[-1] == [], "a duplicate had an effect"
        assert to_json(self.ledger.state()) == before
        return True

    def refuse(self, pick: Pick) -> bool:
        worker = one(pick, [w for w in self.engines if w.coming is not None])
        return worker is not None and self.tell(events.Refused(worker=worker.name, version=worker.coming, why="too late"))

    def die(self, pick: Pick) -> bool:
        """Its tasks end later: lost, or delivered after all by an engine that was only slow."""
        name = one(pick, sorted(self.laws.workers))
        return name is not None and self.tell(events.WorkerDown(worker=name, why="died", node=bool(pick(2))))

    def fail_to_start(self, pick: Pick) -> bool:
        command = one(pick, list(self.laws.hires.values()))
        return command is not None and self.tell(events.Unhired(ticket=command.ticket, role=command.role, why="no room"))

    def come_too_late(self, pick: Pick) -> bool:
        """One that was dismissed was up already."""
        command = one(pick, list(self.laws.dismissed.values()))
        return command is not None and self.worker_up(command.role, self.birth, command.ticket)

    def press(self, pick: Pick) -> bool:
        worker = one(pick, self.engines)
        used = (0.5, 0.9, 0.99)[pick(3)]
        return worker is not None and self.tell(
            events.Pressure(worker=worker.name, kv_used=used, waiting=pick(2), preempted=pick(2))
        )  # fmt: skip

    def look(self, pick: Pick) -> bool:
        """A heartbeat: pools may grow, shrink, or help each other."""
        self.now += (0.5, 1.0, 4.0)[pick(3)]
        idle = tuple((role, (0.0, 0.5, 1.0)[pick(3)]) for role in (*ENGINES, VERIFIERS))
        return self.tell(events.Utilization(at=self.now, idle=idle))

    def leave(self, pick: Pick) -> bool:
        """The node of a worker will be taken away; perhaps of one that leaves already."""
        workers, slots = self.laws.workers, self.machine.dispatcher.slots
        paused = sorted(name for name, w in workers.items() if slots[name].held and w.coming is None and not w.leaving)
        name = one(pick, paused if paused and pick(2) else sorted(workers))  # which happens too seldom else
        self.history.seen["leaves while it is paused"] += name in paused
        return name is not None and self.tell(events.Leaving(worker=name, why="spot", seconds=(0.0, 4.0, 30.0)[pick(3)]))

    def ask(self, pick: Pick) -> bool:
        """Part of an evaluation; sometimes wider than a slot."""
        self.asks += 1
        return self.tell(events.Asked(task=-self.asks, role=ENGINES[pick(2)], weight=(1, 2, 6)[pick(3)], priority=-pick(2)))

    def answer(self, pick: Pick) -> bool:
        """It ends, or is not wanted any more, wherever it is."""
        task = one(pick, sorted([*self.laws.asked, *(task for task in self.laws.given if task < 0)]))
        return task is not None and self.tell(events.Answered(task=task, proof=bool(pick(2))))

    def stop(self, pick: Pick) -> bool:
        self.tell(events.Stopped(reason="enough"))
        assert not self.ledger.admissible()
        return True
