"""Which positions of a trunk to branch from (paper, section 3.1: top-K entropy positions). Pure: arrays in, anchors out.

Refuses to know text and tokenizers: the caller says which positions hold special tokens and where the answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import AlgorithmConfig
from fr3e_async.types import Anchor


def eligible_positions(
    length: int, *, max_response: int, special: NDArray[np.bool_], answer_end: int | None
) -> NDArray[np.int64]:
    """Positions of a completion that may become anchors.

    Not the first token (that state is the prompt itself), no special or end token, none after the answer is complete,
    and at least one token of budget left: ``position < max_response``.
    """
    stop = min(length, max_response, length if answer_end is None else answer_end)
    positions = np.arange(1, max(stop, 1))
    return positions[~special[positions]]


def select_anchors(
    config: AlgorithmConfig,
    *,
    entropies: NDArray[np.float32],  # [L] nats
    logprobs: NDArray[np.float32],  # [L] nats
    special: NDArray[np.bool_],  # [L] True at special and end tokens
    after_newline: NDArray[np.bool_],  # [L] True where the token before ends a line
    answer_end: int | None,
    max_response: int,
    seed: Sequence[int],
) -> tuple[Anchor, ...]:
    """At most K anchors, sorted by position; fewer where fewer positions are eligible, none if there is none.

    Ranked by the rule's score, highest first, ties to the earlier position; a position closer than ``min_gap`` to one
    already taken is passed over.
    """
    positions = eligible_positions(len(entropies), max_response=max_response, special=special, answer_end=answer_end)
    if config.anchor_rule == "newline":
        positions = positions[after_newline[positions]]
    scores = _scores(config, positions, entropies=entropies, logprobs=logprobs, seed=seed)
    chosen = _take_apart(positions, scores, count=config.anchors, min_gap=config.min_gap)
    return tuple(
        Anchor(node=node, position=int(positions[i]), score=float(scores[i]))
        for node, i in enumerate(sorted(chosen, key=lambda i: positions[i]), start=1)
    )


def _scores(
    config: AlgorithmConfig,
    positions: NDArray[np.int64],
    *,
    entropies: NDArray[np.float32],
    logprobs: NDArray[np.float32],
    seed: Sequence[int],
) -> NDArray[np.float64]:
    match config.anchor_rule:
        case "entropy":
            return entropies[positions].astype(np.float64)
        case "surprisal":
            return -logprobs[positions].astype(np.float64)
        case "random":
            return np.random.default_rng(list(seed)).random(len(positions))
        case "uniform" | "newline":
            return _spread(len(positions), config.anchors)


def _spread(count: int, parts: int) -> NDArray[np.float64]:
    """Scores that rank ``parts`` equally spaced places of ``count`` first, then their neighbours by distance."""
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
