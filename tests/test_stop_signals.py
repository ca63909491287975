"""Real signals at a real run with a local cluster: the whole process group is told to end, and the terminal goes away."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.engine]

SECONDS = 45.0  # for the batch in training, the checkpoint and the end of all actors; run.stop_grace_s is 25 s


def start(run_dir: Path, output: int, **how: bool) -> subprocess.Popen[bytes]:
    settings = (
        f"run.dir={run_dir}", "resume=auto", "run.steps=1000", "run.checkpoint_every=0", "data.heldout=", "flow.groups_per_step=8",
        "observe.console=plain",
    )  # fmt: skip
    command = [sys.executable, "-m", "fr3e_async.main", "config=toy", *settings]
    return subprocess.Popen(command, stdin=output, stdout=output, stderr=output, start_new_session=True)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, f"it ended with {driver.returncode}"
        assert time.monotonic() < end
        time.sleep(0.5)


def steps(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return json.loads(metrics.read_text().splitlines()[-1])["step"] if metrics.is_file() and metrics.read_text() else 0


def ended_well(driver: subprocess.Popen[bytes], members: list[psutil.Process], run_dir: Path, reason: str) -> int:
    """The step of the checkpoint that the run has left; all of its processes are gone."""
    asked = time.monotonic()
    code = driver.wait(timeout=180)
    assert (code, time.monotonic() - asked < SECONDS) == (0, True)
    _, alive = psutil.wait_procs(members, timeout=20)
    assert alive == []
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["exit_reason"] == f"stopped by {reason}"
    assert (run_dir / "checkpoints" / "latest").read_text().strip() == f"step-{summary['steps']:08d}"
    return summary["steps"]


@pytest.mark.timeout(600)
def test_a_group_that_is_terminated_and_a_terminal_that_goes_away(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with open(tmp_path / "out", "wb") as out:
        driver = start(run_dir, out.fileno())
    wait_for(lambda: steps(run_dir) >= 2, driver, seconds=240)
    members = psutil.Process(driver.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {process.name() for process in members}
    os.killpg(driver.pid, signal.SIGTERM)  # as `timeout` does; its children's children are in groups of their own, or not
    for process in members:  # as systemd and Slurm do, which know them all
        process.terminate()
    first = ended_well(driver, members, run_dir, "SIGTERM")
    assert (
        "the batch in training" in (tmp_path / "out").read_text() or "a checkpoint is written" in (tmp_path / "out").read_text()
    )

    ours, theirs = pty.openpty()
    command = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from fr3e_async.cli.main import run; sys.exit(run(['train', *sys.argv[1:]]))"
    settings = (
        "config=toy",
        f"run.dir={run_dir}",
        "resume=auto",
        "run.steps=1000",
        "run.checkpoint_every=0",
        "data.heldout=",
        "flow.groups_per_step=8",
        "observe.console=live",
    )
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    driver = subprocess.Popen(
        [sys.executable, "-c", command, *settings],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment,
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def later() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 20)  # somebody reads the screen
        return steps(run_dir) > first

    wait_for(later, driver, seconds=240)
    members = psutil.Process(driver.pid).children(recursive=True)
    os.close(ours)  # the kernel sends SIGHUP to the group in the foreground
    assert ended_well(driver, members, run_dir, "SIGHUP") > first
