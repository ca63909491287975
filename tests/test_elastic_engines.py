"""The whole system, real engines included, on nodes that come and go: a node with an engine is lost while it generates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from node_cluster import NodeCluster, until

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.long]

HERE = Path(__file__).parent
TYPES = {"engine": {"CPU": 1, "engine": 1}, "rest": {"CPU": 2, "rest": 2}}
SETTINGS = (
    "config=toy", "ray.autoscaling=true", "generators.resources={engine: 1}", "explorers.resources={engine: 1}",
    "verifiers.resources={rest: 1}", "learner.resources={rest: 1}", "generators.cpus=0", "explorers.cpus=0", "verifiers.cpus=0",
    "learner.cpus=0", "generators.max=2", "generators.rollouts_in_flight=8", "pools.grow_after_s=1", "flow.groups_per_step=8",
    "run.steps=100000", "evaluation.problems=64", "observe.console=off", "observe.heartbeat_s=0.5",
)  # fmt: skip


def lines(path: Path) -> list[dict]:
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.timeout(600)
def test_a_lost_node_of_real_engines_costs_nothing_but_time(tmp_path: Path) -> None:
    import ray

    run, out = tmp_path / "run", tmp_path / "out.txt"

    def said(kind: str) -> list[dict]:
        return [row for row in lines(run / "logs" / "events.jsonl") if row["event"] == kind]

    def trained() -> int:
        return sum(row["what"] == "trained" for row in lines(run / "ledger.jsonl"))

    with NodeCluster(TYPES) as cluster:
        ray.init(address=cluster.address, namespace="watcher", log_to_driver=False)
        environment = cluster.environment() | {"PYTHONPATH": str(HERE.parent)}
        with out.open("w") as file:
            command = [sys.executable, "-m", "fr3e_async.main", *SETTINGS, f"run.dir={run}"]
            driver = subprocess.Popen(command, stdout=file, stderr=file, env=environment | {"PWD": os.getcwd()})
        try:
            until(lambda: trained() >= 2 and said("actor_joined"), 300, "batches, and one generator more")
            cluster.kill(sorted(cluster.of_type("engine"))[0])
            until(lambda: said("actor_lost"), 60, "its loss is seen")
            count = trained()
            until(lambda: trained() >= count + 3, 300, "three more batches")
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(60) == 0, out.read_text()[-2000:]
        finally:
            ray.shutdown()
            driver.kill()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] >= count + 3
    assert summary["staleness_max"] <= 1
    for check in ("audit", "replay"):
        done = subprocess.run(
            [sys.executable, "-m", f"fr3e_async.{check}", str(run)], capture_output=True, text=True, cwd=HERE.parent
        )
        assert done.returncode == 0, done.stdout + done.stderr
