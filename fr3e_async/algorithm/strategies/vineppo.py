"""VinePPO (Kazemnejad et al. 2024, arXiv 2410.01679): a trunk's steps are credited by Monte-Carlo values of its states.

The trunk is cut at reasoning steps (line ends, unless ``algorithm.anchor_rule`` says otherwise). The branches of a state
only estimate its value; what is trained are the trunks, each token with the advantage of the step it is part of.
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from fr3e_async.algorithm.strategies.base import TREE, Credit, GroupPlan, GroupRewards, StateCredit, rejection, tree_plan
from fr3e_async.algorithm.values import StateValue, state_values
from fr3e_async.config import AlgorithmConfig
from fr3e_async.errors import ConfigError
from fr3e_async.types import Advantage, AdvantageSpan, RolloutId

ROUNDING = 1e-12  # a gain below it is the difference of two means of equal rewards


@dataclass(frozen=True, slots=True)
class VinePpo:
    """A_t = V(S_j+1) - V(S_j) for the tokens between S_j and S_j+1; the value of the end is the trunk's reward.

    V(S_0) of a trunk is the mean of the *other* bases, so that its own reward is not in its baseline. A state without a
    value is no cut: the steps on its two sides are one, and a trunk without cuts is one step. A trunk without a reward or
    without a V(S_0) is not trained.
    """

    config: AlgorithmConfig
    reads: ClassVar[frozenset[str]] = TREE | {"overlong_filter"}

    def __post_init__(self) -> None:
        if not self.config.anchors:
            raise ConfigError("algorithm.anchors must be at least 1: algorithm.strategy=vineppo trains the trunks only")
        if self.config.adaptive_first:
            # V may count first rounds only (values.second_round), and nothing else is done with a branch here.
            raise ConfigError(
                f"algorithm.adaptive_first={self.config.adaptive_first} with algorithm.strategy=vineppo would pay for rollouts "
                "that nothing reads: branches only give V, which is of the first ones; set algorithm.adaptive_first=0"
            )

    @property
    def plan(self) -> GroupPlan:
        return tree_plan(self.config, rule="newline")

    def credit(self, outcome: GroupRewards) -> Credit:
        nodes = outcome.by_node()
        values = state_values({node: list(scored.values()) for node, scored in nodes.items()})
        credited = {trunk: self._steps(outcome, nodes[0], values, trunk) for trunk in outcome.trunks}
        taught = {id: steps for id, steps in credited.items() if any(step.value for step in steps)}
        states = {node: StateCredit(value=values.get(node), dropped="" if node in values else "too_few") for node in nodes}
        rejected = "" if taught else rejection(outcome, enough=any(credited.values()))
        return Credit(advantages=taught, rejected=rejected, states=states)

    def _steps(
        self, outcome: GroupRewards, bases: dict[RolloutId, float], values: dict[int, StateValue], own: RolloutId
    ) -> Advantage:
        """Spans of the trunk ``own``; none if it cannot be credited."""
        others = [reward for id, reward in bases.items() if id != own]
        if own not in bases or not others:
            return ()
        anchors = sorted((a for a in outcome.anchors.values() if a.trunk == own.branch), key=lambda a: a.position)
        known = [(a.position, values[a.node].value) for a in anchors if a.node in values]
        starts = [0, *(position for position, _ in known)]
        worth = [math.fsum(others) / len(others), *(value for _, value in known), bases[own]]
        gains = [after - before for before, after in itertools.pairwise(worth)]
        return tuple(
            AdvantageSpan(start, gain if abs(gain) > ROUNDING else 0.0) for start, gain in zip(starts, gains, strict=True)
        )
