"""The numbers that an update reports, from sums worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.algorithm.losses import SUMS, LossSums
from fr3e_async.learner.metrics import Ages, step_metrics
from fr3e_async.learner.update import UpdateResult
from fr3e_async.observe.metrics import METRICS, checked

AGES = Ages(tokens=50, total=60, oldest=9)
FRESH = {
    "tokens": 8, "loss": -4, "clip_low": 1, "clip_high": 2, "dual_clip": 0, "ratio": 10, "weight": 8, "weight_squares": 16, "capped": 3,
    "sequence_masked": 4, "mismatch": 0.8, "mismatch_signed": -0.4, "behaviour_kl": 0.08, "kl": 1.6, "entropy": 4, "reference_kl": 0.3,
}  # fmt: skip
OLD = {
    "tokens": 2, "loss": 1, "clip_low": 1, "clip_high": 0, "dual_clip": 1, "ratio": 5, "weight": 1, "weight_squares": 1, "capped": 0,
    "sequence_masked": 1, "mismatch": 1.2, "mismatch_signed": 0.6, "behaviour_kl": 0.5, "kl": 0.4, "entropy": 1, "reference_kl": 0.1,
}  # fmt: skip


def result(**by_bucket: tuple[dict[str, float], float]) -> UpdateResult:
    """An update whose sums and largest ratio are given by bucket, named ``b0`` to ``b4``."""
    by_age = torch.zeros(len(SUMS), len(AGE_BUCKETS), dtype=torch.float64)
    ratio_max = torch.zeros(len(AGE_BUCKETS), dtype=torch.float64)
    for name, (sums, largest) in by_bucket.items():
        by_age[:, int(name[1:])] = torch.tensor([sums[key] for key in SUMS], dtype=torch.float64)
        ratio_max[int(name[1:])] = largest
    return UpdateResult(
        sums=LossSums(by_age=by_age, ratio_max=ratio_max), grad_norms=(1.0, 3.0), lr=0.5,
        padded_tokens=100, computed_tokens=80, real_tokens=160,
    )  # fmt: skip


def test_every_number_by_hand() -> None:
    metrics = step_metrics(result(b0=(FRESH, 1.75), b4=(OLD, 4.0)), AGES)
    assert checked(metrics) == metrics  # all declared, all finite
    expected = {
        "train/loss": -0.3, "train/grad_norm": 2, "train/grad_norm_max": 3, "train/lr": 0.5, "train/tokens": 50,
        "train/clip_low_fraction": 0.2, "train/clip_high_fraction": 0.2, "train/dual_clip_fraction": 0.1, "train/ratio_mean": 1.5,
        "train/ratio_max": 4, "train/importance_mean": 0.9, "train/importance_capped_fraction": 0.3, "train/sequence_masked_fraction": 0.5,
        "train/ess_fraction": 81 / 170, "train/mismatch_nats": 0.1, "train/mismatch_kl_nats": 0.01, "train/offpolicy_nats": 0.2,
        "train/offpolicy_signed_nats": 0.02, "train/offpolicy_kl_nats": 0.058, "train/kl_nats": 0.2, "train/reference_kl_nats": 0.04, "train/entropy_nats": 0.5,
        "train/padding_fraction": 0.2, "train/shared_fraction": 0.5, "lag/versions_mean": 1.2, "lag/versions_max": 9,
        "staleness/0_tokens_fraction": 0.8, "staleness/0_ess_fraction": 0.5, "staleness/0_importance_mean": 1,
        "staleness/0_offpolicy_nats": 0.1, "staleness/0_offpolicy_kl_nats": 0.01, "staleness/0_ratio_mean": 1.25,
        "staleness/0_ratio_max": 1.75, "staleness/0_clip_low_fraction": 0.125, "staleness/0_clip_high_fraction": 0.25,
        "staleness/8_up_tokens_fraction": 0.2, "staleness/8_up_ess_fraction": 0.5, "staleness/8_up_importance_mean": 0.5,
        "staleness/8_up_offpolicy_nats": 0.6, "staleness/8_up_offpolicy_kl_nats": 0.25, "staleness/8_up_ratio_mean": 2.5,
        "staleness/8_up_ratio_max": 4, "staleness/8_up_clip_low_fraction": 0.5, "staleness/8_up_clip_high_fraction": 0,
    }  # fmt: skip
    assert metrics == pytest.approx(expected)


def test_without_fresh_tokens_there_is_no_mismatch_but_the_rest() -> None:
    metrics = step_metrics(result(b1=(FRESH, 1.75)), AGES)
    declared = {name for name in METRICS if name.startswith(("train/", "lag/", "staleness/1_"))}
    assert metrics.keys() == declared - {"train/mismatch_nats", "train/mismatch_kl_nats"}
    assert metrics["train/offpolicy_nats"] == metrics["staleness/1_offpolicy_nats"] == pytest.approx(0.1)


def test_each_bucket_has_its_names_declared() -> None:
    full: Any = {f"b{index}": (FRESH, 1.0) for index in range(len(AGE_BUCKETS))}
    metrics = step_metrics(result(**full), AGES)
    assert checked(metrics).keys() == {name for name in METRICS if name.startswith(("train/", "lag/", "staleness/"))}
    assert sum(metrics[f"staleness/{label}_tokens_fraction"] for label in AGE_BUCKETS) == pytest.approx(1)
    assert METRICS["staleness/2_3_ess_fraction"].meaning.startswith("tokens 2 to 3 versions old:")
    assert METRICS["staleness/8_up_ess_fraction"].meaning.startswith("tokens 8 or more versions old:")
    assert METRICS["staleness/0_offpolicy_nats"].unit == "nats"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0] * 4, 1.0), ([0.5] * 4, 1.0), ([3.0, 0.0, 0.0, 0.0], 0.25), ([0.0] * 4, 0.0), ([2.0, 1.0, 1.0, 0.0], 16 / 24)],
)
def test_effective_sample_size(weights: list[float], expected: float) -> None:
    sums = {**FRESH, "tokens": 4, "weight": sum(weights), "weight_squares": sum(w**2 for w in weights)}
    metrics = step_metrics(result(b0=(sums, 1.0)), AGES)
    assert metrics["train/ess_fraction"] == metrics["staleness/0_ess_fraction"] == pytest.approx(expected)


def test_an_update_without_tokens_reports_what_is_no_mean() -> None:
    nothing = replace(result(), sums=None, grad_norms=(), lr=0.0)
    metrics = step_metrics(nothing, Ages(tokens=0, total=0, oldest=0))
    assert metrics == {"train/tokens": 0, "train/lr": 0, "lag/versions_max": 0}
    assert all(math.isfinite(value) for value in checked(metrics).values())
