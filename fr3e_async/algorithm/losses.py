"""The off-policy objectives (Clip-Higher, GSPO, CISPO), their means, and the sums that metrics are made of. Pure torch.

Knows nothing of models, batches, ranks or DeepSpeed. The denominators are arguments: a token weighs the same in
whichever micro-batch or rank it lands, so the parts of a batch add up to the loss of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fr3e_async.algorithm.batching import AGE_BUCKETS, age_bucket
from fr3e_async.config import LossConfig

# The rows of ``LossSums.by_age``: what is summed over trainable tokens. log-probs, KL and entropies are in nats.
SUMS = (
    "tokens",  # 1
    "loss",  # the token's summand of the loss (times N, for other means than that over tokens), KL and entropy terms included
    "clip_low",  # 1 if the lower bound stopped its gradient (A < 0); with cispo: cut its weight
    "clip_high",  # 1 if the upper bound stopped its gradient (A > 0); with cispo: cut its weight
    "dual_clip",  # 1 if dual clip stopped its gradient (A < 0)
    "ratio",  # π_θ / π_prox
    "weight",  # w, the importance weight as applied
    "weight_squares",  # w²
    "capped",  # 1 if π_prox / π_behaviour lies above the cap or below the floor
    "sequence_masked",  # 1 in completions that the sequence mask left out
    "mismatch",  # |log π_prox − log π_behaviour|
    "mismatch_signed",  # log π_prox − log π_behaviour
    "behaviour_kl",  # k3 estimate of KL(π_behaviour || π_prox)
    "kl",  # k3 estimate of KL(π_θ || π_prox)
    "reference_kl",  # k3 estimate of KL(π_θ || π_ref); 0 without a reference
    "entropy",  # H(π_θ); 0 if entropies were not given
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossSums:
    """Sums over trainable tokens, kept apart by the age of the token (``batching.AGE_BUCKETS``). ``+`` joins parts of a batch.

    Example: ``sums.mean("clip_low")`` is the clipped share of all tokens, and ``sums.bucket(4).mean("clip_low")`` that of the
    tokens in ``AGE_BUCKETS[4]``.
    """

    by_age: Tensor  # [SUMS, BUCKETS] float64 without gradient
    ratio_max: Tensor  # [BUCKETS] float64, largest π_θ / π_prox; 0 without tokens. Joined by max, all else by addition

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(by_age=self.by_age + other.by_age, ratio_max=torch.maximum(self.ratio_max, other.ratio_max))

    def total(self, name: str) -> float:
        """The sum ``name`` (of ``SUMS``) over all ages."""
        return float(self.by_age[SUMS.index(name)].sum())

    def mean(self, name: str) -> float:
        """``total`` over the number of tokens, of which there must be some."""
        return self.total(name) / self.total("tokens")

    @property
    def largest_ratio(self) -> float:
        """Largest π_θ / π_prox of any token."""
        return float(self.ratio_max.max())

    def bucket(self, index: int) -> LossSums:
        """The sums of the tokens in ``AGE_BUCKETS[index]`` alone."""
        return LossSums(by_age=self.by_age[:, index, None], ratio_max=self.ratio_max[index, None])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """Columns of one part, each [T] and 0 where the mask is False: junk there must not meet exp, for 0 · inf is NaN."""

    mask: Tensor  # bool
    sequences: Tensor  # int64 in [0, T): the completion of each token
    logprobs: Tensor  # log π_θ, nats; with a gradient
    log_ratio: Tensor  # log π_θ − log π_prox, nats; with a gradient
    log_weight: Tensor  # log π_prox − log π_behaviour, nats
    log_reference: Tensor  # log π_ref − log π_θ, nats; with a gradient. 0 without a reference
    advantages: Tensor
    entropies: Tensor  # nats; with a gradient
    imitation: Tensor | None  # weight of −log π_θ

    def completion_sums(self, values: Tensor) -> Tensor:
        """[T] float64 without gradient: at each token the sum of [T] ``values`` over its completion."""
        # As many slots as tokens: their true number would have to be fetched from the device.
        empty = torch.zeros(len(self.mask), dtype=torch.float64, device=self.mask.device)
        return empty.index_add(0, self.sequences, values.detach().double())[self.sequences]

    def lengths(self) -> Tensor:
        """[T] float64: at each token the number of trainable tokens of its completion, at least 1."""
        return self.completion_sums(self.mask).clamp(min=1)


def policy_loss(
    config: LossConfig,
    *,
    logprobs_T: Tensor,
    prox_logprobs_T: Tensor,
    behaviour_logprobs_T: Tensor,
    advantages_T: Tensor,
    mask_T: Tensor,
    total_tokens: float,
    total_completions: float = 0.0,
    entropies_T: Tensor | None = None,
    ages_T: Tensor | None = None,
    sequences_T: Tensor | None = None,
    reference_logprobs_T: Tensor | None = None,
    imitation_T: Tensor | None = None,
) -> tuple[Tensor, LossSums]:
    """Compute this part's share of a minibatch's loss: Σ over its masked tokens of c · (−w · g + KL, entropy and imitation terms).

    g is the objective (``surrogate``), w the importance weight (``importance_weights``, ``kept_completions``), c the weight of a token in
    the mean that ``loss.mean`` names (``mean_weights``). docs/learner.md has all formulas and a worked example.

    Args:
        logprobs_T: [T] float log π_θ of the sampled tokens, nats, at the sampling temperature.
        prox_logprobs_T: [T] float, the same under the policy at the start of the update, or with ``prox: behaviour`` as sampled.
        behaviour_logprobs_T: [T] float, the same as the sampler reported them.
        advantages_T: [T] float, A'.
        mask_T: [T] bool, trainable tokens. Whatever number stands at the others has no effect.
        total_tokens: trainable tokens of the whole (global) minibatch, not of this part.
        total_completions: completions of the whole minibatch; needed for ``loss.mean`` other than ``token``.
        entropies_T: [T] float H(π_θ), nats. Required if ``entropy_coef`` is not 0, else only a metric.
        ages_T: [T] integers ≥ 0, see ``batching.age_bucket``: they sort the sums and never change the loss. None: all 0.
        sequences_T: [T] integers in [0, T), the completion of each token. No completion spans two parts. None: all of one.
        reference_logprobs_T: [T] float, log π_ref of the sampled tokens. Required if ``reference_coef`` is not 0.
        imitation_T: [T] float, the weight of −log π_θ that is added to each token's loss. None: all 0.

    Returns the scalar loss and the sums for metrics.

    Raises:
        ValueError: no tokens or completions in total, an entropy bonus without entropies, or a reference's KL without log-probs.
    """
    if total_tokens <= 0 or (config.mean != "token" and total_completions <= 0):
        raise ValueError(f"policy loss over {total_tokens} tokens and {total_completions} completions in total")
    for name, column in (("entropy_coef", entropies_T), ("reference_coef", reference_logprobs_T)):
        if getattr(config, name) and column is None:
            raise ValueError(f"loss.{name} is {getattr(config, name)}, but what it is a weight of was not given")
    prox_T = prox_logprobs_T.detach()
    tokens = _Tokens(
        mask=mask_T,
        sequences=torch.zeros_like(mask_T, dtype=torch.int64) if sequences_T is None else sequences_T,
        logprobs=torch.where(mask_T, logprobs_T, 0.0),
        log_ratio=torch.where(mask_T, logprobs_T - prox_T, 0.0),
        log_weight=torch.where(mask_T, prox_T - behaviour_logprobs_T.detach(), 0.0),
        log_reference=_kept(mask_T, reference_logprobs_T, like=logprobs_T, less=logprobs_T),
        advantages=torch.where(mask_T, advantages_T, 0.0),
        entropies=_kept(mask_T, entropies_T, like=logprobs_T),
        imitation=imitation_T,
    )
    tokens = replace(tokens, advantages=tokens.advantages - reference_costs(config, tokens))
    losses_T, columns = _losses(config, tokens, completion_tokens=total_tokens / total_completions if total_completions else 0.0)
    return losses_T.sum() / total_tokens, _sum_by_age(columns, mask_T=mask_T, ages_T=ages_T)


def _losses(config: LossConfig, tokens: _Tokens, *, completion_tokens: float) -> tuple[Tensor, dict[str, Tensor]]:
    """[T] c · N times the summands of the loss, and what is summed for metrics. ``completion_tokens``: N / S."""
    kept_T, ratio_T = kept_completions(config, tokens), clipped_ratio(config, tokens)
    weights_T = importance_weights(config, tokens.log_weight) * kept_T
    losses_T = _token_losses(config, tokens, ratio_T=ratio_T, weights_T=weights_T)
    if config.mean != "token":
        losses_T = losses_T * mean_weights(config, tokens, completion_tokens=completion_tokens)
    return losses_T, _columns(config, tokens, ratio_T=ratio_T, weights_T=weights_T, kept_T=kept_T, losses_T=losses_T)


def importance_weights(config: LossConfig, log_weights_T: Tensor) -> Tensor:
    """[T] w of each token from log π_prox − log π_behaviour: cut at the cap, zeroed outside of [floor, cap], or 1.

    ``truncate`` is the clipped weight of IMPALA (arXiv 1802.01561) at each token. ``mask`` is masked importance sampling, and
    with a floor the double-sided M(k) = k · 1[α ≤ k ≤ β] of IcePop (Ring-1T, arXiv 2510.18855), α the floor and β the cap.
    """
    weights = log_weights_T.detach().exp()
    if config.importance == "truncate":
        return weights.clamp(max=config.importance_cap)
    if config.importance == "mask":
        return torch.where(_capped(config, weights), 0.0, weights)
    return torch.ones_like(weights)


def kept_completions(config: LossConfig, tokens: _Tokens) -> Tensor:
    """[T] bool: False at the tokens of completions whose geometric mean weight is outside of [1/x, x], x = ``sequence_mask``.

    The geometric mean of π_prox/π_behaviour over a completion's tokens does not depend on its length, as their product
    would. It is the filter of Liu, Li et al., "When Speed Kills Stability" (2025); DeepSeek-V3.2 (arXiv 2512.02556) uses one
    side of it, for negative advantages only. It judges raw weights, so it works with every ``importance``.

    Those left out still count in the loss's denominator, which is known before any forward pass, the same for every rank and
    part; and a batch of which half is left out has half the gradient.
    """
    if not config.sequence_mask:
        return torch.ones_like(tokens.mask)
    means = tokens.completion_sums(tokens.log_weight) / tokens.lengths()
    return means.abs() <= math.log(config.sequence_mask)


def mean_weights(config: LossConfig, tokens: _Tokens, *, completion_tokens: float) -> Tensor:
    """[T] c · N of each token, for the means over S completions of |o_i| tokens, N in all, that are none over tokens.

    ``sequence``: c = 1 / (S · |o_i|), each completion weighs the same (GRPO, arXiv 2402.03300, equation 3; GSPO). ``constant``:
    c = 1 / (S · L), L = ``mean_length``: neither long nor short ones are favoured (Dr.GRPO, arXiv 2503.20783, section 3.2).
    ``completion_tokens``: N / S. Example: completions of 1 and 3 tokens have c · N of 2, 2/3, 2/3, 2/3 by ``sequence``.
    """
    lengths = tokens.lengths() if config.mean == "sequence" else torch.full_like(tokens.advantages, config.mean_length)
    return (completion_tokens / lengths).to(tokens.advantages.dtype)


def clipped_ratio(config: LossConfig, tokens: _Tokens) -> Tensor:
    """[T] the ratio that the objective clips: ρ_t = π_θ / π_prox of the token, or with ``gspo`` that of its completion.

    GSPO (arXiv 2507.18071, equation 7): s_i = (Π_t ρ_t)^(1/|o_i|). It stands at every token as s_i · π_θ / sg(π_θ), which is
    s_i with the gradient of the token's own log-prob (GSPO-token, equation 14): the same update where a completion has one
    advantage, and defined where it has several (``vineppo``).
    """
    if config.objective != "gspo":
        return tokens.log_ratio.exp()
    means = (tokens.completion_sums(tokens.log_ratio) / tokens.lengths()).to(tokens.log_ratio.dtype)
    return (means + tokens.log_ratio - tokens.log_ratio.detach()).exp()


def surrogate(config: LossConfig, tokens: _Tokens, ratio_T: Tensor) -> Tensor:
    """[T] g, what the update raises. ``clip`` and ``gspo``: ``clipped_surrogate`` of their ratio.

    ``cispo`` (MiniMax-M1, arXiv 2506.13585, equations 4 and 5): sg(clip(ρ, 1−ε_low, 1+ε_high)) · A · log π_θ. The bounds cut
    the weight of a token, and no token loses its gradient. Example: ρ = 2, A = 1 and ε_high = 0.28 give 1.28 · log π_θ.
    """
    if config.objective == "cispo":
        return ratio_T.detach().clamp(1 - config.clip_low, 1 + config.clip_high) * tokens.advantages * tokens.logprobs
    return clipped_surrogate(config, ratio_T, tokens.advantages)


def clipped_surrogate(config: LossConfig, ratio_T: Tensor, advantages_T: Tensor) -> Tensor:
    """[T] min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A); with dual clip at least c·A where A < 0.

    Dual clip (arXiv 1912.09729) bounds the loss of a bad token that has become much likelier.
    """
    clipped = ratio_T.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate = torch.minimum(ratio_T * advantages_T, clipped * advantages_T)
    if not config.dual_clip:
        return surrogate
    return torch.where(advantages_T < 0, torch.maximum(surrogate, config.dual_clip * advantages_T), surrogate)


def k3(log_ratio_T: Tensor) -> Tensor:
    """[T] e^x − 1 − x ≥ 0: with x = log q − log p of tokens drawn from p, its mean estimates KL(p || q), nats, without bias."""
    return torch.expm1(log_ratio_T) - log_ratio_T


def kl_estimate(kind: str, log_ratio_T: Tensor) -> Tensor:
    """[T] KL(p || q), nats, from x = log q − log p of tokens drawn from p: k1 = −x, k2 = x²/2 or k3 = e^x − 1 − x.

    Schulman, "Approximating KL Divergence" (2020). Example: x = ln 2 gives −0.693, 0.240 and 0.307.
    """
    return {"k1": torch.neg, "k2": lambda x: x.square() / 2, "k3": k3}[kind](log_ratio_T)


def reference_costs(config: LossConfig, tokens: _Tokens) -> Tensor:
    """[T] what ``loss.reference_in`` takes from the advantages: 0 for ``loss``, else β · Σ k over tokens of the completion.

    k is of the proximal policy, without gradient. ``sequence_reward``: of all (RLOO, arXiv 2402.14740). ``token_reward``: of this token
    and those after it (REINFORCE++, arXiv 2501.03262). Example: k of 1, 2 and 3 with β = 1 cost 6, 6, 6 and 6, 5, 3.
    """
    if not config.reference_coef or config.reference_in == "loss":
        return torch.zeros_like(tokens.advantages)
    costs = kl_estimate(config.reference_kl, (tokens.log_reference + tokens.log_ratio).detach()).double()
    left = tokens.completion_sums(costs)
    if config.reference_in == "token_reward":
        order = torch.argsort(tokens.sequences, stable=True)  # tokens of a completion stand by position
        before = torch.empty_like(costs).index_copy(0, order, costs[order].cumsum(0)) - costs
        per_completion = torch.zeros_like(costs).index_add(0, tokens.sequences, costs)
        left = left - (before - (per_completion.cumsum(0) - per_completion)[tokens.sequences])
    return torch.where(tokens.mask, config.reference_coef * left, 0.0).to(tokens.advantages.dtype)


def _kept(mask_T: Tensor, values_T: Tensor | None, *, like: Tensor, less: Tensor | float = 0.0) -> Tensor:
    """Return [T] ``values_T`` − ``less`` where the mask is True, else 0; 0 everywhere if there are no values."""
    return torch.zeros_like(like) if values_T is None else torch.where(mask_T, values_T - less, 0.0)


def value_loss(
    values_T: Tensor, *, former_T: Tensor, returns_T: Tensor, mask_T: Tensor, clip: float, total_tokens: float
) -> tuple[Tensor, Tensor]:
    """Compute this part's share of a minibatch's value loss, ½ Σ max((V − R)², (V' − R)²) / N, and [T] bool: where clipping stopped V.

    V' is V held within ``clip`` of ``former_T``, the values at the start of the update (PPO's value clipping); 0: no clipping.
    ``returns_T``: R, what V is to predict. Example: V = 0.9, 0.5 before, R = 1, clip 0.2: ½ · 0.3², and V has no gradient.
    """
    errors = (torch.where(mask_T, values_T - returns_T, 0.0)).square()
    moved = torch.where(mask_T, values_T - former_T, 0.0)
    if not clip:
        return errors.sum() / (2 * total_tokens), torch.zeros_like(mask_T)
    held = torch.where(mask_T, former_T + moved.clamp(-clip, clip) - returns_T, 0.0).square()
    stopped = (moved.abs() > clip) & (held > errors)
    return torch.where(stopped, held, errors).sum() / (2 * total_tokens), stopped


def _capped(config: LossConfig, weights_T: Tensor) -> Tensor:
    return (weights_T > config.importance_cap) | (weights_T < config.importance_floor)


def _token_losses(config: LossConfig, tokens: _Tokens, *, ratio_T: Tensor, weights_T: Tensor) -> Tensor:
    """[T] the summands of the loss, 0 where the mask is False. The weight is of the surrogate alone."""
    losses = -weights_T * surrogate(config, tokens, ratio_T)
    if config.kl_coef:
        losses = losses + config.kl_coef * k3(-tokens.log_ratio)
    if config.reference_coef and config.reference_in == "loss":
        losses = losses + config.reference_coef * kl_estimate(config.reference_kl, tokens.log_reference)
    if config.entropy_coef:
        losses = losses - config.entropy_coef * tokens.entropies
    if tokens.imitation is not None:
        losses = losses - tokens.imitation * tokens.logprobs
    return losses


@torch.no_grad()
def _columns(
    config: LossConfig, tokens: _Tokens, *, ratio_T: Tensor, weights_T: Tensor, kept_T: Tensor, losses_T: Tensor
) -> dict[str, Tensor]:
    """Return the per-token terms that ``LossSums`` sums: [T] by name."""
    a, cispo = tokens.advantages, config.objective == "cispo"  # which cuts weights whatever the sign of A
    return {
        "tokens": tokens.mask,
        "loss": losses_T,
        "clip_low": (ratio_T < 1 - config.clip_low) & ((a < 0) | cispo),
        "clip_high": (ratio_T > 1 + config.clip_high) & ((a > 0) | cispo),
        "dual_clip": (ratio_T > config.dual_clip) & (a < 0) & (config.dual_clip > 0 and not cispo),
        "ratio": tokens.log_ratio.exp(),
        "weight": weights_T,
        "weight_squares": weights_T.square(),
        "capped": _capped(config, tokens.log_weight.exp()),
        "sequence_masked": ~kept_T,
        "mismatch": tokens.log_weight.abs(),
        "mismatch_signed": tokens.log_weight,
        # One token that a truncated weight makes harmless must not turn this mean into infinity, as it would in float32.
        "behaviour_kl": k3(tokens.log_weight.double()),
        "kl": k3(-tokens.log_ratio),
        "reference_kl": k3(tokens.log_reference),
        "entropy": tokens.entropies,
    }


@torch.no_grad()
def _sum_by_age(columns: dict[str, Tensor], *, mask_T: Tensor, ages_T: Tensor | None) -> LossSums:
    """The columns, where the mask is True, summed over the tokens of each age bucket."""
    rows = torch.stack([torch.where(mask_T, columns[name], 0).double() for name in SUMS])
    buckets = torch.zeros_like(mask_T, dtype=torch.int64) if ages_T is None else age_bucket(ages_T.long())
    by_age = rows.new_zeros(len(SUMS), len(AGE_BUCKETS)).index_add_(1, buckets, rows)
    largest = rows.new_zeros(len(AGE_BUCKETS)).scatter_reduce_(0, buckets, rows[SUMS.index("ratio")], reduce="amax")
    return LossSums(by_age=by_age, ratio_max=largest)
