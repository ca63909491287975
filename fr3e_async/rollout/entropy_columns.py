"""Exact entropy from inside the engine: the sampler's log-prob columns carry [log π(token), H(π)] of the sampled distribution.

vLLM returns the log-probs of the likeliest tokens, never the entropy of the whole vocabulary, and shipping the whole
distribution is out of the question. So a request for ``COLUMNS - 1`` alternatives gets, in the same shapes and through
the same transport, the log-prob of the sampled token and the entropy of the distribution that it was drawn from:
after temperature, top-k and top-p (the engine must run with ``LOGPROBS_MODE``). For greedy requests both are of the
model's distribution at temperature 1.

``install`` replaces one function of each of vLLM's two samplers, in the worker process; ``check_interfaces`` refuses a
vLLM whose functions look different, before an engine is started. Knows nothing of weights, requests or versions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fr3e_async.errors import UserError

COLUMNS = 2  # log-prob and entropy, nats
LOGPROBS_MODE = "processed_logprobs"  # the engine argument with which vLLM's log-probs are of the sampled distribution
MARK = "fr3e_entropy_columns"  # attribute of the functions that were put in place
MOST_NEGATIVE = -1e4  # stands in for -inf where a filter removed a token: its probability is 0, and 0 · -1e4 adds nothing

GATHER_LOGPROBS = ("logprobs", "num_logprobs", "token_ids")
COMPUTE_TOPK_SCORES = (
    "logits", "num_logprobs", "sampled_token_ids", "cu_num_logits", "logprob_token_ids_state", "expanded_idx_mapping",
    "max_per_req_token_ids", "logits_mode",
)  # fmt: skip


def entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """[N] H = -Σ p log p in nats, of [N, V] log-probs; -inf is allowed and counts 0."""
    return -(logprobs.exp() * logprobs.clamp_min(MOST_NEGATIVE)).sum(-1)


def columns(logprobs: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """([N, 2] ids, [N, 2] values, [N] ranks) in the form of vLLM's log-prob tensors, from [N, V] log-probs and [N] ids.

    The second id only has to be valid and different from the first (vLLM's containers key by id); ranks are not used.
    """
    sampled = token_ids.view(-1, 1).long()
    values = torch.stack((logprobs.gather(-1, sampled).squeeze(-1), entropy(logprobs)), dim=1)
    ids = torch.cat((sampled, (sampled + 1) % logprobs.shape[-1]), dim=1)
    return ids.to(torch.int32), values, torch.zeros_like(sampled).view(-1)


def decode(logprobs: Any, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """([length] log-probs, [length] entropies) from vLLM's ``FlatLogprobs`` of a finished completion."""
    flat = np.asarray(logprobs.logprobs, dtype=np.float32)
    if flat.size != length * COLUMNS:
        raise RuntimeError(f"the engine returned {flat.size} log-prob columns for {length} tokens, expected {length * COLUMNS}")
    table = flat.reshape(length, COLUMNS)
    return table[:, 0].copy(), table[:, 1].copy()


def check_interfaces(*, second_runner: bool) -> None:
    """Raise ``UserError`` if the functions that ``install`` replaces are not those it was written for."""
    from vllm.v1.sample.sampler import Sampler

    _check_signature("Sampler.gather_logprobs", Sampler.gather_logprobs, GATHER_LOGPROBS)
    if second_runner:
        from vllm.v1.worker.gpu.sample import sampler

        _check_signature("compute_topk_scores", sampler.compute_topk_scores, COMPUTE_TOPK_SCORES)


def install(*, second_runner: bool) -> None:
    """Replace the functions in this process. ``second_runner``: also those of vLLM's model runner V2 (needs triton).

    Doing it twice is harmless.
    """
    check_interfaces(second_runner=second_runner)
    _install_first()
    if second_runner:
        _install_second()


def installed(*, second_runner: bool) -> bool:
    """True if the sampler of this process's model runner (of V2, if ``second_runner``) returns the columns."""
    if second_runner:
        from vllm.v1.worker.gpu.sample import sampler

        return hasattr(sampler.compute_topk_scores, MARK)
    from vllm.v1.sample.sampler import Sampler

    return hasattr(Sampler.gather_logprobs, MARK)


def _install_first() -> None:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.sample.sampler import Sampler

    original = Sampler.gather_logprobs
    if hasattr(original, MARK):
        return

    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
        if num_logprobs != COLUMNS - 1:
            return original(logprobs, num_logprobs, token_ids)
        return LogprobsTensors(*columns(logprobs, token_ids))

    setattr(gather_logprobs, MARK, True)
    Sampler.gather_logprobs = staticmethod(gather_logprobs)


def _install_second() -> None:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.sample import sampler

    original = sampler.compute_topk_scores
    if hasattr(original, MARK):
        return

    def compute_topk_scores(
        logits: torch.Tensor,
        num_logprobs: int,
        sampled_token_ids: torch.Tensor,
        cu_num_logits: Any = None,
        logprob_token_ids_state: Any = None,
        expanded_idx_mapping: Any = None,
        max_per_req_token_ids: int = 0,
        logits_mode: bool = False,
    ) -> Any:
        if num_logprobs != COLUMNS - 1 or max_per_req_token_ids or logits_mode:
            return original(
                logits, num_logprobs, sampled_token_ids, cu_num_logits, logprob_token_ids_state, expanded_idx_mapping,
                max_per_req_token_ids, logits_mode,
            )  # fmt: skip
        # ``logits`` are the processed ones here (LOGPROBS_MODE): divided by the temperature, filtered tokens at -inf.
        ids, values, ranks = columns(logits.log_softmax(-1, dtype=torch.float32), sampled_token_ids)
        on_device = isinstance(cu_num_logits, torch.Tensor)
        return LogprobsTensors(
            logprob_token_ids=ids,
            logprobs=values,
            selected_token_ranks=ranks,
            cu_num_generated_tokens=None if on_device else cu_num_logits,
            cu_num_generated_tokens_tensor=cu_num_logits if on_device else None,
        )

    setattr(compute_topk_scores, MARK, True)
    sampler.compute_topk_scores = compute_topk_scores


def _check_signature(name: str, function: Callable, expected: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(function).parameters)
    if found != expected:
        raise UserError(
            f"this vLLM's {name} takes {', '.join(found)}; the entropy columns are written for {', '.join(expected)}. "
            "Install a supported release (see fr3e_async.rollout.check_installed)."
        )
