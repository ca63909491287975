"""The control loop's process collects garbage seldom, and still frees cycles in the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from fr3e_async.control.collector import ALLOCATIONS, Sweep

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


def test_what_a_departed_worker_left_in_a_cycle_is_freed_once():
    """An ObjectRef in a traceback would keep its node for ever."""
    was = gc.isenabled()
    gc.disable()
    try:
        node = Node()
        node.own = node
        seen, sweep = weakref.ref(node), Sweep()
        del node
        sweep(0)
        assert seen() is not None, "nobody has gone"
        sweep(1)
        assert seen() is None
    finally:
        if was:
            gc.enable()


class Node:
    own: Node
