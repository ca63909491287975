"""The local head for real: start, submit a job that joins the cluster, stop; with token authentication and a fresh home."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "cluster" / "local.sh"
OFFSET = 400  # besides a head that somebody may have started by hand

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    folder = Path(tempfile.mkdtemp(prefix="fr3e-", dir="/tmp"))  # Ray makes sockets in it: the path must be short
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
    environment |= {"HOME": str(tmp_path), "FR3E_PORT_OFFSET": str(OFFSET), "FR3E_HEAD_DIR": str(folder), "FR3E_HEAD_CPUS": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=600)

    yield run
    run("stop")
    shutil.rmtree(folder, ignore_errors=True)


def listening() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 8301 + OFFSET)) == 0


@pytest.mark.ray
@pytest.mark.slow
def test_start_submit_stop(call: Call) -> None:
    started = call("start")
    assert started.returncode == 0, started.stderr
    again = call("start")
    assert again.stdout.startswith("running already")
    job = "import ray; ray.init(); print('sum', sum(ray.get([ray.remote(lambda n: n).remote(n) for n in (1, 2, 3)])))"
    submitted = call("ray", "job", "submit", "--", "python", "-c", job)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "sum 6" in submitted.stdout
    assert call("stop").stdout == "stopped\n"
    assert not listening()
    assert call("status").returncode == 1
