"""A run on a cluster that autoscales: it starts with a head alone, grows, loses nodes with and without notice, and shrinks.

Real nodes (processes of one machine), Ray's real autoscaler, the main job with its real learner and verifiers; engines are fakes
whose speed the test sets, so that load rises and falls. ``test_end_to_end`` has the real engines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_cluster import NodeCluster, until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HERE = Path(__file__).parent
TYPES = {
    "engine": {"CPU": 1, "engine": 1},
    "learner": {"CPU": 1, "learner": 1},
    "verifier": {"CPU": 1, "verifier": 1},
}
SETTINGS = (
    "config=toy", "ray.autoscaling=true", "generators.resources={engine: 1}", "explorers.resources={engine: 1}",
    "verifiers.resources={verifier: 1}", "learner.resources={learner: 1}", "generators.max=3", "generators.cpus=0",
    "explorers.cpus=0", "verifiers.cpus=0", "learner.cpus=0", "generators.rollouts_in_flight=4", "algorithm.anchors=2", "algorithm.branches=2",
    "algorithm.bases=2", "flow.groups_per_step=4", "flow.max_staleness=1", "run.steps=100000", "run.checkpoint_every=5", "data.heldout=",
    "observe.console=off", "observe.tensorboard=false", "observe.heartbeat_s=0.5", "pools.grow_after_s=2", "pools.shrink_after_s=8",
    "generators.labels={fr3e-type: engine}", "verifiers.labels={fr3e-type: verifier}", "learner.labels={fr3e-type: learner}",
    "reward=elastic_driver:reward", "learner.minibatches=1", "loss.importance=off",
)  # fmt: skip


class Scenario:
    """The run, and what its files say while it continues."""

    def __init__(self, cluster: NodeCluster, folder: Path, delays: Path, *settings: str) -> None:
        self.delays = delays
        self.cluster, self.run, self.out = cluster, folder / "run", folder / "out.txt"
        environment = cluster.environment() | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
        command = [sys.executable, str(HERE / "elastic_driver.py"), *SETTINGS, *settings, f"run.dir={self.run}"]
        with self.out.open("w") as file:
            self.driver = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def slow_down(self, delays: str) -> None:
        """At once: readers see the old ones or the new ones."""
        fresh = self.delays.with_suffix(".new")
        fresh.write_text(delays)
        fresh.replace(self.delays)

    def rows(self, name: str) -> list[dict]:
        path = self.run / name
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def said(self, *words: str) -> list[str]:
        """Events with all these words in them."""
        return [row["text"] for row in self.rows("logs/events.jsonl") if all(word in row["text"] for word in words)]

    def trained(self) -> int:
        return sum(row["what"] == "trained" for row in self.rows("ledger.jsonl"))

    def wait(self, condition, seconds: float, what: str):
        def alive():
            assert self.driver.poll() is None, f"the run has ended: {self.out.read_text()[-2000:]}"
            return condition()

        return until(alive, seconds, what)

    def goes_on(self) -> None:
        """Two more batches."""
        count = self.trained()
        self.wait(lambda: self.trained() >= count + 2, 60, f"two more batches after {count}")


@pytest.fixture(scope="module")
def begin(tmp_path_factory) -> Iterator[Callable[..., Scenario]]:
    """Starts runs on one cluster."""
    import ray

    delays = tmp_path_factory.mktemp("cluster") / "delays"
    delays.write_text("1 0")
    scenarios: list[Scenario] = []

    def begin(folder: Path, *settings: str) -> Scenario:
        scenarios.append(Scenario(cluster, folder, delays, *settings))
        return scenarios[-1]

    # Ray would keep rollouts as small as these in the driver: here they lie on the nodes that come and go, as those of a real run.
    own = {"FR3E_TEST_DELAYS": str(delays), "RAY_max_direct_call_object_size": "256"}
    with NodeCluster(TYPES, environment=own) as cluster:
        ray.init(address=cluster.address, namespace="watcher", log_to_driver=False)
        try:
            yield begin
        finally:
            ray.shutdown()
            for scenario in scenarios:
                scenario.driver.kill()


@pytest.mark.timeout(400)
def test_a_run_follows_its_cluster(begin: Callable[..., Scenario], tmp_path: Path) -> None:
    scenario = begin(tmp_path)
    cluster = scenario.cluster
    assert cluster.nodes() == {}, "it begins with a head alone"
    scenario.wait(lambda: scenario.trained() >= 2, 150, "nodes come up, and batches are trained")
    scenario.wait(lambda: scenario.said("generator-1 has joined"), 90, "more generators, since their tasks wait")
    assert len(cluster.of_type("engine")) >= 3
    scenario.goes_on()

    before = set(cluster.of_type("engine"))
    lost = scenario.said("is lost")
    cluster.kill(sorted(before)[0])
    scenario.wait(lambda: len(scenario.said("is lost")) > len(lost), 60, "the loss of a node is seen")
    joined = len(scenario.said("has joined"))
    scenario.wait(lambda: len(scenario.said("has joined")) > joined, 90, "another worker in its place")
    scenario.goes_on()

    noticed = sorted(set(cluster.of_type("engine")))[0]
    cluster.drain(noticed, seconds=60)
    scenario.wait(
        lambda: scenario.said("has left: its node is taken away"), 60, "the worker leaves a node that will be taken away"
    )
    (learner,) = cluster.of_type("learner")
    cluster.drain(learner, seconds=120)
    scenario.wait(
        lambda: scenario.said("a node of the learner group will be taken away"), 60, "the learner group leaves its node"
    )
    scenario.goes_on()

    scenario.slow_down("0 0.4")
    scenario.wait(lambda: scenario.said("generators: 1 wanted"), 90, "fewer generators, since the verifier is what all wait for")
    scenario.wait(lambda: len(cluster.of_type("engine")) <= 2, 90, "nodes leave")
    scenario.goes_on()

    scenario.driver.send_signal(signal.SIGTERM)
    assert scenario.driver.wait(60) == 0, scenario.out.read_text()[-2000:]
    audited(scenario.run)


@pytest.mark.long  # 45 s
@pytest.mark.timeout(300)
def test_ranks_on_two_nodes_and_then_one_rank_that_resumes(begin: Callable[..., Scenario], tmp_path: Path) -> None:
    """Each rank on a node of its own; a resume with another number of ranks."""
    settings = ("resume=auto", "learner.placement=strict_spread", "generators.max=0", "run.checkpoint_every=0")
    for ranks, steps in ((2, 2), (1, 4)):
        scenario = begin(tmp_path, *settings, f"learner.ranks={ranks}", f"run.steps={steps}")
        cluster = scenario.cluster
        scenario.slow_down("0 0")
        if ranks == 2:
            until(lambda cluster=cluster: len(cluster.of_type("learner")) >= 2, 90, "a node for each rank")
        assert scenario.driver.wait(120) == 0, scenario.out.read_text()[-2000:]
        summary = json.loads((scenario.run / "summary.json").read_text())
        assert (summary["exit_reason"], summary["steps"]) == ("finished", steps)
    assert summary["resumed_from"] == 2
    audited(scenario.run)


def audited(run: Path) -> None:
    """Nothing lost, nothing doubled, and every decision can be made again."""
    for command in ("audit", "replay"):
        words = [sys.executable, "-m", f"fr3e_async.{command}", str(run)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=HERE.parent)
        assert done.returncode == 0, done.stdout + done.stderr
