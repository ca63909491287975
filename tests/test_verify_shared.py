"""The judge against public graded answers and against answers made to break a verifier. Needs the shared data folder.

``python tests/test_verify_shared.py`` measures math-verify in four configurations on the same pairs (docs/verifier.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Verdict
from fr3e_async.verify import answers
from fr3e_async.verify.pool import VerifierPool

SHARED = Path(os.environ.get("FR3E_SHARED") or Path(__file__).parents[2] / "shared")
CASES = SHARED / "data" / "verifier"
DOC = Path(__file__).parents[1] / "docs" / "verifier.md"

# Right verdicts of math-verify on rows labelled right, each the best of its configurations: ``python tests/test_verify_shared.py``.
MATH_VERIFY = {"Qwen": 382, "MathCoder": 549, "NeMo-Skills": 58, "verifiers": 13}
MATH_VERIFY_REST = 1214  # of all of these and the raw rows, in the best single configuration
WRONG_LABEL = "r2-variants-e#76"  # says that ln(1/e) is not -1
EXACT, PEOPLE, RAW = "exact match", "people and test suites", "raw"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not CASES.is_dir(), reason=f"no verifier cases in {CASES}; set FR3E_SHARED to the shared folder"),
]

Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


def group(row: Row) -> str:
    """Who said what is correct, and for the rows of math-verify's own tests that they are raw."""
    if row["kind"] == "raw":
        return RAW
    if not row["label_by"].startswith("auto"):
        return PEOPLE
    return EXACT if "exact match" in row["label_by"] else re.split(r"[ (]+", row["label_by"])[1]


def judged(cases: list[Row]) -> list[tuple[Row, Verdict]]:
    """Each row with its verdict, as the command line gives it."""
    pairs = [(answers.answer_of(row["prediction"], row["kind"]), answers.reference_of(row["gold"], row["kind"])) for row in cases]
    with VerifierPool(VerifierPoolConfig(workers=2, wall_limit_s=240.0)) as pool:
        verdicts = [pool.judge_answer(*pair) for pair in pairs]
    return list(zip(cases, verdicts, strict=True))


@pytest.fixture(scope="module")
def graded() -> dict[str, list[tuple[Row, Verdict]]]:
    groups: dict[str, list[tuple[Row, Verdict]]] = {}
    for row, verdict in judged(rows("cases.jsonl")):
        groups.setdefault(group(row), []).append((row, verdict))
    return groups


def is_correct(verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.CORRECT


def test_gsm8k_verdicts_agree_with_exact_match(graded: dict[str, list[tuple[Row, Verdict]]]) -> None:
    assert len(graded[EXACT]) > 2000
    assert [row["id"] for row, verdict in graded[EXACT] if is_correct(verdict) != row["correct"]] == []


def test_people_and_test_suites_are_contradicted_only_where_the_doc_says_so(graded: dict[str, list[tuple[Row, Verdict]]]) -> None:
    pairs = graded[PEOPLE]
    misses = {
        (row["id"], verdict.outcome.value, "correct" if row["correct"] else "wrong")
        for row, verdict in pairs
        if is_correct(verdict) != row["correct"]
    }
    table = (
        DOC.read_text(encoding="utf-8").partition("<!-- begin of the misses -->")[2].partition("<!-- end of the misses -->")[0]
    )
    listed = {
        (int(number), outcome, label) for number, label, outcome in re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \|", table, re.M)
    }
    assert misses == listed
    assert 1 - len(misses) / len(pairs) >= 0.91


def test_no_fewer_right_verdicts_than_math_verify_on_the_rest(graded: dict[str, list[tuple[Row, Verdict]]]) -> None:
    rights = {name: sum(is_correct(verdict) and row["correct"] for row, verdict in pairs) for name, pairs in graded.items()}
    assert {name: rights[name] for name, least in MATH_VERIFY.items() if rights[name] < least} == {}
    assert sum(rights[name] for name in (*MATH_VERIFY, RAW)) >= MATH_VERIFY_REST
    assert sum(rights[name] for name in (*MATH_VERIFY, RAW, PEOPLE)) >= 1429
    assert sum(is_correct(verdict) and not row["correct"] for pairs in graded.values() for row, verdict in pairs) <= 22


def test_pairs_of_the_second_round_agree_and_none_that_is_wrong_is_correct() -> None:
    """Wrong and unknown both count against a pair that is labelled right."""
    cases = judged(rows("round2.jsonl"))
    right = [verdict for row, verdict in cases if row["correct"]]
    assert sum(map(is_correct, right)) / len(right) >= 0.97
    assert {row["id"] for row, verdict in cases if is_correct(verdict) and not row["correct"]} == {WRONG_LABEL}
    assert sum(verdict.outcome is Outcome.UNKNOWN for _, verdict in cases) <= 0.02 * len(cases)


def test_adversarial_answers_come_back() -> None:
    """Through the whole pool, as responses of a run: no hang, no crash, and no accepted trick."""
    cases = rows("adversarial.jsonl")
    with VerifierPool(VerifierPoolConfig(workers=2, cpu_limit_s=1.0, wall_limit_s=240.0)) as pool:
        verdicts = asyncio.run(pool.judge_many([(row["prediction"], row["gold"]) for row in cases]))
        assert pool.judge(r"\boxed{\frac12}", "0.5").outcome is Outcome.CORRECT  # it still works
    assert len(verdicts) == len(cases)
    fooled = {row["name"] for row, verdict in zip(cases, verdicts, strict=True) if is_correct(verdict) and not row["correct"]}
    assert fooled == {"degree vs rad", "list vs thousands", "pi 3.14159"}  # all in the category "format", all rules
    assert not any("crashed" in verdict.reason for verdict in verdicts)


@pytest.mark.slow
def test_mutated_references_are_looked_at() -> None:
    """The benchmark at its smallest; `docs/LOG.md` has 2,000 pairs."""
    script = Path(__file__).parents[1] / "benchmarks" / "verifier_mutations.py"
    command = [sys.executable, str(script), str(SHARED / "data"), "--quick", "--pairs", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "pairs: 100" in done.stdout
    assert "harmless: {'correct': 100}" in done.stdout


# What math-verify does by itself, for the doc.
CONFIGURATIONS = ("as they are", "gold boxed", "both boxed", "all but raw boxed")


def _boxed(text: str) -> str:
    return text if "\\boxed" in text else "\\boxed{" + text.replace("$", "") + "}"


def _as_it_is(row: Row, configuration: str) -> bool:
    return configuration == "as they are" or (configuration == "all but raw boxed" and row["kind"] == RAW)


def _texts(row: Row, configuration: str) -> tuple[str, str]:
    gold, prediction = row["gold"], row["prediction"]
    if _as_it_is(row, configuration):
        return gold, prediction
    alone = row["kind"] != "full" and configuration != "gold boxed"
    return _boxed(gold), _boxed(prediction) if alone else prediction


def _math_verify(task: tuple[Row, str]) -> tuple[str, bool, bool]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    def give_up(*_: object) -> None:
        raise TimeoutError

    row, configuration = task
    gold, prediction = _texts(row, configuration)
    latex = LatexExtractionConfig() if _as_it_is(row, configuration) else LatexExtractionConfig(boxed_match_priority=0)
    targets = (latex, ExprExtractionConfig())
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its time-outs are off
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    try:
        readings = [parse(text, targets, parsing_timeout=None) for text in (gold, prediction)]
        found = bool(verify(*readings, timeout_seconds=None))
    except TimeoutError:
        found = False
    finally:
        signal.alarm(0)
    return group(row), found, row["correct"]


def main() -> None:
    cases = [row for row in rows("cases.jsonl") if group(row) != EXACT]
    with multiprocessing.Pool(2) as pool:
        for configuration in CONFIGURATIONS:
            found = pool.map(_math_verify, [(row, configuration) for row in cases], chunksize=16)
            rights = Counter(name for name, right, correct in found if right and correct)
            false = sum(right and not correct for _, right, correct in found)
            rest = sum(rights[name] for name in (*MATH_VERIFY, RAW))
            print(f"{configuration}: {dict(sorted(rights.items()))}, the rest together {rest}, false right {false}")


if __name__ == "__main__":
    main()
