"""Log-prob of one token and entropy of every row of logits, as cheaply as the device allows.

Entropy is one reduction, but over the whole vocabulary: with 152k tokens the memory that it touches is its price. On CPU
the rows are taken a few at a time, through two buffers that stay in a core's cache; a fresh [N, V] tensor costs several
times the arithmetic (page faults). On other devices a few kernels do many rows at once, and nothing is read back, so that
the host never waits.

Knows nothing of vLLM, requests or sampling; takes the logits of any distribution, filtered tokens at -inf.
"""

from __future__ import annotations

import torch

CPU_PIECE = 1 << 18  # logits: two float32 buffers of this size and the rows themselves stay in or near a core's L2 cache
DEVICE_PIECE = 1 << 26  # logits: bounds the extra memory to 256 MiB
MOST_NEGATIVE = -1e4  # stands in for -inf where a filter removed a token: its probability is 0, and 0 · -1e4 adds nothing


def logprob_and_entropy(logits: torch.Tensor, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """([N] log p(token), [N] H = -Σ p log p) in nats, float32, of p = softmax of [N, V] logits; -inf is allowed.

    ``token_ids`` [N] are valid indices of any integer type. The logits are not changed.
    """
    tokens = token_ids.long().view(-1, 1)
    return _through_the_cache(logits, tokens) if logits.device.type == "cpu" else _in_few_kernels(logits, tokens)


def _through_the_cache(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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


def _in_few_kernels(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Four passes over the vocabulary and one temporary: log_softmax, then exp, -p log p and sum in its place."""
    step = max(1, DEVICE_PIECE // logits.shape[-1])
    logprobs, entropies = [], []
    for x, picked in zip(logits.split(step), tokens.split(step), strict=True):
        full = x.log_softmax(-1, dtype=torch.float32)
        logprobs.append(full.gather(-1, picked))
        weights = full.exp_()
        entropies.append(torch.special.entr(weights, out=weights).sum(-1))
    return torch.cat(logprobs).view(-1), torch.cat(entropies)
