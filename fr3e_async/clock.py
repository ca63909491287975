"""What time it is. Durations, ages and limits come from a monotonic clock; the wall clock, which may be set at any moment, gives stamps only.

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
    """The wall clock as it was once, moved on by the steady one: a step of the wall clock shows in no stamp and no duration.

    Example: made at 100 s since the epoch, it says 105 five seconds later, wherever the wall clock stands by then.
    """

    def __init__(self, *, after: float = 0.0) -> None:
        """``after``: a stamp that is past, of an earlier session say: this clock is not before it."""
        self._offset = max(wall(), after) - steady()

    def __call__(self) -> float:
        return self._offset + steady()


class RemoteClock:
    """How far our clock is ahead of another process's, from calls that it answered with its own time.

    An answer was made after it was asked for and before it was there, so each exchange bounds the difference, by its own length.
    The difference moves only where a bound moves it: intervals of two answers keep their distance, and a drift is followed.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None  # s

    def ours(
        self, intervals: Sequence[tuple[float, float]], *, theirs: float, asked: float, answered: float
    ) -> tuple[tuple[float, float], ...]:
        """Intervals (start, end) in seconds of their clock, which stood at ``theirs``, in seconds of ours."""
        low, high = asked - theirs, answered - theirs
        self._ahead = (low + high) / 2 if self._ahead is None else min(max(self._ahead, low), high)
        return tuple((start + self._ahead, end + self._ahead) for start, end in intervals)
