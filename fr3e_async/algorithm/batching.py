"""From credited groups to a training batch: minibatches by group, shards by load. Pure.

The split must not change the update: losses are normalised by global token counts, so any assignment of samples to
ranks gives the same gradient; this only balances the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fr3e_async.types import Advantage, RolloutBatch, TrainSample


def minibatch_of(group_index: int, *, groups: int, minibatches: int) -> int:
    """Which of the equal parts of a batch the group at ``group_index`` (admission order) belongs to."""
    return group_index * minibatches // groups


def balanced_shards(lengths: Sequence[int], shards: int) -> list[list[int]]:
    """Indices of the items of each shard: longest first to the least loaded shard (LPT), ties to the lower shard."""
    loads = [0] * shards
    parts: list[list[int]] = [[] for _ in range(shards)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        shard = loads.index(min(loads))
        parts[shard].append(index)
        loads[shard] += lengths[index]
    return [sorted(part) for part in parts]


def advantages_of(advantage: Advantage, length: int) -> NDArray[np.float32]:
    """[length] each token's advantage. Raises ``ValueError`` if a stretch begins beyond the completion."""
    if advantage[-1].start >= length:
        raise ValueError(f"a stretch begins at token {advantage[-1].start} of {length}")
    ends = [*(stretch.start for stretch in advantage[1:]), length]
    return np.repeat(
        np.asarray([stretch.value for stretch in advantage], dtype=np.float32),
        [end - stretch.start for stretch, end in zip(advantage, ends, strict=True)],
    )


def train_sample(batch: RolloutBatch, row: int, *, advantage: Advantage, minibatch: int) -> TrainSample:
    """Row ``row`` with everything the loss needs. Copies: arrays from the object store are read-only."""
    context, completion = batch.context(row), batch.completion(row)
    return TrainSample(
        tokens=np.concatenate([context, completion.tokens]),
        context_len=len(context),
        behaviour_logprobs=completion.logprobs.copy(),
        versions=completion.versions.copy(),
        advantages=advantages_of(advantage, len(completion)),
        minibatch=minibatch,
    )
