"""Counts what was prefilled for trees of requests, against what had to be. Arithmetic on token ids; knows no engine.

Counted, in tokens, engine by engine:

    asked      the contexts of all requests: what is prefilled with prefix caching off
    computed   asked less what came from the cache: what was prefilled
    unique     distinct prefixes of the contexts: on a generator the prompt, on an explorer prompt + trunk up to its last
               anchor; with one engine for both they are those of the explorer, for the prompt is a part of them
    blocks     what a cache of whole blocks that forgets nothing computes: a request takes whole blocks, never its last token

computed / blocks says what is lost beyond the engine's block size; computed / unique is with that loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.trees import common_prefix
from fr3e_async.types import RolloutBatch

Tokens = NDArray[np.int32]


class Known:
    """Sequences that an engine has computed."""

    def __init__(self) -> None:
        self._sequences: list[Tokens] = []

    def add(self, tokens: Tokens) -> None:
        self._sequences.append(tokens)

    def shared(self, tokens: Tokens) -> int:
        """Length of the longest prefix of ``tokens`` that some sequence begins with."""
        return max((common_prefix(tokens, known) for known in self._sequences), default=0)


@dataclass(slots=True)
class Prefill:
    """Sums over groups, tokens; see the head of the file."""

    asked: int = 0
    computed: int = 0
    unique: int = 0
    blocks: int = 0

    def add(self, batch: RolloutBatch, *, contexts: Known, cache: Known, block: int) -> None:
        """A task of an engine. ``contexts``: of its earlier requests; ``cache``: these and what it has generated."""
        for row in range(len(batch)):
            context = batch.context(row)
            self.asked += len(context)
            self.computed += len(context) - int(batch.cached_tokens[row])
            self.unique += len(context) - contexts.shared(context)
            self.blocks += len(context) - min(cache.shared(context), len(context) - 1) // block * block
            contexts.add(context)
            cache.add(context)

    def figures(self, groups: int) -> dict[str, float]:
        """A group's mean sums, and their ratios."""
        sums = {name: round(getattr(self, name) / groups, 1) for name in ("asked", "computed", "unique", "blocks")}
        return sums | {
            "computed_to_unique": round(self.computed / self.unique, 4),
            "computed_to_blocks": round(self.computed / self.blocks, 4),
            "asked_to_unique": round(self.asked / self.unique, 4),
        }


def rounding(*, prompt: int, response: int, block: int, trials: int = 400) -> float:
    """computed / unique of a generator and an explorer if blocks are all that is lost.

    Mean over trees of 4 bases, 3 anchors anywhere and 4 branches of each. All requests but the first of each engine find
    their contexts computed, and compute the last block again as far as they fill it.
    """
    source = np.random.default_rng(0)
    computed = unique = 0
    for _ in range(trials):
        ends = np.sort(prompt + source.integers(1, response, 3))
        known = np.repeat([prompt, *ends], [3, 4, 4, 3])
        unique += prompt + int(ends[-1])  # the generator's and the explorer's
        computed += int(((known - 1) % block + 1).sum())
    return 1 + computed / unique
