"""The attention mask of a forest on a device, and the inputs of a forward pass. Torch only.

A slot sees its ancestors and itself, or the nearest of them in a layer with a sliding window. There are two forms of this mask:
*blocks*, runs of queries with the keys of their whole path gathered beside them, those of similar shape stacked, for plain scaled
dot-product attention; and FlexAttention's block mask of ``j <= i < end[j]``, whose empty blocks are skipped, on CUDA. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr3e_async.algorithm.trees import Forest
from fr3e_async.learner.packing import MicroBatch, padded

QUERY_BLOCK = 256  # most queries of a block: what lies above its diagonal is computed for nothing
FREE_PAIRS = 1 << 16  # query-key pairs that cost less than one more call
WASTE = 1.3  # how much padding may add to the pairs of a stack
FLEX_BLOCK = 128  # slots are padded to a multiple of it for FlexAttention
Kernel = Literal["auto", "flex", "blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Blocks of similar shape, attended to in one call: n blocks of ``queries`` by ``keys``, padding included."""

    count: int
    queries: int
    keys: int
    depth: Tensor  # [n, Lq] of the queries


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeLayout:
    """A forest on a device: made once for a micro-batch and used by every pass over it.

    Queries and keys of all stacks are gathered at once, one stack after another. Padded entries point at slot 0 and are
    never read.
    """

    stacks: tuple[Stack, ...] = ()
    queries: Tensor | None = None  # [Σ n·Lq] slots
    keys: Tensor | None = None  # [Σ n·Lk] slots, those of a block by depth
    back: Tensor | None = None  # [U] where each slot's output stands among the queries
    blocks: Callable[[int | None], Any] | None = None  # FlexAttention's BlockMask for a sliding window

    def mask(self, dtype: torch.dtype) -> ForestMask:
        """What one forward pass needs beside the slots; its biases are the size of all pairs and live no longer than it."""
        return ForestMask(layout=self, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestMask:
    """The mask of one forward pass, made once for each window and used by every layer."""

    layout: TreeLayout
    dtype: torch.dtype
    _made: dict[int | None, tuple[Tensor, ...]] = field(default_factory=dict)

    def biases(self, window: int | None = None) -> tuple[Tensor, ...]:
        """[n, 1, Lq, Lk] of each stack: 0 where the query may see the key, else -inf. Made once for all layers of a window."""
        if window not in self._made:
            self._made[window] = tuple(mask_bias(stack, self.dtype, window) for stack in self.layout.stacks)
        return self._made[window]


def mask_bias(stack: Stack, dtype: torch.dtype, window: int | None) -> Tensor:
    # Keys stand by depth, so a query sees those that are no deeper than itself; padding is deeper than any.
    keys, depth = torch.arange(stack.keys, device=stack.depth.device), stack.depth[:, :, None]
    hidden = keys > depth
    if window is not None:
        hidden |= keys <= depth - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None]


@dataclass(frozen=True, slots=True)
class _Block:
    queries: NDArray[np.int64]
    keys: NDArray[np.int64]


def _query_blocks(forest: Forest) -> list[_Block]:
    """Every run cut into at most ``QUERY_BLOCK`` queries; largest first, so that neighbours are of similar shape."""
    blocks = []
    for run in forest.runs:
        above = len(run.path) - (run.stop - run.start)
        for start in range(above, len(run.path), QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, len(run.path))
            blocks.append(_Block(run.path[start:stop], run.path[:stop]))
    return sorted(blocks, key=lambda block: (-len(block.queries), -len(block.keys)))


def _stacks(blocks: list[_Block]) -> list[list[_Block]]:
    """Group blocks of similar shape: neighbours go together while the padding is free or small."""
    stacks: list[list[_Block]] = []
    pairs = 0
    for block in blocks:
        mine = len(block.queries) * len(block.keys)
        if stacks:
            longest = max(len(block.keys), max(len(other.keys) for other in stacks[-1]))
            padded = (len(stacks[-1]) + 1) * len(stacks[-1][0].queries) * longest
            if padded <= max(WASTE * (pairs + mine), FREE_PAIRS):
                stacks[-1].append(block)
                pairs += mine
                continue
        stacks.append([block])
        pairs = mine
    return stacks


def kernel_for(device: torch.device, kernel: Kernel) -> Kernel:
    """Resolve ``auto``: flex on CUDA, blocks elsewhere."""
    return ("flex" if device.type == "cuda" else "blocks") if kernel == "auto" else kernel


def slots_of(forest: Forest, kernel: Kernel) -> int:
    """Count the slots that the model is run on: a whole number of FlexAttention's blocks, or one for each token."""
    return -(-len(forest) // FLEX_BLOCK) * FLEX_BLOCK if kernel == "flex" else len(forest)


def blockwise_layout(forest: Forest, *, device: torch.device) -> TreeLayout:
    """Make the stacks of query blocks. The pairs that are computed are about those that are seen, whatever the forest's size."""
    stacks, queries, keys, offset = [], [], [], 0
    back = np.zeros(len(forest), dtype=np.int64)
    for members in _stacks(_query_blocks(forest)):
        width = len(members[0].queries)
        for i, block in enumerate(members):
            back[block.queries] = offset + i * width + np.arange(len(block.queries))
        offset += len(members) * width
        queries.append(padded([block.queries for block in members]))
        keys.append(padded([block.keys for block in members]))
        depth = torch.from_numpy(forest.depth[queries[-1]]).to(device)
        stacks.append(Stack(count=len(members), queries=width, keys=keys[-1].shape[1], depth=depth))
    joined = {
        name: np.concatenate([part.reshape(-1) for part in parts]) for name, parts in (("queries", queries), ("keys", keys))
    }
    slots = {name: torch.from_numpy(array).to(device) for name, array in (joined | {"back": back}).items()}
    return TreeLayout(stacks=tuple(stacks), **slots)


def flex_layout(forest: Forest, *, slots: int, device: torch.device) -> TreeLayout:
    """Make the masks for FlexAttention, over ``slots``; those after the forest are padding and see themselves only."""
    ends = torch.arange(1, slots + 1, device=device)
    ends[: len(forest)] = torch.from_numpy(forest.end).to(device)
    depth = torch.zeros(slots, dtype=torch.int64, device=device)
    depth[: len(forest)] = torch.from_numpy(forest.depth).to(device)

    @cache
    def blocks(window: int | None) -> Any:
        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            ancestors = (key <= query) & (query < ends[key])
            return ancestors if window is None else ancestors & (depth[query] - depth[key] < window)

        return block_mask(sees, slots=slots, device=device)

    return TreeLayout(blocks=blocks)


def block_mask(sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], *, slots: int, device: torch.device) -> Any:
    """The BlockMask that FlexAttention's ``create_block_mask`` makes of ``sees``, by a row of blocks at a time.

    Memory: [FLEX_BLOCK, slots] booleans at once, where theirs takes ten bytes for each pair of slots (45 GiB at 70k).
    """
    from torch.nn.attention.flex_attention import BlockMask

    everywhere = torch.arange(slots, device=device)
    none = everywhere[:1]  # batch and head, which no mask here depends on
    counts = torch.stack(
        [
            sees(none, none, queries[:, None], everywhere).unflatten(1, (-1, FLEX_BLOCK)).sum(dim=(0, 2))
            for queries in everywhere.split(FLEX_BLOCK)
        ]
    )  # [query blocks, key blocks] pairs that see each other
    full = counts == FLEX_BLOCK**2

    def ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """For each query block, the number of chosen key blocks and their indices, those that are not chosen last."""
        indices = torch.argsort(chosen.int(), dim=-1, descending=True, stable=True)
        return chosen.sum(dim=-1, dtype=torch.int32)[None, None], indices.int()[None, None]

    return BlockMask.from_kv_blocks(
        *ordered((counts > 0) & ~full), *ordered(full), BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees, seq_lengths=(slots, slots)
    )


# ---- What the model is run on: a micro-batch's share of the forward pass, as tensors on a device ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A micro-batch's share of the forward pass; names as in ``packing.MicroBatch``, whose example is this one's too."""

    tokens: Tensor  # [B, W]
    positions: Tensor | None  # [B, W]
    layout: TreeLayout | None
    rows: Tensor  # [P]
    targets: Tensor  # [P]

    @classmethod
    def of(cls, batch: MicroBatch, device: torch.device, *, kernel: Kernel = "auto") -> Inputs:
        """Copy a micro-batch to ``device``, with the mask of its forest for ``kernel`` (learner.tree_attention)."""
        tokens, positions, layout = batch.tokens, batch.positions, None
        if batch.forest is not None:
            kernel = kernel_for(device, kernel)
            slots = slots_of(batch.forest, kernel)
            assert positions is not None
            tokens, positions = (np.pad(array, ((0, 0), (0, slots - array.shape[1]))) for array in (tokens, positions))
            if kernel == "flex":
                layout = flex_layout(batch.forest, slots=slots, device=device)
            else:
                layout = blockwise_layout(batch.forest, device=device)
        return cls(
            tokens=torch.from_numpy(tokens).to(device),
            positions=None if positions is None else torch.from_numpy(positions).to(device),
            layout=layout,
            rows=torch.from_numpy(batch.rows).to(device),
            targets=torch.from_numpy(batch.targets).to(device),
        )
