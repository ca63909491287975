"""The scores of one evaluation of one benchmark: accuracy, pass@k, maj@k, lengths, and what went wrong. Pure.

The definitions are ``docs/evaluation.md``'s. An unknown verdict counts as not correct; the number of unknowns is reported.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from fr3e_async.config.reward import RewardRange
from fr3e_async.errors import aligned
from fr3e_async.evaluation.accuracy import ScoredSample, by_problem, mean_reward
from fr3e_async.evaluation.estimators import Estimate, bootstrap, bootstrapped_share, budgets, majority, pass_at_k, share
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Prompt

LETTERS = {Outcome.CORRECT: "r", Outcome.WRONG: "w", Outcome.UNKNOWN: "u"}
_OUTCOMES = {letter: outcome for outcome, letter in LETTERS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Estimates over problems, each with a 95 % interval; counts are of samples unless named otherwise."""

    problems: int
    samples: int
    k: int  # samples of the problem that has fewest
    correct: int
    wrong: int
    unknown: int
    avg: Estimate  # avg@k: mean over problems of the share of correct samples
    reward: Estimate  # mean reward, in its declared range
    pass_at: dict[int, Estimate]  # pass@k' for k' = 1, 2, 4, … and k
    maj: Estimate  # maj@k: share of problems whose most frequent answer is correct
    length: Estimate  # tokens of a response, mean over problems
    length_correct: float | None  # tokens, mean over the correct samples; None: there are none
    length_wrong: float | None  # the same over all others
    truncated: Estimate  # share of samples that ran into their budget
    unknown_share: Estimate
    unanswered: Estimate  # share of samples without an answer
    entropy: float  # nats a token
    all_correct: int  # problems with every sample correct
    all_wrong: int  # problems with no sample correct
    oldest_version: int  # weight versions that sampled the responses
    newest_version: int

    def record(self) -> dict[str, Any]:
        """Return the scores as plain JSON: ``accuracy``, ``low`` and ``high`` are avg@k, every other estimate a mapping of value, low, high."""
        data = asdict(self)
        avg = data.pop("avg")
        data["pass_at"] = {str(k): estimate for k, estimate in data["pass_at"].items()}
        return {"accuracy": avg["value"], "low": avg["low"], "high": avg["high"], **data}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Back from ``record``, or a mapping that holds more. Raises ``KeyError`` or ``TypeError`` if it is none."""
        estimates = {"value", "low", "high"}
        found: dict[str, Any] = {
            name: Estimate(**value) if isinstance(value, dict) and set(value) == estimates else value
            for name in (field.name for field in fields(cls))
            if name not in ("avg", "pass_at")
            for value in [record[name]]
        }
        avg = Estimate(value=record["accuracy"], low=record["low"], high=record["high"])
        return cls(**found, avg=avg, pass_at={int(k): Estimate(**value) for k, value in record["pass_at"].items()})


def score(judgements: Iterable[ScoredSample], rewards: RewardRange = RewardRange()) -> Scores:
    """The scores of all samples of one benchmark, in any order. Raises ``ValueError`` if there are none."""
    parts = list(by_problem(judgements).values())
    everything = [one for part in parts for one in part]
    samples, k = len(everything), min(map(len, parts))
    outcomes = [one.outcome for one in everything]
    counts = [sum(map(_is_correct, part)) for part in parts]

    def share_of(says: Callable[[ScoredSample], bool]) -> Estimate:
        return share([sum(map(says, part)) / len(part) for part in parts], samples=samples)

    return Scores(
        problems=len(parts),
        samples=samples,
        k=k,
        correct=outcomes.count(Outcome.CORRECT),
        wrong=outcomes.count(Outcome.WRONG),
        unknown=outcomes.count(Outcome.UNKNOWN),
        avg=share_of(_is_correct),
        reward=mean_reward(parts, rewards),
        pass_at={
            at: share([pass_at_k(len(p), correct, at) for p, correct in zip(parts, counts, strict=True)], samples=samples)
            for at in budgets(k)
        },
        maj=bootstrapped_share([majority((one.answer, _is_correct(one)) for one in part) for part in parts]),
        length=bootstrap([_mean([one.length for one in part]) for part in parts]),
        length_correct=_mean_or_none([one.length for one in everything if _is_correct(one)]),
        length_wrong=_mean_or_none([one.length for one in everything if not _is_correct(one)]),
        truncated=share_of(lambda one: one.truncated),
        unknown_share=share_of(lambda one: one.outcome is Outcome.UNKNOWN),
        unanswered=share_of(lambda one: one.answer is None),
        entropy=math.fsum(one.entropy_sum for one in everything) / max(1, sum(one.length for one in everything)),
        all_correct=sum(correct == len(part) for correct, part in zip(counts, parts, strict=True)),
        all_wrong=counts.count(0),
        oldest_version=min(one.oldest_version for one in everything),
        newest_version=max(one.newest_version for one in everything),
    )


def _is_correct(one: ScoredSample) -> bool:
    return one.outcome is Outcome.CORRECT


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One finished evaluation of one set of problems, as the control loop reports it."""

    label: str  # before, step <n>, after
    name: str  # of the set
    digest: str  # of its problems; "": nobody has made one
    judgements: Sequence[ScoredSample]
    scores: Scores
    took_s: float
    rewards: RewardRange = RewardRange()

    def record(self) -> dict[str, Any]:
        """What evaluations.jsonl keeps of it: digest, duration and ``Scores.record``."""
        digest = {"digest": self.digest} if self.digest else {}
        return {**digest, "took_s": round(self.took_s, 3), **self.scores.record()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return one ``problem_row`` for each problem, with all its samples, as JSON objects."""
        return [problem_row(problem, samples) for problem, samples in by_problem(self.judgements).items()]

    def samples(self, problems: Sequence[Prompt], count: int) -> list[list[str]]:
        """The first problems with kept responses, as rows for a person: problem, reference answer, response, verdict, reward."""
        first = {one.problem: one for one in reversed(self.judgements) if one.text is not None}
        told = [(prompt, first[prompt.uid]) for prompt in problems if prompt.uid in first]
        return [[p.text, p.reference, one.text or "", one.outcome.value, f"{one.reward:g}"] for p, one in told[:count]]

    def __str__(self) -> str:
        reward = f", reward {self.scores.reward}" if self.scores.reward.value != self.scores.avg.value else ""
        shares = ((self.scores.unanswered.value, "without a box"), (self.scores.unknown_share.value, "unknown"))
        return f"{self.label}: {self.scores.avg}{reward}" + "".join(f", {part:.1%} {name}" for part, name in shares if part)


# --- one row a problem -------------------------------------------------------------------------------------------------


def problem_row(problem: str, samples: Sequence[ScoredSample]) -> dict[str, Any]:
    """What is kept of a problem's samples, in order: ``outcomes`` one letter each (r, w, u), answers, lengths, cut-off ones;
    ``scores`` of a user's reward; the first ``responses`` as texts."""
    scores = {"scores": [one.score for one in samples]} if any(one.score is not None for one in samples) else {}
    texts = [one.text for one in samples if one.text is not None]  # of the first ones
    return {
        "problem": problem,
        "outcomes": "".join(LETTERS[one.outcome] for one in samples),
        **scores,
        **({"responses": texts} if texts else {}),
        "answers": [one.answer for one in samples],
        "lengths": [one.length for one in samples],
        "truncated": [i for i, one in enumerate(samples) if one.truncated],
        "entropy_sums": [round(one.entropy_sum, 4) for one in samples],
        "versions": [min(one.oldest_version for one in samples), max(one.newest_version for one in samples)],
    }


def samples_of(row: dict[str, Any]) -> list[ScoredSample]:
    """Back from ``problem_row``. Raises ``KeyError``, ``TypeError`` or ``ValueError`` if it is none."""
    oldest, newest = row["versions"]
    count = len(row["outcomes"])
    texts = [*row.get("responses", ()), *[None] * count][:count]
    columns = (row["outcomes"], row["answers"], row["lengths"], row["entropy_sums"], row.get("scores", [None] * count), texts)
    return [
        ScoredSample(
            problem=row["problem"],
            outcome=_OUTCOMES[letter],
            answer=answer,
            score=score,
            text=text,
            length=length,
            entropy_sum=entropy,
            truncated=index in row["truncated"],
            oldest_version=oldest,
            newest_version=newest,
        )
        for index, (letter, answer, length, entropy, score, text) in enumerate(zip(*columns, strict=True))
    ]


# ---- Scores of several benchmarks as a table of text for a console ----

HEAD = (
    "benchmark", "problems", "k", "avg@k", "reward", "pass@k", "maj@k", "tokens", "no box", "cut off", "unknown", "all correct", "all wrong",
)  # fmt: skip


def scores_table(scores: Mapping[str, Scores]) -> str:
    """One line a benchmark, in percent with 95 % intervals; below them the mean over benchmarks if there are several.

    The mean reward is there where it is not the accuracy, in its own unit.
    """
    rows: list[tuple[str, ...]] = [HEAD, *(_row(name, its) for name, its in scores.items())]
    if len(scores) > 1:
        mean = sum(its.avg.value for its in scores.values()) / len(scores)
        rows.append(("mean", "", "", f"{100 * mean:.1f}", *[""] * (len(HEAD) - 4)))
    if all(its.reward.value == its.avg.value for its in scores.values()):
        rows = [(*row[:4], *row[5:]) for row in rows]
    return "\n".join(aligned(rows))


def _row(name: str, scores: Scores) -> tuple[str, ...]:
    return (
        name,
        str(scores.problems),
        str(scores.k),
        _percent(scores.avg),
        str(scores.reward),
        _percent(scores.pass_at[scores.k]),
        _percent(scores.maj),
        f"{scores.length.value:.0f}",
        f"{100 * scores.unanswered.value:.1f}",
        f"{100 * scores.truncated.value:.1f}",
        f"{100 * scores.unknown_share.value:.1f}",
        str(scores.all_correct),
        str(scores.all_wrong),
    )


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
