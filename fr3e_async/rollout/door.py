"""Compare an engine with the learner on fixed rows of token ids, before the engine serves. Pure numpy.

The engine draws one token after each row, in the way of a rollout. The learner computes its whole distribution after the same
row, under the same version of the weights. So the log-prob and the entropy that the engine reports can be looked up whatever
token it draws, and neither side waits for the other.
"""

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
LENGTHS = (1, 7, 20, 48)  # tokens of the prefixes that are asked about; after a single token a wrong position changes nothing
DRAWS = 4  # tokens drawn after each prefix
TEXT = "In 1729: 12³ + 1³ = 10³ + 9³,\n\n\tso x ≥ ½ → \\boxed{-7/3} ✓"  # tokenizers split this text differently
SCALES = np.exp(np.linspace(-math.log(4), math.log(4), 57))  # temperatures tried, as multiples of the learner's,
FINE = np.exp(np.linspace(-0.05, 0.05, 11))  # and then around the best of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What every engine is asked. *Example*: ``Questions(rows=(np.array([17]), np.array([17, 4, 9])), tokenizer="9f2c…")``."""

    rows: tuple[NDArray[np.int32], ...]  # n prefixes
    tokenizer: str = ""  # digest of the tokenizer that made the run's prompts

    @property
    def prompts(self) -> list[Prompt]:
        """Return each row as a prompt, ``DRAWS`` times one after another."""
        rows = [Prompt(uid=f"door/{i}", text="", reference="", token_ids=row) for i, row in enumerate(self.rows)]
        return [prompt for prompt in rows for _ in range(DRAWS)]

    @property
    def ids(self) -> list[RolloutId]:
        return [RolloutId(f"door/{i}@0", 0, draw) for i in range(len(self.rows)) for draw in range(DRAWS)]


def make_questions(tokenizer: Any, *, room: int) -> Questions:
    """Draw the rows, of tokens that are not special; equal tokenizers give equal rows. ``room``: tokens of the longest row allowed."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    known = set(tokenizer.get_vocab().values())
    ordinary = np.asarray(sorted(known - special or known), dtype=np.int32)
    rows = np.random.default_rng(0).choice(ordinary, (ROWS, max(LENGTHS)))
    lengths = sorted({min(length, room) for length in LENGTHS})
    return Questions(rows=tuple(row[:length] for row in rows for length in lengths), tokenizer=tokenizer_digest(tokenizer))


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest a tokenizer: equal for tokenizers with the same tokens, ids and special tokens that cut a difficult text alike."""
    told = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), tokenizer.encode(TEXT)]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Difference between an engine's answers and the learner's numbers, nats. ``entropy`` is 0 where the engine measures none.

    *Example*: ``Difference(draws=48, mean=0.003, largest=0.02, entropy=0.002, cause="")`` is an engine that may serve.
    """

    draws: int
    mean: float  # of |log-prob − log-prob|
    largest: float
    entropy: float  # mean of |entropy − entropy|
    cause: str  # the likeliest one; empty if the means are within the bound


def compare(
    batch: RolloutBatch, distributions: Mapping[int, NDArray[np.float32]], questions: Questions, *, bound: float
) -> Difference:
    """Compare a batch's draws with the learner, and name the likeliest cause of a difference beyond ``bound`` nats.

    ``distributions``: by version, [n, V] the learner's log-probs after each row. Draws of other versions are left out.
    """
    number = {id: index // DRAWS for index, id in enumerate(questions.ids)}
    first = [batch.span(row).start for row in range(len(batch))]
    rows = [number[id] for id in batch.ids]
    known = [(i, r) for i, r in zip(first, rows, strict=True) if int(batch.versions[i]) in distributions]
    if not known:
        return Difference(draws=0, mean=0.0, largest=0.0, entropy=0.0, cause="")
    starts, chosen = (np.asarray(part) for part in zip(*known, strict=True))
    learner = np.stack([distributions[int(batch.versions[i])][r] for i, r in known])
    tokens, logprobs = batch.tokens[starts], batch.logprobs[starts].astype(np.float64)
    if tokens.max() >= learner.shape[1]:
        cause = f"it draws token {tokens.max()}, and the learner's vocabulary has {learner.shape[1]}"
        return Difference(draws=len(known), mean=math.inf, largest=math.inf, entropy=math.inf, cause=cause)
    errors = np.abs(_picked(learner, tokens) - logprobs)
    exact = batch.entropy_errors[starts] == 0
    wide = learner.astype(np.float64)
    entropies = -(np.exp(wide) * np.where(np.isfinite(wide), wide, 0.0)).sum(axis=-1)
    apart = np.abs(entropies - batch.entropies[starts])[exact]
    mean, entropy = float(errors.mean()), float(apart.mean()) if exact.any() else 0.0
    cause = ""
    if not max(mean, entropy) <= bound:  # a NaN is beyond any bound
        lengths = np.asarray([len(row) for row in questions.rows])[chosen]
        cause = _cause(errors, lengths, learner, tokens, logprobs, bound=bound)
    return Difference(draws=len(known), mean=mean, largest=float(errors.max()), entropy=entropy, cause=cause)


def _cause(errors: NDArray, lengths: NDArray, learner: NDArray, tokens: NDArray, logprobs: NDArray, *, bound: float) -> str:
    """The likeliest cause: a temperature that would explain the difference, else by the rows without a difference."""
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


def told(difference: Difference) -> str:
    """Return one line for a message: the differences in nats, and the likeliest cause."""
    return (
        f"{difference.mean:.2g} nats on average, {difference.largest:.2g} at most, entropies by {difference.entropy:.2g} "
        f"({difference.draws} tokens)"
    )
