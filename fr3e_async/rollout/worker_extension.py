"""Runs inside vLLM's worker process: loads weights, and ends with its owner.

vLLM imports this module there and mixes ``WorkerExtension`` into its worker class, so that ``collective_rpc`` can call
the methods. A load is one call between two steps: no step ever sees half of it. Knows nothing of requests, versions and
entropies (``columns_extension`` adds those).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from fr3e_async.rollout.loaded_weights import misfit, verify_loaded
from fr3e_async.rollout.owner import die_with_owner
from fr3e_async.weights import named_tensors, open_shared


class WorkerExtension:
    """Methods that vLLM's worker gains. The prefix keeps them apart from its own."""

    vllm_config: Any
    model_config: Any
    model_runner: Any
    use_v2_model_runner: bool

    def fr3e_load_weights(
        self, path: str, array_dtype: str, dtype: str, names: list[str], shapes: list[list[int]]
    ) -> dict[str, Any]:
        """Load a shared buffer's tensors into the model and compare what can be compared.

        Returns ``{"refused": reason}`` (nothing was changed) or ``{"verified": tensors, "load_s": seconds}``. Anything
        raised means that the model may be half-loaded.
        """
        started = time.perf_counter()
        flat = open_shared(path, array_dtype)
        tensors = dict(named_tensors(flat, names, shapes, dtype))
        model = self.model_runner.get_model()
        if reason := misfit(model, tensors):
            return {"refused": reason}
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            _load(model, self.model_config, tensors)
            whole = self.vllm_config.parallel_config.tensor_parallel_size == 1
            verified = verify_loaded(model, tensors, whole=whole)
        return {"verified": verified, "load_s": time.perf_counter() - started}


def _load(model: nn.Module, model_config: Any, tensors: dict[str, torch.Tensor]) -> None:
    """vLLM's own reload, by Hugging Face names: it fuses q/k/v and gate/up, shards, and keeps the parameters' addresses."""
    expected = {name for name, _ in model.named_parameters()}
    initialize_layerwise_reload(model)
    loaded = model.load_weights(tensors.items())
    finalize_layerwise_reload(model, model_config)
    if loaded is not None and (missing := expected - set(loaded)):
        raise RuntimeError(f"{len(missing)} weights of the engine were not loaded, e.g. {min(missing)}")
    for layer in model.modules():
        # On CPU the embedding and a tied head keep a packed copy besides the weight, which the reload leaves stale.
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and weight is not None and weight.ndim == 2 and weight.numel() > 0:
            layer.quant_method.process_weights_after_loading(layer)


die_with_owner()
