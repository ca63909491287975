"""avg@k, intervals, and before against after, on hand-computed numbers and by laws."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.config.reward import RewardRange
from fr3e_async.evaluation.accuracy import ScoredSample, comparison, difference, effective_samples, evaluate, wilson
from fr3e_async.evaluation.estimators import bootstrap
from fr3e_async.outcomes import Outcome

OUTCOMES = {"r": Outcome.CORRECT, "w": Outcome.WRONG, "u": Outcome.UNKNOWN}


def judged(*problems: str, length: int = 10, version: int = 3) -> list[ScoredSample]:
    """One text a problem, one letter a sample: ``"rw"`` is a problem with a right and a wrong sample."""
    return [
        ScoredSample(problem=f"p{i}", outcome=OUTCOMES[o], length=length + k, entropy_sum=0.5 * (length + k), truncated=k > 0, oldest_version=version - k, newest_version=version)
        for i, letters in enumerate(problems)
        for k, o in enumerate(letters)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("right", "total", "expected"),
    [(50, 100, (0.4038, 0.5962)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (1, 1, (0.2065, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval(right: int, total: int, expected: tuple[float, float]) -> None:
    assert wilson(right, total) == pytest.approx(expected, abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_interval_holds_its_proportion_and_shrinks_with_samples(right: int, total: int) -> None:
    right = min(right, total)
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1
    finer = wilson(4 * right, 4 * total)
    assert finer[1] - finer[0] < high - low


def test_avg_at_k_is_the_mean_over_problems() -> None:
    result = evaluate(judged("rr", "rw", "wu"))
    assert (result.problems, result.samples, result.correct, result.wrong, result.unknown) == (3, 6, 3, 2, 1)
    assert result.accuracy == pytest.approx((1 + 0.5 + 0) / 3)
    assert result.truncated == 3
    assert result.mean_length == pytest.approx(10.5)
    assert result.entropy == pytest.approx(0.5)
    assert (result.all_correct, result.all_wrong) == (1, 1), "the unknown one counts as not right"
    assert (result.oldest_version, result.newest_version) == (2, 3)


def test_problems_weigh_the_same_however_many_samples_came_back() -> None:
    assert evaluate(judged("rrrr", "w")).accuracy == pytest.approx(0.5)


def test_unknown_counts_as_not_right() -> None:
    assert evaluate(judged("r", "u")).accuracy == 0.5


def test_one_sample_a_problem_gives_the_plain_wilson_interval() -> None:
    assert evaluate(judged(*"rrrwwwwwww")).interval == pytest.approx(wilson(3, 10))


def test_samples_that_always_agree_are_worth_one_each_problem() -> None:
    agree = evaluate(judged(*["rrrr"] * 30, *["wwww"] * 30))
    assert agree.effective_samples == pytest.approx(60, rel=0.02)


def test_samples_that_are_independent_are_worth_nearly_all() -> None:
    draw = random.Random(0)
    mixed = evaluate(judged(*("".join(draw.choice("rw") for _ in range(8)) for _ in range(300))))
    assert 1700 < mixed.effective_samples <= 2400


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_effective_samples_lie_between_problems_and_samples(rights: list[int]) -> None:
    value = effective_samples([r / 4 for r in rights], samples=4 * len(rights))
    assert len(rights) <= value <= 4 * len(rights)


@given(st.lists(st.sampled_from(["r", "rw", "uw", "rrw"]), min_size=1, max_size=12), st.randoms())
def test_the_order_of_judgements_does_not_matter(problems: list[str], random_order: random.Random) -> None:
    straight = judged(*problems)
    shuffled = straight[:]
    random_order.shuffle(shuffled)
    assert evaluate(straight).interval == pytest.approx(evaluate(shuffled).interval)
    assert evaluate(straight).accuracy == pytest.approx(evaluate(shuffled).accuracy)


def test_nothing_judged_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        evaluate([])


def test_a_result_comes_back_from_its_record() -> None:
    result = evaluate(judged("rw", "r"))
    assert type(result).from_record({"label": "before", "low": 0.1, "high": 0.9, **asdict(result)}) == result


def test_difference_has_newcombes_interval() -> None:
    """Newcombe 1998, method 10: 56/70 against 48/80 gives 0.2000 [0.0524, 0.3339]."""
    after, before = evaluate(judged(*"r" * 56, *"w" * 14)), evaluate(judged(*"r" * 48, *"w" * 32))
    assert difference(before, after) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_comparison_rows_show_both_sides_and_the_change() -> None:
    rows = {row.name: row for row in comparison(evaluate(judged(*"rwww", length=20)), evaluate(judged(*"rrru", length=30)))}
    assert rows["held-out accuracy"].before.startswith("0.250 [")
    assert rows["held-out accuracy"].after.startswith("0.750 [")
    assert rows["held-out accuracy"].change.startswith("+0.500 [")
    assert "held-out reward" not in rows, "it is the accuracy"
    assert (rows["without a box"].before, rows["without a box"].after) == ("100.0%", "100.0%")
    assert rows["answers unknown"].change == "+25.0 points"
    assert rows["mean length (tokens)"].change == "+10.0"


# ---- graded rewards ----


def graded(*problems: Sequence[float | None], lowest: float) -> list[ScoredSample]:
    """A number a sample; None: unknown, which has the lowest. The highest, 3, is right."""
    return [
        replace(
            judged("w")[0], problem=f"p{i}", score=lowest if reward is None else reward, answer="1" if i else None,
            outcome=Outcome.UNKNOWN if reward is None else Outcome.CORRECT if reward == 3 else Outcome.WRONG,
        )
        for i, rewards in enumerate(problems)
        for reward in rewards
    ]  # fmt: skip


def test_the_mean_reward_is_over_problems_in_its_own_range() -> None:
    """[-1, 3]: problem means 2, -1 and 1; an unknown has -1. Shares 3/4, 0 and 1/2: the bootstrap is of these."""
    found = evaluate(graded((3, 1), (None, -1), (1,), lowest=-1), RewardRange(-1, 3))
    assert found.reward.value == pytest.approx((2 - 1 + 1) / 3)
    shares = bootstrap([3 / 4, 0, 1 / 2])
    assert (found.reward.low, found.reward.high) == pytest.approx((4 * shares.low - 1, 4 * shares.high - 1))
    assert (found.accuracy, found.unanswered, found.unknown) == (pytest.approx((1 / 2) / 3), 2, 1)
    assert found == evaluate(graded((3, 1), (None, -1), (1,), lowest=-1), RewardRange(-1, 3))


def test_rewards_at_the_ends_of_their_range_have_the_accuracys_interval() -> None:
    """2 of 5 at the top of [-1, 3]; Wilson's interval of 0.4 from 5 is 0.1176 to 0.7693."""
    found = evaluate(graded((3,), (3,), (-1,), (-1,), (None,), lowest=-1), RewardRange(-1, 3))
    assert (found.reward.value, found.accuracy) == (pytest.approx(0.6), 0.4)
    assert (found.reward.low, found.reward.high) == pytest.approx((4 * 0.1176 - 1, 4 * 0.7693 - 1), abs=1e-3)


def test_problems_with_the_same_mean_reward_still_have_an_interval() -> None:
    """Four times 1 in [-1, 3] is a share of 1/2: a bootstrap has no width, Wilson's of 2 of 4 is 0.150 to 0.850."""
    found = evaluate(graded((1,), (1,), (1,), (1,), lowest=-1), RewardRange(-1, 3))
    assert (found.reward.low, found.reward.value, found.reward.high) == pytest.approx((-0.4, 1.0, 2.4), abs=1e-2)


def test_a_comparison_of_graded_rewards_has_their_means() -> None:
    before, after = (evaluate(graded(*rewards, lowest=0), RewardRange(0, 3)) for rewards in ([(0,), (1,)], [(1,), (2.5,)]))
    row = next(row for row in comparison(before, after) if row.name == "held-out reward")
    assert row.before.startswith("0.500 [")
    assert row.after.startswith("1.750 [")
    assert row.change.startswith("+1.250 [")
