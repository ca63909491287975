"""Choose the positions of a trunk to branch from (paper, section 3.1: top-K entropy positions). Pure: arrays in, anchors out.

Does not know tokenizers: the caller says what each token reads as, which are special, and where the answer ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import AlgorithmConfig
from fr3e_async.types import ANCHOR, Anchor, Completion, Finish, RolloutBatch, RolloutId


def eligible_positions(
    length: int,
    *,
    max_response: int,
    special: NDArray[np.bool_],  # [L] True at special and end tokens
    answer_end: int | None,  # first token after the complete answer
) -> NDArray[np.bool_]:
    """Mark the tokens of a completion of L tokens that may become anchors: [L] bool.

    Not the first token (that state is the prompt itself), no special or end token, none after the answer is complete,
    and at least one token of budget left: ``position < max_response``.
    """
    eligible = ~special
    eligible[:1] = False
    eligible[min(length, max_response, length if answer_end is None else answer_end) :] = False
    return eligible


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorRule:
    """How anchors are ranked. ``name`` is a concrete rule: the strategy has already resolved "auto"."""

    name: str
    count: int  # K
    min_gap: int  # tokens
    raw: bool = False  # rank by the distribution at temperature 1 instead of the one that was sampled

    @property
    def needs_entropies(self) -> bool:
        return self.name == "entropy"

    def allowed(self, pieces: Sequence[str]) -> NDArray[np.bool_]:
        """Mark where the rule allows an anchor, [L] bool, by its tokens' texts: "newline" only where a line begins.

        Example: "newline" marks the third of the pieces "a", " b\\n", "c".
        """
        if self.name != "newline":
            return np.ones(len(pieces), dtype=np.bool_)
        return np.asarray([False, *("\n" in piece for piece in pieces[:-1])][: len(pieces)], dtype=np.bool_)

    @classmethod
    def of(cls, config: AlgorithmConfig, default: str) -> AnchorRule:
        """``default``: what "auto" stands for."""
        name = default if config.anchor_rule == "auto" else config.anchor_rule
        return cls(name=name, count=config.anchors, min_gap=config.min_gap, raw=config.entropy_of == "raw")


def select_anchors(
    rule: AnchorRule,
    *,
    trunk: int,
    completion: Completion,
    eligible: NDArray[np.bool_],
    seed: Sequence[int],
) -> tuple[Anchor, ...]:
    """Choose at most K anchors of a trunk (paper, section 3.1: the top-K entropy positions), sorted by position.

    Eligible positions are ranked by the rule's score, highest first, ties to the earlier one; a position closer than
    ``min_gap`` to one already taken is passed over. Fewer eligible positions give fewer anchors.
    Example: K = 2, min_gap = 2 and entropies [0, 3, 2, 0, 1] choose positions 1 and 4, for 2 is too close to 1.

    Args:
        trunk: branch index of the base that ``completion`` is.
        eligible: [L] from ``eligible_positions``; for the rule "newline" also true only where a line begins.
        seed: of the rule "random".
    """
    positions = np.flatnonzero(eligible)
    scores, errors = _scores(rule, positions, completion, seed)
    chosen = _take_apart(positions, scores, count=rule.count, min_gap=rule.min_gap)
    certain = not errors.any() or _certain(rule, positions, scores - errors, scores + errors, chosen)
    first = trunk * rule.count
    return tuple(
        Anchor(
            node=first + j,
            parent=first + j - 1 if j > 1 else 0,
            trunk=trunk,
            position=int(positions[i]),
            score=float(scores[i]),
            certain=certain,
        )
        for j, i in enumerate(sorted(chosen), start=1)
    )


def anchors_of_rows(rule: AnchorRule, batch: RolloutBatch, rows: Iterable[int], *, seed: int) -> tuple[Anchor, ...]:
    """``select_anchors`` of the trunks in these rows of a batch, one after another; none of an aborted one.

    ``seed``: of the run; the same trunk gets the same anchors in every process.
    """
    assert batch.eligible is not None, "not a batch of trunks"
    chosen: list[Anchor] = []
    for row in rows:
        id, completion, eligible = batch.ids[row], batch.completion(row), batch.eligible[batch.span(row)]
        if completion.finish is not Finish.ABORT:
            seeds = (seed, id.branch, *id.group.encode())
            chosen += select_anchors(rule, trunk=id.branch, completion=completion, eligible=eligible, seed=seeds)
    return tuple(chosen)


def with_anchors(batch: RolloutBatch, anchors: Iterable[Anchor]) -> RolloutBatch:
    """The trajectories with their anchors, as one object: what a generator publishes and an explorer reads."""
    starts = {id.branch: batch.offsets[row] for row, id in enumerate(batch.ids)}
    rows = [(a.node, a.position, batch.entropies[starts[a.trunk] + a.position], a.score) for a in anchors]
    return replace(batch, anchors=np.asarray(rows, dtype=ANCHOR))


def anchor_positions(batch: RolloutBatch) -> dict[int, int]:
    """Node -> position of every anchor that ``with_anchors`` has put on a batch."""
    assert batch.anchors is not None, f"no anchors are chosen yet on {batch.ids}"
    return dict(zip(batch.anchors["node"].tolist(), batch.anchors["position"].tolist(), strict=True))


def with_entropies(batch: RolloutBatch, entropies: Mapping[int, NDArray[np.float32]]) -> RolloutBatch:
    """Replace the entropies of these rows by exact ones, [L] nats each, from elsewhere (engine.entropy=learner)."""
    exact, errors = batch.entropies.copy(), batch.entropy_errors.copy()
    for row, values in entropies.items():
        exact[batch.span(row)], errors[batch.span(row)] = values, 0.0
    return replace(batch, entropies=exact, entropy_errors=errors)


def _scores(
    rule: AnchorRule, positions: NDArray[np.int64], completion: Completion, seed: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[P] scores of the eligible positions, and the error bound of each."""
    exact = np.zeros(len(positions))
    raw = rule.raw and completion.raw_entropies is not None
    match rule.name:
        case "entropy":
            entropies = completion.raw_entropies if raw else completion.entropies
            assert entropies is not None
            errors = completion.entropy_errors[positions].astype(np.float64)
            return entropies[positions].astype(np.float64), errors
        case "surprisal":
            logprobs = completion.raw_logprobs if raw else completion.logprobs
            assert logprobs is not None
            return -logprobs[positions].astype(np.float64), exact
        case "random":
            return np.random.default_rng(list(seed)).random(len(positions)), exact
        case "uniform" | "newline":
            return _spread(len(positions), rule.count), exact
        case name:
            raise ValueError(f"unknown anchor rule {name!r}")


def _spread(count: int, parts: int) -> NDArray[np.float64]:
    """Scores that rank ``parts`` equally spaced positions of ``count`` first, then their neighbours by distance."""
    targets = (np.arange(1, parts + 1) * (count - 1) / (parts + 1)).round() if parts else np.zeros(0)
    distance = np.abs(np.arange(count)[:, None] - targets[None, :])
    return -distance.min(axis=1).astype(np.float64) if parts and count else np.zeros(count)


def _take_apart(positions: NDArray[np.int64], scores: NDArray[np.float64], *, count: int, min_gap: int) -> list[int]:
    """Indices of the highest scores whose positions are pairwise at least ``min_gap`` apart."""
    chosen: list[int] = []
    for i in np.lexsort((positions, -scores)):
        if len(chosen) == count:
            break
        if all(abs(int(positions[i]) - int(positions[j])) >= min_gap for j in chosen):
            chosen.append(int(i))
    return chosen


def _certain(
    rule: AnchorRule, positions: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64], chosen: list[int]
) -> bool:
    """True if the same anchors are chosen whatever the scores are within [low, high].

    Each position q that was left out must lose for certain: to a chosen one within ``min_gap`` of it, or, if there are K
    chosen ones, to all of them. Then the greedy choice can never take a q first: while the chosen one that beats it is
    still free it is preferred (chosen ones do not block each other), and once that one is taken q is blocked, or the
    choice is complete.
    """
    worst = min((low[i] for i in chosen), default=-np.inf) if len(chosen) == rule.count else -np.inf
    for q in set(range(len(positions))) - set(chosen):
        blockers = [low[i] for i in chosen if abs(int(positions[i]) - int(positions[q])) < rule.min_gap]
        if not (worst > high[q] or max(blockers, default=-np.inf) > high[q]):
            return False
    return True


# ---- Which bases of a group are branched (``algorithm.trunk``) ----


def choose_trunks(
    bases: Sequence[RolloutId], policy: str | None, *, seed: Sequence[int]
) -> tuple[frozenset[RolloutId], tuple[RolloutId, ...] | None]:
    """(bases that may become trunks, trunks) at the admission of a group, by ``algorithm.trunk``; None: it does not branch.

    Trunks are fixed before any reward is known, else V would be biased. Only ``one_correct_one_wrong`` leaves them open, as None,
    until ``trunks_by_reward`` picks them: the user's wish.
    """
    match policy:
        case None:
            return frozenset(), ()
        case "one_correct_one_wrong":
            return frozenset(bases), None
        case "all":
            return frozenset(bases), tuple(bases)
        case "random":
            trunk = bases[int(np.random.default_rng(seed).integers(len(bases)))]
        case _:
            trunk = bases[0]
    return frozenset({trunk}), (trunk,)


def trunks_by_reward(correct: Mapping[RolloutId, bool]) -> tuple[RolloutId, ...]:
    """``one_correct_one_wrong``: the first correct and the first incorrect of the scored bases, in id order; at most two.

    Example: of the bases 0 (incorrect), 1 (incorrect) and 2 (correct) it is 0 and 2.
    """
    first: dict[bool, RolloutId] = {}
    for id in sorted(correct):
        first.setdefault(correct[id], id)
    return tuple(sorted(first.values()))
