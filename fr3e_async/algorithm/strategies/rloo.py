"""RLOO (Ahmadian et al. 2024, arXiv 2402.14740): the baseline of a rollout is the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fr3e_async.algorithm.strategies.base import Credit, GroupOutcome, GroupPlan, centred, flat_credit, flat_plan, no_spread
from fr3e_async.config import AlgorithmConfig


@dataclass(frozen=True, slots=True)
class Rloo:
    """r_i minus the mean of the *other* rewards: n / (n - 1) · (r_i - mean)."""

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = frozenset()

    @property
    def plan(self) -> GroupPlan:
        return flat_plan(self.config)

    def credit(self, outcome: GroupOutcome) -> Credit:
        rewards = list(outcome.by_node()[0].values())
        if no_spread(rewards):
            return flat_credit(outcome, None)
        scale = len(rewards) / (len(rewards) - 1)
        return flat_credit(outcome, [scale * d for d in centred(rewards, std_normalise=False)])
