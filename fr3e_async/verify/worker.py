"""The inside of a killable process: take a pair from the socket, judge it under limits, answer, repeat.

Knows nothing of pools or of who asks. The CPU limit is a profiling timer left at its default action, so the kernel ends the
process even inside one endless big-integer operation; a Python-level signal handler would wait for that operation.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
from multiprocessing.connection import Connection

from fr3e_async.verify import judge
from fr3e_async.verify.limits import Limits

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` (which must have made it) ends, even by SIGKILL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request took effect
        os._exit(1)


def serve(connection: Connection, limits: Limits) -> None:
    """Answer ``[answer, gold]`` with ``[outcome, reason, retire]`` until the other end closes. JSON, never pickle."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            answer, gold = json.loads(connection.recv_bytes())
        except EOFError:
            return
        before = _peak_bytes()
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
        outcome, reason = judge.judge(answer, gold)
        signal.setitimer(signal.ITIMER_PROF, 0)
        # sympy and math-verify swallow MemoryError and go on as if the answer were unequal. A peak that this very job drove
        # near the limit is what is left of it to see.
        near_limit = _peak_bytes() > limits.memory_bytes / 2
        if near_limit and before <= limits.memory_bytes / 2 and outcome != judge.RIGHT:
            outcome, reason = judge.UNKNOWN, judge.MEMORY_LIMIT
        connection.send_bytes(json.dumps([outcome, reason, near_limit]).encode())
        if near_limit:  # a fresh process is cheaper than one that keeps gigabytes
            return


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
