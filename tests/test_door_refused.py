"""Models that the engines or the learner cannot work with, by the real command line: one line with the cause, exit code 2, no files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(240)]

SETTINGS = (
    "config=toy", "run.steps=2", "flow.groups_per_step=4", "data.heldout=", "data.template={problem}", "observe.tensorboard=false",
    "sampling.max_response=16", "toy.train_problems=20",
)  # fmt: skip


def saved(folder: Path, **changes: Any) -> Path:
    """A tiny random Qwen2 with the tokenizer of the toy task."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from fr3e_async.data.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**sizes | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refused(model: Path) -> str:
    """What the run says on stderr, which must be one line; it must leave nothing."""
    run = model.parent / "run"
    run.mkdir()  # it was there before: only what comes into it goes
    command = [sys.executable, "-m", "fr3e_async.main", *SETTINGS, f"model.path={model}", f"run.dir={run}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert list(run.iterdir()) == []
    return done.stderr


def test_heads_that_an_engine_cannot_serve_are_refused_with_the_first_error_of_its_log(tmp_path: Path) -> None:
    """vLLM's attention on a CPU takes heads of 32 and more: it dies as it starts or at its first request, by version and model."""
    error = refused(saved(tmp_path / "model", head_dim=16, num_attention_heads=4))
    assert "it failed at its first request" in error or "could not start" in error
    assert "the likeliest cause: RuntimeError: Unsupported CPU attention configuration: head_dim=16" in error
