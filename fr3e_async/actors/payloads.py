"""The port ``PayloadStore``: rollout batches in Ray's object store, by object reference."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import ray
from ray.exceptions import RayError

from fr3e_async.control.ports import Payload, TaskLost
from fr3e_async.errors import RunFailed
from fr3e_async.types import RolloutBatch

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
