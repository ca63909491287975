"""Interval arithmetic: synthetic timelines with known answers, and laws against a brute-force clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.observe.intervals import Interval, busy_time, clip, idle_fraction, intersection, measure, overlap_fraction, union

# Whole seconds in [0, 30), so that a brute-force clock can tick through them.
seconds = st.integers(0, 29)
timelines = st.lists(st.tuples(seconds, seconds), max_size=8)


def ticks(intervals: list[Interval]) -> set[int]:
    return {t for start, end in intervals for t in range(int(start), int(end))}


def test_union_merges_what_overlaps_or_touches() -> None:
    assert union([(5, 6), (0, 2), (1, 3), (3, 4), (9, 8)]) == [(0, 4), (5, 6)]


def test_intersection_keeps_common_parts() -> None:
    assert intersection([(0, 4), (6, 9)], [(3, 7), (8, 20)]) == [(3, 4), (6, 7), (8, 9)]


def test_a_synchronous_timeline_has_no_overlap_and_idle_halves() -> None:
    generate, learn = [(0, 10), (20, 30)], [(10, 20), (30, 40)]
    assert overlap_fraction(generate, learn) == 0
    assert idle_fraction(generate, (0, 40)) == 0.5
    assert idle_fraction(learn, (0, 40)) == 0.5


def test_an_asynchronous_timeline_overlaps() -> None:
    generate, learn = [(0, 35)], [(10, 20), (30, 40)]
    assert overlap_fraction(generate, learn) == pytest.approx(0.75)
    assert idle_fraction(generate, (0, 40)) == pytest.approx(0.125)


def test_idle_fraction_counts_every_actor() -> None:
    assert idle_fraction([(0, 10), (0, 5)], (0, 10), actors=2) == pytest.approx(0.25)
    assert idle_fraction([(0, 10), (0, 5)], (0, 10), actors=1) == 0


def test_intervals_outside_the_window_do_not_count() -> None:
    assert clip([(-5, 2), (8, 20), (30, 40)], (0, 10)) == [(0, 2), (8, 10)]
    assert idle_fraction([(-5, 2), (8, 20), (30, 40)], (0, 10)) == pytest.approx(0.6)


def test_empty_timelines() -> None:
    assert overlap_fraction([(0, 1)], []) == 0
    assert overlap_fraction([], [(0, 1)]) == 0
    assert idle_fraction([], (0, 10)) == 1
    assert idle_fraction([(0, 1)], (5, 5)) == 0
    with pytest.raises(ValueError, match="actors"):
        idle_fraction([], (0, 1), actors=0)


@given(timelines, timelines)
def test_sets_agree_with_a_clock_that_ticks(first: list[Interval], second: list[Interval]) -> None:
    assert ticks(union(first)) == ticks(first)
    assert measure(first) == len(ticks(first))
    assert ticks(intersection(first, second)) == ticks(first) & ticks(second)
    assert intersection(first, second) == intersection(second, first)
    assert measure(union([*first, *second])) == measure(first) + measure(second) - measure(intersection(first, second))


@given(timelines)
def test_a_union_is_in_order_and_disjoint(intervals: list[Interval]) -> None:
    merged = union(intervals)
    assert all(a[1] < b[0] for a, b in pairwise(merged))
    assert union(merged) == merged


@given(timelines, timelines)
def test_overlap_is_the_share_of_learning_ticks(generating: list[Interval], learning: list[Interval]) -> None:
    learn = ticks(learning)
    expected = len(learn & ticks(generating)) / len(learn) if learn else 0
    assert overlap_fraction(generating, learning) == pytest.approx(expected)


@given(timelines, st.integers(1, 4), seconds, seconds)
def test_idle_agrees_with_a_clock_that_counts_actors(intervals: list[Interval], actors: int, start: int, end: int) -> None:
    busy = sum(min(actors, sum(a <= t < b for a, b in intervals)) for t in range(start, end))
    assert busy_time(clip(intervals, (start, end)), actors=actors) == busy
    expected = 1 - busy / (actors * (end - start)) if end > start else 0
    assert idle_fraction(intervals, (start, end), actors=actors) == pytest.approx(expected)
