"""The real engine: vLLM's AsyncLLM behind ``port.Engine``, token ids in and out.

Each completion carries entropies (``entropy``), the weight version that sampled each token (vLLM's own
spans) and the prefix-cache hits. New weights are loaded while requests run::

    load_weights: copy to shared memory, check crc32   requests run
                  pause (keep) ── load ── new label     no token is made; requests that arrive now wait
                  resume                               running requests go on, their next tokens carry the new version

Knows nothing of prompts, groups, Ray or the learner. Importing this module imports vllm.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from fr3e_async.rollout.busy import BusyMeter
from fr3e_async.rollout.entropy import EntropyProvider, provider_of
from fr3e_async.rollout.owner import claim_children
from fr3e_async.rollout.port import EngineDead, EngineSpec, EngineStats, SampleRequest, WeightsRefused
from fr3e_async.types import Completion, Finish, WeightAck, WeightBundle
from fr3e_async.weights import SharedBuffer, verify

GIB = 1 << 30
FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.ABORT, "error": Finish.ABORT}


def engine_args(spec: EngineSpec) -> AsyncEngineArgs:
    """vLLM's settings for a spec; ``spec.options`` win."""
    args: dict[str, Any] = {
        "model": spec.model,
        "revision": spec.revision or None,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": True,
        "load_format": "safetensors",  # other formats are pickles, which can carry code
        "generation_config": "vllm",  # the model folder's sampling defaults and end tokens must not creep in
        "dtype": spec.dtype,
        "enforce_eager": spec.eager,
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "kv_cache_memory_bytes": int(spec.kv_cache_gib * GIB) or None,
        "max_num_seqs": spec.max_running,
        "max_model_len": spec.max_model_len,
        "tensor_parallel_size": spec.tensor_parallel,
        "seed": spec.seed,
        "enable_prefix_caching": spec.prefix_caching,
        "disable_log_stats": not spec.verbose,
        "use_tqdm_on_load": spec.verbose,
        **provider_of(spec).engine_args(),
    }
    if spec.block_size:
        args["block_size"] = spec.block_size
    if current_platform.is_cpu() and spec.tensor_parallel == 1:
        # Else vLLM gives a CPU worker a process of its own besides the core's: 6 s of imports and 600 MB for nothing.
        args["distributed_executor_backend"] = UniProcExecutor
    return AsyncEngineArgs(**(args | spec.options))


class VllmEngine:
    """One engine. Build it with ``await VllmEngine.start(spec)``, in a process that has ``engine_environment(spec)``."""

    def __init__(self, llm: AsyncLLM, spec: EngineSpec) -> None:
        self._llm: AsyncLLM | None = llm
        self._spec = spec
        self._entropy: EntropyProvider = provider_of(spec)
        self._vocabulary = llm.model_config.get_vocab_size()
        self._version = spec.version
        self._broken = ""  # why nothing that this engine says can be used any more
        self._unfinished: set[asyncio.Future[WeightAck]] = set()  # updates whose caller may be gone
        self._updates = asyncio.Lock()  # one update at a time
        self._gate = asyncio.Lock()  # held while paused: requests that arrive wait and get the new version's cache salt
        self._meter = BusyMeter()
        self._serial = itertools.count()  # makes vLLM's request ids unique when a rollout is sampled again
        self._live: dict[str, str] = {}  # request id -> vLLM's
        self._tokens_generated = 0
        self._prompt_tokens = 0
        self._cached_prompt_tokens = 0

    @classmethod
    async def start(cls, spec: EngineSpec) -> VllmEngine:
        """Load the model. The event loop stays free. Raises ``UserError`` if this vLLM cannot give what ``spec.entropy`` needs."""
        provider = provider_of(spec)
        provider.check()
        claim_children()
        llm = await asyncio.to_thread(AsyncLLM.from_engine_args, engine_args(spec))
        engine = cls(llm, spec)
        try:
            if provider.confirmation and not all(await llm.collective_rpc(provider.confirmation)):
                raise RuntimeError("the entropy columns are not installed in the engine's sampler")
            await llm.update_weight_version(str(spec.version))
            await llm.get_supported_tasks()  # cached from here on, so that a request enters without a task switch
        except BaseException:
            await engine.close()
            raise
        return engine

    async def sample(self, request: SampleRequest) -> Completion:
        """See ``port.Engine.sample``."""
        self._require_alive()
        if len(request.context) >= self._spec.max_model_len:
            raise ValueError(
                f"request {request.request_id}: a context of {len(request.context)} tokens leaves no room in a model length "
                f"of {self._spec.max_model_len}"
            )
        self._meter.enter(time.time())
        try:
            async with self._gate:
                salt = f"v{self._version}"
            output = await self._run(request, salt)
        finally:
            self._meter.leave(time.time())
        self._require_alive()
        completion = self._completion(request, output)
        self._tokens_generated += len(completion)
        self._prompt_tokens += len(request.context)
        self._cached_prompt_tokens += completion.cached_tokens
        return completion

    async def generate(self, requests: Sequence[SampleRequest]) -> list[Completion]:
        """See ``port.Engine.generate``. If one fails the others are cancelled."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.sample(request)) for request in requests]
        return [task.result() for task in tasks]

    async def abort(self, request_id: str) -> None:
        """See ``port.Engine.abort``."""
        if inner := self._live.get(request_id):
            await self._alive().abort(inner)

    async def load_weights(self, bundle: WeightBundle) -> WeightAck:
        """See ``port.Engine.load_weights``. Once begun it is finished even if the caller is cancelled."""
        update = asyncio.ensure_future(self._update(bundle))
        self._unfinished.add(update)  # the loop itself holds tasks weakly
        update.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(update)

    async def stats(self) -> EngineStats:
        self._require_alive()
        return EngineStats(
            version=self._version,
            running=self._meter.running,
            tokens_generated=self._tokens_generated,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            pause_s=self._meter.pause_s,
            busy=self._meter.take(time.time()),
        )

    async def close(self) -> None:
        """End the engine's processes. Requests in flight fail. Doing it twice is harmless."""
        llm, self._llm = self._llm, None
        if llm is not None:
            self._broken = self._broken or "the engine is closed"
            if llm.output_handler is not None and self._meter.running == 0:
                llm.output_handler.cancel()  # else it takes the end of the core for a crash, and logs it
            await asyncio.to_thread(llm.shutdown)

    async def _run(self, request: SampleRequest, salt: str) -> RequestOutput:
        inner = f"{request.request_id}#{next(self._serial)}"
        self._live[request.request_id] = inner
        prompt = tokens_input(request.context.tolist(), cache_salt=salt)
        output: RequestOutput | None = None
        try:
            async for final in self._alive().generate(prompt, self._sampling_params(request), inner):
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

    def _sampling_params(self, request: SampleRequest) -> SamplingParams:
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            stop_token_ids=list(self._spec.end_token_ids),
            logprobs=self._entropy.asks(request, vocabulary=self._vocabulary),
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

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
            versions=_versions(sampled, len(tokens)),
            finish=FINISHES[str(sampled.finish_reason)],
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def _update(self, bundle: WeightBundle) -> WeightAck:
        async with self._updates:
            self._require_alive()
            try:
                buffer = await asyncio.to_thread(_share, bundle)
            except ValueError as error:
                raise WeightsRefused(str(error)) from error
            with buffer:
                async with self._gate:
                    return await self._switch(bundle, buffer)

    async def _switch(self, bundle: WeightBundle, buffer: SharedBuffer) -> WeightAck:
        """Pause, load, label, resume. Whatever goes wrong after the pause, requests are not left hanging."""
        llm = self._alive()
        started = time.time()
        self._meter.pause(started)
        try:
            await llm.pause_generation(mode="keep", clear_cache=self._spec.clear_cache_on_update)
            try:
                replies = await self._load(llm, bundle, buffer)
            finally:
                await llm.resume_generation()
        except EngineDeadError as error:
            raise EngineDead("the engine's core process died during a weight update") from error
        finally:
            now = time.time()
            self._meter.resume(now)
        return WeightAck(
            version=bundle.version,
            checksum=bundle.checksum,
            verified_tensors=min(reply["verified"] for reply in replies),
            pause_s=now - started,
            load_s=max(reply["load_s"] for reply in replies),
        )

    async def _load(self, llm: AsyncLLM, bundle: WeightBundle, buffer: SharedBuffer) -> list[dict[str, Any]]:
        """The workers' replies; the new version is in force when this returns."""
        shapes = [list(shape) for shape in bundle.shapes]
        args = (buffer.path, buffer.dtype, bundle.dtype, list(bundle.names), shapes)
        try:
            replies = await llm.collective_rpc("fr3e_load_weights", args=args)
        except EngineDeadError:
            raise
        except Exception as error:  # the type that vLLM gives to whatever a worker raised
            self._broken = f"weights v{bundle.version} were not loaded to the end: {error}"
            raise EngineDead(self._broken) from error
        refusals = [reply["refused"] for reply in replies if "refused" in reply]
        if refusals:
            raise WeightsRefused(f"weights v{bundle.version}: {refusals[0]}")  # every rank judges the same names alike
        await llm.update_weight_version(str(bundle.version))
        self._version = bundle.version
        return replies

    def _require_alive(self) -> None:
        if self._broken or self._alive().errored:
            raise EngineDead(self._broken or "the engine's core process is gone")

    def _alive(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineDead(self._broken)
        return self._llm


def _share(bundle: WeightBundle) -> SharedBuffer:
    """A shared copy of the bundle's buffer, checked after copying. Raises ``ValueError`` for a wrong checksum."""
    buffer = SharedBuffer(bundle.flat)
    try:
        verify(bundle, buffer.array)
    except ValueError:
        buffer.close()
        raise
    return buffer


def _versions(sampled: CompletionOutput, length: int) -> NDArray[np.int32]:
    """[length] the weight version of each token, from vLLM's spans."""
    versions = np.full(length, -1, dtype=np.int32)
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise RuntimeError(f"the engine gave no weight version for {int((versions < 0).sum())} of {length} tokens")
    return versions
