"""Virtual time itself: it stands while anything works, jumps when nothing does, and ends what would never end."""

from __future__ import annotations

import ast
import asyncio
import threading
import time
from pathlib import Path

import pytest
import virtual_time

from fr3e_async.control.process import run_in_daemon_thread

TESTS = Path(__file__).parent
IN_VIRTUAL_TIME = ["test_control_*.py", "test_evaluation_loop.py", "test_session_restarts.py"]
REAL = {("asyncio", "run"), ("time", "sleep"), ("time", "monotonic"), ("time", "perf_counter")}


def test_time_jumps_to_the_next_timer_and_timers_come_in_order():
    order = []

    async def sleeper(name, seconds):
        await asyncio.sleep(seconds)
        order.append((name, virtual_time.now() - virtual_time.START_S))

    async def scenario():
        await asyncio.gather(sleeper("day", 86_400.0), sleeper("blink", 0.001), sleeper("hour", 3_600.0))

    real = time.monotonic()
    virtual_time.run(scenario(), limit_s=1e6)
    assert [name for name, _ in order] == ["blink", "hour", "day"]
    assert [at for _, at in order] == pytest.approx([0.001, 3_600.0, 86_400.0])
    assert time.monotonic() - real < 3_000


def test_time_stands_while_a_thread_works():
    """However slow it is: a limit of a millisecond holds."""

    async def scenario():
        async with asyncio.timeout(0.001):
            beside = await run_in_daemon_thread(lambda: (time.sleep(0.05), "beside")[1])
            return beside, await asyncio.to_thread(lambda: (time.sleep(0.05), "pool")[1])

    assert virtual_time.run(scenario()) == ("beside", "pool")
    assert virtual_time.now() == virtual_time.START_S


def test_time_passes_without_threads_that_wait_for_the_test():
    gate, came = virtual_time.Gate(), []

    async def scenario():
        waiting = run_in_daemon_thread(lambda: (gate.wait(), came.append(virtual_time.now()))[0])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.shield(waiting)
        gate.set()
        return await waiting

    assert virtual_time.run(scenario()) is True
    assert came == [virtual_time.now()] == [pytest.approx(virtual_time.START_S + 5.0)], "at work from the moment it was let go"


def test_a_thread_sleeps_in_virtual_time():
    async def scenario():
        await run_in_daemon_thread(lambda: virtual_time.sleep_in_thread(50.0))

    virtual_time.run(scenario())
    assert virtual_time.now() == pytest.approx(virtual_time.START_S + 50.0)


def test_what_would_never_end_ends():
    async def scenario():
        await asyncio.Event().wait()

    async def beating():
        while True:
            await asyncio.sleep(1.0)

    with pytest.raises(TimeoutError):
        virtual_time.run(beating())
    with pytest.raises(TimeoutError):
        virtual_time.run(scenario())
    with pytest.raises(virtual_time.Deadlock), asyncio.Runner(loop_factory=virtual_time.Loop) as runner:
        runner.run(scenario())


def test_a_condition_that_does_not_come_true_is_told():
    with pytest.raises(AssertionError, match="not within 3 virtual seconds"):
        virtual_time.run(virtual_time.until(lambda: False, limit_s=3.0))


def test_threads_of_others_hold_nothing_up():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    try:
        virtual_time.run(asyncio.sleep(10.0))
    finally:
        stop.set()
        thread.join()
    assert virtual_time.now() == pytest.approx(virtual_time.START_S + 10.0)


@pytest.mark.parametrize(
    "path", [path for name in IN_VIRTUAL_TIME for path in sorted(TESTS.glob(name))], ids=lambda path: path.stem
)
def test_tests_of_the_control_plane_know_no_real_time(path: Path) -> None:
    named = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    found = [
        (node.lineno, node.attr) for node in named if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in REAL
    ]
    assert found == [], "virtual_time has what it takes"
