"""The scores of a benchmark from its samples, by hand; rows by problem there and back; the table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.config.reward import RewardRange
from fr3e_async.evaluation.accuracy import ScoredSample, evaluate
from fr3e_async.evaluation.scores import Evaluated, Scores, problem_row, samples_of, score, scores_table
from fr3e_async.outcomes import Outcome
from fr3e_async.verify.answers import answer_class

OUTCOMES = {"r": Outcome.CORRECT, "w": Outcome.WRONG, "u": Outcome.UNKNOWN}


def sample(problem: str, outcome: str, answer: str | None, *, length: int = 10, truncated: bool = False) -> ScoredSample:
    return ScoredSample(
        problem=problem, outcome=OUTCOMES[outcome], answer=answer, length=length, entropy_sum=length / 2, truncated=truncated,
        oldest_version=2, newest_version=4,
    )  # fmt: skip


SAMPLES = [
    sample("a", "r", "7", length=10),
    sample("a", "r", "7", length=20),
    sample("a", "w", "8", length=30),
    sample("a", "w", "9", length=40, truncated=True),
    sample("b", "r", "1", length=10),
    sample("b", "w", "2", length=10),
    sample("b", "w", "2", length=10),
    sample("b", "u", None, length=10, truncated=True),
]


def test_scores_by_hand() -> None:
    found = score(SAMPLES)
    assert (found.problems, found.samples, found.k, found.correct, found.wrong, found.unknown) == (2, 8, 4, 3, 4, 1)
    assert found.avg.value == pytest.approx((0.5 + 0.25) / 2)
    assert {k: its.value for k, its in found.pass_at.items()} == pytest.approx(
        {1: 0.375, 2: ((1 - 1 / 6) + (1 - 3 / 6)) / 2, 4: 1.0}
    )  # fmt: skip
    assert found.maj.value == 0.5  # 7 wins in a, 2 in b
    assert found.length.value == pytest.approx((25 + 10) / 2)
    assert (found.length_correct, found.length_wrong) == pytest.approx((40 / 3, 20))
    assert (found.truncated.value, found.unknown_share.value, found.unanswered.value) == pytest.approx((0.25, 0.125, 0.125))
    assert found.entropy == pytest.approx(0.5)
    assert (found.all_correct, found.all_wrong) == (0, 0)
    assert (found.oldest_version, found.newest_version) == (2, 4)


def test_scores_come_back_from_their_record() -> None:
    for samples in (SAMPLES, SAMPLES[4:]):
        found = score(samples)
        row = json.loads(json.dumps({**found.record(), "title": "more"}))
        assert Scores.from_record(row) == found
    with pytest.raises(KeyError):
        Scores.from_record({"accuracy": 1.0})


def test_accuracy_and_interval_are_those_of_the_held_out_set() -> None:
    found, held_out = score(SAMPLES), evaluate(SAMPLES)
    assert found.avg.value == held_out.accuracy
    assert (found.avg.low, found.avg.high) == pytest.approx(held_out.interval)


def test_a_record_is_plain_json() -> None:
    record = json.loads(json.dumps(score(SAMPLES).record(), allow_nan=False))
    assert record["accuracy"] == pytest.approx(0.375)
    assert record["pass_at"]["4"]["value"] == 1.0
    assert set(record["maj"]) == {"value", "low", "high"}
    assert score([sample("a", "w", None)]).record()["length_correct"] is None


def test_nothing_judged_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        score([])


def test_rows_by_problem_come_back_as_samples() -> None:
    row = json.loads(json.dumps(problem_row("a", SAMPLES[:4])))
    assert (row["outcomes"], row["answers"], row["truncated"]) == ("rrww", ["7", "7", "8", "9"], [3])
    assert samples_of(row) == SAMPLES[:4]
    with pytest.raises((KeyError, ValueError, TypeError)):
        samples_of({**row, "answers": ["7"]})


@given(st.lists(st.tuples(st.sampled_from("rwu"), st.sampled_from(["1", "2", None])), min_size=1, max_size=6))
def test_scores_after_a_row_are_the_scores_before(samples: list[tuple[str, str | None]]) -> None:
    made = [sample("a", outcome, answer) for outcome, answer in samples]
    assert score(samples_of(problem_row("a", made))) == score(made)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\dfrac12", r"$\frac{1}{2}$", True),
        ("1,200", r"\$1200.00", True),
        (r"(1, 2)", r"\left(1,2\right)", True),
        (r"12\text{ cm}", r"12 \mathrm{cm}", True),
        ("0.5", r"\frac12", False),
        ("42", "4 2", False),
        ("x" * 500, "x" * 501, False),
        ("x" * 5000, "x" * 5001, False),
    ],
)
def test_answers_are_the_same_if_they_are_written_alike(one: str, other: str, same: bool) -> None:
    assert (answer_class(one) == answer_class(other)) is same
    assert max(len(answer_class(one)), len(answer_class(other))) <= 120
    assert answer_class(answer_class(one)) == answer_class(one) or len(one) > 100


def test_the_table_has_a_line_for_each_benchmark_and_their_mean() -> None:
    table = scores_table({"aime24": score(SAMPLES), "amc23": score([sample("c", "r", "1")])}).splitlines()
    assert [line.split()[0] for line in table] == ["benchmark", "aime24", "amc23", "mean"]
    assert table[1].split()[:4] == ["aime24", "2", "4", "37.5"]
    assert table[3].split() == ["mean", "68.8"]
    assert len(scores_table({"aime24": score(SAMPLES)}).splitlines()) == 2


def test_graded_rewards_have_a_column_and_texts_and_scores_come_back() -> None:
    """[0, 2] by hand: problem means 1.5 and 0.5. Beside it avg@k, and the share without a box."""
    made = [replace(one, score=s, text=t) for one, s, t in zip(SAMPLES[3:5], (1.5, 0.5), ("so\n9", None), strict=True)]
    found = score(made, RewardRange(0, 2))
    assert found.reward.value == 1.0
    head, line = scores_table({"amc23": found}).splitlines()
    assert head.split()[3:5] == ["avg@k", "reward"]
    assert "no box" in head
    assert " 1.000 [" in line
    assert "reward" not in scores_table({"amc23": score(SAMPLES)})
    row = json.loads(json.dumps(problem_row("a", made)))
    assert (row["scores"], row["responses"]) == ([1.5, 0.5], ["so\n9"])
    assert samples_of(row) == [replace(one, problem="a") for one in made]
    assert not {"scores", "responses"} & set(problem_row("a", SAMPLES[:2]))


def test_the_share_without_an_answer_is_in_line_and_table() -> None:
    silent = [sample(str(i), "w", None if i else "4") for i in range(250)]
    evaluated = Evaluated(label="before", name="heldout", digest="", judgements=silent, scores=score(silent), took_s=1.0)
    assert str(evaluated) == "before: 0.000 [0.000, 0.015], 99.6% without a box"
    assert scores_table({"heldout": evaluated.scores}).splitlines()[1].split()[-5] == "99.6"
    doubtful = score([replace(one, outcome=Outcome.UNKNOWN) for one in silent[:25]] + silent[25:])
    assert str(replace(evaluated, scores=doubtful)) == "before: 0.000 [0.000, 0.015], 99.6% without a box, 10.0% unknown"
