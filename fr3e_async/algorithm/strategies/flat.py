"""Strategies whose group is G independent rollouts of one prompt: GRPO, the paper's GRPO++, and RLOO."""

from __future__ import annotations

from dataclasses import dataclass

from fr3e_async.algorithm.strategies.base import Credit, GroupOutcome, centred, has_spread, rejection_reason
from fr3e_async.algorithm.values import state_values
from fr3e_async.config import AlgorithmConfig


@dataclass(frozen=True, slots=True)
class Grpo:
    """(r - mean) / (std + 1e-6). Without ``reject`` a group of equal rewards trains with zero advantages, as plain GRPO does."""

    config: AlgorithmConfig
    reject: bool = False

    def credit(self, outcome: GroupOutcome) -> Credit:
        judged = outcome.by_node().get(0, {})
        rewards = list(judged.values())
        values = state_values({0: rewards})
        if len(rewards) < 2 or (self.reject and not has_spread(rewards)):
            return Credit(advantages={}, rejected=rejection_reason(rewards), values=values, dropped_states=1)
        return Credit(advantages=dict(zip(judged, centred(rewards, std_normalise=True), strict=True)), values=values)


@dataclass(frozen=True, slots=True)
class Rloo:
    """r_i minus the mean of the *other* rewards: n / (n - 1) · (r_i - mean)."""

    config: AlgorithmConfig

    def credit(self, outcome: GroupOutcome) -> Credit:
        judged = outcome.by_node().get(0, {})
        rewards = list(judged.values())
        values = state_values({0: rewards})
        if not has_spread(rewards):
            return Credit(advantages={}, rejected=rejection_reason(rewards), values=values, dropped_states=1)
        scale = len(rewards) / (len(rewards) - 1)
        advantages = [scale * d for d in centred(rewards, std_normalise=False)]
        return Credit(advantages=dict(zip(judged, advantages, strict=True)), values=values)
