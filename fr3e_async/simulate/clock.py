"""Virtual time, the cores that processes of one machine share, and queues with servers. Knows nothing of what is simulated."""

import heapq
from collections import deque
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
        """Schedule ``call(argument)`` for ``time``. A call cannot be cancelled: one that is not needed any more must do nothing."""
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
        """Set how many seconds of work it does in one second, from now on."""


class Cores:
    """With k threads at work on c cores each runs at min(1, c / k). ``count=0``: everyone has a device of his own."""

    def __init__(self, count: float) -> None:
        self._count = count
        self._threads: dict[Process, int] = {}  # of those at work
        self._total = 0
        self._speed = 1.0

    def occupy(self, process: Process, threads: int) -> None:
        """Set how many of its threads are at work from now on; 0: it rests."""
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


# ---- A queue with servers: a verifier with its processes, the learner, the control loop. Jobs in order of arrival ----

NEAR = 1e-9  # seconds of work: what floating point leaves of a job that is done


class Station:
    """Each job keeps one server busy for its seconds of work; on shared cores that takes longer."""

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
        """Queue a job of ``seconds`` of work; ``call(argument)`` follows when it is done."""
        self._advance()
        self._waiting.append((seconds, call, argument))
        self._begin()

    def submit_first(self, seconds: float, call: Call, argument: Any = None) -> None:
        """Queue a job of ``seconds`` of work ahead of all waiting jobs; ``call(argument)`` follows when it is done."""
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
