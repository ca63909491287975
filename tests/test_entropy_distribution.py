"""Log-prob and entropy of rows of logits, by both ways of computing them, against float64."""

from __future__ import annotations

import math

import pytest
import torch

from fr3e_async.rollout import entropy_columns as distribution
from fr3e_async.rollout.entropy_columns import columns, logprob_and_entropy

WAYS = {"cpu": distribution.through_the_cache, "device": distribution.in_few_kernels}


def exact(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = logits.double().log_softmax(-1)
    return logprobs.gather(-1, tokens.view(-1, 1)).view(-1), torch.special.entr(logprobs.exp()).sum(-1)


def worst(way: str, logits: torch.Tensor) -> float:
    tokens = logits.argmax(-1)
    tokens[1:] = logits.softmax(-1, dtype=torch.float32).multinomial(1).view(-1)[1:]
    before = logits.clone()
    found = WAYS[way](logits, tokens.view(-1, 1))
    assert torch.equal(logits, before)
    assert all(part.shape == tokens.shape and part.dtype == torch.float32 for part in found)
    return max((a - b).abs().max().item() for a, b in zip(found, exact(logits, tokens), strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("vocabulary", "rows", "tolerance"), [(2, 3, 2e-6), (128, 64, 4e-6), (4096, 300, 1e-5), (151_936, 5, 4e-5)]
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_agrees_with_float64(way, vocabulary, rows, tolerance, scale):
    assert worst(way, torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(1)) * scale + 20) < tolerance


@pytest.mark.parametrize("way", WAYS)
def test_removed_tokens_count_nothing(way):
    logits = torch.randn(6, 500)
    logits[:, 3:] = -torch.inf
    logits[0, 1:] = -torch.inf  # a single token is left
    assert worst(way, logits) < 1e-5
    _, entropies = WAYS[way](logits, torch.zeros(6, 1, dtype=torch.long))
    assert entropies[0] == 0
    assert entropies.max() <= math.log(3)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_logits_are_taken_at_their_value(way):
    assert worst(way, (torch.randn(40, 1000) * 5).bfloat16()) < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_pieces_make_no_difference(way, monkeypatch):
    logits = torch.randn(17, 300)
    whole = WAYS[way](logits, torch.arange(17).view(-1, 1))
    monkeypatch.setattr(distribution, "CPU_PIECE", 1000)
    monkeypatch.setattr(distribution, "DEVICE_PIECE", 1000)
    for a, b in zip(whole, WAYS[way](logits, torch.arange(17).view(-1, 1)), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_peak_over_many_tiny_terms_is_exact_on_cpu():
    """Where float32 log_softmax loses the terms and is 4e-4 nats off."""
    logits = torch.full((1, 151_936), -16.9)
    logits[0, 0] = 0.0
    assert worst("cpu", logits) < 1e-5


def test_any_integer_type_names_a_token():
    logits = torch.randn(4, 9)
    wanted = logprob_and_entropy(logits, torch.arange(4))
    for dtype in (torch.int32, torch.int64):
        found = logprob_and_entropy(logits, torch.arange(4, dtype=dtype))
        assert torch.equal(found[0], wanted[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_columns_agree_and_the_host_never_waits():
    raw = torch.randn(40, 151_936, generator=torch.Generator().manual_seed(0)).mul_(4).bfloat16().cuda()
    tokens = raw.argmax(-1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, values, _ = columns(raw.float() / 0.7, raw, tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = (*exact(raw.float() / 0.7, tokens), *exact(raw, tokens))
    assert (values.double() - torch.stack(wanted, dim=1)).abs().max() < 1e-4
