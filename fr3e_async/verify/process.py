"""The parent's view of the nursery and of one worker: start, ask with a wall limit, end.

Knows nothing of answers: texts go in, a worker's word or the reason for its silence comes out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import fr3e_async
from fr3e_async.errors import RunFailed
from fr3e_async.verify.limits import Limits

_START_LIMIT_S = 120.0  # for the import of math-verify on a machine that is busy starting engines
_REPLY_BYTES = 4096
_ENDINGS = {-signal.SIGPROF: "cpu limit", -signal.SIGKILL: "killed, perhaps for memory", -signal.SIGSEGV: "crashed"}


class NurseryGone(Exception):
    """The nursery has ended or does not answer; its workers have ended with it."""


class WorkerGone(Exception):
    """The worker had ended before it got the question, which may be put to another."""


class Reply(NamedTuple):
    outcome: str
    reason: str
    usable: bool  # False: the worker has ended; take another


class Nursery:
    """One nursery process. Starting returns at once; the first ``fork`` waits for its imports. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_START_LIMIT_S)
        self._lock = threading.Lock()
        self.alive = True
        root = str(Path(fr3e_async.__file__).parents[1])  # a Ray job's code may be on sys.path only
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "fr3e_async.verify.nursery", str(theirs.fileno()), limits.to_json().decode()]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C must not reach it
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )

    def _request(self, message: str, files: list[int]) -> int:
        with self._lock:
            if not self.alive:
                raise NurseryGone
            try:
                socket.send_fds(self._control, [message.encode()], files)
                reply = self._control.recv(64)
            except OSError as error:
                self.alive = False
                raise NurseryGone from error
            if not reply:
                self.alive = False
                raise NurseryGone
            return int(reply)

    def fork(self) -> Worker:
        """A new worker. Raises ``NurseryGone``."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = self._request("fork", [theirs.fileno()])
            return Worker(nursery=self, pid=pid, connection=Connection(ours.detach()))

    def end(self, pid: int) -> int:
        """Kill a worker that may have ended already; its exit status, negative for a signal."""
        try:
            return self._request(f"end {pid}", [])
        except NurseryGone:
            return -signal.SIGKILL  # that is how a worker ends with its nursery

    def close(self) -> None:
        """End it and all its workers. Idempotent."""
        with self._lock:
            self.alive = False
            self._control.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Worker:
    """One killable process. Not thread-safe: the pool gives it to one thread at a time."""

    def __init__(self, *, nursery: Nursery, pid: int, connection: Connection) -> None:
        self._nursery = nursery
        self._connection = connection
        self.pid = pid

    def ask(self, answer: str, gold: str, *, wall_limit_s: float) -> Reply:
        """Judge one answer. Beyond the wall limit, or if the process dies of it, the reply is unknown and names the limit.

        Raises ``WorkerGone`` if the process was dead already.
        """
        try:
            self._connection.send_bytes(json.dumps([answer, gold]).encode())
        except (BrokenPipeError, ConnectionResetError) as error:
            self.end()
            raise WorkerGone from error
        try:
            if not self._connection.poll(wall_limit_s):
                self.end()
                return Reply("unknown", "wall limit", usable=False)
            outcome, reason, retire = json.loads(self._connection.recv_bytes(_REPLY_BYTES))
        except (EOFError, ConnectionResetError):
            status = self.end()
            return Reply("unknown", _ENDINGS.get(status, f"worker ended with status {status}"), usable=False)
        if retire:
            self.end()
        return Reply(outcome, reason, usable=not retire)

    def end(self) -> int:
        """Kill it if need be and give its resources back; its exit status. Call once."""
        self._connection.close()
        return self._nursery.end(self.pid)


def start_failed() -> RunFailed:
    return RunFailed(
        "the math-verify processes do not start (twice in a row); their error is in this actor's log. "
        "Is math-verify installed in the environment of the verifier actors?"
    )
