"""Counts over retired groups, per training step and over the run. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fr3e_async.control.messages import Retire


@dataclass(slots=True)
class Tally:
    """Sums over groups since the last ``take``; ``take`` turns them into a step's metrics and starts afresh."""

    fates: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    entropy_sum: float = 0.0

    def add(self, group: Retire) -> None:
        self.fates[group.fate] += 1
        self.entropy_sum += group.entropy_sum
        self.sums.update(
            groups=1,
            bases_right=group.bases_right,
            bases_judged=group.bases_judged,
            rollouts=group.rollouts,
            right=group.right,
            unknown=group.unknown,
            given_up=group.given_up,
            tokens=group.tokens,
            truncated=group.truncated,
            anchors=group.anchors,
            dropped_states=group.dropped_states,
        )

    def take(self) -> dict[str, float]:
        """Metrics by name; ratios whose denominator is 0 are left out rather than shown as 0."""
        s, fates = self.sums, self.fates
        metrics: dict[str, float] = {
            "groups/trained": fates["trained"],
            "groups/all_right": fates["rejected_all_right"],
            "groups/all_wrong": fates["rejected_all_wrong"],
            "groups/no_spread": fates["rejected_no_spread"],
            "groups/too_few": fates["rejected_too_few"],
            "groups/failed": fates["failed_given_up"],
            "groups/dropped_states": s["dropped_states"],
            "tokens/generated": s["tokens"],
            "verify/right": s["right"],
            "verify/unknown": s["unknown"],
            "verify/wrong": s["rollouts"] - s["right"] - s["unknown"] - s["given_up"],
            "verify/given_up": s["given_up"],
        }
        ratios = {
            "reward/accuracy": (s["bases_right"], s["bases_judged"]),
            "reward/mean": (s["right"], s["rollouts"] - s["unknown"] - s["given_up"]),
            "rollout/entropy_nats": (self.entropy_sum, s["tokens"]),
            "rollout/length_tokens": (s["tokens"], s["rollouts"]),
            "rollout/truncated_fraction": (s["truncated"], s["rollouts"]),
            "rollout/anchors": (s["anchors"], s["groups"]),
        }
        metrics |= {name: above / below for name, (above, below) in ratios.items() if below}
        self.fates, self.sums, self.entropy_sum = Counter(), Counter(), 0.0
        return metrics
