"""From credited groups to a training batch: minibatches by group, shards by load. Pure.

The split must not change the update: losses are normalised by global token counts, so any assignment of samples to
ranks gives the same gradient; this only balances the work.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fr3e_async.types import Advantage, AdvantageSpan, RolloutBatch, TrainSample


def minibatch_of(group_index: int, *, groups: int, minibatches: int) -> int:
    """Number of the minibatch, 0 to ``minibatches`` - 1, that a group belongs to, by its index in admission order.

    Example: of 4 groups in 2 minibatches, 0 and 1 are in the first, 2 and 3 in the second.
    """
    return group_index * minibatches // groups


def balanced_shards(lengths: Sequence[int], shards: int) -> list[list[int]]:
    """Deal items out to shards, longest first to the least loaded one (LPT), ties to the lower: indices by shard, ascending."""
    loads = [0] * shards
    parts: list[list[int]] = [[] for _ in range(shards)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        shard = loads.index(min(loads))
        parts[shard].append(index)
        loads[shard] += lengths[index]
    return [sorted(part) for part in parts]


class RowCost(NamedTuple):
    """What a row costs the rank that trains it: its completion, and its context unless a row beside it shares it."""

    minibatch: int
    group: int  # rows of one group share prefixes
    context: int  # tokens
    completion: int  # tokens


def tree_tokens(rows: Sequence[RowCost]) -> int:
    """Estimate the tokens that the rows of one group are computed with: every completion, and the longest context once."""
    return max(row.context for row in rows) + sum(row.completion for row in rows)


UNEVEN = 1.1  # a rank may have so much more than the mean before a group is torn apart


def shard_trees(rows: Sequence[RowCost], shards: int) -> list[list[int]]:
    """Deal rows out to shards (ranks), balanced within every minibatch, since ranks meet at each step: indices by shard.

    Groups stay whole, for what they share is computed once on one rank, unless that leaves a rank with more than
    ``UNEVEN`` times the mean: then the largest group of the fullest rank is halved, again and again, if this helps.
    """
    parts: list[list[int]] = [[] for _ in range(shards)]
    for minibatch in sorted({row.minibatch for row in rows}):
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if row.minibatch == minibatch:
                groups.setdefault(row.group, []).append(index)
        for part, units in zip(parts, _balanced_units(list(groups.values()), rows, shards), strict=True):
            part.extend(index for unit in units for index in unit)
    return [sorted(part) for part in parts]


def _balanced_units(units: list[list[int]], rows: Sequence[RowCost], shards: int) -> list[list[list[int]]]:
    """The units (whole groups or pieces of them) of each shard."""

    def cost(unit: list[int]) -> int:
        return tree_tokens([rows[i] for i in unit])

    def assigned(units: list[list[int]]) -> list[list[list[int]]]:
        return [[units[i] for i in part] for part in balanced_shards([cost(unit) for unit in units], shards)]

    def fullest(parts: list[list[list[int]]]) -> tuple[int, list[list[int]]]:
        return max(((sum(map(cost, part)), part) for part in parts), key=lambda found: found[0])

    best = found = assigned(units)
    fair = sum(map(cost, units)) / shards
    for _ in range(4 * shards):  # halving one of two equally full ranks helps only when the other follows
        load, part = fullest(found)
        largest = max(part, key=cost, default=[])
        if load <= UNEVEN * fair or len(largest) < 2:
            break
        middle = len(largest) // 2
        units = [unit for unit in units if unit is not largest] + [largest[:middle], largest[middle:]]
        found = assigned(units)
        best = min(best, found, key=lambda parts: fullest(parts)[0])
    return best


def advantages_of(advantage: Advantage, length: int) -> NDArray[np.float32]:
    """Spread an advantage over a completion's tokens, [length] float32. Raises ``ValueError`` if a span begins beyond its end.

    Example: ((0, 0.5), (3, -1.0)) over 5 tokens is [0.5, 0.5, 0.5, -1, -1].
    """
    if advantage[-1].start >= length:
        raise ValueError(f"a span begins at token {advantage[-1].start} of {length}")
    spans, tokens = zip(*span_lengths(advantage, length), strict=True)
    return np.repeat(np.asarray([span.value for span in spans], dtype=np.float32), tokens)


def span_lengths(advantage: Advantage, length: int) -> list[tuple[AdvantageSpan, int]]:
    """Pair each span of a completion of ``length`` tokens with the number of tokens that it covers."""
    ends = [*(span.start for span in advantage[1:]), length]
    return [(span, end - span.start) for span, end in zip(advantage, ends, strict=True)]


def train_sample(batch: RolloutBatch, row: int, *, advantage: Advantage, minibatch: int) -> TrainSample:
    """Make the training sample of a rollout that is row ``row`` of a batch. Copies, for stored arrays are read-only."""
    context, completion = batch.context(row), batch.completion(row)
    return TrainSample(
        tokens=np.concatenate([context, completion.tokens]),
        context_len=len(context),
        behaviour_logprobs=completion.logprobs.copy(),
        versions=completion.versions.copy(),
        advantages=advantages_of(advantage, len(completion)),
        minibatch=minibatch,
    )


# ---- Buckets of token ages, by which the sums and metrics of the loss are kept apart ----
# An age is the number of weight versions between the one that sampled a token and the one that the update starts from.
# Knows nothing of torch, so that the names of metrics can be declared without it.

AGE_BUCKETS = ("0", "1", "2_3", "4_7", "8_up")  # as they stand in the names of metrics
FIRST_AGES = (0, 1, 2, 4, 8)  # the youngest age of each bucket; widths double, since rare ages would make noisy means


def age_bucket(ages: Any) -> Any:
    """Index into ``AGE_BUCKETS`` of an age, or of each one in an integer array or tensor (int64 of its shape): 3 gives 2."""
    return sum((ages >= first for first in FIRST_AGES[1:]), start=0 * ages)
