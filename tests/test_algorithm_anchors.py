"""Anchor selection: hand-made profiles, the oracle's choice, laws for any profile, and what "certain" promises."""

from itertools import pairwise, product

import numpy as np
import pytest
from builders import small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import anchors as oracle_anchors
from oracle import equal_parts

from fr3e_async.algorithm.anchors import AnchorRule, anchors_of_rows, eligible_positions, select_anchors, with_entropies
from fr3e_async.algorithm.answer_span import answer_end
from fr3e_async.types import Anchor, Completion, Finish, RolloutBatch, RolloutId
from fr3e_async.verify.answers import final_answer

RULES = ("entropy", "surprisal", "random", "uniform", "newline")


def completion(entropies, *, logprobs=None, errors=None, raw=None, finish=Finish.STOP) -> Completion:
    """``raw``: (log-probs, entropies) of the distribution at temperature 1."""
    length = len(entropies)

    def column(values, default=0.0):
        return np.asarray(values if values is not None else [default] * length, dtype=np.float32)

    return Completion(
        tokens=np.arange(10, 10 + length, dtype=np.int32),
        logprobs=column(logprobs, -1.0),
        entropies=column(entropies),
        entropy_errors=column(errors),
        versions=np.zeros(length, dtype=np.int32),
        finish=finish,
        raw_logprobs=None if raw is None else column(raw[0]),
        raw_entropies=None if raw is None else column(raw[1]),
    )


def eligible(length, *, special=None, end=None, budget=100):
    special = np.asarray(special if special is not None else [False] * length, dtype=np.bool_)
    return eligible_positions(length, max_response=budget, special=special, answer_end=end)


def choose(entropies, *, rule="entropy", anchors=3, min_gap=1, trunk=0, of="sampling", places=None, seed=(1, 2), **columns):
    config = small_config(algorithm={"anchor_rule": rule, "anchors": anchors, "min_gap": min_gap, "entropy_of": of}).algorithm
    return select_anchors(
        AnchorRule.of(config, "entropy"),
        trunk=trunk,
        completion=completion(entropies, **columns),
        eligible=eligible(len(entropies)) if places is None else np.asarray(places, dtype=np.bool_),
        seed=seed,
    )


def positions(anchors: tuple[Anchor, ...]) -> list[int]:
    return [a.position for a in anchors]


# ---- the choice ----


def test_highest_entropies_are_taken_and_sorted_by_position():
    anchors = choose([9.0, 0.1, 0.8, 0.2, 0.9, 0.3])
    assert positions(anchors) == [2, 4, 5]  # position 0 has the highest entropy and is the prompt's own state
    assert [a.score for a in anchors] == pytest.approx([0.8, 0.9, 0.3])
    assert all(a.certain for a in anchors)


def test_nodes_and_parents_are_the_same_in_every_process():
    anchors = choose([0.0, 0.1, 0.8, 0.2, 0.9, 0.3], trunk=2)
    assert [(a.trunk, a.node, a.parent) for a in anchors] == [(2, 7, 0), (2, 8, 7), (2, 9, 8)]


def test_nodes_of_different_trunks_never_meet_even_if_one_has_fewer():
    nodes = [a.node for trunk in range(4) for a in choose([0.0] + [1.0] * (trunk % 3), trunk=trunk, anchors=2)]
    assert len(nodes) == len(set(nodes)) == 3
    assert 0 not in nodes


def test_a_close_neighbour_of_a_higher_anchor_is_passed_over():
    assert positions(choose([0, 0.7, 0.9, 0.8, 0.1, 0.2, 0.0], anchors=2, min_gap=3)) == [2, 5]


def test_a_gap_of_exactly_min_gap_is_enough():
    profile = [0.0, 0.9, 0.1, 0.1, 0.8, 0.1]
    assert positions(choose(profile, anchors=2, min_gap=3)) == [1, 4]
    assert positions(choose(profile, anchors=2, min_gap=4)) == [1, 5]


def test_ties_go_to_the_earlier_position():
    assert positions(choose([0.5] * 6, anchors=2)) == [1, 2]
    assert positions(choose([0.5] * 9, anchors=2, min_gap=3)) == [1, 4]


def test_fewer_places_give_fewer_anchors():
    assert positions(choose([0.0, 1.0, 1.0])) == [1, 2]
    assert choose([0.0] * 5, places=[False] * 5) == ()
    assert positions(choose([0.0] * 30, anchors=5, min_gap=12)) == [1, 13, 25]
    assert choose([0.0] * 5, anchors=0) == ()


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_too_short_for_any_anchor(length, rule):
    assert choose([1.0] * length, rule=rule) == ()


# ---- eligibility ----


def test_special_tokens_the_answer_and_the_spent_budget_are_not_eligible():
    assert eligible(6).tolist() == [False] + [True] * 5
    assert eligible(6, special=[False, True, False, False, False, True]).tolist() == [False, False, True, True, True, False]
    assert eligible(6, end=3).tolist() == [False, True, True, False, False, False]
    assert eligible(6, budget=2).tolist() == [False, True, False, False, False, False]
    assert eligible(6, end=0).tolist() == [False] * 6


def test_the_last_token_of_the_budget_leaves_one_for_the_branch():
    places = np.flatnonzero(eligible(8, budget=8))
    assert places[-1] == 7  # prefix of 7, one token left
    assert max(np.flatnonzero(eligible(12, budget=8))) == 7


# ---- the rules ----


def test_surprisal_ranks_by_the_sampled_token_not_by_entropy():
    anchors = choose([0, 5.0, 0.1, 0.1], rule="surprisal", anchors=1, logprobs=[0, -0.1, -3.0, -0.2])
    assert positions(anchors) == [2]
    assert anchors[0].score == pytest.approx(3.0)


def test_raw_and_sampling_distribution_are_told_apart():
    columns = {"logprobs": [-1, -3, -1, -1], "raw": ([-1, -1, -1, -3], [0, 0, 9, 0])}
    profile = [0.0, 9.0, 0.0, 0.0]
    assert positions(choose(profile, anchors=1, of="sampling", **columns)) == [1]
    assert positions(choose(profile, anchors=1, of="raw", **columns)) == [2]
    assert positions(choose(profile, anchors=1, rule="surprisal", of="sampling", **columns)) == [1]
    assert positions(choose(profile, anchors=1, rule="surprisal", of="raw", **columns)) == [3]


@pytest.mark.parametrize("rule", ["entropy", "surprisal"])
def test_where_both_distributions_are_one_the_one_column_serves_both(rule):
    profile, logprobs = [0.0, 0.3, 0.9, 0.1], [-0.1, -0.7, -0.2, -2.0]
    of_raw, of_sampling = (choose(profile, rule=rule, of=of, logprobs=logprobs) for of in ("raw", "sampling"))
    assert of_raw == of_sampling


def test_uniform_rule_spreads_over_the_eligible_positions():
    assert positions(choose([0.0] * 13, rule="uniform", anchors=3)) == [4, 7, 9]
    assert positions(choose([5.0] + [0.0] * 11, rule="uniform", anchors=1)) == [6]


@settings(deadline=None)
@given(st.integers(12, 80), st.integers(1, 5))
def test_uniform_rule_agrees_with_equal_parts(length, count):
    places = list(range(1, length))
    assert positions(choose([0.0] * length, rule="uniform", anchors=count)) == equal_parts(places, count)


def test_newline_rule_spreads_over_the_places_that_it_is_given():
    lines = [False] * 40
    for place in range(4, 40, 4):  # nine lines begin
        lines[place] = True
    assert positions(choose([0.0] * 40, rule="newline", anchors=3, places=lines)) == [12, 20, 28]
    assert positions(choose([0.0] * 40, rule="newline", anchors=20, places=lines)) == list(range(4, 40, 4))


def test_random_rule_depends_on_the_seed_only():
    first, second = choose([0.0] * 30, rule="random"), choose([1.0] * 30, rule="random")
    assert first == second
    assert first != choose([0.0] * 30, rule="random", seed=(1, 3))


def test_random_rule_is_even():
    counts = np.zeros(11, dtype=int)
    for seed in range(600):
        for place in positions(choose([0.0] * 11, rule="random", anchors=2, seed=(seed,))):
            counts[place] += 1
    assert counts[0] == 0
    assert counts[1:].min() > 80, counts  # 120 expected, standard deviation 10


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown anchor rule 'auto'"):
        select_anchors(
            AnchorRule(name="auto", count=1, min_gap=1), trunk=0, completion=completion([0, 1]), eligible=eligible(2), seed=(0,)
        )


profiles = st.lists(st.floats(0, 12, width=32) | st.sampled_from([0.0, 1.0, 2.0]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(profiles, st.integers(0, 6), st.integers(1, 12), st.integers(1, 70), st.sampled_from(["entropy", "surprisal"]), st.data())
def test_the_oracle_agrees(profile, count, min_gap, budget, rule, data):
    length = len(profile)
    banned = data.draw(st.sets(st.integers(0, max(0, length - 1))))
    end = data.draw(st.none() | st.integers(0, length))
    places = eligible(length, special=[p in banned for p in range(length)], end=end, budget=budget)
    columns = {"logprobs": [-x for x in profile]} if rule == "surprisal" else {}
    chosen = choose(
        profile if rule == "entropy" else [0.0] * length, rule=rule, anchors=count, min_gap=min_gap, places=places, **columns
    )
    expected = oracle_anchors(profile, count=count, min_gap=min_gap, banned=banned, answer_end=end, budget=budget)
    assert positions(chosen) == expected
    assert [a.score for a in chosen] == [np.float32(profile[p]) for p in expected]


@settings(max_examples=200, deadline=None)
@given(profiles, st.sampled_from(RULES), st.integers(0, 6), st.integers(1, 12), st.integers(0, 3), st.data())
def test_laws_of_selection(profile, rule, count, min_gap, trunk, data):
    length = len(profile)
    special = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    places = eligible(length, special=special, end=data.draw(st.none() | st.integers(0, length)))
    chosen = choose(profile, rule=rule, anchors=count, min_gap=min_gap, trunk=trunk, places=places)
    found, allowed = positions(chosen), set(np.flatnonzero(places).tolist())
    assert len(found) <= count
    assert set(found) <= allowed
    assert 0 not in found
    assert found == sorted(found)
    assert [a.node for a in chosen] == [trunk * count + j for j in range(1, len(found) + 1)]
    assert all(b - a >= min_gap for a, b in pairwise(found))
    # Fewer than asked for only if nothing more fits.
    if len(found) < count:
        assert all(any(abs(p - q) < min_gap for q in found) for p in allowed)


# ---- certainty ----


@st.composite
def uncertain_profiles(draw: st.DrawFn):
    """Entropies and half-widths on a coarse grid, so that ties and touching intervals are common."""
    length = draw(st.integers(2, 9))
    grid = st.integers(0, 12).map(lambda n: n / 4)
    errors = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    wide = draw(st.booleans())
    return (
        draw(st.lists(grid, min_size=length, max_size=length)),
        draw(st.lists(errors if wide else st.sampled_from([0.0, 0.25]), min_size=length, max_size=length)),
    )


def realisations(profile, errors, draw_more):
    """Corners of the box where there are few, some points of it otherwise."""
    if sum(e > 0 for e in errors) <= 6:
        yield from product(*[(x,) if e == 0 else (x - e, x + e) for x, e in zip(profile, errors, strict=True)])
    for point in draw_more:
        yield [x + e * p for x, e, p in zip(profile, errors, point, strict=True)]


@settings(max_examples=250, deadline=None)
@given(uncertain_profiles(), st.integers(1, 3), st.integers(1, 4), st.data())
def test_certain_anchors_are_the_same_wherever_the_entropies_lie(profile_and_errors, count, min_gap, data):
    profile, errors = profile_and_errors
    chosen = choose(profile, anchors=count, min_gap=min_gap, errors=errors)
    if not chosen or not chosen[0].certain:
        return
    points = data.draw(st.lists(st.lists(st.floats(-1, 1), min_size=len(profile), max_size=len(profile)), max_size=5))
    for real in realisations(profile, errors, points):
        assert oracle_anchors(list(real), count=count, min_gap=min_gap, banned=set()) == positions(chosen), real


@settings(max_examples=250, deadline=None)
@given(uncertain_profiles(), st.integers(1, 3), st.integers(1, 4))
def test_where_no_place_can_lose_or_win_certainty_is_seen(profile_and_errors, count, min_gap):
    """The flag is not merely cautious: where widening every interval a little changes no choice, it is True."""
    profile, errors = profile_and_errors
    wider = [e + 0.01 for e in errors]
    chosen = choose(profile, anchors=count, min_gap=min_gap, errors=errors)
    corners = {
        tuple(oracle_anchors(list(real), count=count, min_gap=min_gap, banned=set())) for real in realisations(profile, wider, [])
    }
    if chosen and len(profile) <= 6 and len(corners) == 1:
        assert chosen[0].certain


def test_uncertain_where_the_intervals_of_a_chosen_and_a_left_out_place_meet():
    profile, errors = [0.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.6, 0.5]
    assert [a.certain for a in choose(profile, anchors=2, errors=errors)] == [False, False]
    assert [a.certain for a in choose(profile, anchors=1, errors=errors)] == [True]


def test_a_place_blocked_for_certain_needs_no_look_at_the_others():
    # 2 is within the gap of 1 and below it for certain, though it may be above 5, the other anchor.
    profile, errors = [0, 5.0, 3.0, 0, 0, 3.0, 0.0], [0, 0, 1.0, 0, 0, 1.0, 0]
    assert [(a.position, a.certain) for a in choose(profile, anchors=2, min_gap=3, errors=errors)] == [(1, True), (5, True)]


def test_a_wide_interval_at_a_place_that_is_not_eligible_is_no_matter():
    anchors = choose([0.0, 3.0, 2.0, 1.0], anchors=1, errors=[0, 0.1, 9.0, 0.1], places=[False, True, False, True])
    assert [(a.position, a.certain) for a in anchors] == [(1, True)]


def test_every_place_taken_is_certain_whatever_the_intervals():
    assert all(a.certain for a in choose([0.0, 1.0, 1.0], anchors=3, errors=[5.0] * 3))


@pytest.mark.parametrize("rule", ["surprisal", "random", "uniform", "newline"])
def test_rules_that_do_not_use_entropies_are_certain(rule):
    assert all(a.certain for a in choose([1.0] * 9, rule=rule, errors=[9.0] * 9))


def test_entropies_from_elsewhere_are_exact_and_decide():
    unknown = completion([1.0] * 4, errors=[1.0] * 4)
    batch = RolloutBatch.build(
        ids=[RolloutId("q@0", 0, 0)], contexts=[np.ones(1, np.int32)], prompt_lens=[1], context_of=[0], completions=[unknown]
    )
    known = with_entropies(batch, {0: np.asarray([0.0, 0.1, 0.2, 0.9], dtype=np.float32)}).completion(0)
    rule = AnchorRule(name="entropy", count=1, min_gap=1)
    (vague,) = select_anchors(rule, trunk=0, completion=unknown, eligible=eligible(4), seed=(0,))
    (exact,) = select_anchors(rule, trunk=0, completion=known, eligible=eligible(4), seed=(0,))
    assert (vague.position, vague.certain) == (1, False)
    assert (exact.position, exact.certain) == (3, True)


# ---- rows of a batch ----


def trunks(order, finish=Finish.STOP) -> RolloutBatch:
    """Trunk b peaks at place 1 + 2b and is 8 + b tokens long."""
    done = [completion(np.where(np.arange(8 + b) == 1 + 2 * b, 2.0, 0.1), finish=finish) for b in order]
    prompt = np.asarray([1, 2], dtype=np.int32)
    return RolloutBatch.build(
        ids=[RolloutId("q@0", 0, b) for b in order],
        contexts=[prompt],
        prompt_lens=[2],
        context_of=[0] * len(order),
        completions=done,
        eligible=[eligible(len(c)) for c in done],
    )


def row_anchors(rule, batch):
    return {batch.ids[row]: anchors_of_rows(rule, batch, [row], seed=7) for row in range(len(batch))}


@settings(deadline=None)
@given(st.permutations(range(4)), st.sampled_from(RULES))
def test_anchors_of_rows_do_not_depend_on_their_order(order, name):
    rule = AnchorRule(name=name, count=2, min_gap=2)
    assert row_anchors(rule, trunks(order)) == row_anchors(rule, trunks(range(4)))


def test_each_rows_own_peak_is_found():
    found = row_anchors(AnchorRule(name="entropy", count=1, min_gap=1), trunks([2, 0, 3, 1]))
    assert {id.branch: (a.position, a.node, a.trunk) for id, (a,) in found.items()} == {
        b: (1 + 2 * b, b + 1, b) for b in range(4)
    }


def test_random_anchors_differ_between_trunks_of_one_length_and_between_groups():
    rule = AnchorRule(name="random", count=3, min_gap=1)
    ids = [RolloutId("q@0", 0, 0), RolloutId("q@0", 0, 1), RolloutId("q@1", 0, 0)]
    done = completion([0.1] * 40)
    batch = RolloutBatch.build(
        ids=ids,
        contexts=[np.asarray([1], dtype=np.int32)],
        prompt_lens=[1],
        context_of=[0] * 3,
        completions=[done] * 3,
        eligible=[eligible(40)] * 3,
    )
    assert len({tuple(positions(anchors)) for anchors in row_anchors(rule, batch).values()}) == 3


def test_an_aborted_trunk_has_no_anchors():
    found = row_anchors(AnchorRule(name="entropy", count=1, min_gap=1), trunks([0], finish=Finish.ABORT))
    assert list(found.values()) == [()]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["so ", "\\boxed{", "4", "}", "<end>"], 4),
        (["\\boxed", "{\\frac{1}", "{2}}", " done"], 3),
        (["\\boxed{1}", " no, ", "\\boxed{2}", "."], 3),
        (["\\boxed{", "4"], None),
        (["nothing"], None),
        ([], None),
        (["\\boxed{\\left\\{", "5", "\\right.}", " more"], 3),  # an escaped brace opens no group
        (["\\fbox {5}", " more"], 1),
        (["\\boxed 5", " more"], 1),
        (["<think>", "\\boxed{5}", " no, wait"], None),  # a draft is not the answer
        (["<think>\\boxed{5}", "</think>", " so 7"], None),
        (["<think>\\boxed{5}</think>", " so ", "\\boxed{7}", "."], 3),
        (["\\boxed{5}", " or ", "\\boxed{"], None),  # the judge finds no answer either
    ],
)
def test_answer_end(pieces, expected):
    assert answer_end(pieces) == expected


@given(st.lists(st.sampled_from(["\\boxed", "\\fbox", "{", "}", "\\{", "7", " ", "<think>", "</think>", "x"]), max_size=14))
def test_the_answer_ends_where_the_judge_has_read_it(pieces):
    """Cut there and the verdict's text is the same; there is an end just where there is an answer."""
    end = answer_end(pieces)
    answer = final_answer("".join(pieces))
    assert (end is None) == (answer is None)
    if end is not None:
        assert final_answer("".join(pieces[:end])) == answer
