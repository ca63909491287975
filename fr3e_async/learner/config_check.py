"""What a model's config alone tells of whether it can be trained: asked before anything is started. Loads no weights."""

from __future__ import annotations

from typing import Any

from fr3e_async.errors import ModelError
from fr3e_async.learner.packing import Packing

LAYERS = {"tree": {"full_attention"}, "flat": {"full_attention", "sliding_attention"}}  # by packing: what may be in a model
REFUSALS = {
    "tree": "learner.packing=tree does not work with this model (set flat or padded)",
    "flat": "learner.packing=flat does not work with this model (set padded)",
}


def check_config(config: Any, *, packing: Packing, attention: str, context: int) -> None:
    """``config``: transformers' of a model. ``attention``: learner.attention. ``context``: longest row in tokens; 0: not known.

    Raises:
        ModelError: log-probs, and so gradients, would not be those of rows one at a time.
    """
    text = config.get_text_config()
    _check_rotary(text)
    _check_softcap(text, attention)
    _check_layers(text, packing, context)


def wide(window: Any, context: int) -> bool:
    """A sliding window that no row is longer than hides nothing."""
    return isinstance(window, int) and 0 < context <= window


def _check_rotary(config: Any) -> None:
    """Angles that depend on the longest position in a batch give a row other numbers in every batch."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, dict)}
    for kind in kinds & {"dynamic", "longrope"}:
        raise ModelError(f"model.path: rope_type={kind} depends on the longest row of a batch, which is not supported")


def _check_softcap(config: Any, attention: str) -> None:
    """transformers' function for plain scaled dot-product attention passes over a cap of the scores without a word."""
    if getattr(config, "attn_logit_softcapping", None) and attention == "sdpa":
        raise ModelError("learner.attention=sdpa ignores this model's attn_logit_softcapping; set learner.attention=eager")


def _check_layers(config: Any, packing: Packing, context: int) -> None:
    """Short rows cannot show a window or a chunk."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if wide(getattr(config, "sliding_window", None), context):
        kinds.discard("sliding_attention")
    for kind in sorted(kinds - LAYERS[packing]) if packing in LAYERS else ():
        raise ModelError(f"{REFUSALS[packing]}: it has layers of type {kind}")
