"""How much work each busy process of a shared machine could do until a moment: wall time, less what others took. Vectors only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class WorkTime:
    """``WorkTime(spans, cores)(t)`` = ∫ min(1, cores / k) dt up to t, k being the threads at work. ``cores=0``: t itself.

    All processes have the same share at the same moment (``cores``), so one such clock serves them all.
    """

    def __init__(self, spans: Iterable[tuple[float, float, float]], cores: float) -> None:
        """``spans``: (start, end, threads) of what was at work."""
        self._cores = cores
        changes = [(t, threads * sign) for start, end, threads in spans for t, sign in ((start, 1), (end, -1))]
        if not cores or not changes:
            self._cores = 0.0
            return
        order = sorted(changes)
        self._times = np.array([time for time, _ in order])
        threads = np.cumsum([change for _, change in order])[:-1]
        share = np.minimum(1.0, cores / np.maximum(threads, 1e-9))
        self._work = np.concatenate([[0.0], np.cumsum(share * np.diff(self._times))]) + self._times[0]

    def __call__(self, times: ArrayLike) -> Array:
        at = np.asarray(times, dtype=np.float64)
        return np.interp(at, self._times, self._work) if self._cores else at


class Ramps:
    """Σ over ramps of how far each has risen at t: from 0 at its start to its height at its end."""

    def __init__(self, starts: Array, ends: Array, heights: Array) -> None:
        slopes = heights / np.maximum(ends - starts, 1e-9)
        times, changes = np.concatenate([starts, np.maximum(ends, starts + 1e-9)]), np.concatenate([slopes, -slopes])
        order = np.argsort(times, kind="stable")
        self._times = times[order]
        self._risen = np.concatenate([[0.0], np.cumsum(np.cumsum(changes[order])[:-1] * np.diff(self._times))])

    def __call__(self, times: ArrayLike) -> Array:
        return np.interp(np.asarray(times, dtype=np.float64), self._times, self._risen)


class Staircase:
    """Σ of what has arrived before t."""

    def __init__(self, times: Array, amounts: Array) -> None:
        order = np.argsort(times, kind="stable")
        self._times, self._sums = times[order], np.concatenate([[0.0], np.cumsum(amounts[order])])

    def __call__(self, times: ArrayLike) -> Array:
        """Without what arrives at t itself."""
        return self._sums[np.searchsorted(self._times, times, side="left")]
