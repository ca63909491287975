"""Handle the signals that ask for a clean shutdown: which processes receive them, and which do not."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen(act: Callable[[str], None]) -> None:
    """Call ``act`` with the signal's name, in the running event loop. Use it after ``ray.init``, which sets handlers too.

    SIGHUP stays ignored where it is already ignored, as under nohup. Where it means that the terminal is gone, what is written there
    goes nowhere from then on, instead of raising.
    """

    def heard(number: signal.Signals) -> None:
        _leave_dead_terminal()
        act(number.name)

    for number in ENDING:
        if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
            asyncio.get_running_loop().add_signal_handler(number, heard, number)


@contextmanager
def interrupting() -> Iterator[None]:
    """Until the event loop listens, make each of them interrupt like Ctrl-C, so that the start is undone."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Start processes that ``ENDING`` signals do not reach, nor their children: a blocked signal stays blocked over fork and exec.

    `timeout`, systemd, Slurm and a terminal that goes away signal the whole group. A local cluster that died of that would take the last
    checkpoint with it; so the driver alone listens. Ray ends its processes by SIGKILL, and so does the kernel when the driver dies.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pass_over() -> None:
    """Survive SIGTERM and SIGHUP in a process of a deaf cluster. Its children receive them: a user's function may end its own."""
    numbers = ENDING[1:]

    def set_all(handler: Callable[[int, object], None] | signal.Handlers) -> None:
        for number in numbers:
            signal.signal(number, handler)

    set_all(lambda number, frame: None)  # unlike SIG_IGN no program inherits it
    os.register_at_fork(after_in_child=lambda: set_all(signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _leave_dead_terminal() -> None:
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
