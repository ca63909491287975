"""How a cluster is started or joined: what Ray is told, and what it may answer. Ray itself is in tests/test_cluster_local.py and the tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
from builders import small_config
from ray.exceptions import RayError

from fr3e_async.errors import ConfigError
from fr3e_async.wiring import joining


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``ray.init`` was told."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **settings: found.update(settings))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.5} if found["address"] == "small:1" else {"CPU": 64.0})
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": ray.cluster_resources() | {"object_store_memory": 2e9}}]
    )
    return found


def test_a_local_cluster_has_what_the_run_needs(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1, ,5")
    monkeypatch.setattr("os.cpu_count", lambda: 50)
    config = small_config(ray={"object_store_gib": 0.5})
    joining.connect(config)
    assert told == {
        "address": "local", "num_cpus": 50, "namespace": "fr3e", "log_to_driver": False, "logging_level": 40, "num_gpus": 2, "resources": {},
        "include_dashboard": False, "object_store_memory": 2**29,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("look", "ray_config", "cpus"),
    [
        (joining.check_cluster, {"num_cpus": 4, "object_store_gib": 0.1}, 5.0),
        (joining.connect, {"address": "head:1"}, 65.0),
    ],
)
def test_a_learner_counts_unless_there_is_no_training(
    told: dict[str, Any], look: Callable[..., None], ray_config: dict[str, Any], cpus: float
) -> None:
    config = small_config(ray=ray_config, learner={"cpus": cpus})
    look(config, training=False)
    with pytest.raises(ConfigError, match=rf"learner 1×{cpus:g}"):
        look(config)


def test_a_cluster_that_is_there_is_joined_as_it_is(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "other:1")
    joining.connect(small_config(ray={"address": "head:1"}, observe={"verbose": True}))
    assert told == {"address": "head:1", "namespace": "fr3e", "log_to_driver": True, "logging_level": 20}
    joining.connect(small_config())
    assert told["address"] == "other:1"


def test_a_store_that_is_too_small_for_two_versions_is_refused_at_the_start(told: dict[str, Any]) -> None:
    """250M weights in float32 are 1 GB a version: two fill the 2 GB of the node, three more do not fit."""
    joining.connect(small_config(model={"path": "some/model", "parameters": 250_000_000}, ray={"address": "head:1"}))
    with pytest.raises(
        ConfigError, match=r"object store: 1\.9 GiB on a node for generators, but two .* take 1\.9 GiB .*--shm-size"
    ):
        joining.connect(small_config(model={"path": "some/model", "parameters": 250_000_003}, ray={"address": "head:1"}))


def test_a_cluster_that_is_too_small_is_refused_unless_it_grows(told: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="CPU"):
        joining.connect(small_config(ray={"address": "small:1"}))
    joining.connect(small_config(ray={"address": "small:1", "autoscaling": True}))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("no"), "no cluster answers, or it wants another token (no)"),
        (TimeoutError("no"), "no cluster answers, or it wants another token (no)"),
        (RayError("no"), "the cluster refuses us: no"),
        (OSError("no"), "Ray cannot start: no"),
        (ValueError("no"), "Ray cannot start: no"),
    ],
)
def test_what_ray_answers_is_one_line_with_the_setting(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError) as found:
        joining.connect(small_config(ray={"address": "head:1"}))
    assert str(found.value) == f"ray.address=head:1: {says}"
