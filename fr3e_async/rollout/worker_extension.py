"""The part of the engine inside vLLM's worker process: it loads weights, proves the load, and ends with its owner.

vLLM imports this module there and mixes ``WorkerExtension`` into its worker class, so that ``collective_rpc`` can call
the methods. A load is one call between two steps: no step ever sees half of it. Knows nothing of requests and versions.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from fr3e_async.rollout import entropy_columns, transfer  # noqa: F401 - transfer makes the gloo backend known to vLLM
from fr3e_async.rollout.install import die_with_owner
from fr3e_async.rollout.load_trace import LoadLayout, LoadTrace, Shape
from fr3e_async.rollout.loaded_weights import Packer, Proof, prove
from fr3e_async.weights.checksum import checksum_of_tensor
from fr3e_async.weights.shared import SharedMapping, shared_tensors

MAPPING = SharedMapping()  # of this process: one worker
LAYOUT = LoadLayout()  # of this worker's model


class WorkerExtension:
    """Methods added to vLLM's worker. The ``fr3e_`` prefix avoids clashes with its own."""

    vllm_config: Any
    model_config: Any
    model_runner: Any
    use_v2_model_runner: bool
    _fr3e_arrival: Arrival | None = None

    def fr3e_install_columns(self) -> None:
        """Have this worker's sampler return entropy columns. Raises ``UserError`` if its functions are not the known ones."""
        entropy_columns.install(second_runner=self.use_v2_model_runner)

    def fr3e_load_weights(
        self, path: str, dtype: str, names: list[str], shapes: list[list[int]], starts: list[int], changed: list[str],
        checksums: dict[str, int], whole: bool, turn: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Load the ``changed`` tensors of a shared buffer into the model, and prove it (``prove``: ``whole``, ``turn``).

        The buffer holds all tensors of the version; ``checksums`` are theirs, by name. Tensors that share a layer with a changed
        one are loaded again. Returns ``{"refused": reason}`` if nothing was changed, else ``_reply``, after a whole proof with the
        checksums of what the model was compared with. After any exception the model may be half-loaded.
        """
        tensors = dict(shared_tensors(MAPPING.of(path), names, shapes, starts, dtype))
        told: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if reason := LAYOUT.misfit(told):
            return {"refused": reason}
        if not changed:
            return _reply(Proof(exact=frozenset()), {}, load_s=0.0, verify_s=0.0)
        model = self.model_runner.get_model()
        layers: set[str] | None = None
        if len(changed) < len(tensors):
            layers, wanted = LAYOUT.touched(changed)
            tensors = {name: tensor for name, tensor in tensors.items() if name in wanted}
        started = time.perf_counter()
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            trace = _load(model, layers, self.model_config, tensors)
            loaded = time.perf_counter()
            proof = prove(
                model, trace, told, layers=layers, known=checksums, packer_of=packer_of, remade=self._fr3e_remade, whole=whole, turn=turn
            )  # fmt: skip
            found = {name: checksum_of_tensor(tensor) for name, tensor in tensors.items()} if whole else {}
        LAYOUT.learn(trace, told)
        return _reply(proof, found, load_s=loaded - started, verify_s=time.perf_counter() - loaded)

    def fr3e_expect_weights(self) -> None:
        """Begin to trace what vLLM's own transfer loads, and to take the checksums of what arrives."""
        model = self.model_runner.get_model()
        unpack_experts([model])
        self._fr3e_arrival = Arrival(model)

    def fr3e_prove_weights(self, names: list[str], shapes: list[list[int]], whole: bool, turn: int) -> dict[str, Any]:
        """Prove a transfer of these tensors; ``_reply`` has the checksums of what arrived. Raises ``Unproven``."""
        arrival, self._fr3e_arrival = self._fr3e_arrival, None
        if arrival is None or arrival.trace is None:
            raise RuntimeError("no weights have arrived")
        arrival.close()
        started = time.perf_counter()
        told: dict[str, Shape] = {name: tuple(shape) for name, shape in zip(names, shapes, strict=True)}
        model = self.model_runner.get_model()
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            repack([model])
            proof = prove(model, arrival.trace, told, packer_of=packer_of, remade=self._fr3e_remade, whole=whole, turn=turn)
        LAYOUT.learn(arrival.trace, told)
        return _reply(proof, arrival.checksums, load_s=0.0, verify_s=time.perf_counter() - started)

    def _fr3e_remade(self, layer: nn.Module) -> Mapping[str, Tensor]:
        """Rebuild the tensors that an attention layer derives from its weights after a load (DeepSeek's, from ``kv_b_proj``)."""
        if not is_deferred_attention_layer(layer):
            return {}
        shadow = copy.copy(layer)
        shadow._parameters = dict(layer._parameters)
        shadow.process_weights_after_loading(self.model_config.dtype)
        return {name: parameter.data for name, parameter in shadow._parameters.items() if parameter is not None}


class Arrival:
    """Wraps a model's ``load_weights``, which vLLM's transfer calls once or several times, until ``close``."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.trace: LoadTrace | None = None  # begins with the first load: only then the parameters are ready for it
        self.checksums: dict[str, int] = {}
        original = model.load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any) -> Any:
            # Where there is memory, and packing, the values are kept; on a GPU what was received is gone afterwards.
            self.trace = self.trace or LoadTrace(model, keep=not torch.cuda.is_available())
            with self.trace:
                return original(self.trace.watched(self._summed(weights)), *args, **kwargs)

        model.load_weights = load_weights

    def _summed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self.checksums[name] = checksum_of_tensor(tensor)
            yield name, tensor

    def close(self) -> None:
        del self._model.load_weights  # the class's own is left


def _reply(proof: Proof, checksums: Mapping[str, int], *, load_s: float, verify_s: float) -> dict[str, Any]:
    """Build the reply to the engine: a proof, checksums by name, seconds."""
    return proof.told() | {"checksums": dict(checksums), "load_s": load_s, "verify_s": verify_s}


def _load(
    model: nn.Module, paths: Collection[str] | None, model_config: Any, tensors: Mapping[str, Tensor]
) -> LoadTrace:  # fmt: skip
    """vLLM's own reload, by checkpoint names: it fuses q/k/v and gate/up, shards, and keeps the parameters' addresses.

    Only the layers at ``paths`` are prepared for it (None: all); ``tensors`` must hold all of theirs.
    """
    layers = [model] if paths is None else _layers(model, paths)
    unpack_experts(layers)
    for layer in layers:
        initialize_layerwise_reload(layer)
    trace = LoadTrace(model)
    with trace:
        model.load_weights(trace.watched(tensors.items()))
    for layer in layers:
        finalize_layerwise_reload(layer, model_config)
    repack(layers)
    return trace


def _layers(model: nn.Module, paths: Collection[str]) -> list[nn.Module]:
    """The layers at the paths, those that share a parameter with them, and last the attention layers, which make tensors of others."""
    named = dict(model.named_modules())
    shared = {id(parameter) for path in paths for parameter in named[path].parameters(recurse=False)}
    chosen = [
        layer for path, layer in named.items()
        if path in paths or any(id(parameter) in shared for parameter in layer.parameters(recurse=False))
    ]  # fmt: skip
    return chosen + [layer for layer in named.values() if is_deferred_attention_layer(layer)]


def unpack_experts(layers: Sequence[nn.Module]) -> None:
    """Make vLLM rebuild the kernels of CPU experts: it packs their weights only at that point, and only once.

    On GPUs nothing is packed there, and CUDA graphs hold references to the kernel.
    """
    for layer in _inner(layers):
        if _experts_of(layer) is not None:
            layer.quant_method.moe_kernel = None


def _experts_of(layer: nn.Module) -> Any:
    """The object that packs a layer's experts on CPU; None for other layers and devices."""
    kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
    on_cpu = all(parameter.device.type == "cpu" for parameter in layer.parameters(recurse=False))
    return getattr(kernel, "fused_experts", None) if on_cpu else None


def packer_of(layer: nn.Module) -> Packer | None:
    """Return a function that packs experts as the layer's kernel did when it was made; None if it packs none."""
    experts = _experts_of(layer)
    if experts is None:
        return None

    def pack(layer: nn.Module, loose: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shadow = copy.copy(layer)
        shadow._parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in loose.items()}
        copy.copy(experts).process_weights_after_loading(shadow)
        return {name: shadow._parameters[name].data for name in loose}

    return pack


def repack(layers: Sequence[nn.Module]) -> None:
    """Renew the packed copies that embedding and tied head keep beside their weight on CPU, which a reload leaves stale."""
    for layer in _inner(layers):
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and weight is not None and weight.ndim == 2 and weight.numel() > 0:
            layer.quant_method.process_weights_after_loading(layer)


def _inner(layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    return (inner for outer in layers for inner in outer.modules())


die_with_owner()
