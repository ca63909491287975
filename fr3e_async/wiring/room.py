"""Room on the cluster: which actors of a start are up, which found no room, and what the autoscaler is told meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group_table

from fr3e_async.actors.cluster import request
from fr3e_async.config import Config
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.plan.placement import per_actor, placement

ASK_S = 10.0  # for the autoscaler to take note
_NAMES = {"CPU": "CPUs", "GPU": "GPUs"}
_SHOWN = 2  # actors without room


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An actor, or the learner group, whose process is not there yet."""

    needs: Mapping[str, float]  # by Ray's names, all together
    placement: Any = None  # its placement group, if it has one

    def has_room(self, free: Mapping[str, float]) -> bool:
        """The cluster has reserved the room; without a placement group: it would fit. Blocks for a call to the head."""
        if self.placement is not None:
            return bool(placement_group_table(self.placement).get("state") == "CREATED")
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


class Advice:
    """Requests nodes for all actors of the run from Ray's autoscaler, only while one of them starts.

    Actors that are up hold their nodes by themselves, and a lasting request would keep idle nodes as well (Ray 2.60 may count it
    against any node that fits). It is advice: a run works without it, since Ray also sees pending actors as demand.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wanted: dict[str, int] = {}  # actors by role
        self._starting = 0  # actors, and the learner group
        self._told: list[Any] | None = []  # what the autoscaler heard last; None: perhaps
        self._telling = asyncio.Lock()

    def set_target(self, role: str, actors: int) -> None:
        """Ask for this many actors of a role from the next start on."""
        self._wanted[role] = actors

    @asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """Keep the request while an actor, or the learner group, starts."""
        self._starting += 1
        try:
            await self._tell()
            yield
        finally:
            self._starting -= 1
            await self._tell()

    async def end(self) -> None:
        """Withdraw the request: nothing is wanted any more."""
        self._starting = 0
        await self._tell()

    async def _tell(self) -> None:
        """Send the request, one at a time so that the newest is the last; one that did not arrive is sent with the next."""
        if not (self._config.ray.autoscaling and self._config.ray.request):
            return
        async with self._telling:
            rows = placement(self._config) if self._starting else []
            wanted = [(per_actor(row), row.labels) for row in rows for _ in range(self._wanted.get(row.role, 0))]
            if wanted == self._told:
                return
            try:
                async with asyncio.timeout(ASK_S):
                    await run_in_daemon_thread(lambda: request(wanted))
                self._told = wanted
            except (TimeoutError, RayError, ValueError) as error:
                self._told = None
                logging.getLogger(__name__).warning("the autoscaler could not be told what is wanted: %s", error)
