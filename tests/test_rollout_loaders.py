"""Loads into vLLM's own models, proven; and each way in which one may go wrong, seen. Without an engine: numbers are compared elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, dict[str, str]]:
    """What ``loader_driver`` has found, by model."""
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command = [sys.executable, "tests/loader_driver.py", str(tmp_path_factory.mktemp("models"))]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["model"]: line for line in lines}


@pytest.mark.parametrize(
    ("model", "tensors", "kept", "again"),
    [("mixtral", 41, 5, 31), ("qwen2_moe", 55, 11, 38), ("qwen3_moe", 44, 9, 33), ("gpt2", 28, 19, 12), ("qwen2", 26, 11, 12)],
)
def test_loads_are_proven(found, model, tensors, kept, again):
    """Every element at the first load and the first update; then what is kept as it was loaded, and of the rest a part."""
    *whole, later, part = found[model]["loads"]
    assert whole == [f"{tensors} exact, 0 probed of {tensors}, 0 left"] * 2
    assert later == f"{kept} exact, {tensors - kept} probed of {tensors}, 0 left"
    assert part.endswith(f"of {again}, 0 left"), "only layers with something new are loaded"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("transposed", "the packed copy of model.layers.1.self_attn.o_proj.weight differs from model.layers.1.self_attn.o_proj.weight after loading"),
        ("one expert", "w2_weight differs in expert 2 from model.layers.0.mlp.experts.2.down_proj.weight after loading"),
        ("stale head", "the packed copy of lm_head.weight differs from model.embed_tokens.weight after loading"),
        ("head not packed again", "the packed copy of lm_head.weight differs from model.embed_tokens.weight after loading"),
        ("experts as vLLM reloads them", "differs in expert 0 from model.layers.0.mlp.experts.0."),
        ("skipped", "1 weights of the engine were not loaded, or not wholly: model.layers.0.self_attn.qkv_proj.weight"),
        ("mended", "44 exact, 0 probed of 44, 0 left"),
    ],
)  # fmt: skip
def test_a_load_that_goes_wrong_is_seen(found, how, message):
    assert message in found["spoilt"][how]
