"""The off-policy Clip-Higher objective and the sums that its metrics are made of. Pure torch.

Knows nothing of models, batches, ranks or DeepSpeed. The denominator is an argument: a token weighs the same in
whichever micro-batch or rank it lands, so the parts of a batch add up to the loss of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fr3e_async.config import LossConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossSums:
    """Sums over trainable tokens, each a float64 scalar without gradient. ``+`` joins parts of a batch."""

    tokens: Tensor
    loss: Tensor  # numerator of the loss, KL and entropy terms included
    clip_low: Tensor  # tokens whose gradient the lower bound stopped (A < 0)
    clip_high: Tensor  # tokens whose gradient the upper bound stopped (A > 0)
    dual_clip: Tensor  # tokens whose gradient dual clip stopped (A < 0)
    ratio: Tensor  # Σ π_θ / π_prox
    weight: Tensor  # Σ w, the importance weight as applied
    weight_squares: Tensor  # Σ w²
    capped: Tensor  # tokens whose raw importance weight was above the cap
    mismatch: Tensor  # Σ |log π_prox − log π_behaviour|, nats
    kl: Tensor  # Σ k3 estimate of KL(π_θ || π_prox), nats
    entropy: Tensor  # Σ H(π_θ), nats; 0 if entropies were not given
    ratio_max: Tensor  # the one field that is joined by max

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums.from_parts(self.additive() + other.additive(), torch.maximum(self.ratio_max, other.ratio_max))

    def additive(self) -> Tensor:
        """[12] every field but ``ratio_max``: what ranks reduce with SUM."""
        return torch.stack([getattr(self, field.name) for field in fields(self)[:-1]])

    @classmethod
    def from_parts(cls, additive: Tensor, ratio_max: Tensor) -> LossSums:
        """The inverse of ``additive``, after a reduction over ranks."""
        names = [field.name for field in fields(cls)[:-1]]
        return cls(**dict(zip(names, additive.unbind(), strict=True)), ratio_max=ratio_max)


def importance_weights(config: LossConfig, log_weights_T: Tensor) -> Tensor:
    """[T] w = exp(log π_prox − log π_behaviour), cut at the cap, zeroed above it, or 1. A constant of the update."""
    weights = log_weights_T.detach().exp()
    if config.importance == "truncate":
        return weights.clamp(max=config.importance_cap)
    if config.importance == "mask":
        return torch.where(weights <= config.importance_cap, weights, 0.0)
    return torch.ones_like(weights)


def policy_loss(
    config: LossConfig,
    *,
    logprobs_T: Tensor,
    prox_logprobs_T: Tensor,
    behaviour_logprobs_T: Tensor,
    advantages_T: Tensor,
    mask_T: Tensor,
    total_tokens: float,
    entropies_T: Tensor | None = None,
) -> tuple[Tensor, LossSums]:
    """Σ over masked tokens of −w · min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A), plus KL and entropy terms, / ``total_tokens``.

    ρ = exp(logprobs − prox_logprobs) carries the gradient. Under dual clip the surrogate of a negative advantage is at
    least c·A, which bounds the loss of a token that has become much likelier.

    Args:
        logprobs_T: [T] log π_θ of the sampled tokens, nats, at the sampling temperature.
        prox_logprobs_T: [T] the same under the policy at the start of the update. With ``prox: behaviour`` the caller
            passes the behaviour log-probs here, and every importance weight is 1.
        behaviour_logprobs_T: [T] the same as the sampler reported them.
        advantages_T: [T] A'.
        mask_T: [T] bool, trainable tokens. Whatever stands at the others has no effect.
        total_tokens: trainable tokens of the whole (global) minibatch, not of this part.
        entropies_T: [T] H(π_θ), nats. Required if ``entropy_coef`` is not 0, else only a metric.

    Returns:
        The scalar loss and the sums for metrics.

    Raises:
        ValueError: no tokens in total, or an entropy bonus without entropies.
    """
    if total_tokens <= 0:
        raise ValueError(f"policy loss over {total_tokens} tokens in total")
    if config.entropy_coef and entropies_T is None:
        raise ValueError(f"loss.entropy_coef is {config.entropy_coef} but no entropies were given")
    # Masked before exp: 0 · inf would be NaN, in the gradient too.
    log_ratio = torch.where(mask_T, logprobs_T - prox_logprobs_T.detach(), 0.0)
    log_weight = torch.where(mask_T, prox_logprobs_T.detach() - behaviour_logprobs_T, 0.0)
    advantages = torch.where(mask_T, advantages_T, 0.0)
    ratio = log_ratio.exp()
    weights = importance_weights(config, log_weight)

    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages)
    if config.dual_clip:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, config.dual_clip * advantages), surrogate)
    per_token = -weights * surrogate
    kl = torch.expm1(-log_ratio) + log_ratio
    if config.kl_coef:
        per_token = per_token + config.kl_coef * kl
    entropies = torch.zeros_like(log_ratio) if entropies_T is None else torch.where(mask_T, entropies_T, 0.0)
    if config.entropy_coef:
        per_token = per_token - config.entropy_coef * entropies
    loss_sum = torch.where(mask_T, per_token, 0.0).sum()

    def total(values: Tensor) -> Tensor:
        return torch.where(mask_T, values.detach(), 0).sum(dtype=torch.float64)

    with torch.no_grad():
        sums = LossSums(
            tokens=mask_T.sum(dtype=torch.float64),
            loss=loss_sum.detach().double(),
            clip_low=total((ratio < 1 - config.clip_low) & (advantages < 0)),
            clip_high=total((ratio > 1 + config.clip_high) & (advantages > 0)),
            dual_clip=total((ratio > config.dual_clip) & (advantages < 0) & (config.dual_clip > 0)),
            ratio=total(ratio),
            weight=total(weights),
            weight_squares=total(weights.square()),
            capped=total(log_weight.exp() > config.importance_cap),
            mismatch=total(log_weight.abs()),
            kl=total(kl),
            entropy=total(entropies),
            ratio_max=torch.where(mask_T, ratio, 0.0).max().double() if mask_T.numel() else torch.zeros((), dtype=torch.float64),
        )
    return loss_sum / total_tokens, sums
