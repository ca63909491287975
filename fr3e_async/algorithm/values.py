"""State values from verified rewards, their intervals, and the factor alpha between neighbouring states. Pure.

Source: paper section 3.2 (V, alpha); docs/fr3e.md. Everything is keyed by node, never by row order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


def wilson(right: float, total: float, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion; (0, 1) without samples. Fractions are allowed (effective sample sizes)."""
    if total <= 0:
        return 0.0, 1.0
    p, shrink = right / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / shrink
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))  # rounding must not push p outside


@dataclass(frozen=True, slots=True, kw_only=True)
class StateValue:
    """What is known of one state: how many of its continuations were judged, and the sum of their rewards.

    V and its interval take it for granted that their number was fixed beforehand; ``adaptive.fixed_draws`` picks such ones.
    """

    node: int
    right: float  # Σ r, each in [0, 1]
    judged: int

    def __post_init__(self) -> None:
        if self.judged <= 0 or not 0 <= self.right <= self.judged:
            raise ValueError(f"state {self.node}: {self.right} right of {self.judged} judged")

    @property
    def value(self) -> float:
        """V(S) = mean reward, in [0, 1]."""
        return self.right / self.judged

    @property
    def variance(self) -> float:
        """Variance of V's estimate under a binomial model, V(1 - V) / n: for graded rewards an upper bound."""
        return self.value * (1 - self.value) / self.judged

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of V; for graded rewards wider than it need be."""
        return wilson(self.right, self.judged)


def state_values(rewards_by_node: Mapping[int, Sequence[float]]) -> dict[int, StateValue]:
    """V of every node that has at least one judged continuation; a node without any has no value (not 0)."""
    return {
        node: StateValue(node=node, right=math.fsum(rewards), judged=len(rewards))
        for node, rewards in sorted(rewards_by_node.items())
        if rewards
    }


def alpha(here: StateValue | None, before: StateValue | None, *, shrink: bool) -> float:
    """exp(-(V(S_j) - V(S_j-1))) between a state and its *true* parent; 1 where one of them has no value.

    With ``shrink`` the difference is pulled towards 0 by its standard error (soft threshold), against the noise of
    small M: with no true difference and V = 0.5, alpha's standard deviation is 0.38 at M = 4.
    """
    if here is None or before is None:
        return 1.0
    difference = here.value - before.value
    if shrink:
        error = math.sqrt(here.variance + before.variance)
        difference = math.copysign(max(0.0, abs(difference) - error), difference)
    return math.exp(-difference)
