"""Tiny random models of the families, as a user's folder would hold them, and what every engine is asked. Knows no learner.

Uneven weights, so that distributions are far from uniform; a vocabulary that engines pad (``VOCABULARY``) and that is larger than
the tokenizer; sliding windows, where a family has them, that are shorter than the sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fr3e_async.rollout import SampleRequest

VOCABULARY, WORDS = 120, 100  # tokens of the model, of its tokenizer
END = 2
POSITIONS = 256
WINDOW = 16  # tokens
TEMPERATURE = 0.8
LONGEST = 96  # tokens of a sequence
# Heads of 32: vLLM's attention on CPU knows no smaller ones.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": POSITIONS, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": POSITIONS, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(16)], "long_factor": [2.0 + 0.3 * i for i in range(16)],
    "original_max_position_embeddings": 128, "rope_theta": 10000.0,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """``config``: a config class of transformers. ``tied``: which heads are tried. ``overrides``: of ``engine.options.hf_overrides``."""

    config: str
    values: dict[str, Any] = field(default_factory=dict)
    tied: tuple[bool, ...] = (True, False)
    overrides: dict[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "Qwen2": Family(config="Qwen2Config"),
    "Qwen2, windows": Family(
        config="Qwen2Config", values={"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, tied=(False,)
    ),
    "Qwen2, YaRN": Family(config="Qwen2Config", values={"rope_parameters": YARN}, tied=(False,)),
    "Qwen2, YaRN by hf_overrides": Family(
        config="Qwen2Config", tied=(False,), overrides={"rope_parameters": YARN, "max_position_embeddings": 2 * POSITIONS}
    ),
    "Qwen3": Family(config="Qwen3Config", values={"head_dim": 32}),
    "Llama": Family(config="LlamaConfig", values={"attention_bias": True}),
    "Mistral": Family(config="MistralConfig", values={"sliding_window": WINDOW, "head_dim": 32}),
    "Gemma 2": Family(
        config="Gemma2Config",
        values={"head_dim": 32, "sliding_window": WINDOW, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
    "Gemma 3": Family(
        config="Gemma3TextConfig",
        values={"head_dim": 32, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Phi-3": Family(config="Phi3Config", values={"sliding_window": WINDOW}),
    "Phi-3, LongRoPE": Family(config="Phi3Config", values={"rope_parameters": LONG, "original_max_position_embeddings": 128}, tied=(False,)),
    "OLMo 2": Family(config="Olmo2Config"),
    "GLM-4": Family(config="Glm4Config", values={"head_dim": 32, "partial_rotary_factor": 0.5}),
    "Granite": Family(
        config="GraniteConfig",
        values={"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "GPT-2": Family(config="GPT2Config", values={"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}),
    "Mixtral": Family(config="MixtralConfig", values={"num_local_experts": 4, "num_experts_per_tok": 2}, tied=(False,)),
    "Qwen2-MoE": Family(
        config="Qwen2MoeConfig", values={**EXPERTS, "shared_expert_intermediate_size": 32}, tied=(False,)
    ),
    "Qwen3-MoE": Family(config="Qwen3MoeConfig", values={**EXPERTS, "head_dim": 32, "norm_topk_prob": True}, tied=(False,)),
    "DeepSeek-V2": Family(config="DeepseekV2Config", values=LATENT, tied=(False,)),
    "DeepSeek-V3": Family(
        config="DeepseekV3Config", values={**LATENT, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc"}, tied=(False,)
    ),
}  # fmt: skip


def build(name: str, folder: Path, *, tied: bool) -> Path:
    """A model folder with weights in float32 and a tokenizer of one word a token."""
    import transformers
    from tokenizers import Tokenizer, models

    family = FAMILIES[name]
    torch.manual_seed(1 + tied)
    config = getattr(transformers, family.config)(**{**SIZES, **family.values}, tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    disturb(model, seed=2)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}", pad_token="w0").save_pretrained(folder)
    return folder


@torch.no_grad()
def disturb(model: torch.nn.Module, *, seed: int) -> None:
    """Change every weight."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def reference(folder: Path, **overrides: Any) -> Any:
    """The model of a folder as transformers computes it: float32, eager attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **overrides)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()


def requests_of(turn: str) -> list[SampleRequest]:
    """Three continuations to draw, the same for every engine; the longest context and answer together pass the window."""
    rng = np.random.default_rng(7)
    contexts = [rng.integers(3, VOCABULARY, size).astype(np.int32) for size in (4, 40, 64)]
    return [
        SampleRequest(request_id=f"{turn}-{i}", context=context, max_tokens=24, temperature=TEMPERATURE)
        for i, context in enumerate(contexts)
    ]
