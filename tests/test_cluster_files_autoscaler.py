"""What Ray's autoscaler (v2) would start for the paper's runs on our clusters: its own scheduler, without a cluster.

Each engine asks by a placement group of its own, the learner by one for all its ranks, verifiers one by one, as wiring does it.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingReply, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, NodeState, NodeStatus
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from fr3e_async.config import Config
from fr3e_async.plan.placement import per_actor, placement
from fr3e_async.settings.loader import load_config

CLUSTER = Path(__file__).parent.parent / "cluster"
FILES = ["aws.yaml", "gcp.yaml", "kuberay-raycluster.yaml"]


@functools.cache
def autoscaling(name: str) -> AutoscalingConfig:
    """The file as the autoscaler reads it: a manifest goes through what its sidecar makes of it."""
    documents = list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))
    if name.startswith("kuberay"):
        resource = copy.deepcopy(documents[-1])
        resource["metadata"]["namespace"] = "default"
        return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)
    prepared = prepare_config(documents[0])
    validate_config(prepared)
    return AutoscalingConfig(prepared, skip_content_hash=True)


def gang(bundles: list[dict[str, float]]) -> GangResourceRequest:
    return GangResourceRequest(requests=[ResourceRequestUtil.make(bundle) for bundle in bundles])


def demand(config: Config) -> dict[str, Any]:
    """What a run's actors ask for, all at once."""
    rows = {row.role: row for row in placement(config)}
    gangs = [gang([per_actor(rows["learner"])] * rows["learner"].actors)]
    for role in ("generators", "explorers"):
        gangs += [gang([per_actor(rows[role])])] * rows[role].actors
    verifiers = [ResourceRequestUtil.make(per_actor(rows["verifiers"]))] * rows["verifiers"].actors
    return {"gang_resource_requests": gangs, "resource_requests": ResourceRequestUtil.group_by_count(verifiers)}


def idle(kind: str, seconds: int, resources: dict[str, float]) -> AutoscalerInstance:
    state = NodeState(
        ray_node_type_name=kind, node_id=b"one", status=NodeStatus.IDLE, idle_duration_ms=seconds * 1000,
        total_resources=resources, available_resources=resources,
    )  # fmt: skip
    instance = Instance(instance_id="one", status=Instance.RAY_RUNNING, node_kind=NodeKind.WORKER, instance_type=kind)
    return AutoscalerInstance(im_instance=instance, ray_node=state, cloud_instance_id="one")


def schedule(name: str, wanted: dict[str, Any], *, instances: list[AutoscalerInstance] | None = None) -> SchedulingReply:
    config = autoscaling(name)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        idle_timeout_s=config.get_idle_timeout_s(),
        current_instances=[*(instances or [])],
        **wanted,
    )
    return ResourceDemandScheduler(event_logger=None).schedule(request)


def launched(reply: SchedulingReply) -> dict[str, int]:
    return {item.instance_type: item.count for item in reply.to_launch}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("run", "nodes"),
    [
        ("paper/qwen2.5-7b", {"engine": 2, "learner": 1, "verifier": 1}),
        ("paper/qwen2.5-math-7b", {"engine": 2, "learner": 1, "verifier": 1}),
    ],
)
def test_a_run_gets_the_nodes_that_it_needs_and_no_others(name: str, run: str, nodes: dict[str, int]) -> None:
    reply = schedule(name, demand(load_config([f"config={run}"]).config))
    assert launched(reply) == nodes
    assert (len(reply.infeasible_gang_resource_requests), len(reply.infeasible_resource_requests)) == (0, 0)


@pytest.mark.parametrize("name", FILES)
def test_the_largest_run_fits(name: str) -> None:
    reply = schedule(name, demand(load_config(["config=paper/qwen2.5-32b"]).config))
    assert (len(reply.infeasible_gang_resource_requests), len(reply.infeasible_resource_requests)) == (0, 0)


@pytest.mark.parametrize("name", FILES)
def test_a_gang_that_the_limit_cannot_hold_starts_no_node(name: str) -> None:
    config = load_config(["config=paper/qwen2.5-7b", "learner.ranks=40"]).config  # five nodes of eight; the limit is four
    reply = schedule(name, demand(config))
    assert "learner" not in launched(reply)
    assert [len(item.requests) for item in reply.infeasible_gang_resource_requests] == [40]


@pytest.mark.parametrize("name", FILES)
def test_half_a_gang_is_kept_while_it_is_wanted_and_given_back_after(name: str) -> None:
    """The wait is ended by the run (ray.room_timeout_s), not by the autoscaler."""
    config = load_config(["config=paper/qwen2.5-7b", "learner.ranks=16"]).config
    offer = autoscaling(name).get_node_type_configs()["learner"].resources
    came = [idle("learner", 3600, dict(offer))]
    wanted = {"gang_resource_requests": demand(config)["gang_resource_requests"][:1]}
    waiting = schedule(name, wanted, instances=came)
    assert (launched(waiting), len(waiting.to_terminate)) == ({"learner": 1}, 0)
    ended = schedule(name, {}, instances=came)
    assert [item.instance_type for item in ended.to_terminate] == ["learner"]
    assert launched(ended) == {}


@pytest.mark.parametrize("name", FILES)
def test_node_types_offer_what_the_table_of_the_docs_says(name: str) -> None:
    offers = {kind: node.resources for kind, node in autoscaling(name).get_node_type_configs().items()}
    custom = {k: v for kind in offers for k, v in offers[kind].items() if k in ("engine", "learner", "verifier")}
    assert custom == {"engine": 8, "learner": 8, "verifier": 4}
    markets = {k: n.labels.get("ray.io/market-type") for k, n in autoscaling(name).get_node_type_configs().items()}
    assert {k: markets[k] for k in ("engine", "learner", "verifier")} == {
        "engine": "spot",
        "learner": "on-demand",
        "verifier": "spot",
    }
