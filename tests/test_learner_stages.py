"""DeepSpeed's features by its own names, on two real ranks with ragged and unequal shares, against plain torch; and refusals."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_support import PlainLearner, build_model, largest_difference, make_samples, make_spec
from test_learner_group import share

from fr3e_async.config import LearnerConfig
from fr3e_async.errors import ConfigError
from fr3e_async.learner.checkpoint import Manifest
from fr3e_async.learner.export import checkpoint_weights
from fr3e_async.learner.spec import free_address, rank_environment

TOLERANCE = 5e-5
LR = 1e-3


def zero(**settings: Any) -> dict[str, Any]:
    return {"ds_config": {"zero_optimization": settings}}


def schedule(name: str, **params: Any) -> dict[str, Any]:
    return {"zero_stage": 1, "ds_config": {"scheduler": {"type": name, "params": params}}}


CPU = {"device": "cpu"}
WARM = {"warmup_num_steps": 4, "warmup_type": "linear"}
PLAIN = {"betas": None, "torch_adam": None, "fused": None}  # takes AdamW's settings out
# What must change nothing: the weights are those of AdamW in one process.
SAME: dict[str, dict[str, Any]] = {
    "offload-optimizer-1": {"zero_stage": 1, **zero(offload_optimizer=CPU)},
    "offload-optimizer-2": {"zero_stage": 2, **zero(offload_optimizer=CPU)},
    "offload-optimizer-3": {"zero_stage": 3, **zero(offload_optimizer=CPU)},
    "offload-both": {"zero_stage": 3, **zero(offload_optimizer=CPU, offload_param=CPU)},
    "offload-param": {"zero_stage": 3, **zero(offload_param=CPU)},
    "activation-checkpointing-0": {"zero_stage": 0, "activation_checkpointing": True},
    "activation-checkpointing-2": {"zero_stage": 2, "activation_checkpointing": True},
    "activation-checkpointing-3": {"zero_stage": 3, "activation_checkpointing": True},
    "small-buckets-2": {"zero_stage": 2, **zero(reduce_bucket_size=1000, round_robin_gradients=True)},
    "small-buckets-3": {
        "zero_stage": 3,
        **zero(reduce_bucket_size=1000, sub_group_size=5000, stage3_param_persistence_threshold=0),
    },
    "overlap-2": {"zero_stage": 2, **zero(overlap_comm=True)},
    "whole-reduction-1": {"zero_stage": 1, **zero(reduce_scatter=False, contiguous_gradients=False)},
    "foreach": {"zero_stage": 2, "ds_config": {"optimizer": {"params": {"fused": None, "foreach": True}}}},
    "predivide": {"zero_stage": 1, "ds_config": {"prescale_gradients": True, "gradient_predivide_factor": 2.0}},
}
BF16 = {f"bf16-{stage}": {"zero_stage": stage, "dtype": "bfloat16"} for stage in range(4)}
# Learning rate of each of the 8 optimiser steps over LR, by the formulas. DeepSpeed's warm-ups begin with two steps of the least.
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "ours": ({"warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    "linear": (
        {"warmup_steps": 2, "lr_schedule": "linear", "lr_min_ratio": 0.1}, [1 / 3, 2 / 3, 1, 0.85, 0.7, 0.55, 0.4, 0.25]
    ),
    "cosine": (
        {"lr_schedule": "cosine", "lr_min_ratio": 0.2}, [0.2 + 0.8 * (1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)]
    ),
    "WarmupLR": (schedule("WarmupLR", warmup_max_lr=LR, **WARM), [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]),
    "WarmupDecayLR": (schedule("WarmupDecayLR", total_num_steps=8, warmup_max_lr=LR, **WARM), [0, 0, 0.25, 0.5, 0.75, 1, 0.75, 0.5]),
    "WarmupCosineLR": (
        schedule("WarmupCosineLR", total_num_steps=8, cos_min_ratio=0.0, **WARM),
        [0, 0, 0.25, 0.5, 0.75, *((1 + math.cos(math.pi * x)) / 2 for x in (0.25, 0.5, 0.75))],
    ),
    "OneCycle": (
        schedule("OneCycle", cycle_min_lr=0.2 * LR, cycle_max_lr=LR, cycle_first_step_size=4, cycle_momentum=False),
        [0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4],
    ),
    "LRRangeTest": (
        schedule("LRRangeTest", lr_range_test_min_lr=0.5 * LR, lr_range_test_step_size=4, lr_range_test_step_rate=1.0),
        [0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375],
    ),
}  # fmt: skip
OPTIMISERS: dict[str, tuple[dict[str, Any], Any]] = {
    "SGD": ({"type": "SGD", "params": {**PLAIN, "lr": 0.01, "momentum": 0.9}}, (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9})),
    "Adagrad": ({"type": "Adagrad", "params": {**PLAIN, "lr": 1e-3}}, (torch.optim.Adagrad, {"lr": 1e-3})),
    "betas-and-eps": (
        {"params": {"betas": [0.8, 0.9], "eps": 1e-6, "lr": 5e-4}}, (torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-6, "lr": 5e-4})
    ),
}  # fmt: skip
CASES = {
    **SAME,
    **BF16,
    **{f"schedule-{name}": learner for name, (learner, _) in SCHEDULES.items()},
    **{
        f"optimiser-{name}": {"zero_stage": 2, "ds_config": {"optimizer": optimiser}}
        for name, (optimiser, _) in OPTIMISERS.items()
    },
}


def run_rank(index: int, path: str, folder: str, port: int) -> None:
    """Two updates of every case, and a checkpoint between the two, which a fresh engine resumes from."""
    os.environ.update(rank_environment(make_spec(Path(path))))
    from fr3e_async.learner.rank import LearnerRank

    results: dict[str, Any] = {}
    for name, learner in CASES.items():
        spec = make_spec(Path(path), **{"lr": LR, **learner})
        ranks = [LearnerRank(spec), *([LearnerRank(spec)] if name.startswith(("schedule", "optimiser")) else [])]
        for rank in ranks:
            rank.setup(index, 2, "127.0.0.1", port)
        reports = [ranks[0].train(share(make_samples(1), index), version=1)]
        if len(ranks) > 1:
            ranks[0].save(folder, name)
            ranks[1].load(folder, name)
        ends = []
        for rank in ranks:
            reports.append(rank.train(share(make_samples(2, version=1), index), version=2))
            ends.append({key: weight.float().clone() for key, weight in rank.engine.weights()})
        if name in BF16:
            ranks[0].save(folder, name)
        norms = [report.metrics["train/grad_norm"] for report in reports[:2]]
        results[name] = {
            "folder": Path(folder, name),
            "ends": ends,
            "norms": norms,
            "lr": [report.metrics["train/lr"] for report in reports],
        }
    if index == 0:
        torch.save(results, Path(folder) / "results.pt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stages")
    torch.multiprocessing.spawn(run_rank, (str(model), str(folder), free_address("")[1]), nprocs=2)
    return torch.load(folder / "results.pt", weights_only=False)


def plain(model: Path, *, rates: list[float] | None = None, optimiser: Any = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after two updates and the mean norms of each, by one process without DeepSpeed."""
    learner = PlainLearner(make_spec(model, lr=LR))
    if optimiser is not None:
        kind, settings = optimiser
        weight_decay = {"weight_decay": learner.spec.learner.weight_decay}
        learner.optimiser = kind(learner.model.parameters(), **weight_decay, **settings)
    steps = iter(rates or ())

    def set_rate(*_: Any) -> None:
        for group in learner.optimiser.param_groups:
            group["lr"] = LR * next(steps) if rates else group["lr"]

    learner.optimiser.register_step_pre_hook(set_rate)
    norms = [learner.train(make_samples(version, version=version - 1)) for version in (1, 2)]
    return learner.weights(), [sum(part) / len(part) for part in norms]


@pytest.fixture(scope="module")
def adamw(model: Path) -> Any:
    return plain(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_what_saves_memory_or_time_changes_nothing(results: Any, adamw: Any, name: str) -> None:
    weights, norms = adamw
    assert largest_difference(results[name]["ends"][0], weights) < TOLERANCE
    assert results[name]["norms"] == pytest.approx(norms, rel=1e-3)


@pytest.fixture(scope="module")
def start(model: Path) -> dict[str, torch.Tensor]:
    return PlainLearner(make_spec(model)).weights()


@pytest.mark.slow
@pytest.mark.parametrize("name", BF16)
def test_the_update_in_bfloat16_is_near_that_in_float32(results: Any, start: Any, adamw: Any, name: str) -> None:
    """By the masters, over the length of the update: 1 without an update, 2 for one the other way."""
    weights, norms = adamw
    folder = results[name]["folder"]
    masters = dict(checkpoint_weights(folder, Manifest.read(folder)))
    off = sum(float((masters[key] - weights[key]).square().sum()) for key in weights)
    update = sum(float((weights[key] - start[key]).square().sum()) for key in weights)
    assert math.sqrt(off / update) < 0.1
    assert results[name]["norms"] == pytest.approx(norms, rel=0.01)
    assert largest_difference(results[name]["ends"][0], {key: master.bfloat16().float() for key, master in masters.items()}) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_follow_their_formulas_and_checkpoints(results: Any, model: Path, name: str) -> None:
    rates = SCHEDULES[name][1]
    found = results[f"schedule-{name}"]
    assert found["lr"] == pytest.approx([LR * rates[3], LR * rates[7], LR * rates[7]])
    assert largest_difference(found["ends"][0], plain(model, rates=rates)[0]) < TOLERANCE
    assert largest_difference(*found["ends"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_by_deepspeeds_names(results: Any, model: Path, name: str) -> None:
    found = results[f"optimiser-{name}"]
    assert largest_difference(found["ends"][0], plain(model, optimiser=OPTIMISERS[name][1])[0]) < TOLERANCE
    assert largest_difference(*found["ends"]) == 0


# ---- what is refused, before anything is started ----


@pytest.mark.parametrize(
    ("learner", "says"),
    [
        ({"ds_config": {"fp16": {"enabled": True}}}, r"learner\.ds_config\.fp16 must not be set: .*learner\.dtype=bfloat16"),
        ({"ds_config": {"train_batch_size": 8}}, r"ds_config\.train_batch_size must not be set: .*micro_batch_tokens"),
        ({"ds_config": {"gradient_accumulation_steps": 2}}, r"ds_config\.gradient_accumulation_steps must not"),
        ({"ds_config": {"train_micro_batch_size_per_gpu": 2}}, r"ds_config\.train_micro_batch_size_per_gpu must not"),
        ({"ds_config": {"managed_gradient_accumulation": True}}, r"ds_config\.managed_gradient_accumulation must not"),
        ({"ds_config": {"gradient_allreduce_op": "sum"}}, r"ds_config\.gradient_allreduce_op .*mean over ranks"),
        ({"ds_config": {"pipeline": {"stages": 2}}}, r"ds_config\.pipeline must not"),
        ({"ds_config": {"activation_checkpointing": {}}}, r"set learner\.activation_checkpointing=true"),
        ({"ds_config": {"sequence_parallel_size": 2}}, r"ds_config\.sequence_parallel_size must not"),
        ({"ds_config": {"gradient_cliping": 1.0}}, r"gradient_cliping is none of .*did you mean gradient_clipping\?"),
        ({"ds_config": {"gradient_clipping": None}}, r"ds_config\.gradient_clipping must not be null"),
        ({"ds_config": {"bf16": {"enabled": True}}}, r"bf16\.enabled=True contradicts learner\.dtype=float32"),
        (
            {"dtype": "bfloat16", "ds_config": {"bf16": {"bf16_master_weights_and_grads": True}}},
            r"bf16\.bf16_master_weights_and_grads must not be on",
        ),
        (
            {"dtype": "bfloat16", "ds_config": {"bf16": {"bf16_optimizer_states": True}}},
            r"bf16\.bf16_optimizer_states must not be on",
        ),
        (
            {"lr_schedule": "cosine", "ds_config": {"scheduler": {"type": "WarmupLR"}}},
            r"learner\.lr_schedule=cosine would do nothing",
        ),
        ({"warmup_steps": 5, "ds_config": {"scheduler": {"type": "WarmupLR"}}}, r"learner\.warmup_steps=5 would do nothing"),
        ({"ds_config": {"optimizer": {"type": "Muon"}}}, r"optimizer\.type=Muon: its state cannot be kept"),
        ({"ds_config": {"zero_optimization": 2}}, "zero_optimization must be a mapping, got 2"),
        (zero(stage=2), r"zero_optimization\.stage=2 contradicts learner\.zero_stage=0"),
        ({"zero_stage": 0, **zero(overlap_comm=True)}, r"overlap_comm .*not 0"),
        (
            {"zero_stage": 1, **zero(overlap_comm=True)},
            r"overlap_comm works with ragged accumulation at learner\.zero_stage=2 and 3 only, not 1",
        ),
        ({"zero_stage": 2, **zero(compute_grad_norm=False)}, r"compute_grad_norm must not be off"),
        ({"zero_stage": 0, **zero(offload_optimizer=CPU)}, r"offload_optimizer needs learner\.zero_stage of at least 1, not 0"),
        ({"zero_stage": 2, **zero(offload_param=CPU)}, r"offload_param needs learner\.zero_stage of at least 3, not 2"),
        ({"zero_stage": 3, **zero(offload_optimizer={"device": "nvme"})}, r"offload_optimizer\.device must be cpu .*got nvme"),
        ({"zero_stage": 3, **zero(offload_optimizer={"device": "cpu", "ratio": 0.5})}, r"offload_optimizer\.ratio=0\.5"),
    ],
)
def test_settings_that_would_break_the_update_are_refused(learner: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        LearnerConfig(**learner)
    assert "\n" not in str(caught.value)


def test_the_cases_above_are_accepted() -> None:
    for learner in CASES.values():
        LearnerConfig(**learner)
