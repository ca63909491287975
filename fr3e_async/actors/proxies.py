"""Ray actors behind the ports of the control loop: calls become awaits, Ray's deaths become ``WorkerLost``."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    TaskCancelledError,
)
from ray.util.placement_group import PlacementGroup, remove_placement_group

from fr3e_async.actors import watch
from fr3e_async.actors.learner import Pick
from fr3e_async.actors.verifier import Problem
from fr3e_async.algorithm.batching import balanced_shards, shard_trees
from fr3e_async.control.ports import Delivery, Payload, TaskLost, TrainRow, Trunks, WorkerLost
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.rollout.port import EngineStats, TransferMeeting
from fr3e_async.types import Anchor, Answer, Draw, Prompt, RolloutId, StepReport, Verdict
from fr3e_async.weights.bundle import joined
from fr3e_async.weights.manifest import WeightAck, WeightBundle, WeightManifest

T = TypeVar("T")

LOOK_S = 0.001  # between looks for the second of two items that come together
ASK_S = 10.0  # time for the ranks to say that they live, after one of them has raised

LOST = (RayActorError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, TaskCancelledError)


async def reach(name: str, call: Awaitable[T]) -> T:
    """Await a Ray call. If the wait is cancelled (a lease that ran out), so is the call, and an engine aborts its requests.

    Raises:
        WorkerLost: the actor is dead or cannot be reached.
        TaskLost: an argument is gone from the object store; nothing is wrong with the actor.
        RunFailed: the actor's code raised, or Ray cannot do what is asked.
    """
    try:
        return await call
    except asyncio.CancelledError:
        if isinstance(call, ray.ObjectRef):
            ray.cancel(call)
        raise
    except ObjectLostError as error:
        raise TaskLost(f"{name}: a payload is gone ({type(error).__name__})", gone=True) from error
    except LOST as error:
        raise WorkerLost(f"{name}: {type(error).__name__}", node=_with_its_node(error)) from error
    except RayError as error:
        raise RunFailed(f"{name}: {_last_line(error)}") from error


def _with_its_node(error: RayError) -> bool:
    """Ray says so in words only, and not before it knows; until then the actor is merely unavailable."""
    return isinstance(error, NodeDiedError | ActorUnavailableError) or "node has died" in str(error)


def _last_line(error: BaseException) -> str:
    """The line of a remote traceback that names the innermost error; a group of errors is drawn with bars around it."""
    lines = [line.strip(" |+-") for line in str(error).splitlines()]
    named = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Refused|Dead|Failed)\b.*: ", line)]
    return (named or [line for line in lines if line] or [type(error).__name__])[-1]


class RayEngine:
    """Port ``EngineWorker``. The caller owns the payloads that the actor yields or returns, so they outlive the actor."""

    def __init__(self, name: str, actor: Any, *, node: str = "", placement: PlacementGroup | None = None) -> None:
        """``placement``: the placement group of the actor's resources; removed with the actor."""
        self.name, self.actor, self.node = name, actor, node
        self._placement = placement

    def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        return self._deliveries(self._streaming("sample").remote(_bare(prompts), list(ids), draw, trunk))

    def branch(
        self, payload: Payload, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        return self._deliveries(self._streaming("branch").remote(payload, trunk, list(ids), draw))

    async def sample_together(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw) -> tuple[Delivery, Payload]:
        delivery, payload = self.actor.sample_together.options(num_returns=2).remote(_bare(prompts), list(ids), draw)
        return await reach(self.name, delivery), payload

    def _streaming(self, method: str) -> Any:
        return getattr(self.actor, method).options(num_returns="streaming")

    async def _deliveries(self, stream: ray.ObjectRefGenerator) -> AsyncIterator[tuple[Delivery, Payload]]:
        """What is read, and the reference of what is not: an ``await`` would bring the payload here. Left early, it cancels the call.

        Raises as ``reach`` does; what was yielded before outlives the actor, for this process owns it.
        """
        over = False
        try:
            async for item in stream:
                delivery = await reach(self.name, item)
                while not stream.next_ready():  # it follows at once
                    await asyncio.sleep(LOOK_S)
                payload = next(stream)
                if ray.wait([stream.completed()], timeout=0)[0]:  # it may have broken between the two: then this is its error
                    await reach(self.name, stream.completed())
                yield delivery, payload
            over = True
        finally:
            if not over:
                ray.cancel(stream)

    async def load_weights(self, weights: WeightBundle) -> WeightAck:
        """Load weights. An engine that refuses them counts as lost, because it would continue to serve an older version."""
        try:
            return await self.actor.load_weights.remote(weights)
        except RayError as error:
            raise WorkerLost(f"{self.name}: {_last_line(error)}") from error

    async def join_transfer(self, meeting: TransferMeeting, *, rank: int) -> None:
        await reach(self.name, self.actor.join_transfer.remote(meeting, rank))

    async def receive_weights(self, manifest: WeightManifest) -> WeightAck:
        return await reach(self.name, self.actor.receive_weights.remote(manifest))

    async def tokenizer(self) -> str:
        return await reach(self.name, self.actor.tokenizer.remote())

    async def stats(self) -> EngineStats:
        return await reach(self.name, self.actor.stats.remote())

    async def stacks(self) -> str:
        return await reach(self.name, watch.ask(self.actor, "stacks"))

    async def pulse(self) -> int:
        return await reach(self.name, watch.ask(self.actor, "pulse"))

    async def close(self) -> None:
        ray.kill(self.actor)
        if self._placement is not None:
            remove_placement_group(self._placement)


def _bare(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Without their columns, which may be large and are of no use to an engine."""
    return [replace(prompt, columns={}) if prompt.columns else prompt for prompt in prompts]


class RayVerifier:
    """Calls a verifier actor: the port ``VerifierWorker`` on Ray."""

    def __init__(self, name: str, actor: Any, *, node: str = "") -> None:
        self.name, self.actor, self.node = name, actor, node

    async def judge(self, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        problems = [Problem(p.reference, p.text, p.margins, p.columns) for p in prompts]
        return await reach(self.name, self.actor.judge.remote(payload, list(rows), problems))

    async def answers(self, payload: Payload, rows: Sequence[int], kept: Sequence[int]) -> list[Answer]:
        return await reach(self.name, self.actor.answers.remote(payload, list(rows), list(kept)))

    async def stacks(self) -> str:
        return await reach(self.name, watch.ask(self.actor, "stacks"))

    async def pulse(self) -> int:
        return await reach(self.name, watch.ask(self.actor, "pulse"))

    async def close(self) -> None:
        ray.kill(self.actor)


class RayLearner:
    """Port ``LearnerPort``: shards a batch over the ranks by group and load, and lets them act together."""

    def __init__(
        self, ranks: Sequence[Any], placement_group: PlacementGroup, *, bucket_bytes: int, nodes: Sequence[str] = ()
    ) -> None:
        """``bucket_bytes``: about how much of the weights is gathered, sent and fetched at once."""
        self._ranks, self._placement_group = list(ranks), placement_group
        self.nodes = nodes
        self._bucket_bytes = bucket_bytes
        self._exported: WeightBundle | None = None

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        shards = shard_trees([row.load for row in rows], len(self._ranks))
        calls = []
        for rank, shard in zip(self._ranks, shards, strict=True):
            payloads, picks = _picks([rows[i] for i in shard])
            calls.append(rank.train.remote(payloads, picks, version))
        reports = await self._together(calls)
        return reports[0]

    async def rescore(self, trunks: Sequence[Trunks]) -> list[tuple[tuple[Anchor, ...], Payload]]:
        shards = balanced_shards([its.length for its in trunks], len(self._ranks))
        answers = [
            rank.rescore.options(num_returns=2 + len(shard)).remote(  # 2: Ray gives no list of references for one return value
                [trunks[i].payload for i in shard], [trunks[i].ids for i in shard]
            )
            for rank, shard in zip(self._ranks, shards, strict=True)
        ]
        told = await self._together([first for first, *_ in answers])
        chosen: dict[int, tuple[tuple[Anchor, ...], Payload]] = {}
        for shard, anchors, (_, _, *payloads) in zip(shards, told, answers, strict=True):
            chosen |= dict(zip(shard, zip(anchors, payloads, strict=True), strict=True))
        return [chosen[i] for i in range(len(trunks))]

    async def distributions(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        found, *_ = await self._together([rank.distributions.remote(list(rows)) for rank in self._ranks])
        assert found is not None
        return found

    async def export(self, version: int | None) -> WeightBundle:
        """Export the weights. Unchanged buckets keep their objects, so that no node fetches them again.

        ``None``: under the version that the learner itself gives the weights.
        """
        held = self._exported
        told = held.manifest if held is not None else None
        streams = [rank.export.options(num_returns="streaming").remote(version, told, self._bucket_bytes) for rank in self._ranks]
        sent, *_ = await self._together([references(stream) for stream in streams])
        (manifest,) = await self._together([sent[-1]])
        self._exported = joined(manifest, sent[:-1], held)
        return self._exported

    async def save(self, folder: Path) -> None:
        await self._together([rank.save.remote(str(folder)) for rank in self._ranks])

    def waits(self) -> bool:
        """False: engines read the weights from the object store, so training need not wait for them."""
        return False

    async def save_model(self, folder: Path) -> None:
        await self._together([rank.save_model.remote(str(folder)) for rank in self._ranks])

    async def stacks(self, limit_s: float) -> list[str]:
        """Return each rank's thread stacks, or why there are none, within ``limit_s`` seconds."""

        async def of(rank: int) -> str:
            try:
                return await asyncio.wait_for(reach(f"learner rank {rank}", watch.ask(self._ranks[rank], "stacks")), limit_s)
            except TimeoutError:
                return f"does not answer within {limit_s:g} s"
            except (WorkerLost, TaskLost, RunFailed) as error:
                return str(error)

        return await asyncio.gather(*map(of, range(len(self._ranks))))

    async def pulse(self) -> int:
        """The sum over the ranks. Raises ``LearnerLost``; waits as long as a rank does not answer."""
        asked = (reach(f"learner rank {i}", watch.ask(rank, "pulse")) for i, rank in enumerate(self._ranks))
        try:
            return sum(await asyncio.gather(*asked))
        except (WorkerLost, TaskLost) as error:
            raise _lost(error) from error

    async def close(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        remove_placement_group(self._placement_group)

    async def _together(self, calls: Sequence[Awaitable[T]]) -> list[T]:
        """Await all ranks. The first death ends the wait, because the others would hang in a collective.

        Raises:
            LearnerLost: a rank is gone, or what it was sent.
            RunFailed: a rank raised, with all ranks alive.
        """
        try:
            return list(await asyncio.gather(*(reach(f"learner rank {i}", call) for i, call in enumerate(calls))))
        except (WorkerLost, TaskLost) as error:
            raise _lost(error) from error
        except RunFailed:
            # A rank may see its peer's connection end before Ray tells of the death.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.pulse(), ASK_S)
            raise


def _lost(error: WorkerLost | TaskLost) -> LearnerLost:
    return LearnerLost(str(error))


async def references(stream: ray.ObjectRefGenerator) -> list[ray.ObjectRef]:
    """References of all items of a stream, once it has ended. ``async for`` would fetch each item; only the last one is fetched here.

    Raises the error of a stream that failed, which is its last item.
    """
    await stream.completed()
    items = list(stream)
    await items[-1]
    return items


def _picks(rows: Sequence[TrainRow]) -> tuple[list[Payload], list[Pick]]:
    """The distinct payloads of a shard and where each row lies in them."""
    payloads, indices = _distinct([row.payload for row in rows])
    return payloads, [Pick(index, row.row, row.advantage, row.load.minibatch) for index, row in zip(indices, rows, strict=True)]


def _distinct(payloads: Sequence[Payload]) -> tuple[list[Payload], list[int]]:
    """Return the distinct payloads, and for each given one its index among them."""
    index: dict[Payload, int] = {}
    indices = [index.setdefault(payload, len(index)) for payload in payloads]
    return list(index), indices
