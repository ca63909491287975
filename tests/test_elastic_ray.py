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


class Story:
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
def begin(tmp_path_factory) -> Iterator[Callable[..., Story]]:
    """Starts runs on one cluster."""
    import ray

    delays = tmp_path_factory.mktemp("cluster") / "delays"
    delays.write_text("1 0")
    stories: list[Story] = []

    def begin(folder: Path, *settings: str) -> Story:
        stories.append(Story(cluster, folder, delays, *settings))
        return stories[-1]

    # Ray would keep rollouts as small as these in the driver: here they lie on the nodes that come and go, as those of a real run.
    own = {"FR3E_TEST_DELAYS": str(delays), "RAY_max_direct_call_object_size": "256"}
    with NodeCluster(TYPES, environment=own) as cluster:
        ray.init(address=cluster.address, namespace="watcher", log_to_driver=False)
        try:
            yield begin
        finally:
            ray.shutdown()
            for story in stories:
                story.driver.kill()


@pytest.mark.timeout(400)
def test_a_run_follows_its_cluster(begin: Callable[..., Story], tmp_path: Path) -> None:
    story = begin(tmp_path)
    cluster = story.cluster
    assert cluster.nodes() == {}, "it begins with a head alone"
    story.wait(lambda: story.trained() >= 2, 150, "nodes come up, and batches are trained")
    story.wait(lambda: story.said("generator-1 has joined"), 90, "more generators, since their tasks wait")
    assert len(cluster.of_type("engine")) >= 3
    story.goes_on()

    before = set(cluster.of_type("engine"))
    lost = story.said("is lost")
    cluster.kill(sorted(before)[0])
    story.wait(lambda: len(story.said("is lost")) > len(lost), 60, "the loss of a node is seen")
    joined = len(story.said("has joined"))
    story.wait(lambda: len(story.said("has joined")) > joined, 90, "another worker in its place")
    story.goes_on()

    noticed = sorted(set(cluster.of_type("engine")))[0]
    cluster.drain(noticed, seconds=60)
    story.wait(lambda: story.said("has left: its node is taken away"), 60, "the worker leaves a node that will be taken away")
    (learner,) = cluster.of_type("learner")
    cluster.drain(learner, seconds=120)
    story.wait(lambda: story.said("a node of the learner group will be taken away"), 60, "the learner group leaves its node")
    story.goes_on()

    story.slow_down("0 0.4")
    story.wait(lambda: story.said("generators: 1 wanted"), 90, "fewer generators, since the verifier is what all wait for")
    story.wait(lambda: len(cluster.of_type("engine")) <= 2, 90, "nodes leave")
    story.goes_on()

    story.driver.send_signal(signal.SIGTERM)
    assert story.driver.wait(60) == 0, story.out.read_text()[-2000:]
    audited(story.run)


@pytest.mark.long  # 45 s
@pytest.mark.timeout(300)
def test_ranks_on_two_nodes_and_then_one_rank_that_goes_on(begin: Callable[..., Story], tmp_path: Path) -> None:
    """Each rank on a node of its own; a resume with another number of ranks."""
    settings = ("resume=auto", "learner.placement=strict_spread", "generators.max=0", "run.checkpoint_every=0")
    for ranks, steps in ((2, 2), (1, 4)):
        story = begin(tmp_path, *settings, f"learner.ranks={ranks}", f"run.steps={steps}")
        cluster = story.cluster
        story.slow_down("0 0")
        if ranks == 2:
            until(lambda cluster=cluster: len(cluster.of_type("learner")) >= 2, 90, "a node for each rank")
        assert story.driver.wait(120) == 0, story.out.read_text()[-2000:]
        summary = json.loads((story.run / "summary.json").read_text())
        assert (summary["exit_reason"], summary["steps"]) == ("finished", steps)
    assert summary["resumed_from"] == 2
    audited(story.run)


def audited(run: Path) -> None:
    """Nothing lost, nothing doubled, and every decision can be made again."""
    for command in ("audit", "replay"):
        words = [sys.executable, "-m", f"fr3e_async.{command}", str(run)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=HERE.parent)
        assert done.returncode == 0, done.stdout + done.stderr
