"""The learner's parts that need no model: packing, log-probs out of logits, ages, settings, checkpoint manifest."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_support import LEARNER, make_samples, make_spec

from fr3e_async.config import LearnerConfig
from fr3e_async.errors import ConfigError, StorageError
from fr3e_async.learner.checkpoint import Manifest
from fr3e_async.learner.logprobs import token_logprobs
from fr3e_async.learner.metrics import StalenessError, check_staleness, token_ages
from fr3e_async.learner.packing import DUMMY, collate, pack, plan
from fr3e_async.learner.spec import free_address, rank_environment
from fr3e_async.types import TrainSample


def sample(context: list[int], completion: list[int], **fields: object) -> TrainSample:
    return TrainSample(
        tokens=np.asarray(context + completion, dtype=np.int32),
        context_len=len(context),
        behaviour_logprobs=np.full(len(completion), -0.5, dtype=np.float32),
        **{  # type: ignore[arg-type]
            "versions": np.zeros(len(completion), dtype=np.int32),
            "advantages": np.full(len(completion), 1.5, dtype=np.float32),
            "minibatch": 0,
        }
        | fields,
    )


# ---- packing ----


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 300))
def test_plan_holds_every_sample_once_within_the_budget(lengths: list[int], budget: int) -> None:
    parts = plan(lengths, budget=budget)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert max(lengths[i] for i in part) * len(part) <= budget
    for before, after in pairwise(parts):  # none could have taken the next sample as well
        assert lengths[before[0]] * (len(before) + 1) > budget
        assert min(lengths[i] for i in before) >= max(lengths[i] for i in after)


def test_plan_refuses_a_sample_above_the_budget() -> None:
    with pytest.raises(ValueError, match=r"51 tokens is above learner\.micro_batch_tokens \(50\)"):
        plan([3, 51], budget=50)


def test_collate_gathers_the_places_that_predict_completion_tokens() -> None:
    batch = collate([sample([7, 8], [5]), sample([9], [6, 4, 3], advantages=np.asarray([-2.0, 0.5, 0.0], dtype=np.float32))])
    assert batch.tokens.tolist() == [[7, 8, 5, 0], [9, 6, 4, 3]]
    assert batch.rows.tolist() == [1, 4, 5, 6]
    assert batch.targets.tolist() == [5, 6, 4, 3]
    assert batch.advantages.tolist() == [1.5, -2.0, 0.5, 0.0]
    assert batch.behaviour_logprobs.tolist() == [-0.5] * 4
    assert batch.trainable == 4


def test_token_id_0_is_a_token_and_not_padding() -> None:
    batch = collate([sample([1], [0, 0]), sample([2, 3], [4, 5])])
    assert batch.trainable == 4
    assert batch.targets.tolist() == [0, 0, 4, 5]


def test_pack_of_nothing_is_nothing_and_the_dummy_trains_nothing() -> None:
    assert pack([], budget=10) == []
    assert DUMMY.trainable == 0


@given(st.integers(0, 1000), st.integers(64, 200))
def test_pack_keeps_every_trainable_token(seed: int, budget: int) -> None:
    samples = make_samples(seed)
    batches = pack(samples, budget=budget)
    targets = np.concatenate([batch.targets for batch in batches])
    assert sorted(targets) == sorted(np.concatenate([s.tokens[s.context_len :] for s in samples]))


# ---- log-probs ----


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_equal_torch(temperature: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 11) * 3, torch.tensor([0, 10, 3, 3, 7])
    logprobs, entropies = token_logprobs(logits, targets, temperature=temperature)
    expected = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(logprobs, expected.log_prob(targets))
    torch.testing.assert_close(entropies, expected.entropy())


def test_gradients_equal_autograd_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr3e_async.learner.logprobs.SLICE_ELEMENTS", 22)  # 2 rows of 11
    torch.manual_seed(1)
    logits, targets = torch.randn(5, 11, requires_grad=True), torch.tensor([0, 10, 3, 3, 7])
    left, right = torch.randn(5), torch.randn(5)
    logprobs, entropies = token_logprobs(logits, targets, temperature=0.7)
    (got,) = torch.autograd.grad((logprobs * left + entropies * right).sum(), logits)
    expected = torch.distributions.Categorical(logits=logits / 0.7)
    (want,) = torch.autograd.grad((expected.log_prob(targets) * left + expected.entropy() * right).sum(), logits)
    torch.testing.assert_close(got, want)
    expected = torch.distributions.Categorical(logits=logits / 0.7)
    (only,) = torch.autograd.grad(token_logprobs(logits, targets, temperature=0.7)[0].sum(), logits)
    torch.testing.assert_close(only, torch.autograd.grad(expected.log_prob(targets).sum(), logits)[0])


def test_a_token_that_the_model_rules_out_leaves_the_entropy_finite() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    logprobs, entropies = token_logprobs(logits, torch.tensor([1]), temperature=1.0)
    (grad,) = torch.autograd.grad((logprobs + entropies).sum(), logits)
    assert entropies.item() == pytest.approx(math.log(2))
    assert grad.tolist() == [pytest.approx([-0.5, 0.5, 0.0])]


# ---- ages ----


def test_ages_are_counted_from_the_weights_that_the_update_starts_from() -> None:
    ages = token_ages(
        [sample([1], [2, 3], versions=np.asarray([4, 5])), sample([1], [2], versions=np.asarray([7]))], learner_version=7
    )
    assert (ages.tokens, ages.total, ages.oldest) == (3, 5, 3)
    assert token_ages([], learner_version=7).oldest == 0


def test_staleness_above_the_bound_names_the_setting() -> None:
    old = [sample([1], [2, 3], versions=np.asarray([4, 5]))]
    check_staleness(old, learner_version=6, bound=2)
    with pytest.raises(StalenessError, match=r"3 versions old \(v4, learner at v7\); flow\.max_staleness is 2"):
        check_staleness(old, learner_version=7, bound=2)
    with pytest.raises(StalenessError, match="v5, which does not exist yet"):
        check_staleness(old, learner_version=4, bound=2)


# ---- settings ----


def test_importing_the_spec_loads_nothing_heavy() -> None:
    code = "import sys, fr3e_async.learner.spec; print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_environment_follows_device_and_verbosity() -> None:
    spec = make_spec(Path("model"), threads=3)
    cpu = rank_environment(spec)
    assert (cpu["OMP_NUM_THREADS"], cpu["DS_ACCELERATOR"], cpu["DEEPSPEED_LOG_LEVEL"]) == ("3", "cpu", "error")
    gpu = rank_environment(replace(spec, learner=replace(LEARNER, gpus=1), verbose=True))
    assert not {"DS_ACCELERATOR", "TORCHDYNAMO_DISABLE", "DEEPSPEED_LOG_LEVEL", "PYTHONWARNINGS"} & gpu.keys()


def test_free_address_gives_a_port_that_can_be_bound() -> None:
    host, port = free_address("10.0.0.7")
    assert host == "10.0.0.7"
    assert 1024 <= port < 65536


def test_ds_config_wins_key_by_key() -> None:
    from fr3e_async.learner.engine import deepspeed_config

    learner = LearnerConfig(zero_stage=3, ds_config={"zero_optimization": {"sub_group_size": 5}, "gradient_clipping": 0.25})
    config = deepspeed_config(learner, parameters=1000)
    assert config["zero_optimization"] == {"stage": 3, "overlap_comm": False, "reduce_bucket_size": 1000, "sub_group_size": 5}
    assert config["gradient_clipping"] == 0.25
    assert config["managed_gradient_accumulation"] is False


def test_null_in_ds_config_takes_a_setting_of_ours_out() -> None:
    from fr3e_async.learner.engine import deepspeed_config

    learner = LearnerConfig(ds_config={"optimizer": {"params": {"torch_adam": None, "fused": None}}})
    params = deepspeed_config(learner, parameters=1000)["optimizer"]["params"]
    assert params == {"lr": 1e-6, "betas": [0.9, 0.95], "weight_decay": 0.0}


# ---- checkpoint manifest ----


def test_manifest_round_trip_and_refusals(tmp_path: Path) -> None:
    manifest = Manifest(version=4, ranks=2, zero_stage=1, dtype="float32")
    with pytest.raises(StorageError, match="holds no learner checkpoint"):
        Manifest.read(tmp_path)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert json.loads((tmp_path / "learner.json").read_text())["version"] == 4
    manifest.require_fits(ranks=2, zero_stage=1, dtype="float32")
    for change, setting in (({"ranks": 1}, "ranks"), ({"zero_stage": 2}, "zero_stage"), ({"dtype": "bfloat16"}, "dtype")):
        with pytest.raises(ConfigError, match=rf"learner\.{setting} is"):
            manifest.require_fits(**{"ranks": 2, "zero_stage": 1, "dtype": "float32"} | change)  # type: ignore[arg-type]
    Manifest(version=4, ranks=2, zero_stage=0, dtype="float32").require_fits(ranks=3, zero_stage=0, dtype="float32")
