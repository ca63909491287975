"""How much work each busy process of a shared machine could do until a moment: wall time, less what others took. Vectors only."""

import itertools
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
    """A step function of time: the sum of the amounts that arrived before t."""

    def __init__(self, times: Array, amounts: Array) -> None:
        order = np.argsort(times, kind="stable")
        self._times, self._sums = times[order], np.concatenate([[0.0], np.cumsum(amounts[order])])

    def __call__(self, times: ArrayLike) -> Array:
        """Return the sum at each time, in the shape of ``times``; an amount that arrives at t itself is left out."""
        return self._sums[np.searchsorted(self._times, times, side="left")]


# ---- Least squares with coefficients that are not negative, for a handful of columns, and its robust form ----

FAR = 8.0  # median absolute deviations: beyond it a row is an accident (a stall, a start) and is left out
ROUNDS = 2  # of weighting


def non_negative(rows: Array, values: Array) -> Array:
    """x ≥ 0 that minimises |rows · x - values|: the best of all subsets of columns, so at most some 8 columns."""
    best, least = np.zeros(rows.shape[1]), float(values @ values)
    for size in range(1, rows.shape[1] + 1):
        for chosen in itertools.combinations(range(rows.shape[1]), size):
            part = rows[:, chosen]
            found = np.linalg.lstsq(part, values, rcond=None)[0]
            if (found < 0).any():
                continue
            error = float(np.sum((part @ found - values) ** 2))
            if error < least * (1 - 1e-9):
                best, least = np.zeros(rows.shape[1]), error
                best[list(chosen)] = found
    return best


def robust(rows: Array, values: Array) -> tuple[Array, float]:
    """(coefficients, median relative error), without accidents. ``values`` must be positive.

    A row counts by the square root of what the fit before says of it: by that of its own value, short ones would count more
    and every duration would come out too short.
    """
    found = non_negative(rows, values)
    for _ in range(ROUNDS):
        expected = rows @ found
        scale = 1 / np.sqrt(np.maximum(expected, 1e-3 * max(float(expected.mean()), 1e-12)))
        error = np.abs(expected - values) * scale
        near = error <= FAR * max(float(np.median(error)), 1e-12)
        if near.sum() < 2 * rows.shape[1]:
            near[:] = True
        found = non_negative((rows * scale[:, None])[near], (values * scale)[near])
    return found, float(np.median(np.abs(rows @ found - values) / values))
