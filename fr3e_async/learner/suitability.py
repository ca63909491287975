"""Can this model be trained in this layout? Asked of its config, and of its numbers on a few short rows.

A model that mixes tokens in a way that the layout does not respect would learn from wrong gradients without a word.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fr3e_async.errors import ModelError
from fr3e_async.learner.attention import NAME
from fr3e_async.learner.config_check import REFUSALS, check_config
from fr3e_async.learner.inputs import Inputs
from fr3e_async.learner.layout import Kernel
from fr3e_async.learner.packing import Packing, collate, unscored
from fr3e_async.learner.policy import PolicyModel

# Rows that share prefixes: what the layouts must not be able to change.
_PROBE = ([1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 7, 8, 3], [2, 1, 4])
# Largest error of a log-prob, in standard deviations of the logits: a wrong mask is off by about one.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-7}
_COARSE = 0.2  # bfloat16


def set_attention(model: PolicyModel, packing: Packing) -> None:
    """Trees have attention of their own; the other layouts go with what the model was loaded with."""
    if packing == "tree":
        model.causal_lm.set_attn_implementation(NAME)


def check_model(model: PolicyModel, *, packing: Packing, kernel: Kernel = "auto", context: int = 0) -> None:
    """Leaves the layout's attention in place. ``context``: longest row that will be trained, tokens; 0: not known.

    Raises:
        ModelError: log-probs, and so gradients, would not be those of rows one at a time.
    """
    config = model.causal_lm.config
    check_config(config, packing=packing, attention=config.get_text_config()._attn_implementation, context=context)
    model.context = context
    plain, spread = _plain_logprobs(model)
    _compare(
        _logprobs(model, "padded", kernel), plain, spread, model=model,
        reason="model.path: this model changes its logits after the vocabulary projection, or rows see each other",
    )  # fmt: skip
    if packing != "padded":
        set_attention(model, packing)
        _compare(_logprobs(model, packing, kernel), plain, spread, model=model, reason=REFUSALS[packing])


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
