"""What vLLM's core says about itself after each of its steps: cache in use, requests that wait, preemptions, tokens.

Knows nothing of requests or weights. Importing this module imports vllm.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class CoreStats(PrometheusStatLogger):
    """A stat logger that keeps the last numbers and formats nothing.

    It takes the place of vLLM's Prometheus logger, hence the base: vLLM adds that one unless it finds a subclass, and nobody
    reads it here. All of it costs some 3 µs a token in this process, and nothing that can be measured in the core.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        self.kv_used = 0.0  # 0..1, part of the KV cache's blocks that running requests hold
        self.waiting = 0  # requests that the core has not scheduled, or has preempted
        self.preempted = 0  # total; a preemption is known once its request goes on
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
    """The logger of an engine that was started with ``stat_loggers=[CoreStats]``."""
    assert llm.logger_manager is not None
    (found,) = (logger for logger in llm.logger_manager.stat_loggers if isinstance(logger, CoreStats))
    return found
