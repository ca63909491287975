"""Four learner ranks over gloo, groups dealt out by the same function as in a run: the weights of one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learner_support import LOSS, PlainLearner, build_model, exported, largest_difference, make_samples, make_spec, weights_of

from fr3e_async.algorithm.batching import RowCost, shard_trees
from fr3e_async.learner.spec import free_address, rank_environment
from fr3e_async.types import TrainSample

pytestmark = pytest.mark.slow

RANKS = 4
STAGES = {0: LOSS, 2: replace(LOSS, mean="sequence")}
TOLERANCE = 5e-5  # as in test_learner_group


def shares(samples: list[TrainSample]) -> list[list[TrainSample]]:
    """Samples i and i + 2 make a group (one continues the other); fewer groups than ranks in each minibatch, so some are torn."""
    loads = [
        RowCost(minibatch=s.minibatch, group=i // 4 * 2 + i % 2, context=s.context_len, completion=len(s.versions))
        for i, s in enumerate(samples)
    ]
    return [[samples[i] for i in part] for part in shard_trees(loads, RANKS)]


def run_rank(index: int, path: str, folder: str, port: int) -> None:
    os.environ.update(rank_environment(make_spec(Path(path))))
    from fr3e_async.learner.rank import LearnerRank

    results = {}
    for stage, loss in STAGES.items():
        rank = LearnerRank(make_spec(Path(path), loss=loss, zero_stage=stage))
        rank.setup(index, RANKS, "127.0.0.1", port)
        reports = [rank.train(shares(make_samples(v, version=v - 1))[index], version=v) for v in (1, 2)]
        results[stage] = {"metrics": [report.metrics for report in reports], "weights": exported(rank, 2)}
    if index == 0:
        for result in results.values():
            result["weights"] = weights_of(result["weights"])
        torch.save(results, Path(folder) / "results.pt")
    rank.close()


def test_four_ranks_equal_one_process(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model")
    plains = {stage: PlainLearner(make_spec(model, loss=loss)) for stage, loss in STAGES.items()}
    norms = {stage: [plain.train(make_samples(v, version=v - 1)) for v in (1, 2)] for stage, plain in plains.items()}
    assert all(shares(make_samples(1)))  # every rank has something to do
    torch.multiprocessing.spawn(run_rank, (str(model), str(tmp_path), free_address("")[1]), nprocs=RANKS)
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    for stage in STAGES:
        assert largest_difference(results[stage]["weights"], plains[stage].weights()) < TOLERANCE
        for metrics, expected in zip(results[stage]["metrics"], norms[stage], strict=True):
            assert metrics["train/grad_norm"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
