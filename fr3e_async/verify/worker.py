"""The inside of a killable process: take tasks from the socket, do each under limits, answer, repeat.

Knows nothing of pools or of who asks, nor what its job is. The CPU limit is a profiling timer left at its default action, so
the kernel ends the process even inside one endless big-integer operation; a Python-level signal handler would wait for that
operation.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Sequence

from fr3e_async.verify import jobs
from fr3e_async.verify.wire import Channel, Limits

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` (which must have made it) ends, even by SIGKILL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request took effect
        os._exit(1)


def serve(channel: Channel, job: jobs.Job, limits: Limits, *, hides_memory_errors: bool) -> None:
    """Answer a list of tasks with ``[ruling, retire]`` for each, one message a task, until the other end closes.

    After a retire the process ends, and the tasks behind it are not looked at. ``hides_memory_errors``: the job swallows
    ``MemoryError`` and goes on as if the answer were unequal, as sympy and math-verify do.
    """
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            tasks = channel.receive()
        except EOFError:
            return
        for task in tasks:
            ruling, retire = rule(task, job, limits, hides_memory_errors=hides_memory_errors)
            channel.send([ruling, retire])
            if retire:  # a fresh process is cheaper than one that keeps gigabytes
                return


def rule(task: Sequence[str], job: jobs.Job, limits: Limits, *, hides_memory_errors: bool) -> tuple[jobs.Judgement, bool]:
    """One task under the CPU limit; and whether the process has come near its memory limit."""
    half = limits.memory_bytes / 2
    before = _peak_bytes()
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    ruling = job(task)
    signal.setitimer(signal.ITIMER_PROF, 0)
    near_limit = _peak_bytes() > half
    # A peak that this very task drove near the limit is what is left to see of a memory error that was swallowed.
    if hides_memory_errors and near_limit and before <= half and ruling.outcome != jobs.RIGHT:
        ruling = jobs.Judgement(jobs.UNKNOWN, jobs.MEMORY_LIMIT)
    return ruling, near_limit


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
