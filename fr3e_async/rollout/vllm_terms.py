"""Translate between our types and vLLM's: engine arguments, sampling parameters, token versions, the core's statistics.

Starts nothing. Importing this module imports vllm.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from fr3e_async.rollout.entropy import provider_of
from fr3e_async.rollout.port import EngineSpec, SampleRequest

GIB = 1 << 30
STEP_TOKENS = 8192  # of one step on a GPU; vLLM falls to 2,048 where it does not know the caller


def engine_args(spec: EngineSpec) -> AsyncEngineArgs:
    """vLLM's settings for a spec; ``spec.engine.options`` win."""
    args: dict[str, Any] = {
        "model": spec.model,
        "revision": spec.revision or None,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": not spec.stops,
        "load_format": "safetensors",  # other formats are pickles, which can carry code
        "generation_config": "vllm",  # ignore the model folder's sampling defaults and end tokens
        "dtype": spec.engine.dtype,
        "enforce_eager": spec.engine.eager,
        "gpu_memory_utilization": spec.engine.gpu_memory_utilization,
        "kv_cache_memory_bytes": int(spec.engine.kv_cache_gib * GIB) or None,
        "max_num_seqs": spec.engine.max_running,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel,
        "seed": spec.seed,
        "enable_prefix_caching": spec.engine.prefix_caching,
        "disable_log_stats": not spec.verbose,
        "use_tqdm_on_load": spec.verbose,
        **provider_of(spec).engine_args(),
    }
    if spec.transfer:
        args["weight_transfer_config"] = WeightTransferConfig(backend=spec.transfer)
    if spec.engine.block_size:
        args["block_size"] = spec.engine.block_size
    if spec.tensor_parallel > 1:
        # Inside a placement group vLLM would choose its Ray executor, which refuses a bundle of more than one GPU.
        args["distributed_executor_backend"] = "mp"
    elif current_platform.is_cpu():
        # Otherwise vLLM starts a separate process for a CPU worker besides the core's, which wastes 6 s of imports and 600 MB.
        args["distributed_executor_backend"] = UniProcExecutor
    if not current_platform.is_cpu():
        args["max_num_batched_tokens"] = max(STEP_TOKENS, spec.engine.max_running)
    if current_platform.is_cpu() and spec.seeded:
        # At the end of each part of a prompt vLLM turns the request's generator back, which ends the process on a CPU.
        args["enable_chunked_prefill"] = False
    return AsyncEngineArgs(**(args | spec.engine.options))


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
    """Make vLLM's sampling parameters of a request. ``logprobs``: what the entropy provider asks for."""
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
    """Read the weight version of each token from vLLM's spans, [length]. ``RuntimeError`` if a token has none."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise RuntimeError(f"the engine gave no weight version for {int((versions < 0).sum())} of {length} tokens")
    return versions


class CoreStats(PrometheusStatLogger):
    """Keeps what vLLM's core reports after each step: cache in use, waiting requests, preemptions, steps.

    It is a subclass of vLLM's Prometheus logger because vLLM adds that one unless it finds a subclass, and nobody reads it here.
    It costs some 3 µs a token in this process, and nothing measurable in the core.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        self.kv_used = 0.0  # 0..1, part of the KV cache's blocks that running requests hold
        self.waiting = 0  # requests that the core has not scheduled, or has preempted
        self.preempted = 0  # total; a preemption is known once its request continues
        self.steps = 0  # total, of those that made tokens

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self.kv_used = scheduler_stats.kv_cache_usage
            self.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
        if iteration_stats is not None:
            self.preempted += iteration_stats.num_preempted_reqs
            self.steps += iteration_stats.num_generation_tokens > 0

    def log(self) -> None:
        pass

    def log_engine_initialized(self) -> None:
        pass

    def record_admission_rejection(self, reason: str) -> None:
        pass

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        pass


def core_stats(llm: AsyncLLM) -> CoreStats:
    """Find the logger of an engine that was started with ``stat_loggers=[CoreStats]``."""
    assert llm.logger_manager is not None
    (found,) = (logger for logger in llm.logger_manager.stat_loggers if isinstance(logger, CoreStats))
    return found
