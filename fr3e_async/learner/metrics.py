"""What an update reports, name by name, and the age of the tokens it was made of.

Knows nothing of models or engines; takes sums that are already global.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fr3e_async.learner.update import UpdateResult
from fr3e_async.types import TrainSample


class StalenessError(RuntimeError):
    """A token is older than the admission bound allows, or newer than the learner: a defect of the control loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """Token ages of a share of a batch, in weight versions."""

    tokens: int
    total: int
    oldest: int


def token_ages(samples: Sequence[TrainSample], *, learner_version: int) -> Ages:
    """Ages relative to the version of the weights that the update starts from.

    Raises:
        StalenessError: a token claims a version that does not exist yet.
    """
    ages = [learner_version - sample.versions.astype(np.int64) for sample in samples]
    joined = np.concatenate(ages or [np.zeros(0, dtype=np.int64)])
    if joined.min(initial=0) < 0:
        newest = learner_version - int(joined.min())
        raise StalenessError(f"sample has tokens of v{newest}, which does not exist yet (learner at v{learner_version})")
    return Ages(tokens=len(joined), total=int(joined.sum()), oldest=int(joined.max(initial=0)))


def check_staleness(samples: Sequence[TrainSample], *, learner_version: int, bound: int) -> None:
    """Every token must have been sampled by one of the versions ``learner_version - bound`` to ``learner_version``.

    Raises:
        StalenessError: one was not.
    """
    age = token_ages(samples, learner_version=learner_version).oldest
    if age > bound:
        raise StalenessError(
            f"sample is {age} versions old (v{learner_version - age}, learner at v{learner_version}); "
            f"flow.max_staleness is {bound}"
        )


def step_metrics(result: UpdateResult, ages: Ages) -> dict[str, float]:
    """Values by the names that ``observe.metrics`` declares under train/ and lag/; without a trainable token, those that are not a mean over tokens."""
    metrics = {"train/tokens": float(ages.tokens), "train/lr": result.lr, "lag/versions_max": float(ages.oldest)}
    if result.sums is None:
        return metrics
    sums = result.sums
    tokens = float(sums.tokens)
    weight, squares = float(sums.weight), float(sums.weight_squares)
    return metrics | {
        "train/loss": float(sums.loss) / tokens,
        "train/grad_norm": sum(result.grad_norms) / len(result.grad_norms),
        "train/grad_norm_max": max(result.grad_norms),
        "train/clip_low_fraction": float(sums.clip_low) / tokens,
        "train/clip_high_fraction": float(sums.clip_high) / tokens,
        "train/dual_clip_fraction": float(sums.dual_clip) / tokens,
        "train/ratio_mean": float(sums.ratio) / tokens,
        "train/ratio_max": float(sums.ratio_max),
        "train/importance_mean": weight / tokens,
        "train/importance_capped_fraction": float(sums.capped) / tokens,
        "train/ess_fraction": weight**2 / (tokens * squares) if squares else 0.0,  # all weights masked away
        "train/mismatch_nats": float(sums.mismatch) / tokens,
        "train/kl_nats": float(sums.kl) / tokens,
        "train/entropy_nats": float(sums.entropy) / tokens,
        "train/padding_fraction": 1 - result.real_tokens / result.padded_tokens,
        "lag/versions_mean": ages.total / ages.tokens,
    }
