"""The paper's baseline GRPO++: GRPO whose groups without spread are rejected. Clip-Higher is the loss's part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fr3e_async.algorithm.strategies.base import Credit, GroupOutcome, GroupPlan, centred, flat_credit, flat_plan, no_spread
from fr3e_async.config import AlgorithmConfig


@dataclass(frozen=True, slots=True)
class GrpoPlusPlus:
    """(r - mean) / (std + 1e-6); with ``std_normalise: false`` r - mean."""

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = frozenset({"std_normalise"})

    @property
    def plan(self) -> GroupPlan:
        return flat_plan(self.config)

    def credit(self, outcome: GroupOutcome) -> Credit:
        rewards = list(outcome.by_node()[0].values())
        return flat_credit(
            outcome, None if no_spread(rewards) else centred(rewards, std_normalise=self.config.normalises(by_default=True))
        )
