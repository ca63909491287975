"""Checks that need an NVIDIA GPU: `make gpu-check`. Elsewhere they are skipped with the reason.

Each starts in a process of its own, since a process can hold one learner group and one accelerator setting.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

LEARNER = """
import sys
from learner_support import (
    PlainLearner, build_model, exported, largest_difference, make_samples, make_spec, start_rank, weights_of
)
from pathlib import Path
stage, dtype, tolerance = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
path = build_model(Path(sys.argv[4]), head_dim=32)  # FlexAttention wants 16 or more
spec = make_spec(path, gpus=1, zero_stage=stage, dtype=dtype, tree_attention=sys.argv[5])
rank, plain = start_rank(spec), PlainLearner(spec)
samples = make_samples(1)
report = rank.train(samples, version=1)
plain.train(samples)
bundle = exported(rank, 1)
assert bundle.manifest.dtype == dtype, bundle.manifest.dtype
weights = {name: w.float() for name, w in weights_of(bundle).items()}
difference = largest_difference(weights, plain.weights())
print("difference to plain torch on the CPU", difference, "metrics", report.metrics)
assert difference < tolerance
rank.close()
"""


@pytest.mark.parametrize("kernel", ["flex", "blocks"])
@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_a_rank_on_nccl_agrees_with_plain_torch(tmp_path: Path, stage: int, dtype: str, tolerance: float, kernel: str) -> None:
    words = [sys.executable, "-c", LEARNER, str(stage), dtype, str(tolerance), str(tmp_path / "model"), kernel]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "difference to plain torch" in done.stdout


def test_a_run_hands_weights_over_by_nccl(tmp_path: Path) -> None:
    """Learner and engine on a GPU each."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL wants one a member of the group")
    share = "generators.gpus=1", "explorers.count=0", "algorithm.strategy=grpo_pp", "algorithm.bases=16", "learner.gpus=1"
    words = [sys.executable, "-m", "fr3e_async.main", "config=toy", *share, "weights.transfer=collective", "engine.dtype=float32"]
    done = subprocess.run([*words, "run.steps=4", f"run.dir={tmp_path / 'run'}"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished: 4 steps" in done.stdout


def test_the_toy_run_on_one_gpu(tmp_path: Path) -> None:
    """The engine on the GPU, the learner on the CPU: the same job as on a laptop."""
    share = "generators.gpus=1", "explorers.count=0", "algorithm.strategy=grpo_pp", "algorithm.bases=16", "learner.gpus=0"
    words = [sys.executable, "-m", "fr3e_async.main", "config=toy", *share, "run.steps=6", f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before and after" in done.stdout
