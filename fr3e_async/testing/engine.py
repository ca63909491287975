"""An engine without a model, for tests of everything around one: seeded tokens, chosen delays, chosen failures.

Same port and same promises as ``vllm_engine`` (versions per token, what ``EngineSpec.entropy`` can tell, refused bundles,
pauses, death); no vLLM, no torch model. Tokens depend on the context, the seed and the request id (of a seeded request: on its
own seed alone), never on timing; versions do depend on timing.

Example::

    engine = FakeEngine(spec, FakeBehaviour(token_s=0.001, fault=lambda id, attempt: Fault.ABORT if attempt == 1 else None))
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.entropy_bounds import nothing_known
from fr3e_async.clock import Clock, steady
from fr3e_async.rollout.entropy import one_distribution
from fr3e_async.rollout.held_weights import HeldWeights
from fr3e_async.rollout.loaded_weights import Proof
from fr3e_async.rollout.port import (
    BusyMeter,
    Engine,
    EngineDead,
    EngineSpec,
    EngineStats,
    Fetch,
    SampleRequest,
    TransferMeeting,
    WeightsRefused,
    in_hand,
)
from fr3e_async.types import Completion, Finish, RolloutBatch
from fr3e_async.weights.manifest import WeightAck, WeightBundle, WeightManifest

TOP_K_ERROR = 0.1  # nats by which entropies from the likeliest tokens may be off


class EngineFault(Enum):
    """What a request meets instead of a completion."""

    ABORT = "abort"  # comes back half-way with Finish.ABORT
    HANG = "hang"  # never comes back
    DEATH = "death"  # the engine dies, and every request in it with it


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeBehaviour:
    """How the fake behaves. ``fault(request_id, attempt)`` is asked for each request; attempts count from 1."""

    vocabulary: int = 64  # token ids are below this
    mean_length: float = 12.0  # tokens, geometric; the last one is an end token
    token_s: float = 0.0  # time of one token, the same for all requests in flight
    load_s: float = 0.0  # time of a weight update, during which no token is made
    fault: Callable[[str, int], EngineFault | None] = lambda request_id, attempt: None


async def all_of(engine: Engine, requests: Sequence[SampleRequest]) -> list[Completion]:
    """All completions of an engine, in the order of the requests; they run together, and end together if one fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.sample(request)) for request in requests]
    return [task.result() for task in tasks]


async def joined(batches: AsyncIterator[RolloutBatch]) -> RolloutBatch:
    """All rollouts of a task as one batch: by context, the longest first, and by id; one that came whole as it is."""
    parts = [batch async for batch in batches]
    if len(parts) == 1:
        return parts[0]
    rows = sorted(
        ((batch, row) for batch in parts for row in range(len(batch))),
        key=lambda place: (-len(place[0].context(place[1])), place[0].ids[place[1]]),
    )
    return RolloutBatch.build(
        ids=[batch.ids[row] for batch, row in rows],
        contexts=[batch.context(row) for batch, row in rows],
        prompt_lens=[batch.prompt_len(row) for batch, row in rows],
        context_of=range(len(rows)),
        completions=[batch.completion(row) for batch, row in rows],
        eligible=[batch.eligible[batch.span(row)] for batch, row in rows if batch.eligible is not None] or None,
    )


class FakeEngine:
    """See the module's docstring. ``sleep`` and ``clock`` can be replaced for a virtual clock."""

    def __init__(
        self,
        spec: EngineSpec,
        behaviour: FakeBehaviour | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock = steady,
    ) -> None:
        self._spec = spec
        self._behaviour = behaviour or FakeBehaviour()
        self._sleep = sleep
        self._clock = clock
        self._version = spec.version
        self._updates = asyncio.Lock()  # held during an update: tokens wait for it
        self._held = HeldWeights()
        self._death = asyncio.Event()
        self._aborts: dict[str, asyncio.Event] = {}
        self._attempts: Counter[str] = Counter()
        self._meter = BusyMeter()
        self._tokens_generated = 0
        self._prompt_tokens = 0
        self._finished = 0  # requests
        self.loaded: list[int] = []  # versions, in the order they were loaded

    @property
    def version(self) -> int:
        return self._version

    def die(self) -> None:
        """Let the engine die: calls in flight and all later ones raise ``EngineDead``."""
        self._death.set()

    async def sample(self, request: SampleRequest) -> Completion:
        """Make the scripted completion of a request, as ``port.Engine.sample`` describes."""
        self._require_alive()
        self._attempts[request.request_id] += 1
        fault = self._behaviour.fault(request.request_id, self._attempts[request.request_id])
        abort = self._aborts.setdefault(request.request_id, asyncio.Event())
        self._meter.enter(self._clock())
        try:
            completion = await self._draw(request, fault, abort)
        finally:
            self._meter.leave(self._clock())
            self._aborts.pop(request.request_id, None)
        self._finished += 1
        self._tokens_generated += len(completion)
        self._prompt_tokens += len(request.context)
        return completion

    async def abort(self, request_id: str) -> None:
        """End the request if it is in flight, as ``port.Engine.abort`` describes."""
        if event := self._aborts.get(request_id):
            event.set()

    async def load_weights(self, bundle: WeightBundle, fetch: Fetch = in_hand) -> WeightAck:
        """Receive and check the new weights, as ``port.Engine.load_weights`` describes."""
        self._require_alive()
        async with self._updates:
            try:
                copied = await self._held.receive(bundle, fetch)
            except ValueError as error:
                raise WeightsRefused(str(error)) from error
            started = self._clock()
            self._meter.pause(started)
            await self._sleep(self._behaviour.load_s)
            self._version = bundle.version
            self.loaded.append(bundle.version)
            changed = self._held.changed(bundle.manifest)
            self._held.loaded(bundle.manifest, [Proof(exact=frozenset(changed))])
            paused = self._clock() - started
            self._meter.resume(started + paused)
        self._require_alive()
        return WeightAck(
            version=bundle.version,
            checksum=self._held.checksum(bundle.manifest),
            verified_tensors=self._held.verified,
            loaded_tensors=len(changed),
            copied_bytes=copied.copied_bytes,
            skipped_bytes=copied.skipped_bytes,
            copy_s=copied.time_s,
            load_s=self._behaviour.load_s,
            verify_s=0.0,
            pause_s=paused,
        )

    async def join_transfer(self, meeting: TransferMeeting, *, place: int) -> None:
        raise NotImplementedError("the fake engine takes weights from bundles only")

    async def receive_weights(self, manifest: WeightManifest) -> WeightAck:
        raise NotImplementedError("the fake engine takes weights from bundles only")

    async def stats(self) -> EngineStats:
        self._require_alive()
        return EngineStats(
            version=self._version,
            running=self._meter.running,
            tokens_generated=self._tokens_generated,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=0,
            pause_s=self._meter.pause_s,
            at=(now := self._clock()),
            busy=self._meter.take(now),
        )

    def pulse(self) -> int:
        return self._attempts.total() + self._finished + len(self.loaded)

    async def close(self) -> None:
        self.die()
        self._held.close()

    async def _draw(self, request: SampleRequest, fault: EngineFault | None, abort: asyncio.Event) -> Completion:
        if fault is EngineFault.DEATH:
            self.die()
        if fault is EngineFault.HANG:
            await self._death.wait()
        tokens, finish = self._tokens(request)
        if fault is EngineFault.ABORT:
            tokens, finish = tokens[: len(tokens) // 2], Finish.ABORT
        versions: list[int] = []
        for _ in tokens:
            await self._sleep(self._behaviour.token_s)
            async with self._updates:
                self._require_alive()
            if abort.is_set():
                finish = Finish.ABORT
                break
            versions.append(self._version)
        self._require_alive()
        return self._completion(request, tokens[: len(versions)], versions, finish)

    def _tokens(self, request: SampleRequest) -> tuple[NDArray[np.int32], Finish]:
        """The request's whole completion: a geometric length, then tokens that are no end tokens, then an end token."""
        rng = self._rng(request)
        room = min(request.max_tokens, self._spec.max_model_len - len(request.context))
        if room < 1:
            raise ValueError(f"request {request.request_id}: {len(request.context)} tokens fill the model's context")
        length = int(rng.geometric(1 / self._behaviour.mean_length))
        plain = np.setdiff1d(np.arange(self._behaviour.vocabulary), self._spec.end_token_ids)
        tokens = rng.choice(plain, size=min(length, room)).astype(np.int32)
        if length > room:
            return tokens, Finish.LENGTH
        tokens[-1] = self._spec.end_token_ids[0]
        return tokens, Finish.STOP

    def _completion(self, request: SampleRequest, tokens: NDArray[np.int32], versions: list[int], finish: Finish) -> Completion:
        rng, size, most = self._rng(request), len(tokens), math.log(self._behaviour.vocabulary)
        logprobs, raw_logprobs = -rng.uniform(0.01, 2 * most, size=(2, size)).astype(np.float32)
        entropies, raw_entropies = rng.uniform(0.0, most, size=(2, size)).astype(np.float32)
        errors = np.zeros(size, dtype=np.float32)
        match self._spec.engine.entropy:
            case "topk":
                errors += TOP_K_ERROR
            case "learner":
                entropies, errors = nothing_known(size, vocabulary=self._behaviour.vocabulary)
        exact = self._spec.engine.entropy == "engine" and not one_distribution(request)
        return Completion(
            tokens=tokens,
            logprobs=logprobs,
            entropies=entropies,
            entropy_errors=errors,
            raw_logprobs=raw_logprobs if exact else None,
            raw_entropies=raw_entropies if exact else None,
            versions=np.asarray(versions, dtype=np.int32),
            finish=finish,
        )

    def _rng(self, request: SampleRequest) -> np.random.Generator:
        context = zlib.crc32(np.ascontiguousarray(request.context, dtype=np.int32).tobytes())
        if request.seed is not None:
            return np.random.default_rng([request.seed, context])
        return np.random.default_rng([self._spec.seed, zlib.crc32(request.request_id.encode()), context])

    def _require_alive(self) -> None:
        if self._death.is_set():
            raise EngineDead("the fake engine is dead")
