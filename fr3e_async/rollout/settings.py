"""From an engine's spec to vLLM's settings. Starts nothing. Importing this module imports vllm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from fr3e_async.rollout.entropy import provider_of
from fr3e_async.rollout.port import EngineSpec, SampleRequest

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


# ---- One request in vLLM's words, and which weights made each token of its answer ----
# Importing this module imports vllm.


def check_request(request: SampleRequest, spec: EngineSpec) -> None:
    """Raise ``ValueError`` for a request that this engine cannot take."""
    if len(request.context) >= spec.max_model_len:
        raise ValueError(
            f"request {request.request_id}: a context of {len(request.context)} tokens leaves no room in a model length "
            f"of {spec.max_model_len}"
        )
    if request.seed is not None and not spec.seeded:
        raise ValueError(f"request {request.request_id} carries a seed; the engine was started without EngineSpec.seeded")


def sampling_params(request: SampleRequest, spec: EngineSpec, *, logprobs: int) -> SamplingParams:
    """``logprobs``: what the entropy provider asks for."""
    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        max_tokens=request.max_tokens,
        stop_token_ids=list(spec.end_token_ids),
        logprobs=logprobs,
        flat_logprobs=True,
        stop=list(spec.stops),
        include_stop_str_in_output=True,
        detokenize=bool(spec.stops),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def versions_of(sampled: CompletionOutput, length: int) -> NDArray[np.int32]:
    """[length] the weight version of each token, from vLLM's spans."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise RuntimeError(f"the engine gave no weight version for {int((versions < 0).sum())} of {length} tokens")
    return versions
