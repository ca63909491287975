"""Tree credit: exact advantages for trunks, branches and plain bases of one group. Pure, and generic over the number type.

A trunk has anchors at positions p_1 < ... < p_K. Anchor j has n_j scored branches with rewards r_{j,m}; r_T is the trunk's own
reward, p_0 = 0 the prompt with n_0 = 0, k >= 0 a constant. From the end of the trunk to its start::

    Q_{K+1} = r_T        Q_j = (sum_m r_{j,m} + Q_{j+1}) / (n_j + 1)
    V0      = mean over the other bases of their Q_1 (a plain base: its r)
    B_0     = V0         B_j = (sum_m r_{j,m} + k B_{j-1}) / (n_j + k)
    w_0     = 1          w_j = w_{j-1} / (n_j + 1)

    trunk, tokens p_j to p_{j+1}   A = Q_{j+1} - B_j                                                     weight w_j
    branch m of anchor j           A = r_{j,m} - (sum_{m' != m} r_{j,m'} + Q_{j+1} + k B_{j-1}) / (n_j + k)   weight w_j
    plain base                     A = r - V0                                                            weight 1

With these weights the expected update of a group of N bases is N times the policy gradient, for anchors that are stopping times (fixed
positions, or a first crossing that looks at earlier tokens only), whether a trunk has one anchor or a random number of them, and
for any number of trunks: ``tests/test_algorithm_tree_credit.py`` enumerates small trees in rational numbers. It is biased for anchors
that look ahead (the K largest entropies of a whole trunk), and where verdicts are unknown, since that makes n_j random.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from fr3e_async.algorithm.strategies.base import TREE, Credit, GroupPlan, GroupRewards, StateCredit, rejection, tree_plan
from fr3e_async.algorithm.values import state_values
from fr3e_async.config import AlgorithmConfig
from fr3e_async.errors import ConfigError
from fr3e_async.types import Advantage, AdvantageSpan, RolloutId

ROUNDING = 1e-12  # an advantage below it is the difference of two means of equal rewards
SHRINK = 2.0  # k: how many branches' worth the baseline of the anchor before counts


@dataclass(frozen=True, slots=True)
class TreeCredit:
    """The credit of this module for groups as FR3E draws them. Experimental.

    A group is rejected only if all its rewards are alike: a state whose branches agree stays, for its jump in value is signal.
    ``algorithm.credit_weights``: ``path`` has the weights above, ``fr3e`` 1 for all, so that what follows an anchor counts more often.
    """

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = (TREE - {"adaptive_first"}) | {"credit_weights"}

    def __post_init__(self) -> None:
        if not self.config.anchors:
            raise ConfigError("algorithm.anchors must be at least 1: without anchors algorithm.strategy=tree_credit is rloo")
        if self.config.adaptive_first:  # n_j would depend on rewards
            raise ConfigError(
                f"algorithm.adaptive_first={self.config.adaptive_first} with algorithm.strategy=tree_credit is not exact; set it to 0"
            )

    @property
    def plan(self) -> GroupPlan:
        return tree_plan(self.config, rule="entropy")

    def credit(self, outcome: GroupRewards) -> Credit:
        scored = outcome.by_node()
        values = state_values({node: list(rewards.values()) for node, rewards in scored.items()})
        states = {node: StateCredit(value=values.get(node), dropped="" if node in values else "too_few") for node in scored}
        spans = tree_credit(outcome, path=self.config.credit_weights == "path")
        taught = {id: span for id, span in spans.items() if any(abs(one.value) > ROUNDING for one in span)}
        return Credit(advantages=taught, rejected="" if taught else rejection(outcome, enough=bool(spans)), states=states)


class _Cut(NamedTuple):
    """An anchor of a trunk that has scored branches."""

    position: int
    branches: dict[RolloutId, float]


def tree_credit(outcome: GroupRewards, *, path: bool = True, shrink: float = SHRINK) -> dict[RolloutId, Advantage]:
    """Spans of every rollout that can be trained; none if a base has no other base with a reward to be compared with.

    Args:
        path: with the weights w_j of the module's docstring; else 1 for all.
        shrink: k.

    A trunk without a verdict is not trained; its branches are, and their mean stands for it in the baselines of others.
    """
    rewards = outcome.by_node()
    cuts = {id: _cuts(outcome, rewards, id) for id in (outcome.base(b) for b in range(_bases(outcome)))}
    returns = {id: _returns(found, rewards[0].get(id)) for id, found in cuts.items()}
    first = {id: q[0] for id, q in returns.items() if q[0] is not None}
    spans: dict[RolloutId, Advantage] = {}
    for id, found in cuts.items():
        others = [value for other, value in first.items() if other != id]
        if id in first and others:
            spans |= _trunk(id, found, returns[id], sum(others) / len(others), path=path, shrink=shrink)
    return spans


def _bases(outcome: GroupRewards) -> int:
    return 1 + max((id.branch for id in outcome.rewards if id.node == 0), default=-1)


def _cuts(outcome: GroupRewards, rewards: dict[int, dict[RolloutId, float]], base: RolloutId) -> list[_Cut]:
    anchors = sorted((a for a in outcome.anchors.values() if a.trunk == base.branch), key=lambda anchor: anchor.position)
    return [_Cut(anchor.position, rewards[anchor.node]) for anchor in anchors if rewards[anchor.node]]


def _returns(cuts: Sequence[_Cut], reward: float | None) -> list[float | None]:
    """Q_1 to Q_{K+1}; without a verdict of the trunk (``reward`` None) a mean is over the branches alone."""
    values: list[float | None] = [reward]
    for cut in reversed(cuts):
        below = [values[-1]] if values[-1] is not None else []
        members = [*cut.branches.values(), *below]
        values.append(sum(members) / len(members))
    return values[::-1]


def _trunk(
    id: RolloutId, cuts: Sequence[_Cut], returns: Sequence[float | None], v0: float, *, path: bool, shrink: float
) -> dict[RolloutId, Advantage]:
    """The spans of a base that has a verdict, and of the branches of its cuts. ``v0``: its baseline at the prompt."""
    spans: dict[RolloutId, Advantage] = {}
    starts, baselines, weights = [0], [v0], [1.0]
    baseline, weight = v0, 1.0
    for j, cut in enumerate(cuts):
        after, count = returns[j + 1], len(cut.branches)
        total = sum(cut.branches.values())
        weight = weight / (count + 1) if path else 1.0
        for branch, reward in cut.branches.items():
            others, members = total - reward + shrink * baseline, count - 1 + shrink
            if after is not None:
                others, members = others + after, members + 1
            if members:
                spans[branch] = (AdvantageSpan(0, reward - others / members, weight),)
        baseline = (total + shrink * baseline) / (count + shrink)
        starts.append(cut.position)
        baselines.append(baseline)
        weights.append(weight)
    known = [value for value in returns if value is not None]
    if returns[-1] is not None:  # then all of them are known
        own = zip(starts, known, baselines, weights, strict=True)
        spans[id] = tuple(AdvantageSpan(start, value - base, share) for start, value, base, share in own)
    return spans
