"""The objective against numbers worked out by hand, and against a plain-Python oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.losses import LossSums, policy_loss
from fr3e_async.config import LossConfig


def run(config: LossConfig, tokens: list[dict[str, float]], *, total: float | None = None, entropy: bool = True) -> Any:
    """Loss, sums and gradient with respect to each token's log-prob, in float64."""

    def column(name: str, default: float) -> torch.Tensor:
        return torch.tensor([token.get(name, default) for token in tokens], dtype=torch.float64)

    logprobs = column("logp", -1.0).requires_grad_()
    loss, sums = policy_loss(
        config,
        logprobs_T=logprobs,
        prox_logprobs_T=column("prox", -1.0),
        behaviour_logprobs_T=column("behaviour", -1.0),
        advantages_T=column("advantage", 1.0),
        mask_T=column("mask", 1.0).bool(),
        total_tokens=len(tokens) if total is None else total,
        entropies_T=column("entropy", 0.0) if entropy else None,
    )
    loss.backward()
    return float(loss.detach()), sums, logprobs.grad.tolist()


def by_ratio(ratio: float, advantage: float, weight: float = 1.0) -> dict[str, float]:
    prox = math.log(0.5)
    return {"prox": prox, "logp": prox + math.log(ratio), "behaviour": prox - math.log(weight), "advantage": advantage}


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (2.0, 1.0, -1.28, 0.0),  # above 1 + 0.28: cut, no gradient
        (0.5, 1.0, -0.5, -0.5),  # below 1 - 0.22 with A > 0: pulled back
        (0.5, -1.0, 0.78, 0.0),  # below 1 - 0.22 with A < 0: cut
        (2.0, -1.0, 2.0, 2.0),  # above with A < 0: pushed back
        (1.1, 0.0, 0.0, 0.0),
    ],
)
def test_clip_higher(ratio: float, advantage: float, expected: float, slope: float) -> None:
    loss, sums, grad = run(LossConfig(), [by_ratio(ratio, advantage)])
    assert loss == pytest.approx(expected)
    assert grad == pytest.approx([slope])
    assert float(sums.clip_low) == (ratio < 0.78 and advantage < 0)
    assert float(sums.clip_high) == (ratio > 1.28 and advantage > 0)
    assert float(sums.ratio) == float(sums.ratio_max) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [(2.0, -1.0, 2.0, 2.0), (5.0, -1.0, 3.0, 0.0), (5.0, -2.0, 6.0, 0.0), (5.0, 1.0, -1.28, 0.0)],
)
def test_dual_clip_bounds_negative_advantages_only(ratio: float, advantage: float, expected: float, slope: float) -> None:
    loss, sums, grad = run(LossConfig(dual_clip=3.0), [by_ratio(ratio, advantage)])
    assert loss == pytest.approx(expected)
    assert grad == pytest.approx([slope])
    assert float(sums.dual_clip) == (ratio > 3 and advantage < 0)


@pytest.mark.parametrize(
    ("importance", "weight", "expected"),
    [
        ("truncate", 1.5, 1.5),
        ("truncate", 5.0, 2.0),
        ("truncate", 0.25, 0.25),
        ("mask", 1.5, 1.5),
        ("mask", 5.0, 0.0),
        ("off", 5.0, 1.0),
    ],
)
def test_importance_weight_scales_loss_and_gradient(importance: str, weight: float, expected: float) -> None:
    loss, sums, grad = run(LossConfig(importance=importance), [by_ratio(1.0, 3.0, weight)])  # type: ignore[arg-type]
    assert loss == pytest.approx(-3.0 * expected)
    assert grad == pytest.approx([-3.0 * expected])
    assert float(sums.weight) == pytest.approx(expected)
    assert float(sums.weight_squares) == pytest.approx(expected**2)
    assert float(sums.capped) == (weight > 2)
    assert float(sums.mismatch) == pytest.approx(abs(math.log(weight)))


def test_kl_is_k3_against_the_proximal_policy_and_entropy_is_a_bonus() -> None:
    token = {**by_ratio(2.0, 0.0), "entropy": 0.7}
    k3 = 0.5 - 1 + math.log(2)  # π_prox/π_θ − 1 − log(π_prox/π_θ)
    loss, sums, grad = run(LossConfig(kl_coef=0.1), [token])
    assert loss == pytest.approx(0.1 * k3)
    assert grad == pytest.approx([0.1 * (1 - 0.5)])
    assert float(sums.kl) == pytest.approx(k3)
    loss, sums, _ = run(LossConfig(entropy_coef=0.1), [token])
    assert loss == pytest.approx(-0.07)
    assert float(sums.entropy) == pytest.approx(0.7)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_at_a_masked_token_has_no_effect(junk: float) -> None:
    real = by_ratio(0.9, -1.5, 1.2)
    config = LossConfig(kl_coef=0.1, dual_clip=3.0)
    masked = {"mask": 0.0, "behaviour": junk, "prox": junk, "advantage": junk, "entropy": junk}
    alone, sums_alone, grad_alone = run(config, [real], total=1)
    both, sums_both, grad_both = run(config, [real, masked], total=1)
    assert both == alone
    assert grad_both == [*grad_alone, 0.0]
    assert torch.equal(sums_both.additive(), sums_alone.additive())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        run(LossConfig(), [by_ratio(1, 1)], total=0)
    with pytest.raises(ValueError, match="entropy_coef"):
        run(LossConfig(entropy_coef=0.1), [by_ratio(1, 1)], entropy=False)


def test_no_tokens_at_all_give_zero_and_not_nan() -> None:
    loss, sums, grad = run(LossConfig(), [], total=5)
    assert (loss, grad, float(sums.tokens), float(sums.ratio_max)) == (0.0, [], 0.0, 0.0)


TOKEN = st.fixed_dictionaries(
    {
        "logp": st.floats(-6, 0),
        "prox": st.floats(-6, 0),
        "behaviour": st.floats(-6, 0),
        "advantage": st.floats(-3, 3),
        "entropy": st.floats(0, 5),
        "mask": st.sampled_from([0.0, 1.0]),
    }
)
CONFIG = st.builds(
    LossConfig,
    clip_low=st.floats(0.05, 0.9),
    clip_high=st.floats(0.05, 2),
    dual_clip=st.sampled_from([0.0, 1.5, 3.0]),
    importance=st.sampled_from(["truncate", "mask", "off"]),
    importance_cap=st.floats(0.5, 5),
    kl_coef=st.sampled_from([0.0, 0.05]),
    entropy_coef=st.sampled_from([0.0, 0.01]),
)


def oracle(config: LossConfig, token: dict[str, float]) -> float:
    """One token's loss by cases, written without min, max or clamp of tensors."""
    if not token["mask"]:
        return 0.0
    ratio, a = math.exp(token["logp"] - token["prox"]), token["advantage"]
    weight = math.exp(token["prox"] - token["behaviour"])
    if config.importance == "off":
        weight = 1.0
    elif weight > config.importance_cap:
        weight = config.importance_cap if config.importance == "truncate" else 0.0
    if a >= 0:
        gain = a * (1 + config.clip_high if ratio > 1 + config.clip_high else ratio)
    else:
        gain = a * (1 - config.clip_low if ratio < 1 - config.clip_low else ratio)
        if config.dual_clip and gain < config.dual_clip * a:
            gain = config.dual_clip * a
    inverse = math.exp(token["prox"] - token["logp"])
    return -weight * gain + config.kl_coef * (inverse - 1 - math.log(inverse)) - config.entropy_coef * token["entropy"]


@settings(max_examples=200, deadline=None)
@given(config=CONFIG, tokens=st.lists(TOKEN, min_size=1, max_size=12), cut=st.integers(0, 12))
def test_against_the_oracle_and_in_parts(config: LossConfig, tokens: list[dict[str, float]], cut: int) -> None:
    total = max(1.0, sum(token["mask"] for token in tokens))
    loss, sums, grad = run(config, tokens, total=total)
    assert loss == pytest.approx(sum(oracle(config, token) for token in tokens) / total, abs=1e-9)
    # Any cut into micro-batches gives the same loss, gradient and metrics.
    first, first_sums, first_grad = run(config, tokens[:cut], total=total)
    rest, rest_sums, rest_grad = run(config, tokens[cut:], total=total)
    assert first + rest == pytest.approx(loss, abs=1e-9)
    assert first_grad + rest_grad == pytest.approx(grad, abs=1e-12)
    joined = first_sums + rest_sums
    assert torch.allclose(joined.additive(), sums.additive(), atol=1e-9)
    assert torch.equal(joined.ratio_max, sums.ratio_max)


@settings(max_examples=100, deadline=None)
@given(config=CONFIG, token=TOKEN)
def test_gradient_is_the_slope_of_the_oracle(config: LossConfig, token: dict[str, float]) -> None:
    step = 1e-6
    up, down = ({**token, "logp": token["logp"] + sign * step} for sign in (1, -1))
    left, right = (oracle(config, token) - oracle(config, down)) / step, (oracle(config, up) - oracle(config, token)) / step
    grad = run(config, [token])[2][0]
    # At a kink any slope between the two sides is right.
    assert min(left, right) - 1e-2 * (1 + abs(left)) <= grad <= max(left, right) + 1e-2 * (1 + abs(right))


def test_with_prox_behaviour_both_corrections_are_one_ratio() -> None:
    token = {"logp": -1.0, "prox": -1.2, "behaviour": -1.2, "advantage": 1.0}
    loss, sums, _ = run(LossConfig(prox="behaviour"), [token])
    assert loss == pytest.approx(-math.exp(0.2))
    assert float(sums.weight) == 1.0
    assert float(sums.mismatch) == 0.0


def test_sums_survive_a_reduction() -> None:
    sums = run(LossConfig(), [by_ratio(1.3, 1.0, 1.7), by_ratio(0.6, -1.0)])[1]
    again = LossSums.from_parts(sums.additive(), sums.ratio_max)
    assert torch.equal(again.additive(), sums.additive())
    assert float(again.tokens) == 2.0
