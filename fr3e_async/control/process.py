"""The driver's process: blocking calls in threads that nobody waits for at the end, and a quiet garbage collector."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

T = TypeVar("T")
NAME = "on-the-side"  # of its threads


def run_in_daemon_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking call in a daemon thread: unlike ``asyncio.to_thread`` it does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast(T, result))
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # raised where the future is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no task awaits the future
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=NAME, daemon=True).start()
    return future


# ---- Python's cyclic garbage collector in the process of the control loop: seldom, and never over what was there before ----
# The records of groups in flight are many small objects without cycles; at Python's own thresholds, walking them took a quarter of the
# machine's time (``benchmarks/system.py``). Objects without cycles are freed at once all the same.

ALLOCATIONS = 100_000  # more objects than before, after which the youngest generation is looked at; Python's own: 700
YOUNGER = 20  # collections of a generation for one of the next


@contextmanager
def tuned_gc() -> Iterator[None]:
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


class GcSchedule:
    """Collects once more after workers have gone: an error's traceback is a cycle, and one that holds the handle of a rollout
    holds the node on which that rollout lies, which the cluster then does not take away."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, departures: int) -> None:
        """Collect garbage if workers have left since the last call. ``departures``: how many have left so far."""
        if departures != self._seen:
            self._seen = departures
            gc.collect()
