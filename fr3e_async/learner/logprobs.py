"""Log-probs and entropies of sampled tokens out of logits, exact over the vocabulary, a slice at a time.

Knows nothing of models. Only the logits themselves, in the model's own precision, stay alive for the backward pass:
float32 copies of [tokens, vocabulary] would be the largest tensors of the whole update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLICE_ELEMENTS = 1 << 24  # numbers of a float32 slice: 64 MiB


class _TokenLogprobs(torch.autograd.Function):
    """With x = logits / τ, p = softmax(x), H = −Σ p log p: ∂ log p_t/∂x = 1_t − p and ∂H/∂x = −p (log p + H)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        entropies = torch.empty_like(logprobs)
        for span in _slices(logits):
            log_p = torch.log_softmax(logits[span].float() / temperature, dim=-1)
            logprobs[span] = log_p.gather(-1, targets[span, None]).squeeze(-1)
            entropies[span] = torch.special.entr(log_p.exp()).sum(-1)  # entr(0) is 0, where p · log p would be NaN
        ctx.save_for_backward(logits, targets, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None]:
        logits, targets, entropies = ctx.saved_tensors
        of_logprobs, of_entropies = grads
        out = torch.zeros_like(logits)
        for span in _slices(logits):
            p = torch.softmax(logits[span].float() / ctx.temperature, dim=-1)
            grad = torch.zeros_like(p)
            if of_entropies is not None:
                grad += of_entropies[span, None] * (torch.special.entr(p) - p * entropies[span, None])
            if of_logprobs is not None:
                grad -= of_logprobs[span, None] * p
                grad.scatter_add_(-1, targets[span, None], of_logprobs[span, None])
            out[span] = (grad / ctx.temperature).to(out.dtype)
        return out, None, None


def _slices(logits: Tensor) -> list[slice]:
    rows = max(1, SLICE_ELEMENTS // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def token_logprobs(logits: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Of softmax(logits / temperature): the targets' log-probs and the entropies, both differentiable.

    Args:
        logits: [N, V], any floating type.
        targets: [N] int64.

    Returns:
        ([N] float32 nats, [N] float32 nats).
    """
    return _TokenLogprobs.apply(logits, targets, temperature)
