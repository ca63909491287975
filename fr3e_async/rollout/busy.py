"""Intervals of time in which an engine was at work, from the starts and ends of its requests and pauses.

Knows nothing of engines; the clock value is an argument.
"""


class BusyMeter:
    """Collects (start, end) intervals in which at least one request was there and the engine was not paused.

    Example: ``enter(1.0); enter(2.0); leave(3.0); pause(4.0); resume(5.0); leave(6.0)`` gives (1, 4) and (5, 6).
    """

    def __init__(self) -> None:
        self.running = 0  # requests in the engine
        self.pause_s = 0.0  # total time paused
        self._intervals: list[tuple[float, float]] = []
        self._busy_since: float | None = None
        self._paused_since: float | None = None

    def enter(self, now: float) -> None:
        """Count a request that enters the engine at ``now`` (seconds)."""
        self.running += 1
        self._settle(now)

    def leave(self, now: float) -> None:
        """Count a request that leaves the engine, however it ended."""
        self.running -= 1
        self._settle(now)

    def pause(self, now: float) -> None:
        self._paused_since = now
        self._settle(now)

    def resume(self, now: float) -> None:
        if self._paused_since is not None:
            self.pause_s += now - self._paused_since
        self._paused_since = None
        self._settle(now)

    def take(self, now: float) -> tuple[tuple[float, float], ...]:
        """The intervals since the last call; one that still lasts is cut at ``now`` and continues from there."""
        if self._busy_since is not None and now > self._busy_since:
            self._intervals.append((self._busy_since, now))
            self._busy_since = now
        taken, self._intervals = tuple(self._intervals), []
        return taken

    def _settle(self, now: float) -> None:
        busy = self.running > 0 and self._paused_since is None
        if busy and self._busy_since is None:
            self._busy_since = now
        elif not busy and self._busy_since is not None:
            if now > self._busy_since:
                self._intervals.append((self._busy_since, now))
            self._busy_since = None
