"""Which groups make a batch; and whatever order things happen in, a run trains the same rows with the same credit.

The credit is the oracle's.
"""

from __future__ import annotations

import random
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_support import PROMPT_TOKENS, TRUNK_MODES, World, control_config
from machine_plays import any_order
from machine_support import Cluster
from oracle import Tree, Worth, fr3e, rloo, vineppo

from fr3e_async.machine.messages import Retire
from fr3e_async.machine.order import in_time, next_batch
from fr3e_async.types import RolloutId

ATTEMPTS = 4
STEPS = 2


MISHAPS = ("lose", "repeat", "come_late")


def play(world: World, order: int, *, faults: float, rescored=False, **settings) -> Cluster:
    """A run in any order to its end. ``faults``: part of the actions in which a task is lost, or an event comes late or again."""
    config = control_config(
        steps=STEPS, groups=3, attempts=ATTEMPTS, minibatches=2, bases=world.bases, anchors=world.anchors, branches=world.branches,
        **settings,
    )  # fmt: skip
    return any_order(Cluster(config, world=world, rescored=rescored), random.Random(order), faults=faults, bad=MISHAPS)


worlds = st.builds(World, seed=st.integers(0, 10**6), doom=st.sampled_from([0.0, 0.05, 0.3]), bases=st.integers(2, 4))
orders = st.integers(0, 10**6)
variants = st.sampled_from(
    [("fr3e", {}), ("vineppo", {}), ("rloo", {}), ("fr3e", {"include_trunk": True, "std_normalise": "true"})]
)


@settings(max_examples=60, deadline=None)
@given(worlds, orders, orders, st.sampled_from(TRUNK_MODES), st.booleans(), st.sampled_from(["drop", "zero"]), variants)
def test_two_orders_train_the_same(world, one, other, trunk, rescored, on_unknown, variant):
    strategy, switches = variant
    if trunk == "one_correct_one_wrong":
        switches = {}
    common = {"strategy": strategy, "trunk": trunk, "rescored": rescored, "on_unknown": on_unknown, **switches}
    first, second = play(world, one, faults=0.0, **common), play(world, other, faults=0.25, **common)
    assert first.history.batches == second.history.batches
    assert first.history.trained == second.history.trained
    for group in first.history.retired.keys() & second.history.retired.keys():
        assert first.history.retired[group].row() == second.history.retired[group].row()


def trunks_of(cluster: Cluster, group: str, trunk: str, *, zero: bool) -> list[int]:
    if trunk == "one_correct_one_wrong":
        return cluster.world.picked_by_reward(group, unknown_is_zero=zero)
    return sorted(cluster.history.trunks.get(group, ()))


def expected(cluster: Cluster, group: str, trunk: str, *, strategy: str, zero: bool) -> tuple[Tree, Worth]:
    grown = [] if strategy == "rloo" else trunks_of(cluster, group, trunk, zero=zero)
    tree = cluster.world.tree(group, grown, unknown_is_zero=zero)
    return tree, {"fr3e": fr3e, "vineppo": vineppo, "rloo": rloo}[strategy](tree)


def require_rows(cluster: Cluster, group: str, worth: Worth) -> None:
    """The rows of a trained group: ids, advantages and lengths."""
    items = {id: row for id, row in cluster.history.trained.items() if id.group == group}
    got = {
        (id.branch,) if id.node == 0 else (*divmod_node(id, cluster.world.anchors), id.branch): item for id, item in items.items()
    }
    assert got.keys() == worth.advantages.keys()
    for rollout, steps in worth.advantages.items():
        advantage, _, _ = got[rollout]
        assert [s.start for s in advantage] == [start for start, _ in steps]
        assert [s.value for s in advantage] == pytest.approx([value for _, value in steps], abs=1e-9)
    for id, (_, _, length) in items.items():
        assert length == cluster.world.context(id) + cluster.world.length(id)


def divmod_node(id: RolloutId, count: int) -> tuple[int, int]:
    trunk, j = divmod(id.node - 1, count)
    return trunk, j + 1


@settings(max_examples=60, deadline=None)
@given(worlds, orders, st.sampled_from(TRUNK_MODES), st.booleans(), st.booleans(), st.sampled_from(["fr3e", "vineppo", "rloo"]))
def test_every_group_ends_as_the_oracle_says(world, order, trunk, rescored, zero, strategy):
    cluster = play(
        world, order, faults=0.25, rescored=rescored, on_unknown="zero" if zero else "drop", strategy=strategy, trunk=trunk
    )
    for group, retired in cluster.history.retired.items():
        tree, worth = expected(cluster, group, trunk, strategy=strategy, zero=zero)
        if worth.reason:
            drawn = [id for id in all_rollouts(cluster.world, group, tree) if not world.doomed(id)]
            assert retired.outcome == (f"rejected_{worth.reason}" if drawn else "failed")
        else:
            assert retired.outcome == "trained"
            require_rows(cluster, group, worth)
        require_all_counted(world, group, tree, retired)
        require_states(world, worth, retired)


def all_rollouts(world: World, group: str, tree: Tree) -> list[RolloutId]:
    ids = [RolloutId(group, 0, b) for b in range(len(tree.bases))]
    for b, states in tree.trunks.items():
        ids += [RolloutId(group, b * world.anchors + j, m) for j in range(1, len(states) + 1) for m in range(world.branches)]
    return ids


def require_all_counted(world: World, group: str, tree: Tree, retired: Retire) -> None:
    """Each rollout is counted once, whatever was tried or delivered how often."""
    ids = all_rollouts(world, group, tree)
    drawn = [id for id in ids if not world.doomed(id)]
    assert retired.rollouts == len(ids)
    assert retired.failed == len(ids) - len(drawn)
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
    outcomes, retries, duplicates, failed, states = set(), 0, 0, 0, 0
    for seed in range(8):
        cluster = play(World(seed=seed, doom=0.1), seed, faults=0.3, trunk=trunk, rescored=rescored, strategy="fr3e")
        outcomes |= {retired.outcome for retired in cluster.history.retired.values()}
        retries += cluster.ledger.retries
        duplicates += cluster.ledger.duplicates
        failed += cluster.ledger.failed
        states = max(states, *(len(retired.states) for retired in cluster.history.retired.values()))
        assert sum(cluster.ledger.outcomes.values()) == len(cluster.history.retired)
    assert {"trained", "rejected_all_correct", "rejected_all_wrong"} <= outcomes
    assert min(retries, duplicates, failed) > 10
    assert states >= (5 if trunk in ("all", "one_correct_one_wrong") else 3)


@settings(max_examples=40, deadline=None)
@given(worlds, orders, st.sampled_from(TRUNK_MODES), st.booleans())
def test_token_counts_of_a_group_add_up(world, order, trunk, rescored):
    cluster = play(world, order, faults=0.25, rescored=rescored, strategy="vineppo", trunk=trunk)
    for group, retired in cluster.history.retired.items():
        items = {id: row for id, row in cluster.history.trained.items() if id.group == group}
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
        cluster = play(World(seed=1, bases=4), 0, faults=0.0, trunk="random", strategy="fr3e", seed=seed)
        for branches in cluster.history.trunks.values():
            assert len(branches) == 1
            chosen += branches
    counts = [chosen.count(b) for b in range(4)]
    assert min(counts) > len(chosen) / 4 * 0.6, counts


# ---- the window ----


def line(*groups: tuple[int, bool]) -> list[Any]:
    """Open groups in admission order, by their birth and whether they are ready."""
    return [SimpleNamespace(name=f"g{n}", born=born, credit=ready or None) for n, (born, ready) in enumerate(groups)]


def chosen(groups: list[Any], **flow: int) -> list[int] | None:
    batch = next_batch(groups, **flow)
    return None if batch is None else [groups.index(group) for group in batch]


@pytest.mark.parametrize(
    ("window", "expected"),
    [(0, None), (1, [0, 2]), (2, [0, 2])],
)
def test_a_ready_group_overtakes_a_slow_one_within_the_window(window, expected):
    groups = line((0, True), (0, False), (0, True), (0, True))
    assert chosen(groups, size=2, window=window, version=0, max_staleness=1) == expected


@pytest.mark.parametrize(("version", "expected"), [(0, [1, 2]), (1, None)])
def test_a_slow_group_is_waited_for_when_it_could_not_follow_in_time(version, expected):
    """It was born at 0 and the bound is 1: it must be in a batch that begins at version 1 at the latest."""
    groups = line((0, False), (0, True), (0, True))
    assert chosen(groups, size=2, window=2, version=version, max_staleness=1) == expected


def test_the_place_among_those_left_behind_counts():
    """Three are left behind: two go into the next batch, the third one into the one after it."""
    groups = line((0, False), (0, False), (0, False), (0, True), (0, True))
    assert chosen(groups, size=2, window=3, version=0, max_staleness=2) == [3, 4]
    assert chosen(groups, size=2, window=3, version=0, max_staleness=1) is None
    assert chosen(groups, size=2, window=2, version=0, max_staleness=2) is None  # one ready group within the window


lines = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=9)


@settings(max_examples=600, deadline=None)
@given(
    groups=lines, size=st.integers(1, 3), window=st.integers(0, 5), start=st.integers(0, 2), ahead=st.integers(0, 3),
    bound=st.integers(0, 3),
)  # fmt: skip
def test_there_is_a_batch_exactly_when_one_leaves_all_others_in_time(groups, size, window, start, ahead, bound):
    """Against all choices. Births never fall; a line that is late already cannot come about."""
    births, born = [], start
    for step, _ in groups:
        born += step == 2
        births.append(born)
    opened = line(*zip(births, (ready for _, ready in groups), strict=True))
    version = start + ahead
    if not in_time(opened, size=size, version=version, max_staleness=bound):
        return
    ready = [n for n, group in enumerate(opened[: size + window]) if group.credit]
    possible = [
        list(choice)
        for choice in combinations(ready, size)
        if all(
            version + 1 + place // size <= group.born + bound
            for place, group in enumerate(g for n, g in enumerate(opened) if n not in choice)
        )
    ]
    found = chosen(opened, size=size, window=window, version=version, max_staleness=bound)
    assert (found is not None) == bool(possible)
    assert found is None or found in possible
    if not window:
        assert found in (None, list(range(size)))


def test_the_brute_force_meets_both_answers():
    """Teeth: among small lines the rule says yes, waits though enough are ready, and waits because too few are."""
    answers = set()
    for births, readiness in product([(0, 0, 0, 0), (0, 0, 1, 1)], product([False, True], repeat=4)):
        groups = line(*zip(births, readiness, strict=True))
        for version in (0, 1):
            if in_time(groups, size=2, version=version, max_staleness=1):
                found = chosen(groups, size=2, window=2, version=version, max_staleness=1)
                answers.add((found is not None, sum(readiness) >= 2))
    assert answers == {(True, True), (False, True), (False, False)}


@settings(max_examples=30, deadline=None)
@given(worlds, orders, st.integers(1, 6), st.sampled_from(TRUNK_MODES))
def test_with_a_window_the_same_groups_are_trained_with_the_same_credit(world, order, window, trunk):
    """In other batches, perhaps; so their minibatches may differ."""
    fields = {"strategy": "fr3e", "trunk": trunk, "staleness": 2}
    one, other = play(world, order, faults=0.0, **fields), play(world, order, faults=0.25, window=window, **fields)
    rows = [{id: (row.advantage, row.tokens) for id, row in cluster.history.trained.items()} for cluster in (one, other)]
    assert rows[0] == rows[1]
    rows = [{name: its.row() for name, its in cluster.history.retired.items()} for cluster in (one, other)]
    assert rows[0] == rows[1]
