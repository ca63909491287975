"""Hand-over of weights: every engine in service loads each version and acknowledges it; one that does not is replaced.

Without ``direct`` there is no collective: engines are served side by side, and one that hangs holds nobody up beyond its
time limit. With it the learner sends to all engines in service at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fr3e_async.control.pool import Pool
from fr3e_async.control.ports import Clock, DirectTransfer, EngineWorker, WorkerLost
from fr3e_async.errors import RunFailed
from fr3e_async.types import WeightAck, WeightBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """One hand-over: how long it took, how long engines stood still, and who was quarantined."""

    version: int
    time_s: float
    acks: tuple[WeightAck, ...]  # of the engines that took it
    quarantined: dict[str, str]  # engine -> why
    sent_bytes: int = 0
    skipped_bytes: int = 0

    @property
    def pause_s(self) -> float:
        """Mean over the engines."""
        return sum(ack.pause_s for ack in self.acks) / max(len(self.acks), 1)

    @property
    def metrics(self) -> dict[str, float]:
        """Beside ``time_s`` and ``pause_s``, by metric name."""
        count = max(len(self.acks), 1)
        return {
            "time/pause_max_s": max((ack.pause_s for ack in self.acks), default=0.0),
            "time/copy_s": sum(ack.copy_s for ack in self.acks) / count,
            "weights/sent_bytes": float(self.sent_bytes),
            "weights/skipped_bytes": float(self.skipped_bytes),
            "weights/copied_bytes": sum(ack.copied_bytes for ack in self.acks) / count,
        }


class Publisher:
    """Remembers the current weights, so that a replacement engine gets them before its first request."""

    def __init__(
        self,
        pools: Sequence[Pool[EngineWorker]],
        *,
        ack_timeout_s: float,
        clock: Clock,
        direct: DirectTransfer | None = None,
    ) -> None:
        self._pools, self._timeout, self._clock, self._direct = pools, ack_timeout_s, clock, direct
        self._current: tuple[int, WeightBundle] | None = None

    async def publish(self, version: int, weights: WeightBundle) -> Sync:
        """Returns when every engine has acknowledged or is quarantined. Those being replaced meanwhile get it in ``bring_up``.

        Raises ``RunFailed`` if an engine acknowledged another version or other weights.
        """
        started = self._clock()
        self._current = (version, weights)
        members = [(pool, worker) for pool in self._pools for worker in pool.workers]
        replies = await self._hand_over([worker for _, worker in members], version, weights)
        quarantined = {}
        for (pool, worker), reply in zip(members, replies, strict=True):
            if isinstance(reply, str):
                quarantined[worker.name] = reply
                pool.retire(worker)
        return Sync(
            version=version,
            time_s=self._clock() - started,
            acks=tuple(reply for reply in replies if isinstance(reply, WeightAck)),
            quarantined=quarantined,
            sent_bytes=weights.sent_bytes,
            skipped_bytes=weights.skipped_bytes,
        )

    async def bring_up(self, worker: EngineWorker) -> None:
        """Give a new engine the current weights; raises ``WorkerLost`` if it does not take them."""
        while self._current is not None:
            weights = self._current[1]
            if self._direct is not None:
                weights = await self._direct.stored()  # of this version, or one that the others are about to get
            reply = await self._load(worker, weights.version, weights)
            if isinstance(reply, str):
                raise WorkerLost(f"{worker.name} did not take weights v{weights.version}: {reply}")
            if self._current[0] <= weights.version:
                return

    async def _hand_over(self, workers: Sequence[EngineWorker], version: int, weights: WeightBundle) -> Sequence[WeightAck | str]:
        if self._direct is None:
            return await asyncio.gather(*(self._load(worker, version, weights) for worker in workers))
        replies = await self._direct.hand_over(workers, weights.manifest)
        for worker, reply in zip(workers, replies, strict=True):
            _require_same(worker, reply, version, weights)
        return replies

    async def _load(self, worker: EngineWorker, version: int, weights: WeightBundle) -> WeightAck | str:
        """The acknowledgement, or why there is none."""
        try:
            ack = await asyncio.wait_for(worker.load_weights(weights), self._timeout)
        except TimeoutError:
            return f"no answer within weights.ack_timeout_s ({self._timeout:g} s)"
        except WorkerLost as error:
            return str(error)
        _require_same(worker, ack, version, weights)
        return ack


def _require_same(worker: EngineWorker, ack: WeightAck | str, version: int, weights: WeightBundle) -> None:
    if isinstance(ack, WeightAck) and (ack.version, ack.checksum) != (version, weights.checksum):
        raise RunFailed(
            f"{worker.name} acknowledged weights v{ack.version} with checksum {ack.checksum:#018x} instead of v{version} "
            f"with {weights.checksum:#018x}"
        )
