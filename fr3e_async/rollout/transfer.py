"""vLLM's own weight transfer, both ends: NCCL between GPUs as vLLM ships it, and the same interface over gloo for CPUs.

The learner's rank 0 is rank 0 of a group of its own, each engine is another one. vLLM's trainer side would call the engines
itself; here the driver does (``NobodyToCall``), so that time limits and the loss of an engine stay in one place.
Knows nothing of Ray, DeepSpeed or requests. Importing this module imports vllm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import BroadcastOptions
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from fr3e_async.rollout.port import TransferMeeting
from fr3e_async.weights.manifest import WeightManifest

GLOO = "gloo"


def open_sender(
    meeting: TransferMeeting, *, rank: int, manifest: WeightManifest, weights: Callable[[], Iterator[tuple[str, Tensor]]]
) -> TrainerWeightTransferEngine:
    """The learner's end, on every rank; rank 0 waits for the engines. ``weights`` runs through the manifest's tensors."""
    if meeting.backend == GLOO:
        info: TrainerInitInfo = GlooTrainerInit(rank=rank, meeting=meeting)
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        info = NCCLTrainerInitInfo(
            rank=rank, master_address=meeting.host, master_port=meeting.port, world_size=meeting.world
        )  # fmt: skip
    source = LearnerSource(manifest, weights)
    return WeightTransferTrainerFactory.trainer_init(info, client=NobodyToCall(), source=source)


def engine_init_info(meeting: TransferMeeting, *, place: int) -> dict[str, Any]:
    """What vLLM's ``init_weight_transfer_engine`` is told in the engine that is rank ``place`` of the group."""
    told = {
        "master_address": meeting.host, "master_port": meeting.port, "world_size": meeting.world, "rank_offset": place,
    }  # fmt: skip
    return told | ({"timeout_s": meeting.timeout_s} if meeting.backend == GLOO else {"packed": True})


def update_info(manifest: WeightManifest) -> dict[str, Any]:
    """What vLLM's ``update_weights`` is told, in either backend."""
    count = len(manifest.names)
    shapes = [list(shape) for shape in manifest.shapes]
    return {"names": list(manifest.names), "dtype_names": [manifest.dtype] * count, "shapes": shapes}


class NobodyToCall:
    """vLLM's ``VLLMWeightSyncClient``: the driver makes these calls on the engines itself."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class LearnerSource(WeightSource):
    """The learner's weights as vLLM's trainer side wants them: whole ones, gathered as they are asked for."""

    def __init__(self, manifest: WeightManifest, weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self._dtype = getattr(torch, manifest.dtype)
        self._told = [
            ParamMeta(name, self._dtype, tuple(shape)) for name, shape in zip(manifest.names, manifest.shapes, strict=True)
        ]
        self._weights = weights

    def metadata(self) -> list[ParamMeta]:
        return self._told

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._weights():
            yield name, weight.to(self._dtype)


# ---- gloo: one tensor after the other; the sender's and the receivers' order is the manifest's ----


@dataclass
class GlooInit(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooReceiver(WeightTransferEngine[GlooInit, GlooUpdate]):
    """The engine's end, in vLLM's worker."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate
    _group: Any = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        place = init_info.rank_offset + self.parallel_config.rank
        self._group = _gloo_group(
            init_info.master_address, init_info.master_port, place, init_info.world_size, init_info.timeout_s
        )  # fmt: skip

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdate) -> None:
        if self._group is None:
            raise RuntimeError("weight transfer over gloo: this engine has not joined a group")
        self.model.load_weights(self._received(update_info))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self._group = None

    def _received(self, told: GlooUpdate) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in zip(told.names, told.dtype_names, told.shapes, strict=True):
            tensor = torch.empty(math.prod(shape), dtype=getattr(torch, dtype))
            _broadcast(self._group, tensor)
            yield name, tensor.view(shape)


@dataclass(kw_only=True)
class GlooTrainerInit(TrainerInitInfo):
    backend: ClassVar[str] = GLOO

    meeting: TransferMeeting


class GlooSender(TrainerWeightTransferEngine[GlooTrainerInit]):
    """The learner's end. Ranks other than 0 take part in gathering only."""

    init_info_cls = GlooTrainerInit
    _group: Any = None

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInit, *, client: Any, source: WeightSource | None = None) -> Self:
        sender, meeting = cls(client=client, source=source, is_sender=init_info.is_sender), init_info.meeting
        if sender.is_sender:
            sender._group = _gloo_group(meeting.host, meeting.port, 0, meeting.world, meeting.timeout_s)
        return sender

    def send_weights(self) -> None:
        assert self.source is not None
        for _, tensor in self.source:
            if self.is_sender:
                _broadcast(self._group, tensor.contiguous().view(-1))

    def shutdown(self) -> None:
        self._group = None


def _gloo_group(host: str, port: int, place: int, world: int, timeout_s: float) -> Any:
    limit = timedelta(seconds=timeout_s)
    return stateless_init_torch_distributed_process_group(host, port, place, world, GLOO, timeout=limit)


def _broadcast(group: Any, tensor: Tensor) -> None:
    options = BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([tensor], options).wait()


WeightTransferEngineFactory.register_engine(GLOO, GlooReceiver)
WeightTransferTrainerFactory.register_engine(GLOO, GlooSender)
