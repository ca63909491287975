"""Benchmarks of the shared data folder through the pipeline: read, answered, judged, scored. Labels are those that are published.

``python tests/test_evaluation_shared.py`` prints the table of docs/evaluation.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.evaluation.accuracy import ScoredSample
from fr3e_async.evaluation.benchmarks import BENCHMARKS
from fr3e_async.evaluation.scores import Scores, score
from fr3e_async.evaluation.suite import Item, read_benchmark
from fr3e_async.outcomes import Outcome
from fr3e_async.verify import answers
from fr3e_async.verify.answers import answer_class
from fr3e_async.verify.margins import within
from fr3e_async.verify.pool import VerifierPool

SHARED = Path(os.environ.get("FR3E_SHARED") or Path(__file__).parents[2] / "shared") / "data"
GSM8K = SHARED / "gsm8k" / "test.jsonl"
FILES = {
    "olympiadbench": SHARED / "olympiadbench" / "test.jsonl",
    "collegemath": SHARED / "college_math" / "test.jsonl",
    "theoremqa": SHARED / "theoremqa" / "test.jsonl",
    "deepmath": SHARED / "deepmath" / "train.jsonl",
}

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not GSM8K.is_file(), reason=f"no benchmarks in {SHARED}; set FR3E_SHARED to the shared folder"),
]

Response = Callable[[str, str], str]  # of a published solution and its gold


def _boxed(solution: str, answer: str) -> str:
    """A published solution as the pipeline wants it: the answer in a box at the end."""
    return re.sub(r"####.*", lambda _: f"\nThe answer is \\boxed{{{answer}}}.", solution, flags=re.DOTALL)


def _intermediate(solution: str, gold: str) -> str:
    """The solution with another number of its own in the box: the first one that it computes."""
    computed = [n for n in re.findall(r"=(-?\d+)>>", solution) if n != gold]
    return _boxed(solution, computed[0] if computed else str(int(gold) + 1))


CORRECT: dict[str, Response] = {
    "as published": lambda solution, gold: _boxed(solution, gold),
    "in dollars, with separators": lambda solution, gold: _boxed(solution, f"\\${int(gold):,}"),
    "with decimals": lambda solution, gold: _boxed(solution, f"{gold}.00"),
    "after a thought": lambda solution, gold: f"<think>first \\boxed{{{int(gold) + 1}}}</think>" + _boxed(solution, gold),
}
WRONG: dict[str, Response] = {
    "one more": lambda solution, gold: _boxed(solution, str(int(gold) + 1)),
    "an intermediate result": _intermediate,
    "ten times as much": lambda solution, gold: _boxed(solution, f"{gold}0" if gold != "0" else "10"),
    "no box": lambda solution, gold: solution,
    "cut off in the box": lambda solution, gold: _boxed(solution, gold).rpartition("}")[0],
    "two answers": lambda solution, gold: _boxed(solution, f"{gold}, {int(gold) + 1}"),
}


def scored(items: list[Item], responses: list[list[str]]) -> Scores:
    """Several responses of each item, through the judge and the aggregate of an evaluation."""
    questions = [(text, item.reference.text) for item, texts in zip(items, responses, strict=True) for text in texts]
    with VerifierPool(VerifierPoolConfig(workers=2, wall_limit_s=240.0)) as pool:
        verdicts = iter(asyncio.run(pool.judge_many(questions)))
    judgements = []
    for item, texts in zip(items, responses, strict=True):
        for text in texts:
            outcome, said = next(verdicts).outcome, answers.final_answer(text)
            answer = None if said is None else answer_class(said)
            if outcome is not Outcome.CORRECT and within(said, item.reference.text, item.reference.margins):
                outcome = Outcome.CORRECT
            judgements.append(
                ScoredSample(
                    problem=item.uid, outcome=outcome, answer=answer, length=len(text), entropy_sum=0.0, truncated=False,
                    oldest_version=0, newest_version=0,
                )
            )  # fmt: skip
    return score(judgements)


def gsm8k() -> tuple[list[Item], list[str]]:
    """The problems, and their published solutions."""
    solutions = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    return read_benchmark(BENCHMARKS["gsm8k"], path=str(GSM8K)), solutions


def variant(items: list[Item], solutions: list[str], make: Response) -> Scores:
    return scored(items, [[make(solution, item.reference.text)] for item, solution in zip(items, solutions, strict=True)])


def test_all_of_gsm8k_is_read() -> None:
    items, solutions = gsm8k()
    assert len(items) == len({item.uid for item in items}) == BENCHMARKS["gsm8k"].problems
    by_hand = [solution.rpartition("####")[2].strip().replace(",", "") for solution in solutions]
    assert [item.reference.text for item in items] == by_hand


@pytest.mark.parametrize("name", CORRECT)
def test_published_solutions_are_right_however_their_answer_is_written(name: str) -> None:
    found = variant(*gsm8k(), CORRECT[name])
    assert (found.correct, found.wrong, found.unknown) == (1319, 0, 0)
    assert (found.avg.value, found.maj.value, found.all_correct) == (1.0, 1.0, 1319)


@pytest.mark.parametrize("name", WRONG)
def test_published_solutions_with_another_answer_are_wrong(name: str) -> None:
    found = variant(*gsm8k(), WRONG[name])
    assert (found.correct, found.unknown) == (0, 0)
    assert found.maj.value == 0.0
    assert found.unanswered.value == (1.0 if name in ("no box", "cut off in the box") else 0.0)


def test_scores_of_mixed_samples_are_what_the_labels_say() -> None:
    """5 samples a problem, 3 of them right and alike for two thirds of the problems, 1 right for the others: by hand."""
    items, solutions = gsm8k()
    kinds = [CORRECT["as published"], WRONG["one more"], WRONG["no box"], CORRECT["with decimals"], CORRECT["as published"]]
    few = [CORRECT["as published"], WRONG["one more"], WRONG["one more"], WRONG["no box"], WRONG["no box"]]
    texts = [
        [make(solution, item.reference.text) for make in (kinds if i % 3 else few)]
        for i, (item, solution) in enumerate(zip(items, solutions, strict=True))
    ]
    found, many = scored(items, texts), sum(1 for i in range(1319) if i % 3)
    assert found.avg.value == pytest.approx((3 * many + (1319 - many)) / 5 / 1319)
    assert found.pass_at[5].value == 1.0
    assert found.pass_at[2].value == pytest.approx((many * 0.9 + (1319 - many) * 0.4) / 1319)
    assert found.maj.value == pytest.approx(many / 1319)
    assert found.unanswered.value == pytest.approx((many + 2 * (1319 - many)) / 5 / 1319)


@pytest.mark.parametrize(
    ("name", "problems"), [("olympiadbench", 675), ("collegemath", 1260), ("theoremqa", 747), ("deepmath", 30)]
)
def test_each_gold_is_right_as_an_answer(name: str, problems: int) -> None:
    items = read_benchmark(BENCHMARKS[name], path=str(FILES[name]))
    found = scored(items, [[f"\\boxed{{{item.reference.text}}}"] for item in items])
    assert (found.problems, found.correct) == (problems, problems)


def graded() -> dict[str, list[dict]]:
    """Graded responses by who graded them, each as the pipeline wants it: what it states as its answer in a box at its end."""
    rows = [json.loads(line) for line in (SHARED / "verifier" / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    groups: dict[str, list[dict]] = {}
    for row in rows:
        if row["kind"] == "full" and row["label_by"].startswith("auto"):
            stated = answers.answer_of(row["prediction"], "full")
            plain = stated is not None and "\\boxed" not in row["prediction"]
            response = f"{row['prediction']}\n\\boxed{{{stated}}}" if plain else row["prediction"]
            groups.setdefault(row["label_by"], []).append({**row, "response": response})
    return groups


def agreement(rows: list[dict]) -> tuple[float, float, float]:
    """(accuracy by the labels, accuracy by the pipeline, share of responses where both say the same)."""
    with VerifierPool(VerifierPoolConfig(workers=2, wall_limit_s=240.0)) as pool:
        verdicts = asyncio.run(pool.judge_many([(row["response"], answers.reference_of(row["gold"])) for row in rows]))
    found = [verdict.outcome is Outcome.CORRECT for verdict in verdicts]
    labels = [bool(row["correct"]) for row in rows]
    same = sum(one == other for one, other in zip(found, labels, strict=True))
    return sum(labels) / len(rows), sum(found) / len(rows), same / len(rows)


def test_accuracy_by_the_pipeline_is_that_by_exact_match() -> None:
    rows = next(rows for name, rows in graded().items() if "exact match" in name)
    assert len(rows) > 2000
    labels, pipeline, same = agreement(rows)
    assert (pipeline, same) == (labels, 1.0)


@pytest.mark.slow
def test_accuracy_by_the_pipeline_is_near_that_of_other_graders() -> None:
    """MathCoder's labels are of the code that the model ran, not of its last box (docs/verifier.md), so its figure lies higher."""
    far = {"Qwen": 0.01, "verifiers": 0.01, "MathCoder": 0.05}
    groups = graded()
    for grader, most in far.items():
        labels, pipeline, _ = agreement(next(rows for name, rows in groups.items() if grader in name))
        assert abs(labels - pipeline) <= most, grader


def main() -> None:
    items, solutions = gsm8k()
    print("| 1,319 published GSM8K solutions, answer written | right | wrong | unknown |\n| --- | --- | --- | --- |")
    for name, make in {**CORRECT, **WRONG}.items():
        found = variant(items, solutions, make)
        print(f"| {name} | {found.correct} | {found.wrong} | {found.unknown} |")
    for name, path in FILES.items():
        its = read_benchmark(BENCHMARKS[name], path=str(path))
        found = scored(its, [[f"\\boxed{{{item.reference.text}}}"] for item in its])
        print(f"| {name}: each of {len(its)} golds as its own answer | {found.correct} | {found.wrong} | {found.unknown} |")
    print("\n| responses graded by | responses | right by the labels | right here | same |\n| --- | --- | --- | --- | --- |")
    for name, rows in sorted(graded().items()):
        labels, pipeline, same = agreement(rows)
        print(f"| {name.removeprefix('auto (').rstrip(')')} | {len(rows)} | {labels:.2%} | {pipeline:.2%} | {same:.2%} |")


if __name__ == "__main__":
    main()
