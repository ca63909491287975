"""A queue with servers: a verifier with its processes, the learner, the control loop. Jobs in order of arrival."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Event
from fr3e_async.machine.messages import Command, Work, group_of
from fr3e_async.simulate.clock import Call, Cores, VirtualClock
from fr3e_async.simulate.engine import Request
from fr3e_async.types import RolloutId

NEAR = 1e-9  # seconds of work: what floating point leaves of a job that is done


class Station:
    """Each job keeps one server for so many seconds of work; on shared cores that takes longer."""

    def __init__(self, clock: VirtualClock, cores: Cores, *, servers: int = 1, threads: int = 1) -> None:
        """``threads``: of one server, while it is at work."""
        self._clock, self._cores = clock, cores
        self._servers, self._threads = servers, threads
        self._waiting: deque[tuple[float, Call, Any]] = deque()
        self._running: list[tuple[float, int, Call, Any]] = []  # by the work done when it ends
        self._work, self._at, self._speed = 0.0, 0.0, 1.0  # seconds of work done by each server since the beginning
        self._count = 0
        self._stamp = 0
        self.held = False  # it begins nothing new

    def submit(self, seconds: float, call: Call, argument: Any = None) -> None:
        """``call(argument)`` when a job of so many seconds of work is done."""
        self._advance()
        self._waiting.append((seconds, call, argument))
        self._begin()

    def submit_first(self, seconds: float, call: Call, argument: Any = None) -> None:
        """Before everything that waits."""
        self._advance()
        self._waiting.appendleft((seconds, call, argument))
        self._begin()

    def hold(self, held: bool) -> None:
        self.held = held
        self._advance()
        self._begin()

    def set_speed(self, speed: float) -> None:
        self._advance()
        self._speed = speed
        self._plan()

    def _advance(self) -> None:
        now = self._clock.now
        if self._running:
            self._work += (now - self._at) * self._speed
        self._at = now

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._servers and not self.held:
            seconds, call, argument = self._waiting.popleft()
            self._count += 1
            heapq.heappush(self._running, (self._work + seconds, self._count, call, argument))
        self._cores.occupy(self, len(self._running) * self._threads)
        self._plan()

    def _plan(self) -> None:
        self._stamp += 1
        if self._running:
            self._clock.after(max(0.0, self._running[0][0] - self._work) / self._speed, self._wake, self._stamp)

    def _wake(self, stamp: int) -> None:
        if stamp != self._stamp:
            return
        self._advance()
        done = []
        while self._running and self._running[0][0] <= self._work + NEAR:
            done.append(heapq.heappop(self._running))
        for _, _, call, argument in done:
            call(argument)  # it may put something first, or hold the station
        self._begin()


# ---- Tasks at simulated workers, and who is told of events ----

NAMES = {GENERATORS: "generator", EXPLORERS: "explorer", VERIFIERS: "verifier"}


class EventLog(Protocol):
    """``store.journal.Journal`` fits."""

    def write(self, event: Event, commands: list[Command], now: float) -> None: ...


@dataclass(slots=True, eq=False)
class SimulatedTask:
    """A task at a worker."""

    task: int
    worker: str
    work: Work
    left: int  # rollouts or answers that have not ended
    ended: list[tuple[Request, int]] = field(
        default_factory=list
    )  # with the weights at their ends; they are on their way to the driver
    owed: dict[RolloutId, None] = field(default_factory=dict)  # rollouts that have not been delivered
    over: bool = False

    @property
    def group(self) -> str:
        return group_of(self.work)
