"""avg@k with its uncertainty, from judged samples; and before against after. Pure.

Knows nothing of engines, verifiers or files. An *unknown* verdict counts against accuracy: a benchmark has no samples to
leave out, and a model must not gain by answers that nobody can judge. The number of unknowns stands beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fr3e_async.algorithm.values import wilson
from fr3e_async.evaluation.estimators import effective_samples
from fr3e_async.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One judged sample of one problem."""

    problem: str
    outcome: Outcome
    length: int  # tokens of the response
    entropy_sum: float  # nats, over its tokens; as far as the engines know it
    truncated: bool  # it ran into its budget
    oldest_version: int
    newest_version: int
    answer: str | None = None  # in its normal form; equal texts are the same answer. None: none was given, or nobody read it


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What one evaluation found. Counts are of samples unless named otherwise."""

    problems: int
    samples: int
    right: int
    wrong: int
    unknown: int
    truncated: int
    mean_length: float  # tokens
    entropy: float  # nats a token: mean entropy of the sampling distribution
    all_right: int  # problems with every sample right
    all_wrong: int  # problems with no sample right
    accuracy: float  # avg@k: mean over problems of the share of right samples
    effective_samples: float  # independent samples that would be as informative; see ``effective_samples``
    oldest_version: int  # weight versions that sampled the responses
    newest_version: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy on problems like these."""
        return wilson(self.accuracy * self.effective_samples, self.effective_samples)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EvaluationResult:
        """From a mapping that holds at least the fields, e.g. an entry of the summary's ``evaluations``."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})


def by_problem(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """The samples of each problem, in the order of their first appearance. Raises ``ValueError`` if there are none."""
    parts: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        parts[judgement.problem].append(judgement)
    if not parts:
        raise ValueError("evaluation: no samples")
    return dict(parts)


def evaluate(judgements: Iterable[Judgement]) -> EvaluationResult:
    """Aggregate of all samples of an evaluation, in any order. Raises ``ValueError`` if there are none."""
    parts = by_problem(judgements)
    everything = [judgement for part in parts.values() for judgement in part]
    outcomes = [judgement.outcome for judgement in everything]
    rates = [sum(j.outcome is Outcome.RIGHT for j in part) / len(part) for part in parts.values()]
    return EvaluationResult(
        problems=len(parts),
        samples=len(everything),
        right=outcomes.count(Outcome.RIGHT),
        wrong=outcomes.count(Outcome.WRONG),
        unknown=outcomes.count(Outcome.UNKNOWN),
        truncated=sum(judgement.truncated for judgement in everything),
        mean_length=sum(judgement.length for judgement in everything) / len(everything),
        entropy=math.fsum(j.entropy_sum for j in everything) / max(1, sum(j.length for j in everything)),
        all_right=rates.count(1.0),
        all_wrong=rates.count(0.0),
        accuracy=math.fsum(rates) / len(rates),
        effective_samples=effective_samples(rates, samples=len(everything)),
        oldest_version=min(judgement.oldest_version for judgement in everything),
        newest_version=max(judgement.newest_version for judgement in everything),
    )


def difference(before: EvaluationResult, after: EvaluationResult) -> tuple[float, float, float]:
    """(after - before, low, high): the gain in accuracy with Newcombe's 95 % interval.

    The two are treated as independent; they share their problems, so the true interval is narrower.
    """
    gain = after.accuracy - before.accuracy
    (low_b, high_b), (low_a, high_a) = before.interval, after.interval
    down = math.hypot(after.accuracy - low_a, high_b - before.accuracy)
    up = math.hypot(high_a - after.accuracy, before.accuracy - low_b)
    return gain, max(-1.0, gain - down), min(1.0, gain + up)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One line of the before/after table, as text."""

    name: str
    before: str
    after: str
    change: str


def comparison(before: EvaluationResult, after: EvaluationResult) -> list[ComparisonRow]:
    """Rows of the before/after table: accuracy with intervals, then shares and lengths."""
    gain, low, high = difference(before, after)
    rows = [
        ComparisonRow(
            name="held-out accuracy",
            before=_with_interval(before.accuracy, *before.interval),
            after=_with_interval(after.accuracy, *after.interval),
            change=f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]",
        )
    ]
    for name, value in (("answers unknown", "unknown"), ("responses cut off", "truncated")):
        b, a = getattr(before, value) / before.samples, getattr(after, value) / after.samples
        rows.append(ComparisonRow(name=name, before=f"{b:.1%}", after=f"{a:.1%}", change=f"{100 * (a - b):+.1f} points"))
    lengths = (before.mean_length, after.mean_length)
    rows.append(
        ComparisonRow(
            name="mean length (tokens)",
            before=f"{lengths[0]:.1f}",
            after=f"{lengths[1]:.1f}",
            change=f"{lengths[1] - lengths[0]:+.1f}",
        )
    )
    return rows


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
