"""Virtual time: a heap of what is booked for later. Knows nothing of what is simulated."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Protocol

Call = Callable[[Any], None]


class VirtualClock:
    """``now`` is in seconds. Calls happen in order of time, ties in order of booking: the same bookings, the same run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Call, Any]] = []
        self._booked = 0

    def at(self, time: float, call: Call, argument: Any = None) -> None:
        """Book ``call(argument)``. There is no way to take it back: who changes his mind ignores the call."""
        self._booked += 1
        heapq.heappush(self._heap, (time, self._booked, call, argument))

    def after(self, seconds: float, call: Call, argument: Any = None) -> None:
        self.at(self.now + seconds, call, argument)

    def step(self) -> bool:
        """Go to the next booking and do it; False if there is none."""
        if not self._heap:
            return False
        time, _, call, argument = heapq.heappop(self._heap)
        if time > self.now:
            self.now = time
        call(argument)
        return True


# ---- Processor sharing: processes of one machine that are at work at the same moment share its cores evenly ----


class Process(Protocol):
    def set_speed(self, speed: float) -> None:
        """From now on it does so many seconds of its work in one second."""


class Cores:
    """With k threads at work on c cores each runs at min(1, c / k). ``count=0``: everyone has a device of his own."""

    def __init__(self, count: float) -> None:
        self._count = count
        self._threads: dict[Process, int] = {}  # of those at work
        self._total = 0
        self._speed = 1.0

    def occupy(self, process: Process, threads: int) -> None:
        """It has so many threads at work from now on; 0: it rests."""
        if not self._count:
            return
        before = self._threads.pop(process, 0)
        if threads:
            self._threads[process] = threads
        self._total += threads - before
        speed = min(1.0, self._count / self._total) if self._total else 1.0
        if speed != self._speed:
            self._speed = speed
            for other in self._threads:
                other.set_speed(speed)
        elif threads and not before:
            process.set_speed(speed)
