"""The learner's parts that need no model: ages, settings, checkpoint manifest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learner_support import LEARNER, make_spec

from fr3e_async.config import LearnerConfig
from fr3e_async.learner.metrics import TokenAgeError, token_ages
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


# ---- ages ----


def test_ages_are_counted_from_the_weights_that_the_update_starts_from() -> None:
    ages = token_ages(
        [sample([1], [2, 3], versions=np.asarray([4, 5])), sample([1], [2], versions=np.asarray([7]))], learner_version=7
    )
    assert (ages.tokens, ages.total, ages.oldest) == (3, 5, 3)
    assert token_ages([], learner_version=7).oldest == 0


def test_staleness_above_the_bound_names_the_setting() -> None:
    old = [sample([1], [2, 3], versions=np.asarray([4, 5]))]
    token_ages(old, learner_version=6, bound=2)
    with pytest.raises(TokenAgeError, match=r"3 versions old \(v4, learner at v7\); flow\.max_staleness is 2"):
        token_ages(old, learner_version=7, bound=2)
    with pytest.raises(TokenAgeError, match="v5, which does not exist yet"):
        token_ages(old, learner_version=4, bound=2)


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
    assert config["zero_optimization"] == {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 1000, "sub_group_size": 5}
    overlaps = [
        deepspeed_config(LearnerConfig(zero_stage=n), parameters=9)["zero_optimization"]["overlap_comm"] for n in range(4)
    ]
    assert overlaps == [False, False, False, True]
    large = deepspeed_config(learner, parameters=32_763_876_352)["zero_optimization"]
    assert large["reduce_bucket_size"] == 2**25  # bounded by itself
    assert config["gradient_clipping"] == 0.25
    assert config["managed_gradient_accumulation"] is False


def test_null_in_ds_config_takes_a_setting_of_ours_out() -> None:
    from fr3e_async.learner.engine import deepspeed_config

    learner = LearnerConfig(ds_config={"optimizer": {"params": {"torch_adam": None, "fused": None}}})
    params = deepspeed_config(learner, parameters=1000)["optimizer"]["params"]
    assert params == {"lr": 1e-6, "betas": [0.9, 0.95], "weight_decay": 0.0}
