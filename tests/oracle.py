"""What every rollout of a group is worth, worked out a second time: nested lists, loops, plain float64.

Written from the description of the algorithm (notation, rejection, table of strategies), not from the package, of which
it imports nothing. There are no node numbers here: a state is the prompt, or the j-th anchor of a trunk, in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Reward = float | None  # None: failed, or nobody could tell
Rollout = tuple[int, ...]  # (b,): base b; (b, j, m): branch m of the j-th anchor (from 1) of trunk b
StateId = tuple[int, ...]  # (): the prompt; (b, j): the j-th anchor of trunk b
Steps = list[tuple[int, float]]  # (first token, advantage from there on)


@dataclass
class State:
    """An anchor: where it cuts its trunk, and the rewards of its branches."""

    position: int
    rewards: list[Reward]


@dataclass
class Tree:
    """A group: rewards of the bases, and the anchors of each trunk in order of position."""

    bases: list[Reward]
    trunks: dict[int, list[State]] = field(default_factory=dict)


@dataclass
class Worth:
    """``reason``: why the whole group is rejected; "" if it is trained."""

    advantages: dict[Rollout, Steps]
    reason: str
    values: dict[StateId, float | None]
    alphas: dict[StateId, float]
    dropped: dict[StateId, str]


def known(rewards: list[Reward]) -> list[float]:
    return [float(r) for r in rewards if r is not None]


def mean(numbers: list[float]) -> float:
    total = 0.0
    for number in numbers:
        total += number
    return total / len(numbers)


def spread(numbers: list[float]) -> float:
    """Population standard deviation."""
    centre = mean(numbers)
    return math.sqrt(mean([(n - centre) ** 2 for n in numbers]))


def sameness(numbers: list[float]) -> str:
    """Why these rewards teach nothing; "" if they differ."""
    if len(numbers) < 2:
        return "too_few"
    if any(n != numbers[0] for n in numbers):
        return ""
    if numbers[0] == 1.0:
        return "all_correct"
    return "all_wrong" if numbers[0] == 0.0 else "no_spread"


def everything(tree: Tree) -> list[float]:
    return known(tree.bases) + [r for states in tree.trunks.values() for state in states for r in known(state.rewards)]


def fr3e(
    tree: Tree,
    *,
    alpha: bool = True,
    shrink: bool = False,
    std: bool = False,
    include_trunk: bool = False,
    train_bases: bool = True,
) -> Worth:
    """A'_{j,m} = alpha_j (r_{j,m} - V(S_j)); V and alpha of all states first, and only then are states dropped."""
    samples: dict[StateId, list[float]] = {(): known(tree.bases)}
    for b, states in tree.trunks.items():
        for j, state in enumerate(states, start=1):
            trunk = known([tree.bases[b]]) if include_trunk else []
            samples[b, j] = known(state.rewards) + trunk
    values = {state_id: mean(sample) if sample else None for state_id, sample in samples.items()}
    alphas: dict[StateId, float] = {}
    dropped: dict[StateId, str] = {}
    for state_id, sample in samples.items():
        alphas[state_id] = 1.0
        if state_id and alpha:
            b, j = state_id
            neighbour: StateId = (b, j - 1) if j > 1 else ()
            here, before = values[state_id], values[neighbour]
            if here is not None and before is not None:
                difference = here - before
                if shrink:
                    error = math.sqrt(here * (1 - here) / len(sample) + before * (1 - before) / len(samples[neighbour]))
                    if abs(difference) <= error:
                        difference = 0.0
                    else:
                        difference += -error if difference > 0 else error
                alphas[state_id] = math.exp(-difference)
        dropped[state_id] = sameness(sample)
        if state_id == () and not train_bases and not dropped[state_id]:
            dropped[state_id] = "not_trained"
    advantages: dict[Rollout, Steps] = {}
    for state_id, sample in samples.items():
        if dropped[state_id]:
            continue
        own = tree.bases if state_id == () else tree.trunks[state_id[0]][state_id[1] - 1].rewards
        for m, reward in enumerate(own):
            if reward is not None:
                advantage = reward - mean(sample)
                if std:
                    advantage /= spread(sample) + 1e-6
                advantages[(*state_id, m)] = [(0, alphas[state_id] * advantage)]
    reason = ""
    if not advantages:
        comparable = [d for state_id, d in dropped.items() if d not in ("too_few", "not_trained")]
        reason = sameness(everything(tree)) or ("no_spread" if comparable else "too_few")
    return Worth(advantages, reason, values, alphas, dropped)


def grpo(tree: Tree, *, reject: bool = False) -> Worth:
    """(r - mean) / (std + 1e-6) over the rollouts of the prompt; ``reject``: GRPO++, which drops groups without spread."""
    rewards = known(tree.bases)
    same = sameness(rewards)
    reason = same if reject or same == "too_few" else ""
    advantages: dict[Rollout, Steps] = {}
    for b, reward in enumerate(tree.bases):
        if reward is not None and not reason:
            advantages[b,] = [(0, (reward - mean(rewards)) / (spread(rewards) + 1e-6))]
    return _flat(rewards, advantages, reason)


def rloo(tree: Tree) -> Worth:
    """r minus the mean of the others."""
    rewards = known(tree.bases)
    reason = sameness(rewards)
    advantages: dict[Rollout, Steps] = {}
    for b, reward in enumerate(tree.bases):
        if reward is not None and not reason:
            others = known([r for other, r in enumerate(tree.bases) if other != b])
            advantages[b,] = [(0, reward - mean(others))]
    return _flat(rewards, advantages, reason)


def _flat(rewards: list[float], advantages: dict[Rollout, Steps], reason: str) -> Worth:
    return Worth(advantages, reason, {(): mean(rewards) if rewards else None}, {(): 1.0}, {(): reason})


def vineppo(tree: Tree) -> Worth:
    """The tokens between two states have the advantage V(next) - V(state); the value of a trunk's end is its reward.

    V(S_0) of a trunk leaves its own reward out. A state that nobody judged is no cut.
    """
    values: dict[StateId, float | None] = {(): mean(known(tree.bases)) if known(tree.bases) else None}
    advantages: dict[Rollout, Steps] = {}
    creditable = False
    for b, states in tree.trunks.items():
        for j, state in enumerate(states, start=1):
            values[b, j] = mean(known(state.rewards)) if known(state.rewards) else None
        others = known([r for other, r in enumerate(tree.bases) if other != b])
        reward = tree.bases[b]
        if reward is None or not others:
            continue
        creditable = True
        start, worth, steps = 0, mean(others), []
        for state in states:
            if known(state.rewards):
                after = mean(known(state.rewards))
                steps.append((start, after - worth))
                start, worth = state.position, after
        steps.append((start, reward - worth))
        if any(advantage != 0 for _, advantage in steps):
            advantages[b,] = steps
    reason = "" if advantages else sameness(everything(tree)) or ("no_spread" if creditable else "too_few")
    dropped = {state_id: "" if value is not None else "too_few" for state_id, value in values.items()}
    return Worth(advantages, reason, values, dict.fromkeys(values, 1.0), dropped)


def anchors(
    scores: list[float], *, count: int, min_gap: int, banned: set[int], answer_end: int | None = None, budget: int | None = None
) -> list[int]:
    """Positions of the anchors: again and again the best of what is left, until there are K or nothing fits."""
    end = min(len(scores), *(limit for limit in (answer_end, budget) if limit is not None), len(scores))
    left = [p for p in range(1, end) if p not in banned]
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = left[0]
        for p in left:
            if scores[p] > scores[best]:
                best = p
        chosen.append(best)
        left = [p for p in left if abs(p - best) >= min_gap]
    return sorted(chosen)


def equal_parts(places: list[int], count: int) -> list[int]:
    """The places that cut a list into count + 1 parts as equal as can be, without repeats."""
    picked = []
    for part in range(1, count + 1):
        ideal = part * (len(places) - 1) / (count + 1)
        picked.append(places[round(ideal)])
    return sorted(set(picked))
