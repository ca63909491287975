"""vLLM's own weight transfer, both ends: NCCL between GPUs as vLLM ships it, and the same over gloo for CPUs.

The learner's rank 0 is rank 0 of a group of its own, each engine is another one. vLLM's trainer side would call the engines
itself; here the driver does (``NobodyToCall``), so that time limits and the loss of an engine stay in one place.
Knows nothing of Ray, DeepSpeed or requests. Importing this module imports vllm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import BroadcastOptions
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from fr3e_async.rollout.port import TransferMeeting
from fr3e_async.weights.manifest import WeightManifest

GLOO = "gloo"


def open_sender(
    meeting: TransferMeeting, *, rank: int, manifest: WeightManifest, weights: Callable[[], Iterator[tuple[str, Tensor]]]
) -> TrainerWeightTransferEngine:
    """Open the learner's end, on every rank; rank 0 waits for the engines. ``weights`` runs through the manifest's tensors."""
    where = {"master_address": meeting.host, "master_port": meeting.port, "world_size": meeting.world}
    if meeting.backend == GLOO:
        info: NCCLTrainerInitInfo = GlooTrainerInit(rank=rank, timeout_s=meeting.timeout_s, **where)
    else:
        info = NCCLTrainerInitInfo(rank=rank, **where)
    return WeightTransferTrainerFactory.trainer_init(info, client=NobodyToCall(), source=LearnerSource(manifest, weights))


def engine_init_info(meeting: TransferMeeting, *, rank: int) -> dict[str, Any]:
    """Return the arguments of vLLM's ``init_weight_transfer_engine`` for the engine with this rank in the group."""
    told = {
        "master_address": meeting.host, "master_port": meeting.port, "world_size": meeting.world, "rank_offset": rank,
    }  # fmt: skip
    return told | ({"timeout_s": meeting.timeout_s} if meeting.backend == GLOO else {"packed": True})


def update_info(manifest: WeightManifest) -> dict[str, Any]:
    """Return the arguments of vLLM's ``update_weights``, the same for both backends."""
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
    """Give vLLM's trainer side the learner's weights: full tensors, each gathered on request."""

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


# ---- gloo: vLLM's NCCL engines with another group; one tensor after the other, in the order of the manifest ----


class GlooGroup:
    """Broadcasts from rank 0. Implements only the communicator calls that vLLM's engines use."""

    def __init__(self, host: str, port: int, rank: int, world: int, timeout_s: float) -> None:
        limit = timedelta(seconds=timeout_s)
        self._group = stateless_init_torch_distributed_process_group(host, port, rank, world, GLOO, timeout=limit)

    def broadcast(self, tensor: Tensor) -> None:
        """Send a contiguous tensor from rank 0; on other ranks, receive into it."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        self._group.broadcast([tensor.view(-1)], options).wait()

    def destroy(self) -> None:
        self._group = None


@dataclass(kw_only=True)
class GlooInit(NCCLWeightTransferInitInfo):
    timeout_s: float


class GlooReceiver(NCCLWeightTransferEngine):
    """The engine's end, in vLLM's worker."""

    init_info_cls = GlooInit

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        rank = init_info.rank_offset + self.parallel_config.rank
        self.model_update_group = GlooGroup(
            init_info.master_address, init_info.master_port, rank, init_info.world_size, init_info.timeout_s
        )  # fmt: skip

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self.model_update_group is None:
            raise RuntimeError("weight transfer over gloo: this engine has not joined a group")
        self.model.load_weights(self._received(update_info))

    def _received(self, told: NCCLWeightTransferUpdateInfo) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in zip(told.names, told.dtype_names, told.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            self.model_update_group.broadcast(tensor)
            yield name, tensor


@dataclass(kw_only=True)
class GlooTrainerInit(NCCLTrainerInitInfo):
    backend: ClassVar[str] = GLOO

    timeout_s: float


class GlooSender(NCCLTrainerWeightTransferEngine):
    """The learner's end. Ranks other than 0 only take part in gathering."""

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInit, *, client: Any, source: WeightSource | None = None) -> Self:
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        if sender.is_sender:
            sender.model_update_group = GlooGroup(
                init_info.master_address, init_info.master_port, 0, init_info.world_size, init_info.timeout_s
            )  # fmt: skip
        return sender

    def _broadcast(self, source: WeightSource, meta: list[ParamMeta]) -> None:
        for _, tensor in self._checked_iter(source, meta) if self.is_sender else source:
            if self.is_sender:
                self.model_update_group.broadcast(tensor.contiguous())


WeightTransferEngineFactory.register_engine(GLOO, GlooReceiver)
WeightTransferTrainerFactory.register_engine(GLOO, GlooSender)
