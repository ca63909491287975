"""Strategies: numbers worked out by hand, and agreement with the oracle on random trees, for every switch."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import product

import pytest
from builders import small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import State, Tree, fr3e, grpo, rloo, vineppo
from trees import GROUP, SWITCHES, advantages_of, credit_of, outcome_of, require_agreement, rollout_of, steps_of, tree, trees

from fr3e_async.algorithm.strategies import REGISTRY, GroupRewards, make_strategy
from fr3e_async.algorithm.strategies.base import overlong_penalty
from fr3e_async.algorithm.values import StateValue
from fr3e_async.errors import ConfigError
from fr3e_async.types import RolloutId

approx = pytest.approx


class TestFr3e:
    def test_by_hand(self):
        # V = 1/2, 3/4, 1/4: alpha_1 = exp(-1/4), alpha_2 = exp(+1/2)
        got = advantages_of(credit_of(tree([1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1])))
        low, high = math.exp(-0.25), math.exp(0.5)
        assert [got[b,] for b in range(4)] == approx([0.5, -0.5, 0.5, -0.5])
        assert [got[0, 1, m] for m in range(4)] == approx([low * 0.25, low * 0.25, low * 0.25, low * -0.75])
        assert [got[0, 2, m] for m in range(4)] == approx([high * -0.25, high * -0.25, high * -0.25, high * 0.75])
        assert len(got) == 12

    def test_every_trunk_has_its_own_chain_of_neighbours(self):
        # V(S_0) = 2/3. Trunk 1: 1/4, 3/4. Trunk 2: 1/2. The first anchor of trunk 2 has the prompt before it, not trunk 1's last.
        group = Tree([1, 0, 1], {1: [State(3, [1, 0, 0, 0]), State(7, [1, 1, 1, 0])], 2: [State(4, [1, 0])]})
        result = credit_of(group)
        alphas = {node: state.alpha for node, state in result.states.items()}
        assert alphas == approx({0: 1.0, 4: math.exp(2 / 3 - 1 / 4), 5: math.exp(1 / 4 - 3 / 4), 7: math.exp(2 / 3 - 1 / 2)})
        assert advantages_of(result)[2, 1, 0] == approx(math.exp(1 / 6) * 0.5)

    def test_a_state_without_spread_is_dropped_after_alpha_used_it(self):
        # State 1 is all right and dropped; state 2's alpha still compares with V(S_1) = 1, not with V(S_0).
        result = credit_of(tree([1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]))
        got = advantages_of(result)
        assert {rollout[:-1] for rollout in got} == {(), (0, 2)}
        assert got[0, 2, 0] == approx(math.exp(0.75) * 0.75)
        assert [state.dropped for state in result.states.values() if state.dropped] == ["all_correct"]

    def test_an_all_correct_state_has_value_one_and_an_all_wrong_one_zero(self):
        states = credit_of(tree([1, 0], [1, 1], [0, 0])).states
        assert (states[1].value.value, states[2].value.value) == (1.0, 0.0)
        assert (states[1].alpha, states[2].alpha) == approx((math.exp(-0.5), math.exp(1.0)))

    def test_a_state_without_verdicts_is_no_neighbour(self):
        result = credit_of(tree([1, 0], [None, None], [1, 0]))
        assert advantages_of(result)[0, 2, 0] == approx(0.5)  # alpha is 1: V(S_1) is unknown, not 0 and not V(S_0)
        assert (result.states[1].value, result.states[1].dropped) == (None, "too_few")

    def test_alpha_off(self):
        got = advantages_of(credit_of(tree([1, 0], [1, 1, 1, 0]), alpha=False))
        assert (got[0, 1, 0], got[0, 1, 3]) == approx((0.25, -0.75))

    def test_alpha_shrink_takes_one_standard_error_off(self):
        # V(S_0) = 1/2 of 4, V(S_1) = 1 of 4: error = sqrt(1/16 + 0) = 1/4, so the difference of 1/2 counts as 1/4.
        # V(S_2) = 3/4 of 4: error = sqrt(3/64) = 0.2165, the difference of -1/4 counts as -0.0335.
        states = credit_of(tree([1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]), alpha_shrink=True).states
        assert states[1].alpha == approx(math.exp(-0.25))
        assert states[2].alpha == approx(math.exp(0.25 - math.sqrt(3 / 64)))

    def test_std_of_the_state_not_of_the_group(self):
        got = advantages_of(credit_of(tree([1, 0], [1, 0, 0, 0]), std_normalise="true", alpha=False))
        assert got[0,] == approx(0.5 / (0.5 + 1e-6))
        assert got[0, 1, 0] == approx(0.75 / (math.sqrt(3 / 16) + 1e-6))

    def test_graded_rewards(self):
        # V(S_0) = 1/2, V(S_1) = (0.2 + 0.6 + 1) / 3 = 0.6
        got = advantages_of(credit_of(tree([0.5, 0.5, 0.2, 0.8], [0.2, 0.6, 1.0])))
        assert [got[b,] for b in range(4)] == approx([0, 0, -0.3, 0.3])
        assert got[0, 1, 0] == approx(math.exp(-0.1) * -0.4)
        assert got[0, 1, 1] == approx(0.0)

    def test_include_trunk_counts_it_in_its_anchors_but_trains_it_once(self):
        result = credit_of(tree([1, 0], [0, 0]), include_trunk=True)
        assert result.states[1].value.scored == 3
        assert result.states[1].value.value == approx(1 / 3)
        got = advantages_of(result)
        assert got.keys() == {(0,), (1,), (0, 1, 0), (0, 1, 1)}
        assert got[0,] == approx(0.5)  # as a base, of S_0
        assert got[0, 1, 0] == approx(math.exp(0.5 - 1 / 3) * -1 / 3)

    def test_include_trunk_takes_the_anchors_own_trunk(self):
        group = Tree([0, 1], {0: [State(3, [1, 1])], 1: [State(3, [1, 1])]})
        result = credit_of(group, include_trunk=True)
        assert [result.states[node].value.value for node in (1, 4)] == approx([2 / 3, 1.0])
        assert (result.states[1].dropped, result.states[4].dropped) == ("", "all_correct")

    def test_an_unjudged_trunk_is_no_member(self):
        assert credit_of(tree([None, 1, 0], [1, 0]), include_trunk=True).states[1].value.scored == 2

    def test_bases_may_give_the_value_only(self):
        result = credit_of(tree([1, 0, 0, 0], [1, 0]), train_bases=False)
        assert advantages_of(result).keys() == {(0, 1, 0), (0, 1, 1)}
        assert result.states[1].alpha == approx(math.exp(-0.25))
        assert result.states[0].dropped == "not_trained"

    @pytest.mark.parametrize(
        ("group", "reason"),
        [
            (tree([1, 1], [1, 1]), "all_correct"),
            (tree([0, 0], [0, 0]), "all_wrong"),
            (tree([0.5, 0.5], [0.5, 0.5]), "no_spread"),
            (tree([1, 1], [0, 0]), "no_spread"),
            (tree([None, None], [None]), "too_few"),
            (tree([1, None], [None, None]), "too_few"),
            (tree([1, None], [0, None]), "too_few"),  # both rewards, but nowhere two to compare
            (tree([1, 1]), "all_correct"),
        ],
    )
    def test_rejection_of_a_prompt(self, group, reason):
        result = credit_of(group)
        assert (result.rejected, result.advantages) == (reason, {})

    @pytest.mark.parametrize(
        ("branches", "reason"),
        [([1, 1], "all_correct"), ([0, 0], "all_wrong"), ([0.5, 0.5], "no_spread"), ([1], "too_few"), ([None, None], "too_few")],
    )
    def test_rejection_of_a_state(self, branches, reason):
        result = credit_of(tree([1, 0], branches))
        assert (result.states[0].dropped, result.states[1].dropped) == ("", reason)
        assert advantages_of(result).keys() == {(0,), (1,)}

    def test_spread_among_bases_that_are_not_trained_is_no_spread_to_train(self):
        assert credit_of(tree([1, 0]), train_bases=False).rejected == "too_few"
        assert credit_of(tree([1, 0], [1, 1]), train_bases=False).rejected == "no_spread"


class TestFlat:
    def test_grpo_by_hand(self):
        got = advantages_of(credit_of(Tree([1, 0, 0, 0]), strategy="grpo"))
        std = math.sqrt(3 / 16)
        assert got == approx({(0,): 0.75 / (std + 1e-6), **{(b,): -0.25 / (std + 1e-6) for b in (1, 2, 3)}})

    def test_plain_grpo_trains_equal_rewards_with_zero_advantages(self):
        assert advantages_of(credit_of(Tree([1, 1, 1]), strategy="grpo")) == {(0,): 0.0, (1,): 0.0, (2,): 0.0}

    def test_grpo_pp_rejects_what_grpo_trains_for_nothing(self):
        assert credit_of(Tree([1, 1, 1]), strategy="grpo_pp").rejected == "all_correct"
        spread = Tree([1, 0, None, 0])
        assert credit_of(spread, strategy="grpo_pp").advantages == credit_of(spread, strategy="grpo").advantages

    def test_rloo_by_hand(self):
        got = advantages_of(credit_of(Tree([1, 0, 0, 0]), strategy="rloo"))
        assert got == approx({(0,): 1.0, (1,): -1 / 3, (2,): -1 / 3, (3,): -1 / 3})
        graded = advantages_of(credit_of(Tree([0.5, None, 0.25]), strategy="rloo"))
        assert graded == approx({(0,): 0.25, (2,): -0.25})

    @pytest.mark.parametrize("strategy", ["grpo", "grpo_pp", "rloo"])
    @pytest.mark.parametrize("rewards", [[None, None], [1, None]])
    def test_fewer_than_two_verdicts_teach_nothing(self, strategy, rewards):
        assert credit_of(Tree(rewards), strategy=strategy).rejected == "too_few"

    @pytest.mark.parametrize("strategy", ["grpo_pp", "rloo"])
    @pytest.mark.parametrize(
        ("rewards", "reason"), [([1, 1], "all_correct"), ([0, 0, None], "all_wrong"), ([0.5] * 3, "no_spread")]
    )
    def test_rejection(self, strategy, rewards, reason):
        result = credit_of(Tree(rewards), strategy=strategy)
        assert (result.rejected, result.states[0].dropped) == (reason, reason)

    @pytest.mark.parametrize("name", ["fr3e", "grpo", "grpo_pp"])
    @pytest.mark.parametrize("setting", ["auto", "true", "false"])
    def test_std_normalise(self, name: str, setting: str):
        """Of rewards 1, 0, 0, 0: r - mean is 3/4 and -1/4, the standard deviation sqrt(3) / 4. auto: grpo and grpo_pp divide."""
        divided = setting == "true" or (setting == "auto" and name != "fr3e")
        std = math.sqrt(3) / 4 + 1e-6 if divided else 1.0
        got = advantages_of(credit_of(Tree([1, 0, 0, 0]), strategy=name, std_normalise=setting))
        assert [got[b,] for b in range(4)] == approx([0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std])


class TestOverlong:
    """DAPO, arXiv 2503.14476, equation 13: L_max = 48 and L_cache = 16, so responses of up to 32 tokens keep their reward."""

    @pytest.mark.parametrize(
        ("length", "expected"), [(1, 0), (32, 0), (33, -1 / 16), (40, -0.5), (47, -15 / 16), (48, -1), (60, -1)]
    )
    def test_the_papers_penalty(self, length: int, expected: float):
        assert overlong_penalty(length, longest=48, cache=16) == expected

    def test_advantages_are_of_shaped_rewards(self):
        # rewards 1, 1, 0, 0, the second response too long: 1 - 1/2. The mean is 3/8.
        outcome = replace(outcome_of(Tree([1, 1, 0, 0], {})), penalties={RolloutId(GROUP, 0, 1): -0.5})
        for strategy, expected in (
            ("grpo_pp", [0.625, 0.125, -0.375, -0.375]),
            ("rloo", [2.5 / 3, 0.5 / 3, -0.5, -0.5]),
            ("fr3e", [0.625, 0.125, -0.375, -0.375]),
        ):
            settings = {"strategy": strategy} | ({} if strategy == "rloo" else {"std_normalise": "false"})
            credit = make_strategy(small_config(algorithm=settings).algorithm).credit(outcome)
            assert list(advantages_of(credit).values()) == approx(expected), strategy
            assert credit.states[0].value == StateValue(node=0, reward_sum=2.0, scored=4)  # of the raw rewards

    @pytest.mark.parametrize("strategy", ["grpo_pp", "rloo", "fr3e"])
    def test_a_group_is_judged_degenerate_by_its_raw_rewards(self, strategy: str):
        outcome = replace(outcome_of(Tree([1, 1, 1], {})), penalties={RolloutId(GROUP, 0, 1): -0.5})
        credit = make_strategy(small_config(algorithm={"strategy": strategy}).algorithm).credit(outcome)
        assert (credit.rejected, credit.advantages) == ("all_correct", {})

    def test_shaped_rewards_that_are_all_equal_teach_nothing(self):
        outcome = replace(outcome_of(Tree([0.75, 0.25], {})), penalties={RolloutId(GROUP, 0, 0): -0.5})
        assert make_strategy(small_config(algorithm={"strategy": "rloo"}).algorithm).credit(outcome).rejected == "no_spread"

    def test_what_is_left_out_changes_no_other_advantage(self):
        credit = credit_of(tree([1, 0, 1, 0]), strategy="grpo_pp", std_normalise="false")
        left = credit.without({RolloutId(GROUP, 0, 0), RolloutId(GROUP, 0, 3)})
        assert advantages_of(left) == {(1,): -0.5, (2,): 0.5}
        assert left.without({RolloutId(GROUP, 0, 1), RolloutId(GROUP, 0, 2)}).rejected == "too_few"


class TestVinePpo:
    def credit(self, group: Tree):
        return credit_of(group, strategy="vineppo")

    def test_by_hand(self):
        # V(S_0) = mean of the others = 1/3; V(S_1) = 1/2; V(S_2) = 3/4; the trunk is right.
        result = self.credit(tree([1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], at=(4, 9)))
        assert steps_of(result) == {(0,): [(0, approx(1 / 2 - 1 / 3)), (4, approx(1 / 4)), (9, approx(1 / 4))]}
        assert result.states[0].value.value == approx(1 / 2)  # as a state of the group V(S_0) has all bases in it

    def test_the_steps_add_up_to_the_rewards_distance_from_the_baseline(self):
        steps = steps_of(self.credit(tree([0, 1, 1], [0, 1], [1, 1], [0, 0, 0])))[0,]
        assert sum(value for _, value in steps) == approx(0 - 1)

    def test_the_trunks_own_reward_is_not_in_its_baseline(self):
        right, wrong = (steps_of(self.credit(tree([r, 1, 0, 0], [1, 0], at=(6,))))[0,] for r in (1, 0))
        assert right[0] == wrong[0] == (0, approx(1 / 2 - 1 / 3))
        assert (right[1], wrong[1]) == ((6, approx(0.5)), (6, approx(-0.5)))

    def test_an_unknown_state_is_no_cut(self):
        steps = steps_of(self.credit(tree([1, 0], [1, 0], [None, None], [1, 1], at=(3, 6, 9))))[0,]
        assert steps == [(0, 0.5), (3, 0.5), (9, 0.0)]

    def test_a_trunk_without_cuts_is_one_step(self):
        assert steps_of(self.credit(tree([1, 0, 1]))) == {(0,): [(0, 0.5)]}
        assert steps_of(self.credit(tree([0, 1, 1], [None]))) == {(0,): [(0, -1.0)]}

    def test_several_trunks(self):
        group = Tree([1, 0, 0], {0: [State(4, [1, 1])], 2: [State(5, [0, 1]), State(8, [0, 0])]})
        assert steps_of(self.credit(group)) == {(0,): [(0, 1.0), (4, 0.0)], (2,): [(0, 0.0), (5, -0.5), (8, 0.0)]}

    @pytest.mark.parametrize(
        ("bases", "reason"),
        [
            ([None, 1, 0], "too_few"),  # the trunk itself has no reward
            ([1, None, None], "too_few"),  # nothing else tells what the prompt is worth
        ],
    )
    def test_a_trunk_that_cannot_be_credited_is_not_trained(self, bases, reason):
        result = self.credit(tree(bases, [1, 0]))
        assert (result.rejected, result.advantages) == (reason, {})

    def test_one_trunk_of_two_may_be_uncreditable(self):
        group = Tree([None, 1, 0], {0: [State(3, [1, 0])], 1: [State(3, [1, 0])]})
        assert steps_of(self.credit(group)).keys() == {(1,)}

    @pytest.mark.parametrize(
        ("group", "reason"),
        [
            (tree([1, 1], [1, 1]), "all_correct"),
            (tree([0, 0], [0, None]), "all_wrong"),
            (tree([0.5, 0, 1], [0, 1]), "no_spread"),  # every state is worth the same
        ],
    )
    def test_rejection(self, group, reason):
        assert self.credit(group).rejected == reason

    def test_alpha_and_other_switches_of_fr3e_do_not_touch_it(self):
        group = tree([1, 0, 1], [1, 0], [0, 0])
        for switches in ({"alpha": False}, {"alpha_shrink": True}, {"std_normalise": "true"}, {"train_bases": False}):
            assert credit_of(group, strategy="vineppo", **switches) == self.credit(group)


def fr3e_settings(switches: dict[str, bool]) -> dict[str, object]:
    return {SWITCHES.get(name, name): str(value).lower() if name == "std" else value for name, value in switches.items()}


ALL_SWITCHES = [
    dict(zip(("alpha", "shrink", "std", "include_trunk", "train_bases"), bits, strict=True))
    for bits in product((False, True), repeat=5)
]


class TestOracle:
    @settings(max_examples=300, deadline=None)
    @given(trees(), st.sampled_from(ALL_SWITCHES))
    def test_fr3e(self, group, switches):
        require_agreement(credit_of(group, **fr3e_settings(switches)), fr3e(group, **switches))

    @settings(deadline=None)
    @given(trees(of=st.floats(0, 1) | st.none()))
    def test_fr3e_on_any_rewards(self, group):
        require_agreement(credit_of(group), fr3e(group))

    @settings(max_examples=200, deadline=None)
    @given(trees())
    def test_vineppo(self, group):
        require_agreement(credit_of(group, strategy="vineppo"), vineppo(group))

    @settings(deadline=None)
    @given(trees(trunks=0), st.sampled_from(["grpo", "grpo_pp", "rloo"]))
    def test_flat(self, group, strategy):
        expected = rloo(group) if strategy == "rloo" else grpo(group, reject=strategy == "grpo_pp")
        require_agreement(credit_of(group, strategy=strategy), expected)

    @settings(deadline=None)
    @given(trees(trunks=0))
    def test_fr3e_without_anchors_is_rloo_but_for_its_scale(self, group):
        judged = sum(r is not None for r in group.bases)
        plain, leave_one_out = advantages_of(credit_of(group)), advantages_of(credit_of(group, strategy="rloo"))
        assert plain == approx({rollout: a * (judged - 1) / judged for rollout, a in leave_one_out.items()})


STRATEGIES = st.sampled_from(
    [
        *((name, {}) for name in REGISTRY),
        *(("fr3e", fr3e_settings(s)) for s in ALL_SWITCHES),
        *(("fr3e", {"adaptive_first": 2, "include_trunk": trunk}) for trunk in (False, True)),
    ]
)


@settings(max_examples=200, deadline=None)
@given(trees(), STRATEGIES, st.randoms(use_true_random=False))
def test_order_of_arrival_changes_nothing(group: Tree, choice, rng: random.Random):
    name, switches = choice
    strategy = make_strategy(small_config(algorithm={"strategy": name, "anchors": 3, **switches}).algorithm)
    whole = outcome_of(group)
    rewards, anchors = list(whole.rewards.items()), list(whole.anchors.items())
    rng.shuffle(rewards)
    rng.shuffle(anchors)
    shuffled = GroupRewards(group=GROUP, rewards=dict(rewards), anchors=dict(anchors), trunks=whole.trunks)
    assert strategy.credit(shuffled) == strategy.credit(whole)


@settings(max_examples=200, deadline=None)
@given(trees(), STRATEGIES)
def test_a_rollout_given_up_counts_as_little_as_one_never_drawn(group: Tree, choice):
    name, switches = choice
    strategy = make_strategy(small_config(algorithm={"strategy": name, "anchors": 3, **switches}).algorithm)
    whole = outcome_of(group)
    unjudged = frozenset(rollout_of(id) for id, reward in whole.rewards.items() if reward is None)
    assert strategy.credit(outcome_of(group, missing=unjudged)) == strategy.credit(whole)


@settings(max_examples=200, deadline=None)
@given(trees(of=st.floats(0, 1) | st.none()), STRATEGIES)
def test_credit_is_finite_and_on_judged_rollouts_only(group: Tree, choice):
    name, switches = choice
    result = credit_of(group, strategy=name, **switches)
    whole = outcome_of(group)
    assert all(whole.rewards[id] is not None for id in result.advantages)
    assert all(math.isfinite(step.value) for advantage in result.advantages.values() for step in advantage)
    assert all(1 / math.e - 1e-12 <= state.alpha <= math.e + 1e-12 for state in result.states.values())
    assert bool(result.advantages) != bool(result.rejected)


def plan_of(**algorithm):
    return make_strategy(small_config(algorithm=algorithm).algorithm).plan


@pytest.mark.parametrize(
    ("algorithm", "trunks", "rollouts"),
    [
        ({}, 1, 4 + 3 * 4),
        ({"trunk": "random"}, 1, 4 + 3 * 4),
        ({"trunk": "one_correct_one_wrong"}, 2, 4 + 2 * 3 * 4),
        ({"trunk": "all"}, 4, 4 + 4 * 3 * 4),
        ({"anchors": 0}, 0, 4),
        ({"strategy": "vineppo"}, 1, 4 + 3 * 4),
        ({"strategy": "grpo", "bases": 16}, 0, 16),
        ({"strategy": "grpo_pp", "bases": 16}, 0, 16),
        ({"strategy": "rloo", "bases": 16}, 0, 16),
    ],
)
def test_plans(algorithm, trunks, rollouts):
    plan = plan_of(**algorithm)
    assert (plan.trunks, plan.rollouts) == (trunks, rollouts)


@pytest.mark.parametrize(("strategy", "rule"), [("fr3e", "entropy"), ("vineppo", "newline")])
def test_the_default_rule_is_the_strategys_own(strategy, rule):
    assert plan_of(strategy=strategy).rule.name == rule
    assert plan_of(strategy=strategy, anchor_rule="uniform").rule.name == "uniform"


@pytest.mark.parametrize("algorithm", [{"strategy": "vineppo", "anchors": 0}, {"anchors": 0, "train_bases": False}])
def test_a_strategy_that_could_train_nothing_is_refused(algorithm):
    with pytest.raises(ConfigError, match=r"algorithm\.anchors"):
        plan_of(**algorithm)


def test_an_unknown_strategy_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"algorithm\.strategy .* got 'grpo_p'; did you mean grpo_pp\?"):
        plan_of(strategy="grpo_p")


def test_trunks_are_named_by_base():
    assert outcome_of(tree([1, 0], trunk=1)).trunks == (RolloutId(GROUP, 0, 1),)
