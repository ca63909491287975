"""Counts over retired groups, per training step. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from fr3e_async.config.reward import RewardRange
from fr3e_async.machine.messages import Retire

MEASURED = 0.99  # with an error nearly as large as the value itself (engine.entropy=learner), nothing was measured

POLICY_SHARE = 0.2  # of the correct verdicts: below it nothing is said
_RISE = 2.0  # times the usual share


@dataclass(slots=True)
class PolicyWatch:
    """Watch the share of answers judged correct by a policy rather than by a proof. A rise suggests reward hacking."""

    usual: float | None = None  # mean share of the steps before, the newest counting most
    risen: bool = False

    def alarm(self, metrics: Mapping[str, float]) -> str:
        """Return a warning line when a step's share has risen; "" if it has not, or without correct verdicts."""
        share = metrics.get("verify/policy_fraction")
        if share is None:
            return ""
        usual = share if self.usual is None else self.usual
        self.usual = 0.9 * usual + 0.1 * share
        before, self.risen = self.risen, share > max(POLICY_SHARE, _RISE * usual)
        if before or not self.risen:
            return ""
        return f"{share:.0%} of the correct answers are correct by a policy of the judge, {usual:.0%} were before; see docs/verifier.md"


@dataclass(slots=True)
class Tally:
    """Sums over groups since the last ``take``; ``take`` turns them into a step's metrics and starts afresh."""

    rewards: RewardRange = RewardRange()
    outcomes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # states, by reason
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, group: Retire) -> None:
        """Add a retired group's outcome, dropped states and numbers to the counts."""
        self.outcomes[group.outcome] += 1
        self.dropped.update(state.dropped for state in group.states)
        values = {
            "groups": 1,
            "known": group.bases_scored > 0,
            "known_correct": 0 < group.bases_scored == group.bases_correct,
            "known_wrong": group.bases_scored > 0 == group.bases_correct,
            "by_policy": sum(count for reason, count in group.reasons.items() if reason.startswith("policy")),
            "interval_width": sum(state.high - state.low for state in group.states),
            "states": len(group.states),
            **msgspec.structs.asdict(group.tokens),
            **{
                name: getattr(group, name)
                for name in (
                    "bases_correct", "bases_scored", "rollouts", "drawn", "correct", "reward_sum", "rewarded", "response_tokens", "unknown",
                    "failed", "scored_again", "entropy_sum", "entropy_error_sum", "truncated", "anchors", "anchors_certain",
                )
            },
        }  # fmt: skip
        self.sums = {name: self.sums.get(name, 0) + value for name, value in values.items()}

    def take(self) -> dict[str, float]:
        """Metrics by name; ratios whose denominator is 0 are left out rather than shown as 0."""
        s, outcomes = Counter(self.sums), self.outcomes
        metrics: dict[str, float] = {
            "groups/trained": outcomes["trained"],
            "groups/all_correct": outcomes["rejected_all_correct"],
            "groups/all_wrong": outcomes["rejected_all_wrong"],
            "groups/no_spread": outcomes["rejected_no_spread"],
            "groups/too_few": outcomes["rejected_too_few"],
            "groups/failed": outcomes["failed"],
            "states/kept": self.dropped[""],
            "states/all_correct": self.dropped["all_correct"],
            "states/all_wrong": self.dropped["all_wrong"],
            "states/no_spread": self.dropped["no_spread"],
            "states/too_few": self.dropped["too_few"],
            "states/not_trained": self.dropped["not_trained"],
            "tokens/generated": s["generated"],
            "verify/correct": s["correct"],
            "verify/unknown": s["unknown"],
            "verify/wrong": s["rollouts"] - s["correct"] - s["unknown"] - s["failed"],
            "verify/failed": s["failed"],
            "verify/scored_again": s["scored_again"],
        }
        ratios = {
            "reward/accuracy": (s["bases_correct"], s["bases_scored"]),
            "reward/mean": (s["reward_sum"], s["rewarded"]),
            "verify/policy_fraction": (s["by_policy"], s["correct"]),
            "states/interval_width": (s["interval_width"], s["states"]),
            "rollout/entropy_nats": (s["entropy_sum"], s["generated"]),
            "rollout/entropy_error_nats": (s["entropy_error_sum"], s["generated"]),
            "rollout/length_tokens": (s["response_tokens"], s["rewarded"]),
            "rollout/truncated_fraction": (s["truncated"], s["drawn"]),
            "rollout/anchors": (s["anchors"], s["groups"]),
            "rollout/anchors_certain_fraction": (s["anchors_certain"], s["anchors"]),
            "prompt/all_correct_fraction": (s["known_correct"], s["known"]),
            "prompt/all_wrong_fraction": (s["known_wrong"], s["known"]),
            "prompt/generated_tokens": (s["generated"], s["groups"]),
            "prompt/prefilled_tokens": (s["prefilled"], s["groups"]),
            "prompt/reused_tokens": (s["reused"], s["groups"]),
            "prompt/trained_tokens": (s["trained"], s["groups"]),
            "prompt/useful_fraction": (s["useful"], s["generated"]),
        }
        if s["entropy_error_sum"] > MEASURED * s["entropy_sum"]:
            del ratios["rollout/entropy_nats"], ratios["rollout/entropy_error_nats"]
        metrics |= {name: above / below for name, (above, below) in ratios.items() if below}
        if "reward/mean" in metrics:
            metrics["reward/mean"] = self.rewards.reward(metrics["reward/mean"])
        self.outcomes, self.dropped, self.sums = Counter(), Counter(), {}
        return metrics
