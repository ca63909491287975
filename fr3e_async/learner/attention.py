"""Attention over forests of token rows, for Hugging Face models that attend through the library's attention interface.

Importing this module registers it there. Knows nothing of samples and losses, nor how the layout came about.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from fr3e_async.errors import ModelError
from fr3e_async.learner.layout import ForestMask, TreeLayout
from fr3e_async.learner.packing import REFUSALS

NAME = "fr3e_forest"  # under which the interface knows it
UNFIT = REFUSALS["tree"]


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    forest_mask: ForestMask | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of the library's interface: [1, heads, U, d] queries, [1, key heads, U, d] keys and values.

    Returns [1, U, heads, d]. ``forest_mask`` comes as a keyword through the model's forward. ``sliding_window``: a slot sees so
    many nearest ancestors, itself among them. ``softcap`` c: scores become c · tanh(score / c).

    Raises:
        ModelError: the model cannot be trained on forests.
    """
    if forest_mask is None:
        raise ModelError(f"{UNFIT}: it does not hand keywords on to its attention layers")
    for name in ("s_aux", "position_bias"):
        if others.get(name) is not None:
            raise ModelError(f"{UNFIT}: its attention has {name}")
    layout = forest_mask.layout
    if layout.blocks is not None:
        blocks, cap = layout.blocks(sliding_window), _flex_cap(softcap) if softcap else None
        out = _flex()(query, key, value, score_mod=cap, block_mask=blocks, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    biases = forest_mask.biases(sliding_window)
    attend = partial(_capped_attention, cap=softcap) if softcap else scaled_dot_product_attention
    return _stacked_attention(layout, biases, query, key, value, attend=partial(attend, scale=scaling))[None], None


def _stacked_attention(
    layout: TreeLayout, biases: Sequence[Tensor], query: Tensor, key: Tensor, value: Tensor, *, attend: Callable[..., Tensor]
) -> Tensor:
    """[U, heads, d]"""
    assert layout.queries is not None
    assert layout.keys is not None
    assert layout.back is not None
    shared_keys = query.shape[1] != key.shape[1]
    # One gather for all stacks, since the backward pass of each fills a tensor of all slots.
    parts = zip(
        layout.stacks,
        biases,
        _gathered(query, layout.queries, [stack.count * stack.queries for stack in layout.stacks]),
        _gathered(key, layout.keys, [stack.count * stack.keys for stack in layout.stacks]),
        _gathered(value, layout.keys, [stack.count * stack.keys for stack in layout.stacks]),
        strict=True,
    )
    outs = []
    for stack, bias, q, k, v in parts:
        queries, keys, values = (_heads_first(part, stack.count) for part in (q, k, v))
        out = attend(queries, keys, values, attn_mask=bias, enable_gqa=shared_keys)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, layout.back)


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, scale: float | None, enable_gqa: bool, cap: float
) -> Tensor:
    """Attend as ``scaled_dot_product_attention`` would with capped scores; keeps [n, heads, Lq, Lk] for the backward pass."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = torch.softmax(cap * torch.tanh(scores / cap) + attn_mask, dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


def _gathered(heads: Tensor, slots: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """[1, heads, U, d] at these slots, [Σ sizes], as a part [size, heads, d] for each stack."""
    return heads[0].transpose(0, 1).index_select(0, slots).split(sizes)


def _heads_first(rows: Tensor, count: int) -> Tensor:
    """[n·L, heads, d] → [n, heads, L, d]"""
    return rows.unflatten(0, (count, -1)).transpose(1, 2)


@cache
def _flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled: uncompiled it computes every pair."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention


@cache
def _flex_cap(cap: float) -> Callable[..., Tensor]:
    """One function a cap: FlexAttention is compiled again for each function."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


AttentionInterface.register(NAME, forest_attention)
