"""A generator or explorer as a Ray actor: builds its engine in its own process and forwards to a ``RolloutWorker``."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import NoReturn, TypeVar

import ray

from fr3e_async.actors.watch import Watched
from fr3e_async.algorithm.anchors import AnchorRule, with_anchors
from fr3e_async.algorithm.answer_span import thoughts_by
from fr3e_async.control.ports import Delivery
from fr3e_async.files.process_logs import redirect_output
from fr3e_async.files.scratch import actor_scratch
from fr3e_async.rollout import Engine, EngineDead, EngineSpec, EngineStats, start_engine
from fr3e_async.rollout.door import tokenizer_digest
from fr3e_async.rollout.port import TransferMeeting
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.types import Draw, Prompt, RolloutBatch, RolloutId
from fr3e_async.weights.manifest import WeightAck, WeightBucket, WeightBundle, WeightManifest

T = TypeVar("T")


class EngineActor(Watched):
    """Async actor: many calls run at once on one engine. A dead engine core ends the process, so that Ray sees a corpse."""

    def __init__(self, spec: EngineSpec, rule: AnchorRule | None, seed: int, log_path: str) -> None:
        """``rule`` and ``seed``: how anchors are picked, the same in every engine; None: never. See ``RolloutWorker``."""
        redirect_output(log_path)
        actor_scratch()
        self._spec, self._rule, self._seed = spec, rule, seed
        self._rescored = rule is not None and rule.needs_entropies and spec.engine.entropy == "learner"
        self._engine: Engine | None = None
        self._rollout_worker: RolloutWorker | None = None
        self._tokenizer = ""

    async def start(self) -> None:
        """Load the model. Slow; called once, before anything else."""
        self.loop = asyncio.get_running_loop()
        self._engine = await start_engine(self._spec)
        from transformers import AutoTokenizer  # loaded by the engine anyway; its start is the quicker way to load it

        tokenizer = AutoTokenizer.from_pretrained(
            self._spec.model, revision=self._spec.revision or None, trust_remote_code=self._spec.trust_remote_code
        )
        spec = self._spec
        texts = TokenTexts(tokenizer, ends=spec.end_token_ids, thoughts=thoughts_by(spec.thoughts), stops=spec.stops)
        self._tokenizer = tokenizer_digest(tokenizer)
        self._rollout_worker = RolloutWorker(self._engine, texts, self._rule, seed=self._seed, seeded=self._spec.seeded)

    def tokenizer(self) -> str:
        return self._tokenizer

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, trunk: bool
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        """A streaming call: of rollouts that have ended first what the driver reads, then the batch, which it only refers to."""
        assert self._rollout_worker is not None
        async for batch in _each_or_die(self._rollout_worker.sample(prompts, ids, draw, trunk=trunk)):
            anchors = self._rollout_worker.anchors(batch) if trunk and not self._rescored else None
            yield Delivery.of(batch, anchors)
            yield batch if anchors is None else with_anchors(batch, anchors)

    async def branch(
        self, payload: RolloutBatch, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        """Stream the branches of one trunk as ``sample`` does: for each, the ``Delivery``, then its batch.

        Ray hands in the object behind the caller's reference; its arrays are read-only views of this node's object store.
        """
        assert self._rollout_worker is not None
        async for batch in _each_or_die(self._rollout_worker.branch(payload, trunk, ids, draw)):
            yield Delivery.of(batch)
            yield batch

    async def sample_together(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw
    ) -> tuple[Delivery, RolloutBatch]:
        """Sample all rollouts and return them as one batch when the last one has ended."""
        assert self._rollout_worker is not None
        batch = await _or_die(self._rollout_worker.sample_together(prompts, ids, draw))
        return Delivery.of(batch), batch

    async def load_weights(self, bundle: WeightBundle) -> WeightAck:
        """The bundle's buckets are object references; a node fetches each of them once for all its engines."""
        assert self._engine is not None
        return await _or_die(self._engine.load_weights(bundle, fetch=_fetch))

    async def join_transfer(self, meeting: TransferMeeting, rank: int) -> None:
        assert self._engine is not None
        await _or_die(self._engine.join_transfer(meeting, rank=rank))

    async def receive_weights(self, manifest: WeightManifest) -> WeightAck:
        assert self._engine is not None
        return await _or_die(self._engine.receive_weights(manifest))

    async def stats(self) -> EngineStats:
        assert self._engine is not None
        return await _or_die(self._engine.stats())

    def pulse(self) -> int:
        return 0 if self._engine is None else self._engine.pulse()

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()


async def _fetch(reference: ray.ObjectRef) -> WeightBucket:
    return await reference


async def _or_die(work: Awaitable[T]) -> T:
    """Await it; if the engine's core is dead, exit hard: Ray would otherwise retry on the same corpse."""
    try:
        return await work
    except EngineDead as error:
        _die(error)


async def _each_or_die(batches: AsyncIterator[T]) -> AsyncIterator[T]:
    """``_or_die`` for each item. The work behind it ends with it, however that ends."""
    try:
        async for batch in batches:
            yield batch
    except EngineDead as error:
        _die(error)
    finally:
        await batches.aclose()  # type: ignore[attr-defined]


def _die(error: EngineDead) -> NoReturn:
    print(f"engine core died: {error}", file=sys.stderr, flush=True)
    os._exit(1)
