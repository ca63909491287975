"""FR3E: every state is its own group; advantages are scaled by alpha between true neighbours (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from fr3e_async.algorithm.strategies.base import Credit, GroupOutcome, centred, has_spread, rejection_reason
from fr3e_async.algorithm.values import alpha, state_values
from fr3e_async.config import AlgorithmConfig
from fr3e_async.types import RolloutId


@dataclass(frozen=True, slots=True)
class Fr3e:
    """A'_{j,m} = alpha_j · (r_{j,m} - V(S_j)). V and alpha are computed for *all* states before any is dropped."""

    config: AlgorithmConfig

    def credit(self, outcome: GroupOutcome) -> Credit:
        nodes = outcome.by_node()
        members = {node: {**judged, **self._trunk_member(outcome, node)} for node, judged in nodes.items()}
        values = state_values({node: list(judged.values()) for node, judged in members.items()})
        alphas = {node: alpha(values, node, shrink=self.config.alpha_shrink) if self.config.alpha else 1.0 for node in values}
        kept = [node for node in values if has_spread(list(members[node].values()))]
        advantages = {
            id: alphas[node] * advantage
            for node in kept
            for id, advantage in self._advantages(members[node]).items()
            if id.node == node  # the trunk counts as a member but is trained in its own state, once
        }
        rejected = "" if advantages else rejection_reason([r for j in nodes.values() for r in j.values()], groups=len(values))
        return Credit(
            advantages=advantages,
            rejected=rejected,
            values=values,
            alphas={node: alphas[node] for node in kept},
            dropped_states=len(nodes) - len(kept),
        )

    def _advantages(self, judged: dict[RolloutId, float]) -> dict[RolloutId, float]:
        return dict(zip(judged, centred(list(judged.values()), std_normalise=self.config.std_normalise), strict=True))

    def _trunk_member(self, outcome: GroupOutcome, node: int) -> dict[RolloutId, float]:
        """The trunk's own continuation as a sample of an anchor's state, if ``include_trunk``."""
        if not self.config.include_trunk or node == 0 or outcome.trunk is None:
            return {}
        reward = outcome.rewards.get(outcome.trunk)
        return {} if reward is None else {outcome.trunk: reward}
