"""Python's cyclic garbage collector in the process of the control loop: seldom, and never over what was there before.

The books of groups in flight are many small objects without cycles; at Python's own thresholds, walking them took a quarter of the
machine's time (``benchmarks/system.py``). Objects without cycles are freed at once all the same.
"""

from __future__ import annotations

import gc

ALLOCATIONS = 100_000  # more objects than before, after which the youngest generation is looked at; Python's own: 700
YOUNGER = 20  # collections of a generation for one of the next


def collect_seldom() -> None:
    """From now on, in this process. What is alive now is not looked at any more: modules, for the most part."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, YOUNGER, YOUNGER)
