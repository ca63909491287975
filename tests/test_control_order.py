"""Whatever order things happen in, a run trains the same rows with the same credit, and it is the oracle's."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_support import PROMPT_TOKENS, TRUNK_MODES, Player, World, make_ledger
from oracle import Tree, Worth, fr3e, rloo, vineppo

from fr3e_async.control.messages import Retire
from fr3e_async.types import RolloutId

ATTEMPTS = 4
STEPS = 2


def play(world: World, order: int, *, faults: float, rescored=False, on_unknown="drop", seed=0, **algorithm) -> Player:
    ledger = make_ledger(
        steps=STEPS, groups=3, attempts=ATTEMPTS, minibatches=2, on_unknown=on_unknown, seed=seed,
        bases=world.bases, anchors=world.anchors, branches=world.branches, **algorithm,
    )  # fmt: skip
    return Player(
        ledger=ledger, world=world, rng=random.Random(order), attempts=ATTEMPTS, rescored=rescored, faults=faults
    ).play()


worlds = st.builds(World, seed=st.integers(0, 10**6), doom=st.sampled_from([0.0, 0.05, 0.3]), bases=st.integers(2, 4))
orders = st.integers(0, 10**6)
variants = st.sampled_from(
    [("fr3e", {}), ("vineppo", {}), ("rloo", {}), ("fr3e", {"include_trunk": True, "std_normalise": True})]
)


@settings(max_examples=60, deadline=None)
@given(worlds, orders, orders, st.sampled_from(TRUNK_MODES), st.booleans(), st.sampled_from(["drop", "zero"]), variants)
def test_two_orders_train_the_same(world, one, other, trunk, rescored, on_unknown, variant):
    strategy, switches = variant
    if trunk == "one_right_one_wrong":
        switches = {}
    common = {"strategy": strategy, "trunk": trunk, "rescored": rescored, "on_unknown": on_unknown, **switches}
    first, second = play(world, one, faults=0.0, **common), play(world, other, faults=0.25, **common)
    assert first.batches == second.batches
    assert first.trained == second.trained
    for group in first.retired.keys() & second.retired.keys():
        assert first.retired[group] == second.retired[group]


def trunks_of(player: Player, group: str, trunk: str, *, zero: bool) -> list[int]:
    if trunk == "one_right_one_wrong":
        return player.world.picked_by_reward(group, unknown_is_zero=zero)
    return sorted(player.trunks.get(group, ()))


def expected(player: Player, group: str, trunk: str, *, strategy: str, zero: bool) -> tuple[Tree, Worth]:
    grown = [] if strategy == "rloo" else trunks_of(player, group, trunk, zero=zero)
    tree = player.world.tree(group, grown, unknown_is_zero=zero)
    return tree, {"fr3e": fr3e, "vineppo": vineppo, "rloo": rloo}[strategy](tree)


def require_rows(player: Player, group: str, worth: Worth) -> None:
    """The rows of a trained group: ids, advantages and lengths."""
    items = {id: item for batch in player.trained for id, item in batch.items() if id.group == group}
    got = {
        (id.branch,) if id.node == 0 else (*divmod_node(id, player.world.anchors), id.branch): item for id, item in items.items()
    }
    assert got.keys() == worth.advantages.keys()
    for rollout, steps in worth.advantages.items():
        advantage, _, _ = got[rollout]
        assert [s.start for s in advantage] == [start for start, _ in steps]
        assert [s.value for s in advantage] == pytest.approx([value for _, value in steps], abs=1e-9)
    for id, (_, _, length) in items.items():
        assert length == player.world.context(id) + player.world.length(id)


def divmod_node(id: RolloutId, count: int) -> tuple[int, int]:
    trunk, j = divmod(id.node - 1, count)
    return trunk, j + 1


@settings(max_examples=60, deadline=None)
@given(worlds, orders, st.sampled_from(TRUNK_MODES), st.booleans(), st.booleans(), st.sampled_from(["fr3e", "vineppo", "rloo"]))
def test_every_group_ends_as_the_oracle_says(world, order, trunk, rescored, zero, strategy):
    player = play(
        world, order, faults=0.25, rescored=rescored, on_unknown="zero" if zero else "drop", strategy=strategy, trunk=trunk
    )
    for group, retired in player.retired.items():
        tree, worth = expected(player, group, trunk, strategy=strategy, zero=zero)
        if worth.reason:
            drawn = [id for id in all_rollouts(player.world, group, tree) if not world.doomed(id)]
            assert retired.fate == (f"rejected_{worth.reason}" if drawn else "failed_given_up")
        else:
            assert retired.fate == "trained"
            require_rows(player, group, worth)
        require_books(world, group, tree, retired)
        require_states(world, worth, retired)


def all_rollouts(world: World, group: str, tree: Tree) -> list[RolloutId]:
    ids = [RolloutId(group, 0, b) for b in range(len(tree.bases))]
    for b, states in tree.trunks.items():
        ids += [RolloutId(group, b * world.anchors + j, m) for j in range(1, len(states) + 1) for m in range(world.branches)]
    return ids


def require_books(world: World, group: str, tree: Tree, retired: Retire) -> None:
    """Each rollout is in the books once, whatever was tried or delivered how often."""
    ids = all_rollouts(world, group, tree)
    drawn = [id for id in ids if not world.doomed(id)]
    assert retired.rollouts == len(ids)
    assert retired.given_up == len(ids) - len(drawn)
    assert retired.unknown == sum(world.reward(id) is None for id in drawn)
    assert retired.tokens.generated == sum(world.length(id) for id in drawn)
    assert retired.tokens.prefilled == sum(world.context(id) for id in drawn)
    assert retired.anchors == retired.anchors_certain == sum(len(states) for states in tree.trunks.values())


def require_states(world: World, worth: Worth, retired: Retire) -> None:
    """What groups.jsonl is told of each state."""
    nodes = {0 if place == () else place[0] * world.anchors + place[1]: place for place in worth.values}
    assert [state.node for state in retired.states] == sorted(nodes)
    for state in retired.states:
        place = nodes[state.node]
        assert (state.trunk, state.dropped) == (place[0] if place else None, worth.dropped[place])
        assert state.parent == (None if not place else state.node - 1 if place[1] > 1 else 0)
        assert (state.value is None) == (worth.values[place] is None)
        assert state.value is None or state.value == pytest.approx(worth.values[place], abs=1e-9)
        assert state.alpha == pytest.approx(worth.alphas[place], abs=1e-9)
        assert state.low <= (0.5 if state.value is None else state.value) <= state.high


@pytest.mark.parametrize(("trunk", "rescored"), list(product(TRUNK_MODES, (False, True))))
def test_the_worlds_have_something_to_get_wrong(trunk, rescored):
    """Teeth: among these plays are retries, late results, rejections, given-up rollouts, and several states in a group."""
    fates, retries, duplicates, given_up, states = set(), 0, 0, 0, 0
    for seed in range(8):
        player = play(World(seed=seed, doom=0.1), seed, faults=0.3, trunk=trunk, rescored=rescored, strategy="fr3e")
        fates |= {retired.fate for retired in player.retired.values()}
        retries += player.ledger.retries
        duplicates += player.ledger.duplicates
        given_up += player.ledger.given_up
        states = max(states, *(len(retired.states) for retired in player.retired.values()))
        assert sum(player.ledger.fates.values()) == len(player.retired)
    assert {"trained", "rejected_all_right", "rejected_all_wrong"} <= fates
    assert min(retries, duplicates, given_up) > 10
    assert states >= (5 if trunk in ("all", "one_right_one_wrong") else 3)


@settings(max_examples=40, deadline=None)
@given(worlds, orders, st.sampled_from(TRUNK_MODES), st.booleans())
def test_token_counts_of_a_group_add_up(world, order, trunk, rescored):
    player = play(world, order, faults=0.25, rescored=rescored, strategy="vineppo", trunk=trunk)
    for group, retired in player.retired.items():
        items = {id: item for batch in player.trained for id, item in batch.items() if id.group == group}
        assert retired.tokens.trained == sum(world.length(id) for id in items)
        useful = 0
        for id, (advantage, _, length) in items.items():
            assert length == PROMPT_TOKENS + world.length(id)  # vineppo trains bases only
            per_token = [next(s.value for s in reversed(advantage) if s.start <= i) for i in range(world.length(id))]
            useful += sum(value != 0 for value in per_token)
        assert retired.tokens.useful == useful
        assert retired.tokens.reused == 0


def test_the_random_trunk_is_chosen_before_any_reward_and_evenly():
    chosen: list[int] = []
    for seed in range(60):
        player = play(World(seed=1, bases=4), 0, faults=0.0, trunk="random", strategy="fr3e", seed=seed)
        for branches in player.trunks.values():
            assert len(branches) == 1
            chosen += branches
    counts = [chosen.count(b) for b in range(4)]
    assert min(counts) > len(chosen) / 4 * 0.6, counts
