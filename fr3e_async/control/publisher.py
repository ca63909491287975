"""Hand-over of weights: carries out what the fleet decides, engine by engine, and measures it.

Without ``direct`` there is no collective: engines are served side by side, and one that hangs holds nobody up beyond its
time limit. With it the learner sends to all engines at once, and to one that joins alone by way of the object store.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fr3e_async.clock import Clock
from fr3e_async.control.ports import DirectTransfer, EngineWorker, WorkerLost
from fr3e_async.errors import LearnerLost
from fr3e_async.weights.manifest import WeightAck, WeightBundle

Told = Callable[[str, WeightAck | str], None]  # engine, its acknowledgement or why there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """One hand-over: how long it took until all engines in service had it, and how long engines stood still."""

    version: int
    time_s: float
    acks: tuple[WeightAck, ...]  # of the engines that took it
    sent_bytes: int = 0
    skipped_bytes: int = 0

    @property
    def pause_s(self) -> float:
        """Seconds that an engine stood still to load the weights, mean over the engines."""
        return sum(ack.pause_s for ack in self.acks) / max(len(self.acks), 1)

    @property
    def metrics(self) -> dict[str, float]:
        """The hand-over's metrics by name, without ``time_s`` and ``pause_s``."""
        count = max(len(self.acks), 1)
        return {
            "time/pause_max_s": max((ack.pause_s for ack in self.acks), default=0.0),
            "time/copy_s": sum(ack.copy_s for ack in self.acks) / count,
            "weights/sent_bytes": float(self.sent_bytes),
            "weights/skipped_bytes": float(self.skipped_bytes),
            "weights/copied_bytes": sum(ack.copied_bytes for ack in self.acks) / count,
            "weights/verified_tensors": float(min((ack.verified_tensors for ack in self.acks), default=0)),
            "weights/probed_tensors": float(max((ack.probed_tensors for ack in self.acks), default=0)),
        }


class Publisher:
    """Holds the newest weights. Engines are always given these, also if an older version was asked for: nobody wants it any more."""

    def __init__(
        self, *, ack_timeout_s: float, clock: Clock, direct: DirectTransfer | None = None, export_timeout_s: float = 3600.0
    ) -> None:
        """``export_timeout_s``: for the learner to give the weights for one engine alone, after its current batch."""
        self._timeout, self._clock, self._direct, self.export_timeout = ack_timeout_s, clock, direct, export_timeout_s
        self._newest: WeightBundle | None = None
        self._offered_at = 0.0
        self._acks: dict[int, list[WeightAck]] = {}

    @property
    def version(self) -> int:
        """The version of the newest weights; -1 before the first ``offer``."""
        return -1 if self._newest is None else self._newest.version

    def offer(self, weights: WeightBundle) -> None:
        """Replace the held weights by these and start the clock of their hand-over."""
        self._newest, self._offered_at = weights, self._clock()

    async def hand_over(self, engines: Sequence[EngineWorker], told: Told, *, alone: bool = False) -> None:
        """Give these engines the newest weights; ``told`` is called with each one's reply as it arrives.

        ``alone``: outside the common hand-over, for engines that join.
        """
        if self._direct is not None and not alone:
            weights = self._weights()
            replies = await self._direct.hand_over(engines, weights.manifest)
            for engine, reply in zip(engines, replies, strict=True):
                self._heard(engine, reply, weights, told)
            return
        weights = self._weights()
        if self._direct is not None:
            try:
                async with asyncio.timeout(self.export_timeout):
                    weights = await self._direct.stored()
            except TimeoutError:
                raise LearnerLost(f"the learner gave no weights within {self.export_timeout:g} s") from None
        await asyncio.gather(*(self._load(engine, weights, told) for engine in engines))

    def sync(self, version: int) -> Sync:
        """Return what the hand-over of a version took. Call it once all engines in service have it or a newer one."""
        acks = tuple(ack for made in sorted(self._acks) if made <= version for ack in self._acks[made])
        self._acks = {made: acks for made, acks in self._acks.items() if made > version}
        weights = self._weights()
        return Sync(
            version=version,
            time_s=self._clock() - self._offered_at,
            acks=acks,
            sent_bytes=weights.sent_bytes,
            skipped_bytes=weights.skipped_bytes,
        )

    def _weights(self) -> WeightBundle:
        assert self._newest is not None, "nothing was offered yet"
        return self._newest

    async def _load(self, engine: EngineWorker, weights: WeightBundle, told: Told) -> None:
        reply: WeightAck | str
        try:
            async with asyncio.timeout(self._timeout):
                reply = await engine.load_weights(weights)
        except TimeoutError:
            reply = f"no answer within weights.ack_timeout_s ({self._timeout:g} s)"
        except WorkerLost as error:
            reply = str(error)
        self._heard(engine, reply, weights, told)

    def _heard(self, engine: EngineWorker, reply: WeightAck | str, weights: WeightBundle, told: Told) -> None:
        if isinstance(reply, WeightAck):
            if (reply.version, reply.checksum) == (weights.version, weights.checksum):
                self._acks.setdefault(reply.version, []).append(reply)
            else:
                reply = (
                    f"it acknowledged weights v{reply.version} with checksum {reply.checksum:#018x} instead of "
                    f"v{weights.version} with {weights.checksum:#018x}"
                )
        told(engine.name, reply)
