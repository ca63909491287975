"""Virtual time for tests of the control plane: nobody waits, and no machine is too slow.

``run`` drives a coroutine on an event loop whose clock stands still while anything is to be done, and jumps to the next timer when
nothing is. So a sleep of an hour takes no time, a limit of a millisecond is never missed, and whatever else the machine does
changes nothing. ``now`` is the loop's clock, for all that takes one.

Threads are real. Time stands while one that the loop's code has started still works (``run_in_daemon_thread``, ``asyncio.to_thread``); one that
waits for the test itself, at a ``Gate`` or in ``sleep_in_thread``, counts as asleep. A loop that has no timer, no thread at work and
nothing to do would wait for ever: ``Deadlock``.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fr3e_async.control import process as side

START_S = 1_000.0  # not 0, which the code takes for "not yet"
LOOK_S = 0.002  # real time, between looks at the threads at work
HANG_S = 240.0  # real time, for a thread that was to end and does not
LIMIT_S = 120.0  # virtual time of a test

T = TypeVar("T")


class Deadlock(AssertionError):
    """Nothing can happen any more."""


class _Time:
    """The one clock of the process."""

    def __init__(self) -> None:
        self.now = START_S
        self.lock = threading.Lock()
        self.asleep: set[threading.Thread] = set()
        self.loop: Loop | None = None


_time = _Time()


def now() -> float:
    """Virtual seconds."""
    return _time.now


def advance(seconds: float) -> None:
    """Let time pass outside of a scenario."""
    _time.now += seconds


def restart() -> None:
    """Back to the beginning, for a test of its own."""
    _time.now = START_S


def run(scenario: Coroutine[Any, Any, T], *, limit_s: float = LIMIT_S) -> T:
    """Like ``asyncio.run``, in virtual time. Raises ``TimeoutError`` after ``limit_s`` of it, ``Deadlock`` if it would never end."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):  # ``wait_for`` would make a task of its own
            return await scenario

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(limited())


async def until(condition: Callable[[], bool], *, step_s: float = 0.001, limit_s: float = LIMIT_S) -> None:
    """Look at every ``step_s``. Raises ``AssertionError`` after ``limit_s``."""
    end = now() + limit_s
    while not condition():
        assert now() < end, f"not within {limit_s:g} virtual seconds"
        await asyncio.sleep(step_s)


async def settle() -> None:
    """Until all that needs no time has been done: what is ready is done, threads at work have answered."""
    await asyncio.sleep(1e-4)


class Gate(threading.Event):
    """An event whose waiting threads count as asleep: time continues without them."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: set[threading.Thread] = set()

    def wait(self, timeout: float | None = None) -> bool:
        me = threading.current_thread()
        with _time.lock:
            if not self.is_set():
                self._waiting.add(me)
                _time.asleep.add(me)
        try:
            return super().wait(timeout)
        finally:
            with _time.lock:
                self._waiting.discard(me)
                _time.asleep.discard(me)

    def set(self) -> None:
        with _time.lock:  # at work from now on, and not only once they have noticed
            _time.asleep -= self._waiting
            self._waiting.clear()
            super().set()


def sleep_in_thread(seconds: float) -> None:
    """``time.sleep`` for a thread that the loop's code has started, in virtual time."""
    loop, gate = _time.loop, Gate()
    assert loop is not None, "no loop runs in virtual time"
    loop.call_soon_threadsafe(loop.call_later, seconds, gate.set)
    gate.wait()


class Loop(asyncio.SelectorEventLoop):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())
        self._jobs = 0  # in executors
        super().__init__(_Selector(self))
        self._clock_resolution = 1e-6  # rounding is no reason to wait
        _time.loop = self

    def time(self) -> float:
        return _time.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self._jobs += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: setattr(self, "_jobs", self._jobs - 1))
        return future

    async def shutdown_default_executor(self) -> None:
        self._jobs += 1  # a thread that joins the others
        await super().shutdown_default_executor()

    def works(self) -> bool:
        """A thread may still have something to say."""
        with _time.lock:
            sides = {thread for thread in threading.enumerate() if thread.name == side.NAME}
            return self._jobs > 0 or bool(sides - self._before - _time.asleep)


class _Selector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        hang = time.monotonic() + HANG_S
        while self._loop.works():
            if events := super().select(LOOK_S):
                return events
            assert time.monotonic() < hang, f"a thread has not ended within {HANG_S:g} s"
        if events := super().select(0):  # the last word of one that has just ended
            return events
        if timeout is None:
            raise Deadlock("no timer, no thread at work, nothing to do: this would wait for ever")
        _time.now += timeout
        return []
