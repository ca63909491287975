"""A blocking call beside the loop: its result or error arrives, nobody has to wait for it, and a loop that is gone is no trouble."""

from __future__ import annotations

import asyncio

import pytest
import virtual_time

from fr3e_async.control.process import run_in_daemon_thread


def test_results_and_errors_arrive():
    def broken():
        raise KeyError("why")

    async def scenario():
        assert await run_in_daemon_thread(lambda: 7) == 7
        with pytest.raises(KeyError, match="why"):
            await run_in_daemon_thread(broken)

    virtual_time.run(scenario())


def test_the_loop_continues_meanwhile_and_ends_without_it():
    stuck = virtual_time.Gate()

    async def scenario():
        waiting = run_in_daemon_thread(stuck.wait)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await waiting

    virtual_time.run(scenario())
    stuck.set()  # its loop is closed by now


def test_an_answer_that_nobody_waits_for_any_more_is_dropped():
    gate = virtual_time.Gate()

    async def scenario():
        waiting = run_in_daemon_thread(gate.wait)
        waiting.cancel()
        gate.set()
        await virtual_time.settle()
        assert waiting.cancelled()

    virtual_time.run(scenario())
