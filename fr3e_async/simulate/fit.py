"""Least squares with coefficients that are not negative, for a handful of columns, and its robust form."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
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
