"""Between the oracle's nested lists and the package's ids: builders of outcomes, and hypothesis strategies for trees."""

from __future__ import annotations

from typing import Any

from builders import small_config
from hypothesis import strategies as st
from oracle import Rollout, State, StateId, Steps, Tree, Worth

from fr3e_async.algorithm.strategies import Credit, GroupRewards, make_strategy
from fr3e_async.types import Anchor, RolloutId

K = 3  # algorithm.anchors of these tests
GROUP = "q@0"
SWITCHES = {"alpha": "alpha", "shrink": "alpha_shrink", "std": "std_normalise"}  # the oracle's word: the setting


def node_of(state_id: StateId, count: int = K) -> int:
    return state_id[0] * count + state_id[1] if state_id else 0


def rollout_id(rollout: Rollout, count: int = K) -> RolloutId:
    return RolloutId(GROUP, node_of(rollout[:-1], count), rollout[-1])


def rollout_of(id: RolloutId, count: int = K) -> Rollout:
    trunk, j = divmod(id.node - 1, count)
    return (id.branch,) if id.node == 0 else (trunk, j + 1, id.branch)


def outcome_of(tree: Tree, *, count: int = K, missing: frozenset[Rollout] = frozenset()) -> GroupRewards:
    """``missing``: rollouts whose reward is None in the tree and that are not even listed."""
    rewards: dict[RolloutId, float | None] = {rollout_id((b,), count): r for b, r in enumerate(tree.bases)}
    anchors: dict[int, Anchor] = {}
    for b, states in tree.trunks.items():
        for j, state in enumerate(states, start=1):
            node = node_of((b, j), count)
            parent = node - 1 if j > 1 else 0
            anchors[node] = Anchor(node=node, parent=parent, trunk=b, position=state.position, score=1.0)
            rewards |= {rollout_id((b, j, m), count): r for m, r in enumerate(state.rewards)}
    listed = {id: r for id, r in rewards.items() if rollout_of(id, count) not in missing}
    trunks = tuple(rollout_id((b,), count) for b in sorted(tree.trunks))
    return GroupRewards(group=GROUP, rewards=listed, anchors=anchors, trunks=trunks)


def credit_of(tree: Tree, **algorithm: Any) -> Credit:
    settings = {"anchors": K, **algorithm}
    return make_strategy(small_config(algorithm=settings).algorithm).credit(outcome_of(tree, count=settings["anchors"]))


def tree(bases: list, *states: list, at: tuple[int, ...] = (5, 9, 14, 20), trunk: int = 0) -> Tree:
    """A tree of one trunk, anchors at ``at``."""
    return Tree(bases, {trunk: [State(p, rewards) for p, rewards in zip(at, states, strict=False)]})


def steps_of(credit: Credit, count: int = K) -> dict[Rollout, Steps]:
    return {rollout_of(id, count): [(s.start, s.value) for s in a] for id, a in credit.advantages.items()}


def advantages_of(credit: Credit) -> dict[Rollout, float]:
    """Where each completion has one advantage as a whole."""
    found = steps_of(credit)
    assert all(len(steps) == 1 for steps in found.values())
    return {rollout: steps[0][1] for rollout, steps in found.items()}


def require_agreement(credit: Credit, worth: Worth, *, tolerance: float = 1e-9) -> None:
    """Advantages, reason, values, alphas and dropped states, each to within ``tolerance``."""
    got = steps_of(credit)
    assert got.keys() == worth.advantages.keys()
    for rollout, steps in worth.advantages.items():
        assert [start for start, _ in got[rollout]] == [start for start, _ in steps]
        assert all(abs(a - b) <= tolerance for (_, a), (_, b) in zip(got[rollout], steps, strict=True)), (rollout, got[rollout])
    assert credit.rejected == worth.reason
    assert {node_of(state_id) for state_id in worth.values} == credit.states.keys()
    for state_id, value in worth.values.items():
        state = credit.states[node_of(state_id)]
        found = state.value.value if state.value else None
        assert (found is None) == (value is None)
        assert found is None or value is None or abs(found - value) <= tolerance
        assert abs(state.alpha - worth.alphas[state_id]) <= tolerance
        assert state.dropped == worth.dropped[state_id]


rewards = st.sampled_from([0.0, 1.0, 0.0, 1.0, None, 0.25, 0.625])  # sums of these are exact, so equal means are equal
binary = st.sampled_from([0.0, 1.0])


@st.composite
def trees(draw: st.DrawFn, *, of: st.SearchStrategy = rewards, trunks: int = 3) -> Tree:
    """Trees of 2 to 5 bases, up to ``trunks`` of them trunks with 0 to K anchors of 0 to 4 branches each."""
    bases = draw(st.lists(of, min_size=2, max_size=5))
    branched = draw(st.sets(st.integers(0, len(bases) - 1), max_size=trunks))
    grown = {}
    for b in sorted(branched):
        places = sorted(draw(st.sets(st.integers(1, 40), max_size=K)))
        grown[b] = [State(p, draw(st.lists(of, max_size=4))) for p in places]
    return Tree(bases, grown)
