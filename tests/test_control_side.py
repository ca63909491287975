"""A blocking call beside the loop: its result or error arrives, nobody has to wait for it, and a loop that is gone is no trouble."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fr3e_async.control.side import on_the_side


def test_results_and_errors_arrive():
    def broken():
        raise KeyError("why")

    async def story():
        assert await on_the_side(lambda: 7) == 7
        with pytest.raises(KeyError, match="why"):
            await on_the_side(broken)

    asyncio.run(story())


def test_the_loop_goes_on_meanwhile_and_ends_without_it():
    stuck = threading.Event()

    async def story():
        waiting = on_the_side(stuck.wait)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await waiting

    began = time.monotonic()
    asyncio.run(story())
    assert time.monotonic() - began < 5
    stuck.set()  # its loop is closed by now


def test_an_answer_that_nobody_waits_for_any_more_is_dropped():
    gate = threading.Event()

    async def story():
        waiting = on_the_side(gate.wait)
        waiting.cancel()
        gate.set()
        await asyncio.sleep(0.02)
        assert waiting.cancelled()

    asyncio.run(story())
