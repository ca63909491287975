"""The interface of every engine: requests and completions as token ids, weights in, counters out.

Knows nothing of vLLM, Ray, groups or rewards. ``vllm_engine.VllmEngine`` is the real one; ``testing.engine.ScriptedEngine``
answers from a script in tests.

Example::

    completion = await engine.sample(SampleRequest(request_id="q1@0/0/3", context=ids, max_tokens=64))
    ack = await engine.load_weights(bundle)  # while requests run; their later tokens carry the new version
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import EngineConfig
from fr3e_async.types import Completion
from fr3e_async.weights.manifest import WeightAck, WeightBucket, WeightBundle, WeightManifest

Fetch = Callable[[Any], Awaitable[WeightBucket]]  # fetches the bucket behind a bundle's handle

LINGER_S = 0.01  # a finished rollout waits this long for others of its task, to share one message


async def in_hand(bucket: WeightBucket) -> WeightBucket:
    """Return the bucket itself: the ``Fetch`` for bundles that hold their buckets instead of handles."""
    return bucket


class EngineDead(RuntimeError):
    """The engine has failed for good; its process should end, so that a new one is started."""


class WeightsRefused(ValueError):
    """The bundle is damaged or does not fit the model. Nothing was changed: the engine serves the version it had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMeeting:
    """Rendezvous of the learner and its engines for transferring weights without the object store.

    *Example*: ``TransferMeeting(backend="nccl", host="10.0.0.4", port=29511, world=5, timeout_s=120.0)``.
    """

    backend: str  # "nccl" | "gloo"
    host: str
    port: int
    world: int  # the learner's rank 0 and every engine
    timeout_s: float  # for gloo to meet, and for each tensor; NCCL has none


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One continuation to draw. ``top_k`` 0 means off; ``temperature`` 0 means greedy.

    *Example*: ``SampleRequest(request_id="gsm8k/17@0/0/3#41", context=ids, max_tokens=512, temperature=0.8, top_p=0.95)``.

    The completion's log-probs and entropies are those of the distribution that was sampled: after temperature, top-k and
    top-p. For a greedy request, whose distribution is a point, they are those of the model's own distribution. The ``raw_*`` fields
    are of the model's own distribution, at temperature 1 without filters, or None where it is the same.
    (With ``EngineSpec.entropy`` other than "engine" it is not measured at all.)

    With a ``seed`` the draws depend on the seed alone: the same tokens whatever else the engine does, as far as its arithmetic gives
    the same distributions. Needs ``EngineSpec.seeded``.
    """

    request_id: str
    context: NDArray[np.int32]  # [C] prompt + prefix
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None  # 0 to 2^63 - 1; None: the engine's own random state

    def __post_init__(self) -> None:
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ValueError(f"request {self.request_id}: seed must be in [0, 2^63), got {self.seed}")
        if self.context.ndim != 1 or self.context.size == 0:
            raise ValueError(f"request {self.request_id}: context must be a non-empty vector, got shape {self.context.shape}")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.request_id}: max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"request {self.request_id}: temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} is no distribution"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything an engine needs to start.

    Example: ``EngineSpec(model="folder", end_token_ids=(2,), max_model_len=112, engine=EngineConfig(kv_cache_gib=0.1))``.
    """

    model: str  # folder or hub id
    end_token_ids: tuple[int, ...]  # sampling one of these ends a completion, as its last token
    max_model_len: int  # tokens, context + completion
    revision: str = ""  # of a hub id; empty: the default branch
    trust_remote_code: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)  # the settings of the section engine
    tensor_parallel: int = 1
    transfer: str = ""  # backend of vLLM's own weight transfer, "nccl" or "gloo"; empty: not set up
    seed: int = 0
    seeded: bool = False  # requests may carry seeds of their own
    stops: tuple[str, ...] = ()  # texts that end a completion, which keeps them; it needs the model's tokenizer then
    thoughts: tuple[str, ...] = ("<think>", "</think>")  # marks around a thought in responses, for choosing anchors
    version: int = 0  # of the weights in the model folder
    verbose: bool = False

    def __post_init__(self) -> None:
        if not self.end_token_ids:
            raise ValueError("engine spec: end_token_ids is empty; completions would never end by themselves")
        if self.max_model_len < 2 or self.tensor_parallel < 1:
            raise ValueError(
                f"engine spec: max_model_len={self.max_model_len} must be at least 2, tensor_parallel={self.tensor_parallel} at least 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """An engine's counters. Totals count from its start; ``busy`` covers the time since the previous call of ``stats``.

    *Example*: ``EngineStats(version=7, running=24, tokens_generated=91_204, prompt_tokens=18_112, cached_prompt_tokens=15_904,
    pause_s=0.8, at=60.0, busy=((50.0, 53.2), (53.3, 60.0)), kv_used=0.41)``.

    ``kv_used`` and ``waiting`` are as of the core's last step.
    """

    version: int  # weights that new tokens are sampled with
    running: int  # requests in the engine, waiting ones included
    tokens_generated: int  # total, of finished requests
    prompt_tokens: int  # total context tokens of finished requests
    cached_prompt_tokens: int  # total, of these: taken from the prefix cache
    pause_s: float  # total time paused for weight updates
    at: float  # when it answered, s, on its own steady clock; not comparable between processes
    busy: tuple[tuple[float, float], ...]  # (start, end) on that clock: at least one request, not paused
    kv_used: float = 0.0  # 0..1, part of the KV cache in use
    waiting: int = 0  # requests queued inside the engine
    preempted: int = 0  # total, of requests that lost their keys and values; a weight update that clears the cache counts, too


class Engine(Protocol):
    """One inference engine. All methods may run concurrently on one event loop."""

    async def sample(self, request: SampleRequest) -> Completion:
        """Draw one completion. Cancelling the call aborts the request.

        Raises ``EngineDead`` if the engine is lost, ``ValueError`` for a request that the model cannot take.
        """

    async def abort(self, request_id: str) -> None:
        """End a request now: its ``sample`` returns the tokens so far, with ``Finish.ABORT``. Unknown ids are ignored."""

    async def load_weights(self, bundle: WeightBundle, fetch: Fetch = in_hand) -> WeightAck:
        """Load the bundle and serve it from the next token on; requests in flight continue. Calls run one after another.

        Buckets with nothing new for this engine are not fetched, and tensors that it holds already are not loaded.

        Raises ``WeightsRefused`` if nothing was changed, ``EngineDead`` if the model may be half-loaded.
        """

    async def join_transfer(self, meeting: TransferMeeting, *, rank: int) -> None:
        """Leave the previous transfer group, and join this one as ``rank``. Needs ``EngineSpec.transfer``."""

    async def receive_weights(self, manifest: WeightManifest) -> WeightAck:
        """Load weights that the transfer group broadcasts; requests pause until all of them have arrived.

        Raises ``WeightsRefused`` before anything has changed, ``EngineDead`` afterwards.
        """

    async def stats(self) -> EngineStats: ...

    def pulse(self) -> int:
        """Return a number that grows with every request entered or finished, step made and load done. From any thread."""

    async def close(self) -> None: ...


class BusyMeter:
    """Collects (start, end) intervals in which at least one request was there and the engine was not paused.

    Example: ``enter(1.0); enter(2.0); leave(3.0); pause(4.0); resume(5.0); leave(6.0)`` gives (1, 4) and (5, 6).
    """

    def __init__(self) -> None:
        self.running = 0  # requests in the engine
        self.pause_s = 0.0  # total time paused
        self._intervals: list[tuple[float, float]] = []
        self._busy_since: float | None = None
        self._paused_since: float | None = None

    def enter(self, now: float) -> None:
        """Count a request that enters the engine at ``now`` (seconds)."""
        self.running += 1
        self._settle(now)

    def leave(self, now: float) -> None:
        """Count a request that leaves the engine, for whatever reason."""
        self.running -= 1
        self._settle(now)

    def pause(self, now: float) -> None:
        self._paused_since = now
        self._settle(now)

    def resume(self, now: float) -> None:
        if self._paused_since is not None:
            self.pause_s += now - self._paused_since
        self._paused_since = None
        self._settle(now)

    def take(self, now: float) -> tuple[tuple[float, float], ...]:
        """Return the intervals since the last call; an open one is cut at ``now`` and continues from there."""
        if self._busy_since is not None and now > self._busy_since:
            self._intervals.append((self._busy_since, now))
            self._busy_since = now
        taken, self._intervals = tuple(self._intervals), []
        return taken

    def _settle(self, now: float) -> None:
        busy = self.running > 0 and self._paused_since is None
        if busy and self._busy_since is None:
            self._busy_since = now
        elif not busy and self._busy_since is not None:
            if now > self._busy_since:
                self._intervals.append((self._busy_since, now))
            self._busy_since = None
