"""The objective and its sums against numbers worked out by hand, and against a plain-Python oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fr3e_async.algorithm.batching import AGE_BUCKETS, FIRST_AGES, age_bucket
from fr3e_async.algorithm.losses import SUMS, LossSums, policy_loss
from fr3e_async.config import LossConfig
from fr3e_async.errors import ConfigError

Token = dict[str, float]


def run(
    config: LossConfig,
    tokens: list[Token],
    *,
    total: float | None = None,
    completions: int | None = None,
    without: tuple[str, ...] = (),
) -> Any:
    """Loss, sums and gradient with respect to each token's log-prob, in float64. ``without``: columns given as None."""

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
        total_completions=len({token.get("sequence", 0) for token in tokens}) if completions is None else completions,
        entropies_T=None if "entropy" in without else column("entropy", 0.0),
        ages_T=None if "age" in without else column("age", 0).long(),
        sequences_T=None if "sequence" in without else column("sequence", 0).long(),
        reference_logprobs_T=None if "reference" in without else column("reference", -1.0),
    )
    loss.backward()
    return float(loss.detach()), sums, logprobs.grad.tolist()


def by_ratio(ratio: float, advantage: float, weight: float = 1.0) -> Token:
    """A token with these π_θ/π_prox and π_prox/π_behaviour."""
    prox = math.log(0.5)
    return {"prox": prox, "logp": prox + math.log(ratio), "behaviour": prox - math.log(weight), "advantage": advantage}


def by_weight(*weights: float, sequence: int = 0, advantage: float = 1.0) -> list[Token]:
    """The tokens of one completion, at π_θ = π_prox."""
    return [{**by_ratio(1.0, advantage, weight), "sequence": sequence} for weight in weights]


def totals(sums: LossSums) -> dict[str, float]:
    return {name: sums.total(name) for name in SUMS}


# ---- each switch, by hand ----


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (2.0, 1.0, -1.28, 0.0),  # above 1 + 0.28: cut, no gradient
        (0.5, 1.0, -0.5, -0.5),  # below 1 - 0.22 with A > 0: pulled back
        (0.5, -1.0, 0.78, 0.0),  # below 1 - 0.22 with A < 0: cut
        (2.0, -1.0, 2.0, 2.0),  # above with A < 0: pushed back
        (0.75, -1.0, 0.78, 0.0),  # cut below 1 - 0.22 already, not only below 1 - 0.28
        (1.25, 1.0, -1.25, -1.25),  # not yet cut above 1 + 0.22
        (1.1, 0.0, 0.0, 0.0),
    ],
)
def test_clip_higher(ratio: float, advantage: float, expected: float, slope: float) -> None:
    loss, sums, grad = run(LossConfig(), [by_ratio(ratio, advantage)])
    assert loss == pytest.approx(expected)
    assert grad == pytest.approx([slope])
    assert sums.total("clip_low") == (ratio < 0.78 and advantage < 0)
    assert sums.total("clip_high") == (ratio > 1.28 and advantage > 0)
    assert sums.total("dual_clip") == 0
    assert sums.total("ratio") == sums.largest_ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [(2.0, -1.0, 2.0, 2.0), (5.0, -1.0, 3.0, 0.0), (5.0, -2.0, 6.0, 0.0), (5.0, 1.0, -1.28, 0.0)],
)
def test_dual_clip_bounds_negative_advantages_only(ratio: float, advantage: float, expected: float, slope: float) -> None:
    loss, sums, grad = run(LossConfig(dual_clip=3.0), [by_ratio(ratio, advantage)])
    assert loss == pytest.approx(expected)
    assert grad == pytest.approx([slope])
    assert sums.total("dual_clip") == (ratio > 3 and advantage < 0)


@pytest.mark.parametrize(
    ("importance", "floor", "weight", "expected", "capped"),
    [
        ("truncate", 0.0, 1.5, 1.5, False),
        ("truncate", 0.0, 5.0, 2.0, True),
        ("truncate", 0.0, 0.25, 0.25, False),
        ("mask", 0.0, 1.5, 1.5, False),
        ("mask", 0.0, 5.0, 0.0, True),
        ("mask", 0.0, 0.25, 0.25, False),  # one-sided
        ("mask", 0.5, 0.25, 0.0, True),  # double-sided
        ("mask", 0.5, 0.500001, 0.500001, False),
        ("mask", 0.5, 0.499999, 0.0, True),
        ("mask", 0.5, 1.999999, 1.999999, False),
        ("mask", 0.5, 2.000001, 0.0, True),
        ("off", 0.0, 5.0, 1.0, True),
    ],
)
def test_importance_weight_scales_loss_and_gradient(
    importance: Any, floor: float, weight: float, expected: float, capped: bool
) -> None:
    config = LossConfig(importance=importance, importance_floor=floor)
    loss, sums, grad = run(config, [by_ratio(1.0, 3.0, weight)])
    assert loss == pytest.approx(-3.0 * expected)
    assert grad == pytest.approx([-3.0 * expected])
    assert sums.total("weight") == pytest.approx(expected)
    assert sums.total("weight_squares") == pytest.approx(expected**2)
    assert sums.total("capped") == capped
    assert sums.total("mismatch") == pytest.approx(abs(math.log(weight)))
    assert sums.total("mismatch_signed") == pytest.approx(math.log(weight))
    assert sums.total("behaviour_kl") == pytest.approx(weight - 1 - math.log(weight))


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ((1.5 - 1e-9,), True),
        ((1.5 + 1e-9,), False),
        ((1 / 1.5 + 1e-9,), True),
        ((1 / 1.5 - 1e-9,), False),
        ((4.0, 0.25), True),  # geometric mean 1, though each token is far off
        ((1.8, 1.8, 1.0), True),  # 1.8^(2/3) = 1.48
        ((1.9, 1.9, 1.0), False),  # 1.9^(2/3) = 1.53; the arithmetic mean would be 1.6 against 1.53
        ((4.0, 0.5), True),  # √2 = 1.41; the arithmetic mean is 2.25
        ((1.6,) * 4, False),  # 1.6, however long; their product would be 6.6
        ((1.4,) * 4, True),  # 1.4, however long; their product would be 3.8
    ],
)
@pytest.mark.parametrize("importance", ["truncate", "mask", "off"])
def test_sequence_mask_judges_the_geometric_mean(importance: Any, weights: tuple[float, ...], kept: bool) -> None:
    config = LossConfig(importance=importance, sequence_mask=1.5)
    tokens = by_weight(*weights)
    loss, sums, grad = run(config, tokens)
    if kept:
        plain_loss, plain_sums, plain_grad = run(replace(config, sequence_mask=0.0), tokens)
        assert (loss, grad, totals(sums)) == (plain_loss, plain_grad, totals(plain_sums))
    else:
        assert (loss, set(grad)) == (0.0, {0.0})
        assert sums.total("weight") == sums.total("weight_squares") == 0
    assert sums.total("sequence_masked") == (0 if kept else len(weights))
    assert sums.total("tokens") == len(weights)


@pytest.mark.parametrize(("prox", "behaviour"), [(0.0, -math.log(2)), (-math.log(2), 0.0)])  # a weight of exactly 2 and 1/2
def test_a_border_belongs_to_what_is_kept(prox: float, behaviour: float) -> None:
    token = {"logp": prox, "prox": prox, "behaviour": behaviour}
    for config in (LossConfig(importance="mask", importance_floor=0.5), LossConfig(importance="off", sequence_mask=2.0)):
        sums = run(config, [token])[1]
        assert sums.total("weight") > 0
        assert sums.total("capped") == sums.total("sequence_masked") == 0


def test_sequence_mask_leaves_the_other_completions_and_the_denominator_alone() -> None:
    good, bad = by_weight(1.25, 0.8, sequence=1, advantage=2.0), by_weight(3.0, 2.0, sequence=0, advantage=2.0)
    loss, sums, grad = run(LossConfig(sequence_mask=1.5), [bad[0], good[0], bad[1], good[1]])
    assert loss == pytest.approx(-(1.25 + 0.8) * 2 / 4)  # over all 4 tokens
    assert grad == pytest.approx([0, -0.625, 0, -0.4])
    assert (sums.total("tokens"), sums.total("sequence_masked"), sums.total("weight")) == pytest.approx((4, 2, 2.05))
    # Taken for one completion they are all left out: the geometric mean is 6^(1/4) = 1.57.
    assert run(LossConfig(sequence_mask=1.5), [*bad, *good], without=("sequence",))[2] == [0, 0, 0, 0]


def test_sequence_mask_counts_trainable_tokens_only() -> None:
    tokens = [*by_weight(1.9, 1.9), {**by_weight(1.0)[0], "mask": 0.0, "behaviour": math.nan}]
    assert run(LossConfig(sequence_mask=1.6), tokens)[1].total("sequence_masked") == 2


def test_kl_and_entropy_terms_have_no_weight() -> None:
    token = {**by_ratio(2.0, 1.0, 9.0), "entropy": 0.7}
    config = LossConfig(importance="mask", sequence_mask=1.5, kl_coef=0.1, entropy_coef=0.2)
    assert run(config, [token])[0] == pytest.approx(0.1 * (0.5 - 1 + math.log(2)) - 0.2 * 0.7)


def test_kl_is_k3_against_the_proximal_policy_and_entropy_is_a_bonus() -> None:
    token = {**by_ratio(2.0, 0.0), "entropy": 0.7}
    k3 = 0.5 - 1 + math.log(2)  # π_prox/π_θ − 1 − log(π_prox/π_θ)
    loss, sums, grad = run(LossConfig(kl_coef=0.1), [token])
    assert loss == pytest.approx(0.1 * k3)
    assert grad == pytest.approx([0.1 * (1 - 0.5)])
    assert sums.total("kl") == pytest.approx(k3)
    loss, sums, _ = run(LossConfig(entropy_coef=0.1), [token])
    assert loss == pytest.approx(-0.07)
    assert sums.total("entropy") == pytest.approx(0.7)


def test_with_prox_behaviour_both_corrections_are_one_ratio() -> None:
    token = {"logp": -1.0, "prox": -1.2, "behaviour": -1.2, "advantage": 1.0}
    loss, sums, _ = run(LossConfig(prox="behaviour"), [token])
    assert loss == pytest.approx(-math.exp(0.2))
    assert sums.total("weight") == 1.0
    assert sums.total("mismatch") == 0.0


def test_the_worked_example_of_the_documentation() -> None:
    rows = [  # completion, age, advantage, p_behaviour, p_prox, p_current
        (0, 0, 1, 0.5, 0.5, 0.5), (0, 0, 1, 0.5, 0.4, 0.6), (0, 1, 1, 0.2, 0.5, 0.5),
        (1, 1, -1, 0.6, 0.36, 0.36), (1, 2, -1, 0.5, 0.2, 0.2),
        (2, 0, -1, 0.5, 0.5, 0.25),
    ]  # fmt: skip
    tokens = [
        {"sequence": s, "age": age, "advantage": a, "behaviour": math.log(b), "prox": math.log(p), "logp": math.log(now)}
        for s, age, a, b, p, now in rows
    ]
    config = LossConfig(importance="mask", importance_floor=0.5, sequence_mask=1.5)
    loss, sums, grad = run(config, tokens)
    assert loss == pytest.approx((-1 - 1.024 + 0 + 0 + 0 + 0.78) / 6, abs=1e-12)
    assert loss == pytest.approx(-0.2073, abs=5e-5)
    assert grad == pytest.approx([-1 / 6, 0, 0, 0, 0, 0], abs=1e-12)
    assert sums.total("weight") ** 2 / (6 * sums.total("weight_squares")) == pytest.approx(0.495, abs=5e-4)
    assert (sums.total("capped"), sums.total("sequence_masked")) == (2, 2)
    assert (sums.total("clip_low"), sums.total("clip_high")) == (1, 1)
    fresh, older = sums.bucket(0), sums.bucket(1)
    assert [sums.bucket(i).total("tokens") for i in range(5)] == [3, 2, 1, 0, 0]
    assert fresh.mean("mismatch") == pytest.approx(0.074, abs=5e-4)
    assert older.mean("mismatch") == pytest.approx(0.714, abs=5e-4)
    assert sums.mean("mismatch") == pytest.approx(0.428, abs=5e-4)
    # The other choices for the same tokens.
    assert run(LossConfig(), tokens)[0] == pytest.approx((-1 - 1.024 - 2 + 0.6 + 0.4 + 0.78) / 6)
    assert run(LossConfig(importance="off"), tokens)[0] == pytest.approx((-1 - 1.28 - 1 + 1 + 1 + 0.78) / 6)


# ---- sums ----


def test_buckets_hold_the_ages_that_their_names_say() -> None:
    ages, expected = [0, 1, 2, 3, 4, 7, 8, 100], [0, 1, 2, 2, 3, 3, 4, 4]
    assert [age_bucket(age) for age in ages] == expected
    assert age_bucket(torch.tensor(ages)).tolist() == age_bucket(np.array(ages)).tolist() == expected
    assert age_bucket(torch.tensor(ages)).dtype == torch.int64
    lasts = [first - 1 for first in FIRST_AGES[1:]]
    names = [str(a) if a == b else f"{a}_{b}" for a, b in zip(FIRST_AGES, lasts, strict=False)]
    assert (*names, f"{FIRST_AGES[-1]}_up") == AGE_BUCKETS


def test_sums_are_kept_apart_by_age() -> None:
    tokens = [
        {**by_ratio(1.5, 1.0), "age": 0, "entropy": 0.25},
        {**by_ratio(0.5, -1.0, 4.0), "age": 3, "entropy": 0.5},
        {**by_ratio(1.0, 2.0, 0.5), "age": 2},
        {**by_ratio(7.0, -1.0), "age": 50},
        {**by_ratio(90.0, 1.0), "age": 1, "mask": 0.0},
    ]
    sums = run(LossConfig(dual_clip=3.0), tokens)[1]
    assert sums.by_age.dtype == sums.ratio_max.dtype == torch.float64
    assert sums.by_age.shape == (len(SUMS), len(AGE_BUCKETS))
    rows = dict(zip(SUMS, sums.by_age.tolist(), strict=True))
    assert rows["tokens"] == [1, 0, 2, 0, 1]
    assert rows["loss"] == pytest.approx([-1.28, 0, 2 * 0.78 - 0.5 * 2, 0, 3.0])
    assert (rows["clip_high"], rows["clip_low"], rows["dual_clip"]) == ([1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1])
    assert rows["ratio"] == pytest.approx([1.5, 0, 1.5, 0, 7.0])
    assert rows["weight"] == pytest.approx([1, 0, 2.5, 0, 1])
    assert rows["weight_squares"] == pytest.approx([1, 0, 4.25, 0, 1])
    assert rows["capped"] == [0, 0, 1, 0, 0]
    assert rows["mismatch"] == pytest.approx([0, 0, math.log(4) + math.log(2), 0, 0])
    assert rows["mismatch_signed"] == pytest.approx([0, 0, math.log(4) - math.log(2), 0, 0])
    assert rows["behaviour_kl"] == pytest.approx([0, 0, 3 - math.log(4) - 0.5 + math.log(2), 0, 0])
    assert rows["entropy"] == [0.25, 0, 0.5, 0, 0]
    assert sums.ratio_max.tolist() == pytest.approx([1.5, 0, 1.0, 0, 7.0])
    assert sums.largest_ratio == pytest.approx(7.0)
    assert totals(sums.bucket(2)) == {name: values[2] for name, values in rows.items()}
    assert sums.bucket(2).largest_ratio == pytest.approx(1.0)
    assert sums.total("tokens") == 4
    assert not sums.by_age.requires_grad


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_of_any_width_will_do(dtype: torch.dtype) -> None:
    column, number = torch.zeros(3), torch.tensor([0, 1, 2], dtype=dtype)
    sums = policy_loss(
        LossConfig(sequence_mask=2.0), logprobs_T=column, prox_logprobs_T=column, behaviour_logprobs_T=torch.tensor([0.0, 1.0, 0.0]),
        advantages_T=column, mask_T=torch.ones(3, dtype=torch.bool), total_tokens=3, ages_T=number, sequences_T=number,
    )[1]  # fmt: skip
    assert sums.by_age[SUMS.index("sequence_masked")].tolist() == [0, 1, 0, 0, 0]


def test_a_token_that_truncation_makes_harmless_keeps_the_sums_finite_in_single_precision() -> None:
    columns = {"logprobs_T": [-1.0], "prox_logprobs_T": [-1.0], "behaviour_logprobs_T": [-200.0], "advantages_T": [1.0]}
    tensors = {name: torch.tensor(value) for name, value in columns.items()}
    loss, sums = policy_loss(LossConfig(), **tensors, mask_T=torch.tensor([True]), total_tokens=1)
    assert float(loss) == -2.0
    assert sums.by_age.isfinite().all()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_at_a_masked_token_has_no_effect(junk: float) -> None:
    real = by_ratio(0.9, -1.5, 1.2)
    config = LossConfig(kl_coef=0.1, dual_clip=3.0, entropy_coef=0.1, sequence_mask=1.5)
    masked = {"mask": 0.0, "behaviour": junk, "prox": junk, "advantage": junk, "entropy": junk, "age": 2}
    alone, sums_alone, grad_alone = run(config, [real], total=1)
    both, sums_both, grad_both = run(config, [real, masked], total=1)
    assert both == alone
    assert grad_both == [*grad_alone, 0.0]
    assert torch.equal(sums_both.by_age, sums_alone.by_age)
    assert torch.equal(sums_both.ratio_max, sums_alone.ratio_max)


def test_no_tokens_at_all_give_zero_and_not_nan() -> None:
    for config in (LossConfig(), LossConfig(sequence_mask=2.0)):
        loss, sums, grad = run(config, [], total=5)
        assert (loss, grad, sums.total("tokens"), sums.largest_ratio) == (0.0, [], 0.0, 0.0)


# ---- refusals ----


def test_refusals() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        run(LossConfig(), [by_ratio(1, 1)], total=0)
    with pytest.raises(ValueError, match="entropy_coef"):
        run(LossConfig(entropy_coef=0.1), [by_ratio(1, 1)], without=("entropy",))
    with pytest.raises(ValueError, match="reference_coef"):
        run(LossConfig(reference_coef=0.1), [by_ratio(1, 1)], without=("reference",))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"mean": "constant"}, "loss.mean=constant needs loss.mean_length"),
        ({"clip_low": 1.1}, r"loss.clip_low must be in \(0, 1\], got 1.1"),
        ({"importance_cap": 0.9}, "loss.importance_cap must be at least 1, got 0.9"),
        ({"importance": "mask", "importance_floor": 1.0}, r"loss.importance_floor must be in \[0, 1\), got 1.0"),
        ({"importance": "mask", "importance_floor": -0.1}, r"loss.importance_floor must be in \[0, 1\), got -0.1"),
        ({"sequence_mask": 1.0}, r"loss.sequence_mask must be 0 \(off\) or above 1, got 1.0"),
        ({"sequence_mask": math.nan}, "loss.sequence_mask must be 0"),
        ({"importance_floor": 0.5}, "loss.importance_floor=0.5 with loss.importance=truncate would do nothing"),
        ({"prox": "behaviour", "sequence_mask": 2.0}, "loss.sequence_mask=2.0 with loss.prox=behaviour would do nothing"),
        (
            {"prox": "behaviour", "importance": "mask", "importance_floor": 0.5},
            "loss.importance_floor=0.5 with loss.prox=behaviour would do nothing",
        ),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused_in_one_line(settings_: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        LossConfig(**settings_)
    assert "\n" not in str(error.value)


# ---- objectives and means, by hand ----

LONG = [{**by_ratio(1.0, 1.0), "sequence": 1}] * 3
SHORT_AND_LONG = [{**by_ratio(1.0, 2.0), "sequence": 0}, *LONG]  # completions of 1 and 3 tokens, advantages 2 and 1


@pytest.mark.parametrize(
    ("settings_", "expected", "slopes"),
    [
        ({"mean": "token"}, -5 / 4, [-2 / 4, -1 / 4, -1 / 4, -1 / 4]),
        ({"mean": "sequence"}, -(2 + 1) / 2, [-2 / 2, -1 / 6, -1 / 6, -1 / 6]),
        ({"mean": "constant", "mean_length": 5}, -5 / (2 * 5), [-2 / 10, -1 / 10, -1 / 10, -1 / 10]),
    ],
)
def test_means(settings_: Any, expected: float, slopes: list[float]) -> None:
    loss, sums, grad = run(LossConfig(**settings_), SHORT_AND_LONG)
    assert loss == sums.mean("loss") == pytest.approx(expected)
    assert grad == pytest.approx(slopes)
    with pytest.raises(ValueError, match="4 tokens and 0 completions"):
        run(LossConfig(mean="sequence"), SHORT_AND_LONG, completions=0)


@pytest.mark.parametrize(
    ("ratios", "advantage", "gain", "slope"),
    [
        ((1.21, 1.0), 2.0, 2.2, 1.1),  # s = sqrt(1.21); 1.21 · 2 alone would be cut at 1.2
        ((1.69, 1.0), 1.0, 1.2, 0.0),  # s = 1.3: cut for the whole completion, the token whose ratio is 1 too
        ((4.0, 0.25), 1.0, 1.0, 0.5),  # far off token by token, and s = 1
        ((0.25, 1.0), -1.0, -0.8, 0.0),  # s = 0.5
        ((0.25, 1.0), 1.0, 0.5, 0.25),
    ],
)
def test_gspo_clips_the_geometric_mean_of_a_completions_ratios(
    ratios: tuple[float, float], advantage: float, gain: float, slope: float
) -> None:
    config = LossConfig(objective="gspo", mean="sequence", clip_low=0.2, clip_high=0.2)
    loss, sums, grad = run(config, [by_ratio(ratio, advantage) for ratio in ratios])
    assert loss == pytest.approx(-gain)
    assert grad == pytest.approx([-slope, -slope])
    assert sums.total("clip_high") + sums.total("clip_low") == (2 if slope == 0 else 0)
    assert sums.largest_ratio == pytest.approx(max(ratios))  # of a token, which stop_above_ratio watches


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip_low", "weight"),
    [(1.1, 1.0, 0.2, 1.1), (2.0, 1.0, 0.2, 1.28), (2.0, -1.0, 0.2, 1.28), (0.5, 1.0, 0.2, 0.8), (0.5, -3.0, 1.0, 0.5)],
)
def test_cispo_clips_the_weight_and_keeps_the_gradient(ratio: float, advantage: float, clip_low: float, weight: float) -> None:
    token = by_ratio(ratio, advantage)
    loss, sums, grad = run(LossConfig(objective="cispo", clip_low=clip_low, dual_clip=1.5), [token])
    assert loss == pytest.approx(-weight * advantage * token["logp"])
    assert grad == pytest.approx([-weight * advantage])
    assert (sums.total("clip_low"), sums.total("clip_high"), sums.total("dual_clip")) == (weight > ratio, weight < ratio, 0)


def test_the_importance_weight_is_of_every_objective() -> None:
    """π_prox / π_behaviour = 1.5 on a token that π_θ has not moved."""
    for objective in ("clip", "gspo", "cispo"):
        assert run(LossConfig(objective=objective), [by_ratio(1.0, 2.0, 1.5)])[2] == pytest.approx([-3.0])


# ---- the reference, by hand ----

LN2 = math.log(2)


@pytest.mark.parametrize(
    ("kind", "cost", "slope"),
    [("k1", -LN2, 1.0), ("k2", LN2**2 / 2, -LN2), ("k3", 2 - 1 - LN2, 1 - 2)],
)
def test_kl_to_the_reference_in_the_loss(kind: Any, cost: float, slope: float) -> None:
    """π_ref = 2 π_θ, so x = ln 2 and dx / dlog π_θ = -1. No importance weight is on it, and no clipping."""
    token = {**by_ratio(1.0, 0.0, 1.5), "reference": math.log(0.5) + LN2}
    loss, sums, grad = run(LossConfig(reference_coef=0.1, reference_kl=kind), [token])
    assert loss == pytest.approx(0.1 * cost)
    assert grad == pytest.approx([0.1 * slope])
    assert sums.mean("reference_kl") == pytest.approx(1 - LN2)


@pytest.mark.parametrize(("place", "costs"), [("sequence_reward", [6, 6, 6, 4]), ("token_reward", [6, 5, 3, 4])])
def test_kl_to_the_reference_in_the_reward(place: Any, costs: list[float]) -> None:
    """k1 of 1, 2 and 3 nats in one completion and 4 in another, at ratio 1: the gradient is -(A - 0.1 · cost) / N."""
    nats = [1.0, 2.0, 3.0, 4.0]
    tokens = [
        {**by_ratio(1.0, 2.0), "reference": math.log(0.5) - k, "sequence": s} for k, s in zip(nats, (0, 0, 0, 1), strict=True)
    ]
    config = LossConfig(reference_coef=0.1, reference_kl="k1", reference_in=place)
    loss, _, grad = run(config, tokens)
    assert grad == pytest.approx([-(2.0 - 0.1 * cost) / 4 for cost in costs])
    assert loss == pytest.approx(sum(grad))
    # of the proximal policy: that π_θ moved since then changes the ratio, and no cost
    tokens[0]["logp"] += math.log(1.1)
    assert run(config, tokens)[2] == pytest.approx([1.1 * grad[0], *grad[1:]])


# ---- laws ----

TOKEN = st.fixed_dictionaries(
    {
        "logp": st.floats(-6, 0),
        "prox": st.floats(-6, 0),
        "behaviour": st.floats(-6, 0),
        "reference": st.floats(-6, 0),
        "advantage": st.floats(-3, 3),
        "entropy": st.floats(0, 5),
        "mask": st.sampled_from([0.0, 1.0]),
        "age": st.integers(0, 12),
    }
)
COMPLETIONS = st.lists(st.lists(TOKEN, min_size=1, max_size=4), min_size=1, max_size=6)


@st.composite
def configs(draw: st.DrawFn, objectives: tuple[Any, ...] = ("clip", "gspo", "cispo")) -> LossConfig:
    importance = draw(st.sampled_from(["truncate", "mask", "off"]))
    return LossConfig(
        objective=draw(st.sampled_from(objectives)),
        mean=draw(st.sampled_from(["token", "sequence", "constant"])),
        mean_length=7,
        clip_low=draw(st.floats(0.05, 0.9)),
        clip_high=draw(st.floats(0.05, 2)),
        dual_clip=draw(st.sampled_from([0.0, 1.5, 3.0])),
        importance=importance,
        importance_cap=draw(st.floats(1, 5)),
        importance_floor=draw(st.sampled_from([0.0, 0.3])) if importance == "mask" else 0.0,
        sequence_mask=draw(st.sampled_from([0.0, 1.3, 5.0])),
        kl_coef=draw(st.sampled_from([0.0, 0.05])),
        reference_coef=draw(st.sampled_from([0.0, 0.2])),
        reference_kl=draw(st.sampled_from(["k1", "k2", "k3"])),
        reference_in=draw(st.sampled_from(["loss", "token_reward", "sequence_reward"])),
        entropy_coef=draw(st.sampled_from([0.0, 0.01])),
    )


def flat(completions: list[list[Token]]) -> list[Token]:
    return [{**token, "sequence": i} for i, completion in enumerate(completions) for token in completion]


def oracle_weight(config: LossConfig, token: Token, completion: list[Token]) -> float:
    logs = [t["prox"] - t["behaviour"] for t in completion if t["mask"]]
    if config.sequence_mask:
        mean = math.exp(sum(logs) / len(logs))
        if mean > config.sequence_mask or mean < 1 / config.sequence_mask:
            return 0.0
    if config.importance == "off":
        return 1.0
    weight = math.exp(token["prox"] - token["behaviour"])
    if weight > config.importance_cap:
        return config.importance_cap if config.importance == "truncate" else 0.0
    return 0.0 if weight < config.importance_floor else weight


def oracle_kl(config: LossConfig, log_ratio: float) -> float:
    """``log_ratio``: log π_ref less log of the policy."""
    kinds = {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": math.exp(log_ratio) - 1 - log_ratio}
    return config.reference_coef * kinds[config.reference_kl]


def oracle(
    config: LossConfig, token: Token, completion: list[Token], *, place: int, completion_tokens: float = 1.0
) -> float:  # fmt: skip
    """One token's loss by cases, written without min, max or clamp of tensors; it stands at ``place``.

    ``completion_tokens``: mean over all completions.
    """
    if not token["mask"]:
        return 0.0
    ratio, a = math.exp(token["logp"] - token["prox"]), token["advantage"]
    if config.reference_in != "loss":
        rest = completion[place:] if config.reference_in == "token_reward" else completion
        a -= sum(oracle_kl(config, t["reference"] - t["prox"]) for t in rest if t["mask"])
    trained = [t for t in completion if t["mask"]]
    if config.objective == "gspo":
        ratio = math.prod(math.exp(t["logp"] - t["prox"]) for t in trained) ** (1 / len(trained))
    if config.objective == "cispo":
        bound = (
            1 + config.clip_high
            if ratio > 1 + config.clip_high
            else 1 - config.clip_low
            if ratio < 1 - config.clip_low
            else ratio
        )
        gain = bound * a * token["logp"]
    elif a >= 0:
        gain = a * (1 + config.clip_high if ratio > 1 + config.clip_high else ratio)
    else:
        gain = a * (1 - config.clip_low if ratio < 1 - config.clip_low else ratio)
        if config.dual_clip and gain < config.dual_clip * a:
            gain = config.dual_clip * a
    inverse = math.exp(token["prox"] - token["logp"])
    kl = inverse - 1 - math.log(inverse)
    loss = -oracle_weight(config, token, completion) * gain + config.kl_coef * kl - config.entropy_coef * token["entropy"]
    if config.reference_in == "loss":
        loss += oracle_kl(config, token["reference"] - token["logp"])
    return loss * {"token": 1, "sequence": completion_tokens / len(trained), "constant": completion_tokens / 7}[config.mean]


def trainable(completions: list[list[Token]]) -> float:
    return max(1.0, sum(token["mask"] for token in flat(completions)))


def assert_alike(left: LossSums, right: LossSums) -> None:
    assert torch.allclose(left.by_age, right.by_age, rtol=1e-9, atol=1e-9)
    assert torch.equal(left.ratio_max, right.ratio_max)


@settings(max_examples=200, deadline=None)
@given(config=configs(), completions=COMPLETIONS, cut=st.integers(0, 6))
def test_against_the_oracle_and_in_parts(config: LossConfig, completions: list[list[Token]], cut: int) -> None:
    total = trainable(completions)
    count = len(completions)
    loss, sums, grad = run(config, flat(completions), total=total)
    expected = [
        [oracle(config, token, completion, place=i, completion_tokens=total / count) for i, token in enumerate(completion)]
        for completion in completions
    ]
    assert loss == pytest.approx(sum(map(sum, expected)) / total, abs=1e-9)
    by_age = [0.0] * len(AGE_BUCKETS)
    for completion, losses in zip(completions, expected, strict=True):
        for token, value in zip(completion, losses, strict=True):
            by_age[age_bucket(int(token["age"]))] += value
    assert sums.by_age[SUMS.index("loss")].tolist() == pytest.approx(by_age, abs=1e-9)
    # Any cut between completions into micro-batches gives the same loss, gradient and metrics.
    first, first_sums, first_grad = run(config, flat(completions[:cut]), total=total, completions=count)
    rest, rest_sums, rest_grad = run(config, flat(completions[cut:]), total=total, completions=count)
    assert first + rest == pytest.approx(loss, abs=1e-9)
    assert first_grad + rest_grad == pytest.approx(grad, abs=1e-12)
    assert_alike(first_sums + rest_sums, sums)


@settings(max_examples=100, deadline=None)
@given(config=configs(), completions=COMPLETIONS, data=st.data())
def test_the_order_of_tokens_changes_nothing(config: LossConfig, completions: list[list[Token]], data: st.DataObject) -> None:
    tokens = flat(completions)
    assume(config.reference_in != "token_reward")  # what a token costs there depends on those after it
    order = data.draw(st.permutations(range(len(tokens))))
    loss, sums, grad = run(config, tokens)
    shuffled_loss, shuffled_sums, shuffled_grad = run(config, [tokens[i] for i in order])
    assert shuffled_loss == pytest.approx(loss, abs=1e-9)
    assert shuffled_grad == pytest.approx([grad[i] for i in order], abs=1e-12)
    assert_alike(shuffled_sums, sums)


@settings(max_examples=100, deadline=None)
@given(config=configs(), completions=COMPLETIONS)
def test_ages_only_move_tokens_between_buckets(config: LossConfig, completions: list[list[Token]]) -> None:
    tokens = flat(completions)
    loss, sums, grad = run(config, tokens)
    fresh_loss, fresh_sums, fresh_grad = run(config, tokens, without=("age",))
    assert (loss, grad) == (fresh_loss, fresh_grad)
    assert totals(sums) == pytest.approx(totals(fresh_sums), rel=1e-9, abs=1e-9)
    assert sums.largest_ratio == fresh_sums.largest_ratio
    counts = [sum(token["mask"] for token in tokens if age_bucket(int(token["age"])) == i) for i in range(len(AGE_BUCKETS))]
    assert sums.by_age[SUMS.index("tokens")].tolist() == counts
    assert fresh_sums.bucket(0).total("tokens") == sum(counts)


@settings(max_examples=100, deadline=None)
@given(config=configs(), completions=COMPLETIONS)
def test_on_fresh_tokens_every_importance_switch_gives_the_same_update(
    config: LossConfig, completions: list[list[Token]]
) -> None:  # fmt: skip
    tokens = [{**token, "prox": token["logp"], "behaviour": token["logp"]} for token in flat(completions)]
    plain = replace(config, importance="off", importance_floor=0.0, sequence_mask=0.0)
    loss, sums, grad = run(config, tokens)
    plain_loss, plain_sums, plain_grad = run(plain, tokens)
    assert (loss, grad) == (plain_loss, plain_grad)
    assert torch.equal(sums.by_age, plain_sums.by_age)
    assert sums.total("weight") == sums.total("tokens")
    assert run(replace(plain, prox="behaviour"), tokens)[0] == loss


@settings(max_examples=100, deadline=None)
@given(config=configs(objectives=("clip",)), completion=st.lists(TOKEN, min_size=1, max_size=4), index=st.integers(0, 3))
def test_gradient_is_the_slope_of_the_oracle(config: LossConfig, completion: list[Token], index: int) -> None:
    index %= len(completion)
    step, token = 1e-6, completion[index]
    down, here, up = (
        oracle(config, {**token, "logp": token["logp"] + shift}, completion, place=index) for shift in (-step, 0.0, step)
    )  # fmt: skip
    left, right = (here - down) / step, (up - here) / step
    grad = run(config, completion, total=1)[2][index]
    # At a kink any slope between the two sides is right.
    assert min(left, right) - 1e-2 * (1 + abs(left)) <= grad <= max(left, right) + 1e-2 * (1 + abs(right))


@settings(max_examples=100, deadline=None)
@given(completions=COMPLETIONS, advantages=st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_gspo_is_the_papers_objective_where_a_completion_has_one_advantage(
    completions: list[list[Token]], advantages: list[float]
) -> None:  # fmt: skip
    """Equation 5 with a ratio that is differentiated as a whole, by autograd."""
    config = LossConfig(objective="gspo", mean="sequence", importance="off", clip_low=0.2, clip_high=0.3)
    completions = [
        [{**token, "mask": 1.0, "advantage": a} for token in completion]
        for completion, a in zip(completions, advantages, strict=False)
    ]
    tokens = flat(completions)
    loss, _, grad = run(config, tokens)
    logp = torch.tensor([token["logp"] for token in tokens], dtype=torch.float64, requires_grad=True)
    prox = torch.tensor([token["prox"] for token in tokens], dtype=torch.float64)
    gains = []
    for part, before, a in zip(
        logp.split([*map(len, completions)]), prox.split([*map(len, completions)]), advantages, strict=False
    ):
        ratio = (part - before).mean().exp()
        gains.append(torch.minimum(ratio * a, ratio.clamp(0.8, 1.3) * a))
    want = -torch.stack(gains).mean()
    want.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(float(want.detach()), abs=1e-9)
    assert logp.grad is not None
    assert grad == pytest.approx(logp.grad.tolist(), abs=1e-9)
