"""Python's cyclic garbage collector in the process of the control loop: seldom, and never over what was there before.

The books of groups in flight are many small objects without cycles; at Python's own thresholds, walking them took a quarter of the
machine's time (``benchmarks/system.py``). Objects without cycles are freed at once all the same.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS = 100_000  # more objects than before, after which the youngest generation is looked at; Python's own: 700
YOUNGER = 20  # collections of a generation for one of the next


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """In this process, for as long as the block lasts. What is alive at its beginning is not looked at: modules, for the most part.

    Afterwards all is as before, since what is never collected is reported as leaked by some libraries when a program ends.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, YOUNGER, YOUNGER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Sweep:
    """Collects once more after workers have gone: an error's traceback is a cycle, and one that holds the handle of a rollout
    holds the node on which that rollout lies, which the cluster then does not take away."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, departures: int) -> None:
        """``departures``: workers that have gone so far."""
        if departures != self._seen:
            self._seen = departures
            gc.collect()
