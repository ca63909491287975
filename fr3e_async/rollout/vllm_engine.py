"""The real engine: vLLM's AsyncLLM behind ``port.Engine``, token ids in and out.

Each completion carries entropies (``entropy``), the weight version that sampled each token (vLLM's own
spans) and the prefix-cache hits. New weights are loaded while requests run::

    load_weights: fetch, copy to shared memory, check    requests run
                  pause (keep) ── load, compare ── label  no token is made; requests that arrive now wait
                  resume                                 running requests continue, their next tokens carry the new version

The comparison must be inside the pause: the core alternates between steps and calls, and no token of an unproven model may leave.

Knows nothing of prompts, groups, Ray or the learner. Importing this module imports vllm.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from fr3e_async.clock import steady
from fr3e_async.rollout.entropy import EntropyProvider, provider_of
from fr3e_async.rollout.held_weights import HeldWeights, Receipt
from fr3e_async.rollout.install import claim_children
from fr3e_async.rollout.port import (
    BusyMeter,
    EngineDead,
    EngineSpec,
    EngineStats,
    Fetch,
    SampleRequest,
    TransferMeeting,
    WeightsRefused,
    in_hand,
)
from fr3e_async.rollout.transfer import engine_init_info, update_info
from fr3e_async.rollout.vllm_terms import CoreStats, check_request, core_stats, engine_args, sampling_params, versions_of
from fr3e_async.types import Completion, Finish
from fr3e_async.weights.bundle import tensor_bytes
from fr3e_async.weights.manifest import WeightAck, WeightBundle, WeightManifest

T = TypeVar("T")
Load = Callable[[AsyncLLM, WeightManifest], Awaitable[dict[str, Any]]]
LOOK_S = 0.5  # a waiting call checks this often whether the core has died
FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.ABORT, "error": Finish.ABORT}


class VllmEngine:
    """One engine. Build it with ``await VllmEngine.start(spec)``, in a process that has ``engine_environment(spec)``."""

    def __init__(self, llm: AsyncLLM, spec: EngineSpec) -> None:
        self.llm: AsyncLLM | None = llm
        self.spec = spec
        self._entropy: EntropyProvider = provider_of(spec)
        self._vocabulary = llm.model_config.get_vocab_size()
        self._version = spec.version
        self._broken = ""  # why this engine is unusable; empty while it works
        self._unfinished: set[asyncio.Future[Any]] = set()  # updates whose caller may be gone
        self._updates = asyncio.Lock()  # one update at a time
        self._held = HeldWeights()
        self._gate = asyncio.Lock()  # held while paused: requests that arrive wait and get the new version's cache salt
        self._meter = BusyMeter()
        self._core: CoreStats = core_stats(llm)
        self._entered, self._left = 0, 0  # requests
        self._serial = itertools.count()  # makes vLLM's request ids unique when a rollout is sampled again
        self._live: dict[str, str] = {}  # request id -> vLLM's
        self._tokens_generated = 0
        self._prompt_tokens = 0
        self._cached_prompt_tokens = 0

    @classmethod
    async def start(cls, spec: EngineSpec) -> VllmEngine:
        """Load the model. The event loop stays free. Raises ``UserError`` if this vLLM cannot give what ``engine.entropy`` needs."""
        provider = provider_of(spec)
        provider.check()
        claim_children()
        llm = await asyncio.to_thread(AsyncLLM.from_engine_args, engine_args(spec), stat_loggers=[CoreStats])
        engine = cls(llm, spec)
        try:
            if provider.worker_setup:
                await llm.collective_rpc(provider.worker_setup)
            await llm.update_weight_version(str(spec.version))
            await llm.get_supported_tasks()  # cached from here on, so that a request enters without a task switch
        except BaseException:
            await engine.close()
            raise
        return engine

    async def sample(self, request: SampleRequest) -> Completion:
        """See ``port.Engine.sample``."""
        self._require_alive()
        check_request(request, self.spec)
        self._meter.enter(steady())
        self._entered += 1
        try:
            async with self._gate:
                salt = f"load-{self._held.loads}"
            output = await self._run(request, salt)
        finally:
            self._meter.leave(steady())
            self._left += 1
        self._require_alive()
        completion = self._completion(request, output)
        self._tokens_generated += len(completion)
        self._prompt_tokens += len(request.context)
        self._cached_prompt_tokens += completion.cached_tokens
        return completion

    async def abort(self, request_id: str) -> None:
        """See ``port.Engine.abort``."""
        if inner := self._live.get(request_id):
            await self._alive().abort(inner)

    async def load_weights(self, bundle: WeightBundle, fetch: Fetch = in_hand) -> WeightAck:
        """See ``port.Engine.load_weights``. Once begun it is finished even if the caller is cancelled."""
        return await self._to_the_end(self._update(bundle, fetch))

    async def join_transfer(self, meeting: TransferMeeting, *, rank: int) -> None:
        """See ``port.Engine.join_transfer``."""
        await self._to_the_end(self._join(meeting, rank))

    async def receive_weights(self, manifest: WeightManifest) -> WeightAck:
        """See ``port.Engine.receive_weights``. Once begun it is finished even if the caller is cancelled."""
        return await self._to_the_end(self._receive(manifest))

    async def stats(self) -> EngineStats:
        self._require_alive()
        now, running = steady(), self._meter.running
        return EngineStats(
            version=self._version,
            running=running,
            tokens_generated=self._tokens_generated,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            pause_s=self._meter.pause_s,
            at=now,
            busy=self._meter.take(now),
            kv_used=self._core.kv_used if running else 0.0,  # an abort is no step of the core
            waiting=self._core.waiting if running else 0,
            preempted=self._core.preempted,
        )

    def pulse(self) -> int:
        """See ``port.Engine.pulse``."""
        return self._entered + self._left + self._core.steps + self._held.loads

    async def close(self) -> None:
        """End the engine's processes. Requests in flight fail. Doing it twice is harmless."""
        llm, self.llm = self.llm, None
        if llm is not None:
            self._broken = self._broken or "the engine is closed"
            if llm.output_handler is not None and self._meter.running == 0:
                llm.output_handler.cancel()  # otherwise it logs the core's end as a crash
            await asyncio.to_thread(llm.shutdown)
            self._held.close()

    async def _run(self, request: SampleRequest, salt: str) -> RequestOutput:
        inner = f"{request.request_id}#{next(self._serial)}"
        self._live[request.request_id] = inner
        prompt = tokens_input(request.context.tolist(), cache_salt=salt)
        params = sampling_params(request, self.spec, logprobs=self._entropy.asks(request, vocabulary=self._vocabulary))
        output: RequestOutput | None = None
        try:
            async for final in self._alive().generate(prompt, params, inner):
                output = final
        except EngineDeadError as error:
            raise EngineDead("the engine's core process is gone") from error
        except EngineGenerateError as error:
            if self._alive().errored:
                raise EngineDead("the engine's core process is gone") from error
            raise
        finally:
            if self._live.get(request.request_id) == inner:
                del self._live[request.request_id]
        if output is None:
            raise EngineDead(f"request {request.request_id} ended without an output")
        return output

    def _completion(self, request: SampleRequest, output: RequestOutput) -> Completion:
        sampled = output.outputs[0]
        tokens = np.asarray(sampled.token_ids, dtype=np.int32)
        measured = self._entropy.decode(sampled.logprobs, request=request, length=len(tokens), vocabulary=self._vocabulary)
        return Completion(
            tokens=tokens,
            logprobs=measured.logprobs,
            entropies=measured.entropies,
            entropy_errors=measured.entropy_errors,
            raw_logprobs=measured.raw_logprobs,
            raw_entropies=measured.raw_entropies,
            versions=versions_of(sampled, len(tokens)),
            finish=FINISHES[str(sampled.finish_reason)],
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish ``work`` even if the caller is cancelled. ``EngineDead`` once the core is dead: vLLM would wait for its answer forever."""

        async def unless_dead() -> T:
            task = asyncio.ensure_future(work)
            while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                if self.llm is None or self.llm.errored:
                    task.cancel()
            try:
                return task.result()
            except (EngineDeadError, asyncio.CancelledError) as error:
                raise EngineDead(self._broken or "the engine's core process died during a weight update") from error

        whole = asyncio.ensure_future(unless_dead())
        self._unfinished.add(whole)  # the event loop keeps only weak references to tasks
        whole.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(whole)

    async def _join(self, meeting: TransferMeeting, rank: int) -> None:
        async with self._updates:
            self._require_alive()
            await self._alive().shutdown_weight_transfer_engine()
            request = WeightTransferInitRequest(init_info=engine_init_info(meeting, rank=rank))
            await self._alive().init_weight_transfer_engine(request)

    async def _update(self, bundle: WeightBundle, fetch: Fetch) -> WeightAck:
        async with self._updates:
            self._require_alive()
            try:
                copied = await self._held.receive(bundle, fetch)
            except ValueError as error:
                raise WeightsRefused(str(error)) from error
            if self._held.same(bundle.manifest):  # model and prefix cache are already right
                reply: dict[str, Any] = {"exact": [], "probed": [], "load_s": 0.0, "verify_s": 0.0}
                pause_s = 0.0
                await self._label(self._alive(), bundle.version)
            else:
                async with self._gate:
                    reply, pause_s = await self._switch(bundle.manifest, self._load)
            return self._ack(bundle.manifest, reply, pause_s, copied, len(reply["exact"]) + len(reply["probed"]))

    async def _receive(self, manifest: WeightManifest) -> WeightAck:
        async with self._updates:
            self._require_alive()
            held = str(self._alive().model_config.dtype).removeprefix("torch.")
            if held != manifest.dtype:
                raise WeightsRefused(f"weights.transfer=collective: engine.dtype is {held}, learner.dtype is {manifest.dtype}")
            async with self._gate:
                reply, pause_s = await self._switch(manifest, self._take_over)
            size = sum(tensor_bytes(manifest, index) for index in range(len(manifest.names)))
            all_new = Receipt(copied_bytes=size, skipped_bytes=0, time_s=0.0)
            return self._ack(manifest, reply, pause_s, all_new, len(manifest.names))

    def _ack(self, manifest: WeightManifest, reply: dict[str, Any], pause_s: float, copied: Receipt, loaded: int) -> WeightAck:
        return WeightAck(
            version=manifest.version,
            checksum=self._held.checksum(manifest),
            verified_tensors=self._held.verified,
            probed_tensors=self._held.probed,
            loaded_tensors=loaded,
            copied_bytes=copied.copied_bytes,
            skipped_bytes=copied.skipped_bytes,
            copy_s=copied.time_s,
            load_s=reply["load_s"],
            verify_s=reply["verify_s"],
            pause_s=pause_s,
        )

    async def _take_over(self, llm: AsyncLLM, manifest: WeightManifest) -> dict[str, Any]:
        """Receive weights by vLLM's own transfer and prove them. The new version is in force when this returns."""
        shapes = [list(shape) for shape in manifest.shapes]
        started = time.perf_counter()
        async with self._or_broken(f"weights v{manifest.version} did not arrive to the end"):
            await llm.collective_rpc("fr3e_expect_weights")
            await llm.start_weight_update()
            await llm.update_weights(WeightTransferUpdateRequest(update_info=update_info(manifest)))
            await llm.finish_weight_update()
            loaded = time.perf_counter()
            replies = await llm.collective_rpc(
                "fr3e_prove_weights", args=(list(manifest.names), shapes, *self._held.thoroughness())
            )
            self._held.proven(manifest, replies)
        await self._label(llm, manifest.version)
        return {"load_s": loaded - started, "verify_s": time.perf_counter() - loaded}

    async def _switch(self, manifest: WeightManifest, load: Load) -> tuple[dict[str, Any], float]:
        """Pause, load, label, resume; (what ``load`` returns, seconds). Requests never hang, even after an error."""
        llm, started = self._alive(), steady()
        self._meter.pause(started)
        try:
            await llm.pause_generation(mode="keep", clear_cache=self.spec.engine.clear_cache_on_update)
            try:
                reply = await load(llm, manifest)
            finally:
                await llm.resume_generation()
        finally:
            now = steady()
            self._meter.resume(now)
        return reply, now - started

    async def _load(self, llm: AsyncLLM, manifest: WeightManifest) -> dict[str, Any]:
        """Load and prove the changed tensors; return the slowest worker's reply. The new version is in force when this returns."""
        call = (*self._held.load_call(manifest), *self._held.thoroughness())
        async with self._or_broken(f"weights v{manifest.version} were not loaded to the end"):
            replies = await llm.collective_rpc("fr3e_load_weights", args=call)
            refusals = [reply["refused"] for reply in replies if "refused" in reply]
            if not refusals:
                self._held.proven(manifest, replies)
        if refusals:
            raise WeightsRefused(f"weights v{manifest.version}: {refusals[0]}")  # every rank judges the same names alike
        await self._label(llm, manifest.version)
        return max(replies, key=lambda reply: reply["load_s"] + reply["verify_s"])

    @asynccontextmanager
    async def _or_broken(self, what: str) -> AsyncIterator[None]:
        """Turn any error inside into ``EngineDead``, now and for every later call: the model may be half-loaded."""
        try:
            yield
        except EngineDeadError:
            raise
        except Exception as error:  # the type that vLLM gives to whatever a worker raised
            self._broken = f"{what}: {error}"
            raise EngineDead(self._broken) from error

    async def _label(self, llm: AsyncLLM, version: int) -> None:
        """Label the tokens sampled from now on with this version."""
        await llm.update_weight_version(str(version))
        self._version = version

    def _require_alive(self) -> None:
        if self._broken or self._alive().errored:
            raise EngineDead(self._broken or "the engine's core process is gone")

    def _alive(self) -> AsyncLLM:
        if self.llm is None:
            raise EngineDead(self._broken)
        return self.llm
