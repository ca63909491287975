"""Loads into vLLM's own models, proven; and each way in which one may go wrong, seen. Without an engine: numbers are compared elsewhere."""

from __future__ import annotations

import json
import os
import re
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
    [("mixtral", 41, 5, 19), ("qwen2_moe", 55, 11, 26), ("qwen3_moe", 44, 9, 21), ("gpt2", 28, 19, 12), ("qwen2", 26, 11, 12)],
)
def test_loads_are_proven(found, model, tensors, kept, again):
    """Every element at the first load and the first update; then what is kept as it was loaded, and of the rest a part."""
    *whole, later, part, collective, again_later = found[model]["loads"]
    assert {*whole, collective} == {f"{tensors} exact, 0 probed, same checksum"}
    assert {later, again_later} == {f"{kept} exact, {tensors - kept} probed, same checksum"}
    exact, probed = (int(number) for number in re.findall(r"\d+", part))
    assert exact + probed == again, "only layers with something new are loaded"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("transposed", "the packed copy of model.layers.1.self_attn.o_proj.weight differs from model.layers.1.self_attn.o_proj.weight after loading"),
        ("one expert", "w2_weight differs in expert 2 from model.layers.0.mlp.experts.2.down_proj.weight after loading"),
        ("stale head", "the packed copy of lm_head.weight differs from model.embed_tokens.weight after loading"),
        ("head not packed again", "the packed copy of lm_head.weight differs from model.embed_tokens.weight after loading"),
        ("experts as vLLM reloads them", "differs in expert 0 from model.layers.0.mlp.experts.0."),
        ("skipped", "1 weights of the engine were not loaded, or not wholly: model.layers.0.self_attn.qkv_proj.weight"),
        ("changed on the way", "44 exact, 0 probed, another checksum"),
        ("mended", "44 exact, 0 probed, same checksum"),
    ],
)  # fmt: skip
def test_a_load_that_goes_wrong_is_seen(found, how, message):
    assert message in found["spoilt"][how]


@pytest.mark.parametrize("model", ["dense", "mixture"])
def test_a_proof_in_part_takes_little_of_the_loads_time(found, model):
    """CPU time; the goal is a tenth. Looking at every element takes several times the load."""
    assert found[model]["part_s"] < 0.13 * found[model]["load_s"]
    assert found[model]["whole_s"] > found[model]["load_s"]
