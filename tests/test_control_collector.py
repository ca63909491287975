"""The control loop's process collects garbage seldom, and still frees cycles in the end."""

from __future__ import annotations

import gc
import subprocess
import sys

from fr3e_async.control.collector import ALLOCATIONS

PROGRAM = """
import gc, weakref
from fr3e_async.control.collector import collect_seldom
class Node: pass
collect_seldom()
frozen = gc.get_freeze_count()
node = Node(); node.own = node; seen = weakref.ref(node); del node
kept = [[] for _ in range(50_000)]
print(frozen > 1000, seen() is not None, end=" ")
kept += [[] for _ in range(100_000)]
print(seen() is None, *gc.get_threshold())
"""


def test_cycles_live_longer_and_not_for_ever():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", str(ALLOCATIONS), "20", "20"]
    assert gc.get_threshold()[0] < ALLOCATIONS, "the tests' own process is left alone"
