"""A cluster of workers around a control machine, driven in any order: what the machine commands happens, or something goes wrong.

``Cluster`` only chooses what happens next, and tells it; ``machine_laws.Laws`` keeps the record and checks every command. A cluster can
be killed at any point and resumes from a checkpoint that went through JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from ledger_support import PROMPT_TOKENS, World, anchors_of, note, verdict
from machine_laws import Given, History, Laws, Worker
from machine_mishaps import Mishaps, Pick, first, one

from fr3e_async.algorithm.strategies import explorer_count, make_strategy
from fr3e_async.config import Config
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine import events, messages
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.ledger_state import LedgerCut, LedgerState
from fr3e_async.machine.machine import Machine
from fr3e_async.types import Anchor, Finish, RolloutId

REWARDS = (0, 1, 1, 0, 0.25, None)
POSITIONS = ((2, 4), (2, 4), (3,), ())  # of the anchors of a trunk of 5 tokens
MODES = ("in_flight", "wait_idle", "abort_retry")


@dataclass(frozen=True)
class Checkpoint:
    """What survives a kill: the ledger as JSON, and what had become of the groups by then."""

    state: bytes
    history: History


@dataclass(frozen=True)
class SlowCut:
    """A cut that is encoded while the run continues, and what it must become."""

    cut: LedgerCut
    state: bytes


class Cluster(Mishaps):
    """``world``: outcomes follow from rollout ids alone; else ``pick`` decides. Actions return whether there was something to do."""

    GOOD = ("admit", "decode", "finish_task", "rescore", "train", "export", "load", "ack", "hire", "due", "give_back")

    def __init__(
        self, config: Config, *, world: World | None = None, rescored: bool = False, birth: int = 0, since: Checkpoint | None = None
    ) -> None:  # fmt: skip
        """``rescored``: the learner chooses anchors. ``birth``: version that workers come up with, -1 or 0. ``since``: to resume from."""
        self.config, self.world, self.rescored, self.birth = config, world, rescored, birth
        self.fails: Counter[Any] = Counter()
        self.checkpoints = [since] if since else []
        self.history = since.history.copy() if since else History()
        self.lives = self.names = self.asks = 0
        self.now = 0.0  # of ``Utilization``
        self.cuts: list[SlowCut] = []  # of this and earlier lives
        self.begin(since.state if since else None)

    # ---- lives ----

    def begin(self, state: bytes | None, there: Sequence[Worker] = ()) -> None:
        """A fresh machine, with new workers or those ``there`` from the life before. What was in flight is gone."""
        self.born_from, self.lives = state, self.lives + 1
        self.machine = self.fresh()
        self.laws = Laws(self.machine, self.config, self.history)
        self.repeatable: list[events.Event] = []  # events that may be told again
        self.late: list[events.Event] = []  # of tasks that were taken for lost
        self.payload = max((key for key, _ in self.history.rows), default=0)  # the last one's key
        self.scenario: list[events.Event] = []  # of this life
        self.commands = [started := self.machine.start()]  # of this life, by event
        self.laws.obey(started)
        for worker in there:  # only the learner is a new one; whatever weights they have, they are to get the newest
            self.worker_up(worker.role, -1)
        for role in () if there else (GENERATORS, *[EXPLORERS] * explorer_count(self.config), GENERATORS, VERIFIERS):
            self.worker_up(role, self.birth)
        self.tell(events.Begun(again=bool(there)))

    def fresh(self) -> Machine:
        """The machine that this life began with."""
        state = None if self.born_from is None else msgspec.json.decode(self.born_from, type=LedgerState)
        return Machine(self.config, make_strategy(self.config.algorithm), state=state)

    def replay(self) -> list[list[messages.Command]]:
        """The commands of this life once more, by a machine of its own that is told the same events."""
        machine = self.fresh()
        return [machine.start(), *(machine.handle(event) for event in self.scenario)]

    def checkpoint(self) -> None:
        state = to_json(self.ledger.state())
        assert msgspec.json.decode(state, type=LedgerState) == self.ledger.state()
        self.cuts.append(SlowCut(self.ledger.cut(to_json), state))
        self.checkpoints.append(Checkpoint(state, self.history.copy()))

    def kill(self, pick: Pick = first) -> None:
        """Resume from one of the checkpoints, perhaps with the same workers; what came after it never was."""
        there = list(self.laws.workers.values()) if pick(3) == 2 else []
        if not self.checkpoints:
            self.history = replace(self.history, retired={}, trained={}, batches=[])
            return self.begin(None, there)
        del self.checkpoints[len(self.checkpoints) - pick(len(self.checkpoints)) :]
        self.history = self.checkpoints[-1].history.copy()
        return self.begin(self.checkpoints[-1].state, there)

    def tell(self, event: events.Event) -> bool:
        if isinstance(event, events.Delivered | events.Scored | events.Lost | events.Rescored):
            self.repeatable.append(event)
        self.scenario.append(event)
        for slow in self.cuts[:1]:
            self.step(slow, groups=len(self.scenario) % 2)
        self.commands.append(self.laws.tell(event))
        return True

    def step(self, slow: SlowCut, *, groups: int) -> None:
        """Encode some more groups. Whatever has happened meanwhile, the cut is the state as it was."""
        if not slow.cut.step(groups):
            assert to_json(slow.cut.state()) == slow.state
            read = msgspec.json.decode(slow.state, type=LedgerState)
            assert slow.cut.payloads == {r.payload for group in read.groups for r in group.issued if r.payload >= 0}
            self.cuts.remove(slow)
            self.history.seen["slow cuts"] += 1

    def act(self, name: str, pick: Pick) -> bool:
        """Do one of ``GOOD`` or ``BAD``."""
        return bool(getattr(self, name)(pick))

    # ---- what goes well ----

    def admit(self, pick: Pick) -> bool:
        uid = f"p{self.ledger.admitted}"
        return bool(self.ledger.admissible()) and self.tell(events.Admitted(group=f"{uid}@0"))

    def decode(self, pick: Pick) -> bool:
        """An engine makes a token of everything that it has."""
        worker = one(pick, [w for w in self.engines if self.laws.tasks_of(w.name)])
        return worker is not None and self.tokens(worker)

    def tokens(self, worker: Worker) -> bool:
        for task in self.laws.tasks_of(worker.name):
            made_token(self.laws.given[task])
        return True

    def finish_task(self, pick: Pick, *, mishaps: bool = True, reward: Callable[[RolloutId], Any] | None = None) -> bool:
        """A task comes back; perhaps with rows that came to nothing."""
        task = one(pick, self.tasks)
        if task is None:
            return False
        work = self.laws.given[task].work
        if isinstance(work, messages.Score):
            known = self.world.reward if self.world else reward or (lambda id: REWARDS[pick(len(REWARDS))])
            words = tuple(verdict(known(id)) for id in work.ids)
            return self.tell(events.Scored(task=task, group=work.ids[0].group, ids=work.ids, verdicts=words))
        return self.tell(self.delivered(task, {id for id in work.ids if self.aborts(id, pick, mishaps=mishaps)}, pick))

    def delivered(self, task: int, aborted: Collection[RolloutId], pick: Pick) -> events.Delivered:
        """A task's rollouts, or some of them, in another order than they were asked for."""
        given = self.laws.given[task]
        work, turned = given.work, pick(len(given.work.ids))
        ended = (work.ids[turned:] + work.ids[:turned])[: len(work.ids) - pick(2) * pick(len(work.ids))]
        if given.oldest is None:
            made_token(given)
        self.history.seen["mixed versions"] += given.oldest < given.newest
        self.payload += 1
        notes = tuple(
            note(
                id, given.oldest, Finish.ABORT if id in aborted else Finish.STOP, self.world.length(id) if self.world else 5,
                self.world.context(id) if self.world else PROMPT_TOKENS,
            )
            for id in ended
        )  # fmt: skip
        anchors = None
        if isinstance(work, messages.Sample) and work.trunk and not self.rescored:
            anchors = self.anchors([id for id in ended if id not in aborted], pick)
        return events.Delivered(
            task=task, group=work.ids[0].group, payload=self.payload, notes=notes, anchors=anchors,
            left=len(work.ids) - len(ended),
        )  # fmt: skip

    def anchors(self, trunks: Sequence[RolloutId], pick: Pick) -> tuple[Anchor, ...]:
        positions = self.world.places if self.world else lambda id: POSITIONS[pick(len(POSITIONS))]
        return tuple(a for id in trunks for a in anchors_of(id, *positions(id), count=self.config.algorithm.anchors))

    def rescore(self, pick: Pick) -> bool:
        command = one(pick, self.laws.rescores)
        return command is not None and self.tell(
            events.Rescored(
                task=command.task, group=command.group, trunks=command.trunks, anchors=self.anchors(command.trunks, pick)
            )
        )  # fmt: skip

    def train(self, pick: Pick) -> bool:
        return self.laws.train is not None and self.tell(events.Trained(version=self.laws.train.version))

    def export(self, pick: Pick) -> bool:
        """Of several versions that wait the oldest, or a newer one and those before never."""
        version = one(pick, self.laws.unexported)
        return version is not None and self.tell(events.Exported(version=version))

    def load(self, pick: Pick) -> bool:
        """An engine changes to the weights that it was sent, and has not told yet."""
        worker = one(pick, [w for w in self.engines if w.coming is not None and not w.loaded])
        if worker is None or worker.coming is None:
            return False
        self.tokens(worker)
        worker.serves, worker.loaded = worker.coming, True
        return True

    def ack(self, pick: Pick) -> bool:
        worker = one(pick, [w for w in self.engines if w.loaded])
        return worker is not None and self.tell(events.Acked(worker=worker.name, version=worker.serves))

    def hire(self, pick: Pick) -> bool:
        command = one(pick, list(self.laws.hires.values()))
        return command is not None and self.worker_up(command.role, self.birth, command.ticket)

    def worker_up(self, role: str, version: int, ticket: int = 0) -> bool:
        self.names += 1
        up = events.WorkerUp(
            role=role, worker=f"{role}-{self.names}", version=version, ticket=ticket, node=f"node-{self.names % 3}"
        )
        return self.tell(up)

    def due(self, pick: Pick) -> bool:
        key = one(pick, self.laws.waits)
        return key is not None and self.tell(events.Due(key=key))

    def give_back(self, pick: Pick) -> bool:
        """A worker returns a withdrawn task."""
        task = one(pick, [task for task in sorted(self.laws.withdrawn) if task in self.laws.given])
        if task is None:
            return False
        return self.tell(events.Answered(task=task, proof=False)) if task < 0 else self.lost(task, counted=False)

    # ---- to the end ----

    def to_the_end(self, limit: int = 5_000) -> None:
        """From here on everything succeeds, oldest first: the run must end."""
        if self.laws.stopped:
            self.checkpoint()
            self.kill()
        for _ in range(limit):
            for slow in list(self.cuts):
                self.step(slow, groups=1)
            if self.quiet():
                self.tell(events.Utilization(at=self.now, idle=()))  # who came too late leaves
                return self.laws.require_end()
            assert self.turn(), f"deadlock: {self.ledger.waiting()}"
        raise AssertionError(f"the run does not end: {self.ledger.waiting()}")

    def turn(self) -> bool:
        """Something of each kind, if there is any. Branch numbers decide about rewards, so that there is something to learn."""
        moved = self.hire(first) or self.give_back(first) or self.ack(first)
        moved = self.load(first) or self.export(first) or self.train(first) or self.rescore(first) or moved
        if retries := [key for key in self.laws.waits if key.startswith("task")]:
            moved = self.tell(events.Due(key=retries[0]))
        moved = self.admit(first) or moved
        if loans := sorted(task for task in self.laws.given if task < 0):
            moved = self.tell(events.Answered(task=loans[0], proof=True))
        return self.finish_task(first, mishaps=False, reward=lambda id: id.branch % 2) or moved

    def quiet(self) -> bool:
        laws = self.laws
        return (
            self.ledger.finished
            and not (laws.given or laws.asked or laws.hires or laws.unexported or laws.rescores)
            and not any(w.coming is not None for w in laws.workers.values())
        )


def made_token(given: Given) -> None:
    """Every rollout of the task gets a token of the weights that its worker has now."""
    version = given.worker.serves
    given.oldest = version if given.oldest is None else min(version, given.oldest)
    given.newest = max(version, given.newest)
