"""Hand-over of weights: every engine in service loads each version and acknowledges it; one that does not is replaced.

No collective: engines are served side by side, and one that hangs holds nobody up beyond its time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fr3e_async.control.pool import Pool
from fr3e_async.control.ports import Clock, EngineWorker, Payload, WorkerLost
from fr3e_async.errors import RunFailed
from fr3e_async.types import WeightAck


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """One hand-over: how long it took, how long engines stood still, and who was quarantined."""

    version: int
    time_s: float
    pause_s: float  # mean over the engines
    acks: int
    quarantined: dict[str, str]  # engine -> why


class Publisher:
    """Remembers the current weights, so that a replacement engine gets them before its first request."""

    def __init__(self, pools: Sequence[Pool[EngineWorker]], *, ack_timeout_s: float, clock: Clock) -> None:
        self._pools, self._timeout, self._clock = pools, ack_timeout_s, clock
        self._current: tuple[int, Payload] | None = None

    async def publish(self, version: int, weights: Payload) -> Sync:
        """Returns when every engine has acknowledged or is quarantined. Those being replaced meanwhile get it in ``bring_up``.

        Raises ``RunFailed`` if an engine acknowledged another version.
        """
        started = self._clock()
        self._current = (version, weights)
        members = [(pool, worker) for pool in self._pools for worker in pool.workers]
        replies = await asyncio.gather(*(self._load(worker, version, weights) for _, worker in members))
        quarantined = {}
        for (pool, worker), reply in zip(members, replies, strict=True):
            if isinstance(reply, str):
                quarantined[worker.name] = reply
                pool.retire(worker)
        acks = [reply for reply in replies if isinstance(reply, WeightAck)]
        return Sync(
            version=version,
            time_s=self._clock() - started,
            pause_s=sum(ack.pause_s for ack in acks) / len(acks) if acks else 0.0,
            acks=len(acks),
            quarantined=quarantined,
        )

    async def bring_up(self, worker: EngineWorker) -> None:
        """Give a new engine the current weights; raises ``WorkerLost`` if it does not take them."""
        while self._current is not None:
            version, weights = self._current
            reply = await self._load(worker, version, weights)
            if isinstance(reply, str):
                raise WorkerLost(f"{worker.name} did not take weights v{version}: {reply}")
            if self._current[0] == version:
                return

    async def _load(self, worker: EngineWorker, version: int, weights: Payload) -> WeightAck | str:
        """The acknowledgement, or why there is none."""
        try:
            ack = await asyncio.wait_for(worker.load_weights(weights), self._timeout)
        except TimeoutError:
            return f"no answer within weights.ack_timeout_s ({self._timeout:g} s)"
        except WorkerLost as error:
            return str(error)
        if ack.version != version:
            raise RunFailed(f"{worker.name} acknowledged v{ack.version} instead of v{version}")
        return ack
