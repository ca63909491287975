"""A wish to end, through the real ``Stop`` around a run of fakes in virtual time: what is waited for, and for how long."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from test_control_stops import timed

from fr3e_async import signals
from fr3e_async.run.stop import Stop

BATCH_S = 400.0


def ended(folder: Path, *wishes: tuple[float, str], grace_s: float = 25.0) -> tuple[Any, Stop, list[str], float]:
    """(World, stop, what was said, seconds from the first wish to the end) for signals so many seconds after the second batch has begun."""
    world, messages = timed(folder, train_s=BATCH_S, run={"steps": 9, "checkpoint_every": 0}), list[str]()
    stop = Stop(grace_s=grace_s, say=messages.append)

    async def scenario() -> float:
        stop.task = asyncio.create_task(world.go())  # type: ignore[arg-type]
        stop.controller = world.controller
        await virtual_time.until(lambda: world.ledger.version == 1 and world.ledger.training, step_s=1.0, limit_s=1e4)
        began = virtual_time.now()
        for at, name in wishes:
            asyncio.get_running_loop().call_later(at, stop.ask, name)
        await asyncio.wait([stop.task])
        return virtual_time.now() - began - wishes[0][0]

    return world, stop, messages, virtual_time.run(scenario(), limit_s=1e5)


def test_ctrl_c_waits_for_the_batch_in_training(tmp_path: Path) -> None:
    """Far beyond run.stop_grace_s: who pressed it is there."""
    world, stop, messages, took = ended(tmp_path, (100.0, "SIGINT"))
    assert (stop.reason, stop.hurry, stop.task.result()) == ("stopped by SIGINT", "", "stopped by SIGINT")
    assert world.store.steps()[0] == world.ledger.version == 2
    assert 290 < took < 301
    (text,) = messages
    assert text.startswith(
        "stopped by SIGINT: the batch in training is waited for (about 5 min more), then a checkpoint is written"
    )
    assert text.endswith("; Ctrl-C again ends at once, without it")


@pytest.mark.parametrize("second", ["SIGTERM", "SIGHUP"])
def test_a_launcher_that_sends_it_twice_changes_nothing(tmp_path: Path, second: str) -> None:
    world, stop, _, took = ended(tmp_path, (390.0, "SIGTERM"), (390.0, second))
    assert stop.task.result() == "stopped by SIGTERM"
    assert (world.store.steps()[0], took < 25) == (2, True)


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, first: str) -> None:
    world, stop, _, took = ended(tmp_path, (10.0, first), (15.0, "SIGINT"))
    assert (stop.reason, stop.hurry) == (f"stopped by {first}", "a second Ctrl-C")
    assert stop.task.cancelled()
    assert took == pytest.approx(5.0, abs=0.01)
    assert world.ledger.version == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_launcher_is_not_kept_waiting(tmp_path: Path, name: str) -> None:
    _, stop, messages, took = ended(tmp_path, (10.0, name))
    assert (stop.reason, stop.hurry) == (f"stopped by {name}", "run.stop_grace_s (25 s) is over")
    assert stop.task.cancelled()
    assert took == pytest.approx(25.0, abs=0.01)
    assert messages[0].endswith("; run.stop_grace_s ends that after 25 s")


# ---- who hears what ----


def heard(ignored: tuple[signal.Signals, ...] = ()) -> list[str]:
    names: list[str] = []

    async def scenario() -> None:
        signals.listen(names.append)
        for number in signals.ENDING:
            signal.raise_signal(number)
            await asyncio.sleep(0.01)

    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        asyncio.run(scenario())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return names


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """SIGHUP as in a terminal, however the tests were started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_all_three_are_heard() -> None:
    assert heard() == ["SIGINT", "SIGTERM", "SIGHUP"]


def test_nohup_is_respected() -> None:
    assert heard((signal.SIGHUP,)) == ["SIGINT", "SIGTERM"]


@pytest.mark.parametrize("number", signals.ENDING)
def test_before_the_loop_all_of_them_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals.interrupting():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_children_do_not_hear_what_their_parent_hears() -> None:
    code = "import os, signal; [os.kill(os.getpid(), n) for n in (2, 15, 1)]; print(sorted(map(int, signal.sigpending())))"
    with signals.deaf_children():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout) == (0, "[1, 2, 15]\n")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(signals.ENDING) == set()


def test_a_judge_outlives_them_and_ends_its_own_children_by_them() -> None:
    """As a user's function in a verifier of a local cluster would, with a program and with a fork."""
    code = """
import os, signal, subprocess
from fr3e_async.signals import pass_over
pass_over()
os.kill(os.getpid(), signal.SIGTERM)
program = subprocess.Popen(["sleep", "60"])
program.terminate()
fork = os.fork()
if not fork:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(program.wait(30), os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))
"""
    with signals.deaf_children():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout, child.stderr) == (0, "-15 -15\n", "")
