"""The interface of a strategy: it plans a prompt group, and turns the group's rewards into advantages by rollout id.

A strategy is one class and one line in the registry (docs/strategies.md). It sees ids and rewards only; never rows, ranks
or arrival order. The strategies without branches are here, too: GRPO, GRPO++ and RLOO; r_1 … r_n are the rewards of a prompt's scored
rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from fr3e_async.algorithm.anchors import AnchorRule
from fr3e_async.algorithm.values import StateValue
from fr3e_async.config import AlgorithmConfig
from fr3e_async.outcomes import Rejection
from fr3e_async.types import Advantage, AdvantageSpan, Anchor, RolloutId

# Settings of ``algorithm`` that make a tree. A strategy's ``reads`` names what it looks at besides ``strategy`` and ``bases``.
TREE = frozenset({"anchors", "branches", "adaptive_first", "anchor_rule", "entropy_of", "min_gap", "trunk"})
OVERLONG = frozenset({"overlong_filter", "overlong_cache"})
STD_FLOOR = 1e-6  # added to the standard deviation, as GRPO implementations do


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """What a group is made of; fixed when it is admitted, before anything is known of its rollouts.

    Example (the paper's): ``GroupPlan(bases=4, trunks=1, branches=4, rule=AnchorRule(name="entropy", count=3, min_gap=8))`` is a
    group of 4 + 1 · 3 · 4 = 16 rollouts.
    """

    bases: int  # N rollouts of the prompt
    trunks: int = 0  # most bases that are branched from
    branches: int = 0  # M continuations of an anchor; with ``first`` their mean over the anchors of a trunk, at most
    first: int = 0  # continuations that an anchor gets before values.second_round decides on the others; 0: all M at once
    rule: AnchorRule | None = None  # how anchors are picked on a trunk; None: nothing is branched

    def __post_init__(self) -> None:
        if self.first and not 2 <= self.first < self.branches:
            raise ValueError(f"first must be 0 or in [2, branches - 1], got first={self.first}, branches={self.branches}")

    @property
    def at_once(self) -> int:
        """Continuations of an anchor that are drawn as soon as it is known: branches 0 to at_once - 1."""
        return self.first or self.branches

    @property
    def anchors(self) -> int:
        """K: most anchors of a trunk."""
        return self.rule.count if self.rule else 0

    @property
    def rollouts(self) -> int:
        """N + trunks · K · M: the most that a group can have; with ``first`` too, for it only moves what a trunk has to spend."""
        return self.bases + self.trunks * self.anchors * self.branches


def tree_plan(config: AlgorithmConfig, *, rule: str) -> GroupPlan:
    """N bases, and K anchors with M continuations on as many of them as ``algorithm.trunk`` says; bases alone for K = 0.

    ``rule``: the anchor rule that ``algorithm.anchor_rule=auto`` stands for.
    """
    if not config.anchors:
        return GroupPlan(bases=config.bases)
    trunks = {"first": 1, "random": 1, "one_correct_one_wrong": 2, "all": config.bases}[config.trunk]
    return GroupPlan(
        bases=config.bases,
        trunks=trunks,
        branches=config.branches,
        first=config.adaptive_first,
        rule=AnchorRule.of(config, rule),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRewards:
    """The rewards of a complete prompt group: what a strategy credits.

    Example, two bases and an anchor with two branches: ``GroupRewards(group="gsm8k/17@0", rewards={("gsm8k/17@0", 0, 0): 1.0,
    ("gsm8k/17@0", 0, 1): 0.0, ("gsm8k/17@0", 1, 0): 1.0, ("gsm8k/17@0", 1, 1): None}, anchors={1: Anchor(node=1, parent=0,
    trunk=0, position=12, score=2.3)}, trunks=(("gsm8k/17@0", 0, 0),))``, the keys being ``RolloutId``.
    """

    group: str
    rewards: Mapping[
        RolloutId, float | None
    ]  # in [0, 1], of every rollout that was issued; None: it failed, or has an unknown verdict
    anchors: Mapping[int, Anchor] = field(default_factory=dict)  # by node, of every trunk that was branched
    trunks: Sequence[RolloutId] = ()  # in id order; one without an eligible position is a trunk too
    penalties: Mapping[RolloutId, float] = field(default_factory=dict)  # <= 0, in the units of ``rewards``; ``overlong_penalty``

    def by_node(self) -> dict[int, dict[RolloutId, float]]:
        """Scored rewards by node and rollout, in id order: of the prompt, node 0, and of each anchor that was branched from."""
        nodes: dict[int, dict[RolloutId, float]] = {node: {} for node in sorted({0, *self.anchors})}
        for id in sorted(self.rewards):
            reward = self.rewards[id]
            if reward is not None:
                nodes[id.node][id] = reward
        return nodes

    def shaped(self, scored: Mapping[RolloutId, float]) -> dict[RolloutId, float]:
        """Add the penalties to ``scored``. Advantages use these rewards; values and rejection use the raw ones."""
        return {id: reward + self.penalties.get(id, 0.0) for id, reward in scored.items()}

    def base(self, branch: int) -> RolloutId:
        return RolloutId(self.group, 0, branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCredit:
    """The result of one state of a group: a record for ``groups.jsonl`` and the metrics."""

    value: StateValue | None  # None: none of its rollouts was scored
    alpha: float = 1.0
    dropped: str = ""  # the ``Rejection`` why its rollouts are not trained; "" if they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Advantages of the rollouts to train, or the reason why the group is rejected; never both.

    Example, two bases with r = 1 and 0: ``Credit(advantages={RolloutId("gsm8k/17@0", 0, 0): whole(0.5), RolloutId("gsm8k/17@0",
    0, 1): whole(-0.5)}, states={0: StateCredit(value=StateValue(node=0, reward_sum=1.0, scored=2))})``.
    """

    advantages: Mapping[RolloutId, Advantage]
    rejected: str = ""  # the ``Rejection``; "" if it is trained
    states: Mapping[int, StateCredit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.advantages) == bool(self.rejected):
            raise ValueError(
                f"a group is either trained or rejected, got {len(self.advantages)} advantages and {self.rejected!r}"
            )
        for id, spans in self.advantages.items():
            if len(spans) == 1 and spans[0].start == 0 and math.isfinite(spans[0].value):
                continue
            starts = [s.start for s in spans]
            if starts[:1] != [0] or starts != sorted(set(starts)):
                raise ValueError(f"{id}: spans must begin at 0 and continue in order, got {starts}")
            if not all(math.isfinite(s.value) for s in spans):
                raise ValueError(f"{id}: an advantage is not finite: {spans}")

    def without(self, ids: Container[RolloutId]) -> Credit:
        """The credit of the other rollouts, their advantages unchanged; rejected if there is none."""
        left = {id: advantage for id, advantage in self.advantages.items() if id not in ids}
        return replace(self, advantages=left, rejected=self.rejected or ("" if left else Rejection.TOO_FEW))


class Strategy(Protocol):
    """Plans groups and credits complete ones. ``credit`` must be a pure function of its argument.

    A class may have ``reads``: the settings of ``algorithm`` that it looks at; others are then refused when they are given.
    """

    @property
    def plan(self) -> GroupPlan: ...

    def credit(self, outcome: GroupRewards) -> Credit: ...


def whole(advantage: float) -> Advantage:
    """The same advantage for every token of a completion."""
    return (AdvantageSpan(0, advantage),)


def centred(rewards: Sequence[float], *, std_normalise: bool) -> list[float]:
    """A_i = r_i - mean(r), or with ``std_normalise`` (r_i - mean(r)) / (population std(r) + 1e-6)."""
    mean = math.fsum(rewards) / len(rewards)
    differences = [r - mean for r in rewards]
    if not std_normalise:
        return differences
    std = math.sqrt(math.fsum(d * d for d in differences) / len(differences))
    return [d / (std + STD_FLOOR) for d in differences]


def overlong_penalty(length: int, *, longest: int, cache: int) -> float:
    """R_length of a response of ``length`` tokens, DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), in [-1, 0].

    0 up to ``longest`` - ``cache`` tokens, then falling in a straight line to -1 at ``longest``. Example: with 48 and 16 a
    response of 40 tokens has -0.5.
    """
    return -min(max(length - (longest - cache), 0) / cache, 1.0)


def no_spread(rewards: Sequence[float]) -> str:
    """Why these rewards teach nothing: "too_few", or all equal ("all_correct", "all_wrong", "no_spread"); "" if they differ."""
    if len(rewards) < 2:
        return Rejection.TOO_FEW
    if min(rewards) < max(rewards):
        return ""
    return {1.0: Rejection.ALL_CORRECT, 0.0: Rejection.ALL_WRONG}.get(rewards[0], Rejection.NO_SPREAD)


def rejection(outcome: GroupRewards, *, enough: bool) -> str:
    """Why a group is dropped: its rewards are all alike, or alike wherever they are compared; else nothing could be compared.

    ``enough``: there was something that could have been trained, had its rewards differed.
    """
    rewards = [reward for scored in outcome.by_node().values() for reward in scored.values()]
    return no_spread(rewards) or ("no_spread" if enough else "too_few")


@dataclass(frozen=True, slots=True)
class FlatStrategy:
    """A strategy without branches: ``algorithm.bases`` rollouts of the prompt, one advantage each.

    A subclass computes them in ``advantages``.
    """

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = OVERLONG

    @property
    def plan(self) -> GroupPlan:
        return GroupPlan(bases=self.config.bases)

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        """A of each scored rollout, in the order of the rewards (id order); None: there is nothing to train."""
        raise NotImplementedError

    def credit(self, outcome: GroupRewards) -> Credit:
        """The group as one state, with the reason of ``no_spread`` where there is nothing to train."""
        scored = outcome.by_node()[0]
        rewards = list(scored.values())
        value = StateValue(node=0, reward_sum=math.fsum(rewards), scored=len(rewards)) if rewards else None
        advantages = self.advantages(rewards)
        if advantages is not None and outcome.penalties:
            advantages = self.advantages(list(outcome.shaped(scored).values()))
        if advantages is None:
            reason = no_spread(rewards) or Rejection.NO_SPREAD
            return Credit(advantages={}, rejected=reason, states={0: StateCredit(value=value, dropped=reason)})
        by_id = {id: whole(a) for id, a in zip(scored, advantages, strict=True)}
        return Credit(advantages=by_id, states={0: StateCredit(value=value)})


class Grpo(FlatStrategy):
    """GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2): A_i = (r_i - mean(r)) / (std(r) + 1e-6).

    A group of equal rewards trains, with advantages of 0, as in plain GRPO. ``algorithm.std_normalise=false``: no division.
    """

    reads: ClassVar[frozenset[str]] = OVERLONG | {"std_normalise"}

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        if len(rewards) < 2:
            return None
        return centred(rewards, std_normalise=self.config.normalises(by_default=True))


class GrpoPlusPlus(Grpo):
    """GRPO++, the baseline of the FR3E paper: GRPO that rejects groups of equal rewards. Its Clip-Higher is the loss's part."""

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        return None if no_spread(rewards) else super().advantages(rewards)


class Ppo(FlatStrategy):
    """PPO (Schulman et al. 2017, arXiv 1707.06347): the learner's critic makes the advantages, so a rollout's is its reward here.

    No group is rejected for rewards that are alike: values tell its rollouts apart. Experimental.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    critic: ClassVar[frozenset[str]] = frozenset(
        {"lr", "grad_clip", "policy_lambda", "value_lambda", "value_clip", "pretrain_batches"}
    )

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        return rewards or None


class Vapo(Ppo):
    """VAPO (Yue et al. 2025, arXiv 2504.05118): PPO with a λ by length and a loss on correct responses. Experimental."""

    critic: ClassVar[frozenset[str]] = (Ppo.critic - {"policy_lambda"}) | {"length_alpha", "positive_coef"}


class Rloo(FlatStrategy):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): r_i minus the mean of the other rewards, n/(n-1) · (r_i - mean(r))."""

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        if no_spread(rewards):
            return None
        scale = len(rewards) / (len(rewards) - 1)
        return [scale * difference for difference in centred(rewards, std_normalise=False)]
