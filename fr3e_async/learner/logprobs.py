"""Log-probs and entropies of sampled tokens out of the model's last hidden states, exact over the vocabulary.

Logits exist for a slice of the tokens at a time. Those of a whole batch are kept for the backward pass only while they fit
into a limit; otherwise the backward pass makes them again, slice by slice. Knows nothing of models.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fr3e_async.learner.spec import SLICE_ELEMENTS

LEAST_ROWS = 128  # of a slice, whatever the vocabulary: fewer would read the projection too often
MIB = 1 << 20
IMPOSSIBLE = -1e20  # nats, in place of the log-prob −inf: 0 · (−1e20) is 0, where 0 · (−inf) is NaN


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """``temperature`` of the sampler; ``kept_mib``: memory for logits between the forward and the backward pass.

    What the model does to the projection z before it calls it logits: f(z) = cap · tanh(scale · z / cap), or scale · z for cap 0.
    """

    temperature: float = 1.0
    kept_mib: float = 256.0
    scale: float = 1.0
    cap: float = 0.0


class _HeadLogprobs(torch.autograd.Function):
    """With x = f(z) / τ, p = softmax(x), H = −Σ p log p: ∂ log p_t/∂x = 1_t − p and ∂H/∂x = −p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: HeadOptions
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(hidden), dtype=_wide(hidden.dtype), device=hidden.device)
        entropies, normalisers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        size_mib = len(hidden) * len(weight) * hidden.element_size() / MIB
        kept: list[Tensor] | None = [] if options.kept_mib and size_mib <= options.kept_mib else None
        for span in _slices(len(hidden), weight):
            logits = linear(hidden[span], weight, bias)
            x = _scaled(logits, bias, logprobs.dtype, options)
            normalisers[span] = torch.logsumexp(x, dim=-1)
            logprobs[span] = x.gather(-1, targets[span, None]).squeeze(-1) - normalisers[span]
            p = torch.sub(x, normalisers[span, None]).exp_()
            entropies[span] = normalisers[span] - torch.linalg.vecdot(p, x)  # H = log Z − Σ p x
            if kept is not None:
                kept.append(logits)
        ctx.save_for_backward(hidden, weight, bias, targets, entropies, normalisers, *(kept or ()))
        ctx.options = options
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if grads == (None, None):
            return None, None, None, None, None
        hidden, weight, bias, targets, entropies, normalisers, *kept = ctx.saved_tensors
        wide = entropies.dtype
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Summed over slices in float32 or better: one product over all tokens would be rounded once only.
        of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros(bias.shape, dtype=wide, device=weight.device) if bias is not None else None
        for number, span in enumerate(_slices(len(hidden), weight)):
            logits = kept[number] if kept else linear(hidden[span], weight, bias)
            x = _scaled(logits, bias, wide, ctx.options)
            parts = [None if g is None else g[span, None] / ctx.options.temperature for g in grads]
            slope = _slope(x, targets[span], entropies[span], normalisers[span], *parts)
            _through_the_model(slope, x, ctx.options)
            narrow = slope.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(narrow, weight, out=of_hidden[span])
            if of_weight is not None:
                _add_product(of_weight, narrow.T, hidden[span])
            if of_bias is not None:
                of_bias += slope.sum(0)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if bias is None or of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
        )


def _slope(
    x: Tensor, targets: Tensor, entropies: Tensor, normalisers: Tensor, of_logprobs: Tensor | None, of_entropies: Tensor | None
) -> Tensor:
    """[n, V] the loss by f(z), from the loss by log-probs and by entropies, [n, 1] each and over the temperature."""
    log_p = x - normalisers[:, None]
    if of_entropies is None:
        assert of_logprobs is not None
        slope = log_p.exp_().mul_(-of_logprobs)
    else:
        towards = of_entropies * (log_p + entropies[:, None])
        slope = log_p.exp_().mul_(-(towards if of_logprobs is None else towards + of_logprobs))
    return slope if of_logprobs is None else slope.scatter_add_(-1, targets[:, None], of_logprobs)


def _through_the_model(slope: Tensor, x: Tensor, options: HeadOptions) -> None:
    """Make the loss by f(z) the loss by z, in place: f' = scale · (1 − (f / cap)²)."""
    if options.cap:
        slope.mul_(1 - (x * (options.temperature / options.cap)).square_())
    if options.scale != 1:
        slope.mul_(options.scale)


def model_logits(projected: Tensor, options: HeadOptions) -> Tensor:
    """f(z), elementwise; z itself where the model changes nothing."""
    scaled = projected if options.scale == 1 else projected * options.scale
    return scaled if not options.cap else options.cap * torch.tanh(scaled / options.cap)


def _scaled(logits: Tensor, bias: Tensor | None, dtype: torch.dtype, options: HeadOptions) -> Tensor:
    """[n, V] x; never the projection itself where it is changed. Only a bias can rule a token out, with −inf."""
    wide = model_logits(logits.to(dtype), options)
    scaled = wide if options.temperature == 1 else wide / options.temperature
    return scaled if bias is None else scaled.clamp(min=IMPOSSIBLE)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in one pass where the types allow it."""
    if total.dtype is right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _slices(rows: int, weight: Tensor) -> Iterator[slice]:
    step = max(LEAST_ROWS, SLICE_ELEMENTS.get(weight.device.type, SLICE_ELEMENTS["cuda"]) // len(weight))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def head_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, options: HeadOptions
) -> tuple[Tensor, Tensor]:
    """Of softmax(f(hidden · weightᵀ + bias) / temperature): the targets' log-probs and the entropies, both differentiable.

    Args:
        hidden: [N, h], any floating type.
        weight: [V, h]; ``bias``: [V] or None.
        targets: [N] int64.

    Returns:
        ([N], [N]) nats, float32 (float64 for float64 inputs).
    """
    if not torch.is_grad_enabled():  # there will be no backward pass to keep anything for
        options = replace(options, kept_mib=0)
    return _HeadLogprobs.apply(hidden, weight, bias, targets, options)
