"""What the cluster says of its nodes, and what its autoscaler is told: the little of Ray that has no public interface, in one place.

Ray 2.60 has no public call for the nodes that are draining (``ray drain-node``, a notice of preemption). ``draining_nodes`` uses
the one inside; ``tests/test_elastic_ray.py`` drains a real node and fails loudly when a later Ray has changed it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ray._private.state import state
from ray.autoscaler.sdk import request_resources

FAR_MS = 2**62  # a deadline beyond it is none


def draining_nodes() -> dict[str, float]:
    """Node id (hex) -> seconds until it is taken away, at least 1; 0: nobody knows. Blocks for a call to the head."""
    now = time.time()
    return {
        node: max(1.0, deadline / 1000 - now) if 0 < deadline < FAR_MS else 0.0
        for node, deadline in state.get_draining_nodes().items()
    }


def request(bundles: Sequence[tuple[Mapping[str, float], Mapping[str, str]]]) -> None:
    """Tell the autoscaler of all (resources, labels) that are wanted; it replaces what anyone told it before. None: of nothing."""
    resources = [dict(resources) for resources, _ in bundles]
    labels = [dict(labels) for _, labels in bundles]
    if any(labels):
        request_resources(bundles=resources, bundle_label_selectors=labels)
    else:
        request_resources(bundles=resources)
