"""Virtual time: a heap of what is booked for later. Knows nothing of what is simulated."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Call = Callable[[Any], None]


class VirtualClock:
    """``now`` is in seconds. Calls happen in order of time, ties in order of booking: the same bookings, the same run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0
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
        self.calls += 1
        call(argument)
        return True
