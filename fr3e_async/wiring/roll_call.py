"""Who of the actors that a start waits for is up, and who has found no room. The text is a pure function of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import placement_group_table

_NAMES = {"CPU": "CPUs", "GPU": "GPUs"}
_SHOWN = 2  # actors without room


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An actor, or the learner group, whose process is not there yet."""

    needs: Mapping[str, float]  # by Ray's names, all together
    place: Any = None  # its placement group, if it has one

    def has_room(self, free: Mapping[str, float]) -> bool:
        """The cluster has taken its place for it; without a placement group: it would fit. Blocks for a call to the head."""
        if self.place is not None:
            return bool(placement_group_table(self.place).get("state") == "CREATED")
        return all(free.get(name, 0.0) >= amount for name, amount in self.needs.items())


def without_room(wanted: Mapping[str, Wanted]) -> tuple[dict[str, Wanted], dict[str, float]]:
    """Those that the cluster has no room for now, and what it has free. Blocks for calls to the head."""
    if not wanted:
        return {}, {}
    free: dict[str, float] = ray.available_resources()
    return {name: its for name, its in wanted.items() if not its.has_room(free)}, free


def roll_call(
    up: Mapping[str, tuple[int, int]], roomless: Mapping[str, Wanted] = {}, free: Mapping[str, float] = {}
) -> str:  # fmt: skip
    """``up``: role -> (actors up, actors waited for). "" when all are.

    *Example*: ``generators 1 of 2 up, learner 0 of 1; generator-1 needs 1.75 CPUs, 0.0 free``.
    """
    missing = [f"{role} {there} of {all_of}" for role, (there, all_of) in up.items() if there < all_of]
    if not missing:
        return ""
    missing[0] += " up"
    lines = [", ".join(missing)]
    for name, its in list(roomless.items())[:_SHOWN]:
        needs = ", ".join(f"{amount:g} {_NAMES.get(kind, kind)}" for kind, amount in its.needs.items())
        offers = ", ".join(f"{free.get(kind, 0.0):.1f}" for kind in its.needs)
        lines.append(f"{name} needs {needs}, {offers} free")
    if len(roomless) > _SHOWN:
        lines.append(f"{len(roomless) - _SHOWN} more have no room")
    return "; ".join(lines)
