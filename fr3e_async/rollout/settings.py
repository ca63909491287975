"""From an engine's spec to vLLM's settings. Starts nothing. Importing this module imports vllm."""

from __future__ import annotations

from typing import Any

from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from fr3e_async.rollout.entropy import provider_of
from fr3e_async.rollout.port import EngineSpec

GIB = 1 << 30


def engine_args(spec: EngineSpec) -> AsyncEngineArgs:
    """vLLM's settings for a spec; ``spec.options`` win."""
    args: dict[str, Any] = {
        "model": spec.model,
        "revision": spec.revision or None,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": not spec.stops,
        "load_format": "safetensors",  # other formats are pickles, which can carry code
        "generation_config": "vllm",  # the model folder's sampling defaults and end tokens must not creep in
        "dtype": spec.dtype,
        "enforce_eager": spec.eager,
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "kv_cache_memory_bytes": int(spec.kv_cache_gib * GIB) or None,
        "max_num_seqs": spec.max_running,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel,
        "seed": spec.seed,
        "enable_prefix_caching": spec.prefix_caching,
        "disable_log_stats": not spec.verbose,
        "use_tqdm_on_load": spec.verbose,
        **provider_of(spec).engine_args(),
    }
    if spec.transfer:
        args["weight_transfer_config"] = WeightTransferConfig(backend=spec.transfer)
    if spec.block_size:
        args["block_size"] = spec.block_size
    if current_platform.is_cpu() and spec.tensor_parallel == 1:
        # Else vLLM gives a CPU worker a process of its own besides the core's: 6 s of imports and 600 MB for nothing.
        args["distributed_executor_backend"] = UniProcExecutor
    if current_platform.is_cpu() and spec.seeded:
        # At the end of each part of a prompt vLLM turns the request's generator back, which ends the process on a CPU.
        args["enable_chunked_prefill"] = False
    return AsyncEngineArgs(**(args | spec.options))
