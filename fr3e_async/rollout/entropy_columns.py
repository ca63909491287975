"""Exact entropy from inside the engine: vLLM's log-prob columns carry log-probs and entropies instead of alternatives.

vLLM returns the log-probs of the likeliest tokens, never the entropy of the whole vocabulary, and shipping the whole
distribution would cost far too much. So a request gets these, in the shapes of an ordinary answer::

    logprobs=1   [log π(token), H(π)]                                π is what is sampled, at temperature 1 without filters
    logprobs=3   [log π(token), H(π), log raw(token), H(raw)]        π after temperature, top-k and top-p; raw before

vLLM gives a step as many columns as its most demanding request asks for, and each request as many of them as it asked for. So
the host knows whether a step needs the second distribution without reading the device's tensors.

With ``LOGPROBS_MODE`` vLLM hands over logits and computes no log-probs itself: the columns replace that work. ``install`` replaces
two functions of one of vLLM's two samplers, in the worker process. ``check_interfaces`` refuses a vLLM whose functions look
different, before an engine is started. ``decode`` refuses an answer that was not made here.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fr3e_async.errors import UserError

ONE, BOTH = 2, 4  # columns of a request: of one distribution, or of the sampled and the raw one
LOGPROBS_MODE = "processed_logits"  # vLLM hands over what is sampled from: after temperature and filters, unnormalised
MARK = "fr3e_entropy_columns"  # attribute of the functions that were put in place
NO_RANK = -1  # stands where vLLM puts the token's rank, which is at least 1: tells the columns from an ordinary answer
TOLERANCE = 1e-3  # nats by which rounding may carry a value out of its range

FORWARD = ("self", "logits", "sampling_metadata", "predict_bonus_token", "logprobs_mode_override")
GATHER_LOGPROBS = ("logprobs", "num_logprobs", "token_ids")
SAMPLE = (
    "self", "logits", "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos", "input_ids", "expanded_local_pos",
    "seq_lens_upper_bound_np", "return_logprobs",
)  # fmt: skip
COMPUTE_TOPK_SCORES = (
    "logits", "num_logprobs", "sampled_token_ids", "cu_num_logits", "logprob_token_ids_state", "expanded_idx_mapping",
    "max_per_req_token_ids", "logits_mode",
)  # fmt: skip


def columns(
    logits: torch.Tensor, raw: torch.Tensor | None, token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the columns of [N, V] logits at [N] ids, as vLLM's log-prob tensors: ([N, c] ids, [N, c] values, [N] ranks).

    c is ``ONE``, or ``BOTH`` with raw logits. The ids after the first only have to be valid and distinct (vLLM's
    containers key by id).
    """
    values = list(logprob_and_entropy(logits, token_ids))
    if raw is not None:
        values.extend(logprob_and_entropy(raw, token_ids))
    offsets = torch.arange(len(values), device=token_ids.device)
    ids = (token_ids.view(-1, 1) + offsets) % logits.shape[-1]
    return ids.to(torch.int32), torch.stack(values, dim=1), torch.full_like(token_ids, NO_RANK, dtype=torch.int64).view(-1)


def decode(logprobs: Any, *, length: int, width: int, vocabulary: int) -> tuple[NDArray[np.float32], ...]:
    """Read the ``width`` columns of ``length`` tokens from vLLM's ``FlatLogprobs``, each in memory of its own.

    Raises ``RuntimeError`` if another sampler made them or if a value cannot be a log-prob or an entropy.
    """
    flat = np.asarray(logprobs.logprobs, dtype=np.float32)
    if flat.size != length * width:
        raise RuntimeError(f"the engine returned {flat.size} log-prob columns for {length} tokens, expected {length * width}")
    if not all(rank == NO_RANK for rank in logprobs.ranks[::width]):
        raise RuntimeError("the engine's log-probs are vLLM's own: the entropy columns are not at work in its sampler")
    table = flat.reshape(length, width)
    logs, entropies = table[:, 0::2], table[:, 1::2]
    most = math.log(vocabulary) + TOLERANCE
    if not ((logs <= TOLERANCE) & (entropies >= -TOLERANCE) & (entropies <= most)).all():  # false for a NaN, too
        raise RuntimeError(
            f"the engine's entropy columns hold what is no log-prob or no entropy of {vocabulary} tokens: "
            f"log-probs up to {logs.max():g}, entropies {entropies.min():g} to {entropies.max():g}"
        )
    return tuple(table[:, column].copy() for column in range(width))


def check_interfaces(*, second_runner: bool) -> None:
    """Raise ``UserError`` if the functions that ``install`` replaces are not those it was written for."""
    from vllm.v1.sample.sampler import Sampler

    check_signature("Sampler.forward", Sampler.forward, FORWARD)
    check_signature("Sampler.gather_logprobs", Sampler.gather_logprobs, GATHER_LOGPROBS)
    if second_runner:
        from vllm.v1.worker.gpu.sample import sampler

        check_signature("Sampler.sample", sampler.Sampler.sample, SAMPLE)
        check_signature("compute_topk_scores", sampler.compute_topk_scores, COMPUTE_TOPK_SCORES)


def install(*, second_runner: bool) -> None:
    """Replace the sampler's functions in this process: those of model runner V2 (``second_runner``), or of the first one.

    Doing it twice is harmless. Raises ``UserError`` as ``check_interfaces`` does.
    """
    check_interfaces(second_runner=second_runner)
    (_install_second if second_runner else _install_first)()


class RawLogits:
    """The logits of the step under way, before temperature and filters."""

    def __init__(self) -> None:
        self._logits: torch.Tensor | None = None
        self._buffer = torch.empty(0)

    def hold(self, logits: torch.Tensor) -> None:
        """Keep a reference to a tensor that nothing changes before ``take``."""
        self._logits = logits

    def copy(self, logits: torch.Tensor) -> None:
        """Keep the values of a tensor that will be changed, in a buffer that serves every step."""
        if self._buffer.numel() < logits.numel() or self._buffer.device != logits.device or self._buffer.dtype != logits.dtype:
            self._buffer = torch.empty_like(logits, memory_format=torch.contiguous_format).view(-1)
        self._logits = self._buffer[: logits.numel()].view(logits.shape).copy_(logits)

    def take(self) -> torch.Tensor:
        """Return the kept logits and forget them."""
        logits, self._logits = self._logits, None
        if logits is None:
            raise RuntimeError("the sampler asks for the raw distribution's columns but did not pass its logits by")
        return logits

    def drop(self) -> None:
        self._logits = None


def _install_first() -> None:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.sample.sampler import Sampler

    forward_of_vllm, gather_of_vllm = Sampler.forward, Sampler.gather_logprobs
    if hasattr(gather_of_vllm, MARK):
        return
    raw = RawLogits()

    @functools.wraps(forward_of_vllm)
    def forward(self: Any, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        if sampling_metadata.max_num_logprobs == BOTH - 1:
            # vLLM divides float32 logits by the temperature in place; of other types it makes a float32 copy itself.
            (raw.copy if logits.dtype == torch.float32 else raw.hold)(logits)
        try:
            return forward_of_vllm(self, logits, sampling_metadata, *args, **kwargs)
        finally:
            raw.drop()

    @functools.wraps(gather_of_vllm)
    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
        if num_logprobs + 1 not in (ONE, BOTH):
            return gather_of_vllm(logprobs, num_logprobs, token_ids)
        return LogprobsTensors(*columns(logprobs, raw.take() if num_logprobs + 1 == BOTH else None, token_ids))

    _put(Sampler, forward=forward, gather_logprobs=staticmethod(gather_logprobs))


def _install_second() -> None:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.sample import sampler

    sample_of_vllm, scores_of_vllm = sampler.Sampler.sample, sampler.compute_topk_scores
    if hasattr(scores_of_vllm, MARK):
        return
    raw = RawLogits()

    @functools.wraps(sample_of_vllm)
    def sample(*args: Any, **kwargs: Any) -> Any:
        asked = _arguments(sample_of_vllm, args, kwargs)
        if asked["return_logprobs"]:
            raw.hold(asked["logits"])  # this runner works on a copy of its own where there is anything to do
        return sample_of_vllm(*args, **kwargs)

    @functools.wraps(scores_of_vllm)
    def compute_topk_scores(*args: Any, **kwargs: Any) -> Any:
        asked = _arguments(scores_of_vllm, args, kwargs)
        width = asked["num_logprobs"] + 1
        if width not in (ONE, BOTH) or asked["max_per_req_token_ids"] or not asked["logits_mode"]:
            raw.drop()
            return scores_of_vllm(*args, **kwargs)
        ids, values, ranks = columns(asked["logits"], raw.take() if width == BOTH else None, asked["sampled_token_ids"])
        raw.drop()
        cu_num_logits = asked["cu_num_logits"]
        on_device = isinstance(cu_num_logits, torch.Tensor)
        return LogprobsTensors(
            logprob_token_ids=ids,
            logprobs=values,
            selected_token_ranks=ranks,
            cu_num_generated_tokens=None if on_device else cu_num_logits,
            cu_num_generated_tokens_tensor=cu_num_logits if on_device else None,
        )

    _put(sampler.Sampler, sample=sample)
    _put(sampler, compute_topk_scores=compute_topk_scores)


def _arguments(function: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call.arguments


def _put(owner: Any, **functions: Any) -> None:
    """Replace functions of a class or module by ours, each marked so that it is known as replaced."""
    for name, function in functions.items():
        setattr(getattr(function, "__func__", function), MARK, True)
        setattr(owner, name, function)


def check_signature(name: str, function: Callable, expected: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(function).parameters)
    if found != expected:
        raise UserError(
            f"this vLLM's {name} takes {', '.join(found)}; the entropy columns are written for {', '.join(expected)}. "
            "Install a supported release, or set engine.entropy=topk or engine.entropy=learner, which do without them."
        )


# ---- Log-prob of one token and entropy of every row of logits: plain torch ----
# Entropy is one reduction over the whole vocabulary, so its price is the memory that it touches. On CPU a few rows at a time go
# through two buffers that stay in a core's cache; a fresh [N, V] tensor costs several times the arithmetic (page faults). On other
# devices a few kernels do many rows at once, and nothing is read back, so the host never waits.

CPU_PIECE = 1 << 18  # logits: two float32 buffers of this size and the rows themselves stay in or near a core's L2 cache
DEVICE_PIECE = 1 << 26  # logits: bounds the extra memory to 256 MiB
MOST_NEGATIVE = -1e4  # stands in for -inf where a filter removed a token: its probability is 0, and 0 · -1e4 adds nothing


def logprob_and_entropy(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ([N] log p(token), [N] H = -Σ p log p) in nats, float32, of p = softmax of [N, V] logits; -inf is allowed.

    ``token_ids`` [N] are valid indices of any integer type. The logits are not changed.
    """
    tokens = token_ids.long().view(-1, 1)
    return through_the_cache(logits, tokens) if logits.device.type == "cpu" else in_few_kernels(logits, tokens)


def through_the_cache(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """With y = x - max x, S = Σ exp y and T = Σ y exp y:  log p(token) = y(token) - log S,  H = log S - T / S."""
    count, vocabulary = logits.shape
    step = max(1, min(CPU_PIECE // vocabulary, count))
    shifted, weights = torch.empty(2, step, vocabulary, dtype=torch.float32, device=logits.device)
    peak, total, moment = torch.empty(3, count, 1, dtype=torch.float32, device=logits.device)
    for start in range(0, count, step):
        piece = slice(start, min(start + step, count))
        x = logits[piece].float()
        y, e = shifted[: len(x)], weights[: len(x)]
        torch.amax(x, -1, keepdim=True, out=peak[piece])
        torch.sub(x, peak[piece], out=y).clamp_min_(MOST_NEGATIVE)
        torch.exp(y, out=e)
        torch.sum(e, -1, keepdim=True, out=total[piece])
        torch.sum(e.mul_(y), -1, keepdim=True, out=moment[piece])
    log_total = total.log()
    logprobs = logits.gather(-1, tokens).float() - peak - log_total
    return logprobs.view(-1), (log_total - moment / total).clamp_min_(0.0).view(-1)


def in_few_kernels(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Four passes over the vocabulary and one temporary: log_softmax, then exp, -p log p and sum in its place."""
    step = max(1, DEVICE_PIECE // logits.shape[-1])
    logprobs, entropies = [], []
    for x, picked in zip(logits.split(step), tokens.split(step), strict=True):
        full = x.log_softmax(-1, dtype=torch.float32)
        logprobs.append(full.gather(-1, picked))
        weights = full.exp_()
        entropies.append(torch.special.entr(weights, out=weights).sum(-1))
    return torch.cat(logprobs).view(-1), torch.cat(entropies)
