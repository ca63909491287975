"""Sets of time intervals: how long roles were busy, idle, or busy at once. Pure arithmetic on (start, end) pairs.

Does not know where the times come from. All times in seconds on one clock; an interval whose end is not after its start
is empty.
"""

import math
from collections.abc import Iterable

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points as disjoint intervals in order; those that touch become one."""
    merged: list[Interval] = []
    for start, end in sorted(interval for interval in intervals if interval[1] > interval[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def intersection(first: Iterable[Interval], second: Iterable[Interval]) -> list[Interval]:
    """The points in both sets, as disjoint intervals in order."""
    a, b = union(first), union(second)
    common: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if end > start:
            common.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return common


def measure(intervals: Iterable[Interval]) -> float:
    """Total length of the set in seconds; what is covered twice counts once."""
    return math.fsum(end - start for start, end in union(intervals))


def clip(intervals: Iterable[Interval], window: Interval) -> list[Interval]:
    """Each interval's part inside the window, empty ones left out; overlaps stay as they are."""
    parts = ((max(start, window[0]), min(end, window[1])) for start, end in intervals)
    return [(start, end) for start, end in parts if end > start]


def idle_share(busy_s: float, *, available_s: float) -> float:
    """Share of the available actor-seconds without work, in [0, 1]; 0 if none were available."""
    return min(1.0, max(0.0, 1 - busy_s / available_s)) if available_s > 0 else 0.0
