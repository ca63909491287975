"""Forests of token rows against a dictionary of prefixes, and their division under a budget against every possible one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.trees import PART_COST, Forest, build_forest, common_prefix, lexicographic, split_rows

Row = tuple[int, ...]

# Ids that differ in one byte only, and on both sides of a byte's end: an order of bytes in place of numbers would show.
ROW = st.lists(st.sampled_from([0, 1, 2, 255, 256, 151_643]), min_size=1, max_size=6).map(tuple)
SHORT_ROW = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(tuple)


@st.composite
def grown_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of which most continue from somewhere in an earlier one: prefixes of each other, duplicates and forks are common."""
    rows: list[Row] = [draw(ROW)]
    for _ in range(draw(st.integers(0, 9))):
        parent = draw(st.sampled_from(rows))
        row = parent[: draw(st.integers(0, len(parent)))] + draw(st.lists(st.integers(0, 2), max_size=4).map(tuple))
        rows.append(row or draw(ROW))
    return draw(st.permutations(rows))


ROWS = st.one_of(st.lists(SHORT_ROW, min_size=1, max_size=12), st.lists(ROW, min_size=1, max_size=8), grown_rows())


def vectors(rows: Sequence[Row], dtype: type = np.int32) -> list[np.ndarray]:
    return [np.asarray(row, dtype=dtype) for row in rows]


def prefixes(rows: Sequence[Row]) -> set[Row]:
    return {row[: n + 1] for row in rows for n in range(len(row))}


def prefix_of_place(forest: Forest, rows: Sequence[Row]) -> list[Row]:
    """What each slot stands for, by the paths."""
    found: dict[int, Row] = {}
    for row, path in zip(rows, forest.paths, strict=True):
        assert len(path) == len(row)
        for n, slot in enumerate(path.tolist()):
            assert found.setdefault(slot, row[: n + 1]) == row[: n + 1], "one slot for two prefixes"
    assert sorted(found) == list(range(len(forest)))
    return [found[slot] for slot in range(len(forest))]


def assert_runs_cover(forest: Forest, above: Sequence[Row], rows: Sequence[Row]) -> None:
    """Once, in order, each with the whole path down to it."""
    assert [run.start for run in forest.runs] == [0, *(run.stop for run in forest.runs[:-1])]
    assert forest.runs[-1].stop == len(forest)
    whole = {tuple(path.tolist()) for path in forest.paths}
    for run in forest.runs:
        assert run.stop > run.start
        assert run.path[-(run.stop - run.start) :].tolist() == list(range(run.start, run.stop))
        assert [above[slot] for slot in run.path.tolist()] == [above[run.path[-1]][: n + 1] for n in range(len(run.path))]
        assert tuple(run.path.tolist()) in whole
        assert above[run.path[-1]] in rows


@given(ROWS)
@example([(256,), (1,), (255,)])
@example([(0, 0), (0,), (0, 0), (0, 0, 0)])
def test_a_forest_has_one_place_for_each_distinct_prefix(rows: list[Row]) -> None:
    forest = build_forest(vectors(rows))
    above = prefix_of_place(forest, rows)
    assert len(set(above)) == len(above)
    assert set(above) == prefixes(rows)
    assert forest.tokens.tolist() == [prefix[-1] for prefix in above]
    assert forest.depth.tolist() == [len(prefix) - 1 for prefix in above]
    assert_runs_cover(forest, above, rows)


@given(ROWS)
@example([(0, 1), (0,), (1,), (0, 1, 1)])
def test_a_place_sees_exactly_its_prefixes(rows: list[Row]) -> None:
    forest = build_forest(vectors(rows))
    above = prefix_of_place(forest, rows)
    for i, mine in enumerate(above):
        for j, other in enumerate(above):
            assert (j <= i < forest.end[j]) == (mine[: len(other)] == other), (mine, other)


@given(ROWS)
def test_without_sharing_every_row_is_a_tree_of_its_own(rows: list[Row]) -> None:
    forest = build_forest(vectors(rows), share=False)
    flat = [token for row in rows for token in row]
    assert forest.tokens.tolist() == flat
    assert [path.tolist() for path in forest.paths] == [
        list(range(stop - len(row), stop)) for row, stop in zip(rows, np.cumsum([len(row) for row in rows]), strict=True)
    ]
    assert forest.depth.tolist() == [n for row in rows for n in range(len(row))]
    assert forest.end.tolist() == [path[-1] + 1 for path in forest.paths for _ in path]
    assert [run.path.tolist() for run in forest.runs] == [path.tolist() for path in forest.paths]
    assert [(run.start, run.stop) for run in forest.runs] == [(path[0], path[-1] + 1) for path in forest.paths]


@given(ROWS, st.randoms(use_true_random=False))
def test_the_layout_does_not_depend_on_the_order_of_the_rows(rows: list[Row], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    left, right = build_forest(vectors(rows)), build_forest(vectors([rows[i] for i in order], dtype=np.int64))
    for name in ("tokens", "depth", "end"):
        assert getattr(left, name).tolist() == getattr(right, name).tolist()
    assert [left.paths[i].tolist() for i in order] == [path.tolist() for path in right.paths]


def test_the_example_of_the_module() -> None:
    a, b, c, d, e, f = range(10, 16)
    forest = build_forest(vectors([(f,), (a, b, c, d), (a, b, e)]))
    assert forest.tokens.tolist() == [a, b, c, d, e, f]
    assert forest.depth.tolist() == [0, 1, 2, 3, 2, 0]
    assert forest.end.tolist() == [5, 5, 4, 4, 5, 6]
    assert [path.tolist() for path in forest.paths] == [[5], [0, 1, 2, 3], [0, 1, 4]]
    assert [(run.start, run.stop, run.path.tolist()) for run in forest.runs] == [
        (0, 4, [0, 1, 2, 3]), (4, 5, [0, 1, 4]), (5, 6, [5])
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [[], [()], [(1, 2), ()]])
def test_a_forest_needs_rows_with_tokens(rows: list[Row]) -> None:
    for share in (True, False):
        with pytest.raises(ValueError, match="at least one row, and no empty one"):
            build_forest(vectors(rows), share=share)


@given(ROWS)
def test_rows_are_ordered_as_tuples_are(rows: list[Row]) -> None:
    assert lexicographic(vectors(rows)) == sorted(range(len(rows)), key=lambda i: rows[i])


@given(ROW, ROW, ROW)
def test_common_prefix(stem: Row, left: Row, right: Row) -> None:
    left, right = stem + left, stem + right
    want = next(n for n in range(len(left) + 1) if left[: n + 1] != right[: n + 1] or n == len(left))
    assert common_prefix(*vectors([left, right])) == common_prefix(*vectors([right, left])) == want


# ---- division under a budget ----


def budget_for(rows: Sequence[Row], extra: int) -> int:
    return max(map(len, rows)) + extra


def cost(rows: Sequence[Row], parts: Sequence[Sequence[int]]) -> int:
    """What the division is to make small: slots computed, and a pass for each part."""
    return sum(len(prefixes([rows[i] for i in part])) + PART_COST for part in parts)


def cheapest(rows: Sequence[Row], budget: int) -> int:
    """The least cost of all 2^(n-1) ways to cut the sorted rows into spans."""
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    costs = []
    for count in range(len(rows)):
        for cuts in combinations(range(1, len(rows)), count):
            parts = [order[start:stop] for start, stop in pairwise((0, *cuts, len(rows)))]
            if all(len(prefixes([rows[i] for i in part])) <= budget for part in parts):
                costs.append(cost(rows, parts))
    return min(costs)


@given(ROWS, st.integers(0, 20))
def test_a_division_holds_every_row_once_within_the_budget(rows: list[Row], extra: int) -> None:
    budget = budget_for(rows, extra)
    parts = split_rows(vectors(rows), budget=budget)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    assert all(parts)
    for part in parts:
        assert len(build_forest(vectors([rows[i] for i in part]))) <= budget
    assert split_rows(vectors(rows), budget=budget) == parts


@settings(max_examples=60)
@given(st.lists(SHORT_ROW, min_size=1, max_size=7) | grown_rows().map(lambda rows: rows[:7]), st.integers(0, 8))
@example([(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0), (1, 0, 0, 1)], 2)  # cut between the trees, not inside of one
def test_no_division_is_cheaper(rows: list[Row], extra: int) -> None:
    budget = budget_for(rows, extra)
    assert cost(rows, split_rows(vectors(rows), budget=budget)) == cheapest(rows, budget)


@pytest.mark.parametrize(("shared", "parts"), [(63, [[0, 1], [2, 3]]), (65, [[0], [1, 2], [3]])])
def test_a_prefix_is_computed_twice_only_if_that_is_cheaper_than_a_pass(shared: int, parts: list[list[int]]) -> None:
    """Two rows that share a prefix, between two alone: either the prefix is repeated, or there is a third pass of 64."""
    stem = (2,) * shared
    rows = vectors([(1,) * 50, (*stem, *(3,) * 20), (*stem, *(4,) * 20), (5,) * 50])
    assert split_rows(rows, budget=shared + 70) == parts


@given(ROWS, st.integers(0, 20), st.randoms(use_true_random=False))
def test_the_division_does_not_depend_on_the_order_of_the_rows(rows: list[Row], extra: int, random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    budget = budget_for(rows, extra)
    left, right = (
        [[of[i] for i in part] for part in split_rows(vectors(of), budget=budget)] for of in (rows, shuffled)
    )  # fmt: skip
    assert left == right


def test_a_row_above_the_budget_is_refused_by_the_setting() -> None:
    with pytest.raises(ValueError, match=r"51 tokens is above learner\.micro_batch_tokens \(50\)"):
        split_rows(vectors([(1, 2), tuple(range(51))]), budget=50)
    assert split_rows(vectors([tuple(range(50))]), budget=50) == [[0]]
    assert split_rows([], budget=50) == []
