"""The interface of a strategy: from a prompt group's rewards to advantages by rollout id.

A strategy is one file and one line in the registry. It sees ids and rewards only; never rows, ranks or arrival order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fr3e_async.algorithm.values import StateValue
from fr3e_async.types import RolloutId

STD_FLOOR = 1e-6  # added to the standard deviation, as GRPO implementations do


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOutcome:
    """A complete prompt group. ``rewards`` holds every rollout that was issued; None: given up or unknown verdict."""

    group: str
    trunk: RolloutId | None
    rewards: Mapping[RolloutId, float | None]

    def by_node(self) -> dict[int, dict[RolloutId, float]]:
        """Judged rewards of each node, in id order."""
        nodes: dict[int, dict[RolloutId, float]] = {}
        for id in sorted(self.rewards):
            nodes.setdefault(id.node, {})
            reward = self.rewards[id]
            if reward is not None:
                nodes[id.node][id] = reward
        return nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What a group is worth: advantages of the rollouts to train, or the reason it was rejected; never both.

    ``dropped_states`` counts states without spread; ``alphas`` are those of the states that were kept.
    """

    advantages: Mapping[RolloutId, float]
    rejected: str = ""  # "", "all_right", "all_wrong", "no_spread", "too_few"
    values: Mapping[int, StateValue] = field(default_factory=dict)
    alphas: Mapping[int, float] = field(default_factory=dict)
    dropped_states: int = 0

    def __post_init__(self) -> None:
        if bool(self.advantages) == bool(self.rejected):
            raise ValueError(
                f"a group is either trained or rejected, got {len(self.advantages)} advantages and {self.rejected!r}"
            )
        if not all(math.isfinite(a) for a in self.advantages.values()):
            raise ValueError("an advantage is not finite")


class Strategy(Protocol):
    """Credits complete groups. ``credit`` must be a pure function of its argument."""

    def credit(self, outcome: GroupOutcome) -> Credit: ...


def has_spread(rewards: Sequence[float]) -> bool:
    """True if the rewards differ, so that at least one advantage is not zero."""
    return len(rewards) >= 2 and min(rewards) < max(rewards)


def centred(rewards: Sequence[float], *, std_normalise: bool) -> list[float]:
    """r - mean, optionally / (population standard deviation + 1e-6)."""
    mean = math.fsum(rewards) / len(rewards)
    differences = [r - mean for r in rewards]
    if not std_normalise:
        return differences
    std = math.sqrt(math.fsum(d * d for d in differences) / len(differences))
    return [d / (std + STD_FLOOR) for d in differences]


def rejection_reason(rewards: Sequence[float], *, groups: int = 1) -> str:
    """Why a group without any spread is dropped: ``rewards`` of all its judged rollouts, in ``groups`` states."""
    if len(rewards) < 2:
        return "too_few"
    if min(rewards) == max(rewards):
        return "all_right" if rewards[0] > 0 else "all_wrong"
    return "no_spread" if groups > 1 else "too_few"
