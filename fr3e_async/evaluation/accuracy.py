"""avg@k with its uncertainty, from scored samples; and before against after. Pure.

Knows nothing of engines, verifiers or files. An *unknown* verdict counts against accuracy: a benchmark has no samples to
leave out, and a model must not gain by answers that nobody can judge. The number of unknowns stands beside it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from fr3e_async.algorithm.values import wilson
from fr3e_async.config.reward import RewardRange
from fr3e_async.evaluation.estimators import Estimate, bootstrapped_share, effective_samples, share
from fr3e_async.outcomes import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSample:
    """One scored response to one problem.

    Example: ``ScoredSample(problem="aime24/60", outcome=Outcome.CORRECT, length=812, entropy_sum=240.5, truncated=False, oldest_version=3,
    newest_version=4, answer="204")``.
    """

    problem: str
    outcome: Outcome
    length: int  # tokens of the response
    entropy_sum: float  # nats, over its tokens; as far as the engines know it
    truncated: bool  # it ran into its budget
    oldest_version: int
    newest_version: int
    answer: str | None = None  # in its normal form; equal texts are the same answer. None: none was given, or nobody read it
    score: float | None = None  # a user's reward, an unknown's being the lowest; None: 1 for correct, else 0
    text: str | None = None  # of the response, as far as it is kept

    @property
    def reward(self) -> float:
        return float(self.outcome is Outcome.CORRECT) if self.score is None else self.score


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """The counts and means of one evaluation. Counts are of samples unless named otherwise."""

    problems: int
    samples: int
    correct: int
    wrong: int
    unknown: int
    truncated: int
    unanswered: int  # without a box
    mean_length: float  # tokens
    entropy: float  # nats a token: mean entropy of the sampling distribution
    all_correct: int  # problems with every sample correct
    all_wrong: int  # problems with no sample correct
    accuracy: float  # avg@k: mean over problems of the share of correct samples
    reward: Estimate  # mean reward, in its declared range
    effective_samples: float  # independent samples that would be as informative; see ``effective_samples``
    oldest_version: int  # weight versions that sampled the responses
    newest_version: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy on problems like these."""
        return wilson(self.accuracy * self.effective_samples, self.effective_samples)

    @property
    def estimate(self) -> Estimate:
        """The accuracy (avg@k) with its 95 % interval."""
        low, high = self.interval
        return Estimate(value=self.accuracy, low=low, high=high)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """From a mapping that holds at least the fields, e.g. an entry of the summary's ``evaluations``."""
        record = {"correct": record.get("right"), "all_correct": record.get("all_right"), **record}  # words of older versions
        return cls(**{field.name: record[field.name] for field in fields(cls)} | {"reward": Estimate(**record["reward"])})


def by_problem(judgements: Iterable[ScoredSample]) -> dict[str, list[ScoredSample]]:
    """The samples of each problem, in the order of their first appearance. Raises ``ValueError`` if there are none."""
    parts: dict[str, list[ScoredSample]] = defaultdict(list)
    for judgement in judgements:
        parts[judgement.problem].append(judgement)
    if not parts:
        raise ValueError("evaluation: no samples")
    return dict(parts)


def mean_reward(parts: Iterable[Sequence[ScoredSample]], rewards: RewardRange) -> Estimate:
    """Mean reward over problems with its interval: that of the accuracy if all rewards are at an end of their range, else a bootstrap."""
    shares = [[rewards.share(one.reward) for one in part] for part in parts]
    means, samples = [math.fsum(part) / len(part) for part in shares], sum(map(len, shares))
    graded = any(one not in (0, 1) for part in shares for one in part)
    found = bootstrapped_share(means) if graded else share(means, samples=samples)
    return Estimate(value=rewards.reward(found.value), low=rewards.reward(found.low), high=rewards.reward(found.high))


def evaluate(judgements: Iterable[ScoredSample], rewards: RewardRange = RewardRange()) -> EvaluationResult:
    """Aggregate of all samples of an evaluation, in any order. Raises ``ValueError`` if there are none."""
    parts = by_problem(judgements)
    everything = [judgement for part in parts.values() for judgement in part]
    outcomes = [judgement.outcome for judgement in everything]
    rates = [sum(j.outcome is Outcome.CORRECT for j in part) / len(part) for part in parts.values()]
    return EvaluationResult(
        problems=len(parts),
        samples=len(everything),
        correct=outcomes.count(Outcome.CORRECT),
        wrong=outcomes.count(Outcome.WRONG),
        unknown=outcomes.count(Outcome.UNKNOWN),
        truncated=sum(judgement.truncated for judgement in everything),
        unanswered=sum(judgement.answer is None for judgement in everything),
        mean_length=sum(judgement.length for judgement in everything) / len(everything),
        entropy=math.fsum(j.entropy_sum for j in everything) / max(1, sum(j.length for j in everything)),
        all_correct=rates.count(1.0),
        all_wrong=rates.count(0.0),
        accuracy=math.fsum(rates) / len(rates),
        reward=mean_reward(parts.values(), rewards),
        effective_samples=effective_samples(rates, samples=len(everything)),
        oldest_version=min(judgement.oldest_version for judgement in everything),
        newest_version=max(judgement.newest_version for judgement in everything),
    )


def difference(before: EvaluationResult, after: EvaluationResult) -> tuple[float, float, float]:
    """(after - before, low, high): the gain in accuracy with Newcombe's 95 % interval.

    The two are treated as independent; they share their problems, so the true interval is narrower.
    """
    gain, low, high = gain_of(before.estimate, after.estimate)
    return gain, max(-1.0, low), min(1.0, high)


def gain_of(before: Estimate, after: Estimate) -> tuple[float, float, float]:
    """(after - before, low, high) of any two means, by the same interval, which is not cut at ±1."""
    gain = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return gain, gain - down, gain + up


class ComparisonRow(NamedTuple):
    """One line of the before/after table, as text."""

    name: str
    before: str
    after: str
    change: str


def comparison(before: EvaluationResult, after: EvaluationResult) -> list[ComparisonRow]:
    """Rows of the before/after table: accuracy with intervals, the mean reward where it is something else, then shares and lengths."""
    rows = [_means("held-out accuracy", before.estimate, after.estimate, difference(before, after))]
    if any(result.reward.value != result.accuracy for result in (before, after)):
        rows.append(_means("held-out reward", before.reward, after.reward, gain_of(before.reward, after.reward)))
    for name, value in (("without a box", "unanswered"), ("answers unknown", "unknown"), ("responses cut off", "truncated")):
        b, a = getattr(before, value) / before.samples, getattr(after, value) / after.samples
        rows.append(ComparisonRow(name, f"{b:.1%}", f"{a:.1%}", f"{100 * (a - b):+.1f} points"))
    b, a = before.mean_length, after.mean_length
    return [*rows, ComparisonRow("mean length (tokens)", f"{b:.1f}", f"{a:.1f}", f"{a - b:+.1f}")]


def _means(name: str, before: Estimate, after: Estimate, change: tuple[float, float, float]) -> ComparisonRow:
    gain, low, high = change
    return ComparisonRow(name, str(before), str(after), f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]")
