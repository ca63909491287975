"""KubeRay's manifests, checked offline: by the schemas of its custom resources, by the rules of its operator, by what a run needs."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fr3e_async.settings.loader import load_config

ROOT = Path(__file__).parent.parent
FIXTURE = Path(__file__).parent / "fixtures" / "kuberay"
FILES = {"RayCluster": "kuberay-raycluster.yaml", "RayJob": "kuberay-rayjob.yaml"}
KINDS = sorted(FILES)

Document = dict[str, Any]
Path_ = list[Any]  # steps into a document


def documents(kind: str) -> list[Document]:
    """The volume and the custom resource. Without the anchors' sharing, so that one place can be changed alone."""
    text = (ROOT / "cluster" / FILES[kind]).read_text(encoding="utf-8")
    return json.loads(json.dumps(list(yaml.safe_load_all(text))))


def resource(kind: str) -> Document:
    return documents(kind)[1]


def cluster_spec(document: Document) -> Document:
    """The part that describes the cluster."""
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def groups(spec: Document) -> list[Document]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def container(group: Document) -> Document:
    return group["template"]["spec"]["containers"][0]


# --- the schemas of the custom resources ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.Draft7Validator]:
    schemas = json.loads((FIXTURE / "schemas.json").read_text(encoding="utf-8"))
    definitions = schemas["definitions"]
    return {kind: jsonschema.Draft7Validator({"definitions": definitions, **s}) for kind, s in schemas["kinds"].items()}


@pytest.mark.parametrize("kind", KINDS)
def test_kuberay_accepts_the_manifest(kind: str, validators: dict[str, jsonschema.Draft7Validator]) -> None:
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validators[kind].iter_errors(resource(kind))] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ([], "rayVersoin", "2.60.0"),
        (["autoscalerOptions"], "version", "v3"),
        (["authOptions"], "mode", "tokn"),
        (["workerGroupSpecs", 0], "maxReplicas", "4"),
        (["workerGroupSpecs", 0], "rayStartParams", {"num-cpus": 0}),
        (["workerGroupSpecs", 0, "template", "spec"], "terminationGracePeriod", 120),
        (["workerGroupSpecs", 0, "template", "spec", "containers", 0], "imagePullPolice", "Always"),
        (["workerGroupSpecs", 0, "template", "spec", "containers", 0, "lifecycle", "preStop"], "exec", {"command": "python"}),
    ],
)
def test_kuberay_refuses_a_spoilt_manifest(
    kind: str, path: Path_, key: str, value: Any, validators: dict[str, jsonschema.Draft7Validator]
) -> None:
    document = resource(kind)
    target = cluster_spec(document)
    for step in path:
        target = target[step]
    target[key] = value
    assert not validators[kind].is_valid(document)


def test_a_misspelt_field_of_the_job_is_refused(validators: dict[str, jsonschema.Draft7Validator]) -> None:
    document = resource("RayJob")
    document["spec"]["entrypont"] = "x"
    assert not validators["RayJob"].is_valid(document)


def test_the_schemas_are_made_from_the_definitions_without_losing_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURE))
    monkeypatch.delitem(sys.modules, "trim", raising=False)
    import trim

    inner = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1, "description": "prose"}}}
    port = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"description": {"type": "string"}}}
    spec = {"type": "object", "properties": {"x": inner, "y": inner, "port": port, "free": free}}
    root = {"type": "object", "properties": {"metadata": {"type": "object"}, "spec": spec, "status": {"type": "string"}}}
    versions = [{"name": "v1", "schema": {"openAPIV3Schema": root}}]
    definitions: dict[str, Any] = {}
    schema = trim.trimmed({"spec": {"versions": versions}}, definitions)
    check = jsonschema.Draft7Validator({"definitions": definitions, **schema})
    good = {
        "metadata": {"name": "n"},
        "spec": {"x": {"a": 1}, "y": {"a": 2}, "port": "http", "free": {"description": "d", "more": 1}},
    }
    assert check.is_valid(good)
    assert "prose" not in json.dumps(definitions)
    bad: list[tuple[Path_, Any]] = [
        (["metadata"], {}),
        (["status"], "x"),
        (["spec", "x", "a"], 0),
        (["spec", "y"], {}),
        (["spec", "z"], 1),
        (["spec", "port"], []),
        (["spec", "free", "description"], 1),
    ]
    for path, value in bad:
        document = copy.deepcopy(good)
        target: Any = document
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value
        assert not check.is_valid(document), path


# --- the operator's rules, which no schema holds ----------------------------------------------------------------------

QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
RESOURCE_FLAGS = {"num-cpus", "num-gpus", "memory", "resources"}


def refusals(document: Document) -> list[str]:
    """What the operator (1.7) would say of a resource that its schema accepts."""
    spec, found = cluster_spec(document), []
    if len(document["metadata"]["name"]) > (47 if document["kind"] == "RayJob" else 63):
        found.append("the name is too long")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"]):
        found.append("the name is no DNS label")
    for group in groups(spec):
        found += _group_refusals(group, head=group is spec["headGroupSpec"], v2=_is_v2(spec))
    if _is_v2(spec) and any(e["name"] == "RAY_enable_autoscaler_v2" for e in container(spec["headGroupSpec"]).get("env", [])):
        found.append("the autoscaler's version is set twice")
    if spec.get("authOptions", {}).get("mode") == "token" and _version(spec.get("rayVersion", "0")) < (2, 52):
        found.append("a token needs Ray 2.52 or newer")
    if document["kind"] == "RayJob":
        found += _job_refusals(document["spec"])
    return found


def _is_v2(spec: Document) -> bool:
    return bool(spec.get("enableInTreeAutoscaling")) and spec.get("autoscalerOptions", {}).get("version") == "v2"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _group_refusals(group: Document, *, head: bool, v2: bool) -> list[str]:
    name, found = "head" if head else group["groupName"], []
    flags, resources = group.get("rayStartParams", {}), group.get("resources", {})
    if not group["template"]["spec"].get("containers"):
        found.append(f"{name}: no container")
    if RESOURCE_FLAGS & set(flags) and resources:
        found.append(f"{name}: resources in two places")
    if "labels" in flags:
        found.append(f"{name}: labels belong to the group")
    labels = group.get("labels", {})
    if not all(QUALIFIED.fullmatch(key) and LABEL.fullmatch(value) for key, value in labels.items()):
        found.append(f"{name}: a label that Kubernetes would refuse")
    if not all(isinstance(value, str) for value in [*flags.values(), *resources.values()]):
        found.append(f"{name}: a value that is no string")
    if v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        found.append(f"{name}: restartPolicy")
    if not head and not 0 <= group["minReplicas"] <= group["maxReplicas"]:
        found.append(f"{name}: minReplicas and maxReplicas")
    if group.get("suspend"):
        found.append(f"{name}: suspended beside the autoscaler")
    return found


def _job_refusals(spec: Document) -> list[str]:
    found = []
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or (
        spec.get("ttlSecondsAfterFinished") and not spec["shutdownAfterJobFinishes"]
    ):
        found.append("ttlSecondsAfterFinished")
    if spec.get("backoffLimit", 0) < 0 or spec.get("activeDeadlineSeconds", 1) <= 0:
        found.append("a limit below zero")
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        found.append("runtimeEnvYAML")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_has_nothing_against_the_manifest(kind: str) -> None:
    assert refusals(resource(kind)) == []


def set_in(*path: Any, value: Any) -> Callable[[Document], None]:
    def spoil(document: Document) -> None:
        target: Any = cluster_spec(document)
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return spoil


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (set_in("headGroupSpec", "template", "spec", "restartPolicy", value="Always"), "head: restartPolicy"),
        (set_in("workerGroupSpecs", 1, "template", "spec", "restartPolicy", value="OnFailure"), "learner: restartPolicy"),
        (set_in("workerGroupSpecs", 0, "rayStartParams", value={"labels": "a=b"}), "engine: labels belong to the group"),
        (set_in("workerGroupSpecs", 0, "rayStartParams", value={"num-gpus": "8"}), "engine: resources in two places"),
        (set_in("workerGroupSpecs", 0, "labels", value={"a b": "c"}), "engine: a label that Kubernetes would refuse"),
        (set_in("workerGroupSpecs", 2, "minReplicas", value=7), "verifier: minReplicas and maxReplicas"),
        (set_in("workerGroupSpecs", 2, "resources", "CPU", value=16), "verifier: a value that is no string"),
        (set_in("workerGroupSpecs", 2, "suspend", value=True), "verifier: suspended beside the autoscaler"),
        (set_in("rayVersion", value="2.51.0"), "a token needs Ray 2.52 or newer"),
        (
            set_in(
                "headGroupSpec", "template", "spec", "containers", 0, "env",
                value=[{"name": "RAY_enable_autoscaler_v2", "value": "1"}],
            ),
            "the autoscaler's version is set twice",
        ),
        (lambda document: document["metadata"].update(name="Fr3e"), "the name is no DNS label"),
    ],
)  # fmt: skip
def test_the_operator_refuses_what_its_schema_lets_through(kind: str, spoil: Callable[[Document], None], refusal: str) -> None:
    document = resource(kind)
    spoil(document)
    assert refusals(document) == [refusal]


# --- what a run needs -------------------------------------------------------------------------------------------------


def test_both_manifests_describe_the_same_cluster() -> None:
    (claim, cluster), (job_claim, job) = documents("RayCluster"), documents("RayJob")
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]
    assert claim == job_claim


@pytest.mark.parametrize("kind", KINDS)
def test_the_cluster_grows_on_demand_and_keeps_no_node_for_nothing(kind: str) -> None:
    spec = cluster_spec(resource(kind))
    options = spec["autoscalerOptions"]
    assert (spec["enableInTreeAutoscaling"], options["version"]) == (True, "v2")
    assert options["env"] == [{"name": "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S", "value": "600"}]
    limits = {g["groupName"]: (g["minReplicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]}
    assert limits == {"engine": (0, 4), "learner": (0, 4), "verifier": (0, 6)}
    assert all(0 < g.get("idleTimeoutSeconds", options["idleTimeoutSeconds"]) <= 600 for g in spec["workerGroupSpecs"])
    markets = {g["groupName"]: g["labels"]["ray.io/market-type"] for g in spec["workerGroupSpecs"]}
    assert markets == {"engine": "spot", "learner": "on-demand", "verifier": "spot"}


@pytest.mark.parametrize("run", ["paper/qwen2.5-7b", "paper/qwen2.5-math-7b", "paper/qwen2.5-32b"])
def test_the_learner_group_holds_the_whole_gang_and_its_wait_ends(run: str) -> None:
    """Autoscaler v2 starts no node for a gang that the group's limit cannot hold, and keeps those of one that waits."""
    config = load_config([f"config={run}"]).config
    (group,) = (g for g in cluster_spec(resource("RayCluster"))["workerGroupSpecs"] if g["groupName"] == "learner")
    assert config.learner.ranks <= group["maxReplicas"] * int(group["resources"]["learner"])
    assert config.ray.autoscaling
    assert config.ray.room_timeout_s <= 3600


@pytest.mark.parametrize("kind", KINDS)
def test_access_needs_a_token_and_no_pod_is_root(kind: str) -> None:
    spec = cluster_spec(resource(kind))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in groups(spec):
        pod = group["template"]["spec"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 1000)
        assert container(group)["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        secrets = [e for e in container(group)["env"] if "TOKEN" in e["name"]]
        assert secrets
        assert all("value" not in e for e in secrets)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pod_has_the_shared_volume(kind: str) -> None:
    volume, document = documents(kind)
    assert (volume["kind"], volume["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    for group in groups(cluster_spec(document)):
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert mounts == {"fr3e": "/mnt/fr3e", "shm": "/dev/shm"}
        volumes = group["template"]["spec"]["volumes"]
        claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v]
        assert claims == [volume["metadata"]["name"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_ended_tells_ray_before(kind: str) -> None:
    dockerfile = (ROOT / "cluster" / "docker" / "Dockerfile.cuda").read_text(encoding="utf-8")
    for group in cluster_spec(resource(kind))["workerGroupSpecs"]:
        command = container(group)["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:3] == ["python", "/opt/fr3e/preemption_notice.py", "now"]
        assert f"COPY cluster/preemption_notice.py {command[1]}" in dockerfile
        deadline = int(command[command.index("--deadline-s") + 1])
        assert deadline < group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_the_job_resumes_after_a_lost_cluster() -> None:
    spec = resource("RayJob")["spec"]
    assert "resume=auto" in spec["entrypoint"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert re.search(r"run\.dir=/mnt/fr3e/\S+", spec["entrypoint"])


def test_the_jobs_entrypoint_is_a_valid_command_line() -> None:
    spec = resource("RayJob")["spec"]
    words = spec["entrypoint"].split()
    assert words[:3] == ["python", "-m", "fr3e_async.main"]
    loaded = load_config(words[3:])
    assert (loaded.config.resume, loaded.config.run.dir) == ("auto", "/mnt/fr3e/runs/qwen2.5-7b")
    grace = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert float(grace) > loaded.config.run.stop_grace_s  # Ray must not kill the driver in the middle of its checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_is_yours_to_name_everywhere(kind: str) -> None:
    assert {container(group)["image"] for group in groups(cluster_spec(resource(kind)))} == {"image-REPLACE"}
