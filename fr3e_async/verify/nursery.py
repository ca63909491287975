"""The process that has math-verify loaded and forks workers from itself: a new one costs milliseconds, not an import.

Not multiprocessing's forkserver: that is one per program, shared with whoever else preloads into it, and each of its children
first runs the program's main module again, which in a Ray actor means importing Ray. This one is started with nothing but its
control socket, so workers hold none of the parent's files; it ends, with all its workers, when that socket closes.

Requests, one datagram each: ``fork`` with a socket attached -> the worker's pid; ``end <pid>`` -> its exit status as
``subprocess`` counts it (negative: the signal). Only the process that forked a worker may signal it: to anybody else the
pid could by then be another process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from multiprocessing.connection import Connection

from fr3e_async.verify.limits import Limits
from fr3e_async.verify.worker import die_with, serve


def fork_worker(control: socket.socket, channel: int, limits: Limits) -> int:
    """Fork a worker that serves the socket ``channel``; its pid (the child never returns)."""
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        os.close(channel)
        return pid
    try:
        die_with(nursery)
        control.close()
        serve(Connection(channel), limits)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the pool has gone
    finally:
        os._exit(0)


def end_worker(pid: int, alive: set[int]) -> int:
    """Kill a worker if it still runs; its exit status."""
    alive.remove(pid)
    os.kill(pid, signal.SIGKILL)  # without effect on one that has exited and waits to be reaped
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tend(control: socket.socket, limits: Limits) -> None:
    """Serve requests until the control socket closes."""
    alive: set[int] = set()
    while True:
        message, files, _, _ = socket.recv_fds(control, 64, 1)
        if not message:
            break
        word, _, argument = message.decode().partition(" ")
        if word == "fork":
            pid = fork_worker(control, files[0], limits)
            alive.add(pid)
            reply = pid
        else:
            reply = end_worker(int(argument), alive)
        control.send(str(reply).encode())
    for pid in tuple(alive):
        end_worker(pid, alive)


def main() -> None:
    """``python -m fr3e_async.verify.nursery FD LIMITS``: FD is a connected SOCK_SEQPACKET socket, LIMITS a JSON object."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program; we end when its socket closes
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # what the CPU limit relies on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the program was killed before it read a reply
        tend(socket.socket(fileno=int(sys.argv[1])), Limits.from_json(sys.argv[2].encode()))


if __name__ == "__main__":
    main()
