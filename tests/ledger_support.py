"""A world in which every rollout's outcome follows from its id, and a player that runs a ledger in it in any order.

What a rollout is worth must not depend on when or how often it arrives; the player mixes up everything that may be mixed up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from builders import small_config
from oracle import State, Tree

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import RewardConfig
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine.events import Admitted, Delivered, Event, Judged, Lost, Published, Rescored, Trained
from fr3e_async.machine.group import Group
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import Branch, Command, Rescore, Retire, Sample, Score, Train
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Advantage, Anchor, Finish, RolloutId, RolloutSummary, Verdict

PROMPT_TOKENS = 4  # of ``builders.prompt``
TRUNK_MODES = ("first", "random", "all", "one_right_one_wrong")


def make_ledger(
    *, steps: int = 100, groups: int = 2, staleness: int = 1, attempts: int = 2, rejected: int = 10_000, budget: int = 0,
    minibatches: int = 1, on_unknown: str = "drop", seed: int = 0, window: int = 0, state: LedgerState | None = None,
    rewards: list[RewardConfig] | None = None, **algorithm: Any,
) -> Ledger:  # fmt: skip
    config = small_config(
        run={"steps": steps, "seed": seed},
        flow={
            "groups_per_step": groups, "max_staleness": staleness, "max_attempts": attempts, "max_rejected_in_a_row": rejected,
            "order": "window" if window else "admission", "window": window,
        },
        algorithm={"bases": 2, "anchors": 2, "branches": 2, **algorithm},
        budget={"tokens_per_prompt": budget},
        verifiers={"on_unknown": on_unknown},
        learner={"minibatches": minibatches},
    )  # fmt: skip
    config = replace(config, rewards=rewards or config.rewards)
    return Ledger(config, make_strategy(config.algorithm), state=state)


def group_named(ledger: Ledger, name: str) -> Group:
    """One that is open, or with the learner."""
    return next(group for group in ledger.state().groups if group.name == name)


def through_json(state: LedgerState) -> LedgerState:
    """As a checkpoint keeps it and gives it back."""
    return msgspec.json.decode(to_json(state), type=LedgerState)


def note(
    id: RolloutId, version: int = 0, finish: Finish = Finish.STOP, length: int = 5, context: int = PROMPT_TOKENS, cached: int = 0
) -> RolloutSummary:
    return RolloutSummary(
        id=id, length=length, context=context, cached=cached, entropy_sum=1.0, entropy_error_sum=0.5, finish=finish,
        oldest_version=version, newest_version=version,
    )  # fmt: skip


def anchors_of(trunk: RolloutId, *positions: int, count: int = 2, certain: bool = True) -> tuple[Anchor, ...]:
    """Anchors of one trunk at these positions, numbered for K = ``count``."""
    first = trunk.branch * count
    return tuple(
        Anchor(node=first + j, parent=first + j - 1 if j > 1 else 0, trunk=trunk.branch, position=p, score=1.0, certain=certain)
        for j, p in enumerate(positions, start=1)
    )


def admit(ledger: Ledger, uid: str) -> list[Any]:
    return ledger.handle(Admitted(group=f"{uid}@0"))


def kinds(commands: Sequence[Command]) -> list[str]:
    return [type(c).__name__ for c in commands]


def verdict(reward: bool | float | None) -> Verdict:
    """Of a number between 0 and 1: a user's score."""
    if reward is None:
        return Verdict(outcome=Outcome.UNKNOWN, reason="nobody knows")
    score = None if reward in (0, 1) else float(reward)
    return Verdict(outcome=Outcome.CORRECT if reward >= 0.5 else Outcome.WRONG, reason="told", score=score)


def delivered(
    command: Any, *, payload: int, anchors: Sequence[int] = (2,), version: int = 0, finish: Finish = Finish.STOP, length: int = 5,
    rescored: bool = False, count: int = 2,
) -> Delivered:  # fmt: skip
    """All rows of a task. ``anchors``: positions on each trunk in it."""
    trunk = isinstance(command, Sample) and command.trunk
    chosen = tuple(a for id in command.ids for a in anchors_of(id, *anchors, count=count))
    return Delivered(
        task=command.task,
        group=command.ids[0].group,
        payload=payload,
        notes=tuple(note(id, version, finish, length) for id in command.ids),
        anchors=chosen if trunk and not rescored else None,
    )


def judged(score: Any, *rewards: float | None) -> Judged:
    return Judged(task=score.task, group=score.ids[0].group, ids=score.ids, verdicts=tuple(verdict(r) for r in rewards))


def lost(command: Any, **fields: Any) -> Lost:
    return Lost(task=command.task, group=command.ids[0].group, ids=command.ids, reason="died", **fields)


def lost_score(score: Any) -> Lost:
    return lost(score, scoring=True, payload=score.payload)


def drive(
    ledger: Ledger, commands: Sequence[Command], *, rewards: Callable[[RolloutId], Any], payload: int = 100, **tokens: Any
) -> list[Any]:
    """Carry out commands to the end with rewards by id; returns what is left over (Train, Retire). ``tokens``: of ``delivered``."""
    rest, todo = [], list(commands)
    while todo:
        command = todo.pop(0)
        match command:
            case Sample() | Branch():
                payload += 1
                todo += ledger.handle(delivered(command, payload=payload, version=ledger.live, **tokens))
            case Score():
                todo += ledger.handle(judged(command, *(rewards(id) for id in command.ids)))
            case _:
                rest.append(command)
    return rest


@dataclass(frozen=True)
class World:
    """``seed`` decides everything: rewards, lengths, anchors, and which rollouts never arrive."""

    seed: int
    anchors: int = 2
    branches: int = 2
    bases: int = 3
    doom: float = 0.05
    unknown: float = 0.1

    def _chance(self, what: str, id: RolloutId) -> float:
        return random.Random(f"{self.seed} {what} {id}").random()

    def doomed(self, id: RolloutId) -> bool:
        return self._chance("doom", id) < self.doom

    def reward(self, id: RolloutId) -> float | None:
        chance = self._chance("reward", id)
        if chance < self.unknown:
            return None
        ease = random.Random(f"{self.seed} ease {id.group}").choice([0.0, 0.3, 0.5, 0.7, 1.0])
        if self._chance("graded", id) < 0.1:
            return 0.75 if chance < 0.5 else 0.25
        return float(self._chance("right", id) < ease)

    def length(self, id: RolloutId) -> int:
        return 12 + int(self._chance("length", id) * 20)

    def places(self, trunk: RolloutId) -> list[int]:
        rng = random.Random(f"{self.seed} places {trunk}")
        return sorted(rng.sample(range(1, 12), rng.choice([0, 1, self.anchors, self.anchors])))

    def context(self, id: RolloutId) -> int:
        if id.node == 0:
            return PROMPT_TOKENS
        trunk, j = divmod(id.node - 1, self.anchors)
        return PROMPT_TOKENS + self.places(RolloutId(id.group, 0, trunk))[j]

    def tree(self, group: str, trunks: list[int], *, unknown_is_zero: bool) -> Tree:
        """The group as it must end, for the oracle."""

        def reward(id: RolloutId) -> float | None:
            found = None if self.doomed(id) else self.reward(id)
            return 0.0 if found is None and unknown_is_zero and not self.doomed(id) else found

        grown = {}
        for b in trunks:
            own = RolloutId(group, 0, b)
            places = [] if self.doomed(own) else self.places(own)
            grown[b] = [
                State(p, [reward(RolloutId(group, b * self.anchors + j, m)) for m in range(self.branches)])
                for j, p in enumerate(places, start=1)
            ]
        return Tree([reward(RolloutId(group, 0, b)) for b in range(self.bases)], grown)

    def picked_by_reward(self, group: str, *, unknown_is_zero: bool) -> list[int]:
        """The first right and the first wrong base."""
        rewards = self.tree(group, [], unknown_is_zero=unknown_is_zero).bases
        right = [b for b, r in enumerate(rewards) if r is not None and r >= 0.5]
        wrong = [b for b, r in enumerate(rewards) if r is not None and r < 0.5]
        return sorted(right[:1] + wrong[:1])


@dataclass
class Player:
    """Plays a ledger to the end of its run, choosing at random what happens next."""

    ledger: Ledger
    world: World
    rng: random.Random
    attempts: int  # flow.max_attempts: what is not doomed fails less often than that
    rescored: bool = False
    faults: float = 0.0  # chance that a task is lost, a row aborted, an event repeated or late
    open: list[Command] = field(default_factory=list)
    late: list[Event] = field(default_factory=list)
    fails: dict[Any, int] = field(default_factory=dict)
    trunks: dict[str, set[int]] = field(default_factory=dict)  # that were asked for anchors
    where: dict[tuple[int, int], RolloutId] = field(default_factory=dict)
    trained: list[dict[RolloutId, tuple[Advantage, int, int]]] = field(default_factory=list)
    batches: list[tuple[str, ...]] = field(default_factory=list)
    retired: dict[str, Retire] = field(default_factory=dict)
    admitted: int = 0
    payload: int = 0

    def play(self) -> Player:
        for _ in range(4_000):  # a run takes some hundreds
            if self.ledger.finished:
                return self
            self._turn()
        raise AssertionError(f"the run does not end: {self.ledger.waiting()}, {len(self.open)} commands open")

    def _turn(self) -> None:
        if self.ledger.admissible() and (not self.open or self.rng.random() < 0.5):
            self.admitted += 1
            self._take(admit(self.ledger, f"p{self.admitted}"))
        elif self.late and self.rng.random() < 0.3:
            self._tell(self.late.pop(self.rng.randrange(len(self.late))))
        elif self.open:
            self._carry_out(self.open.pop(self.rng.randrange(len(self.open))))
        else:
            raise AssertionError(f"deadlock: {self.ledger.waiting()}")

    def _tell(self, event: Event) -> None:
        if self.rng.random() < self.faults and not isinstance(event, Trained):
            self.late.append(event)  # it will be told again
        self._take(self.ledger.handle(event))

    def _take(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Retire):
                assert command.group not in self.retired, "settled twice"
                self.retired[command.group] = command
            else:
                self.open.append(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Sample() | Branch():
                self._deliver(command)
            case Rescore():
                anchors = tuple(a for id in command.trunks for a in self._anchors(id))
                self._tell(Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))
            case Score():
                self._judge(command)
            case Train():
                items = {
                    self.where[i.payload, i.row]: (i.advantage, i.load.minibatch, i.load.context + i.load.completion)
                    for i in command.items
                }
                assert len(items) == len(command.items), "a rollout is trained twice"
                self.trained.append(items)
                self.batches.append(command.groups)
                self._tell(Trained(version=command.version))
                self._tell(Published(version=command.version))

    def _anchors(self, id: RolloutId) -> tuple[Anchor, ...]:
        return anchors_of(id, *self.world.places(id), count=self.world.anchors)

    def _may_fail(self, key: Any) -> bool:
        if self.fails.get(key, 0) + 1 >= self.attempts or self.rng.random() >= self.faults:
            return False
        self.fails[key] = self.fails.get(key, 0) + 1
        return True

    def _deliver(self, command: Sample | Branch) -> None:
        group = command.ids[0].group
        if isinstance(command, Sample) and command.trunk:
            self.trunks.setdefault(group, set()).update(id.branch for id in command.ids)
        dropped = {id for id in command.ids if self.world.doomed(id) or self._may_fail(id)}
        if dropped == set(command.ids):  # nothing of it comes back
            self._tell(Lost(task=command.task, group=group, ids=command.ids, reason="lost"))
            self.late += [self._delivered(command, aborted={id for id in command.ids if self.world.doomed(id)})]
        else:
            self._tell(self._delivered(command, aborted=dropped))

    def _delivered(self, command: Sample | Branch, *, aborted: set[RolloutId]) -> Delivered:
        ids = list(command.ids)
        self.rng.shuffle(ids)
        self.payload += 1
        self.where |= {(self.payload, row): id for row, id in enumerate(ids)}
        anchors = None
        if isinstance(command, Sample) and command.trunk and not self.rescored:
            anchors = tuple(a for id in ids if id not in aborted for a in self._anchors(id))
        notes = tuple(
            note(
                id, self.ledger.live, Finish.ABORT if id in aborted else Finish.STOP, self.world.length(id), self.world.context(id)
            )
            for id in ids
        )  # fmt: skip
        return Delivered(task=command.task, group=ids[0].group, payload=self.payload, notes=notes, anchors=anchors)

    def _judge(self, command: Score) -> None:
        group = command.ids[0].group
        for row, id in zip(command.rows, command.ids, strict=True):
            assert self.where[command.payload, row] == id, "a row was taken for another"
        words = tuple(verdict(self.world.reward(id)) for id in command.ids)
        judged = Judged(task=command.task, group=group, ids=command.ids, verdicts=words)
        if self._may_fail(("score", command.payload)):
            lost = Lost(task=command.task, group=group, ids=command.ids, reason="x", scoring=True, payload=command.payload)
            self.late.append(judged)
            self._tell(lost)
        else:
            self._tell(judged)
