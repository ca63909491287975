"""Check ``engine.options``: allow only vLLM arguments that keep the model equal to the learner's. Pure, by names only.

What is refused here would make an engine sample from another model than the one that is trained and exported, or from one whose
log-probs and entropies mean something else; or it has a setting of its own, or has never been tried with new weights.
"""

from collections.abc import Mapping
from typing import Any

from fr3e_async.config.knobs import did_you_mean, require
from fr3e_async.config.secrets import SECRET_NAME

# Scheduling, memory and speed alone.
ALLOWED = (
    "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold", "enable_chunked_prefill",
    "scheduling_policy", "scheduler_reserve_full_isl", "async_scheduling", "stream_interval", "num_gpu_blocks_override",
    "prefix_caching_hash_algo", "disable_hybrid_kv_cache_manager", "disable_cascade_attn", "attention_backend",
    "attention_config", "kernel_config", "enable_flashinfer_autotune", "disable_custom_all_reduce",
    "distributed_executor_backend", "distributed_timeout_seconds", "compilation_config",
    "cudagraph_capture_sizes", "max_cudagraph_capture_size", "optimization_level", "performance_mode", "download_dir",
    "safetensors_load_strategy", "max_parallel_loading_workers", "shutdown_timeout", "enable_log_requests", "log_level",
    "hf_overrides",  # of OVERRIDES alone
)  # fmt: skip
# Overrides that learner and export can follow: rotary position settings, and the number of positions.
OVERRIDES = ("max_position_embeddings", "rope_parameters")

SYSTEM = "the system sets it (see engine.entropy, model)"
PLAIN = "the learner trains and exports the weights as they are: an engine would sample from another model"
CACHE = "the learner computes with whole keys and values: an engine would sample from another model"
DRAFT = "log-probs and entropies are measured where one token is sampled at a time"
DRAW = "it changes what is sampled, and log-probs with it; set sampling.temperature, top_p and top_k"
ADAPTER = "the learner trains whole weights, and engines serve those alone"
CONFIG = f"learner and export would not see it; engine.options.hf_overrides may set {' and '.join(OVERRIDES)}"
COUNT = "engines are counted by generators.count and explorers.count, and cut by generators.gpus"
REFUSED = {
    **dict.fromkeys(("logprobs_mode", "max_logprobs", "worker_extension_cls", "generation_config", "model", "revision"), SYSTEM),
    **dict.fromkeys(("skip_tokenizer_init", "trust_remote_code", "load_format"), SYSTEM),
    **dict.fromkeys(("quantization", "quantization_config", "allow_deprecated_quantization"), PLAIN),
    **dict.fromkeys(("kv_cache_dtype", "kv_cache_dtype_skip_layers", "calculate_kv_scales"), CACHE),
    **dict.fromkeys(("speculative_config", "spec_method", "spec_model", "spec_tokens"), DRAFT),
    **dict.fromkeys(("logits_processors", "override_generation_config", "watermark_config"), DRAW),
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "lora_dtype", "lora_target_modules"), ADAPTER),
    **dict.fromkeys(("rope_scaling", "rope_theta", "hf_config_path", "config_format", "model_class_overrides"), CONFIG),
    **dict.fromkeys(("data_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"), COUNT),
    "dtype": "set engine.dtype",
    "enforce_eager": "set engine.eager",
    "gpu_memory_utilization": "set engine.gpu_memory_utilization",
    "kv_cache_memory_bytes": "set engine.kv_cache_gib",
    "block_size": "set engine.block_size",
    "max_num_seqs": "set engine.max_running",
    "max_model_len": "it is data.max_prompt + sampling.max_response",
    "tensor_parallel_size": "set generators.gpus and explorers.gpus",
    "enable_prefix_caching": "set engine.prefix_caching",
    "seed": "set run.seed",
    "disable_log_stats": "set observe.verbose",
    "weight_transfer_config": "set weights.transfer",
}  # fmt: skip


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a one-line ``ConfigError`` that names the first forbidden option, and why."""
    for key in options:
        if SECRET_NAME.fullmatch(str(key)):
            continue  # refused by ``config.secrets``, which says where secrets belong
        require(key not in REFUSED, f"engine.options must not set {key}: {REFUSED.get(key)}")
        hint = did_you_mean(str(key), ALLOWED) or "; fr3e_async/config/vllm_options.py lists them"
        require(
            key in ALLOWED,
            f"engine.options.{key} is none of the vLLM arguments that are known to leave the model as the learner has it{hint}",
        )
    _check_overrides(config_overrides(options))


def config_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``engine.options.hf_overrides`` changes in the model's config, for engine, learner and export alike."""
    overrides = options.get("hf_overrides") or {}
    require(isinstance(overrides, Mapping), f"engine.options.hf_overrides must be a mapping, got {overrides!r}")
    return dict(overrides)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    path = "engine.options.hf_overrides"
    for key in overrides:
        require(
            key in OVERRIDES,
            f"{path} must not set {key}: learner and export follow {' and '.join(OVERRIDES)} only; "
            "for others change config.json in a copy of the model folder",
        )
    positions = overrides.get("max_position_embeddings", 1)
    rope = overrides.get("rope_parameters", {"rope_type": "", "rope_theta": 0})
    require(type(positions) is int and positions > 0, f"{path}.max_position_embeddings must be a whole number, got {positions!r}")
    require(
        isinstance(rope, Mapping) and {"rope_type", "rope_theta"} <= rope.keys(),
        f"{path}.rope_parameters must be a mapping with rope_type and rope_theta: it takes the place of all that the model has",
    )
