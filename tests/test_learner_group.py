"""Two learner ranks over gloo, ZeRO 0 to 3, ragged and unequal shares: the weights of one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_support import (
    LOSS,
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
from fr3e_async.learner.spec import free_address, rank_environment
from fr3e_async.types import TrainSample

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
CRITIC = CriticConfig(lr=2e-3, policy_lambda=0.9, value_lambda=0.8, value_clip=0.05, length_alpha=0.0, positive_coef=0.0)
TOLERANCE = 5e-5  # the stages sum gradients in different orders; measured up to 2e-5 at stage 3


def share(samples: list[TrainSample], rank: int) -> list[TrainSample]:
    """Rank 0 gets 3 of 11 samples, and none of minibatch 1."""
    mine = [s for s in samples if s.minibatch == 0][:3]
    return mine if rank == 0 else [s for s in samples if all(s is not other for other in mine)]


def exercise(rank: Any, folder: Path, spec: Any, stage: int) -> dict[str, Any]:
    from fr3e_async.learner.rank import LearnerRank

    reports = [rank.train(share(make_samples(v, version=v - 1), rank.rank), version=v) for v in (1, 2)]
    bundle = exported(rank, 2, bucket_bytes=8 << 10)  # several buckets, one of them gathered at a time
    again_nothing = list(rank.export(3, held=bundle and bundle.manifest, bucket_bytes=8 << 10))
    rank.save(folder, f"stage{stage}")
    rank.save_hf(folder / f"hf{stage}")
    again = LearnerRank(spec)
    again.setup(rank.rank, 2, "127.0.0.1", 0)
    again.load(folder, f"stage{stage}")
    continued = [r.train(share(make_samples(3, version=2), rank.rank), version=3).metrics for r in (rank, again)]
    ends = [exported(r, 3) for r in (rank, again)]
    samples = make_samples(9) if rank.rank == 0 else []  # the other one takes part with nothing of its own
    entropies = rank.entropies([(s.tokens[: s.context_len], s.tokens[s.context_len :]) for s in samples])
    out: dict[str, Any] = {"reports": reports, "continued": continued, "entropies": entropies}
    if rank.rank == 0:
        out |= {"weights": weights_of(bundle), "ends": [weights_of(end) for end in ends]}
    out |= {"buckets": bundle and len(bundle.buckets), "sent_again": again_nothing}
    return out | {"none_elsewhere": bundle is None and ends == [None, None]}


def exercise_critic(index: int, path: str, folder: Path, port: int, stage: int) -> dict[str, Any]:
    """Two updates with a critic, and a checkpoint of both models."""
    from fr3e_async.learner.rank import LearnerRank

    rank = LearnerRank(replace(make_spec(Path(path), zero_stage=stage), critic=CRITIC))
    rank.setup(index, 2, "127.0.0.1", port)
    reports = [rank.train(share(rewarded(make_samples(v, version=v - 1)), index), version=v) for v in (1, 2)]
    rank.save(folder, f"beside{stage}")
    bundle, values = exported(rank, 2), critic_weights(rank)
    return {"policy": bundle and weights_of(bundle), "critic": values, "metrics": [report.metrics for report in reports]}


def failure(rank: Any) -> str:
    samples = share(make_samples(4, version=3), rank.rank)
    if rank.rank == 1:
        samples[0] = replace(samples[0], behaviour_logprobs=samples[0].behaviour_logprobs * float("inf"))
    try:
        rank.train(samples, version=4)
    except FloatingPointError as error:
        return str(error)
    return "no error"


def run_rank(index: int, path: str, folder: str, port: int) -> None:
    """All stages in one process: imports cost more than everything else."""
    os.environ.update(rank_environment(make_spec(Path(path))))
    from fr3e_async.learner.rank import LearnerRank

    results = {}
    for stage in STAGES:
        spec = make_spec(Path(path), zero_stage=stage)
        rank = LearnerRank(spec)
        rank.setup(index, 2, "127.0.0.1", port)
        results[stage] = exercise(rank, Path(folder), spec, stage)
        results[stage]["beside"] = exercise_critic(index, path, Path(folder), port, stage)
        if stage in (0, 3):
            results[stage]["failure"] = failure(rank)
    torch.save(results, Path(folder) / f"rank{index}.pt")
    rank.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(model: Path) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    learner = PlainLearner(make_spec(model, loss=LOSS))
    norms = [learner.train(make_samples(v, version=v - 1)) for v in (1, 2)]
    return learner.weights(), norms


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(run_rank, (str(model), str(folder), free_address("")[1]), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[int, dict[str, Any]]]:
    return [torch.load(folder / f"rank{index}.pt", weights_only=False) for index in (0, 1)]


@pytest.mark.parametrize("stage", STAGES)
def test_equals_plain_torch(results: Any, plain: Any, stage: int) -> None:
    weights, norms = plain
    assert largest_difference(results[0][stage]["weights"], weights) < TOLERANCE
    for report, expected in zip(results[0][stage]["reports"], norms, strict=True):
        assert report.optimiser_steps == len(expected)
        assert report.metrics["train/grad_norm"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_reports_are_global(results: Any, stage: int) -> None:
    for version, (left, right) in enumerate(zip(*(r[stage]["reports"] for r in results), strict=True), start=1):
        samples = make_samples(version, version=version - 1)
        assert left.metrics == right.metrics
        assert left.tokens == right.tokens == sum(len(s.tokens) - s.context_len for s in samples)
        assert left.metrics["lag/versions_max"] == max(version - 1 - int(s.versions.min()) for s in samples)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_continues_identically(results: Any, stage: int) -> None:
    on, again = results[0][stage]["continued"]
    assert on == again
    assert largest_difference(*results[0][stage]["ends"]) == 0
    assert results[1][stage]["none_elsewhere"]


@pytest.mark.parametrize("stage", STAGES)
def test_weights_leave_by_the_bucket_and_unchanged_ones_not_again(results: Any, stage: int) -> None:
    assert results[0][stage]["buckets"] > 3
    (manifest,) = results[0][stage]["sent_again"]
    assert manifest.version == 3
    assert results[1][stage]["sent_again"] == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_saved_model_loads_in_transformers(folder: Path, results: Any, stage: int) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder / f"hf{stage}", dtype=torch.float32)
    assert largest_difference(dict(loaded.named_parameters()), results[0][stage]["weights"]) == 0


@pytest.mark.parametrize("stage", STAGES)
def test_entropies_of_a_rank_alone(results: Any, stage: int) -> None:
    """Under the weights of version 3, which are the same whatever the stage."""
    mine, others = results[0][stage]["entropies"], results[1][stage]["entropies"]
    assert others == []
    for entropies, reference, sample in zip(mine, results[0][0]["entropies"], make_samples(9), strict=True):
        assert len(entropies) == len(sample.versions)
        assert entropies == pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize("stage", [0, 3])
def test_broken_data_on_one_rank_stops_all_with_one_cause(results: Any, stage: int) -> None:
    left, right = (r[stage]["failure"] for r in results)
    assert left == right
    assert "the sampler's log-probs are broken" in left


@pytest.fixture(scope="module")
def plain_pair(model: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Policy and critic of one process."""
    spec = replace(make_spec(model, loss=LOSS), critic=CRITIC)
    learner, critic = PlainLearner(spec), PlainCritic(spec)
    for version in (1, 2):
        learner.train(critic.train(rewarded(make_samples(version, version=version - 1))))
    return learner.weights(), critic.weights()


@pytest.mark.parametrize("stage", STAGES)
def test_a_critic_on_two_ranks_equals_plain_torch(results: Any, plain_pair: Any, stage: int) -> None:
    found = results[0][stage]["beside"]
    assert largest_difference(found["policy"], plain_pair[0]) < TOLERANCE
    assert largest_difference(found["critic"], plain_pair[1]) < TOLERANCE
    assert found["metrics"] == results[1][stage]["beside"]["metrics"]


@pytest.mark.parametrize("stage", [0, 3])
def test_a_critics_checkpoint_loads_on_one_rank(results: Any, model: Path, folder: Path, stage: int) -> None:
    rank = start_rank(replace(make_spec(model), critic=CRITIC))
    rank.load(folder, f"beside{stage}")
    found = results[0][stage]["beside"]
    assert largest_difference(weights_of(exported(rank, 2)), found["policy"]) == 0
    assert largest_difference(critic_weights(rank), found["critic"]) == 0
    assert rank.version == 2
