"""The data types passed between processes: frozen dataclasses of numpy arrays, complete and checked on creation.

Shapes and units stand beside the fields. L: tokens of a completion, R: rows, C: contexts. Positions are 0-based
indices into a completion, so ``completion[:position]`` is the prefix that ends before the token at ``position``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fr3e_async.outcomes import Outcome


class Finish(IntEnum):
    """Why a completion ended; the engine reports it with the tokens."""

    STOP = 0  # an end token was sampled, or the end of a stop text (sampling.stop), with the last token of the completion
    LENGTH = 1  # the budget was used up
    ABORT = 2  # the engine abandoned it; the rollout is retried and never trained


class RolloutId(NamedTuple):
    """Names one rollout for ever: the n-th branch of a node of a prompt group. Retries share it (see ``attempt``).

    ``group`` is ``"<prompt uid>@<epoch>"``; node 0 is the prompt (its branches are the base trajectories), the others are
    anchors (see ``Anchor``). Example: ``RolloutId("gsm8k/17@0", 0, 3)`` is the fourth base trajectory.
    """

    group: str
    node: int
    branch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem, ready to sample from. Example: ``Prompt(uid="gsm8k/17", text="2+3=?", reference="5", token_ids=...)``."""

    uid: str
    text: str
    reference: str
    token_ids: NDArray[np.int32]  # [Q] after the chat template
    margins: tuple[Fraction, ...] = ()  # how far each number of an answer may be off; one for all of them, or one each
    columns: Mapping[str, Any] = field(default_factory=dict)  # of the row, for reward functions (data.columns)

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 1 or self.token_ids.size == 0:
            raise ValueError(f"prompt {self.uid}: token_ids must be a non-empty vector, got shape {self.token_ids.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How to sample: at ``temperature`` with filters, at most ``max_tokens`` of response (prefix included)."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled continuation of a context, with what the engine knew of every token when it was drawn.

    *Example*, a continuation of two tokens whose second one was sampled under newer weights::

        Completion(
            tokens=[785, 151645], logprobs=[-0.51, -0.02], entropies=[1.08, 0.11], entropy_errors=[0.0, 0.0],
            versions=[6, 7], finish=Finish.STOP, cached_tokens=96,
        )

    An entropy is known to lie in ``entropies ± entropy_errors``: 0 where it is exact, half the width of a certified
    interval where the engine gave the likeliest tokens only, and half of ln(vocabulary) where it gave nothing.
    The raw distribution is the model's at temperature 1 without filters.
    """

    tokens: NDArray[np.int32]  # [L]
    logprobs: NDArray[np.float32]  # [L] log π_behaviour(token), nats: of the distribution that was sampled
    entropies: NDArray[np.float32]  # [L] H(π_behaviour(· | prefix)), nats, full vocabulary
    entropy_errors: NDArray[np.float32]  # [L] nats, >= 0
    versions: NDArray[np.int32]  # [L] weight version that sampled each token
    finish: Finish
    raw_logprobs: NDArray[np.float32] | None = None  # [L] nats; None: not measured apart from ``logprobs``
    raw_entropies: NDArray[np.float32] | None = None  # [L] nats; None: not measured apart from ``entropies``
    cached_tokens: int = 0  # context tokens whose key-values were taken from the prefix cache

    def __post_init__(self) -> None:
        length = len(self.tokens)
        for name in ("logprobs", "entropies", "entropy_errors", "versions", "raw_logprobs", "raw_entropies"):
            column = getattr(self, name)
            if column is not None and len(column) != length:
                raise ValueError(f"completion: {name} has {len(column)} entries for {length} tokens")
        if (self.raw_logprobs is None) != (self.raw_entropies is None):
            raise ValueError("completion: raw_logprobs and raw_entropies come together")
        if length and not np.isfinite(self.logprobs).all():
            raise ValueError("completion: a behaviour log-prob is not finite")

    def __len__(self) -> int:
        return len(self.tokens)

    def stopped_at(self, length: int) -> Completion:
        """The completion cut to its first ``length`` tokens, as if the last of them had stopped it."""
        columns = {name: getattr(self, name) for name in ("tokens", "versions", *FLOAT_COLUMNS)}
        cut = {name: column[:length] for name, column in columns.items() if column is not None}
        return replace(self, finish=Finish.STOP, **cut)


class Anchor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A position of a trunk to branch from: a node of the group's tree.

    Every process numbers nodes the same way: anchor j = 1..K of base b is node b·K + j, and
    node 0 is the prompt. ``parent`` is the anchor before it on the same trunk, or the prompt.
    """

    node: int
    parent: int
    trunk: int  # branch index of the base that it lies on
    position: int  # prefix = trunk[:position]; the token at this position is sampled again
    score: float  # what the rule ranked by: nats for entropy and surprisal
    certain: bool = True  # no other choice of anchors agrees with the intervals that the entropies are known to lie in

    def __post_init__(self) -> None:
        if not 0 <= self.parent < self.node or self.position < 1:
            raise ValueError(f"anchor {self.node}: parent {self.parent}, position {self.position}")


ANCHOR = np.dtype([("node", "i4"), ("position", "i4"), ("entropy", "f4"), ("score", "f8")])  # the fields are an ``Anchor``'s
RAW_COLUMNS = ("raw_logprobs", "raw_entropies")
FLOAT_COLUMNS = ("logprobs", "entropies", "entropy_errors", *RAW_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """Completions of one task, in columns: the object that is stored in Ray's object store.

    Rows that continue the same context share it. A context is prompt + prefix; ``prompt_lens`` tells how much of it is
    the prompt, so that the response as a whole (prefix + completion) can be read off.
    """

    ids: tuple[RolloutId, ...]  # R rows
    context_tokens: NDArray[np.int32]  # [Σ context lengths]
    context_offsets: NDArray[np.int64]  # [C + 1]
    prompt_lens: NDArray[np.int32]  # [C] tokens
    context_of: NDArray[np.int32]  # [R] index into the contexts
    tokens: NDArray[np.int32]  # [Σ L]
    logprobs: NDArray[np.float32]  # [Σ L] nats
    entropies: NDArray[np.float32]  # [Σ L] nats
    entropy_errors: NDArray[np.float32]  # [Σ L] nats
    versions: NDArray[np.int32]  # [Σ L]
    offsets: NDArray[np.int64]  # [R + 1]
    finish: NDArray[np.int8]  # [R] Finish
    cached_tokens: NDArray[np.int32]  # [R] context tokens taken from the prefix cache
    raw_logprobs: NDArray[np.float32] | None = None  # [Σ L] nats
    raw_entropies: NDArray[np.float32] | None = None  # [Σ L] nats
    eligible: NDArray[np.bool_] | None = None  # [Σ L] token positions that may become anchors; None: no row is a trunk
    anchors: NDArray[np.void] | None = None  # [A] of ANCHOR: where explorers branch from its rows; None: not chosen yet

    def __post_init__(self) -> None:
        rows, contexts, total = len(self.ids), len(self.prompt_lens), len(self.tokens)
        expected = {
            "offsets": rows + 1, "finish": rows, "context_of": rows, "cached_tokens": rows, "context_offsets": contexts + 1,
            "versions": total, "eligible": total, **dict.fromkeys(FLOAT_COLUMNS, total),
        }  # fmt: skip
        for name, size in expected.items():
            column = getattr(self, name)
            if column is not None and len(column) != size:
                raise ValueError(f"rollout batch: {name} has {len(column)} entries, expected {size}")
        if self.offsets[-1] != total or self.context_offsets[-1] != len(self.context_tokens):
            raise ValueError("rollout batch: the last offset must be the number of tokens")

    @classmethod
    def build(
        cls,
        *,
        ids: Sequence[RolloutId],
        contexts: Sequence[NDArray[np.int32]],
        prompt_lens: Sequence[int],
        context_of: Sequence[int],
        completions: Sequence[Completion],
        eligible: Sequence[NDArray[np.bool_]] | None = None,
    ) -> RolloutBatch:
        """Make one batch with a completion per row. Raw columns are kept only if they differ from the others."""

        def flat(parts: Sequence[NDArray], dtype: type) -> NDArray:
            return np.concatenate([*parts, np.zeros(0, dtype=dtype)]).astype(dtype, copy=False)

        columns = {name: flat([getattr(c, name) for c in completions], np.float32) for name in FLOAT_COLUMNS[:3]}
        if any(c.raw_entropies is not None for c in completions):
            for name in RAW_COLUMNS:
                plain = name.removeprefix("raw_")
                parts = [getattr(c, plain if getattr(c, name) is None else name) for c in completions]
                columns[name] = flat(parts, np.float32)
        return cls(
            ids=tuple(ids),
            context_tokens=flat(contexts, np.int32),
            context_offsets=np.cumsum([0, *(len(c) for c in contexts)], dtype=np.int64),
            prompt_lens=np.asarray(prompt_lens, dtype=np.int32),
            context_of=np.asarray(context_of, dtype=np.int32),
            tokens=flat([c.tokens for c in completions], np.int32),
            versions=flat([c.versions for c in completions], np.int32),
            offsets=np.cumsum([0, *(len(c) for c in completions)], dtype=np.int64),
            finish=np.asarray([c.finish for c in completions], dtype=np.int8),
            cached_tokens=np.asarray([c.cached_tokens for c in completions], dtype=np.int32),
            eligible=None if eligible is None else flat(eligible, np.bool_),
            **columns,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def row_of(self, id: RolloutId) -> int:
        """The row of a rollout, wherever it stands. ``ValueError`` if it is not here."""
        return self.ids.index(id)

    def span(self, row: int) -> slice:
        """The slice of the token columns that is row ``row``."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def context(self, row: int) -> NDArray[np.int32]:
        """[prompt + prefix] the token ids that row ``row`` continues."""
        c = self.context_of[row]
        return self.context_tokens[self.context_offsets[c] : self.context_offsets[c + 1]]

    def prompt_len(self, row: int) -> int:
        return int(self.prompt_lens[self.context_of[row]])

    def completion(self, row: int) -> Completion:
        """Row ``row`` as a completion of its own; views, not copies."""
        span = self.span(row)
        columns = {name: getattr(self, name) for name in ("tokens", "versions", *FLOAT_COLUMNS)}
        cut = {name: column[span] for name, column in columns.items() if column is not None}
        return Completion(finish=Finish(self.finish[row]), cached_tokens=int(self.cached_tokens[row]), **cut)

    def note(self, row: int) -> RolloutSummary:
        """The summary of row ``row``, which the control loop gets instead of the tokens."""
        done = self.completion(row)
        return RolloutSummary(
            id=self.ids[row],
            length=len(done),
            context=len(self.context(row)),
            cached=done.cached_tokens,
            entropy_sum=float(done.entropies.sum()),
            entropy_error_sum=float(done.entropy_errors.sum()),
            finish=done.finish,
            oldest_version=int(done.versions.min(initial=np.iinfo(np.int32).max)),
            newest_version=int(done.versions.max(initial=-1)),
        )

    def response(self, row: int) -> NDArray[np.int32]:
        """[prefix + completion] everything after the prompt: what a verifier judges."""
        return np.concatenate([self.context(row)[self.prompt_len(row) :], self.completion(row).tokens])


class RolloutSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the control loop sees of a finished rollout; the tokens stay in the object store."""

    id: RolloutId
    length: int  # tokens
    context: int  # tokens of prompt + prefix
    cached: int  # of these, taken from the prefix cache; the others were prefilled
    entropy_sum: float  # nats, over the completion
    entropy_error_sum: float  # nats, over the completion: how far entropy_sum may be off
    finish: Finish
    oldest_version: int  # lowest weight version among its tokens
    newest_version: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A verifier's judgement of one response. ``reason``: how it was reached. Example: ``Verdict(outcome=Outcome.CORRECT, reason="integer")``."""

    outcome: Outcome
    reason: str = ""
    score: float | None = None  # a user's reward, in its declared range; None: 1 for correct, 0 for wrong, nothing for unknown
    attempts: int = 1  # how often it was scored; above 1 with verifiers.on_unknown=retry
    complaint: str = ""  # the first of its reason: where, and what was raised

    def __post_init__(self) -> None:
        if self.outcome is Outcome.FAILED:
            raise ValueError("verdict: a rollout that failed has none")
        if self.score is not None and (self.outcome is Outcome.UNKNOWN or not math.isfinite(self.score)):
            raise ValueError(f"verdict: score {self.score} with outcome {self.outcome}")

    @property
    def reward(self) -> float | None:
        """r of the response, in the declared range; None for an unknown verdict."""
        if self.outcome is Outcome.UNKNOWN:
            return None
        return float(self.outcome is Outcome.CORRECT) if self.score is None else self.score


class Answer(NamedTuple):
    """What an evaluation keeps of a response. Example: ``Answer(answer="204", text=None)``."""

    answer: str | None  # in its normal form, equal texts for equal answers; None without one
    text: str | None  # of the whole response, shortened; None: it is not kept


class AdvantageSpan(NamedTuple):
    """From completion token ``start`` on, to the next span or the end, every token has this advantage."""

    start: int
    value: float
    weight: float = 1.0  # of these tokens in the loss, which is a weighted mean over a minibatch


Advantage = tuple[AdvantageSpan, ...]  # the first begins at 0; one span: the whole completion


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """One trainable completion with everything the loss needs. Gradient flows on ``tokens[context_len:]`` only.

    Example: ``TrainSample(tokens=[9, 17, 2], context_len=1, behaviour_logprobs=[-0.1, -0.02], versions=[5, 5], advantages=[0.7, 0.7],
    minibatch=0)``, each column a NumPy array.
    """

    tokens: NDArray[np.int32]  # [T] context + completion
    context_len: int
    behaviour_logprobs: NDArray[np.float32]  # [T - context_len] nats
    versions: NDArray[np.int32]  # [T - context_len]
    advantages: NDArray[np.float32]  # [T - context_len]
    minibatch: int  # which optimiser step of an epoch it belongs to

    def __post_init__(self) -> None:
        if not 0 < self.context_len < len(self.tokens):
            raise ValueError(f"train sample: context of {self.context_len} in {len(self.tokens)} tokens leaves nothing to train")
        for name in ("behaviour_logprobs", "versions", "advantages"):
            if len(getattr(self, name)) != len(self.tokens) - self.context_len:
                raise ValueError(f"train sample: {name} must match the completion")
        if not np.isfinite(self.advantages).all():
            raise ValueError("train sample: an advantage is not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one rank-group update did. Means are over the global batch's trainable tokens unless named otherwise."""

    version: int  # version that the update made
    tokens: int
    optimiser_steps: int
    metrics: dict[str, float]
    time_s: float
