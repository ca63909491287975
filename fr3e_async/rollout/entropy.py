"""Measure token entropies: three providers behind one interface, chosen by ``engine.entropy``.

| provider | asks vLLM for | entropies | needs |
| --- | --- | --- | --- |
| ``engine`` | columns made in the sampler (``entropy_columns``) | exact, of both distributions | a vLLM with the known sampler |
| ``topk`` | the k likeliest tokens | certified interval | public interfaces only |
| ``learner`` | the sampled token's log-prob | [0, ln V], until the learner re-scores the tokens | public interfaces only |

A provider knows how to start the engine, what a request asks for and what its answer means; nothing of the engine itself,
of weights or of versions. Importing this module does not import vllm.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.entropy_bounds import entropy_interval, midpoint, nothing_known
from fr3e_async.rollout import entropy_columns
from fr3e_async.rollout.entropy_columns import BOTH, LOGPROBS_MODE, ONE
from fr3e_async.rollout.port import EngineSpec, SampleRequest

EXTENSION = "fr3e_async.rollout.worker_extension.WorkerExtension"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEntropy:
    """An engine's measurements for the tokens of a completion; the fields are those of ``types.Completion``."""

    logprobs: NDArray[np.float32]  # [L] nats, of the distribution that was sampled
    entropies: NDArray[np.float32]  # [L] nats
    entropy_errors: NDArray[np.float32]  # [L] nats
    raw_logprobs: NDArray[np.float32] | None = None  # [L] nats
    raw_entropies: NDArray[np.float32] | None = None  # [L] nats


class EntropyProvider:
    """How an engine obtains token entropies. ``vocabulary`` is the number of tokens that the model can sample."""

    worker_setup = ""  # method that every worker must run before the first request; empty: none

    def check(self) -> None:
        """Raise ``UserError`` if the installed vLLM cannot serve this provider. May import vllm."""

    def engine_args(self) -> dict[str, Any]:
        """Return vLLM's engine arguments for this provider."""
        return {"logprobs_mode": "processed_logprobs", "worker_extension_cls": EXTENSION}

    def asks(self, request: SampleRequest, *, vocabulary: int) -> int:
        """Return the ``logprobs`` for the request's sampling parameters."""
        raise NotImplementedError

    def decode(self, logprobs: Any, *, request: SampleRequest, length: int, vocabulary: int) -> MeasuredEntropy:
        """Turn the ``FlatLogprobs`` of a finished completion of ``length`` tokens into log-probs and entropies.

        Raises ``RuntimeError`` if they are not what the request asked for.
        """
        raise NotImplementedError


def provider_of(spec: EngineSpec) -> EntropyProvider:
    """Make the provider that a spec names."""
    match spec.engine.entropy:
        case "engine":
            return ColumnsProvider()
        case "topk":
            return TopKProvider(spec.engine.entropy_top_k)
        case "learner":
            return LearnerProvider()


def one_distribution(request: SampleRequest) -> bool:
    """Whether the reported distribution is the model's own: at temperature 1 without filters, and for a greedy request.

    (A greedy request samples from a point mass, so the engine reports the model's distribution.)
    """
    return request.temperature == 0 or (request.temperature == 1 and request.top_p == 1 and request.top_k == 0)


class ColumnsProvider(EntropyProvider):
    """Exact entropies, from the columns that our functions put into vLLM's sampler."""

    worker_setup = "fr3e_install_columns"

    def check(self) -> None:
        from vllm.triton_utils import HAS_TRITON

        entropy_columns.check_interfaces(second_runner=HAS_TRITON)

    def engine_args(self) -> dict[str, Any]:
        return super().engine_args() | {"logprobs_mode": LOGPROBS_MODE}

    def asks(self, request: SampleRequest, *, vocabulary: int) -> int:
        return self._width(request) - 1

    def decode(self, logprobs: Any, *, request: SampleRequest, length: int, vocabulary: int) -> MeasuredEntropy:
        found = entropy_columns.decode(logprobs, length=length, width=self._width(request), vocabulary=vocabulary)
        raw = dict(zip(("raw_logprobs", "raw_entropies"), found[2:], strict=False))
        return MeasuredEntropy(logprobs=found[0], entropies=found[1], entropy_errors=np.zeros(length, dtype=np.float32), **raw)

    def _width(self, request: SampleRequest) -> int:
        return ONE if one_distribution(request) else BOTH


class TopKProvider(EntropyProvider):
    """Certified intervals, from the log-probs of the k likeliest tokens of the sampled distribution."""

    def __init__(self, count: int) -> None:
        self._count = count  # k; never more than the vocabulary are asked for

    def engine_args(self) -> dict[str, Any]:
        return super().engine_args() | {"max_logprobs": self._count}

    def asks(self, request: SampleRequest, *, vocabulary: int) -> int:
        return min(self._count, vocabulary)

    def decode(self, logprobs: Any, *, request: SampleRequest, length: int, vocabulary: int) -> MeasuredEntropy:
        table = _table(logprobs, length, 1 + self.asks(request, vocabulary=vocabulary))
        centres, errors = midpoint(*entropy_interval(table[:, 1:], vocabulary=vocabulary))
        return MeasuredEntropy(logprobs=table[:, 0].copy(), entropies=centres, entropy_errors=errors)


class LearnerProvider(EntropyProvider):
    """Only the sampled token's log-prob comes from the engine: entropies lie in [0, ln V] until the learner re-scores the tokens."""

    def asks(self, request: SampleRequest, *, vocabulary: int) -> int:
        return 0

    def decode(self, logprobs: Any, *, request: SampleRequest, length: int, vocabulary: int) -> MeasuredEntropy:
        centres, errors = nothing_known(length, vocabulary=vocabulary)
        return MeasuredEntropy(logprobs=_table(logprobs, length, 1)[:, 0].copy(), entropies=centres, entropy_errors=errors)


def _table(logprobs: Any, length: int, width: int) -> NDArray[np.float32]:
    """Read an ordinary answer of vLLM, [length, width]: the sampled token's log-prob, then those of the likeliest tokens."""
    flat = np.asarray(logprobs.logprobs, dtype=np.float32)
    if flat.size != length * width:
        raise RuntimeError(f"the engine returned {flat.size} log-probs for {length} tokens, expected {length * width}")
    return flat.reshape(length, width)
