"""Generalised advantages, length-adaptive λ and the value loss: numbers worked out by hand, and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.losses import policy_loss, value_loss
from fr3e_async.algorithm.values import gae, length_lambdas
from fr3e_async.config import LossConfig


def advantages(reward: float, values: list[float], λ: float) -> list[float]:
    found = gae(np.array([reward]), np.array(values), np.array([len(values)]), np.array([λ]))
    return [round(value, 12) for value in found]


@pytest.mark.parametrize(
    ("λ", "expected"),
    [
        (0.0, [0.2, -0.1, 0.4]),  # δ: 0.7 − 0.5, 0.6 − 0.7, 1 − 0.6
        (0.5, [0.25, 0.1, 0.4]),  # 0.4; −0.1 + 0.2; 0.2 + 0.05
        (1.0, [0.5, 0.3, 0.4]),  # 1 − V
    ],
)
def test_gae_by_hand(λ: float, expected: list[float]) -> None:
    assert advantages(1.0, [0.5, 0.7, 0.6], λ) == expected


def plain_gae(reward: float, values: list[float], λ: float) -> list[float]:
    """A_t = Σ_k λ^k δ_{t+k}, as its definition has it."""
    after = [*values[1:], reward]
    deltas = [b - a for a, b in zip(values, after, strict=True)]
    return [sum(λ ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


COMPLETION = st.tuples(st.floats(-1, 1), st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(COMPLETION, min_size=1, max_size=5))
def test_completions_side_by_side_are_completions_alone(completions: list[tuple[float, list[float], float]]) -> None:
    rewards, values, lambdas = zip(*completions, strict=True)
    lengths = np.array([len(row) for row in values])
    found = gae(np.array(rewards), np.concatenate(values), lengths, np.array(lambdas))
    expected = np.concatenate([plain_gae(*completion) for completion in completions])
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(COMPLETION)
def test_with_lambda_1_it_is_the_reward_less_the_value(completion: tuple[float, list[float], float]) -> None:
    reward, values, _ = completion
    np.testing.assert_allclose(advantages(reward, values, 1.0), reward - np.array(values), atol=1e-9)


def test_lambda_by_length() -> None:
    found = length_lambdas(np.array([10, 20, 40, 200, 2000]), 0.05)
    np.testing.assert_allclose(found, [0.0, 0.0, 0.5, 0.9, 0.99])


@pytest.mark.parametrize(
    ("value", "former", "clip", "loss", "slope", "stopped"),
    [
        (0.9, 0.5, 0.0, 0.005, -0.1, False),  # ½ · 0.1²
        (0.9, 0.5, 0.2, 0.045, 0.0, True),  # held at 0.7: ½ · 0.3²
        (0.6, 0.5, 0.2, 0.08, -0.4, False),  # within the bound
        (0.2, 0.5, 0.2, 0.32, -0.8, False),  # further from R than the bound: it may come back
    ],
)
def test_value_clipping(value: float, former: float, clip: float, loss: float, slope: float, stopped: bool) -> None:
    values = torch.tensor([value, 3.0], dtype=torch.float64, requires_grad=True)
    columns = {
        "former_T": torch.tensor([former, 0.0]),
        "returns_T": torch.tensor([1.0, torch.nan]),
        "mask_T": torch.tensor([True, False]),
    }
    found, where = value_loss(values, **columns, clip=clip, total_tokens=1)
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([slope, 0.0])
    assert where.tolist() == [stopped, False]


def test_imitation_adds_the_log_likelihood_of_what_was_right() -> None:
    """μ = 0.1 over the 2 tokens of right completions, of 4 in all: a weight of 0.1 · 4 / 2 beside a mean over 4."""
    logprobs = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    right = torch.tensor([0.2, 0.2, 0.0, 0.0])
    same = logprobs.detach()
    loss, sums = policy_loss(
        LossConfig(), logprobs_T=logprobs, prox_logprobs_T=same, behaviour_logprobs_T=same, advantages_T=torch.zeros(4),
        mask_T=torch.ones(4, dtype=torch.bool), total_tokens=4, imitation_T=right,
    )  # fmt: skip
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.1 * (1.0 + 2.0) / 2)
    assert sums.mean("loss") == pytest.approx(float(loss.detach()))
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.05, -0.05, 0.0, 0.0])
