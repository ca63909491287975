"""pass@k, maj@k and intervals: hand-computed numbers, exhaustive counts, and laws."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.evaluation.estimators import bootstrap, bootstrapped_share, budgets, majority, pass_at_k, share


@pytest.mark.parametrize(
    ("samples", "correct", "k", "expected"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (10, 3, 5, 1 - 21 / 252), (5, 0, 5, 0.0), (5, 1, 5, 1.0), (3, 3, 1, 1.0)],
)
def test_pass_at_k_by_hand(samples: int, correct: int, k: int, expected: float) -> None:
    assert pass_at_k(samples, correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_stable_where_binomials_overflow() -> None:
    exact = 1 - math.comb(9990, 1000) / math.comb(10000, 1000)
    assert pass_at_k(10_000, 10, 1000) == pytest.approx(exact, rel=1e-12)
    assert 0 < pass_at_k(10**6, 1, 1) < 2e-6


@given(st.integers(1, 60), st.data())
def test_pass_at_k_grows_with_k_and_with_right_samples(samples: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    value = pass_at_k(samples, correct, k)
    assert 0 <= value <= 1
    assert pass_at_k(samples, correct, 1) == pytest.approx(correct / samples)
    if k < samples:
        assert pass_at_k(samples, correct, k + 1) >= value - 1e-12
    if correct < samples:
        assert pass_at_k(samples, correct + 1, k) >= value - 1e-12


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_makes_no_sense(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, correct, k)


def test_budgets_are_powers_of_two_and_k() -> None:
    assert [budgets(k) for k in (1, 2, 3, 10, 16)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 10], [1, 2, 4, 8, 16]]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([("7", True), ("7", True), ("8", False)], 1.0),
        ([("7", True), ("8", False), ("8", False)], 0.0),
        ([("7", True), ("8", False)], 0.5),  # a tie is drawn by lot
        ([("7", True), ("8", False), ("9", False)], 1 / 3),
        ([("7", True), (None, False), (None, False)], 1.0),  # no answer does not vote
        ([(None, False), (None, False)], 0.0),
        ([("1/2", True), ("1/2", False), ("3", False)], 0.5),  # one sample's verdict was cut short: unknown
        ([], 0.0),
    ],
)
def test_majority_by_hand(votes: list[tuple[str | None, bool]], expected: float) -> None:
    assert majority(votes) == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.booleans()), max_size=9), st.randoms())
def test_the_order_of_votes_does_not_matter(votes: list[tuple[str | None, bool]], order: random.Random) -> None:
    shuffled = votes[:]
    order.shuffle(shuffled)
    assert majority(votes) == pytest.approx(majority(shuffled))


def test_a_share_has_wilsons_interval() -> None:
    estimate = share([1.0] * 50 + [0.0] * 50, samples=100)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.4038, 0.5962), abs=5e-5)


def test_samples_that_agree_do_not_narrow_a_share() -> None:
    """8 equal samples of each problem tell no more than one."""
    one, eight = share([1.0, 0.0] * 20, samples=40), share([1.0, 0.0] * 20, samples=320)
    assert eight.low == pytest.approx(one.low, abs=0.01)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    values = [float(i % 10) for i in range(400)]
    error = 1.96 * math.sqrt(8.25 / 400)  # variance of 0..9 is 8.25
    estimate = bootstrap(values)
    assert estimate.value == pytest.approx(4.5)
    assert (estimate.low, estimate.high) == pytest.approx((4.5 - error, 4.5 + error), abs=0.04)
    assert bootstrap(values) == estimate, "the same seed gives the same interval"


def test_bootstrap_covers_a_known_rate_nineteen_times_in_twenty() -> None:
    draw, covered = random.Random(1), 0
    for _ in range(200):
        estimate = bootstrap([float(draw.random() < 0.4) for _ in range(100)])
        covered += estimate.low <= 0.4 <= estimate.high
    assert 180 <= covered <= 198


def test_a_share_of_nothing_but_ones_still_has_a_width() -> None:
    assert bootstrap([1.0] * 10).low == 1.0
    estimate = bootstrapped_share([1.0] * 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.7225, 1.0), abs=5e-5)
    assert bootstrapped_share([0.0] * 10).high == pytest.approx(0.2775, abs=5e-5)
    ties = bootstrapped_share([0.5] * 100)  # every vote is drawn by lot
    assert (ties.value, ties.low, ties.high) == pytest.approx((0.5, 0.4038, 0.5962), abs=5e-5)
    assert bootstrapped_share([1 / 3]).high - bootstrapped_share([1 / 3]).low > 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_intervals_hold_their_value(values: list[float]) -> None:
    for estimate in (bootstrap(values), bootstrapped_share(values), share(values, samples=3 * len(values))):
        assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
