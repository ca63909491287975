"""State values from verified rewards, their intervals, the factor alpha between neighbouring states, and GAE. Pure.

Source: paper section 3.2 (V, alpha); docs/fr3e.md. Everything is keyed by node, never by row order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fr3e_async.types import RolloutId

Z_95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


def wilson(successes: float, total: float, *, z: float = Z_95) -> tuple[float, float]:
    """(lower, upper) end of the Wilson score interval of p = successes / total; (0, 1) for a total of 0.

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), n = total, which may be a fraction (effective sample size).
    """
    if total <= 0:
        return 0.0, 1.0
    p, shrink = successes / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / shrink
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / shrink
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))  # rounding must not push p outside


@dataclass(frozen=True, slots=True, kw_only=True)
class StateValue:
    """V of one state S_j, from the n of its continuations that were scored.

    V and its interval assume that n was fixed beforehand; ``fixed_draws`` picks such continuations.
    Example: ``StateValue(node=2, reward_sum=3.0, scored=4)`` has V = 0.75, with (0.30, 0.95) as its interval.
    """

    node: int
    reward_sum: float  # Σ r, each in [0, 1]
    scored: int  # n

    def __post_init__(self) -> None:
        if self.scored <= 0 or not 0 <= self.reward_sum <= self.scored:
            raise ValueError(f"state {self.node}: rewards of {self.reward_sum} in all, of {self.scored} scored continuations")

    @property
    def value(self) -> float:
        """V(S_j) = Σ r / n, in [0, 1] (paper, section 3.2)."""
        return self.reward_sum / self.scored

    @property
    def variance(self) -> float:
        """V(1 - V) / n: the variance of V as an estimate, for rewards of 0 and 1; an upper bound for graded ones."""
        return self.value * (1 - self.value) / self.scored

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of V; wider than necessary for graded rewards."""
        return wilson(self.reward_sum, self.scored)


def state_values(rewards_by_node: Mapping[int, Sequence[float]]) -> dict[int, StateValue]:
    """V by node, from its scored rewards in [0, 1]. A node without any is left out: it has no value, which is not 0."""
    return {
        node: StateValue(node=node, reward_sum=math.fsum(rewards), scored=len(rewards))
        for node, rewards in sorted(rewards_by_node.items())
        if rewards
    }


def alpha(here: StateValue | None, before: StateValue | None, *, shrink: bool) -> float:
    """alpha_j = exp(-(V(S_j) - V(S_j-1))), in [1/e, e]: the factor of the advantages of state S_j (paper, section 3.2).

    ``here``: S_j; ``before``: its *true* parent S_j-1. 1 where one of them has no value. With ``shrink`` the difference is
    pulled towards 0 by its standard error (soft threshold), against the noise of small M: with no true difference and V = 0.5,
    alpha's standard deviation is 0.38 at M = 4. Example: V(S_j) = 0.75 after V(S_j-1) = 0.5 gives exp(-0.25) = 0.78.
    """
    if here is None or before is None:
        return 1.0
    difference = here.value - before.value
    if shrink:
        error = math.sqrt(here.variance + before.variance)
        difference = math.copysign(max(0.0, abs(difference) - error), difference)
    return math.exp(-difference)


# ---- Adaptive branches: what a second round of continuations goes to, and which draws a value may count ----
# With ``algorithm.adaptive_first`` = F every anchor of a trunk first gets F continuations, branches 0 to F - 1. A state whose
# F rewards are all equal is *decided*: without spread it trains nothing, and more samples would teach little. What is left
# of the trunk's anchors · (M - F) continuations goes to its undecided states (docs/fr3e.md, "Adaptive branches").


def second_round(rewards: Mapping[int, Sequence[float | None]], *, first: int, branches: int) -> dict[int, int]:
    """Deal out further continuations, by node, to the undecided states of one trunk; nodes that get none are left out.

    The budget, anchors · (``branches`` - ``first``), is dealt equally, what remains one each to the lowest nodes. No state gets
    more than ``branches``, so at most ``first`` + ``branches`` in all; what that leaves over, and everything where no state is
    undecided, is not spent. A state with fewer than two scored rewards counts as decided: nothing shows that it has spread, and
    what could not be scored once may well not be scored the next time either. The order of the rewards has no effect.

    Args:
        rewards: for each anchor node of the trunk the rewards of its branches 0 to ``first`` - 1; None, or left out: not scored.

    Example: first = 2, branches = 4 and rewards {1: [1, 0], 2: [1, 1], 3: [0, 1]} give {1: 3, 3: 3}: the six continuations of
    three anchors go to the two that are undecided.
    """
    if not 2 <= first < branches:
        raise ValueError(f"first must be in [2, branches - 1], got first={first}, branches={branches}")
    for node, outcomes in rewards.items():
        if len(outcomes) > first:
            raise ValueError(f"node {node} has {len(outcomes)} outcomes of a first round of {first}")
    undecided = sorted(node for node, outcomes in rewards.items() if not decided(outcomes))
    if not undecided:
        return {}
    share, rest = divmod(len(rewards) * (branches - first), len(undecided))
    # All states have the same cap, so cutting equal shares at it is already the most equal way to deal.
    return {node: min(branches, share + (index < rest)) for index, node in enumerate(undecided)}


def decided(outcomes: Sequence[float | None]) -> bool:
    """Whether a state's scored rewards are all equal, or fewer than two (None: not scored)."""
    return len({reward for reward in outcomes if reward is not None}) < 2


def fixed_draws(scored: Mapping[RolloutId, float], *, first: int) -> list[float]:
    """Select the rewards of a state's samples whose number was fixed beforehand: its first round, and bases.

    ``first``: ``algorithm.adaptive_first``; 0 selects all. V is the mean of these alone, so its expectation is the true one.
    The mean of all samples is biased away from 1/2: a first round of equal rewards stands as it is, a mixed one is averaged
    with fresh draws. Of binary rewards with P(1) = p = 1 - q, F draws and m more if they differ, its bias is m / (F + m) ·
    p·q·(p^(F-1) - q^(F-1)).
    """
    return [reward for id, reward in scored.items() if not first or id.node == 0 or id.branch < first]


# ---- Advantages from a critic's values, for rewards that come with the last token (no discount) ----


def length_lambdas(lengths: NDArray[np.integer], alpha: float) -> NDArray[np.float64]:
    """[S] λ of completions of these lengths (VAPO, arXiv 2504.05118, equation 8): 1 − 1/(α l), at least 0.

    It weighs α·l differences of values, whatever the length. Example: α = 0.05 gives 0.9 at 200 tokens, and 0 up to 20 tokens.
    """
    return np.maximum(0.0, 1.0 - 1.0 / (alpha * lengths))


def gae(
    rewards: NDArray[np.floating], values: NDArray[np.floating], lengths: NDArray[np.integer], lambdas: NDArray[np.floating]
) -> NDArray[np.float64]:
    """[Σ L] advantages of S completions, one after another: generalised advantage estimation (arXiv 1506.02438, equation 16), γ = 1.

    A_t = δ_t + λ A_{t+1} with δ_t = V_{t+1} − V_t, and r − V_t at the last token. With λ = 1 it is r − V_t.
    Example: r = 1, values 0.5 and 0.7, λ = 0.5: δ is 0.2 and 0.3, A is 0.35 and 0.3.

    Args:
        rewards: [S].
        values: [Σ L] V of the state before each token.
        lengths: [S] tokens, at least 1.
        lambdas: [S].
    """
    ends = np.cumsum(lengths)
    after = np.append(values[1:], 0.0)
    after[ends - 1] = rewards
    # Completions end in the same column, so that one step back serves all of them.
    columns = np.arange(lengths.max()) >= (lengths.max() - lengths)[:, None]
    found = np.zeros(columns.shape)
    found[columns] = after - values
    for column in range(columns.shape[1] - 2, -1, -1):
        found[:, column] += lambdas * found[:, column + 1]
    return found[columns]
