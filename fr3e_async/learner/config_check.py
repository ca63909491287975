"""What a model's config alone tells of whether it can be trained: asked before anything is started. Loads no weights."""

from __future__ import annotations

from typing import Any

from fr3e_async.errors import ModelError
from fr3e_async.learner.packing import Packing

LAYERS = {"full_attention", "sliding_attention"}  # what may be in a model that is trained as trees or flat
REFUSALS = {
    "tree": "learner.packing=tree does not work with this model (set flat or padded)",
    "flat": "learner.packing=flat does not work with this model (set padded)",
}


def check_config(config: Any, *, packing: Packing, attention: str, longest: int | None) -> None:
    """Refuse a model whose config shows that a layout would compute other numbers than single rows.

    ``config``: of transformers. ``attention``: learner.attention. ``longest``: tokens of a row, where that is known.

    Raises:
        ModelError: log-probs, and so gradients, would not be those of rows one at a time.
    """
    text = config.get_text_config()
    _check_rotary(text, longest)
    _check_softcap(text, packing, attention)
    _check_layers(text, packing)


def _check_rotary(config: Any, longest: int | None) -> None:
    """Angles that depend on the longest position in a batch give a row other numbers in every batch.

    Those of LongRoPE do once a row is longer than the original context; an engine goes by the longest that it may get.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, dict)}
    original = getattr(config, "original_max_position_embeddings", None) or parameters.get("original_max_position_embeddings")
    if "longrope" in kinds and original and longest is not None and longest <= original:
        kinds.remove("longrope")
    for kind in kinds & {"dynamic", "longrope"}:
        short = f" above {original} tokens (original_max_position_embeddings)" if kind == "longrope" and original else ""
        raise ModelError(f"model.path: rope_type={kind} depends on the longest row of a batch{short}, which is not supported")


def _check_softcap(config: Any, packing: Packing, attention: str) -> None:
    """Raise for ``sdpa`` and a cap of attention scores, which transformers ignores there; trees have attention of their own."""
    if getattr(config, "attn_logit_softcapping", None) and attention == "sdpa" and packing != "tree":
        raise ModelError("learner.attention=sdpa ignores this model's attn_logit_softcapping; set learner.attention=eager")


def _check_layers(config: Any, packing: Packing) -> None:
    """Raise for layers that short rows cannot prove (chunked attention, say)."""
    kinds = set(getattr(config, "layer_types", None) or ())
    for kind in sorted(kinds - LAYERS) if packing in REFUSALS else ():
        raise ModelError(f"{REFUSALS[packing]}: it has layers of type {kind}")
