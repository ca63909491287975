"""From ragged samples to micro-batches that fit a token budget. Pure numpy.

Knows nothing of models or ranks. Rows are padded on the right: under causal attention no real token sees the padding,
so neither an attention mask nor position ids are needed, and the fastest attention kernels apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fr3e_async.types import TrainSample


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B sequences padded to length P, and their N completion tokens one after another.

    Example: contexts [7 8] and [9], completions [5] and [6 4] give ``tokens=[[7, 8, 5], [9, 6, 4]]``,
    ``rows=[1, 3, 4]`` (the places that predict them) and ``targets=[5, 6, 4]``.
    """

    tokens: NDArray[np.int64]  # [B, P]
    rows: NDArray[np.int64]  # [N] index into the B·P places: the one before the token
    targets: NDArray[np.int64]  # [N]
    behaviour_logprobs: NDArray[np.float32]  # [N] nats
    advantages: NDArray[np.float32]  # [N]
    mask: NDArray[np.bool_]  # [N] False only in a dummy

    @property
    def trainable(self) -> int:
        """Tokens that the loss is over."""
        return int(self.mask.sum())


# Runs the model and trains nothing: keeps the collectives of a rank that has less work in step with the others.
DUMMY = MicroBatch(
    tokens=np.zeros((1, 2), dtype=np.int64),
    rows=np.zeros(1, dtype=np.int64),
    targets=np.zeros(1, dtype=np.int64),
    behaviour_logprobs=np.zeros(1, dtype=np.float32),
    advantages=np.zeros(1, dtype=np.float32),
    mask=np.zeros(1, dtype=np.bool_),
)


def plan(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Indices of each micro-batch, longest first, so that (longest · count) ≤ budget and little is padding.

    Raises:
        ValueError: one sequence alone is above the budget.
    """
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] > budget:
            raise ValueError(f"a sample of {lengths[index]} tokens is above learner.micro_batch_tokens ({budget})")
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def collate(samples: Sequence[TrainSample]) -> MicroBatch:
    """One micro-batch of these samples. Every array is a fresh copy."""
    width = max(len(sample.tokens) for sample in samples)
    tokens = np.zeros((len(samples), width), dtype=np.int64)
    rows = []
    for i, sample in enumerate(samples):
        tokens[i, : len(sample.tokens)] = sample.tokens
        rows.append(np.arange(sample.context_len - 1, len(sample.tokens) - 1) + i * width)
    flat_rows = np.concatenate(rows)
    return MicroBatch(
        tokens=tokens,
        rows=flat_rows,
        targets=tokens.reshape(-1)[flat_rows + 1],
        behaviour_logprobs=np.concatenate([sample.behaviour_logprobs for sample in samples]).astype(np.float32),
        advantages=np.concatenate([sample.advantages for sample in samples]),
        mask=np.ones(len(flat_rows), dtype=np.bool_),
    )


def pack(samples: Sequence[TrainSample], *, budget: int) -> list[MicroBatch]:
    """Micro-batches of at most ``budget`` padded tokens that hold every sample once. Empty for no samples."""
    parts = plan([len(sample.tokens) for sample in samples], budget=budget)
    return [collate([samples[i] for i in part]) for part in parts]
