"""Anchor selection: hand-made profiles, and the laws that hold for any profile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from builders import small_config
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.algorithm.anchors import eligible_positions, select_anchors
from fr3e_async.algorithm.answer_span import answer_end
from fr3e_async.types import Anchor

RULES = ("entropy", "surprisal", "random", "uniform", "newline")


def choose(entropies, *, rule="entropy", anchors=3, min_gap=1, special=None, newline=None, end=None, budget=100, logprobs=None):
    length = len(entropies)
    config = small_config(algorithm={"anchor_rule": rule, "anchors": anchors, "min_gap": min_gap}).algorithm
    return select_anchors(
        config,
        entropies=np.asarray(entropies, dtype=np.float32),
        logprobs=np.asarray(logprobs if logprobs is not None else [-1.0] * length, dtype=np.float32),
        special=np.asarray(special if special is not None else [False] * length, dtype=np.bool_),
        after_newline=np.asarray(newline if newline is not None else [True] * length, dtype=np.bool_),
        answer_end=end,
        max_response=budget,
        seed=(1, 2),
    )


def positions(anchors: tuple[Anchor, ...]) -> list[int]:
    return [a.position for a in anchors]


def test_highest_entropies_are_taken_and_sorted_by_position():
    anchors = choose([9.0, 0.1, 0.8, 0.2, 0.9, 0.3])
    assert positions(anchors) == [2, 4, 5]  # position 0 has the highest entropy and is the prompt's own state
    assert [a.node for a in anchors] == [1, 2, 3]
    assert [a.score for a in anchors] == pytest.approx([0.8, 0.9, 0.3])


def test_a_close_neighbour_of_a_higher_anchor_is_passed_over():
    assert positions(choose([0, 0.7, 0.9, 0.8, 0.1, 0.2, 0.0], anchors=2, min_gap=3)) == [2, 5]


def test_special_tokens_the_answer_and_the_spent_budget_are_not_eligible():
    entropies = [0.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert positions(choose(entropies, special=[False, True, False, False, False, False])) == [2, 3, 4]
    assert positions(choose(entropies, end=3)) == [1, 2]
    assert positions(choose(entropies, budget=2)) == [1]


@pytest.mark.parametrize("length", [0, 1])
def test_too_short_for_any_anchor(length):
    assert choose([1.0] * length) == ()


def test_surprisal_ranks_by_the_sampled_token_not_by_entropy():
    anchors = choose([0, 5.0, 0.1, 0.1], rule="surprisal", anchors=1, logprobs=[0, -0.1, -3.0, -0.2])
    assert positions(anchors) == [2]


def test_newline_rule_takes_only_positions_after_a_newline():
    assert positions(choose([1.0] * 6, rule="newline", newline=[False, False, True, False, True, False])) == [2, 4]


def test_uniform_rule_spreads_over_the_trunk():
    assert positions(choose([0.0] * 13, rule="uniform", anchors=3)) == [4, 7, 9]


def test_random_rule_depends_on_the_seed_only():
    assert choose([0.0] * 30, rule="random") == choose([1.0] * 30, rule="random")


profiles = st.lists(st.floats(0, 12, width=32), max_size=60)


@given(profiles, st.sampled_from(RULES), st.integers(0, 6), st.integers(1, 12), st.integers(1, 70), st.data())
def test_laws_of_selection(entropies, rule, anchors, min_gap, budget, data):
    length = len(entropies)
    special = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    end = data.draw(st.none() | st.integers(0, length))
    chosen = choose(entropies, rule=rule, anchors=anchors, min_gap=min_gap, special=special, end=end, budget=budget)
    allowed = set(eligible_positions(length, max_response=budget, special=np.asarray(special, dtype=bool), answer_end=end))
    places = positions(chosen)
    assert len(places) <= anchors
    assert set(places) <= allowed
    assert 0 not in places
    assert places == sorted(places)
    assert [a.node for a in chosen] == list(range(1, len(chosen) + 1))
    assert all(b - a >= min_gap for a, b in pairwise(places))
    # Fewer than asked for only if nothing more fits.
    if len(places) < anchors:
        assert all(any(abs(p - q) < min_gap for q in places) for p in allowed)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["so ", "\\boxed{", "4", "}", "<end>"], 4),
        (["\\boxed", "{\\frac{1}", "{2}}", " done"], 3),
        (["\\boxed{1}", " no, ", "\\boxed{2}", "."], 3),
        (["\\boxed{", "4"], None),
        (["nothing"], None),
        ([], None),
    ],
)
def test_answer_end(pieces, expected):
    assert answer_end(pieces) == expected
