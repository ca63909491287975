"""Runs inside vLLM's worker process: loads weights, and ends with its owner.

vLLM imports this module there and mixes ``WorkerExtension`` into its worker class, so that ``collective_rpc`` can call
the methods. A load is one call between two steps: no step ever sees half of it. Knows nothing of requests, versions and
entropies (``columns_extension`` adds those).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from fr3e_async.rollout import transfer  # noqa: F401 - makes the gloo backend known to vLLM
from fr3e_async.rollout.loaded_weights import Place, confirm, misfit, places, stored_with, verify_loaded
from fr3e_async.rollout.owner import die_with_owner
from fr3e_async.weights import SharedMapping, shared_tensors

MAPPING = SharedMapping()  # of this process: one worker


class WorkerExtension:
    """Methods that vLLM's worker gains. The prefix keeps them apart from its own."""

    vllm_config: Any
    model_config: Any
    model_runner: Any
    use_v2_model_runner: bool

    def fr3e_load_weights(
        self, path: str, dtype: str, names: list[str], shapes: list[list[int]], starts: list[int], changed: list[str]
    ) -> dict[str, Any]:
        """Load the ``changed`` tensors of a shared buffer into the model and compare what can be compared.

        Tensors that are stored in one layer with them are loaded again; the buffer holds all of a version's.
        Returns ``{"refused": reason}`` (nothing was changed) or the names ``"loaded"`` and ``"verified"`` with ``"load_s"``
        and ``"verify_s"``, seconds. Anything raised means that the model may be half-loaded.
        """
        tensors = dict(shared_tensors(MAPPING.of(path), names, shapes, starts, dtype))
        model = self.model_runner.get_model()
        placed = places(model)
        if reason := misfit(placed, tensors):
            return {"refused": reason}
        if not changed:
            return {"loaded": [], "verified": [], "load_s": 0.0, "verify_s": 0.0}
        started = time.perf_counter()
        if len(changed) < len(tensors):
            placed = stored_with(placed, set(changed))
            tensors = {name: tensors[name] for name in _wanted(placed, changed) if name in tensors}
            layers = list({id(place.layer): place.layer for place in placed}.values())
        else:
            layers = [model]
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            _load(model, layers, self.model_config, tensors, expected={place.parameter for place in placed})
            loaded = time.perf_counter()
            whole = self.vllm_config.parallel_config.tensor_parallel_size == 1
            verified = verify_loaded(placed, tensors, whole=whole)
        times = {"load_s": loaded - started, "verify_s": time.perf_counter() - loaded}
        return {"loaded": list(tensors), "verified": sorted(verified), **times}

    def fr3e_confirm_weights(self, dtype: str, names: list[str], shapes: list[list[int]], checksums: list[int]) -> list[str]:
        """After vLLM's own transfer: names of the tensors whose checksums were found in the model.

        Raises if one is another. Packed and sharded weights cannot be looked at.
        """
        model = self.model_runner.get_model()
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            repack([model])
        told = dict(zip(names, zip(shapes, checksums, strict=True), strict=True))
        return sorted(confirm(places(model), told, dtype=getattr(torch, dtype)))


def _wanted(placed: Sequence[Place], changed: Sequence[str]) -> dict[str, None]:
    """Names in these places; a changed tensor without a place of its own (an expert's, say) is one of them."""
    return dict.fromkeys([*(name for place in placed for name in place.names), *changed])


def _load(
    model: nn.Module, layers: Sequence[nn.Module], model_config: Any, tensors: Mapping[str, torch.Tensor], *, expected: set[str]
) -> None:
    """vLLM's own reload, by Hugging Face names: it fuses q/k/v and gate/up, shards, and keeps the parameters' addresses.

    Only ``layers`` are prepared for it; ``tensors`` must hold all of theirs. ``expected``: parameters that must be loaded.
    """
    expected &= {name for name, _ in model.named_parameters()}  # a tied head counts under its embedding's name
    for layer in layers:
        initialize_layerwise_reload(layer)
    loaded = model.load_weights(tensors.items())
    for layer in layers:
        finalize_layerwise_reload(layer, model_config)
    if loaded is not None and (missing := expected - set(loaded)):
        raise RuntimeError(f"{len(missing)} weights of the engine were not loaded, e.g. {min(missing)}")
    repack(layers)


def repack(layers: Sequence[nn.Module]) -> None:
    """On CPU the embedding and a tied head keep a packed copy besides the weight, which a reload leaves stale."""
    for layer in (inner for outer in layers for inner in outer.modules()):
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and weight is not None and weight.ndim == 2 and weight.numel() > 0:
            layer.quant_method.process_weights_after_loading(layer)


die_with_owner()
