"""Every object in flight: frozen dataclasses of numpy arrays, complete and checked at birth.

Shapes and units stand beside the fields. L: tokens of a completion, R: rows, C: contexts. Positions are 0-based
indices into a completion, so ``completion[:position]`` is the prefix that ends before the token at ``position``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Finish(IntEnum):
    """Why a completion ended."""

    STOP = 0  # the end token was sampled; it is the last token of the completion
    LENGTH = 1  # the budget was used up
    ABORT = 2  # the engine gave it up; the rollout is retried and never trained


class RolloutId(NamedTuple):
    """Names one rollout for ever: the n-th branch of a node of a prompt group. Retries share it (see ``attempt``).

    ``group`` is ``"<prompt uid>@<epoch>"``; node 0 is the prompt (its branches are the base trajectories), node j >= 1
    is the j-th anchor of the trunk by position.
    """

    group: str
    node: int
    branch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem, ready to sample from. Example: ``Prompt(uid="gsm8k/17", text="2+3=?", gold="5", token_ids=...)``."""

    uid: str
    text: str
    gold: str
    token_ids: NDArray[np.int32]  # [Q] after the chat template

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
    """One sampled continuation of a context. ``entropies`` and ``logprobs`` are of the distribution that was sampled."""

    tokens: NDArray[np.int32]  # [L]
    logprobs: NDArray[np.float32]  # [L] log π_behaviour(token), nats
    entropies: NDArray[np.float32]  # [L] H(π_behaviour(· | prefix)), nats, full vocabulary
    versions: NDArray[np.int32]  # [L] weight version that sampled each token
    finish: Finish
    cached_tokens: int = 0  # context tokens whose key-values were taken from the prefix cache

    def __post_init__(self) -> None:
        length = len(self.tokens)
        for name in ("logprobs", "entropies", "versions"):
            if len(getattr(self, name)) != length:
                raise ValueError(f"completion: {name} has {len(getattr(self, name))} entries for {length} tokens")
        if length and not np.isfinite(self.logprobs).all():
            raise ValueError("completion: a behaviour log-prob is not finite")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A position of the trunk to branch from; ``node`` counts anchors by position from 1."""

    node: int
    position: int  # prefix = trunk[:position]; the token at this position is sampled anew
    score: float  # what the rule ranked by: nats for entropy and surprisal


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """Completions of one task, columnar: the object that travels through Ray's object store.

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
    versions: NDArray[np.int32]  # [Σ L]
    offsets: NDArray[np.int64]  # [R + 1]
    finish: NDArray[np.int8]  # [R] Finish
    anchors: tuple[Anchor, ...] = ()  # of row 0, if it is a trunk; explorers branch from these

    def __post_init__(self) -> None:
        rows, contexts, total = len(self.ids), len(self.prompt_lens), len(self.tokens)
        sizes = {
            "offsets": (len(self.offsets), rows + 1),
            "finish": (len(self.finish), rows),
            "context_of": (len(self.context_of), rows),
            "context_offsets": (len(self.context_offsets), contexts + 1),
            "logprobs": (len(self.logprobs), total),
            "entropies": (len(self.entropies), total),
            "versions": (len(self.versions), total),
        }
        for name, (got, expected) in sizes.items():
            if got != expected:
                raise ValueError(f"rollout batch: {name} has {got} entries, expected {expected}")
        if self.offsets[-1] != total or self.context_offsets[-1] != len(self.context_tokens):
            raise ValueError("rollout batch: the last offset must be the number of tokens")

    @classmethod
    def build(
        cls,
        ids: list[RolloutId],
        contexts: list[NDArray[np.int32]],
        prompt_lens: list[int],
        context_of: list[int],
        completions: list[Completion],
        anchors: tuple[Anchor, ...] = (),
    ) -> RolloutBatch:
        def flat(name: str, dtype: type) -> NDArray:
            return np.concatenate([getattr(c, name) for c in completions] or [np.zeros(0)]).astype(dtype, copy=False)

        return cls(
            ids=tuple(ids),
            context_tokens=np.concatenate(contexts).astype(np.int32, copy=False),
            context_offsets=np.cumsum([0, *(len(c) for c in contexts)], dtype=np.int64),
            prompt_lens=np.asarray(prompt_lens, dtype=np.int32),
            context_of=np.asarray(context_of, dtype=np.int32),
            tokens=flat("tokens", np.int32),
            logprobs=flat("logprobs", np.float32),
            entropies=flat("entropies", np.float32),
            versions=flat("versions", np.int32),
            offsets=np.cumsum([0, *(len(c) for c in completions)], dtype=np.int64),
            finish=np.asarray([c.finish for c in completions], dtype=np.int8),
            anchors=anchors,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def context(self, row: int) -> NDArray[np.int32]:
        """[prompt + prefix] the ids that row ``row`` continues."""
        c = self.context_of[row]
        return self.context_tokens[self.context_offsets[c] : self.context_offsets[c + 1]]

    def prompt_len(self, row: int) -> int:
        return int(self.prompt_lens[self.context_of[row]])

    def completion(self, row: int) -> Completion:
        span = slice(self.offsets[row], self.offsets[row + 1])
        return Completion(
            tokens=self.tokens[span],
            logprobs=self.logprobs[span],
            entropies=self.entropies[span],
            versions=self.versions[span],
            finish=Finish(self.finish[row]),
        )

    def note(self, row: int) -> RolloutNote:
        """What the control loop is told of a row."""
        done = self.completion(row)
        return RolloutNote(
            id=self.ids[row],
            length=len(done),
            entropy_sum=float(done.entropies.sum()),
            finish=done.finish,
            oldest_version=int(done.versions.min(initial=np.iinfo(np.int32).max)),
            newest_version=int(done.versions.max(initial=-1)),
        )

    def response(self, row: int) -> NDArray[np.int32]:
        """[prefix + completion] everything after the prompt: what a verifier judges."""
        return np.concatenate([self.context(row)[self.prompt_len(row) :], self.completion(row).tokens])


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutNote:
    """What the control loop sees of a finished rollout; the tokens stay in the object store."""

    id: RolloutId
    length: int  # tokens
    entropy_sum: float  # nats, over the completion
    finish: Finish
    oldest_version: int  # lowest weight version among its tokens
    newest_version: int


class Outcome(StrEnum):
    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A verifier's word on one response. ``reason`` says how it was reached, e.g. ``"integer"``, ``"cpu limit"``."""

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """One trainable completion with everything the loss needs. Gradient flows on ``tokens[context_len:]`` only."""

    tokens: NDArray[np.int32]  # [T] context + completion
    context_len: int
    behaviour_logprobs: NDArray[np.float32]  # [T - context_len] nats
    versions: NDArray[np.int32]  # [T - context_len]
    advantage: float
    minibatch: int  # which optimiser step of an epoch it belongs to

    def __post_init__(self) -> None:
        if not 0 < self.context_len < len(self.tokens):
            raise ValueError(f"train sample: context of {self.context_len} in {len(self.tokens)} tokens leaves nothing to train")
        if len(self.behaviour_logprobs) != len(self.tokens) - self.context_len or len(self.versions) != len(
            self.behaviour_logprobs
        ):
            raise ValueError("train sample: behaviour_logprobs and versions must match the completion")
        if not np.isfinite(self.advantage):
            raise ValueError(f"train sample: advantage is {self.advantage}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBundle:
    """All weights of one version as one flat buffer, Hugging Face names. bfloat16 travels as uint16 bits."""

    version: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str  # "float32" | "bfloat16"
    flat: NDArray  # [Σ sizes] float32 or uint16
    checksum: int  # crc32 of the buffer's bytes

    def __post_init__(self) -> None:
        total = sum(int(np.prod(shape)) for shape in self.shapes)
        if len(self.names) != len(self.shapes) or self.flat.size != total:
            raise ValueError(f"weight bundle: {self.flat.size} numbers for {len(self.names)} tensors of {total}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAck:
    """An engine's word that it serves a version: what it loaded, and what the switch cost."""

    version: int
    checksum: int
    verified_tensors: int  # loaded tensors compared byte for byte with the bundle
    pause_s: float
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one rank-group update did. Means are over the global batch's trainable tokens unless named otherwise."""

    version: int  # version that the update made
    tokens: int
    optimiser_steps: int
    metrics: dict[str, float]
    time_s: float
