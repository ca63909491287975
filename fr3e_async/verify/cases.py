"""Pairs of reference answer and prediction in a file, their verdicts, and the table of how often those agree with labels."""

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from fr3e_async.config import RewardConfig, VerifierPoolConfig
from fr3e_async.config.reward import reward_terms
from fr3e_async.errors import DataError, aligned
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Verdict
from fr3e_async.verify.answers import NO_ANSWER, Kind, answer_of, reference_of
from fr3e_async.verify.pool import Question, VerifierPool
from fr3e_async.verify.rewards import MATH

_OURS = frozenset(
    {"id", "gold", "prediction", "kind", "correct", "source", "label_by", "category", "problem", "length", "finish", "exact"}
)
_COMMIT = re.compile(r"@[0-9a-f]{7,40}\b.*")  # github:owner/name@commit:path → github:owner/name


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """One row. *Example*: ``LabelledCase(id="7", reference="1/2", prediction="\\\\boxed{0.5}", kind="full", correct=True)``."""

    id: str
    reference: str
    prediction: str
    kind: Kind  # see ``answers.answer_of``
    correct: bool | None = None  # a label; None: nobody says
    source: str = ""
    label_by: str = ""  # who says
    category: str = ""
    problem: str = ""  # for a user's reward, as all below
    length: int | None = None  # tokens
    finish: str = "stop"
    columns: dict[str, Any] = field(default_factory=dict)  # all that the row holds besides


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCase:
    """A case with its verdict and how long it took."""

    case: LabelledCase
    verdict: Verdict
    time_s: float

    @property
    def is_correct(self) -> bool:
        return self.verdict.outcome is Outcome.CORRECT

    def row(self) -> dict[str, Any]:
        """Return the case and its verdict as one JSON object, as ``fr3e verify --json`` writes it."""
        verdict, case = self.verdict, self.case
        return {
            "id": case.id,
            "source": case.source,
            "category": case.category,
            "correct": case.correct,
            "outcome": verdict.outcome.value,
            "reason": verdict.reason,
            "score": verdict.reward,
            "attempts": verdict.attempts,
            "time_s": round(self.time_s, 5),
        }


def read_cases(path: Path) -> list[LabelledCase]:
    """Read the rows of a JSONL file; each needs ``gold`` and ``prediction``. ``DataError`` names file and line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    cases = [_case(line, f"{path}:{number}", number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not cases:
        raise DataError(f"{path}: the file is empty, it holds no cases")
    return cases


def _case(line: bytes, source: str, number: int) -> LabelledCase:
    try:
        row = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{source}: not JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{source}: a JSON object was expected, got {type(row).__name__}")
    reference, prediction = (_text(row, field, source) for field in ("gold", "prediction"))
    kind: Any = row.get("kind") or ("full" if "\\boxed" in prediction else "bare")
    if kind not in get_args(Kind):
        raise DataError(f"{source}: kind must be bare, raw or full, got {kind!r}")
    correct = row.get("correct")
    if not (correct is None or isinstance(correct, bool)):
        raise DataError(f"{source}: correct must be true or false, got {correct!r}")
    return LabelledCase(
        id=str(row.get("id", number)),
        reference=reference,
        prediction=prediction,
        kind=kind,
        correct=correct,
        source=str(row.get("source") or ""),
        label_by=str(row.get("label_by") or ""),
        category=str(row.get("category") or ""),
        problem=str(row.get("problem") or ""),
        length=row.get("length"),
        finish=row.get("finish", "stop"),
        columns={name: value for name, value in row.items() if name not in _OURS},
    )


def _text(row: dict[str, Any], field: str, source: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{source}: no text in field {field!r}; the row has {', '.join(sorted(map(repr, row))) or 'no fields'}")
    return str(value)


def report(judged: Sequence[JudgedCase], *, rewards: bool = False) -> str:
    """Counts by source, agreement where there are labels; the same by label and kind, and by category; reasons of what is unknown.
    ``rewards``: the mean reward too."""
    parts = [_table("source", judged, lambda case: _COMMIT.sub("", case.source) or "-")]
    known = [j.verdict.reward for j in judged if j.verdict.reward is not None]
    if rewards:
        mean = f"{math.fsum(known) / len(known):.4g}" if known else "-"
        parts.append(
            f"mean reward: {mean}, of {len(known)} that are known"
            + (f"; {len(judged) - len(known)} unknown" * (len(known) < len(judged)))
        )
    if any(j.case.label_by for j in judged):
        parts.append(_table("label, kind", judged, lambda case: f"{case.label_by or '-'}, {case.kind}"))
    if any(j.case.category for j in judged):
        parts.append(_table("category", judged, lambda case: case.category or "-"))
    unknown = Counter(j.verdict.reason for j in judged if j.verdict.outcome is Outcome.UNKNOWN)
    if unknown:
        parts.append("unknown: " + ", ".join(f"{reason} {count}" for reason, count in unknown.most_common()))
    return "\n\n".join(parts)


def _table(name: str, judged: Sequence[JudgedCase], key: Callable[[LabelledCase], str]) -> str:
    groups: dict[str, list[JudgedCase]] = {}
    for one in sorted(judged, key=lambda one: key(one.case)):
        groups.setdefault(key(one.case), []).append(one)
    labelled = any(one.case.correct is not None for one in judged)
    head = [name, "cases", "correct", "policy", "wrong", "unproven", "unanswered", "unknown"] + [
        "agree",
        "agree %",
        "false +",
        "false -",
    ] * labelled
    lines = [head, *([group, *_counts(members, labelled)] for group, members in groups.items())]
    if len(groups) > 1:
        lines.append(["all", *_counts(judged, labelled)])
    return "\n".join(aligned(lines))


def _counts(judged: Sequence[JudgedCase], labelled: bool) -> list[str]:
    """Cells of one line; "policy" is part of correct, "unproven" and "unanswered" are parts of wrong.

    A verdict agrees with a label if both are correct or both wrong. An unknown one never agrees: it is a "false -" where the label is correct.
    """
    by_outcome = Counter(j.verdict.outcome for j in judged)
    by_policy = sum(j.is_correct and j.verdict.reason.startswith("policy") for j in judged)
    unproven = sum(j.verdict.outcome is Outcome.WRONG and j.verdict.reason.startswith("unproven") for j in judged)
    unanswered = sum(j.verdict.outcome is Outcome.WRONG and j.verdict.reason == NO_ANSWER for j in judged)
    cells = [
        len(judged), by_outcome[Outcome.CORRECT], by_policy, by_outcome[Outcome.WRONG], unproven, unanswered, by_outcome[Outcome.UNKNOWN]
    ]  # fmt: skip
    if not labelled:
        return [str(cell) for cell in cells]
    known = [j for j in judged if j.case.correct is not None]
    agree = sum(j.is_correct == j.case.correct and j.verdict.outcome is not Outcome.UNKNOWN for j in known)
    false_positives = sum(j.is_correct and not j.case.correct for j in known)
    false_negatives = sum(not j.is_correct and bool(j.case.correct) for j in known)
    share = f"{100 * agree / len(known):.1f}" if known else "-"
    return [*map(str, cells), str(agree), share, str(false_positives), str(false_negatives)]


# ---- judging them ----


def judge_cases(
    cases: Sequence[LabelledCase], config: VerifierPoolConfig, terms: Sequence[RewardConfig] = reward_terms(MATH, ())
) -> list[JudgedCase]:
    """Judge all cases, one at a time for each worker, so that each has its own time; with batches it is the mean."""
    with VerifierPool(config, terms) as pool:
        math_alone = [term.function for term in terms] == [MATH]
        if math_alone:  # the first case shall not wait for imports
            pool.judge_answer("\\frac12", "0.5")

        def one(case: LabelledCase) -> JudgedCase:
            started = time.perf_counter()
            if math_alone:
                verdict = pool.judge_answer(answer_of(case.prediction, case.kind), reference_of(case.reference, case.kind))
            else:
                verdict = pool.judge(*_question(case))
            return JudgedCase(case=case, verdict=verdict, time_s=time.perf_counter() - started)

        if any(term.batch for term in terms):
            started = time.perf_counter()
            verdicts = asyncio.run(pool.judge_many(map(_question, cases)))
            each = (time.perf_counter() - started) / len(cases)
            return [JudgedCase(case=case, verdict=verdict, time_s=each) for case, verdict in zip(cases, verdicts, strict=True)]
        with ThreadPoolExecutor(config.workers) as threads:
            return list(threads.map(one, cases))


def _question(case: LabelledCase) -> Question:
    return Question(case.prediction, case.reference, case.problem, length=case.length, finish=case.finish, columns=case.columns)
