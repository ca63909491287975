"""What the autoscaler is told: while something starts, all that is wanted, so that it need not find out one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ray.exceptions import RayError

from fr3e_async.actors.cluster import request
from fr3e_async.config import Config
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.plan.placement import per_actor, placement

ASK_S = 10.0  # for the autoscaler to take note


class Advice:
    """A request for all actors that are wanted stands while any of them starts, and only then.

    Actors that are up hold their nodes, and a request that stands keeps idle nodes, too (Ray 2.60 may count it against any
    node that fits). It is advice: a run continues without, since pending actors are demand as well.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wanted: dict[str, int] = {}  # actors by role
        self._starting = 0  # actors, and the learner group
        self._told: list[Any] | None = []  # what the autoscaler heard last; None: perhaps
        self._telling = asyncio.Lock()

    def want(self, role: str, actors: int) -> None:
        """From the next start on."""
        self._wanted[role] = actors

    @asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """Around the start of an actor, or of the learner group."""
        self._starting += 1
        try:
            await self._tell()
            yield
        finally:
            self._starting -= 1
            await self._tell()

    async def end(self) -> None:
        """Nothing is wanted any more."""
        self._starting = 0
        await self._tell()

    async def _tell(self) -> None:
        """One after another, so that the last word is the last; what did not arrive is said again with the next."""
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
