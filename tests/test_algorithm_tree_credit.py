"""Tree credit against the exact policy gradient of small trees: every group that can be drawn, in rational numbers.

A world is a binary tree of three decisions, one logit a state, so a token's score is (action - probability) at its state. The sum
over all groups of probability times update must be N times the gradient, to the last digit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction as F
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.algorithm.strategies.base import GroupRewards
from fr3e_async.algorithm.strategies.tree_credit import TreeCredit, tree_credit
from fr3e_async.config import AlgorithmConfig
from fr3e_async.errors import ConfigError
from fr3e_async.machine.messages import TrainItem
from fr3e_async.machine.order import weighted
from fr3e_async.types import AdvantageSpan, Anchor, RolloutId

DEPTH = 3
Path = tuple[int, ...]
Rule = Callable[[Path], list[int]]
Update = dict[Path, F]

CHANCE: dict[Path, F] = {  # of action 1
    (): F(2, 5), (0,): F(1, 4), (1,): F(7, 10), (0, 0): F(1, 2), (0, 1): F(9, 10), (1, 0): F(3, 5), (1, 1): F(1, 5),
}  # fmt: skip
PATHS = list(product((0, 1), repeat=DEPTH))
REWARDS = {
    "binary": dict(zip(PATHS, map(F, (0, 1, 1, 0, 0, 1, 1, 0)), strict=True)),
    "graded": dict(zip(PATHS, (F(x, 10) for x in (0, 3, 10, 5, 2, 9, 7, 1)), strict=True)),
}


def chance(path: Path, start: int = 0) -> F:
    """Probability of the path's tokens from ``start`` on, given those before."""
    found = F(1)
    for t in range(start, DEPTH):
        found *= CHANCE[path[:t]] if path[t] else 1 - CHANCE[path[:t]]
    return found


def value(state: Path, rewards: dict[Path, F]) -> F:
    return sum((chance(path, len(state)) * rewards[path] for path in PATHS if path[: len(state)] == state), F(0))


def gradient(rewards: dict[Path, F]) -> Update:
    """dJ/dlogit of each state: P(state) q (1 - q) (V(1) - V(0))."""
    found = {}
    for depth in range(DEPTH):
        for state in product((0, 1), repeat=depth):
            reach = sum((chance(path) for path in PATHS if path[:depth] == state), F(0))
            q = CHANCE[state]
            found[state] = reach * q * (1 - q) * (value((*state, 1), rewards) - value((*state, 0), rewards))
    return found


def drawn(*, bases: int, branches: int, rule: Rule, trunks: int) -> Iterator[tuple[F, dict[RolloutId, Path], list[Anchor]]]:
    """Every group that can be drawn: its probability, the path of each rollout, its anchors."""
    for chosen in product(PATHS, repeat=bases):
        places = {trunk: rule(chosen[trunk]) for trunk in range(trunks)}
        most = max(map(len, places.values()))
        anchors = [
            Anchor(node=trunk * most + j + 1, parent=trunk * most + j if j else 0, trunk=trunk, position=position, score=0.0)
            for trunk, positions in places.items()
            for j, position in enumerate(positions)
        ]
        slots = [(anchor, m) for anchor in anchors for m in range(branches)]
        ends = [[path for path in PATHS if path[: a.position] == chosen[a.trunk][: a.position]] for a, _ in slots]
        for continued in product(*ends):
            probability = F(1)
            paths = {RolloutId("g", 0, i): path for i, path in enumerate(chosen)}
            for path in chosen:
                probability *= chance(path)
            for (anchor, m), path in zip(slots, continued, strict=True):
                probability *= chance(path, anchor.position)
                paths[RolloutId("g", anchor.node, m)] = path
            yield probability, paths, anchors


def credited(paths: dict[RolloutId, Path], anchors: list[Anchor], rewards: dict[Path, F], **how: Any) -> Any:
    outcome = GroupRewards(
        group="g",
        rewards={id: rewards[path] for id, path in paths.items()},  # type: ignore[misc]
        anchors={anchor.node: anchor for anchor in anchors},
        trunks=[RolloutId("g", 0, b) for b in sorted({anchor.trunk for anchor in anchors})],
    )
    return tree_credit(outcome, shrink=2, **how)


def expected(rewards: dict[Path, F], *, by_path: bool = True, **group: Any) -> Update:
    """Expectation of the summed update of a group, by state."""
    total: Update = defaultdict(F)
    mass = F(0)
    for probability, paths, anchors in drawn(**group):
        mass += probability
        starts = {anchor.node: anchor.position for anchor in anchors}
        for id, spans in credited(paths, anchors, rewards, path=by_path).items():
            path, first = paths[id], starts.get(id.node, 0)
            stops = [*(span.start for span in spans[1:]), DEPTH - first]
            for span, stop in zip(spans, stops, strict=True):
                weight = F(span.weight).limit_denominator(99)  # one over a product of (branches + 1)
                for t in range(first + span.start, first + stop):
                    score = path[t] - CHANCE[path[:t]]
                    total[path[:t]] += probability * span.value * weight * score
    assert mass == 1
    return total


def fixed(*positions: int) -> Rule:
    return lambda path: list(positions)


def uncertain(state: Path, least: F) -> bool:
    return CHANCE[state] * (1 - CHANCE[state]) >= least


def first_crossing(least: F) -> Rule:
    """The first uncertain state: it is known at that state whether it is one."""
    return lambda path: [d for d in range(1, DEPTH) if uncertain(path[:d], least)][:1]


def every_crossing(least: F) -> Rule:
    """All uncertain states: several stopping times, a random number of them."""
    return lambda path: [d for d in range(1, DEPTH) if uncertain(path[:d], least)]


def most_uncertain(path: Path) -> list[int]:
    """The largest uncertainty of the whole trunk: it looks ahead."""
    return [max(range(1, DEPTH), key=lambda d: (CHANCE[path[:d]] * (1 - CHANCE[path[:d]]), -d))]


EXACT = {
    "a fixed place": {"bases": 3, "branches": 1, "rule": fixed(1), "trunks": 1},
    "two fixed places": {"bases": 2, "branches": 2, "rule": fixed(1, 2), "trunks": 1},
    "a stopping time": {"bases": 2, "branches": 3, "rule": first_crossing(F(21, 100)), "trunks": 1},
    "stopping times, a random number": {"bases": 2, "branches": 2, "rule": every_crossing(F(21, 100)), "trunks": 1},
    "every base a trunk": {"bases": 2, "branches": 1, "rule": every_crossing(F(21, 100)), "trunks": 2},
    "two trunks of three bases": {"bases": 3, "branches": 1, "rule": first_crossing(F(21, 100)), "trunks": 2},
}


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("case", EXACT)
def test_path_weights_sum_to_the_gradient(case: str, rewards: str) -> None:
    exact = gradient(REWARDS[rewards])
    bases = EXACT[case]["bases"]
    assert expected(REWARDS[rewards], **EXACT[case]) == {state: bases * g for state, g in exact.items()}


def test_weights_of_one_count_what_follows_an_anchor_more_often() -> None:
    """Two fixed places, two branches each, two bases: regions of the tree weigh 2 : 4 : 6."""
    found = expected(REWARDS["binary"], by_path=False, bases=2, branches=2, rule=fixed(1, 2), trunks=1)
    assert found == {state: (2 + 2 * len(state)) * g for state, g in gradient(REWARDS["binary"]).items()}


def test_an_anchor_that_looks_ahead_is_not_exact() -> None:
    exact = gradient(REWARDS["binary"])
    found = expected(REWARDS["binary"], bases=2, branches=2, rule=most_uncertain, trunks=1)
    off = max(abs(found[state] - 2 * g) / abs(2 * g) for state, g in exact.items() if g)
    assert off > F(1, 10)


def outcome(rewards: dict[tuple[int, int], float | None], positions: dict[int, tuple[int, int]]) -> GroupRewards:
    """Rewards by (node, branch); anchors by node: (trunk, position)."""
    anchors = {
        node: Anchor(node=node, parent=0, trunk=trunk, position=position, score=0.0)
        for node, (trunk, position) in positions.items()
    }
    return GroupRewards(
        group="g",
        rewards={RolloutId("g", *key): reward for key, reward in rewards.items()},
        anchors=anchors,
        trunks=[RolloutId("g", 0, b) for b in sorted({trunk for trunk, _ in positions.values()})],
    )


def test_a_group_worked_out_by_hand() -> None:
    """Base 0 (right) has anchors at 4 (branches 1, 0) and 9 (branches 0, 0); bases 1 and 2 are wrong and right; k = 2.

    Q_3 = 1, Q_2 = (0 + 1) / 3 = 1/3, Q_1 = (1 + 1/3) / 3 = 4/9; V0 of the trunk is (0 + 1) / 2 = 1/2, so B_1 = (1 + 1) / 4 = 1/2 and
    B_2 = (0 + 1) / 4 = 1/4. Bases 1 and 2 are compared with (4/9 + 1) / 2 = 13/18 and (4/9 + 0) / 2 = 2/9.
    """
    tree = outcome(
        {(0, 0): 1.0, (0, 1): 0.0, (0, 2): 1.0, (1, 0): 1.0, (1, 1): 0.0, (2, 0): 0.0, (2, 1): 0.0}, {1: (0, 4), 2: (0, 9)}
    )
    found = tree_credit(tree)
    hand = {
        (0, 0): [(0, 4 / 9 - 1 / 2, 1), (4, 1 / 3 - 1 / 2, 1 / 3), (9, 1 - 1 / 4, 1 / 9)],
        (0, 1): [(0, -13 / 18, 1)],
        (0, 2): [(0, 1 - 2 / 9, 1)],
        (1, 0): [(0, 1 - (0 + 1 / 3 + 2 * 1 / 2) / 4, 1 / 3)],
        (1, 1): [(0, 0 - (1 + 1 / 3 + 2 * 1 / 2) / 4, 1 / 3)],
        (2, 0): [(0, 0 - (0 + 1 + 2 * 1 / 2) / 4, 1 / 9)],
        (2, 1): [(0, 0 - (0 + 1 + 2 * 1 / 2) / 4, 1 / 9)],
    }
    assert {(id.node, id.branch): [pytest.approx(tuple(span)) for span in spans] for id, spans in found.items()} == hand


def test_a_trunk_without_a_verdict_is_not_trained_but_its_branches_are() -> None:
    """Q_2 is unknown, Q_1 = (1 + 0) / 2; V0 = 0; the branches are compared with each other and V0: (0 + 2 · 0) / 3 and (1 + 0) / 3."""
    found = tree_credit(outcome({(0, 0): None, (0, 1): 0.0, (1, 0): 1.0, (1, 1): 0.0}, {1: (0, 4)}))
    assert RolloutId("g", 0, 0) not in found
    assert found[RolloutId("g", 1, 0)] == (AdvantageSpan(0, 1.0, pytest.approx(1 / 3)),)
    assert found[RolloutId("g", 1, 1)] == (AdvantageSpan(0, pytest.approx(-1 / 3), pytest.approx(1 / 3)),)
    assert found[RolloutId("g", 0, 1)] == (AdvantageSpan(0, -0.5, 1),)


@pytest.mark.parametrize("rewards", [{(0, 0): 1.0}, {(0, 0): 1.0, (0, 1): None}])
def test_a_base_without_another_one_is_not_trained(rewards: dict[tuple[int, int], float | None]) -> None:
    assert tree_credit(outcome(rewards, {})) == {}


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=6))
def test_without_anchors_it_is_leave_one_out(rewards: list[float]) -> None:
    found = tree_credit(outcome({(0, i): r for i, r in enumerate(rewards)}, {}))
    for i, reward in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        assert found[RolloutId("g", 0, i)] == (AdvantageSpan(0, pytest.approx(reward - sum(others) / len(others)), 1),)


@given(st.sampled_from([0.0, 0.25, 1.0]), st.integers(2, 4), st.integers(1, 4))
def test_equal_rewards_teach_nothing(reward: float, bases: int, branches: int) -> None:
    rewards: dict[tuple[int, int], float | None] = {(0, i): reward for i in range(bases)}
    rewards |= {(1, m): reward for m in range(branches)}
    spans = [span for found in tree_credit(outcome(rewards, {1: (0, 3)})).values() for span in found]
    assert [span.value for span in spans] == pytest.approx([0.0] * len(spans))


# ---- the strategy ----


def strategy(**fields: Any) -> TreeCredit:
    return TreeCredit(AlgorithmConfig(strategy="tree_credit", bases=2, anchors=1, branches=2, **fields))


def test_a_state_whose_branches_agree_stays_and_a_group_whose_rewards_do_is_rejected() -> None:
    mixed = strategy().credit(outcome({(0, 0): 1.0, (0, 1): 0.0, (1, 0): 1.0, (1, 1): 1.0}, {1: (0, 4)}))
    assert {(id.node, id.branch) for id in mixed.advantages} >= {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert (mixed.rejected, mixed.states[1].dropped, mixed.states[1].value.value) == ("", "", 1.0)  # type: ignore[union-attr]
    alike = strategy().credit(outcome({(0, 0): 1.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 1.0}, {1: (0, 4)}))
    assert (dict(alike.advantages), alike.rejected) == ({}, "all_correct")


@pytest.mark.parametrize(("weights", "last"), [("path", 1 / 3), ("fr3e", 1.0)])
def test_the_setting_names_the_weights(weights: str, last: float) -> None:
    found = strategy(credit_weights=weights).credit(outcome({(0, 0): 1.0, (0, 1): 0.0, (1, 0): 1.0, (1, 1): 0.0}, {1: (0, 4)}))
    assert [span.weight for span in found.advantages[RolloutId("g", 0, 0)]] == pytest.approx([1.0, last])
    assert [span.weight for span in found.advantages[RolloutId("g", 1, 1)]] == pytest.approx([last])


def test_without_anchors_another_strategy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"without anchors algorithm\.strategy=tree_credit is rloo"):
        TreeCredit(AlgorithmConfig(strategy="tree_credit", anchors=0))


def test_a_second_round_that_depends_on_rewards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.adaptive_first=2 with algorithm\.strategy=tree_credit is not exact"):
        TreeCredit(AlgorithmConfig(strategy="tree_credit", branches=4, adaptive_first=2))


# ---- weights on their way to the learner ----


def item(minibatch: int, length: int, *spans: tuple[int, float, float]) -> TrainItem:
    load = RowCost(minibatch=minibatch, group=0, context=3, completion=length)
    return TrainItem(1, 0, tuple(AdvantageSpan(*span) for span in spans), load)


def test_weights_are_shares_of_a_mean_of_one_within_each_minibatch() -> None:
    """Minibatch 0: 4 tokens of weight 1 and 6 of 1/2 in one row, 10 of weight 0.2 in another: 9 of 20, a mean of 0.45."""
    items = [item(0, 10, (0, 1.0, 1.0), (4, -2.0, 0.5)), item(0, 10, (0, 3.0, 0.2)), item(1, 5, (0, 0.7, 1.0))]
    first, second, other = (one.advantage for one in weighted(items))
    assert [(span.start, span.value) for span in first] == [(0, pytest.approx(1 / 0.45)), (4, pytest.approx(-1 / 0.45))]
    assert second[0].value == pytest.approx(3 * 0.2 / 0.45)
    assert other == (AdvantageSpan(0, 0.7),)


def test_without_weights_nothing_changes() -> None:
    items = [item(0, 10, (0, 1.0, 1.0), (4, -2.0, 1.0)), item(1, 5, (0, 0.7, 1.0))]
    assert weighted(items) is items


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(2, 9), st.floats(0.01, 1.0), st.floats(0.01, 1.0)), min_size=1, max_size=8)
)
def test_the_weights_of_a_minibatch_sum_to_its_tokens(rows: list[tuple[int, int, float, float]]) -> None:
    """Advantages of 1: what the learner sums is the number of tokens."""
    items = [item(part, length, (0, 1.0, first), (1, 1.0, rest)) for part, length, first, rest in rows]
    sums: dict[int, float] = defaultdict(float)
    tokens: dict[int, int] = defaultdict(int)
    for one in weighted(items):
        sums[one.load.minibatch] += one.advantage[0].value + one.advantage[1].value * (one.load.completion - 1)
        tokens[one.load.minibatch] += one.load.completion
    assert sums == pytest.approx(tokens)
