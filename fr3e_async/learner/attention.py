"""Attention over forests of token rows, for Hugging Face models that attend through the library's attention interface.

Importing this module registers it there. Knows nothing of samples and losses, nor how the layout came about.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from fr3e_async.errors import ModelError
from fr3e_async.learner.layout import ForestMask, Stack

NAME = "fr3e_forest"  # under which the interface knows it
UNFIT = "learner.packing=tree does not work with this model (set flat or padded)"


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    forest_mask: ForestMask | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of the library's interface: [1, heads, U, d] queries, [1, key heads, U, d] keys and values.

    Returns [1, U, heads, d]. ``forest_mask`` comes as a keyword through the model's forward.

    Raises:
        ModelError: the model cannot be trained on forests.
    """
    if forest_mask is None:
        raise ModelError(f"{UNFIT}: it does not hand keywords on to its attention layers")
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise ModelError(f"{UNFIT}: its attention has {name}")
    layout = forest_mask.layout
    if layout.blocks is not None:
        out = _flex()(query, key, value, block_mask=layout.blocks, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    assert layout.back is not None
    rows = tuple(tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [U, heads, d] each
    outs = [
        _stack_attention(stack, bias, rows, scaling=scaling).flatten(0, 1)
        for stack, bias in zip(layout.stacks, forest_mask.biases, strict=True)
    ]
    joined = outs[0] if len(outs) == 1 else torch.cat(outs)
    return joined.index_select(0, layout.back)[None], None


def _stack_attention(stack: Stack, bias: Tensor, rows: tuple[Tensor, ...], *, scaling: float | None) -> Tensor:
    """[n, Lq, heads, d]"""
    query, key, value = rows
    groups = query.shape[1] // key.shape[1]
    keys, values = (_gather(tensor, stack.keys) for tensor in (key, value))
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    out = scaled_dot_product_attention(_gather(query, stack.queries), keys, values, attn_mask=bias, scale=scaling)
    return out.transpose(1, 2)


def _gather(rows: Tensor, places: Tensor) -> Tensor:
    """[U, heads, d] by [n, L] → [n, heads, L, d]"""
    return rows.index_select(0, places.flatten()).view(*places.shape, *rows.shape[1:]).transpose(1, 2)


@cache
def _flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled: uncompiled it computes every pair."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention


AttentionInterface.register(NAME, forest_attention)
