"""`ray job submit -- python -m fr3e_async.main` on a real head: logs, stop with a checkpoint, resume, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.engine]

SCRIPT = Path(__file__).parent.parent / "cluster" / "local.sh"
TOY_CACHE = Path.home() / ".cache" / "fr3e_async"
STOP_LIMIT_S = 30.0


class Head:
    """A local head with token authentication and a home of its own, and calls against it."""

    def __init__(self, home: Path, folder: Path) -> None:
        inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
        own = {"HOME": str(home), "FR3E_PORT_OFFSET": "500", "FR3E_HEAD_DIR": str(folder), "FR3E_HEAD_CPUS": "4"}
        self.environment = inherited | own

    def call(self, *words: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(SCRIPT), *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def submit(self, *settings: str) -> subprocess.Popen[str]:
        """Start a job and leave the submitting command streaming its log."""
        command = ["bash", str(SCRIPT), "submit", "config=configs/toy.yaml", f"toy.cache_dir={TOY_CACHE}", *settings]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="fr3e-", dir="/tmp"))  # Ray makes sockets in it: the path must be short
    head = Head(tmp_path_factory.mktemp("home"), folder)
    started = head.call("start")
    assert started.returncode == 0, started.stdout + started.stderr
    yield head
    head.call("stop")
    shutil.rmtree(folder, ignore_errors=True)


def read_until(job: subprocess.Popen[str], pattern: str, seen: list[str]) -> re.Match[str]:
    """The first line that matches, as the log streams in; every line read is added to ``seen``."""
    assert job.stdout is not None
    for line in job.stdout:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"the log ended without {pattern!r}:\n{''.join(seen)}")


@pytest.mark.timeout(600)
def test_stop_writes_a_checkpoint_and_a_second_job_resumes(head: Head, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = (f"run.dir={run_dir}", "resume=auto", "data.heldout=", "flow.groups_per_step=8")
    job, seen = head.submit(*settings, "run.steps=1000"), []
    job_id = read_until(job, r"Job '(raysubmit_\w+)' submitted", seen)[1]
    read_until(job, r"^step 3/1000 ", seen)
    asked = time.monotonic()
    stopped = head.call("ray", "job", "stop", job_id)
    job.wait(timeout=60)
    assert time.monotonic() - asked < STOP_LIMIT_S, "ray job stop took too long"
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "was stopped" in job.stdout.read()
    state = json.loads((run_dir / "summary.json").read_text())
    assert state["exit_reason"] == "stopped by SIGTERM"
    assert state["steps"] >= 3
    latest = (run_dir / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step-{state['steps']:08d}"

    target = state["steps"] + 1
    again, seen = head.submit(*settings, f"run.steps={target}"), []
    beside = head.submit(
        f"run.dir={tmp_path / 'beside'}", "data.heldout=", "flow.groups_per_step=4", "run.steps=1", "algorithm.strategy=grpo"
    )
    read_until(again, f"resuming from step {state['steps']}", seen)
    read_until(again, "succeeded", seen)
    assert again.wait(timeout=60) == 0
    final = json.loads((run_dir / "summary.json").read_text())
    assert (final["exit_reason"], final["steps"], final["resumed_from"]) == ("finished", target, state["steps"])

    output, _ = beside.communicate(timeout=200)
    assert beside.returncode == 0, output
    other = json.loads((tmp_path / "beside" / "summary.json").read_text())
    assert (other["exit_reason"], other["steps"]) == ("finished", 1), "a job beside another one on the same cluster"


def test_bad_input_fails_the_job_with_our_line_and_exit_code(head: Head) -> None:
    job = head.submit("learner.lrr=1")
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 1  # the submitting command's own code for a failed job
    assert "error: " in output
    assert "learner.lr" in output
    listed = head.call("ray", "job", "list")
    assert "driver_exit_code=2" in listed.stdout
