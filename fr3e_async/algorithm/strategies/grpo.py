"""GRPO (Shao et al. 2024, arXiv 2402.03300): G rollouts of a prompt, (r - mean) / (std + 1e-6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fr3e_async.algorithm.strategies.base import Credit, GroupOutcome, GroupPlan, centred, flat_credit, flat_plan
from fr3e_async.config import AlgorithmConfig


@dataclass(frozen=True, slots=True)
class Grpo:
    """A group of equal rewards trains with zero advantages, as plain GRPO does; see ``grpo_pp`` for the other way."""

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = frozenset({"std_normalise"})

    @property
    def plan(self) -> GroupPlan:
        return flat_plan(self.config)

    def credit(self, outcome: GroupOutcome) -> Credit:
        rewards = list(outcome.by_node()[0].values())
        return flat_credit(
            outcome, centred(rewards, std_normalise=self.config.normalises(by_default=True)) if len(rewards) >= 2 else None
        )
