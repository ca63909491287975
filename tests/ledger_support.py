"""Configurations, events and answers for tests of the machine, and a world in which every rollout's outcome follows from its id."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from builders import small_config
from oracle import State, Tree

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config, RewardConfig
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine.events import Admitted, Delivered, Lost, Scored
from fr3e_async.machine.group import Group
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import Branch, Command, Sample, Score
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Anchor, Finish, RolloutId, RolloutSummary, Verdict

PROMPT_TOKENS = 4  # of ``builders.prompt``
TRUNK_MODES = ("first", "random", "all", "one_correct_one_wrong")


def control_config(
    *, steps: int = 4, groups: int = 2, staleness: int = 1, window: int = 0, update: str = "in_flight", together: bool = False,
    flexible: bool = False, elastic: bool = False, alike: bool = True, adaptive: bool = False, backoff: float = 0.0,
    attempts: int = 3, rejected: int = 10**6, budget: int = 0, minibatches: int = 1, on_unknown: str = "drop", seed: int = 0,
    **algorithm: Any,
) -> Config:  # fmt: skip
    """Two engines of each role with room for 4 rollouts (elastic: 1 to 4 of each); groups of 2 bases and one trunk."""
    pool = {"count": 2, "rollouts_in_flight": 4} | ({"min": 1, "max": 4} if elastic else {})
    shape = {"bases": 2, "anchors": 2, "branches": 3 if adaptive else 2, "adaptive_first": 2 if adaptive else 0}
    return small_config(
        run={"steps": steps, "seed": seed},
        flow={
            "groups_per_step": groups, "max_staleness": staleness, "max_attempts": attempts, "retry_backoff_s": backoff,
            "order": "window" if window else "admission", "window": window, "max_rejected_in_a_row": rejected,
        },
        algorithm={**shape, **algorithm},
        budget={"tokens_per_prompt": budget},
        learner={"minibatches": minibatches},
        generators=pool,
        explorers=pool | ({} if alike else {"cpus": 2.0}),
        verifiers={"workers": 1, "on_unknown": on_unknown} | ({"max": 2} if elastic else {}),
        pools={
            "flexible_roles": flexible, "least_in_flight": 1, "max_deaths_in_a_row": 500, "replace_backoff_s": 0.0,
            "grow_after_s": 1.0, "shrink_after_s": 3.0, "drain_timeout_s": 5.0,
        },
        weights={"update": update, "transfer": "collective" if together else "object_store"},
    )  # fmt: skip


def make_ledger(
    *, steps: int = 100, attempts: int = 2, rejected: int = 10_000, state: LedgerState | None = None,
    rewards: list[RewardConfig] | None = None, **fields: Any,
) -> Ledger:  # fmt: skip
    """``fields``: of ``control_config``."""
    config = control_config(steps=steps, attempts=attempts, rejected=rejected, **fields)
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


def anchors_held(ledger: Ledger, trunk: RolloutId) -> tuple[Anchor, ...]:
    """What the ledger knows of a trunk's anchors."""
    (group,) = [group for group in ledger.state().groups if group.name == trunk.group]
    return group.anchors_of[trunk.branch]


def admit(ledger: Ledger, uid: str) -> list[Any]:
    return ledger.handle(Admitted(group=f"{uid}@0"))


def payloads_of(ledger: Ledger) -> set[int]:
    """Keys of the payloads that a checkpoint of the ledger would keep."""
    cut = ledger.cut(to_json)
    while cut.step(1):
        pass
    return cut.payloads


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


def judged(score: Any, *rewards: float | None) -> Scored:
    return Scored(task=score.task, group=score.ids[0].group, ids=score.ids, verdicts=tuple(verdict(r) for r in rewards))


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
