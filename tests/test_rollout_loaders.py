"""Loads into vLLM's own models, proven; and each way in which one may go wrong, seen. Without an engine: numbers are compared elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fr3e_async.learner.spec import free_address

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]


Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Found:
    """What ``loader_driver`` has found, by model."""
    return lines_of([start(repository, tmp_path_factory.mktemp("models"))])


def start(repository: Path, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "tests/loader_driver.py", *(str(arg) for arg in args)]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.Popen(command, cwd=repository, env=environment, stdout=-1, stderr=-1, text=True)


def lines_of(drivers: list[subprocess.Popen[str]]) -> Found:
    found: Found = {}
    for driver in drivers:
        out, err = driver.communicate()
        assert driver.returncode == 0, err[-4000:]
        found |= {line["model"]: line for line in map(json.loads, (text for text in out.splitlines() if text.startswith("{")))}
    return found


def test_two_workers_prove_their_shards_and_see_a_wrong_one(repository, tmp_path):
    """Each holds what it took, so neither could tell alone: nobody has taken the second half."""
    _, port = free_address("127.0.0.1")
    ranks = lines_of([start(repository, tmp_path, rank, port) for rank in (0, 1)])
    for rank in (ranks["rank 0"], ranks["rank 1"]):
        first, second, later, collective = rank["loads"]
        assert {first, second, collective} == {"41 exact, 0 probed, same checksum"}
        assert later == "5 exact, 36 probed, same checksum"
        assert re.match(r"4 of the sent weights are not, or not wholly, in the engine, e\.g\. .*\.layers\.0\.", rank["wrong"])


@pytest.mark.parametrize(
    ("model", "tensors", "kept", "again"),
    [
        ("mixtral", 41, 5, 19),
        ("qwen2_moe", 55, 11, 26),
        ("qwen3_moe", 44, 9, 21),
        ("gpt2", 28, 19, 12),
        ("qwen2", 26, 11, 12),
        ("deepseek_v2", 36, 7, 23),
        ("deepseek_v3", 41, 9, 26),
    ],
)
def test_loads_are_proven(found, model, tensors, kept, again):
    """Every element at the first load and the first update; then what is kept as it was loaded, and of the rest a part."""
    *whole, later, part, collective, again_later = found[model]["loads"]
    assert {*whole, collective} == {f"{tensors} exact, 0 probed, same checksum"}
    assert {later, again_later} == {f"{kept} exact, {tensors - kept} probed, same checksum"}
    exact, probed = (int(number) for number in re.findall(r"\d+", part))
    assert exact + probed == again, "only layers with something new are loaded"


@pytest.mark.parametrize("model", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_compute_what_the_learners_do_after_updates(found, model):
    """vLLM's own reload leaves them unpacked, where its kernel takes them for packed: see the spoilt loads."""
    assert found[model]["error"] < 1e-5
    assert float(found["spoilt"]["experts as vLLM reloads them"].split("off by ")[1].rstrip("%")) > 50


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
