"""A pool of workers of one role: least-loaded dispatch, bounded work in flight, leases, replacement of lost workers.

Knows workers only as objects with a name; what a call does is the caller's business.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fr3e_async.control.ports import Clock, WorkerLost
from fr3e_async.errors import RunFailed

W = TypeVar("W")
T = TypeVar("T")
Interval = tuple[float, float]


class TaskLost(Exception):
    """The task will not come back: its worker died or its lease ran out. The caller issues it again."""


@dataclass(slots=True, eq=False)
class Seat(Generic[W]):
    """A worker with its load. ``weight`` counts rollouts in flight; ``busy_since`` is set while it is above 0."""

    worker: W
    weight: int = 0
    busy_since: float | None = None
    busy: list[Interval] = field(default_factory=list)
    alive: bool = True
    proven: bool = False  # it has finished a task


class Pool(Generic[W]):
    """Tasks wait in order of arrival (lower ``priority`` first) until a seat has room; each call has a lease."""

    def __init__(
        self,
        role: str,
        workers: list[W],
        *,
        width: int,
        replace: Callable[[W], Awaitable[W]],
        clock: Clock,
        max_deaths_in_a_row: int = 5,
    ) -> None:
        self.role, self._width, self._replace, self._clock = role, width, replace, clock
        self.seats = [Seat(worker) for worker in workers]
        self.replacements = 0
        self._max_deaths_in_a_row = max_deaths_in_a_row
        self._last_words = ""
        self._deaths_in_a_row = 0  # workers that died before they finished a task, or did not start; a lost node is no such death
        self._queue: list[tuple[int, int, int, asyncio.Future[Seat[W]]]] = []
        self._order = itertools.count()
        self._repairs: set[asyncio.Task[None]] = set()
        self.failure: RunFailed | None = None
        self._past_busy: list[Interval] = []

    @property
    def workers(self) -> list[W]:
        return [seat.worker for seat in self.seats if seat.alive]

    @property
    def queued(self) -> int:
        return sum(not future.done() for *_, future in self._queue)

    @property
    def in_flight(self) -> int:
        """Rollouts that workers have now."""
        return sum(seat.weight for seat in self.seats)

    async def run(self, call: Callable[[W], Awaitable[T]], *, weight: int, lease_s: float, priority: int = 0) -> T:
        """Give the task to a worker and wait for it, at most ``lease_s`` from the moment a worker has it.

        Raises:
            TaskLost: the worker died, or the lease ran out.
        """
        seat = await self._take(weight, priority)
        try:
            result = await asyncio.wait_for(call(seat.worker), lease_s)
            self._deaths_in_a_row, seat.proven = 0, True
            return result
        except WorkerLost as error:
            self._lose(seat)
            raise TaskLost(f"{self.role} lost: {error}") from error
        except TimeoutError as error:
            raise TaskLost(f"lease of {lease_s} s ran out at a {self.role}") from error
        finally:
            self._give(seat, weight)

    def retire(self, worker: W) -> None:
        """Take a worker out of service (it missed an acknowledgement, say) and have it replaced."""
        for seat in self.seats:
            if seat.worker is worker:
                self._lose(seat)

    def drain_busy(self) -> list[Interval]:
        """Busy intervals of all seats since the last call, by this loop's clock."""
        now = self._clock()
        spans, self._past_busy = self._past_busy, []
        for seat in self.seats:
            spans += seat.busy
            seat.busy = []
            if seat.busy_since is not None:
                spans.append((seat.busy_since, now))
                seat.busy_since = now
        return spans

    async def close(self) -> None:
        for task in self._repairs:
            task.cancel()
        await asyncio.gather(*self._repairs, return_exceptions=True)

    async def _take(self, weight: int, priority: int) -> Seat[W]:
        future: asyncio.Future[Seat[W]] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (priority, next(self._order), weight, future))
        self._dispatch()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._give(future.result(), weight)
            raise

    def _dispatch(self) -> None:
        """Hand the head of the queue to the least loaded seat with room; a task wider than a seat gets an empty one."""
        while self._queue:
            _, _, weight, future = self._queue[0]
            if future.done():
                heapq.heappop(self._queue)
                continue
            open_seats = [s for s in self.seats if s.alive and (s.weight == 0 or s.weight + weight <= self._width)]
            if not open_seats:
                return
            heapq.heappop(self._queue)
            seat = min(open_seats, key=lambda s: s.weight)
            if seat.weight == 0:
                seat.busy_since = self._clock()
            seat.weight += weight
            future.set_result(seat)

    def _give(self, seat: Seat[W], weight: int) -> None:
        seat.weight -= weight
        if seat.weight == 0 and seat.busy_since is not None:
            seat.busy.append((seat.busy_since, self._clock()))
            seat.busy_since = None
        self._dispatch()

    def _lose(self, seat: Seat[W]) -> None:
        if not seat.alive:
            return
        seat.alive = False
        task = asyncio.get_running_loop().create_task(self._repair(seat), name=f"replace {self.role}")
        self._repairs.add(task)
        task.add_done_callback(self._repaired)

    def _repaired(self, task: asyncio.Task[None]) -> None:
        self._repairs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = RunFailed(f"{self.role}: a worker could not be replaced: {type(error).__name__}: {error}")

    async def _repair(self, seat: Seat[W]) -> None:
        """Replace the seat's worker. A replacement that dies while starting is a normal event on a cluster that loses nodes."""
        self._past_busy += seat.busy
        worker, proven = seat.worker, seat.proven
        while self.failure is None:
            self.replacements += 1
            self._deaths_in_a_row += not proven
            proven = False
            if self._deaths_in_a_row > self._max_deaths_in_a_row:
                self.failure = RunFailed(
                    f"{self.role}: {self._max_deaths_in_a_row} workers in a row died without finishing a task{self._last_words}"
                )
                return
            try:
                worker = await self._replace(worker)
            except (WorkerLost, TimeoutError, RunFailed) as error:
                self._last_words = f"; the last one: {error}"
                continue
            self.seats[self.seats.index(seat)] = Seat(worker)
            self._dispatch()
            return
