"""Values, intervals, alpha and its noise, what a credit may be, and the way from advantages to a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.batching import (
    RowCost,
    advantages_of,
    balanced_shards,
    minibatch_of,
    shard_trees,
    train_sample,
    tree_tokens,
)
from fr3e_async.algorithm.strategies import Credit, GroupRewards
from fr3e_async.algorithm.strategies.base import STD_FLOOR, centred, no_spread, whole
from fr3e_async.algorithm.values import StateValue, alpha, state_values, wilson
from fr3e_async.types import AdvantageSpan, Anchor, Completion, Finish, RolloutBatch, RolloutId


def state(right: float, judged: int) -> StateValue:
    return StateValue(node=1, reward_sum=right, scored=judged)


# ---- values ----


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 40))
def test_wilson_interval_holds_the_value(right, judged):
    right = min(right, judged)
    low, high = state(right, judged).interval
    assert 0 <= low <= right / judged <= high <= 1
    assert low < high


def test_wilson_interval_by_hand():
    # z = 1.96: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert state(2, 4).interval == pytest.approx((0.15003898915, 0.84996101085), abs=1e-9)
    assert state(0, 4).interval == pytest.approx((0.0, 0.48989083645), abs=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(2, 5))
def test_wilson_interval_narrows_with_more_samples(judged, times):
    half = judged / 2
    narrow, wide = wilson(half * times, judged * times), wilson(half, judged)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_states_without_rewards_have_no_value():
    assert set(state_values({0: [1.0], 1: []})) == {0}


@pytest.mark.parametrize(("right", "judged"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_values_are_refused(right, judged):
    with pytest.raises(ValueError, match="scored"):
        state(right, judged)


# ---- alpha ----


@pytest.mark.parametrize(
    ("here", "before", "shrink", "expected"),
    [
        ((3, 4), (2, 4), False, math.exp(-0.25)),
        ((0, 4), (4, 4), False, math.e),
        ((4, 4), (0, 4), False, 1 / math.e),
        ((3, 4), (2, 4), True, 1.0),  # 1/4 is within the standard error of 0.33
        ((0, 4), (4, 4), True, math.e),  # two values without variance: nothing to take off
        ((3, 4), (0, 4), True, math.exp(-(0.75 - math.sqrt(3 / 64)))),
        ((0, 4), (3, 4), True, math.exp(0.75 - math.sqrt(3 / 64))),
    ],
)
def test_alpha_by_hand(here, before, shrink, expected):
    assert alpha(state(*here), state(*before), shrink=shrink) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shrink", [False, True])
def test_alpha_is_one_without_a_value(shrink):
    assert alpha(None, state(1, 2), shrink=shrink) == alpha(state(1, 2), None, shrink=shrink) == 1.0


values = st.builds(lambda judged, part: state(part * judged, judged), st.integers(1, 40), st.floats(0, 1))


@settings(deadline=None)
@given(values, values)
def test_alpha_is_bounded_and_shrinking_only_brings_it_nearer_to_one(here, before):
    plain, shrunk = (math.log(alpha(here, before, shrink=s)) for s in (False, True))
    assert abs(plain) <= 1 + 1e-12
    assert abs(shrunk) <= abs(plain) + 1e-12
    assert plain * shrunk >= 0


@pytest.mark.parametrize(("samples", "expected"), [(2, 0.58), (4, 0.38), (8, 0.26), (16, 0.18)])
def test_noise_of_alpha(samples, expected):
    """Its standard deviation with no true difference and p = 1/2, summed exactly over both binomials."""
    chance = [math.comb(samples, k) / 2**samples for k in range(samples + 1)]
    table = [
        (chance[k] * chance[n], alpha(state(k, samples), state(n, samples), shrink=False))
        for k in range(samples + 1)
        for n in range(samples + 1)
    ]
    mean = sum(p * a for p, a in table)
    assert math.sqrt(sum(p * (a - mean) ** 2 for p, a in table)) == pytest.approx(expected, abs=0.006)


# ---- advantages of one state ----


def test_centred_by_hand():
    assert centred([1, 0, 0.5, 0.5], std_normalise=False) == [0.5, -0.5, 0.0, 0.0]
    assert centred([1, 0], std_normalise=True) == pytest.approx([0.5 / (0.5 + STD_FLOOR), -0.5 / (0.5 + STD_FLOOR)])
    assert centred([1, 1], std_normalise=True) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([], "too_few"),
        ([1], "too_few"),
        ([1, 1], "all_correct"),
        ([0, 0], "all_wrong"),
        ([0.3, 0.3], "no_spread"),
        ([0, 0.1], ""),
    ],
)
def test_no_spread(rewards, reason):
    assert no_spread([float(r) for r in rewards]) == reason


ID = RolloutId("g", 0, 0)


@pytest.mark.parametrize(
    ("advantages", "rejected", "message"),
    [
        ({}, "", "either trained or rejected"),
        ({ID: whole(1.0)}, "all_correct", "either trained or rejected"),
        ({ID: whole(math.nan)}, "", "not finite"),
        ({ID: (AdvantageSpan(0, 1.0), AdvantageSpan(3, math.inf))}, "", "not finite"),
        ({ID: (AdvantageSpan(1, 1.0),)}, "", "begin at 0"),
        ({ID: (AdvantageSpan(0, 1.0), AdvantageSpan(3, 1.0), AdvantageSpan(3, 2.0))}, "", "in order"),
        ({ID: ()}, "", "begin at 0"),
    ],
)
def test_impossible_credits_are_refused(advantages, rejected, message):
    with pytest.raises(ValueError, match=message):
        Credit(advantages=advantages, rejected=rejected)


def test_an_outcome_lists_nodes_without_rewards_and_leaves_out_what_nobody_judged():
    anchor = Anchor(node=4, parent=0, trunk=1, position=3, score=1.0)
    rewards = {RolloutId("g", 0, 1): 0.0, ID: 1.0, RolloutId("g", 0, 2): None}
    nodes = GroupRewards(group="g", rewards=rewards, anchors={4: anchor}).by_node()
    assert nodes == {0: {ID: 1.0, RolloutId("g", 0, 1): 0.0}, 4: {}}
    assert list(nodes[0]) == sorted(nodes[0])


# ---- to a batch ----


def test_spans_become_one_number_a_token():
    advantage = (AdvantageSpan(0, 0.5), AdvantageSpan(2, -1.0), AdvantageSpan(5, 0.25))
    assert advantages_of(advantage, 6).tolist() == [0.5, 0.5, -1.0, -1.0, -1.0, 0.25]
    assert advantages_of(whole(2.0), 3).tolist() == [2.0, 2.0, 2.0]


def test_a_span_beyond_the_completion_is_refused():
    with pytest.raises(ValueError, match="token 4 of 4"):
        advantages_of((AdvantageSpan(0, 1.0), AdvantageSpan(4, 1.0)), 4)


def test_a_train_sample_holds_its_own_row_and_copies():
    completions = [
        Completion(
            tokens=np.full(3 + n, 10 * n, dtype=np.int32),
            logprobs=np.full(3 + n, -0.5 - n, dtype=np.float32),
            entropies=np.zeros(3 + n, dtype=np.float32),
            entropy_errors=np.zeros(3 + n, dtype=np.float32),
            versions=np.full(3 + n, 7 + n, dtype=np.int32),
            finish=Finish.STOP,
        )
        for n in range(2)
    ]
    contexts = [np.asarray([1, 2], dtype=np.int32), np.asarray([3], dtype=np.int32)]
    batch = RolloutBatch.build(
        ids=[ID, RolloutId("g", 0, 1)], contexts=contexts, prompt_lens=[2, 1], context_of=[1, 0], completions=completions
    )
    sample = train_sample(batch, 1, advantage=(AdvantageSpan(0, 1.0), AdvantageSpan(3, -1.0)), minibatch=1)
    assert sample.tokens.tolist() == [1, 2, 10, 10, 10, 10]
    assert (sample.context_len, sample.minibatch) == (2, 1)
    assert sample.advantages.tolist() == [1.0, 1.0, 1.0, -1.0]
    assert sample.behaviour_logprobs.tolist() == [-1.5] * 4
    assert sample.versions.tolist() == [8] * 4
    assert not np.shares_memory(sample.behaviour_logprobs, batch.logprobs)
    assert not np.shares_memory(sample.versions, batch.versions)


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 5))
def test_shards_hold_every_item_once_and_are_balanced(lengths, shards):
    parts = balanced_shards(lengths, shards)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_minibatches_are_equal_parts_in_order():
    assert [minibatch_of(i, groups=8, minibatches=2) for i in range(8)] == [0] * 4 + [1] * 4
    assert [minibatch_of(i, groups=5, minibatches=2) for i in range(5)] == [0, 0, 0, 1, 1]


LOADS = st.builds(
    lambda minibatch, group, context, completion: RowCost(
        minibatch=minibatch, group=2 * group + minibatch, context=context, completion=completion
    ),
    st.integers(0, 1), st.integers(0, 5), st.integers(1, 200), st.integers(1, 300),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(LOADS, max_size=40), st.integers(1, 5))
def test_tree_shards_hold_every_row_once_and_tear_groups_only_to_even_out(rows, shards):
    parts = shard_trees(rows, shards)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    if shards == 1:
        return
    for minibatch in (0, 1):
        groups = {row.group for row in rows if row.minibatch == minibatch}
        mine = [[i for i in part if rows[i].minibatch == minibatch] for part in parts]
        torn = {g for g in groups if sum(any(rows[i].group == g for i in part) for part in mine) > 1}
        whole = [tree_tokens([row for row in rows if row.group == g]) for g in groups]
        loads = [
            sum(tree_tokens([rows[i] for i in part if rows[i].group == g]) for g in {rows[i].group for i in part})
            for part in mine
        ]
        if groups:
            # never worse than whole groups dealt out, longest first
            dealt = [sum(whole[i] for i in part) for part in balanced_shards(whole, shards)]
            assert max(loads) <= max(dealt)
            if max(dealt) <= 1.1 * sum(whole) / shards:
                assert not torn


def test_a_group_alone_is_shared_by_the_ranks():
    rows = [RowCost(minibatch=0, group=0, context=10, completion=100) for _ in range(8)]
    assert sorted(shard_trees(rows, 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [len(part) for part in shard_trees(rows, 4)] == [2, 2, 2, 2]


def test_the_context_of_a_group_counts_once():
    rows = [RowCost(minibatch=0, group=0, context=c, completion=5) for c in (10, 12, 40)]
    assert tree_tokens(rows) == 40 + 15
