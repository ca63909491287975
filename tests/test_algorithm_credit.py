"""Credit: hand-computed groups, an independent oracle on random trees, and invariance to order."""

from __future__ import annotations

import math
import random

import pytest
from builders import small_config
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.algorithm.batching import balanced_shards, minibatch_of
from fr3e_async.algorithm.strategies import GroupOutcome, make_strategy
from fr3e_async.algorithm.values import StateValue, alpha, state_values
from fr3e_async.types import RolloutId


def outcome(*nodes: list[float | None]) -> GroupOutcome:
    rewards = {RolloutId("g", j, m): r for j, node in enumerate(nodes) for m, r in enumerate(node)}
    return GroupOutcome(group="g", trunk=RolloutId("g", 0, 0), rewards=rewards)


def credit(*nodes, **algorithm):
    return make_strategy(small_config(algorithm=algorithm).algorithm).credit(outcome(*nodes))


def by_place(result) -> dict[tuple[int, int], float]:
    return {(id.node, id.branch): a for id, a in result.advantages.items()}


def test_fr3e_by_hand():
    # V = 1/2, 3/4, 1/4: alpha_1 = exp(-1/4), alpha_2 = exp(1/2)
    result = credit([1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1])
    got = by_place(result)
    assert got[0, 0] == pytest.approx(0.5)
    assert got[1, 3] == pytest.approx(math.exp(-0.25) * -0.75)
    assert got[2, 3] == pytest.approx(math.exp(0.5) * 0.75)
    assert len(got) == 12


def test_a_state_without_spread_is_dropped_after_alpha_used_it():
    # State 1 is all right and dropped; state 2's alpha still compares with V(S_1) = 1, not with V(S_0).
    result = credit([1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0])
    got = by_place(result)
    assert {node for node, _ in got} == {0, 2}
    assert got[2, 0] == pytest.approx(math.exp(0.75) * 0.75)
    assert result.dropped_states == 1


def test_an_all_right_state_has_value_one():
    assert credit([1, 0], [1, 1]).values[1].value == 1.0


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (([1, 1], [1, 1]), "all_right"),
        (([0, 0], [0, 0]), "all_wrong"),
        (([1, 1], [0, 0]), "no_spread"),
        (([None, None], [None]), "too_few"),
        (([1, None], [None, None]), "too_few"),
    ],
)
def test_rejection_reasons(nodes, reason):
    assert credit(*nodes).rejected == reason


def test_a_state_without_verdicts_is_no_neighbour():
    got = by_place(credit([1, 0], [None, None], [1, 0]))
    assert got[2, 0] == pytest.approx(0.5)  # alpha is 1: V(S_1) is unknown, not 0 and not V(S_0)


def test_alpha_off_std_and_shrink():
    assert by_place(credit([1, 0], [1, 1, 1, 0], alpha=False))[1, 3] == pytest.approx(-0.75)
    assert by_place(credit([1, 0], std_normalise=True))[0, 0] == pytest.approx(0.5 / (0.5 + 1e-6))
    close = {0: StateValue(node=0, right=2, judged=4), 1: StateValue(node=1, right=3, judged=4)}
    assert alpha(close, 1, shrink=True) == 1.0  # a difference of 1/4 is within the standard error of 0.33


def test_include_trunk_counts_but_does_not_train_twice():
    result = credit([1, 0], [0, 0], include_trunk=True)
    got = by_place(result)
    assert result.values[1].judged == 3
    assert result.values[1].value == pytest.approx(1 / 3)
    assert set(got) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_flat_strategies():
    assert by_place(credit([1, 0, 0, 0], strategy="rloo"))[0, 0] == pytest.approx(1.0)
    assert by_place(credit([1, 0, 0, 0], strategy="rloo"))[0, 1] == pytest.approx(-1 / 3)
    std = math.sqrt(3 / 16)
    assert by_place(credit([1, 0, 0, 0], strategy="grpo"))[0, 0] == pytest.approx(0.75 / (std + 1e-6))
    assert set(by_place(credit([1, 1], strategy="grpo")).values()) == {0.0}
    assert credit([1, 1], strategy="grpo_pp").rejected == "all_right"
    assert credit([0, 0], strategy="rloo").rejected == "all_wrong"


reward = st.sampled_from([0.0, 1.0, None])
trees = st.lists(st.lists(reward, min_size=1, max_size=6), min_size=1, max_size=5)


def oracle(nodes: list[list[float | None]]) -> dict[tuple[int, int], float]:
    """FR3E again, by plain loops over the definition."""
    values = []
    for node in nodes:
        known = [r for r in node if r is not None]
        values.append(sum(known) / len(known) if known else None)
    advantages = {}
    for j, node in enumerate(nodes):
        known = {r for r in node if r is not None}
        if len(known) < 2:
            continue
        factor = 1.0
        if j > 0 and values[j - 1] is not None:
            factor = math.exp(-(values[j] - values[j - 1]))
        for m, r in enumerate(node):
            if r is not None:
                advantages[j, m] = factor * (r - values[j])
    return advantages


@given(trees)
def test_fr3e_agrees_with_the_oracle(nodes):
    result = credit(*nodes)
    expected = oracle(nodes)
    assert by_place(result) == pytest.approx(expected, abs=1e-9)
    assert bool(result.rejected) == (not expected)


@given(trees, st.randoms())
def test_arrival_order_changes_nothing(nodes, rng: random.Random):
    whole = outcome(*nodes)
    items = list(whole.rewards.items())
    rng.shuffle(items)
    strategy = make_strategy(small_config().algorithm)
    shuffled = GroupOutcome(group="g", trunk=whole.trunk, rewards=dict(items))
    assert strategy.credit(shuffled) == strategy.credit(whole)


@given(st.integers(0, 40), st.integers(1, 40))
def test_wilson_interval_holds_the_value(right, judged):
    right = min(right, judged)
    low, high = StateValue(node=0, right=right, judged=judged).interval
    assert 0 <= low <= right / judged <= high <= 1


def test_wilson_interval_by_hand():
    low, high = StateValue(node=0, right=2, judged=4).interval
    assert (low, high) == pytest.approx((0.15003898915, 0.84996101085), abs=1e-9)


def test_states_without_rewards_have_no_value():
    assert set(state_values({0: [1.0], 1: []})) == {0}


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 5))
def test_shards_hold_every_item_once_and_are_balanced(lengths, shards):
    parts = balanced_shards(lengths, shards)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_minibatches_are_equal_parts_in_order():
    assert [minibatch_of(i, groups=8, minibatches=2) for i in range(8)] == [0] * 4 + [1] * 4
    assert [minibatch_of(i, groups=5, minibatches=2) for i in range(5)] == [0, 0, 0, 1, 1]
