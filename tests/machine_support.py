"""A cluster around the control machine, played by a test: engines, verifiers, a learner, and whatever may go wrong with them.

``Cluster`` carries out the machine's commands one action at a time, in any order, and checks what must hold of every command.
It keeps books of its own (who has which task, which version an engine really serves, how old every token is, what became of
every group), so that nothing is checked against the machine's own word. It can be killed at any point and resumes from a
checkpoint that went through JSON.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from builders import small_config
from ledger_support import PROMPT_TOKENS, TRUNK_MODES, World, anchors_of, note, verdict

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import (
    Acked,
    Admitted,
    Answered,
    Asked,
    Begun,
    Delivered,
    Due,
    Event,
    Exported,
    Judged,
    Leaving,
    Lost,
    Pressure,
    Refused,
    Rescored,
    Stopped,
    Trained,
    Unhired,
    Utilization,
    WorkerDown,
    WorkerUp,
)
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import (
    Assign,
    Branch,
    Command,
    Dismiss,
    Hire,
    Live,
    Move,
    Release,
    Rescore,
    Retire,
    Sample,
    Score,
    Send,
    SetPoolTarget,
    Train,
    Wait,
    Withdraw,
    Work,
)
from fr3e_async.machine.sizing import alike
from fr3e_async.types import Anchor, Finish, RolloutId

ENGINES = (GENERATORS, EXPLORERS)
REWARDS = (0, 1, 1, 0, 0.25, None)
PLACES = ((2, 4), (2, 4), (3,), ())  # anchors of a trunk of 5 tokens
MODES = ("in_flight", "wait_idle", "abort_retry")

Pick = Callable[[int], int]  # one of so many


def first(count: int) -> int:
    """The pick of a world without chance."""
    return 0


def script(numbers: list[int]) -> Pick:
    """Picks that follow a list; 0 when it is used up."""
    rest = list(numbers)
    return lambda count: rest.pop(0) % count if rest else 0


def control_config(
    *, steps: int = 4, groups: int = 2, staleness: int = 1, window: int = 0, update: str = "in_flight", together: bool = False,
    flexible: bool = False, elastic: bool = False, alike: bool = True, adaptive: bool = False, backoff: float = 0.0,
    attempts: int = 3, **algorithm: Any,
) -> Config:  # fmt: skip
    """Two engines of each role with room for 4 rollouts (elastic: 1 to 4 of each); groups of 2 bases and one trunk."""
    pool = {"count": 2, "rollouts_in_flight": 4} | ({"min": 1, "max": 4} if elastic else {})
    shape = {"bases": 2, "anchors": 2, "branches": 3 if adaptive else 2, "adaptive_first": 2 if adaptive else 0}
    return small_config(
        run={"steps": steps},
        flow={
            "groups_per_step": groups, "max_staleness": staleness, "max_attempts": attempts, "retry_backoff_s": backoff,
            "order": "window" if window else "admission", "window": window, "max_rejected_in_a_row": 10**6,
        },
        algorithm={**shape, **algorithm},
        learner={"minibatches": 1},
        generators=pool,
        explorers=pool | ({} if alike else {"cpus": 2.0}),
        verifiers={"workers": 1} | ({"max": 2} if elastic else {}),
        pools={
            "flexible_roles": flexible, "least_in_flight": 1, "max_deaths_in_a_row": 500, "replace_backoff_s": 0.0,
            "grow_after_s": 1.0, "shrink_after_s": 3.0, "drain_timeout_s": 5.0,
        },
        weights={"update": update, "transfer": "collective" if together else "object_store"},
    )  # fmt: skip


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

    work: Work | None  # None: asked for
    worker: Worker
    weight: int
    oldest: int | None = None  # version of its oldest token; None: it has none yet
    newest: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What survives a kill: the ledger as JSON, and what the world had on its books at that moment."""

    state: bytes
    outcomes: dict[str, str]
    trained: frozenset[RolloutId]
    batches: tuple[tuple[str, ...], ...]


@dataclass
class Cluster:
    """See the module's docstring. ``world``: outcomes follow from rollout ids alone; else ``pick`` decides."""

    config: Config
    world: World | None = None
    rescored: bool = False
    birth: int = 0  # version that workers come up with: -1 or 0
    attempts: int = 3  # with ``world``: what is not doomed fails less often than that
    workers: dict[str, Worker] = field(default_factory=dict)
    given: dict[int, Given] = field(default_factory=dict)
    asked: dict[int, tuple[str, int]] = field(default_factory=dict)  # not placed yet: role and weight
    rescores: list[Rescore] = field(default_factory=list)
    withdrawn: set[int] = field(default_factory=set)
    waits: list[str] = field(default_factory=list)
    hires: list[Hire] = field(default_factory=list)
    dismissed: list[Hire] = field(default_factory=list)  # that may be up by now all the same
    tickets: int = 0  # the last one
    now: float = 0.0  # of Busy
    train: Train | None = None
    unexported: list[int] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)  # events that may be told again
    story: list[Event] = field(default_factory=list)  # of this life
    commands: list[list[Command]] = field(default_factory=list)  # of this life, by event
    rows: dict[tuple[int, int], tuple[RolloutId, int]] = field(default_factory=dict)  # -> rollout, its oldest token's version
    outcomes: dict[str, str] = field(default_factory=dict)
    trained: set[RolloutId] = field(default_factory=set)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    fails: Counter[Any] = field(default_factory=Counter)
    batches: list[tuple[str, ...]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)  # tasks that were assigned in this life
    names: int = 0
    payload: int = 0
    asks: int = 0
    newest: int = 0  # version that engines are to have, by the exports of this life
    live: int = 0
    stopped: bool = False
    lives: int = 0
    seen_kinds: Counter[str] = field(default_factory=Counter)  # of events, of commands, and of what tests want to have happened
    lags: Counter[int] = field(default_factory=Counter)  # trained rollouts by the age of their oldest token
    born_from: bytes | None = None  # state of this life

    def __post_init__(self) -> None:
        self.begin(None)

    # ---- lives ----

    def begin(self, state: bytes | None, *, again: bool = False) -> None:
        """A fresh machine, with workers of their own, or (``again``) with those of the life before. What was in flight is gone."""
        there = list(self.workers.values()) if again else []
        self.given.clear(), self.asked.clear(), self.rescores.clear(), self.withdrawn.clear(), self.waits.clear()
        self.hires.clear(), self.unexported.clear(), self.told.clear(), self.seen.clear(), self.workers.clear()
        self.story.clear(), self.commands.clear(), self.dismissed.clear()
        self.tickets = 0
        self.train, self.stopped, self.born_from, self.lives = None, False, state, self.lives + 1
        self.machine = self.fresh()
        self.newest = self.live = self.machine.ledger.version
        self.take(self.machine.start())
        for worker in there:  # only the learner is a new one; whatever weights they have, they are to get the newest
            self.worker_up(worker.role, -1)
        for role in () if again else (*ENGINES, VERIFIERS):
            for _ in range(2 if role in ENGINES else 1):
                self.worker_up(role, self.birth)
        self.tell(Begun(again=again))

    def fresh(self) -> Machine:
        """The machine that this life began with."""
        state = None if self.born_from is None else msgspec.json.decode(self.born_from, type=LedgerState)
        return Machine(self.config, make_strategy(self.config.algorithm), state=state)

    def checkpoint(self) -> None:
        state = to_json(self.machine.ledger.state())
        assert msgspec.json.decode(state, type=LedgerState) == self.machine.ledger.state()
        self.checkpoints.append(Checkpoint(state, dict(self.outcomes), frozenset(self.trained), tuple(self.batches)))

    def kill(self, pick: Pick = first) -> None:
        """Go on from one of the checkpoints, perhaps with the same workers; what came after it never was."""
        again = pick(3) == 2
        if not self.checkpoints:
            self.outcomes.clear(), self.trained.clear(), self.batches.clear()
            self.begin(None, again=again)
            return
        back = pick(len(self.checkpoints))
        del self.checkpoints[len(self.checkpoints) - back :]
        kept = self.checkpoints[-1]
        self.outcomes, self.trained, self.batches = dict(kept.outcomes), set(kept.trained), list(kept.batches)
        self.begin(kept.state, again=again)

    # ---- events ----

    def tell(self, event: Event, *, again: bool = True) -> None:
        if again and isinstance(event, Delivered | Judged | Lost | Rescored):
            self.told.append(event)
        self.story.append(event)
        self.seen_kinds[type(event).__name__] += 1
        self.take(self.machine.handle(event))
        self.check()

    def take(self, commands: list[Command]) -> None:
        self.commands.append(commands)
        for command in commands:
            self.seen_kinds[type(command).__name__] += 1
            match command:
                case Assign():
                    self.assigned(command)
                case Withdraw():
                    self.taken_back(command)
                case Hire():
                    assert command.ticket > self.tickets, "a ticket twice"
                    self.tickets = command.ticket
                    self.hires.append(command)
                case Dismiss():
                    (hire,) = [hire for hire in self.hires if hire.ticket == command.ticket]  # else it is up already
                    assert not [later for later in self.hires if later.role == hire.role and later.ticket > hire.ticket]
                    self.hires.remove(hire)
                    self.dismissed.append(hire)
                case Release():
                    self.released(command)
                case Move():
                    self.moved(command)
                case SetPoolTarget():
                    pool = getattr(self.config, command.role)
                    assert pool.least <= command.actors <= pool.most
                case Send():
                    self.sent(command)
                case Live():
                    assert command.version > self.live
                    self.live = command.version
                case Wait():
                    assert command.seconds > 0
                    self.waits.append(command.key)
                    if command.key.startswith("leave "):
                        assert command.seconds <= self.config.pools.drain_timeout_s
                        self.workers[command.key.removeprefix("leave ")].leaving = True
                case Rescore():
                    self.rescores.append(command)
                case Train():
                    self.to_train(command)
                case Retire():
                    assert command.group not in self.outcomes, "a group was settled twice"
                    self.outcomes[command.group] = command.outcome
                case _:
                    raise AssertionError(f"nobody can carry out {command}")

    def released(self, command: Release) -> None:
        """One that was not lost has nothing left to do, and no weights on their way."""
        if command.lost:
            assert command.worker not in self.workers
            return
        worker = self.workers.pop(command.worker)
        assert worker.leaving or isinstance(self.story[-1], Utilization | Begun), "nobody asked it to leave"
        assert not self.tasks_of(worker.name), "it still had work"
        assert worker.coming is None, "it was about to get weights"

    def taken_back(self, command: Withdraw) -> None:
        """All that the worker has, and only for new weights or to leave."""
        assert set(command.tasks) == set(self.tasks_of(command.worker))
        leaving = self.workers[command.worker].leaving
        self.seen_kinds["withdrawn to leave" if leaving else "withdrawn for weights"] += 1
        self.seen_kinds["withdrawn twice"] += set(command.tasks) <= self.withdrawn
        self.withdrawn |= set(command.tasks)

    def moved(self, command: Move) -> None:
        """Between engines that are alike; not from a pool that has tasks waiting, nor below its least, nor one that leaves."""
        worker, its = self.workers[command.worker], self.machine.autoscaler.pools
        assert {worker.role, command.role} == set(ENGINES)
        assert alike(self.config)
        assert not worker.leaving
        assert not self.machine.dispatcher.queued(worker.role)
        donor, worker.role = worker.role, command.role
        assert sum(w.role == donor and not w.leaving for w in self.workers.values()) >= its[donor].bounds.least

    def assigned(self, command: Assign) -> None:
        worker = self.workers.get(command.worker)
        assert worker is not None, "work for the dead"
        assert not worker.leaving, "work for one that is to leave"
        assert command.task not in self.seen, "a task was given away twice"
        self.seen.add(command.task)
        role, weight = self.asked.pop(command.task) if command.work is None else role_and_weight(command.work)
        if worker.role != role:
            assert self.config.pools.flexible_roles
            assert {worker.role, role} == set(ENGINES)
            self.seen_kinds["lent"] += 1
        load = self.load_of(worker)
        assert load + weight <= self.machine.dispatcher.slots[worker.name].limit or not load, "more than the seat's limit"
        if worker.role in ENGINES:
            assert not worker.joining, "work for an engine that joins"
            assert worker.serves >= self.live, "work for an engine with weights older than the live ones"
            if self.config.weights.update != "in_flight":
                assert worker.coming is None
                assert worker.serves == self.newest, "work for an engine that is to change its weights"
        if isinstance(command.work, Branch):
            self.require_trunk(command.work)
        self.given[command.task] = Given(command.work, worker, weight)

    def require_trunk(self, work: Branch) -> None:
        """The payload that it names has the trunk, and each of its ids hangs at one of its anchors."""
        payload = {id for (key, _), (id, _) in self.rows.items() if key == work.trunk_payload}
        assert work.trunk in payload
        assert {id.node for id in work.ids} <= {anchor.node for anchor in work.anchors}

    def sent(self, command: Send) -> None:
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

    def to_train(self, command: Train) -> None:
        assert self.train is None
        assert not self.stopped, "a batch after the stop"
        version = command.version - 1
        assert version == self.machine.ledger.version
        assert len(set(command.groups)) == self.config.flow.groups_per_step
        assert not any(group in self.outcomes for group in command.groups)
        ids = [self.rows[item.payload, item.row] for item in command.items]
        assert {id.group for id, _ in ids} == set(command.groups)
        assert len({id for id, _ in ids}) == len(ids), "a rollout twice in a batch"
        assert not self.trained & {id for id, _ in ids}, "a rollout was trained twice"
        self.lags.update(version - oldest for _, oldest in ids)
        stale = [id for id, oldest in ids if version - oldest > self.config.flow.max_staleness]
        assert not stale, "tokens older than the bound"
        self.train = command

    # ---- laws that hold after every event ----

    def check(self) -> None:
        ledger, flow = self.machine.ledger, self.config.flow
        assert ledger.slots_held <= (flow.max_staleness + 1) * flow.groups_per_step
        assert ledger.admitted == len(self.outcomes) + ledger.in_flight
        assert ledger.outcomes == Counter(self.outcomes.values())
        assert ledger.live == self.live == self.machine.fleet.live
        if any(isinstance(event, Begun) for event in self.story):
            self.check_pools()
        for worker in self.workers.values():
            slot = self.machine.dispatcher.slots[worker.name]
            width = self.machine.dispatcher.roles[worker.role].width
            assert slot.load == self.load_of(worker)
            assert min(self.config.pools.least_in_flight, width) <= slot.limit <= width
            if worker.role in ENGINES and not worker.joining:
                assert self.live <= worker.serves, "an engine in service serves less than the live version"

    def check_pools(self) -> None:
        for role in (*ENGINES, VERIFIERS):
            pool, its = self.machine.autoscaler.pools[role], getattr(self.config, role)
            staying = sum(w.role == role and not w.leaving for w in self.workers.values())
            hired = sum(hire.role == role for hire in self.hires)
            assert its.least <= pool.wanted <= its.most
            assert staying == self.machine.dispatcher.staying(role), "one that leaves counts, or one that stays does not"
            assert staying + hired >= pool.wanted, "a worker is missing, and nobody hires one"
            assert staying + hired == pool.wanted or not isinstance(self.story[-1], Utilization | Begun), (
                "too many, and nobody leaves"
            )

    def tasks_of(self, name: str) -> list[int]:
        return [task for task, given in self.given.items() if given.worker.name == name]

    def load_of(self, worker: Worker) -> int:
        return sum(given.weight for given in self.given.values() if given.worker is worker)

    # ---- what may happen: each returns whether there was something to do ----

    def admit(self, pick: Pick) -> bool:
        if not self.machine.ledger.admissible():
            return False
        uid = f"p{self.machine.ledger.admitted}"
        self.tell(Admitted(group=f"{uid}@0"))
        return True

    def decode(self, pick: Pick) -> bool:
        """An engine makes a token of everything that it has."""
        engines = [w for w in self.workers.values() if w.role in ENGINES and self.tasks_of(w.name)]
        for worker in engines[pick(len(engines)) :][:1] if engines else []:
            for task in self.tasks_of(worker.name):
                self.token(self.given[task])
        return bool(engines)

    def token(self, given: Given) -> None:
        version = given.worker.serves
        given.oldest = version if given.oldest is None else min(version, given.oldest)
        given.newest = max(version, given.newest)

    def finish_task(self, pick: Pick, *, mishaps: bool = True) -> bool:
        """A task comes back; perhaps with rows that came to nothing."""
        tasks = [task for task, given in self.given.items() if given.work is not None]
        if not tasks:
            return False
        task = tasks[pick(len(tasks))]
        work = self.given[task].work
        if isinstance(work, Score):
            self.judged(task, work, pick)
        else:
            assert work is not None
            self.delivered(task, work, pick, mishaps=mishaps)
        return True

    def judged(self, task: int, work: Score, pick: Pick) -> None:
        for row, id in zip(work.rows, work.ids, strict=True):
            assert self.rows[work.payload, row][0] == id, "a row was taken for another"
        del self.given[task]
        self.withdrawn.discard(task)
        words = tuple(verdict(self.reward(id, pick)) for id in work.ids)
        self.tell(Judged(task=task, group=work.ids[0].group, ids=work.ids, verdicts=words))

    def reward(self, id: RolloutId, pick: Pick) -> float | None:
        return self.world.reward(id) if self.world else REWARDS[pick(len(REWARDS))]

    def delivered(self, task: int, work: Sample | Branch, pick: Pick, *, mishaps: bool) -> None:
        given = self.given.pop(task)
        self.withdrawn.discard(task)
        if given.oldest is None:
            self.token(given)
        assert given.oldest is not None
        aborted = {id for id in work.ids if self.aborts(id, pick, mishaps=mishaps)}
        self.seen_kinds["mixed versions"] += given.oldest < given.newest
        self.payload += 1
        self.rows |= {(self.payload, row): (id, given.oldest) for row, id in enumerate(work.ids)}
        notes = tuple(self.note_of(id, given, id in aborted) for id in work.ids)
        anchors = None
        if isinstance(work, Sample) and work.trunk and not self.rescored:
            anchors = tuple(a for id in work.ids if id not in aborted for a in self.anchors(id, pick))
        self.tell(Delivered(task=task, group=work.ids[0].group, payload=self.payload, notes=notes, anchors=anchors))

    def aborts(self, id: RolloutId, pick: Pick, *, mishaps: bool) -> bool:
        if self.world is None:
            return mishaps and pick(8) == 7
        if self.world.doomed(id):
            return True
        return mishaps and pick(8) == 7 and self.may_fail(id)

    def may_fail(self, key: Any) -> bool:
        """With a world, what is not doomed comes in the end, however often the run is killed."""
        if self.world is not None and self.fails[key] + 1 >= self.attempts:
            return False
        self.fails[key] += 1
        return True

    def note_of(self, id: RolloutId, given: Given, aborted: bool) -> Any:
        assert given.oldest is not None
        length = self.world.length(id) if self.world else 5
        context = self.world.context(id) if self.world else PROMPT_TOKENS
        return note(id, given.oldest, Finish.ABORT if aborted else Finish.STOP, length, context)

    def anchors(self, id: RolloutId, pick: Pick) -> tuple[Anchor, ...]:
        places = self.world.places(id) if self.world else PLACES[pick(len(PLACES))]
        return anchors_of(id, *places, count=self.config.algorithm.anchors)

    def lose(self, pick: Pick) -> bool:
        """A task does not come back. One that was withdrawn does so without blame."""
        tasks = [task for task, given in self.given.items() if given.work is not None]
        if not tasks:
            return False
        task = tasks[pick(len(tasks))]
        work = self.given[task].work
        counted = task not in self.withdrawn
        if counted and not all([self.may_fail(("score", id) if isinstance(work, Score) else id) for id in work.ids]):  # noqa: C419
            return False
        self.lost(task, counted=counted)
        return True

    def lost(self, task: int, *, counted: bool) -> None:
        work = self.given.pop(task).work
        assert work is not None
        self.withdrawn.discard(task)
        scoring = isinstance(work, Score)
        payload = work.payload if isinstance(work, Score) else -1
        self.tell(
            Lost(
                task=task, group=work.ids[0].group, ids=work.ids, reason="x", scoring=scoring, payload=payload, counted=counted
            )
        )  # fmt: skip

    def give_back(self, pick: Pick) -> bool:
        """A worker returns a withdrawn task."""
        tasks = [task for task in sorted(self.withdrawn) if task in self.given]
        if not tasks:
            return False
        task = tasks[pick(len(tasks))]
        if self.given[task].work is None:
            self.end_asked(task, proof=False)
        else:
            self.lost(task, counted=False)
        return True

    def repeat(self, pick: Pick) -> bool:
        """An event comes twice: nothing changes but a counter."""
        if self.told:
            before = to_json(self.machine.ledger.state())
            self.tell(self.told[pick(len(self.told))], again=False)
            assert self.commands[-1] == [], "a duplicate had an effect"
            assert to_json(self.machine.ledger.state()) == before
        return bool(self.told)

    def rescore(self, pick: Pick) -> bool:
        if not self.rescores:
            return False
        command = self.rescores.pop(pick(len(self.rescores)))
        anchors = tuple(a for id in command.trunks for a in self.anchors(id, pick))
        self.tell(Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))
        return True

    def trained_batch(self, pick: Pick) -> bool:
        if self.train is None:
            return False
        train, self.train = self.train, None
        self.trained |= {self.rows[item.payload, item.row][0] for item in train.items}
        self.batches.append(train.groups)
        self.unexported.append(train.version)
        self.tell(Trained(version=train.version))
        assert all(self.outcomes[group] == "trained" for group in train.groups)
        return True

    def export(self, pick: Pick) -> bool:
        """Of several versions that wait the oldest, or a newer one and those before never."""
        if not self.unexported:
            return False
        place = pick(len(self.unexported))
        self.newest = self.unexported[place]
        del self.unexported[: place + 1]
        self.tell(Exported(version=self.newest))
        return True

    def load(self, pick: Pick) -> bool:
        """An engine changes to the weights that it was sent, and has not told yet."""
        found = [w for w in self.workers.values() if w.coming is not None and not w.loaded]
        for worker in found[pick(len(found)) :][:1] if found else []:
            assert worker.coming is not None
            for task in self.tasks_of(worker.name):
                self.token(self.given[task])
            worker.serves, worker.loaded = worker.coming, True
        return bool(found)

    def ack(self, pick: Pick) -> bool:
        found = [w for w in self.workers.values() if w.loaded]
        if found:
            worker = found[pick(len(found))]
            version, worker.coming, worker.loaded = worker.coming, None, False
            assert version is not None
            if version >= self.machine.fleet.live:
                worker.joining = False
            self.tell(Acked(worker=worker.name, version=version))
        return bool(found)

    def refuse(self, pick: Pick) -> bool:
        found = [w for w in self.workers.values() if w.coming is not None]
        if found:
            worker = found[pick(len(found))]
            assert worker.coming is not None
            del self.workers[worker.name]
            self.tell(Refused(worker=worker.name, version=worker.coming, why="too late"))
        return bool(found)

    def die(self, pick: Pick) -> bool:
        """Its tasks end later: lost, or delivered after all by an engine that was only slow."""
        if not self.workers:
            return False
        name = sorted(self.workers)[pick(len(self.workers))]
        del self.workers[name]
        self.tell(WorkerDown(worker=name, why="died", node=bool(pick(2))))
        return True

    def hire(self, pick: Pick) -> bool:
        if not self.hires:
            return False
        command = self.hires.pop(pick(len(self.hires)))
        self.worker_up(command.role, self.birth, command.ticket)
        return True

    def busy(self, pick: Pick) -> bool:
        """A heartbeat: pools may grow, shrink, or help each other."""
        self.now += (0.5, 1.0, 4.0)[pick(3)]
        idle = tuple((role, (0.0, 0.5, 1.0)[pick(3)]) for role in (*ENGINES, VERIFIERS))
        self.tell(Utilization(at=self.now, idle=idle))
        return True

    def come_too_late(self, pick: Pick) -> bool:
        """One that was dismissed was up already."""
        if not self.dismissed:
            return False
        command = self.dismissed.pop(pick(len(self.dismissed)))
        self.worker_up(command.role, self.birth, command.ticket)
        return True

    def leave(self, pick: Pick) -> bool:
        """The node of a worker will be taken away; perhaps of one that leaves already."""
        if not self.workers:
            return False
        slots = self.machine.dispatcher.slots
        paused = sorted(name for name, w in self.workers.items() if slots[name].held and w.coming is None and not w.leaving)
        names = paused if paused and pick(2) else sorted(self.workers)  # which happens too seldom else
        worker = self.workers[names[pick(len(names))]]
        self.seen_kinds["leaves twice"] += worker.leaving
        self.seen_kinds["leaves with weights on their way"] += worker.coming is not None
        self.seen_kinds["leaves while it is paused"] += worker.name in paused
        worker.leaving = True
        notice = (0.0, 4.0, 30.0)[pick(3)]
        self.tell(Leaving(worker=worker.name, why="spot", seconds=notice))
        for command in self.commands[-1]:
            if isinstance(command, Wait) and command.key == f"leave {worker.name}":
                assert command.seconds == (2.0 if notice == 4.0 else 5.0)
        return True

    def worker_up(self, role: str, version: int, ticket: int = 0) -> None:
        self.names += 1
        name = f"{role}-{self.names}"
        engine = role in ENGINES
        self.workers[name] = Worker(name, role, serves=version if engine else 0, joining=engine and version < self.newest)
        self.tell(WorkerUp(role=role, worker=name, version=version, ticket=ticket, node=f"node-{self.names % 3}"))

    def fail_to_start(self, pick: Pick) -> bool:
        if not self.hires:
            return False
        command = self.hires.pop(pick(len(self.hires)))
        self.tell(Unhired(ticket=command.ticket, role=command.role, why="no room"))
        return True

    def press(self, pick: Pick) -> bool:
        engines = sorted(w.name for w in self.workers.values() if w.role in ENGINES)
        if engines:
            name = engines[pick(len(engines))]
            kv_used = (0.5, 0.9, 0.99)[pick(3)]
            self.tell(Pressure(worker=name, kv_used=kv_used, waiting=pick(2), preempted=pick(2)))
        return bool(engines)

    def ask(self, pick: Pick) -> bool:
        """Part of an evaluation; sometimes wider than a seat."""
        self.asks += 1
        role, weight = ENGINES[pick(2)], (1, 2, 6)[pick(3)]
        self.asked[-self.asks] = role, weight
        self.tell(Asked(task=-self.asks, role=role, weight=weight, priority=-pick(2)))
        return True

    def answer(self, pick: Pick) -> bool:
        """It ends, or is not wanted any more, wherever it is."""
        tasks = sorted([*self.asked, *(task for task in self.given if task < 0)])
        if tasks:
            self.end_asked(tasks[pick(len(tasks))], proof=bool(pick(2)))
        return bool(tasks)

    def end_asked(self, task: int, *, proof: bool) -> None:
        self.asked.pop(task, None)
        self.given.pop(task, None)
        self.withdrawn.discard(task)
        self.tell(Answered(task=task, proof=proof))

    def due(self, pick: Pick) -> bool:
        if not self.waits:
            return False
        self.tell(Due(key=self.waits.pop(pick(len(self.waits)))))
        return True

    def stop(self, pick: Pick) -> bool:
        self.stopped = True
        self.tell(Stopped(reason="enough"))
        assert not self.machine.ledger.admissible()
        return True

    # ---- to the end ----

    GOOD = ("admit", "decode", "finish_task", "rescore", "trained_batch", "export", "load", "ack", "hire", "due", "give_back")
    BAD = ("lose", "repeat", "refuse", "die", "fail_to_start", "press", "ask", "answer", "busy", "leave", "come_too_late")

    def act(self, name: str, pick: Pick) -> bool:
        return bool(getattr(self, name)(pick))

    def to_the_end(self, limit: int = 5_000) -> None:
        """From here on everything succeeds, oldest first: the run must end. An engine gives withdrawn tasks back."""
        if self.stopped:
            self.checkpoint()
            self.kill()
        for _ in range(limit):
            if self.quiet():
                self.tell(Utilization(at=self.now, idle=()))  # who came too late leaves
                return self.require_end()
            assert self.turn(), f"deadlock: {self.machine.ledger.waiting()}"
        raise AssertionError(f"the run does not end: {self.machine.ledger.waiting()}")

    def turn(self) -> bool:
        moved = self.hire(first) or self.give_back(first) or self.ack(first)
        moved = self.load(first) or self.export(first) or self.trained_batch(first) or self.rescore(first) or moved
        if tasks := [key for key in self.waits if key.startswith("task")]:
            self.waits.remove(tasks[0])
            self.tell(Due(key=tasks[0]))
            moved = True
        moved = self.admit(first) or moved
        placed = sorted(task for task in self.given if task < 0)
        if placed:
            self.end_asked(placed[0], proof=True)
        return self.finish_fairly() or bool(placed) or moved

    def finish_fairly(self) -> bool:
        """The first task that a worker has comes back; branch numbers decide about rewards, so that there is something to learn."""
        tasks = [task for task, given in self.given.items() if given.work is not None]
        if not tasks:
            return False
        work = self.given[tasks[0]].work
        if isinstance(work, Score) and self.world is None:
            del self.given[tasks[0]]
            self.withdrawn.discard(tasks[0])
            words = tuple(verdict(id.branch % 2) for id in work.ids)
            self.tell(Judged(task=tasks[0], group=work.ids[0].group, ids=work.ids, verdicts=words))
            return True
        return self.finish_task(first, mishaps=False)

    def quiet(self) -> bool:
        return (
            self.machine.ledger.finished
            and not (self.given or self.asked or self.hires or self.unexported or self.rescores)
            and not any(w.coming is not None for w in self.workers.values())
        )

    def require_end(self) -> None:
        """All steps are made, nothing is left anywhere, every engine has the newest weights."""
        ledger, dispatcher = self.machine.ledger, self.machine.dispatcher
        assert ledger.version == ledger.live == self.config.run.steps
        assert (ledger.in_flight, ledger.slots_held) == (0, 0)
        assert (
            sum(outcome == "trained" for outcome in self.outcomes.values())
            == self.config.run.steps * self.config.flow.groups_per_step
        )
        assert ledger.admitted == len(self.outcomes)
        for worker in self.workers.values():
            slot = dispatcher.slots[worker.name]
            assert (slot.load, slot.tasks, slot.held) == (0, set(), False)
            assert worker.role not in ENGINES or worker.serves == ledger.version
        assert [dispatcher.queued(role) for role in dispatcher.roles] == [0, 0, 0]
        assert not any(w.leaving for w in self.workers.values())
        there = Counter(w.role for w in self.workers.values())
        assert there == {role: pool.wanted for role, pool in self.machine.autoscaler.pools.items()}
        if not self.config.generators.elastic:
            assert there == {GENERATORS: 2, EXPLORERS: 2, VERIFIERS: 1}

    def replay(self) -> list[list[Command]]:
        """The commands of this life once more, by a machine of its own that is told the same events."""
        machine = self.fresh()
        return [machine.start(), *(machine.handle(event) for event in self.story)]


def random_cluster(rng: random.Random, **fixed: Any) -> Cluster:
    """Any mode, with any settings that are valid together. ``fixed``: of ``control_config``, or fields of ``Cluster``."""
    own = {name: fixed.pop(name) for name in ("world", "rescored", "birth") if name in fixed}
    settings: dict[str, Any] = {
        "steps": rng.randint(2, 6), "groups": rng.randint(1, 3), "staleness": rng.randint(0, 3), "update": rng.choice(MODES),
        "together": rng.random() < 0.4, "flexible": rng.random() < 0.5, "elastic": rng.random() < 0.5, "alike": rng.random() < 0.8,
        "adaptive": rng.random() < 0.4, "backoff": rng.choice([0.0, 0.5]),
    } | fixed  # fmt: skip
    settings["elastic"] &= not fixed.get("together")  # its group has fixed members
    settings["together"] &= not settings["elastic"]
    room = settings["staleness"] * settings["groups"]
    settings["window"] = fixed.get("window", rng.choice([0, rng.randint(0, room)]))
    if not settings["adaptive"]:
        settings.setdefault("trunk", rng.choice(TRUNK_MODES))
    return Cluster(**{"config": control_config(**settings), "rescored": rng.random() < 0.3, "birth": rng.choice([0, -1])} | own)


def play(cluster: Cluster, rng: random.Random, *, moves: int, mishaps: float, kills: float = 0.005) -> Cluster:
    """So many actions in a random order, then the way to the end."""
    for _ in range(moves):
        if rng.random() < 0.1:
            cluster.busy(rng.randrange)
        chance = rng.random()
        if chance < kills:
            cluster.kill(rng.randrange)
        elif chance < 3 * kills:
            cluster.checkpoint()
        elif chance < 3.1 * kills:
            cluster.stop(first)
        else:
            names = cluster.BAD if rng.random() < mishaps else cluster.GOOD
            any(cluster.act(name, rng.randrange) for name in rng.sample(names, len(names)))  # the first that can be done
    cluster.to_the_end()
    return cluster


def role_and_weight(work: Work) -> tuple[str, int]:
    match work:
        case Sample():
            return GENERATORS, len(work.ids)
        case Branch():
            return EXPLORERS, len(work.ids)
        case Score():
            return VERIFIERS, 1
