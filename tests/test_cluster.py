"""The cluster files, checked offline: by Ray's own validation, by KubeRay's schemas, and against what the configs ask for."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fr3e_async.errors import ConfigError
from fr3e_async.loader import load_config
from fr3e_async.plan import check_resources, placement

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
SHARED = Path(os.environ.get("FR3E_SHARED", ROOT.parent / "shared"))
LAUNCHER_FILES = ["aws.yaml", "gcp.yaml"]
PAPER = ["paper/qwen2.5-7b", "paper/qwen2.5-math-7b", "paper/qwen2.5-32b"]

Document = dict[str, Any]


def launcher(name: str) -> Document:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def manifest() -> list[Document]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay-rayjob.yaml").read_text(encoding="utf-8")))


def rayjob() -> Document:
    return manifest()[1]


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
    start = document["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    assert all("RAY_AUTH_MODE=token" in document[key][-1] for key in ("head_start_ray_commands", "worker_start_ray_commands"))
    assert "/home/ray/.ray/auth_token" in document["file_mounts"]


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


# --- KubeRay ----------------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """A CRD's structural schema as JSON schema in which an unknown field is an error (the API server would drop it)."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    if out.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    keep_unknown = out.pop("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in out:
        out["properties"] = {name: strict(value) for name, value in out["properties"].items()}
        if not keep_unknown:
            out.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = strict(out[key])
    return out


@pytest.fixture(scope="module")
def rayjob_schema() -> jsonschema.Draft7Validator:
    path = SHARED / "data" / "kuberay" / "rayjobs.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's schemas are not here ({path}); name their folder's root in FR3E_SHARED")
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return jsonschema.Draft7Validator(schema)


@pytest.mark.shared
def test_kuberay_accepts_the_rayjob(rayjob_schema: jsonschema.Draft7Validator) -> None:
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in rayjob_schema.iter_errors(rayjob())] == []


@pytest.mark.shared
@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ([], "entrypont", "x"),
        (["rayClusterSpec", "autoscalerOptions"], "version", "v3"),
        (["rayClusterSpec", "authOptions"], "mode", "tokn"),
        (["rayClusterSpec", "workerGroupSpecs", 0], "maxReplicas", "4"),
        (["rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams"], "num-cpus", 0),
        (["rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0], "imagePullPolice", "Always"),
    ],
)
def test_kuberay_refuses_a_spoilt_rayjob(
    rayjob_schema: jsonschema.Draft7Validator, path: list[Any], key: str, value: Any
) -> None:
    document = copy.deepcopy(rayjob())  # anchors share objects
    target = document["spec"]
    for step in path:
        target = target[step]
    target[key] = value
    assert not rayjob_schema.is_valid(document)


def test_rayjob_resumes_on_a_shared_volume_after_a_lost_cluster() -> None:
    volume, job = manifest()
    spec = job["spec"]
    assert (volume["kind"], volume["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    assert "resume=auto" in spec["entrypoint"]
    assert spec["backoffLimit"] > 0
    assert re.search(r"run\.dir=/mnt/fr3e/\S+", spec["entrypoint"])
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert (cluster["enableInTreeAutoscaling"], cluster["autoscalerOptions"]["version"]) == (True, "v2")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert "restartPolicy" not in pod  # the operator refuses others than Never with autoscaler v2
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["fr3e"] == "/mnt/fr3e"
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [volume["metadata"]["name"]]


def test_rayjobs_entrypoint_is_a_valid_command_line() -> None:
    words = rayjob()["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "fr3e_async.main"]
    loaded = load_config(words[3:])
    assert (loaded.config.resume, loaded.config.run.dir) == ("auto", "/mnt/fr3e/runs/qwen2.5-7b")
    grace = yaml.safe_load(rayjob()["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert float(grace) > loaded.config.run.stop_grace_s  # Ray must not kill the driver in the middle of its checkpoint


# --- the local head ---------------------------------------------------------------------------------------------------


def script() -> str:
    return (CLUSTER / "local.sh").read_text(encoding="utf-8")


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(CLUSTER / "local.sh"), *words], env=os.environ | environment, capture_output=True, text=True, timeout=60
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


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_local_script_passes_shellcheck() -> None:
    result = subprocess.run(["shellcheck", str(CLUSTER / "local.sh")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


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
