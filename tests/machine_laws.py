"""What must hold of the control machine, whoever drives it: a random cluster, the simulator, or the journal of a run.

``Laws`` keeps a record of its own from the events that a machine is told and the commands that it answers with: who has which task, which
version an engine serves, how old every token is, what became of every group. So nothing is checked against the machine's own word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from fr3e_async.algorithm.strategies import explorer_count
from fr3e_async.config import Config
from fr3e_async.machine import events, messages
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.sizing import alike
from fr3e_async.types import Advantage, RolloutId

ENGINES = (GENERATORS, EXPLORERS)


@dataclass(eq=False)
class Worker:
    name: str
    role: str
    serves: int = 0  # version of the tokens that it makes now; changes only with weights that it was sent
    coming: int | None = None  # version on its way
    loaded: bool = False  # it serves ``coming``, and has not said so yet
    alone: bool = False  # ``coming`` is not part of a common hand-over
    joining: bool = False  # must get no work yet
    leaving: bool = False  # must get no work any more


@dataclass
class Given:
    """A task that a worker has."""

    work: messages.Work | None  # None: the worker is lent to an evaluation
    worker: Worker
    weight: int  # rollouts, or 1 for a call to a verifier
    oldest: int | None = None  # version of its oldest token; None: it has none yet
    newest: int = 0


class Row(NamedTuple):
    """What a rollout was trained with."""

    advantage: Advantage
    minibatch: int
    tokens: int  # context included


@dataclass
class History:
    """What became of a run's groups and rollouts. A kill takes it back to a checkpoint, but for the last five fields."""

    retired: dict[str, messages.Retire] = field(default_factory=dict)
    trained: dict[RolloutId, Row] = field(default_factory=dict)
    batches: list[tuple[str, ...]] = field(default_factory=list)
    trunks: dict[str, set[int]] = field(default_factory=dict)  # bases by group, on which anchors were asked for
    rows: dict[tuple[int, int], tuple[RolloutId, int]] = field(default_factory=dict)  # payload, row -> rollout, oldest version
    anchored: dict[int, set[int]] = field(default_factory=dict)  # payload -> the nodes of the anchors in it
    seen: Counter[str] = field(default_factory=Counter)  # events, commands, and what tests want to have happened, by name
    lags: Counter[int] = field(default_factory=Counter)  # trained rollouts by the age of their oldest token

    def copy(self) -> History:
        return replace(self, retired=dict(self.retired), trained=dict(self.trained), batches=list(self.batches))

    @property
    def outcomes(self) -> dict[str, str]:
        return {group: retired.outcome for group, retired in self.retired.items()}


class Laws:
    """The record of one life of a machine. ``tell`` gives it an event and checks what follows."""

    def __init__(self, machine: Machine, config: Config, history: History | None = None) -> None:
        self.machine, self.config, self.history = machine, config, history or History()
        self.rows, self.seen = self.history.rows, self.history.seen
        self.workers: dict[str, Worker] = {}
        self.given: dict[int, Given] = {}
        self.asked: dict[int, tuple[str, int]] = {}  # not placed yet: role and weight
        self.withdrawn: set[int] = set()
        self.rescores: list[messages.Rescore] = []
        self.waits: list[str] = []
        self.hires: dict[int, messages.Hire] = {}  # by ticket
        self.dismissed: dict[int, messages.Hire] = {}  # that may be up by now all the same
        self.train: messages.Train | None = None
        self.unexported: list[int] = []
        self.newest = self.live = machine.ledger.version  # that engines are to have; that all of them have
        self.began = self.stopped = False
        self._assigned: set[int] = set()
        self._last_ticket = 0
        self._now: events.Event | None = None

    def tell(self, event: events.Event) -> list[messages.Command]:
        self._now = event
        self.seen[type(event).__name__] += 1
        self._happened(event)
        commands = self.machine.handle(event)
        self.obey(commands)
        if isinstance(event, events.Trained):
            assert all(self.history.retired[group].outcome == "trained" for group in self.history.batches[-1])
        self.check()
        return commands

    # ---- what an event means for the record ----

    def _happened(self, event: events.Event) -> None:
        match event:
            case events.Delivered():
                if event.anchors is not None:
                    self.history.anchored[event.payload] = {anchor.node for anchor in event.anchors}
                self.rows |= {(event.payload, row): (note.id, note.oldest_version) for row, note in enumerate(event.notes)}
                self._ended(event.task) if not event.left else self._partly(event)
            case events.Scored() | events.Lost() | events.Answered():
                self._ended(event.task)
            case events.Asked():
                self.asked[event.task] = event.role, event.weight
            case events.Rescored():
                for one in self.rescores:  # the learner puts the payload back with its anchors
                    if (one.task, one.trunks) == (event.task, event.trunks):
                        self.history.anchored[one.payload] = {anchor.node for anchor in event.anchors}
                self.rescores = [one for one in self.rescores if (one.task, one.trunks) != (event.task, event.trunks)]
            case events.Trained():
                assert self.train is not None
                for item in self.train.items:
                    row = Row(item.advantage, item.load.minibatch, item.load.context + item.load.completion)
                    self.history.trained[self.rows[item.payload, item.row][0]] = row
                self.history.batches.append(self.train.groups)
                self.unexported.append(event.version)
                self.train = None
            case events.Exported():
                self.newest = event.version
                self.unexported = [version for version in self.unexported if version > event.version]
            case events.Acked():
                worker = self.workers[event.worker]
                worker.serves, worker.coming, worker.loaded = event.version, None, False
                worker.joining &= event.version < self.live
            case events.Refused() | events.WorkerDown():
                self.workers.pop(event.worker, None)
            case events.WorkerUp():
                self.hires.pop(event.ticket, None), self.dismissed.pop(event.ticket, None)
                engine = event.role in ENGINES
                self.workers[event.worker] = Worker(
                    event.worker,
                    event.role,
                    serves=event.version if engine else 0,
                    joining=engine and event.version < self.newest,
                )
            case events.Unhired():
                self.hires.pop(event.ticket, None)
            case events.Leaving():
                self.seen["leaves twice"] += self.workers[event.worker].leaving
                self.seen["leaves with weights on their way"] += self.workers[event.worker].coming is not None
                self.workers[event.worker].leaving = True
            case events.Due():
                self.waits.remove(event.key)
            case events.Begun():
                self.began = True
            case events.Stopped():
                self.stopped = True

    def _ended(self, task: int) -> None:
        self.given.pop(task, None), self.asked.pop(task, None)
        self.withdrawn.discard(task)

    def _partly(self, event: events.Delivered) -> None:
        """The room of what has ended is free; unless the event comes a second time."""
        given, ended = self.given.get(event.task), {note.id for note in event.notes}
        if given is not None and ended <= set(given.work.ids):
            rest = tuple(id for id in given.work.ids if id not in ended)
            assert len(rest) == event.left
            given.work, given.weight = msgspec.structs.replace(given.work, ids=rest), event.left
            self.seen["part of a task"] += 1

    # ---- what must hold of each command ----

    def obey(self, commands: Sequence[messages.Command]) -> None:
        for command in commands:
            self.seen[type(command).__name__] += 1
            match command:
                case messages.Assign():
                    self._assign(command)
                case messages.Withdraw():
                    self._withdraw(command)
                case messages.Hire():
                    assert command.ticket > self._last_ticket, "a ticket twice"
                    self._last_ticket = command.ticket
                    self.hires[command.ticket] = command
                case messages.Dismiss():
                    hire = self.hires.pop(command.ticket)  # else it is up already
                    assert not [later for later in self.hires.values() if later.role == hire.role and later.ticket > hire.ticket]
                    self.dismissed[command.ticket] = hire
                case messages.Release():
                    self._release(command)
                case messages.Move():
                    self._move(command)
                case messages.SetPoolTarget():
                    least, most = self.bounds(command.role)
                    assert least <= command.actors <= most
                case messages.Send():
                    self._send(command)
                case messages.Live():
                    assert command.version > self.live
                    self.live = command.version
                case messages.Wait():
                    self._wait(command)
                case messages.Rescore():
                    self.rescores.append(command)
                case messages.Train():
                    self._train(command)
                case messages.Retire():
                    assert command.group not in self.history.retired, "a group was settled twice"
                    self.history.retired[command.group] = command
                case _:
                    raise AssertionError(f"nobody can carry out {command}")

    def _assign(self, command: messages.Assign) -> None:
        worker = self.workers.get(command.worker)
        assert worker is not None, "work for the dead"
        assert not worker.leaving, "work for one that is to leave"
        assert command.task not in self._assigned, "a task was given away twice"
        self._assigned.add(command.task)
        role, weight = self.asked.pop(command.task) if command.work is None else role_and_weight(command.work)
        if worker.role != role:
            assert self.config.pools.flexible_roles
            assert {worker.role, role} == set(ENGINES)
            self.seen["lent"] += 1
        load = self.load_of(worker)
        assert load + weight <= self.machine.dispatcher.slots[worker.name].limit or not load, "more than the slot's limit"
        if worker.role in ENGINES:
            assert not worker.joining, "work for an engine that joins"
            assert worker.serves >= self.live, "work for an engine with weights older than the live ones"
            if self.config.weights.update != "in_flight":
                assert worker.coming is None
                assert worker.serves == self.newest, "work for an engine that is to change its weights"
        if isinstance(command.work, messages.Branch):
            payload = {id for (key, _), (id, _) in self.rows.items() if key == command.work.trunk_payload}
            assert command.work.trunk in payload
            assert {id.node for id in command.work.ids} <= self.history.anchored[command.work.trunk_payload], (
                "the object lacks anchors"
            )
        if isinstance(command.work, messages.Score):
            found = [self.rows[command.work.payload, row][0] for row in command.work.rows]
            assert found == list(command.work.ids), "a row was taken for another"
        if isinstance(command.work, messages.Sample) and command.work.trunk:
            self.history.trunks.setdefault(command.work.ids[0].group, set()).update(id.branch for id in command.work.ids)
        self.given[command.task] = Given(command.work, worker, weight)

    def _withdraw(self, command: messages.Withdraw) -> None:
        """All that the worker has, and only for new weights or to leave."""
        assert set(command.tasks) == set(self.tasks_of(command.worker))
        leaving = self.workers[command.worker].leaving
        self.seen["withdrawn to leave" if leaving else "withdrawn for weights"] += 1
        self.seen["withdrawn twice"] += set(command.tasks) <= self.withdrawn
        self.withdrawn |= set(command.tasks)

    def _release(self, command: messages.Release) -> None:
        """One that was not lost has nothing left to do, and no weights on their way."""
        if command.lost:
            assert command.worker not in self.workers
            return
        worker = self.workers.pop(command.worker)
        assert worker.leaving or isinstance(self._now, events.Utilization | events.Begun), "nobody asked it to leave"
        assert not self.tasks_of(worker.name), "it still had work"
        assert worker.coming is None, "it was about to get weights"

    def _move(self, command: messages.Move) -> None:
        """Between engines that are alike; not from a pool that has tasks waiting, nor below its least, nor one that leaves."""
        worker = self.workers[command.worker]
        assert {worker.role, command.role} == set(ENGINES)
        assert alike(self.config)
        assert not worker.leaving
        assert not self.machine.dispatcher.queued(worker.role)
        donor, worker.role = worker.role, command.role
        assert sum(w.role == donor and not w.leaving for w in self.workers.values()) >= self.bounds(donor)[0]

    def _wait(self, command: messages.Wait) -> None:
        assert command.seconds > 0
        self.waits.append(command.key)
        if command.key.startswith("leave "):
            limit = self.config.pools.drain_timeout_s
            notice = self._now.seconds if isinstance(self._now, events.Leaving) else 0.0
            assert command.seconds == (min(limit, notice / 2) if notice else limit)
            self.workers[command.key.removeprefix("leave ")].leaving = True

    def _send(self, command: messages.Send) -> None:
        assert command.version == self.newest, "not the newest weights"
        assert not command.alone or len(command.workers) == 1
        if self.config.weights.transfer == "collective" and not command.alone:
            assert not any(w.coming is not None and not w.alone for w in self.workers.values()), "two hand-overs at once"
        for name in command.workers:
            worker = self.workers[name]
            assert worker.role in ENGINES
            assert worker.coming is None, "two versions at once"
            assert worker.serves < command.version
            if self.config.weights.update != "in_flight" and not command.alone:
                assert not self.tasks_of(name), "new weights into running rollouts"
            worker.coming, worker.loaded, worker.alone = command.version, False, command.alone
            worker.joining |= command.alone

    def _train(self, command: messages.Train) -> None:
        assert self.train is None
        assert not self.stopped, "a batch after the stop"
        version = command.version - 1
        assert version == self.machine.ledger.version
        assert len(set(command.groups)) == self.config.flow.groups_per_step
        assert not any(group in self.history.retired for group in command.groups)
        rows = [self.rows[item.payload, item.row] for item in command.items]
        assert {id.group for id, _ in rows} == set(command.groups)
        assert len({id for id, _ in rows}) == len(rows), "a rollout twice in a batch"
        assert not self.history.trained.keys() & {id for id, _ in rows}, "a rollout was trained twice"
        self.history.lags.update(version - oldest for _, oldest in rows)
        stale = [id for id, oldest in rows if version - oldest > self.config.flow.max_staleness]
        assert not stale, "tokens older than the bound"
        self.train = command

    # ---- what must hold after every event ----

    def check(self) -> None:
        machine, flow = self.machine, self.config.flow
        ledger = machine.ledger
        assert ledger.slots_held <= (flow.max_staleness + 1) * flow.groups_per_step
        assert ledger.admitted == len(self.history.retired) + ledger.in_flight
        assert ledger.outcomes == Counter(self.history.outcomes.values())
        assert ledger.live == self.live == machine.fleet.live
        if self.began:
            self._check_pools()
        for worker in self.workers.values():
            slot = machine.dispatcher.slots[worker.name]
            width = machine.dispatcher.roles[worker.role].width
            assert slot.load == self.load_of(worker)
            assert min(self.config.pools.least_in_flight, width) <= slot.limit <= width
            if worker.role in ENGINES and not worker.joining:
                assert self.live <= worker.serves, "an engine in service serves less than the live version"

    def _check_pools(self) -> None:
        for role, its in self.machine.autoscaler.pools.items():
            least, most = self.bounds(role)
            staying = sum(w.role == role and not w.leaving for w in self.workers.values())
            hired = sum(hire.role == role for hire in self.hires.values())
            assert least <= its.wanted <= most
            assert staying == self.machine.dispatcher.staying(role), "one that leaves counts, or one that stays does not"
            assert staying + hired >= its.wanted, "a worker is missing, and nobody hires one"
            if isinstance(self._now, events.Utilization | events.Begun):
                assert staying + hired == its.wanted, "too many, and nobody leaves"

    def require_end(self) -> None:
        """All steps are made, nothing is left anywhere, every engine has the newest weights, every pool its size."""
        ledger, dispatcher, steps = self.machine.ledger, self.machine.dispatcher, self.config.run.steps
        assert ledger.version == ledger.live == steps
        assert (ledger.in_flight, ledger.slots_held) == (0, 0)
        assert sum(outcome == "trained" for outcome in self.history.outcomes.values()) == steps * self.config.flow.groups_per_step
        assert ledger.admitted == len(self.history.retired)
        for worker in self.workers.values():
            slot = dispatcher.slots[worker.name]
            assert (slot.load, slot.tasks, slot.held) == (0, set(), False)
            assert worker.role not in ENGINES or worker.serves == ledger.version
            assert not worker.leaving
        assert [dispatcher.queued(role) for role in dispatcher.roles] == [0, 0, 0]
        there = Counter(worker.role for worker in self.workers.values())
        assert there == {role: pool.wanted for role, pool in self.machine.autoscaler.pools.items()}

    def bounds(self, role: str) -> tuple[int, int]:
        """How many workers the pool may have; no explorers where the strategy does not branch."""
        pool = getattr(self.config, role)
        return (0, 0) if role == EXPLORERS and not explorer_count(self.config) else (pool.least, pool.most)

    def tasks_of(self, name: str) -> list[int]:
        return [task for task, given in self.given.items() if given.worker.name == name]

    def load_of(self, worker: Worker) -> int:
        return sum(given.weight for given in self.given.values() if given.worker is worker)


def role_and_weight(work: messages.Work) -> tuple[str, int]:
    match work:
        case messages.Sample():
            return GENERATORS, len(work.ids)
        case messages.Branch():
            return EXPLORERS, len(work.ids)
        case messages.Score():
            return VERIFIERS, 1
