"""The adaptive branch budget: what a second round of continuations goes to, and which draws a value may count. Pure.

With ``algorithm.adaptive_first`` = F every anchor of a trunk first gets F continuations, branches 0 to F - 1. A state whose
F rewards are all equal is *decided*: without spread it trains nothing, and more samples would teach little. What is left
of the trunk's anchors · (M - F) continuations goes to its undecided states (docs/fr3e.md, "Adaptive branches").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fr3e_async.types import RolloutId


def second_round(rewards: Mapping[int, Sequence[float | None]], *, first: int, branches: int) -> dict[int, int]:
    """Further continuations by node, for the undecided states of one trunk; nodes that get none are left out.

    ``rewards``: by anchor node the outcomes of branches 0 to ``first`` - 1, every anchor of the trunk being a key; None, or
    left out: unknown or given up. The budget, anchors · (``branches`` - ``first``), is dealt equally, what remains one each
    to the lowest nodes. No state gets more than ``branches``, so at most ``first`` + ``branches`` in all; what that leaves over, and
    everything where no state is undecided, is not spent. A state with fewer than two judged rewards counts as decided:
    nothing shows that it has spread, and what could not be judged once may well not be judged the next time either.

    The result depends on the rewards of this trunk's first rounds only, not on their order.
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
    return {node: min(branches, share + (place < rest)) for place, node in enumerate(undecided)}


def decided(outcomes: Sequence[float | None]) -> bool:
    """True unless two of the judged rewards differ."""
    return len({reward for reward in outcomes if reward is not None}) < 2


def fixed_draws(judged: Mapping[RolloutId, float], *, first: int) -> list[float]:
    """Rewards of a state's samples whose number was fixed beforehand: its first round, and bases. ``first`` = 0: all of them.

    V is the mean of these alone, so its expectation is the true one. The mean of all samples is biased away from 1/2: a
    first round of equal rewards stands as it is, a mixed one is averaged with fresh draws. Of binary rewards with
    P(1) = p = 1 - q, F draws and m more if they differ, its bias is m / (F + m) · p·q·(p^(F-1) - q^(F-1)).
    """
    return [reward for id, reward in judged.items() if not first or id.node == 0 or id.branch < first]
