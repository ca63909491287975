"""The clocks. Durations, ages and limits come from a monotonic clock; the wall clock, which may jump, only gives stamps.

steady()     monotonic seconds of this machine: for what stays within one process
RunClock()   seconds since the epoch that never jump: stamps whose differences are durations
RemoteClock  another process's steady times, on a clock of ours: no two machines' are comparable
wall()       the wall clock itself: beside stamps that other programs made
"""

import time
from collections.abc import Callable, Sequence

Clock = Callable[[], float]

steady: Clock = time.monotonic


def wall() -> float:
    """Seconds since the epoch. Never subtract two of them."""
    return time.time()


class RunClock:
    """The wall clock read once, then advanced by the steady clock: a jump of the wall clock affects no stamp and no duration.

    Example: made at 100 s since the epoch, it says 105 five seconds later, wherever the wall clock stands by then.
    """

    def __init__(self, *, after: float = 0.0) -> None:
        """``after``: an earlier stamp, for example of the previous session; this clock never reads less."""
        self._offset = max(wall(), after) - steady()

    def __call__(self) -> float:
        return self._offset + steady()


class RemoteClock:
    """Estimate how far our clock is ahead of another process's, from calls that it answered with its own time.

    An answer is made between its request and its arrival, so each exchange bounds the difference to within its own length.
    The difference moves only where a bound moves it: intervals of two answers keep their distance, and a drift is followed.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None  # s

    def ours(
        self, intervals: Sequence[tuple[float, float]], *, theirs: float, asked: float, answered: float
    ) -> tuple[tuple[float, float], ...]:
        """Convert intervals (start, end) from their clock to ours, both in seconds. ``theirs``: what their clock read."""
        low, high = asked - theirs, answered - theirs
        self._ahead = (low + high) / 2 if self._ahead is None else min(max(self._ahead, low), high)
        return tuple((start + self._ahead, end + self._ahead) for start, end in intervals)
