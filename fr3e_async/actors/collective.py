"""A learner whose weights go to the engines by vLLM's own transfer, in one group of rank 0 and all engines.

The group is made again whenever the set of engines changes: a group cannot lose a member and continue. The weights are sent
from where they are, so the learner must not train on before they are sent. An engine that starts alone takes them
from the object store, since a group of two would interrupt all others.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from ray.util.placement_group import PlacementGroup

from fr3e_async.actors.proxies import RayEngine, RayLearner
from fr3e_async.control.ports import TrainRow, WorkerLost
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.rollout.port import TransferMeeting
from fr3e_async.types import StepReport
from fr3e_async.weights.manifest import WeightAck, WeightBundle, WeightManifest

T = TypeVar("T")


class CollectiveLearner(RayLearner):
    """A learner whose ranks send weights to the engines by collectives (``weights.transfer=collective``)."""

    def __init__(
        self,
        ranks: Sequence[Any],
        placement_group: PlacementGroup,
        *,
        bucket_bytes: int,
        backend: str,
        timeout_s: float,
        nodes: Sequence[str] = (),
    ) -> None:
        """``backend``: "nccl" or "gloo". ``timeout_s``: for the group to meet, and for one hand-over."""
        super().__init__(ranks, placement_group, bucket_bytes=bucket_bytes, nodes=nodes)
        self._backend, self._timeout = backend, timeout_s
        self._members: list[str] = []
        self._layout: tuple[Any, ...] = ()
        self._sent = asyncio.Event()
        self._sent.set()

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        """The weights that were exported last are sent first: they are still where the update would change them."""
        await self._sent.wait()
        return await super().train(rows, version=version)

    async def export(self, version: int | None) -> WeightBundle:
        """The manifest alone; until ``hand_over`` has sent the weights, ``train`` waits."""
        manifest, *_ = await self._together([rank.describe.remote(version) for rank in self._ranks])
        self._sent.clear()
        return WeightBundle(manifest=manifest, buckets=(None,))

    def waits(self) -> bool:
        return not self._sent.is_set()

    async def stored(self) -> WeightBundle:
        """The weights as they are now, through the object store, under the version that the learner gives them."""
        return await super().export(None)

    async def hand_over(self, engines: Sequence[RayEngine], manifest: WeightManifest) -> list[WeightAck | str]:
        """For each engine its acknowledgement, or why there is none. Raises ``RunFailed`` if the learner itself is stuck."""
        try:
            outcomes: dict[str, WeightAck | str] = dict(await self._meet(engines, manifest))
            present = [engine for engine in engines if engine.name not in outcomes]
            if present:
                outcomes |= await self._send(present, manifest)
            return [outcomes[engine.name] for engine in engines]
        finally:
            self._sent.set()

    async def _meet(self, engines: Sequence[RayEngine], manifest: WeightManifest) -> dict[str, str]:
        """Have a group of rank 0 and the engines; returns those that could not join, and why."""
        layout = (manifest.dtype, manifest.names, manifest.shapes)
        absent: dict[str, str] = {}
        while present := [engine for engine in engines if engine.name not in absent]:
            names = [engine.name for engine in present]
            if (names, layout) == (self._members, self._layout):
                break
            self._members = []
            host, port = (await self._together([self._ranks[0].address.remote()]))[0]
            # Half the time, so that those who wait in vain for one that is gone can still say so.
            meeting = TransferMeeting(
                backend=self._backend, host=host, port=port, world=1 + len(present), timeout_s=self._timeout / 2
            )
            calls = [engine.join_transfer(meeting, rank=rank) for rank, engine in enumerate(present, start=1)]
            joined, opened = await asyncio.gather(
                self._each(present, calls), self._of_learner("open_transfer", meeting, manifest)
            )
            lost = {name: outcome for name, outcome in joined.items() if isinstance(outcome, str)}
            if not lost and opened:
                raise RunFailed(f"weights.transfer=collective: the learner could not meet the engines: {opened}")
            absent |= lost
            if not lost:
                self._members, self._layout = names, layout
        return absent

    async def _send(self, engines: Sequence[RayEngine], manifest: WeightManifest) -> dict[str, WeightAck | str]:
        outcomes, failure = await asyncio.gather(
            self._each(engines, [engine.receive_weights(manifest) for engine in engines]),
            self._of_learner("send"),
        )
        if failure or any(isinstance(outcome, str) for outcome in outcomes.values()):
            self._members = []  # what one member has missed the group cannot send again
        return outcomes

    async def _each(self, engines: Sequence[RayEngine], calls: Sequence[Awaitable[T]]) -> dict[str, T | str]:
        """Await each engine's call up to the time limit. Returns the result, or why there is none, for each."""

        async def one(call: Awaitable[T]) -> T | str:
            try:
                return await asyncio.wait_for(call, self._timeout)
            except TimeoutError:
                return f"no answer within weights.ack_timeout_s ({self._timeout:g} s)"
            except (WorkerLost, RunFailed) as error:
                return str(error)

        outcomes = await asyncio.gather(*(one(call) for call in calls))
        return {engine.name: outcome for engine, outcome in zip(engines, outcomes, strict=True)}

    async def _of_learner(self, method: str, *args: Any) -> str:
        """Empty, or what a rank raised: the loss of an engine shows there too.

        Raises ``LearnerLost`` if a rank is dead or no answer comes.
        """
        together = self._together([getattr(rank, method).remote(*args) for rank in self._ranks])
        try:
            await asyncio.wait_for(together, 2 * self._timeout)
        except TimeoutError:
            raise LearnerLost(
                f"the learner has been stuck in a hand-over of weights for {2 * self._timeout:g} s (weights.transfer=collective, "
                "weights.ack_timeout_s)"
            ) from None
        except LearnerLost:  # a rank is dead, and the group of ranks with it
            raise
        except RunFailed as error:
            return str(error)
        return ""
