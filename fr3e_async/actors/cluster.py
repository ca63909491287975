"""What the cluster says of its nodes, and what its autoscaler is told: the little of Ray that has no public interface, in one place.

Ray 2.60 has no public call for the nodes that are draining (``ray drain-node``, a notice of preemption). ``DrainingNodes`` uses
the one inside; ``tests/test_elastic_ray.py`` drains a real node and fails loudly when a later Ray has changed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray._private.state import state
from ray.autoscaler.sdk import request_resources

from fr3e_async.clock import steady, wall

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
