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
from fr3e_async.learner.config_check import wide
from fr3e_async.learner.layout import ForestMask

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
    forest_context: int = 0,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of the library's interface: [1, heads, U, d] queries, [1, key heads, U, d] keys and values.

    Returns [1, U, heads, d]. ``forest_mask`` and ``forest_context``, the longest row, come as keywords through the model's forward.

    Raises:
        ModelError: the model cannot be trained on forests.
    """
    if forest_mask is None:
        raise ModelError(f"{UNFIT}: it does not hand keywords on to its attention layers")
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if others.get(name) is not None and not (name == "sliding_window" and wide(others[name], forest_context)):
            raise ModelError(f"{UNFIT}: its attention has {name}")
    layout = forest_mask.layout
    if layout.blocks is not None:
        out = _flex()(query, key, value, block_mask=layout.blocks, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    return _stacked_attention(forest_mask, query, key, value, scaling=scaling)[None], None


def _stacked_attention(mask: ForestMask, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    """[U, heads, d]"""
    layout = mask.layout
    assert layout.queries is not None
    assert layout.keys is not None
    assert layout.back is not None
    shared_keys = query.shape[1] != key.shape[1]
    # One gather for all stacks, since the backward pass of each fills a tensor of all places.
    parts = zip(
        layout.stacks,
        mask.biases,
        _gathered(query, layout.queries, [stack.count * stack.queries for stack in layout.stacks]),
        _gathered(key, layout.keys, [stack.count * stack.keys for stack in layout.stacks]),
        _gathered(value, layout.keys, [stack.count * stack.keys for stack in layout.stacks]),
        strict=True,
    )
    outs = []
    for stack, bias, q, k, v in parts:
        queries, keys, values = (_heads_first(part, stack.count) for part in (q, k, v))
        out = scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scaling, enable_gqa=shared_keys)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).index_select(0, layout.back)


def _gathered(heads: Tensor, places: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """[1, heads, U, d] at these places, [Σ sizes], as a part [size, heads, d] for each stack."""
    return heads[0].transpose(0, 1).index_select(0, places).split(sizes)


def _heads_first(rows: Tensor, count: int) -> Tensor:
    """[n·L, heads, d] → [n, heads, L, d]"""
    return rows.unflatten(0, (count, -1)).transpose(1, 2)


@cache
def _flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled: uncompiled it computes every pair."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention


AttentionInterface.register(NAME, forest_attention)
