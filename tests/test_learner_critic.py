"""The critic in a rank against plain torch and NumPy: both models' weights, layouts, pre-training, resume, dumps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_support import (
    PlainCritic,
    PlainLearner,
    build_model,
    critic_weights,
    exported,
    largest_difference,
    make_samples,
    make_spec,
    rewarded,
    start_rank,
    weights_of,
)  # fmt: skip

from fr3e_async.config import CriticConfig
from fr3e_async.learner.dump import read_dump
from fr3e_async.learner.replay import replay
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.types import TrainSample

pytestmark = pytest.mark.slow

TOLERANCE = 5e-5
PPO = CriticConfig(
    lr=2e-3, grad_clip=0.7, policy_lambda=0.9, value_lambda=0.8, value_clip=0.05, length_alpha=0.0, positive_coef=0.0
)
VAPO = replace(PPO, length_alpha=0.2, value_lambda=1.0, positive_coef=0.3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


def spec_of(model: Path, critic: CriticConfig, **settings: Any) -> LearnerSpec:
    return replace(make_spec(model, **settings), critic=critic)


def batch(version: int) -> list[TrainSample]:
    return rewarded(make_samples(version, version=version - 1))


class Imitating(PlainLearner):
    """Adds μ times the mean negative log-likelihood of correct responses, whose mean is over the tokens of a minibatch's correct ones."""

    correct: dict[int, float] = {}  # tokens object → μ · minibatch tokens / correct tokens

    def loss(self, sample: TrainSample, prox_model: Any) -> torch.Tensor:
        targets = torch.from_numpy(sample.tokens[sample.context_len :].astype(np.int64))[:, None]
        likelihood = self.log_p(self.model, sample).gather(1, targets).sum()
        return super().loss(sample, prox_model) - self.correct.get(id(sample.tokens), 0.0) * likelihood


@pytest.mark.parametrize(("critic", "packing"), [(PPO, "tree"), (PPO, "flat"), (VAPO, "tree")])
def test_both_models_are_those_of_plain_torch(model: Path, critic: CriticConfig, packing: str) -> None:
    spec = spec_of(model, critic, packing=packing)
    rank, plain, judge = start_rank(spec), Imitating(spec), PlainCritic(spec)
    for version in (1, 2):
        samples = batch(version)
        for index in (0, 1):
            part = [s for s in samples if s.minibatch == index]
            correct = [s for s in part if s.advantages[-1] == 1]
            weight = critic.positive_coef * sum(len(s.versions) for s in part) / sum(len(s.versions) for s in correct)
            plain.correct |= {id(s.tokens): weight for s in correct}
        report = rank.train(samples, version=version)
        plain.train(judge.train(samples))
    assert largest_difference(weights_of(exported(rank, 2)), plain.weights()) < TOLERANCE
    assert largest_difference(critic_weights(rank), judge.weights()) < TOLERANCE
    assert report.metrics["critic/clip_fraction"] > 0


def test_pretraining_leaves_the_policy_alone_and_a_checkpoint_continues_identically(model: Path, tmp_path: Path) -> None:
    spec = spec_of(model, replace(PPO, pretrain_batches=1))
    rank = start_rank(spec)
    before, judged = weights_of(exported(rank, 0)), critic_weights(rank)
    report = rank.train(batch(1), version=1)
    assert (report.optimiser_steps, "train/loss" in report.metrics, "critic/loss" in report.metrics) == (0, False, True)
    assert largest_difference(weights_of(exported(rank, 1)), before) == 0
    assert largest_difference(critic_weights(rank), judged) > 0
    rank.save(tmp_path, "state")
    again = start_rank(spec)
    again.load(tmp_path, "state")
    reports = [one.train(batch(2), version=2) for one in (rank, again)]
    assert reports[0].metrics == reports[1].metrics
    assert reports[0].optimiser_steps == 4
    assert largest_difference(*(weights_of(exported(one, 2)) for one in (rank, again))) == 0
    assert largest_difference(critic_weights(rank), critic_weights(again)) == 0


def test_explained_variance_is_of_values_before_they_are_trained(model: Path) -> None:
    """A fresh critic says 0: it explains 1 − Σ r² / Σ (r − mean)² of the tokens' rewards."""
    rank, samples = start_rank(spec_of(model, PPO)), batch(1)
    rewards = np.concatenate([s.advantages for s in samples]).astype(float)
    last = np.concatenate([s.advantages[-(-3 * len(s.versions) // 4) :] for s in samples]).astype(float)
    metrics = rank.train(samples, version=1).metrics
    assert metrics["critic/explained_variance"] == pytest.approx(1 - (rewards**2).sum() / ((rewards - rewards.mean()) ** 2).sum())
    assert metrics["critic/explained_variance_q4"] == pytest.approx(1 - (last**2).sum() / ((last - last.mean()) ** 2).sum())
    assert metrics["critic/value_mean"] == 0
    later = rank.train(batch(1), version=2).metrics
    assert later["critic/explained_variance"] > metrics["critic/explained_variance"]


def test_a_failed_step_is_dumped_with_the_critics_advantages(model: Path, tmp_path: Path) -> None:
    spec = replace(spec_of(model, VAPO, stop_above_grad_norm=1e-6), dump_folder=str(tmp_path))
    rank = start_rank(spec)
    with pytest.raises(FloatingPointError, match="replay_step"):
        rank.train(batch(1), version=1)
    (folder,) = tmp_path.iterdir()
    step, _ = read_dump(folder)
    expected = {s.tokens.tobytes(): s.advantages for s in PlainCritic(spec).train(batch(1))}
    for one in step.share:
        np.testing.assert_allclose(one.sample.advantages, expected[one.sample.tokens.tobytes()], atol=1e-6)
    recorded, found = replay(folder)
    assert found.loss == pytest.approx(recorded.loss, rel=1e-4)
    assert found.grad_norm == pytest.approx(recorded.grad_norm, rel=1e-3)


def test_a_critic_that_must_not_be_trained_stops_the_run(model: Path) -> None:
    rank = start_rank(spec_of(model, replace(PPO, pretrain_batches=9), stop_above_grad_norm=1e-6))
    with pytest.raises(FloatingPointError, match=r"of the critic the gradient norm .* lower critic\.lr"):
        rank.train(batch(1), version=1)
    with pytest.raises(RuntimeError, match="must not be used"):
        rank.train(batch(2), version=2)
