"""Gives workers to an evaluation that runs alone: the one with most room, and a new one for each that died.

Beside training the machine does this (``hands.lend``); here nobody else wants the workers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fr3e_async.control.crew import Crew
from fr3e_async.control.dispatch import GENERATORS
from fr3e_async.control.ports import TaskLost, WorkerLost
from fr3e_async.errors import RunFailed


class Lender:
    """A context manager: leaving it ends what it had begun to start. Its ``lend`` fits the port ``evaluator.Lend``."""

    def __init__(self, crew: Crew, *, note: Callable[[str], None]) -> None:
        """``note`` hears of workers that are lost and come."""
        self._crew, self._note = crew, note
        self._load: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._starting: set[asyncio.Task[None]] = set()
        self._coming: Counter[str] = Counter()  # workers that are being started, by role
        self._deaths: dict[str, int] = {}  # in a row, by role
        self._failure = ""

    async def __aenter__(self) -> Lender:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def expect(self, role: str) -> None:
        """Start one more worker of the role; it joins when it is up."""
        self._begin(role, delay_s=0.0)

    def _begin(self, role: str, *, delay_s: float) -> None:
        self._coming[role] += 1
        task = asyncio.get_running_loop().create_task(self._start(role, delay_s=delay_s))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    @asynccontextmanager
    async def lend(self, role: str, weight: int, *, priority: int) -> AsyncIterator[str]:
        """Wait for a worker with room for ``weight`` until the block ends; its name.

        Raises ``RunFailed`` when workers of the role have died too often (pools.max_deaths_in_a_row).
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or self._pick(role, weight))
            if self._failure:
                raise RunFailed(self._failure)
            name = self._pick(role, weight)
            self._load[name] = self._load.get(name, 0) + weight
        try:
            yield name
            self._deaths[role] = 0
        except TaskLost as error:
            if error.dead:
                await self._bury(role, error)
            raise
        finally:
            self._load[name] -= weight
            async with self._changed:
                self._changed.notify_all()

    def _pick(self, role: str, weight: int) -> str:
        """The least loaded worker, if it has room; one without anything has room for everything. Empty: there is none."""
        names = self._crew.names(role)
        if not names:
            return ""
        name = min(names, key=lambda one: self._load.get(one, 0))
        load = self._load.get(name, 0)
        room = self._crew.config.generators.rollouts_in_flight
        return name if role != GENERATORS or not load or load + weight <= room else ""

    async def _bury(self, role: str, error: TaskLost) -> None:
        """Several calls may tell of one death."""
        old = self._crew.remove(error.dead)
        if old is None:
            return
        self._note(f"{error.dead} is lost: {error}")
        await old.close()
        pools, deaths = self._crew.config.pools, self._deaths.get(role, 0) + 1
        self._deaths[role] = deaths
        if deaths > pools.max_deaths_in_a_row:
            await self._fail(f"{deaths} of {role} died in a row (pools.max_deaths_in_a_row); the last one: {error}")
            return
        self._begin(role, delay_s=pools.replace_backoff_s * 2 ** (deaths - 1))

    async def _start(self, role: str, *, delay_s: float) -> None:
        """Tried again with a growing delay, as often as workers may die in a row: what a dead one held may not be free yet."""
        pools, why = self._crew.config.pools, ""
        for attempt in range(pools.max_deaths_in_a_row):
            await asyncio.sleep(delay_s)
            try:
                worker = await self._crew.start(role)
                break
            except (WorkerLost, TimeoutError, RunFailed) as error:
                why, delay_s = str(error), pools.replace_backoff_s * 2 ** min(attempt, 30)
                self._note(f"a new one of {role} did not start: {why}")
        else:
            self._coming[role] -= 1
            if not self._crew.names(role) and not self._coming[role]:
                await self._fail(f"no worker of {role} is left, and a new one did not start: {why}")
            return
        self._coming[role] -= 1
        self._crew.add(role, worker)
        self._note(f"{worker.name} has joined")
        async with self._changed:
            self._changed.notify_all()

    async def _fail(self, why: str) -> None:
        self._failure = why
        async with self._changed:
            self._changed.notify_all()
