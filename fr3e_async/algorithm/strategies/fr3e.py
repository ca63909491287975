"""FR3E: every state is its own group; advantages are scaled by alpha between true neighbours (paper section 3.2)."""

from dataclasses import dataclass
from typing import ClassVar

from fr3e_async.algorithm.strategies.base import (
    OVERLONG,
    TREE,
    Credit,
    GroupPlan,
    GroupRewards,
    StateCredit,
    centred,
    no_spread,
    rejection,
    tree_plan,
    whole,
)
from fr3e_async.algorithm.values import alpha, fixed_draws, state_values
from fr3e_async.config import AlgorithmConfig
from fr3e_async.errors import ConfigError
from fr3e_async.types import RolloutId


@dataclass(frozen=True, slots=True)
class Fr3e:
    """A'_{j,m} = alpha_j · (r_{j,m} - V(S_j)). V and alpha are computed for *all* states before any is dropped.

    With ``algorithm.adaptive_first`` V, hence alpha, is of the first rounds and unbiased; the baseline of an advantage is the
    mean of all scored members of its state, of both rounds, so that it still sums to 0 over them. Only mixed first rounds
    lead to a second: the expected update of a state keeps its direction (binary rewards) but not its size (docs/fr3e.md).
    """

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = TREE | OVERLONG | {"include_trunk", "train_bases", "alpha", "alpha_shrink", "std_normalise"}

    def __post_init__(self) -> None:
        if not self.config.anchors and not self.config.train_bases:
            raise ConfigError("algorithm.anchors=0 with algorithm.train_bases=false leaves nothing to train")

    @property
    def plan(self) -> GroupPlan:
        return tree_plan(self.config, rule="entropy")

    def credit(self, outcome: GroupRewards) -> Credit:
        own = outcome.by_node()
        members = {node: {**scored, **self._trunk_member(outcome, node)} for node, scored in own.items()}
        first = self.config.adaptive_first
        values = state_values({node: fixed_draws(scored, first=first) for node, scored in members.items()})
        states = {
            node: StateCredit(
                value=values.get(node),
                alpha=self._alpha(outcome, values, node),
                dropped=no_spread(list(scored.values())) or self._not_trained(node),
            )
            for node, scored in members.items()
        }
        advantages = {
            id: whole(state.alpha * advantage)
            for node, state in states.items()
            if not state.dropped
            for id, advantage in self._advantages(outcome.shaped(members[node])).items()
            if id.node == node  # the trunk counts as a member but is trained in its own state, once
        }
        enough = any(state.dropped not in ("too_few", "not_trained") for state in states.values())
        return Credit(advantages=advantages, rejected="" if advantages else rejection(outcome, enough=enough), states=states)

    def _alpha(self, outcome: GroupRewards, values: dict, node: int) -> float:
        if node == 0 or not self.config.alpha:
            return 1.0
        return alpha(values.get(node), values.get(outcome.anchors[node].parent), shrink=self.config.alpha_shrink)

    def _not_trained(self, node: int) -> str:
        return "not_trained" if node == 0 and not self.config.train_bases else ""

    def _advantages(self, scored: dict[RolloutId, float]) -> dict[RolloutId, float]:
        return dict(
            zip(scored, centred(list(scored.values()), std_normalise=self.config.normalises(by_default=False)), strict=True)
        )

    def _trunk_member(self, outcome: GroupRewards, node: int) -> dict[RolloutId, float]:
        """The trunk's own continuation as a sample of an anchor's state, if ``include_trunk``."""
        if not self.config.include_trunk or node == 0:
            return {}
        trunk = outcome.base(outcome.anchors[node].trunk)
        reward = outcome.rewards.get(trunk)
        return {} if reward is None else {trunk: reward}
