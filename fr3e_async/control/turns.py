"""The learner's turns: one thing at a time, in the order it was asked for, each call with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fr3e_async.control.ports import LearnerPort
from fr3e_async.errors import LearnerLost

T = TypeVar("T")


class Turns:
    """Who has the learner; the watchdog reads what it is at."""

    def __init__(self, learner: LearnerPort, *, limit_s: float) -> None:
        self.learner, self._limit = learner, limit_s
        self._lock = asyncio.Lock()  # FIFO: batches, checkpoints and exports as they were asked for
        self._does = ""
        self._begun: set[asyncio.Task[Any]] = set()
        self.failed = False  # one of its calls has raised or took too long

    @property
    def does(self) -> str:
        """What the learner is doing; empty if it has nothing to do, or waits for engines to take its weights."""
        return "" if self.learner.waits() else self._does

    @asynccontextmanager
    async def turn(self, what: str) -> AsyncIterator[None]:
        async with self._lock:
            self._does = what
            try:
                yield
            finally:
                self._does = ""

    def done(self) -> None:
        """The learner has done its part; what is left of the turn is others' work."""
        self._does = ""

    async def of(self, work: Awaitable[T]) -> T:
        """Wait for a call to the learner. Raises ``LearnerLost`` after ``learner.step_timeout_s``."""
        try:
            async with asyncio.timeout(self._limit):
                return await work
        except TimeoutError:
            self.failed = True
            raise LearnerLost(f"the learner took longer than learner.step_timeout_s ({self._limit:g} s)") from None
        except Exception:
            self.failed = True
            raise

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that goes on when the waiting is cancelled: a batch or a checkpoint cannot be taken back from the learner."""
        task = asyncio.ensure_future(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def rest(self) -> None:
        """Wait until all ``whole`` work has ended, well or not."""
        while self._begun:
            await asyncio.wait(self._begun)

    async def drop(self) -> None:
        """What the learner is still at is of no use to anybody."""
        for task in self._begun:
            task.cancel()
        await self.rest()
