"""Can this model be trained in this layout? Asked of its config, and of its numbers on a few short rows.

A model that mixes tokens in a way that the layout does not respect would learn from wrong gradients without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fr3e_async.errors import ModelError
from fr3e_async.learner.attention import NAME
from fr3e_async.learner.layout import Inputs, Kernel
from fr3e_async.learner.logprobs import model_logits
from fr3e_async.learner.packing import REFUSALS, Packing, check_config, collate, unscored
from fr3e_async.learner.policy import PolicyModel

# Rows that share prefixes: what the layouts must not be able to change.
_PROBE = ([1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7, 8, 3], [2, 1, 4])
# Largest error of a log-prob, in standard deviations of the logits: a wrong mask is off by about one.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-7}
_COARSE = 0.2  # bfloat16

_RUNGS = {torch.float32: 1e-4, torch.float64: 1e-9}  # largest relative error of what a model makes of its projection
_COARSE_RUNGS = 0.04  # bfloat16: a quotient, a function and a product, each rounded
_SHORT_WINDOW = 2  # tokens: one that shows in rows of 3


def set_attention(model: PolicyModel, packing: Packing) -> None:
    """Trees have attention of their own; the other layouts go with what the model was loaded with."""
    if packing == "tree":
        model.causal_lm.set_attn_implementation(NAME)


def check_model(model: PolicyModel, *, packing: Packing, kernel: Kernel = "auto", longest: int | None = None) -> None:
    """Prove that a model's log-probs in a layout are those of single rows; leaves the layout's attention in place.

    ``longest``: tokens of a row, where that is known.

    Raises:
        ModelError: log-probs, and so gradients, would not be those of rows one at a time.
    """
    config = model.causal_lm.config
    attention = config.get_text_config()._attn_implementation
    check_config(config, packing=packing, attention=attention, longest=longest)
    if packing == "tree" and attention == "sdpa" and getattr(config.get_text_config(), "attn_logit_softcapping", None):
        model.causal_lm.set_attn_implementation("eager")  # what trees, whose own attention knows caps, are compared with
    _check_projection(model)
    plain, spread = _plain_logprobs(model)
    with _short_windows(model):
        near, near_spread = _plain_logprobs(model)
    _check_windows(model, plain, near)
    reason = "model.path: this model's log-probs are not those of its vocabulary projection, or rows see each other"
    _compare(_logprobs(model, "padded", kernel), plain, spread, model=model, reason=reason)
    if packing != "padded":
        set_attention(model, packing)
        _compare(_logprobs(model, packing, kernel), plain, spread, model=model, reason=REFUSALS[packing])
        with _short_windows(model):
            _compare(_logprobs(model, packing, kernel), near, near_spread, model=model, reason=REFUSALS[packing])


@torch.no_grad()
def _check_projection(model: PolicyModel) -> None:
    """What the model makes of a projection from small to large numbers, held against what the loss takes it to make."""
    head = model.causal_lm.get_output_embeddings()
    steps = torch.linspace(-60, 60, head.out_features).to(model.causal_lm.device, model.causal_lm.dtype)
    hook = head.register_forward_hook(lambda _module, _inputs, out: steps.expand(out.shape))
    try:
        tokens = torch.from_numpy(_rows(model)[0].astype(np.int64))[None].to(model.causal_lm.device)
        found = model.causal_lm(input_ids=tokens, use_cache=False).logits[0, -1].double()
    finally:
        hook.remove()
    want = model_logits(steps.double(), model.options)
    if found.shape != want.shape or not bool(((found - want).abs() <= _RUNGS.get(steps.dtype, _COARSE_RUNGS) * want.abs()).all()):
        raise ModelError(
            "model.path: this model changes its logits after the vocabulary projection in a way that the loss does not know "
            "(it knows logits_scaling, logit_scale and final_logit_softcapping)"
        )


@contextmanager
def _short_windows(model: PolicyModel) -> Iterator[None]:
    """For the block, give the model sliding windows of ``_SHORT_WINDOW`` tokens, which the short rows reach over."""
    holders = [model.causal_lm.config.get_text_config(), *model.causal_lm.modules()]
    kept = [(holder, window) for holder in holders if isinstance(window := getattr(holder, "sliding_window", None), int)]
    for holder, _ in kept:
        holder.sliding_window = _SHORT_WINDOW
    try:
        yield
    finally:
        for holder, window in kept:
            holder.sliding_window = window


def _check_windows(model: PolicyModel, plain: Tensor, near: Tensor) -> None:
    """Raise ``ModelError`` if shorter windows change nothing: then the layout's windows cannot be proven either."""
    kinds = getattr(model.causal_lm.config.get_text_config(), "layer_types", None) or ()
    if "sliding_attention" in kinds and torch.equal(plain, near):
        raise ModelError("model.path: this model keeps the size of its sliding windows where it cannot be checked")


def _rows(model: PolicyModel) -> list[np.ndarray]:
    vocabulary = model.causal_lm.config.get_text_config().vocab_size
    return [np.asarray(row, dtype=np.int32) % vocabulary for row in _PROBE]


@torch.no_grad()
def _plain_logprobs(model: PolicyModel) -> tuple[Tensor, float]:
    """[N] float64 of the model's own forward pass, one row at a time; and the mean standard deviation of its logits."""
    found, spreads = [], []
    for row in _rows(model):
        tokens = torch.from_numpy(row.astype(np.int64))[None].to(model.causal_lm.device)
        logits = model.causal_lm(input_ids=tokens, use_cache=False).logits[0, :-1].double() / model.options.temperature
        found.append(torch.log_softmax(logits, dim=-1).gather(-1, tokens[0, 1:, None]).squeeze(-1))
        spreads.append(float(logits.std(-1).mean()))
    return torch.cat(found), sum(spreads) / len(spreads)


@torch.no_grad()
def _logprobs(model: PolicyModel, packing: Packing, kernel: Kernel) -> Tensor:
    """[N] float64 of the same tokens in a layout."""
    device = model.causal_lm.device
    batch = collate([unscored(row[:1], row[1:]) for row in _rows(model)], packing=packing)
    return model(Inputs.of(batch, device, kernel=kernel))[0][torch.from_numpy(batch.pick).to(device)].double()


def _compare(found: Tensor, plain: Tensor, spread: float, *, model: PolicyModel, reason: str) -> None:
    error = float((found - plain).abs().max())
    if not error <= _TOLERANCE.get(model.causal_lm.dtype, _COARSE) * spread:
        raise ModelError(f"{reason}: log-probs differ by {error:.2g} nats from those of single rows")
