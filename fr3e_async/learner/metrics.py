"""What an update reports, name by name, and the age of the tokens it was made of.

Knows nothing of models or engines; takes sums that are already global.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.algorithm.losses import LossSums
from fr3e_async.learner.update import UpdateResult
from fr3e_async.types import TrainSample


class TokenAgeError(RuntimeError):
    """A token is older than the admission bound allows, or newer than the learner: a defect of the control loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """Token ages of a share of a batch, in weight versions. Example: ages 0, 0, 2 are ``Ages(tokens=3, total=2, oldest=2)``."""

    tokens: int
    total: int
    oldest: int


def token_ages(samples: Sequence[TrainSample], *, learner_version: int, bound: int | None = None) -> Ages:
    """Sum up the ages of the samples' tokens: ``learner_version`` (the update's start) less the version of each.

    Raises:
        TokenAgeError: a token claims a version that does not exist yet, or is older than ``bound`` versions.
    """
    ages = [learner_version - sample.versions.astype(np.int64) for sample in samples]
    joined = np.concatenate(ages or [np.zeros(0, dtype=np.int64)])
    if joined.min(initial=0) < 0:
        newest = learner_version - int(joined.min())
        raise TokenAgeError(f"sample has tokens of v{newest}, which does not exist yet (learner at v{learner_version})")
    age = int(joined.max(initial=0))
    if bound is not None and age > bound:
        raise TokenAgeError(
            f"sample is {age} versions old (v{learner_version - age}, learner at v{learner_version}); "
            f"flow.max_staleness is {bound}"
        )
    return Ages(tokens=len(joined), total=int(joined.sum()), oldest=age)


def step_metrics(result: UpdateResult, ages: Ages) -> dict[str, float]:
    """Make the metrics of an update, by the names that ``observe.metrics`` declares under train/, staleness/ and lag/.

    Without a trainable token those that are not a mean over tokens.
    """
    metrics = {"train/tokens": float(ages.tokens), "train/lr": result.lr, "lag/versions_max": float(ages.oldest)}
    if result.sums is None:
        return metrics | result.critic
    return metrics | result.critic | loss_metrics(result.sums) | age_metrics(result.sums) | {
        "train/grad_norm": sum(result.grad_norms) / len(result.grad_norms),
        "train/grad_norm_max": max(result.grad_norms),
        "train/padding_fraction": 1 - result.computed_tokens / result.padded_tokens,
        "train/shared_fraction": 1 - result.computed_tokens / result.real_tokens,
        "lag/versions_mean": ages.total / ages.tokens,
    }  # fmt: skip


def loss_metrics(sums: LossSums) -> dict[str, float]:
    """Means over all tokens, train/; the mismatch is of the tokens of age 0, if there are any."""
    means = _means(sums) | {
        "loss": sums.mean("loss"),
        "dual_clip_fraction": sums.mean("dual_clip"),
        "importance_capped_fraction": sums.mean("capped"),
        "sequence_masked_fraction": sums.mean("sequence_masked"),
        "offpolicy_signed_nats": sums.mean("mismatch_signed"),
        "kl_nats": sums.mean("kl"),
        "entropy_nats": sums.mean("entropy"),
    }
    if sums.total("reference_kl"):  # 0 without a reference, and before the first step away from it
        means["reference_kl_nats"] = sums.mean("reference_kl")
    fresh = sums.bucket(0)
    if fresh.total("tokens"):
        means |= {"mismatch_nats": fresh.mean("mismatch"), "mismatch_kl_nats": fresh.mean("behaviour_kl")}
    return {f"train/{name}": value for name, value in means.items()}


def age_metrics(sums: LossSums) -> dict[str, float]:
    """Means over the tokens of each age bucket that holds any, staleness/."""
    metrics = {}
    for index, label in enumerate(AGE_BUCKETS):
        bucket = sums.bucket(index)
        if tokens := bucket.total("tokens"):
            metrics[f"staleness/{label}_tokens_fraction"] = tokens / sums.total("tokens")
            metrics |= {f"staleness/{label}_{name}": value for name, value in _means(bucket).items()}
    return metrics


def _means(sums: LossSums) -> dict[str, float]:
    """What is reported both of all tokens and of each age bucket. There must be tokens."""
    return {
        "ess_fraction": _ess_fraction(sums),
        "importance_mean": sums.mean("weight"),
        "offpolicy_nats": sums.mean("mismatch"),
        "offpolicy_kl_nats": sums.mean("behaviour_kl"),
        "ratio_mean": sums.mean("ratio"),
        "ratio_max": sums.largest_ratio,
        "clip_low_fraction": sums.mean("clip_low"),
        "clip_high_fraction": sums.mean("clip_high"),
    }


def _ess_fraction(sums: LossSums) -> float:
    """Effective sample size (Σw)² / (n Σw²): 1 if all weights are alike, 1/n if one is all there is, 0 if all are 0."""
    weight, squares = sums.total("weight"), sums.total("weight_squares")
    return weight**2 / (sums.total("tokens") * squares) if squares else 0.0
