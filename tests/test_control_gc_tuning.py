"""The control loop's process collects garbage seldom, and still frees cycles in the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from fr3e_async.control.process import ALLOCATIONS, GcSchedule

PROGRAM = """
import gc, weakref
from fr3e_async.control.process import tuned_gc
class Node: pass
before = gc.get_threshold()
with tuned_gc():
    frozen = gc.get_freeze_count()
    node = Node(); node.own = node; seen = weakref.ref(node); del node
    kept = [[] for _ in range(50_000)]
    print(frozen > 1000, seen() is not None, end=" ")
    kept += [[] for _ in range(100_000)]
    print(seen() is None, *gc.get_threshold(), end=" ")
print(gc.get_freeze_count() == 0, gc.get_threshold() == before)
"""


def test_cycles_live_longer_and_not_for_ever():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", str(ALLOCATIONS), "20", "20", "True", "True"]


LEAKS = """
import gc, sys
from fr3e_async.control.process import tuned_gc
import triton
with tuned_gc():
    pass
"""


@pytest.mark.slow
def test_a_program_that_has_built_a_model_ends_without_a_word_about_leaks():
    """torch's training imports triton, whose bindings report what is alive at the end."""
    done = subprocess.run([sys.executable, "-c", LEAKS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_departed_worker_left_in_a_cycle_is_freed_once():
    """An ObjectRef in a traceback would keep its node for ever."""
    was = gc.isenabled()
    gc.disable()
    try:
        node = Node()
        node.own = node
        seen, sweep = weakref.ref(node), GcSchedule()
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
