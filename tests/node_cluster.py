"""A Ray cluster of several nodes on one machine that really autoscales: a head, and node types that come and go.

Ray's own ``AutoscalingCluster`` needs a file that its wheel does not ship and ends every Ray on the machine, so this starts a
head with the same fake node provider, on ports and in a folder of its own, and ends only processes that carry either.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # of Ray's fake provider: FAKE_HEAD_NODE_ID
HEAD_TYPE = "ray.head.default"  # the name by which the fake provider knows it
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STORE_BYTES = 100_000_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class NodeCluster:
    """A context manager. ``types``: node type -> resources of one node; each may have up to ``most`` nodes."""

    def __init__(
        self,
        types: dict[str, dict[str, float]],
        *,
        most: int = 4,
        idle_minutes: float = 0.1,
        cpus: float = 0,
        environment: dict[str, str] | None = None,
    ) -> None:
        """``environment``: of all processes on its nodes, besides the caller's."""
        self._own = environment or {}
        self.folder = Path(tempfile.mkdtemp(prefix="fr3e", dir="/tmp"))  # Ray makes sockets in it: the path must be short
        self.port, self._cpus = free_port(), cpus
        self.address = f"{self._own_ip()}:{self.port}"
        self._config = self._described(types, most, idle_minutes)

    def _own_ip(self) -> str:
        import ray

        return ray.util.get_node_ip_address()

    def _described(self, types: dict[str, dict[str, float]], most: int, idle_minutes: float) -> dict[str, Any]:
        worker = {
            name: {
                "node_config": {}, "min_workers": 0, "max_workers": most, "resources": {**its, "object_store_memory": STORE_BYTES},
                "labels": {"fr3e-type": name},
            }
            for name, its in types.items()
        }  # fmt: skip
        empty: dict[str, Any] = {
            name: []
            for name in (
                "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files",
                "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter",
            )
        }  # fmt: skip
        provider = {
            "type": "external", "module": PROVIDER, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "gcs_address": self.address, "launch_multiple": True, "head_node_id": HEAD_ID,
        }  # fmt: skip
        return {
            "cluster_name": "local", "max_workers": most * len(types), "provider": provider, "head_node_type": HEAD_TYPE,
            "available_node_types": {HEAD_TYPE: {"resources": {"CPU": self._cpus}, "node_config": {}, "max_workers": 0}, **worker},
            "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False, "upscaling_speed": 10.0,
            "idle_timeout_minutes": idle_minutes, **empty,
        }  # fmt: skip

    # ---- life ----

    def __enter__(self) -> NodeCluster:
        described = self.folder / "autoscaler.json"
        described.write_text(json.dumps(self._config))
        own = {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4", "RAY_health_check_timeout_ms": "2000",
        }  # fmt: skip
        command = [
            RAY, "start", "--head", f"--autoscaling-config={described}", f"--port={self.port}", f"--temp-dir={self.folder}",
            f"--num-cpus={self._cpus:g}", "--num-gpus=0", "--include-dashboard=False", f"--object-store-memory={STORE_BYTES}",
            "--disable-usage-stats", f"--ray-client-server-port={free_port()}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, env=os.environ | self._own | own, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for _ in range(3):  # the monitor may be starting a node just now
            for process in list(self._members()):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.2)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _members(self) -> Iterator[psutil.Process]:
        """Processes of this cluster, and their children."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if process.pid != os.getpid() and any(str(self.folder) in word or self.address in word for word in words):
                yield process
                with contextlib.suppress(psutil.Error):
                    yield from process.children(recursive=True)

    # ---- what is there, and what may happen to it ----

    def environment(self) -> dict[str, str]:
        """For commands that join it."""
        return os.environ | self._own | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": self.address}

    def nodes(self) -> dict[str, dict[str, float]]:
        """Living worker nodes -> their resources. The caller must have joined the cluster."""
        import ray

        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != HEAD_ID}

    def of_type(self, name: str) -> list[str]:
        """Nodes that offer the resource of this name."""
        return [node for node, its in self.nodes().items() if name in its]

    def kill(self, node: str) -> None:
        """Without notice: all processes of a node at once, as when its machine is gone."""
        import ray

        (socket_name,) = [its["RayletSocketName"] for its in ray.nodes() if its["NodeID"] == node]
        mark = f"--raylet_socket_name={socket_name}"
        raylets = [process for process in self._members() if mark in process.cmdline()]
        assert raylets, f"no raylet of node {node}"
        for process in [*(child for raylet in raylets for child in raylet.children(recursive=True)), *raylets]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def drain(self, node: str, *, seconds: int) -> None:
        """A notice of preemption."""
        words = ["drain-node", f"--address={self.address}", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message=preemption", f"--deadline-remaining-seconds={seconds}"]
        done = subprocess.run([RAY, *words], env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for it; its value."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:g} s: {what}")
