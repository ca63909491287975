"""The process that has math-verify (or a user's reward) loaded and forks workers from itself: a new one costs milliseconds.

Not multiprocessing's forkserver: that is one per program, shared with whoever else preloads into it, and each of its children
first runs the program's main module again, which in a Ray actor means importing Ray. This one is started with nothing but its
control socket, so workers hold none of the parent's files; it ends, with all its workers, when that socket closes.

Requests, one datagram each: ``fork`` with a socket attached -> the worker's pid; ``end <pid>`` -> its exit status as
``subprocess`` counts it (negative: the signal). Only the process that forked a worker may signal it: to anybody else the
pid could by then be another process. A worker leads a process group, so that what a user's function has started ends with it.

A worker takes tasks from its socket, does each under limits and answers. Its CPU limit is a profiling timer left at its default action, so the
kernel ends the process even inside one endless big-integer operation. A Python-level signal handler would wait for that operation.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

from fr3e_async.signals import pass_over
from fr3e_async.verify.jobs import CORRECT, MEMORY_LIMIT, UNKNOWN, Job, Judgement, load_job
from fr3e_async.verify.wire import Channel, Limits, Setup

_PR_SET_PDEATHSIG = 1


def fork_worker(control: socket.socket, channel: int, job: Job, setup: Setup) -> int:
    """Fork a worker that serves the socket ``channel``; its pid (the child never returns)."""
    fork_server = os.getpid()
    pid = os.fork()
    if pid:
        os.close(channel)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it was quicker, and has ended or set it itself
            os.setpgid(pid, pid)
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        die_with(fork_server)
        control.close()
        pass_over()
        connection = Channel(socket.socket(fileno=channel))
        serve(connection, job, setup.limits, hides_memory_errors=setup.built_in)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the pool has gone
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def end_worker(pid: int, alive: set[int]) -> int:
    """Kill a worker if it still runs, and what it has started; its exit status."""
    alive.remove(pid)
    os.kill(pid, signal.SIGKILL)  # without effect on one that has exited and waits to be reaped
    with contextlib.suppress(ProcessLookupError):  # a user's function has left the group
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tend(control: socket.socket, job: Job, setup: Setup) -> None:
    """Fork and end workers as the control socket asks, until the parent closes it."""
    alive: set[int] = set()
    while True:
        message, files, _, _ = socket.recv_fds(control, 64, 1)
        if not message:
            break
        word, _, argument = message.decode().partition(" ")
        if word == "fork":
            pid = fork_worker(control, files[0], job, setup)
            alive.add(pid)
            reply = pid
        else:
            reply = end_worker(int(argument), alive)
        control.send(str(reply).encode())
    for pid in tuple(alive):
        end_worker(pid, alive)


# ---- Inside a worker ----


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` (which must have made it) ends, even by SIGKILL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request took effect
        os._exit(1)


def serve(channel: Channel, job: Job, limits: Limits, *, hides_memory_errors: bool) -> None:
    """Answer a list of tasks with ``[judgement, retire]`` for each, one message a task, until the other end closes.

    After a retire the process ends, and the tasks behind it are not looked at. ``hides_memory_errors``: the job swallows
    ``MemoryError`` and continues as if the answer were unequal, as sympy and math-verify do.
    """
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            tasks = channel.receive()
        except EOFError:
            return
        for task in tasks:
            judgement, retire = rule(task, job, limits, hides_memory_errors=hides_memory_errors)
            channel.send([judgement, retire])
            if retire:  # a fresh process is cheaper than one that keeps gigabytes
                return


def rule(task: Sequence[str], job: Job, limits: Limits, *, hides_memory_errors: bool) -> tuple[Judgement, bool]:
    """One task under the CPU limit; and whether the process has come near its memory limit."""
    half = limits.memory_bytes / 2
    before = _peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    judgement = job(task)
    signal.setitimer(signal.ITIMER_PROF, 0)
    near_limit = _peak_bytes() > half
    # A peak that this very task drove near the limit is what is left to see of a memory error that was swallowed.
    if hides_memory_errors and near_limit and before <= half and judgement.outcome != CORRECT:
        judgement = Judgement(UNKNOWN, MEMORY_LIMIT)
    return judgement, near_limit


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def main() -> None:
    """``python -m fr3e_async.verify.fork_server FD SETUP``: FD is a connected SOCK_SEQPACKET socket, SETUP a JSON object."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program; we end when its socket closes
    control = socket.socket(fileno=int(sys.argv[1]))
    setup = Setup.from_json(sys.argv[2])
    sys.path[:] = setup.sys_path
    job = load_job(setup.job, setup.options)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # what the CPU limit relies on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    gc.collect()
    gc.freeze()  # workers neither walk nor copy what was loaded before they were forked
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the program was killed before it read a reply
        tend(control, job, setup)


if __name__ == "__main__":
    main()
