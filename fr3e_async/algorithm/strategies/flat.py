"""Strategies without branches: GRPO, GRPO++ and RLOO. r_1 … r_n are the rewards of a prompt's judged rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fr3e_async.algorithm.strategies.base import FlatStrategy, centred, no_spread


class Grpo(FlatStrategy):
    """GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2): A_i = (r_i - mean(r)) / (std(r) + 1e-6).

    A group of equal rewards trains, with advantages of 0, as in plain GRPO. ``algorithm.std_normalise=false``: no division.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"std_normalise"})

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        if len(rewards) < 2:
            return None
        return centred(rewards, std_normalise=self.config.normalises(by_default=True))


class GrpoPlusPlus(Grpo):
    """GRPO++, the baseline of the FR3E paper: GRPO that rejects groups of equal rewards. Its Clip-Higher is the loss's part."""

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        return None if no_spread(rewards) else super().advantages(rewards)


class Rloo(FlatStrategy):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): r_i minus the mean of the other rewards, n/(n-1) · (r_i - mean(r))."""

    def advantages(self, rewards: Sequence[float]) -> Sequence[float] | None:
        if no_spread(rewards):
            return None
        scale = len(rewards) / (len(rewards) - 1)
        return [scale * difference for difference in centred(rewards, std_normalise=False)]
