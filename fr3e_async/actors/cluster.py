"""What the cluster says of its nodes, what its autoscaler is told, its token: the little of Ray that has no public interface, in one place.

``RayPayloads`` is the port ``PayloadStore``: rollout batches in Ray's object store, by object reference. Ray 2.60 has no public call for the nodes that are draining (``ray drain-node``, a notice of preemption). ``DrainingNodes`` uses
the one inside; ``tests/test_elastic_ray.py`` drains a real node and fails loudly when a later Ray has changed it.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import ray
from ray._private.state import state
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from fr3e_async.clock import steady, wall
from fr3e_async.control.ports import Payload, TaskLost
from fr3e_async.errors import RunFailed
from fr3e_async.types import RolloutBatch

FAR_MS = 2**62  # a deadline beyond it is none


class DrainingNodes:
    """Which nodes go, and when. A deadline is a stamp of the head's wall clock: from the first look on it is counted down steadily."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], float] = {}  # (node, deadline in ms of the epoch) -> when, by our steady clock

    def __call__(self) -> dict[str, float]:
        """Node id (hex) -> seconds until it is taken away, at least 1; 0: nobody knows. Blocks for a call to the head."""
        told, now = state.get_draining_nodes(), steady()
        self._ends = {(node, at): self._ends.get((node, at), now + at / 1000 - wall()) for node, at in told.items()}
        return {node: max(1.0, end - now) if 0 < at < FAR_MS else 0.0 for (node, at), end in self._ends.items()}


def request(bundles: Sequence[tuple[Mapping[str, float], Mapping[str, str]]]) -> None:
    """Tell the autoscaler of all (resources, labels) that are wanted; it replaces what anyone told it before. None: of nothing."""
    resources = [dict(resources) for resources, _ in bundles]
    labels = [dict(labels) for _, labels in bundles]
    if any(labels):
        request_resources(bundles=resources, bundle_label_selectors=labels)
    else:
        request_resources(bundles=resources)


def make_token() -> None:
    """Make the token of a local cluster before Ray does, which would let everybody on the machine read it. One that is there stays."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    token = Path.home() / ".ray" / "auth_token"
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or token.exists():
        return
    filled = token.with_name(f"auth_token.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # Ray says itself what is wrong with that folder
        token.parent.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(filled, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another start was quicker
            os.link(filled, token)
        filled.unlink()


PROBE_BYTES = 1 << 20  # smaller objects may never reach the shared store


class RayPayloads:
    """The driver owns what it puts, as it owns what engines return to it: neither dies with an actor."""

    def get(self, payload: Payload) -> RolloutBatch:
        try:
            return ray.get(payload)
        except RayError as error:  # lost with its node, evicted, or its owner is gone: it cannot be fetched
            raise TaskLost(f"a payload is gone ({type(error).__name__})", gone=True) from error

    def put(self, batch: RolloutBatch) -> Payload:
        """Raises ``RunFailed`` if the store takes no more."""
        try:
            return ray.put(batch)
        except RayError as error:
            raise RunFailed(
                f"the object store takes no more rollouts ({type(error).__name__}); raise ray.object_store_gib"
            ) from error

    def fetch(self, payloads: Sequence[Payload], *, timeout_s: float) -> None:
        """Ray takes a copy on another node for the object itself when the node that made it is gone."""
        with contextlib.suppress(RayError):  # what cannot be had is missed by who needs it
            if payloads:
                ray.wait(list(payloads), num_returns=len(payloads), timeout=timeout_s, fetch_local=True)

    def probe(self) -> bool:
        return bool(ray.get(ray.put(np.ones(PROBE_BYTES, dtype=np.uint8))).all())
