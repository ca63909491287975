"""Models that a layout does not fit are refused; what is accepted gives the numbers of single rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
import tree_support
from test_learner_packing import peak_mib, run_head
from tree_support import (
    CONFIGS,
    DEFAULT,
    assert_equal,
    long_rows,
    make_samples,
    packed,
    plain_model,
    policy_of,
    row_by_row,
    sizes,
)

from fr3e_async.errors import ModelError
from fr3e_async.learner import layout, logprobs
from fr3e_async.learner.logprobs import HeadOptions
from fr3e_async.learner.packing import Packing, collate
from fr3e_async.learner.policy import PolicyModel
from fr3e_async.learner.suitability import check_model

LLAMA4: dict[str, Any] = {
    "head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 2, "moe_layers": [], "attn_temperature_tuning": False,
    "pad_token_id": 0, "num_key_value_heads": 2,
}  # fmt: skip
GEMMA: dict[str, Any] = {"head_dim": 8, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 2}
ODD = {
    "llama4, chunks": ("Llama4TextConfig", sizes(attention_chunk_size=8, **LLAMA4)),
    "gemma2, capped scores": ("Gemma2Config", sizes(attn_logit_softcapping=2.0, **GEMMA)),
    "diffllama": ("DiffLlamaConfig", sizes()),
    "lfm2": ("Lfm2Config", sizes(layer_types=["conv", "full_attention"])),
    "dynamic rope": (
        "LlamaConfig",
        sizes(max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
    ),
}


@pytest.mark.parametrize("packing", ["tree", "flat", "padded"])
@pytest.mark.parametrize("name", list(ODD))
def test_refused_or_right(name: str, packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_support, "CONFIGS", CONFIGS | ODD)
    samples = make_samples(name, long_rows(), seed=5)
    want = row_by_row(name, torch.float32, samples, DEFAULT)
    try:
        policy = policy_of(plain_model(name, torch.float32), packing=packing)
    except ModelError:
        return
    assert_equal(packed(policy, [collate(samples, packing=packing)], DEFAULT), want, dtype=torch.float32)


def _small(name: str) -> Callable[[], Any]:
    made = {
        "falcon": lambda: transformers.FalconConfig(
            vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
        ),
        "gptoss": lambda: transformers.GptOssConfig(
            **sizes(head_dim=8, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 2)
        ),
        "lfm2": lambda: transformers.Lfm2Config(**ODD["lfm2"][1]),
    }  # fmt: skip
    return made.get(name, lambda: getattr(transformers, CONFIGS[name][0])(**CONFIGS[name][1]))


@pytest.mark.parametrize("name", ["mamba", "qwen3 next", "falcon", "gptoss", "lfm2"])
def test_low_precision_and_weights_that_have_learnt_nothing_hide_no_misfit(name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(_small(name)(), dtype=torch.bfloat16).eval()
    with pytest.raises(ModelError):
        check_model(PolicyModel(model, options=HeadOptions()), packing="tree")


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_low_precision_does_not_refuse_what_fits(name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(_small(name)(), dtype=torch.bfloat16).eval()
    check_model(PolicyModel(model, options=HeadOptions()), packing="tree")


@pytest.mark.parametrize("packing", ["tree", "flat"])
def test_logits_that_are_changed_in_a_way_that_is_not_known_are_named(packing: Packing) -> None:
    policy = PolicyModel(copy.deepcopy(plain_model("granite", torch.float32)), options=HeadOptions())
    policy.causal_lm.config.logits_scaling = 3.01  # the loss has read 3
    with pytest.raises(ModelError, match=r"model\.path: this model changes its logits"):
        check_model(policy, packing=packing)


def test_a_cap_that_small_logits_do_not_reach_is_found() -> None:
    plain = copy.deepcopy(plain_model("gemma2", torch.float32))
    with torch.no_grad():
        plain.get_output_embeddings().weight.mul_(1e-3)
    policy = PolicyModel(plain, options=HeadOptions())
    policy.options = replace(policy.options, cap=0.0)
    with pytest.raises(ModelError, match="changes its logits"):
        check_model(policy, packing="tree")


@pytest.mark.parametrize("name", ["qwen2 sliding", "mistral sliding"])
def test_a_window_wider_than_the_rows_of_the_check_is_proven_all_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wide() -> PolicyModel:
        plain = copy.deepcopy(plain_model(name, torch.float32))
        for holder in (plain.config, *plain.modules()):
            if getattr(holder, "sliding_window", None):
                holder.sliding_window = 4096
        return PolicyModel(plain, options=HeadOptions())

    policy = wide()
    check_model(policy, packing="tree")
    assert policy.causal_lm.config.sliding_window == 4096
    bias = layout.mask_bias
    monkeypatch.setattr(layout, "mask_bias", lambda stack, dtype, window: bias(stack, dtype, None))
    with pytest.raises(ModelError, match=r"learner\.packing=tree does not work"):
        check_model(wide(), packing="tree")


@pytest.mark.parametrize("longest", [None, 64, 65])
def test_long_rope_is_fixed_up_to_the_original_context(longest: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    phi = ("Phi3Config", sizes(rope_parameters=rope, original_max_position_embeddings=64, pad_token_id=0, sliding_window=None))
    monkeypatch.setattr(tree_support, "CONFIGS", CONFIGS | {"longrope": phi})
    policy = PolicyModel(copy.deepcopy(plain_model("longrope", torch.float32)), options=HeadOptions())
    if longest == 64:
        check_model(policy, packing="tree", longest=longest)
    else:
        with pytest.raises(ModelError, match=r"rope_type=longrope depends on the longest row of a batch above 64 tokens"):
            check_model(policy, packing="tree", longest=longest)


def test_scores_with_a_cap_want_another_attention() -> None:
    with pytest.raises(ModelError, match=r"set learner\.attention=eager"):
        policy_of(plain_model("gemma2", torch.float32), packing="padded")


# ---- the head ----


def test_without_gradient_no_logits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logprobs.SLICE_ELEMENTS, "cpu", 1)
    hidden, weight = torch.randn(4096, 8), torch.randn(2048, 8, requires_grad=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile, torch.no_grad():
        run_head([hidden, weight], torch.zeros(4096, dtype=torch.int64), kept_mib=1e6)
    assert peak_mib(profile) < 8  # all of them: 32


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> None:  # type: ignore[override]
        return None


def test_backward_without_any_gradient() -> None:
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8)
    left, right = run_head([hidden, weight], torch.zeros(3, dtype=torch.int64))
    (_Cut.apply(left) + _Cut.apply(right)).sum().backward()
    assert hidden.grad is None


@pytest.mark.parametrize("upstream", [1e6, 1e9])
def test_an_impossible_token_under_a_large_gradient(upstream: float) -> None:
    hidden, weight = torch.zeros(1, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    left, right = run_head([hidden, weight, bias], torch.tensor([1]))
    (upstream * (left + right)).sum().backward()
    assert bias.grad is not None
    assert bias.grad.isfinite().all()
