"""Loss and gradients of a micro-batch, and the same by single rows: tiny models, samples that share prefixes, comparison.

The computation by rows shares no code with the layouts: one row at a time, eager attention, all logits, a plain gather.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fr3e_async.algorithm.losses import policy_loss
from fr3e_async.config import LossConfig
from fr3e_async.learner.layout import Inputs
from fr3e_async.learner.logprobs import HeadOptions
from fr3e_async.learner.packing import MicroBatch, Packing
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.learner.suitability import check_model
from fr3e_async.types import TrainSample

CPU = torch.device("cpu")
TEMPERATURE = 0.8
VOCABULARY = 24
PACKINGS: tuple[Packing, ...] = ("tree", "flat", "padded")
BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative
DEFAULT = LossConfig()
EVERYTHING = LossConfig(dual_clip=3.0, kl_coef=0.1, entropy_coef=0.1, importance="mask", importance_floor=0.2, sequence_mask=1.3)
NEAR = LossConfig(prox="behaviour", kl_coef=0.1)  # ratios away from 1: clipping at work

Row = tuple[tuple[int, ...], int]  # tokens and context length


# ---- models ----


def sizes(**more: Any) -> dict[str, Any]:
    small = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 256, "attention_dropout": 0.0,
    }  # fmt: skip
    return small | more


def gated_delta() -> dict[str, Any]:
    """A layer with a recurrent state, and one with attention."""
    return {
        "head_dim": 8, "num_experts": 0, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [0, 1],
    }  # fmt: skip


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", sizes()),
    "qwen2 tied": ("Qwen2Config", sizes(tie_word_embeddings=True, num_key_value_heads=2)),
    "qwen2 sliding": ("Qwen2Config", sizes(use_sliding_window=True, sliding_window=3, max_window_layers=1)),
    "qwen3": ("Qwen3Config", sizes(num_key_value_heads=1, head_dim=8)),
    "llama": ("LlamaConfig", sizes(num_key_value_heads=2, attention_bias=True)),
    "mistral": ("MistralConfig", sizes(sliding_window=None)),
    "mistral sliding": ("MistralConfig", sizes(sliding_window=3)),
    "granite": (
        "GraniteConfig",
        sizes(num_key_value_heads=2, attention_multiplier=0.9, logits_scaling=3.0),
    ),  # not the usual 1/√d
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gemma2": (
        "Gemma2Config",
        sizes(
            head_dim=8,
            num_key_value_heads=2,
            final_logit_softcapping=2.0,
            attn_logit_softcapping=1.5,
            sliding_window=3,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "stablelm": ("StableLmConfig", sizes()),
    "mamba": ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "qwen3 next": ("Qwen3NextConfig", sizes(**gated_delta())),
}
MODELS = ("qwen2", "qwen2 tied", "qwen3", "llama")


@cache
def plain_model(name: str, dtype: torch.dtype) -> nn.Module:
    """Weights wide enough that attention is far from uniform, so that a wrong mask or position shows."""
    import transformers

    kind, values = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model


def policy_of(plain: nn.Module, *, packing: Packing) -> PolicyModel:
    causal_lm = copy.deepcopy(plain)
    if getattr(causal_lm, "_supports_sdpa", False):
        causal_lm.set_attn_implementation("sdpa")
    policy = PolicyModel(causal_lm, options=HeadOptions(temperature=TEMPERATURE))
    check_model(policy, packing=packing)
    return policy


@cache
def policy_model(name: str, dtype: torch.dtype, packing: Packing) -> PolicyModel:
    return policy_of(plain_model(name, dtype), packing=packing)


class _Wide(TorchFunctionMode):
    """float32 becomes float64: the models round norms and attention weights to float32 whatever their own type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = [torch.float64 if arg is torch.float32 else arg for arg in args]
        return func(*wide, **{key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()})


def precision(dtype: torch.dtype) -> AbstractContextManager[object]:
    return _Wide() if dtype is torch.float64 else nullcontext()


# ---- both computations ----


@dataclass(frozen=True, slots=True)
class Outcome:
    loss: Tensor
    gradients: dict[str, Tensor]


def outcome(loss: Tensor, model: nn.Module) -> Outcome:
    named = dict(model.named_parameters())
    return Outcome(loss.detach(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))


def row_log_p(model: nn.Module, sample: TrainSample) -> tuple[Tensor, Tensor]:
    """[T, V] log-probs of all tokens at the trained slots, and [T] those of the tokens that stand there."""
    tokens = torch.from_numpy(sample.tokens.astype(np.int64))
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, sample.context_len - 1 : -1]
    log_p = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    return log_p, log_p.gather(-1, tokens[sample.context_len :, None])[:, 0]


def row_by_row(name: str, dtype: torch.dtype, samples: Sequence[TrainSample], config: LossConfig) -> Outcome:
    model = plain_model(name, dtype)
    total = sum(len(sample.versions) for sample in samples)
    losses = []
    with precision(dtype):
        for sample in samples:
            log_p, own = row_log_p(model, sample)
            behaviour = torch.from_numpy(sample.behaviour_logprobs)
            loss, _ = policy_loss(
                config,
                logprobs_T=own,
                prox_logprobs_T=behaviour if config.prox == "behaviour" else own.detach(),
                behaviour_logprobs_T=behaviour,
                advantages_T=torch.from_numpy(sample.advantages),
                mask_T=torch.ones(len(own), dtype=torch.bool),
                total_tokens=total,
                entropies_T=-(log_p.exp() * log_p).sum(-1),
            )
            losses.append(loss)
        return outcome(torch.stack(losses).sum(), model)


def batch_loss(policy: PolicyModel, batch: MicroBatch, config: LossConfig, *, total: int) -> Tensor:
    logprobs, entropies = policy(Inputs.of(batch, CPU))
    pick, behaviour = torch.from_numpy(batch.pick), torch.from_numpy(batch.behaviour_logprobs)
    own = logprobs[pick]
    return policy_loss(
        config,
        logprobs_T=own,
        prox_logprobs_T=behaviour if config.prox == "behaviour" else own.detach(),
        behaviour_logprobs_T=behaviour,
        advantages_T=torch.from_numpy(batch.advantages),
        mask_T=torch.from_numpy(batch.mask),
        total_tokens=total,
        entropies_T=entropies[pick],
        sequences_T=torch.from_numpy(batch.sequences),
    )[0]


def packed(policy: PolicyModel, batches: Sequence[MicroBatch], config: LossConfig) -> Outcome:
    total = sum(batch.trainable for batch in batches)
    with precision(policy.causal_lm.dtype):
        losses = [batch_loss(policy, batch, config, total=total) for batch in batches]
        return outcome(torch.stack(losses).sum(), policy.causal_lm)


def errors_of(found: Outcome, want: Outcome) -> dict[str, float]:
    """Of the loss and of each parameter's gradient, relative to its norm.

    A gradient that is 0 by cancellation (that of the keys where all values are equal, say) comes out as the rounding of its
    summands: some roundings of all gradients together are forgiven. So are those of a loss whose terms, near 1, cancel.
    """
    whole = torch.stack([gradient.norm() for gradient in want.gradients.values()]).norm()
    rounding = 32 * torch.finfo(whole.dtype).eps * whole
    errors = {"loss": float((found.loss - want.loss).abs() / want.loss.abs().clamp(min=0.5))}
    for name, gradient in want.gradients.items():
        difference = (found.gradients[name] - gradient).norm()
        errors[name] = 0.0 if difference <= rounding else float(difference / gradient.norm())
    return errors


def assert_equal(
    found: Outcome, want: Outcome, *, dtype: torch.dtype, exact: Callable[[], Outcome] | None = None
) -> None:  # fmt: skip
    """Within the bound; or, with ``exact`` (``want`` in float64), as near as single rows in float32 are to the exact numbers."""
    wrong = {name: error for name, error in errors_of(found, want).items() if not error <= BOUND[dtype]}
    if wrong and exact is not None:
        truth = exact()
        for name in set(wrong) - {"loss"}:
            own = (want.gradients[name] - truth.gradients[name]).norm()
            if (found.gradients[name] - truth.gradients[name]).norm() <= 4 * own:
                del wrong[name]
    assert not wrong, f"relative errors above {BOUND[dtype]}: {wrong}"


# ---- samples ----


@st.composite
def tree_rows(draw: st.DrawFn) -> list[Row]:
    """Prompts over few tokens, and rows that leave an earlier one anywhere: inside its context, its completion or its end."""
    token = st.integers(0, 3)
    rows: list[tuple[int, ...]] = draw(st.lists(st.lists(token, min_size=2, max_size=6).map(tuple), min_size=1, max_size=3))
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from(rows))
        row = parent[: draw(st.integers(0, len(parent)))] + draw(st.lists(token, max_size=6).map(tuple))
        rows.append(row if len(row) > 1 else parent)
    return [(row, draw(st.integers(1, len(row) - 1))) for row in rows]


def long_rows(count: int = 14) -> list[Row]:
    """A fixed tree of two prompts with deep and wide branching, whose runs are of many lengths."""
    rng = np.random.default_rng(1)
    rows: list[Row] = [((1, 2, 3) * 3, 4), ((1, 2, 4) * 2, 1), ((0,) * 40, 39)]
    while len(rows) < count:
        parent = rows[rng.integers(len(rows))][0]
        row = (*parent[: rng.integers(1, len(parent) + 1)], *rng.integers(0, VOCABULARY, rng.integers(1, 18)).tolist())
        rows.append((row, int(rng.integers(1, len(row)))))
    return rows


def make_samples(name: str, rows: Sequence[Row], *, seed: int) -> list[TrainSample]:
    """Samples of these rows; the behaviour is near the policy, else every importance weight would be cut."""
    rng = np.random.default_rng(seed)
    samples = []
    for tokens, context in rows:
        size = len(tokens) - context
        sample = TrainSample(
            tokens=np.asarray(tokens, dtype=np.int32), context_len=context, minibatch=0,
            behaviour_logprobs=np.zeros(size, dtype=np.float32), versions=np.zeros(size, dtype=np.int32),
            advantages=rng.normal(size=size).astype(np.float32),
        )  # fmt: skip
        with torch.no_grad():
            own = row_log_p(plain_model(name, torch.float64), sample)[1].numpy()
        samples.append(replace(sample, behaviour_logprobs=(own + rng.normal(0, 0.4, size)).astype(np.float32)))
    return samples
