"""Joining a cluster, or starting one on this machine: what can be wrong with it is found before any actor is asked for."""

import contextlib
import logging
import os
import re
import shutil
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from fr3e_async.actors.cluster import make_token
from fr3e_async.actors.gauges import RayGauges
from fr3e_async.config import Config
from fr3e_async.errors import ConfigError
from fr3e_async.files import scratch
from fr3e_async.learner.memory import model_shape, version_bytes
from fr3e_async.plan.placement import check_nodes, check_resources, local_resources
from fr3e_async.signals import deaf_children

NAMESPACE = "fr3e"
KNOCK_S = 10.0  # time for a cluster's address to accept a connection


def check_cluster(config: Config, *, training: bool = True) -> None:
    """What can be known of the cluster before anything is started: does this machine hold the actors, does the address answer?

    ``training``: false for an evaluation alone. Raises ``ConfigError``. ``connect`` checks the size of a cluster that is joined.
    """
    address, setting = _destination(config)
    if address == "local":
        check_resources(config, _local_offer(config, training), training=training)
        memory = psutil.virtual_memory().total / 2**30
        if config.ray.object_store_gib >= memory:
            raise ConfigError(
                f"ray.object_store_gib={config.ray.object_store_gib:g}: this machine has {memory:.1f} GiB of memory"
            )
    elif address != "auto":
        _knock(address, setting)


def connecting(config: Config) -> str:
    """What ``connect`` is about to do, for a person."""
    address, setting = _destination(config)
    return "starting Ray on this machine" if address == "local" else f"joining the cluster at {setting}={address}"


def connect(config: Config, *, training: bool = True) -> None:
    """Join the cluster of ``ray.address``, ``ray job submit`` or RAY_ADDRESS; else start a local one. Checks its size.

    Raises ``ConfigError`` when the actors cannot fit, and when the address does not answer.
    """
    address, setting = _destination(config)
    settings: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": config.observe.verbose,
        "logging_level": logging.INFO if config.observe.verbose else logging.ERROR,
    }
    if address == "local":
        offered = _local_offer(config, training)
        settings |= {"num_cpus": int(offered.pop("CPU")), "num_gpus": int(offered.pop("GPU")), "resources": offered}
        settings |= {"include_dashboard": False, "object_store_memory": int(config.ray.object_store_gib * 2**30)}
        if folder := os.environ.get(scratch.VARIABLE):
            settings["_temp_dir"] = os.path.join(folder, "ray")
        make_token()
    try:
        with deaf_children() if address == "local" else nullcontext():
            ray.init(address=address, **settings)
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(f"{setting}={address}: no cluster answers, or it wants another token ({error})") from error
    except RayError as error:
        raise ConfigError(f"{setting}={address}: the cluster refuses us: {error}") from error
    except (
        Exception
    ) as error:  # a bare one of Ray's: its folder cannot be written, a setting is beyond the machine, it was too slow
        raise ConfigError(f"{setting}={address}: Ray cannot start: {error}") from error
    if not config.ray.autoscaling:
        check_resources(config, ray.cluster_resources(), training=training)
        check_nodes_there(config, training=training)


def check_nodes_there(config: Config, *, training: bool = True) -> None:
    """Raise ``ConfigError`` if an actor fits none of the cluster's nodes, or two versions of the weights not into a node's store."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check_nodes(config, nodes, weights=version_bytes(config, model_shape(config)), training=training)


def disconnect(*, keep_logs: Path | None = None) -> None:
    """Leave the cluster; a local one ends with it. ``keep_logs``: a folder for the local one's own logs, of a run that failed."""
    ray.shutdown()
    if keep_logs and (folder := os.environ.get(scratch.VARIABLE)):
        with contextlib.suppress(OSError, shutil.Error):  # there was no local cluster, or the disk is full
            shutil.copytree(os.path.join(folder, "ray", "session_latest", "logs"), keep_logs, dirs_exist_ok=True)


def gauges(config: Config) -> RayGauges | None:
    """Where numbers of this run go for Prometheus, if anywhere. After ``connect``."""
    return RayGauges(config.run.name) if config.observe.prometheus else None


def _destination(config: Config) -> tuple[str, str]:
    """('local', or a cluster's address; the setting it comes from). `ray job submit` sets RAY_ADDRESS."""
    if config.ray.address:
        return config.ray.address, "ray.address"
    return os.environ.get("RAY_ADDRESS") or "local", "RAY_ADDRESS"


def _local_offer(config: Config, training: bool) -> dict[str, float]:
    return local_resources(config, machine_cpus=os.cpu_count() or 1, machine_gpus=_machine_gpus(), training=training)


def _machine_gpus() -> int:
    """NVIDIA GPUs of this machine, without loading a GPU library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() and part.strip() != "-1"])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _knock(address: str, setting: str) -> None:
    """Ray itself tries for minutes, and complains on stderr meanwhile."""
    parts = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d{1,5})", address)
    if parts is None:
        raise ConfigError(f"{setting}={address}: an address is written host:port (6379 unless the head was told otherwise)")
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{setting}={address}: no cluster answers ({error})") from error
