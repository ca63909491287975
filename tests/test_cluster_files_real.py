"""The notice of preemption and the Slurm launcher against a real Ray, on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
OFFSET = 700  # besides heads that other tests, or somebody by hand, may have started


@pytest.fixture
def folder() -> Iterator[Path]:
    """Ray makes sockets in it: the path must be short."""
    path = Path(tempfile.mkdtemp(prefix="fr3e-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.timeout(300)
def test_ray_drains_the_node_that_the_notice_names(folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from fr3e_async.actors.cluster import DrainingNodes

    class Home:  # local: Ray's workers cannot import a test's module
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    common = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=common | {"include_dashboard": False, "temp_dir": str(folder / "r")})
    try:
        node = cluster.add_node(**common, resources={"engine": 2})
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        home = ray.remote(num_cpus=0, resources={"engine": 1})(Home)
        first = home.remote()
        assert ray.get(first.node.remote(), timeout=60) == node.node_id
        program = [sys.executable, str(ROOT / "cluster" / "preemption_notice.py"), "now", "--deadline-s", "90"]
        words = ["--node-id", node.node_id, "--ray", str(BIN / "ray")]
        done = subprocess.run([*program, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"draining node {node.node_id}: the pod is being ended; 90 s left" in done.stdout
        draining = DrainingNodes()()
        assert list(draining) == [node.node_id]
        assert 0 < draining[node.node_id] <= 90
        second = home.remote()
        ready, _ = ray.wait([second.node.remote()], timeout=3)
        assert ready == []  # it gets nothing new
        assert ray.get(first.node.remote(), timeout=60) == node.node_id  # and what it has continues
        ray.kill(first)
        end = time.monotonic() + 60
        while node.node_id in [n["NodeID"] for n in ray.nodes() if n["Alive"]]:  # without work it leaves by itself
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        ray.shutdown()
        cluster.shutdown()


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
if [[ $1 == ray ]]; then exec "$@" --object-store-memory=200000000; fi
exec "$@"
"""


@pytest.fixture
def slurm(folder: Path) -> dict[str, str]:
    """The environment of a job of one node, whose steps run here."""
    (folder / "bin").mkdir()
    scripts = {"srun": SRUN, "scontrol": "#!/bin/bash\necho here\n"}
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FR3E_", "SLURM_", "RAY_"))}
    return inherited | {
        "PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}",
        "FR3E_VENV": str(folder / "none"),
        "FR3E_STATE": str(folder / "state"),
        "FR3E_HEAD_IP": _own_address(),
        "FR3E_PORT_OFFSET": str(OFFSET),
        "FR3E_SLOTS": "8",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": folder.name.removeprefix("fr3e-") + "-ray",  # of which the script makes Ray's folder
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_ON_NODE": "12",
    }


def _own_address() -> str:
    import ray

    return ray.util.get_node_ip_address()


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_slurm_job_trains_and_is_stopped_with_a_checkpoint(slurm: dict[str, str], tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    settings = ["config=toy", f"run.dir={run_dir}", "data.heldout=", "flow.groups_per_step=8", "run.steps=1000"]
    settings += ["generators.resources={engine: 1}", "explorers.resources={engine: 1}", "learner.resources={learner: 1}"]
    command = ["bash", str(ROOT / "cluster" / "slurm.sbatch"), *settings]
    with log.open("w") as out:
        job = subprocess.Popen(command, env=slurm, stdout=out, stderr=subprocess.STDOUT)
    metrics, end = run_dir / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)
    job.terminate()
    assert job.wait(timeout=120) == 0, log.read_text()
    latest = (run_dir / "checkpoints" / "latest").read_text().strip()
    assert int(latest.removeprefix("step-")) >= 2
    assert "the run writes a checkpoint and ends" in log.read_text()
    assert not list(Path(slurm["FR3E_STATE"]).glob("token-*"))
    temp_dir = f"/tmp/fr3e-{slurm['SLURM_JOB_ID']}"
    assert subprocess.run(["pgrep", "-f", f"temp.dir={temp_dir}"], capture_output=True, text=True).stdout == ""
    assert not Path(temp_dir).exists()
