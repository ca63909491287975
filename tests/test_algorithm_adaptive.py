"""The adaptive branch budget: the second round by hand and by law, V without bias by enumeration, credit over both rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest
from builders import small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import State, Tree, fr3e
from trees import advantages_of, credit_of, node_of, tree, trees

from fr3e_async.algorithm.strategies import REGISTRY, GroupPlan, check_strategy, make_strategy
from fr3e_async.algorithm.values import decided, fixed_draws, second_round
from fr3e_async.errors import ConfigError
from fr3e_async.types import RolloutId

approx = pytest.approx
MIXED, CORRECT, WRONG = [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]
CHANCES = [Fraction(n, 10) for n in (1, 2, 5, 7, 9)] + [Fraction(1, 3)]


# ---- who gets a second round ----


@pytest.mark.parametrize(
    ("rewards", "branches", "expected"),
    [
        ({1: MIXED, 2: MIXED, 3: MIXED}, 4, {1: 2, 2: 2, 3: 2}),  # as if all had been drawn at once
        ({1: MIXED, 2: CORRECT, 3: MIXED}, 4, {1: 3, 3: 3}),  # 3 · 2 for two
        ({1: WRONG, 2: MIXED, 3: CORRECT}, 4, {2: 4}),  # 6 for one, but no state gets more than M
        ({1: CORRECT, 2: WRONG, 3: CORRECT}, 4, {}),
        ({1: MIXED, 2: MIXED, 3: MIXED, 4: CORRECT}, 3, {1: 2, 2: 1, 3: 1}),  # 4 · 1 for three: the lowest node has one more
        ({4: MIXED, 5: CORRECT, 6: CORRECT, 9: MIXED, 12: MIXED}, 3, {4: 2, 9: 2, 12: 1}),  # 5 for three: the two lowest
        ({1: [0.5, 0.5], 2: [0.5, 0.25]}, 3, {2: 2}),  # graded: unequal is undecided
        ({1: [None, None], 2: [], 3: [1.0], 4: [1.0, None], 5: [0.0, 1.0]}, 3, {5: 3}),  # nothing shows that 1 to 4 have spread
        ({1: [None, 1.0], 2: [None, None]}, 4, {}),
        ({}, 4, {}),
    ],
)
def test_a_second_round_by_hand(rewards, branches, expected):
    assert second_round(rewards, first=2, branches=branches) == expected


def test_two_of_three_verdicts_decide_if_they_are_equal():
    assert decided([1.0, None, 1.0])
    assert not decided([1.0, None, 0.0])
    assert second_round({1: [1.0, None, 1.0], 2: [None, 1.0, 0.0]}, first=3, branches=5) == {2: 4}


@pytest.mark.parametrize(("first", "branches"), [(1, 4), (4, 4), (5, 4), (0, 4)])
def test_an_impossible_first_round_is_refused(first, branches):
    with pytest.raises(ValueError, match=f"first={first}, branches={branches}"):
        second_round({1: MIXED}, first=first, branches=branches)


def test_outcomes_of_a_second_round_are_refused():
    with pytest.raises(ValueError, match="node 2 has 3 outcomes of a first round of 2"):
        second_round({1: MIXED, 2: [1.0, 0.0, 1.0]}, first=2, branches=4)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[int, list[float | None]], int, int]:
    """Outcomes of a trunk's first rounds, ``first``, ``branches``."""
    first = draw(st.integers(2, 6))
    branches = draw(st.integers(first + 1, 20))
    nodes = draw(st.sets(st.integers(1, 40), max_size=8))
    outcome = st.sampled_from([0.0, 1.0, 0.0, 1.0, 0.5, None])
    return {node: draw(st.lists(outcome, max_size=first)) for node in nodes}, first, branches


@settings(max_examples=400, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_laws_of_a_second_round(case, rng):
    rewards, first, branches = case
    more = second_round(rewards, first=first, branches=branches)
    budget = len(rewards) * (branches - first)
    undecided = {node for node, outcomes in rewards.items() if len({r for r in outcomes if r is not None}) > 1}

    assert set(more) == undecided  # branches - first is at least 1, so every undecided state gets something
    assert sum(more.values()) <= budget
    assert sum(more.values()) == min(budget, branches * len(undecided))  # and nothing is kept back but by the cap
    assert all(0 < count <= branches for count in more.values())
    assert max(more.values(), default=0) - min(more.values(), default=0) <= 1
    assert [more[node] for node in sorted(more)] == sorted(more.values(), reverse=True)  # the lower nodes get what is over
    plan = GroupPlan(bases=4, trunks=1, branches=branches, first=first)
    assert len(rewards) * plan.at_once + sum(more.values()) <= len(rewards) * plan.branches

    shuffled = list(rewards.items())
    rng.shuffle(shuffled)
    mixed = {node: rng.sample(outcomes, len(outcomes)) for node, outcomes in shuffled}
    assert second_round(mixed, first=first, branches=branches) == more


# ---- what V may count ----


def draws(count: int, p: Fraction) -> Iterator[tuple[tuple[int, ...], Fraction]]:
    """Every outcome of ``count`` binary draws and its probability."""
    for outcome in product((0, 1), repeat=count):
        yield outcome, math.prod((p if r else 1 - p for r in outcome), start=Fraction(1))


def two_rounds(first: int, more: int, p: Fraction) -> Iterator[tuple[dict[RolloutId, float], Fraction]]:
    """Every group of one state with ``more`` draws after a mixed first round, and its probability."""
    for one, chance in draws(first, p):
        for two, then in draws(0 if decided(one) else more, p):
            yield {RolloutId("q@0", 1, m): r for m, r in enumerate(one + two)}, chance * then


@pytest.mark.parametrize("p", CHANCES)
@pytest.mark.parametrize(("first", "more"), [(2, 1), (2, 4), (3, 2), (3, 5), (4, 4)])
def test_the_mean_of_the_first_round_is_unbiased_and_that_of_all_draws_is_not(first, more, p):
    q = 1 - p
    mean = pooled = Fraction(0)
    for judged, chance in two_rounds(first, more, p):
        counted = fixed_draws(judged, first=first)
        assert len(counted) == first
        mean += chance * Fraction(sum(counted), first)
        pooled += chance * Fraction(sum(judged.values()), len(judged))
    assert mean == p
    assert pooled - p == Fraction(more, first + more) * p * q * (p ** (first - 1) - q ** (first - 1))
    assert (pooled == p) == (p == Fraction(1, 2))


def test_a_state_keeps_its_mean_whatever_its_neighbours_leave_it():
    """Three states share the rest; how many draws one gets depends on all, its first round's mean stays unbiased."""
    first, branches, chances = 2, 4, [Fraction(1, 5), Fraction(1, 2), Fraction(9, 10)]
    spent, means = Fraction(0), [Fraction(0)] * 3
    for outcomes in product(*(draws(first, p) for p in chances)):
        chance = math.prod((part for _, part in outcomes), start=Fraction(1))
        more = second_round({n: rewards for n, (rewards, _) in enumerate(outcomes)}, first=first, branches=branches)
        spent += chance * (3 * first + sum(more.values()))
        for n, (rewards, _) in enumerate(outcomes):
            means[n] += chance * Fraction(sum(rewards), first)
    assert means == chances
    assert 3 * first < spent < 3 * branches


def test_bases_are_always_fixed_draws():
    judged = {RolloutId("q@0", 0, 7): 1.0, RolloutId("q@0", 2, 0): 0.0, RolloutId("q@0", 2, 1): 0.25, RolloutId("q@0", 2, 2): 0.5}
    assert fixed_draws(judged, first=2) == [1.0, 0.0, 0.25]
    assert fixed_draws(judged, first=0) == [1.0, 0.0, 0.25, 0.5]


# ---- what the update is, in expectation ----


@pytest.mark.parametrize("first", [2, 3])
def test_the_expected_update_of_a_state_has_the_direction_of_its_value(first):
    """A policy of three endings, two of them right: the update is the gradient of V, times E[n · mean · (1 - mean)] / pq."""
    chances, right, more = [Fraction(1, 6), Fraction(1, 3), Fraction(1, 2)], [1, 1, 0], 2
    p = chances[0] + chances[1]
    gradient = [c * (r - p) for c, r in zip(chances, right, strict=True)]  # of P(right), by the three logits
    update, weight = [Fraction(0)] * 3, Fraction(0)
    for endings in product(range(3), repeat=first + more):
        rewards = [right[e] for e in endings]
        members = first if decided([float(r) for r in rewards[:first]]) else first + more
        chance = math.prod((chances[e] for e in endings), start=Fraction(1))  # what is not drawn sums to 1
        mean = Fraction(sum(rewards[:members]), members)
        weight += chance * members * mean * (1 - mean) / (p * (1 - p))
        for logit in range(3):
            score = sum((int(e == logit) - chances[logit]) * (right[e] - mean) for e in endings[:members])
            update[logit] += chance * score
    assert update == [weight * g for g in gradient]
    assert 0 < weight < first + more - 1  # which is the weight of as many draws at once


def signal_and_drawn(chances: tuple[float, ...], *, first: int, branches: int) -> tuple[float, float]:
    """E[sum over the states of n · mean · (1 - mean)], and the expected number of continuations of a trunk."""
    signal = drawn = 0.0
    for ones in product(range(first + 1), repeat=len(chances)):
        chance = math.prod(math.comb(first, k) * p**k * (1 - p) ** (first - k) for k, p in zip(ones, chances, strict=True))
        outcomes = {n: [1.0] * k + [0.0] * (first - k) for n, k in enumerate(ones)}
        more = second_round(outcomes, first=first, branches=branches)
        drawn += chance * (len(chances) * first + sum(more.values()))
        for n, count in more.items():
            size, p = first + count, chances[n]
            means = [(math.comb(count, k) * p**k * (1 - p) ** (count - k), (ones[n] + k) / size) for k in range(count + 1)]
            signal += chance * sum(part * size * mean * (1 - mean) for part, mean in means)
    return signal, drawn


@pytest.mark.parametrize(
    ("chances", "first", "branches", "part", "ratio"),
    [
        ((0.5, 0.5, 0.5), 2, 4, 0.88, 0.84),
        ((0.5, 0.5, 0.5), 4, 16, 0.96, 0.98),
        ((0.1, 0.1, 0.1), 2, 4, 0.66, 0.98),
        ((0.1, 0.1, 0.1), 4, 16, 0.58, 0.99),
        ((0.5, 0.2, 0.02), 2, 4, 0.75, 1.03),
        ((0.5, 0.2, 0.02), 4, 16, 0.75, 1.27),
        ((0.5, 0.02, 0.98), 2, 4, 0.69, 1.22),
        ((0.5, 0.02, 0.98), 4, 16, 0.59, 1.70),
    ],
)
def test_the_table_of_what_is_saved_and_gained(chances, first, branches, part, ratio):
    """docs/fr3e.md: drawn of what may be drawn, and expected signal per continuation against all M at once."""
    signal, drawn = signal_and_drawn(chances, first=first, branches=branches)
    at_once = (branches - 1) * sum(p * (1 - p) for p in chances) / (branches * len(chances))
    assert drawn / (len(chances) * branches) == approx(part, abs=0.006)
    assert signal / drawn / at_once == approx(ratio, abs=0.006)


# ---- credit ----


def adaptive(group: Tree, **algorithm):
    return credit_of(group, adaptive_first=2, **algorithm)


class TestCredit:
    def test_by_hand(self):
        # V(S_1) = 1/2 of its first two, V(S_2) = 0: alpha_1 = exp(0), alpha_2 = exp(1/2). The mean of S_1's six is 1/6.
        result = adaptive(tree([1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0], [1, 1]))
        got = advantages_of(result)
        assert [got[0, 1, m] for m in range(6)] == approx([5 / 6] + [-1 / 6] * 5)
        assert [(s.value.value, s.value.scored) for s in result.states.values()] == [(0.5, 4), (0.5, 2), (0.0, 2), (1.0, 2)]
        assert [s.alpha for s in result.states.values()] == approx([1.0, 1.0, math.exp(0.5), math.exp(-1.0)])
        assert [s.dropped for s in result.states.values()] == ["", "", "all_wrong", "all_correct"]
        assert len(got) == 4 + 6

    def test_alpha_of_the_first_rounds_scales_both(self):
        # V(S_0) = 3/4, V(S_1) = 1/2: alpha_1 = exp(1/4). The mean of all five is 4/5.
        got = advantages_of(adaptive(tree([1, 1, 1, 0], [0, 1, 1, 1, 1])))
        assert [got[0, 1, m] for m in range(5)] == approx([math.exp(0.25) * a for a in (-0.8, 0.2, 0.2, 0.2, 0.2)])

    def test_the_interval_and_the_standard_error_are_of_the_first_round(self):
        result = adaptive(tree([1, 1, 1, 1], [1, 0, 1, 1, 1, 1]), alpha_shrink=True)
        assert result.states[1].value.interval == approx((0.0945312, 0.9054688), abs=1e-6)  # 1 of 2
        assert result.states[1].alpha == approx(math.exp(0.5 - math.sqrt(1 / 8)))

    def test_a_lost_verdict_of_the_first_round_is_not_made_up_for_by_the_second(self):
        result = credit_of(tree([1, 0], [1, None, 0, 1, 1]), adaptive_first=3)
        assert (result.states[1].value.value, result.states[1].value.scored) == (0.5, 2)
        got = advantages_of(result)
        assert {rollout: a for rollout, a in got.items() if len(rollout) > 1} == approx(
            {(0, 1, 0): 0.25, (0, 1, 2): -0.75, (0, 1, 3): 0.25, (0, 1, 4): 0.25}
        )

    def test_a_state_whose_first_round_nobody_judged_has_no_value(self):
        result = adaptive(tree([1, 0], [None, None], [1, 0]))
        assert (result.states[1].value, result.states[1].dropped, result.states[2].alpha) == (None, "too_few", 1.0)

    def test_include_trunk_counts_in_v_and_in_the_mean_but_in_no_decision(self):
        # The trunk is base 3 and right. S_1: V = 2/3 of trunk and first two, mean 3/5 of all five. S_2 is decided, yet has spread.
        result = adaptive(tree([0, 0, 0, 1], [1, 0, 1, 0], [0, 0], trunk=3), include_trunk=True, alpha=False)
        got = advantages_of(result)
        first, second = node_of((3, 1)), node_of((3, 2))
        assert [result.states[node].value.value for node in (first, second)] == approx([2 / 3, 1 / 3])
        assert [got[3, 1, m] for m in range(4)] == approx([0.4, -0.6, 0.4, -0.6])
        assert [got[3, 2, m] for m in range(2)] == approx([-1 / 3, -1 / 3])

    def test_std_is_of_all_members(self):
        got = advantages_of(adaptive(tree([1, 0], [1, 0, 0, 0]), std_normalise="true", alpha=False))
        assert got[0, 1, 0] == approx(0.75 / (math.sqrt(3 / 16) + 1e-6))


@settings(max_examples=300, deadline=None)
@given(trees(), st.integers(2, 3), st.booleans(), st.booleans())
def test_values_and_alphas_are_the_oracles_of_the_first_rounds_and_baselines_of_all(group, first, shrink, include_trunk):
    cut = {b: [State(s.position, s.rewards[:first]) for s in states] for b, states in group.trunks.items()}
    early = fr3e(Tree(group.bases, cut), shrink=shrink, include_trunk=include_trunk)
    whole = fr3e(group, alpha=False, include_trunk=include_trunk)
    result = credit_of(group, adaptive_first=first, alpha_shrink=shrink, include_trunk=include_trunk)
    for place, value in early.values.items():
        state = result.states[node_of(place)]
        assert (state.value.value if state.value else None) == approx(value)
        assert state.alpha == approx(early.alphas[place])
        assert state.dropped == whole.dropped[place]
    expected = {rollout: early.alphas[rollout[:-1]] * steps[0][1] for rollout, steps in whole.advantages.items()}
    assert advantages_of(result) == approx(expected)
    assert result.rejected == whole.reason


@settings(max_examples=200, deadline=None)
@given(trees(), st.integers(2, 3))
def test_without_second_rounds_it_is_a_smaller_m(group, first):
    cut = {b: [State(s.position, s.rewards[:first]) for s in states] for b, states in group.trunks.items()}
    assert credit_of(Tree(group.bases, cut), adaptive_first=first) == credit_of(Tree(group.bases, cut))


# ---- settings and plans ----


def plan_of(**algorithm):
    return make_strategy(small_config(algorithm=algorithm).algorithm).plan


def test_a_plan_tells_what_is_drawn_at_once_and_how_much_at_most():
    plan = plan_of(anchors=3, branches=8, adaptive_first=3)
    assert (plan.first, plan.at_once, plan.branches, plan.rollouts) == (3, 3, 8, 4 + 3 * 8)
    off = plan_of(anchors=3, branches=8)
    assert (off.first, off.at_once, off.rollouts) == (0, 8, plan.rollouts)


def test_flat_plans_have_no_rounds():
    assert plan_of(anchors=0, adaptive_first=2).first == 0
    for strategy in set(REGISTRY) - {"fr3e", "tree_credit", "vineppo"}:
        assert plan_of(strategy=strategy, adaptive_first=2).first == 0


@pytest.mark.parametrize("first", [1, 4])
def test_an_impossible_plan_is_refused(first):
    with pytest.raises(ValueError, match=f"first={first}, branches=4"):
        GroupPlan(bases=4, trunks=1, branches=4, first=first)


@pytest.mark.parametrize(("first", "branches"), [(-1, 4), (1, 4), (4, 4), (5, 4), (2, 2)])
def test_a_setting_out_of_range_is_refused(first, branches):
    with pytest.raises(
        ConfigError, match=rf"algorithm\.adaptive_first must be .* below algorithm\.branches={branches}, got {first}$"
    ):
        small_config(algorithm={"adaptive_first": first, "branches": branches})


def test_vineppo_refuses_rollouts_that_it_would_not_read():
    with pytest.raises(ConfigError, match=r"algorithm\.adaptive_first=2 with algorithm\.strategy=vineppo"):
        plan_of(strategy="vineppo", adaptive_first=2)


def test_a_token_budget_and_an_adaptive_one_exclude_each_other():
    both = small_config(algorithm={"adaptive_first": 2}, budget={"tokens_per_prompt": 5000})
    with pytest.raises(ConfigError, match=r"budget\.tokens_per_prompt=5000 with algorithm\.adaptive_first=2"):
        check_strategy(both)
    check_strategy(small_config(algorithm={"adaptive_first": 2}))
    check_strategy(small_config(algorithm={"adaptive_first": 2, "anchors": 0}, budget={"tokens_per_prompt": 5000}))
