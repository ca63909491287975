"""The worker extension of engines that make entropy columns: importing it, in vLLM's worker process, installs them."""

from __future__ import annotations

from vllm.triton_utils import HAS_TRITON

from fr3e_async.rollout import entropy_columns
from fr3e_async.rollout.worker_extension import WorkerExtension


class ColumnsExtension(WorkerExtension):
    """Loads weights as every worker extension does, and tells whether the columns are in place."""

    def fr3e_columns_installed(self) -> bool:
        """True if this worker's sampler returns the entropy columns."""
        return entropy_columns.installed(second_runner=self.use_v2_model_runner)


entropy_columns.install(second_runner=HAS_TRITON)
