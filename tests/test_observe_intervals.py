"""Interval arithmetic: synthetic timelines with known answers, and laws against a brute-force clock."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.observe.intervals import Interval, clip, idle_share, intersection, measure, union

# Whole seconds in [0, 30), so that a brute-force clock can tick through them.
seconds = st.integers(0, 29)
timelines = st.lists(st.tuples(seconds, seconds), max_size=8)


def ticks(intervals: list[Interval]) -> set[int]:
    return {t for start, end in intervals for t in range(int(start), int(end))}


def test_union_merges_what_overlaps_or_touches() -> None:
    assert union([(5, 6), (0, 2), (1, 3), (3, 4), (9, 8)]) == [(0, 4), (5, 6)]


def test_intersection_keeps_common_parts() -> None:
    assert intersection([(0, 4), (6, 9)], [(3, 7), (8, 20)]) == [(3, 4), (6, 7), (8, 9)]


def test_intervals_outside_the_window_do_not_count() -> None:
    assert clip([(-5, 2), (8, 20), (30, 40)], (0, 10)) == [(0, 2), (8, 10)]


def test_the_idle_share_stays_within_0_and_1() -> None:
    assert idle_share(10.0, available_s=40.0) == 0.75
    assert idle_share(41.0, available_s=40.0) == 0.0, "intervals of several clocks may come to more"
    assert idle_share(-1.0, available_s=40.0) == 1.0
    assert idle_share(0.0, available_s=0.0) == 0.0


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
