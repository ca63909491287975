"""Numbers at the door: fixed questions to an engine, and its answers beside the learner's distributions. Pure numpy.

An engine draws one token after each of a few fixed rows of ids, by the same road as a rollout. The log-prob and the entropy
that it reports are held against the learner's whole distribution after that row, under the same version of the weights: so
whatever the engine draws can be looked up, and nobody waits for anybody.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fr3e_async.types import Prompt, RolloutBatch, RolloutId

ROWS = 3  # fixed rows of ids
LENGTHS = (1, 7, 20, 48)  # their beginnings that a token is drawn after; without a token before it, positions change nothing
DRAWS = 4  # after each beginning
TEXT = "In 1729: 12³ + 1³ = 10³ + 9³,\n\n\tso x ≥ ½ → \\boxed{-7/3} ✓"  # what tokenizers differ on
SCALES = np.exp(np.linspace(-math.log(4), math.log(4), 57))  # temperatures tried, as multiples of the learner's,
FINE = np.exp(np.linspace(-0.05, 0.05, 11))  # and then around the best of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What every engine is asked. ``tokenizer``: digest of the one that made the prompts."""

    rows: tuple[NDArray[np.int32], ...]  # n beginnings
    tokenizer: str = ""

    @property
    def prompts(self) -> list[Prompt]:
        """``DRAWS`` of each row, one after another."""
        rows = [Prompt(uid=f"door/{i}", text="", gold="", token_ids=row) for i, row in enumerate(self.rows)]
        return [prompt for prompt in rows for _ in range(DRAWS)]

    @property
    def ids(self) -> list[RolloutId]:
        return [RolloutId(f"door/{i}@0", 0, draw) for i in range(len(self.rows)) for draw in range(DRAWS)]


def make_questions(tokenizer: Any, *, room: int) -> Questions:
    """The same for the same tokenizer: ordinary tokens, none that is special. ``room``: longest row that leaves room for a token."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    known = set(tokenizer.get_vocab().values())
    ordinary = np.asarray(sorted(known - special or known), dtype=np.int32)
    rows = np.random.default_rng(0).choice(ordinary, (ROWS, max(LENGTHS)))
    lengths = sorted({min(length, room) for length in LENGTHS})
    return Questions(rows=tuple(row[:length] for row in rows for length in lengths), tokenizer=tokenizer_digest(tokenizer))


def tokenizer_digest(tokenizer: Any) -> str:
    """Equal for tokenizers with the same tokens, ids and special tokens that cut a difficult text alike."""
    told = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), tokenizer.encode(TEXT)]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How an engine's answers differ from the learner's numbers, nats. ``entropy`` is 0 where the engine knows none."""

    draws: int
    mean: float  # of |log-prob − log-prob|
    largest: float
    entropy: float  # mean of |entropy − entropy|
    cause: str  # the likeliest, empty within the bound


def compare(
    batch: RolloutBatch, distributions: Mapping[int, NDArray[np.float32]], questions: Questions, *, bound: float
) -> Difference:
    """``distributions``: by version, [n, V] the learner's log-probs after each row. Draws of other versions are left out."""
    number = {id: place // DRAWS for place, id in enumerate(questions.ids)}
    first = [batch.span(row).start for row in range(len(batch))]
    rows = [number[id] for id in batch.ids]
    known = [(i, r) for i, r in zip(first, rows, strict=True) if int(batch.versions[i]) in distributions]
    if not known:
        return Difference(draws=0, mean=0.0, largest=0.0, entropy=0.0, cause="")
    places, chosen = (np.asarray(part) for part in zip(*known, strict=True))
    learner = np.stack([distributions[int(batch.versions[i])][r] for i, r in known])
    tokens, logprobs = batch.tokens[places], batch.logprobs[places].astype(np.float64)
    if tokens.max() >= learner.shape[1]:
        cause = f"it draws token {tokens.max()}, and the learner's vocabulary has {learner.shape[1]}"
        return Difference(draws=len(known), mean=math.inf, largest=math.inf, entropy=math.inf, cause=cause)
    errors = np.abs(_picked(learner, tokens) - logprobs)
    exact = batch.entropy_errors[places] == 0
    apart = np.abs(_entropies(learner) - batch.entropies[places])[exact]
    mean, entropy = float(errors.mean()), float(apart.mean()) if exact.any() else 0.0
    cause = ""
    if not max(mean, entropy) <= bound:  # a NaN is beyond any bound
        lengths = np.asarray([len(row) for row in questions.rows])[chosen]
        cause = _cause(errors, lengths, learner, tokens, logprobs, bound=bound)
    return Difference(draws=len(known), mean=mean, largest=float(errors.max()), entropy=entropy, cause=cause)


def _cause(errors: NDArray, lengths: NDArray, learner: NDArray, tokens: NDArray, logprobs: NDArray, *, bound: float) -> str:
    """The likeliest, by what would make the difference go away, or where there is none."""
    scale, left = _best_scale(learner, tokens, logprobs)
    if left <= max(0.2 * errors.mean(), bound):
        return f"a temperature: it seems to sample at {scale:.2f} times sampling.temperature"
    short = lengths == 1
    if short.any() and errors[short].mean() <= bound < errors[~short].mean():
        return "positions: after a single token they agree; look at rope settings, the sliding window, or the weights of queries and keys"
    return "weights, the output head or the order of the vocabulary: they differ after a single token already"


def _best_scale(learner: NDArray, tokens: NDArray, logprobs: NDArray) -> tuple[float, float]:
    """The temperature at which the learner's log-probs come closest, and the mean difference that is left there."""
    best = (1.0, math.inf)
    for around in (SCALES, FINE):
        centre = best[0]
        for scale in around * centre:
            left = float(np.abs(_picked(learner / scale, tokens) - logprobs).mean())
            best = min(best, (float(scale), left), key=lambda found: found[1])
    return best


def _picked(logits: NDArray, tokens: NDArray) -> NDArray[np.float64]:
    """[n] log-probs of the tokens under [n, V] logits."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1)
    norm = top + np.log(np.exp(wide - top[:, None]).sum(axis=-1))
    return wide[np.arange(len(tokens)), tokens] - norm


def _entropies(logprobs: NDArray) -> NDArray[np.float64]:
    wide = logprobs.astype(np.float64)
    return -(np.exp(wide) * np.where(np.isfinite(wide), wide, 0.0)).sum(axis=-1)


def told(difference: Difference) -> str:
    """In one phrase."""
    return (
        f"{difference.mean:.2g} nats on average, {difference.largest:.2g} at most, entropies by {difference.entropy:.2g} "
        f"({difference.draws} tokens)"
    )
