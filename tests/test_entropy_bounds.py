"""The interval that the likeliest tokens leave for the entropy: by hand, and against whole distributions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.entropy_bounds import entropy_interval, midpoint, nothing_known, rounding


def log(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities]))


def exact_entropy(logits: torch.Tensor) -> np.ndarray:
    logprobs = logits.double().log_softmax(-1)
    return torch.special.entr(logprobs.exp()).sum(-1).numpy()


def interval(logits: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """From float32 log-probs, as an engine gives them."""
    top = logits.log_softmax(-1).topk(count, dim=-1).values.numpy()
    return entropy_interval(top, vocabulary=logits.shape[-1])


@pytest.mark.parametrize(
    ("top", "vocabulary", "low", "high"),
    [
        # H_k = ½ ln 2 + ¼ ln 4; the rest of ¼ is one token as likely as the last, or two of ⅛: both are possible.
        ((0.5, 0.25), 4, math.log(2) + 0.25 * math.log(4), math.log(2) + 0.25 * math.log(8)),
        ((0.5,), 3, 0.5 * math.log(2) + 0.5 * math.log(2), 0.5 * math.log(2) + 0.5 * math.log(4)),
        ((0.25, 0.25, 0.25, 0.25), 4, math.log(4), math.log(4)),  # all of it
        ((0.25, 0.25, 0.25), 4, math.log(4), math.log(4)),  # the rest is one token, and as likely as the others
        ((1.0, 0.0), 50, 0.0, 0.0),  # a filter has removed everything else
        ((0.5, 0.5, 0.0), 50, math.log(2), math.log(2)),
    ],
)
def test_intervals_by_hand(top, vocabulary, low, high):
    found = entropy_interval(log(*top), vocabulary=vocabulary)
    assert found[0][0] == pytest.approx(low, abs=1e-5)
    assert found[1][0] == pytest.approx(high, abs=1e-5)
    assert found[0][0] <= low + 1e-12
    assert found[1][0] >= high - 1e-12


@st.composite
def distributions(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """[3, V] float32 logits from flat to a single peak, with ties and removed tokens, and a k up to V."""
    vocabulary = draw(st.integers(2, 3000))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(3, vocabulary, generator=generator) * draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 15.0]))
    logits[:, : draw(st.integers(0, min(vocabulary, 5)))] += draw(st.sampled_from([0.0, 3.0, 15.0, 40.0]))
    if draw(st.booleans()):
        logits = logits.round()  # ties
    if (kept := draw(st.integers(1, 2 * vocabulary))) < vocabulary:
        logits[:, torch.randperm(vocabulary, generator=generator)[kept:]] = -torch.inf
    return logits + draw(st.sampled_from([0.0, -100.0, 50.0])), draw(st.integers(1, vocabulary))


@settings(max_examples=300, deadline=None)
@given(distributions())
@example((torch.zeros(1, 7), 7))
@example((torch.zeros(1, 2), 1))
def test_the_interval_contains_the_entropy(case):
    logits, count = case
    exact = exact_entropy(logits)
    low, high = interval(logits, count)
    assert (low <= exact + 1e-12).all()
    assert (exact <= high + 1e-12).all()
    assert (low >= 0).all()
    assert (high <= math.log(logits.shape[-1]) + 1e-12).all()
    centre, half = (part.astype(np.float64) for part in midpoint(low, high))
    assert (centre - half <= low).all()
    assert (high <= centre + half).all()


@settings(max_examples=100, deadline=None)
@given(distributions())
def test_more_tokens_tell_more(case):
    logits, count = case
    low, high = interval(logits, max(1, count // 2))
    tighter_low, tighter_high = interval(logits, count)
    slack = 20 * rounding(logits.shape[-1]) * math.log(logits.shape[-1] + 1)
    assert (tighter_low >= low - slack).all()
    assert (tighter_high <= high + slack).all()


def test_all_tokens_tell_all():
    logits = torch.randn(20, 100) * 3
    low, high = interval(logits, 100)
    assert (high - low).max() < 1e-3


@pytest.mark.parametrize("tail", [-10.0, -14.0, -16.0, -16.9, -17.5])
def test_tiny_terms_that_a_float32_sum_loses_are_allowed_for(tail):
    """A peak over 152k tokens too small to change a float32 sum: its log-prob comes out up to 5e-4 nats too high."""
    logits = torch.full((1, 151_936), tail)
    logits[0, 0] = 0.0
    low, high = interval(logits, 20)
    exact = exact_entropy(logits)
    assert low[0] <= exact[0] <= high[0]


def test_a_typical_distribution_over_a_large_vocabulary_is_pinned_down():
    logits = torch.randn(50, 151_936, generator=torch.Generator().manual_seed(0))
    logits[:, :10] += 20.0
    low, high = interval(logits, 20)
    assert (high - low).max() < 0.05


def test_nothing_known_covers_everything():
    centre, half = nothing_known(3, vocabulary=1000)
    assert centre.dtype == half.dtype == np.float32
    assert (centre.astype(np.float64) - half <= 0).all()
    assert (centre.astype(np.float64) + half >= math.log(1000)).all()
    assert half.max() < math.log(1000) / 2 + 1e-5


@pytest.mark.parametrize("count", [0, 5])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} likeliest tokens of a vocabulary of 4"):
        entropy_interval(np.zeros((1, count)), vocabulary=4)
