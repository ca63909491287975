"""The launcher's files and the local head, checked offline: by Ray's own validation, and against what the configs ask for."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fr3e_async.errors import ConfigError
from fr3e_async.learner.memory import model_shape, version_bytes
from fr3e_async.plan.placement import check_resources, placement
from fr3e_async.settings.loader import load_config

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
LAUNCHER_FILES = ["aws.yaml", "gcp.yaml"]
PAPER = ["paper/qwen2.5-7b", "paper/qwen2.5-math-7b", "paper/qwen2.5-32b"]

Document = dict[str, Any]


def launcher(name: str) -> Document:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def rayjob() -> Document:
    return list(yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")))[1]


# --- Ray's cluster launcher -------------------------------------------------------------------------------------------


def validate_launcher(document: Document) -> dict[str, tuple[int, int]]:
    """Node type → (min, max), as the autoscaler reads it. Raises what Ray raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    prepared = prepare_config(copy.deepcopy(document))
    validate_config(prepared)
    config = AutoscalingConfig(prepared, skip_content_hash=True)
    return {name: (node.min_worker_nodes, node.max_worker_nodes) for name, node in config.get_node_type_configs().items()}


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_ray_accepts_the_launcher_file(name: str) -> None:
    types = validate_launcher(launcher(name))
    types.pop("head")
    assert types == {"engine": (0, 4), "learner": (0, 4), "verifier": (0, 6)}


def _misspell_top(document: Document) -> None:
    document["max_workrs"] = 3


def _misspell_type(document: Document) -> None:
    document["available_node_types"]["engine"]["maxworkers"] = 3


def _fraction(document: Document) -> None:
    document["available_node_types"]["engine"]["resources"]["GPU"] = 0.5


def _no_such_head(document: Document) -> None:
    document["head_node_type"] = "nowhere"


@pytest.mark.parametrize("spoil", [_misspell_top, _misspell_type, _fraction, _no_such_head])
@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_ray_refuses_a_spoilt_launcher_file(name: str, spoil: Callable[[Document], None]) -> None:
    from jsonschema import ValidationError

    document = launcher(name)
    spoil(document)
    with pytest.raises((ValidationError, ValueError)):
        validate_launcher(document)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_head_runs_no_actor_and_listens_on_loopback_with_a_token(name: str) -> None:
    document = launcher(name)
    assert document["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (start,) = (line for line in document["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    commands = document["head_start_ray_commands"] + document["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in commands if line != "ray stop")
    assert "/home/ray/.ray/auth_token" in document["file_mounts"]


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_workers_watch_for_the_clouds_notice_in_the_background(name: str, tmp_path: Path) -> None:
    document = launcher(name)
    line = document["worker_start_ray_commands"][-1]
    program = re.search(r"python (\S+/preemption_notice\.py) (\w+)", line)
    assert program is not None
    assert program[1].removeprefix("/home/ray/fr3e-async/") == "cluster/preemption_notice.py"
    assert document["file_mounts"]["/home/ray/fr3e-async"] == "."
    assert program[2] == document["provider"]["type"]
    # As the launcher runs it, with another program in its place: the shell must not wait for it.
    log, flag = tmp_path / "log", tmp_path / "flag"
    flag.touch()
    slow = line.replace(program[0], f"sh -c 'echo $RAY_AUTH_MODE; while [ -e {flag} ]; do sleep 0.1; done'").replace(
        "/tmp/preemption_notice.log", str(log)
    )
    began = time.monotonic()
    subprocess.run(["bash", "-c", f"true && ({slow})"], check=True, timeout=600)
    while not log.exists() or log.read_text() != "token\n":
        assert time.monotonic() - began < 240
        time.sleep(0.05)
    flag.unlink()


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_no_node_is_kept_up_for_nothing(name: str) -> None:
    document = launcher(name)
    assert document["idle_timeout_minutes"] == 10
    assert all(node["min_workers"] == 0 for node in document["available_node_types"].values())
    assert any("RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S=600" in line for line in document["head_start_ray_commands"])


def test_ray_gives_up_pending_nodes_after_the_time_that_the_files_set() -> None:
    """The variable is Ray's own, and is read when it is imported."""
    code = (
        "from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig as C; print(C.get_pending_idle_timeout_s(None))"
    )
    variable = {"RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S": "600"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variable, capture_output=True, text=True, check=True)
    assert done.stdout == "600.0\n"


def test_engines_are_spot_and_learners_on_demand() -> None:
    aws, gcp = (launcher(name)["available_node_types"] for name in LAUNCHER_FILES)
    assert aws["engine"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in aws["learner"]["node_config"]
    assert gcp["engine"]["node_config"]["scheduling"][0]["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in gcp["learner"]["node_config"]["scheduling"][0]


# --- what the configs ask for -----------------------------------------------------------------------------------------


def largest(groups: list[tuple[dict[str, Any], int]]) -> dict[str, float]:
    """Resources of all node types at their largest."""
    offer: dict[str, float] = {}
    for resources, count in groups:
        for name, amount in resources.items():
            offer[name] = offer.get(name, 0.0) + count * float(amount)
    return offer


def node_groups(name: str) -> list[tuple[dict[str, Any], int]]:
    """(resources of a node, most nodes) of each node type of a launcher file or of the RayJob."""
    if name == "kuberay-rayjob.yaml":
        return [(g["resources"], g["maxReplicas"]) for g in rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    return [(t["resources"], t["max_workers"]) for t in launcher(name)["available_node_types"].values()]


@pytest.mark.parametrize("run", PAPER)
@pytest.mark.parametrize("name", [*LAUNCHER_FILES, "kuberay-rayjob.yaml"])
def test_the_papers_runs_fit_the_cluster_at_its_largest(name: str, run: str) -> None:
    config = load_config([f"config={run}"]).config
    check_resources(config, largest(node_groups(name)))
    for row in placement(config):  # one actor lies on one node
        each = {"CPU": row.cpus, "GPU": float(row.gpus)} | row.resources
        assert any(all(float(node.get(k, 0)) >= v for k, v in each.items()) for node, _ in node_groups(name)), row.role


def test_a_run_that_is_too_large_for_the_cluster_is_refused() -> None:
    config = load_config(["config=paper/qwen2.5-7b", "learner.ranks=64"]).config
    with pytest.raises(ConfigError, match=r"lower .*learner\.ranks"):
        check_resources(config, largest(node_groups("aws.yaml")))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_launchers_ceiling_holds_every_node_type(name: str) -> None:
    assert launcher(name)["max_workers"] == sum(count for _, count in node_groups(name))


def test_driver_files_fit_the_lock() -> None:
    """The CUDA release that the lock brings needs a driver of at least this number (NVIDIA's compatibility table)."""
    lock = (ROOT / "requirements" / "cuda.lock").read_text(encoding="utf-8")
    (release,) = re.findall(r"^nvidia-cuda-runtime==(\d+)\.", lock, re.MULTILINE)
    least = {"12": 525, "13": 580}[release]
    texts = {path: path.read_text(encoding="utf-8") for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".cuda", ".md")}
    found = [
        (path.name, int(number))
        for path, text in texts.items()
        for number in re.findall(r"nvidia-(\d{3})\b|driver \(?(\d{3})", text)
        for number in number
        if number
    ]
    assert {"gcp.yaml", "aws.yaml", "Dockerfile.cuda"} <= {name for name, _ in found}
    assert all(number >= least for _, number in found), found


def test_object_stores_hold_two_versions_of_the_largest_model() -> None:
    """Ray's store is 30 % of a node's memory, at most 200 GB and 95 % of its shared memory."""
    config = load_config(["config=paper/qwen2.5-32b"]).config
    two = 2 * version_bytes(config, model_shape(config))
    for name in LAUNCHER_FILES:
        (size,) = [word for word in launcher(name)["docker"]["run_options"] if word.startswith("--shm-size=")]
        assert min(200e9, 0.95 * int(size.removeprefix("--shm-size=").removesuffix("g")) * 2**30) > two
    for group in rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        if "GPU" in group["resources"]:
            memory = group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
            assert min(200e9, 0.3 * int(memory.removesuffix("Gi")) * 2**30) > two


# --- the local head ---------------------------------------------------------------------------------------------------


def script() -> str:
    return (CLUSTER / "local.sh").read_text(encoding="utf-8")


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(CLUSTER / "local.sh"), *words], env=os.environ | environment, capture_output=True, text=True, timeout=600
    )


def test_local_script_parses_and_is_executable() -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "local.sh")], check=True)
    assert os.access(CLUSTER / "local.sh", os.X_OK)
    assert "set -euo pipefail" in script()


def test_local_script_never_stops_other_rays() -> None:
    code = "\n".join(line for line in script().splitlines() if not line.lstrip().startswith("#"))
    assert re.search(r"\bray stop\b|\bpkill\b|\bkillall\b", code) is None
    assert re.search(r"rm -rf [^\n]*\$dir/r", code)  # nothing but its own directory is removed


def test_local_script_keeps_its_ports_out_of_rays_worker_range() -> None:
    options = re.findall(r"--([a-z-]*port)=(?:\$\(\((\d+)|\"\$dashboard_port\")", script())
    ports = [int(port) for _, port in options if port] + [int(re.search(r"dashboard_port=\$\(\((\d+)", script()).group(1))]  # type: ignore[union-attr]
    assert len(ports) == 7
    assert all(not 10002 <= port <= 19999 for port in ports)


def test_local_script_without_a_head(tmp_path: Path) -> None:
    environment = {"FR3E_HEAD_DIR": str(tmp_path / "head")}
    assert (call("status", **environment).returncode, call("status", **environment).stdout) == (1, "not running\n")
    submit = call("submit", "config=toy", **environment)
    assert (submit.returncode, submit.stderr) == (1, "local.sh: no head; begin with: cluster/local.sh start\n")
    stop = call("stop", **environment)  # stopping twice is no error
    assert (stop.returncode, stop.stdout) == (0, "stopped\n")
    usage = call(**environment)
    assert usage.returncode == 1
    assert "usage: cluster/local.sh start" in usage.stderr


def test_local_script_gives_head_and_clients_the_same_authentication() -> None:
    lines = call("env", FR3E_PORT_OFFSET="40", RAY_AUTH_MODE="disabled").stdout.splitlines()
    assert "export RAY_AUTH_MODE=disabled" in lines
    assert "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8341" in lines
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
    plain = subprocess.run(
        ["bash", str(CLUSTER / "local.sh"), "env"], env=environment, capture_output=True, text=True, check=True
    )
    assert "export RAY_AUTH_MODE=token" in plain.stdout.splitlines()
