"""The parent's view of the fork server and of one worker: start, ask with a wall limit, end.

Knows nothing of answers: tasks go in, a worker's ruling or the reason for its silence comes out.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from fr3e_async.errors import RunFailed
from fr3e_async.verify.jobs import UNKNOWN, Judgement
from fr3e_async.verify.rewards import child_environment
from fr3e_async.verify.wire import Channel, Setup

_START_LIMIT_S = 120.0  # for the import of math-verify on a machine that is busy starting engines
WALL_LIMIT = "wall limit"
_ENDINGS = {-signal.SIGPROF: "cpu limit", -signal.SIGKILL: "killed, perhaps for memory", -signal.SIGSEGV: "crashed"}

Task = Sequence[Any]  # what a job takes, in a form of JSON


class ForkServerGone(Exception):
    """The fork server has ended or does not answer; its workers have ended with it."""


class WorkerGone(Exception):
    """The worker had ended before it got the question, which may be put to another."""


class Reply(NamedTuple):
    ruling: Judgement
    usable: bool  # False: the worker has ended; take another


class ForkServer:
    """One fork server. Starting returns at once; the first ``fork`` waits for its imports. Thread-safe."""

    def __init__(self, setup: Setup) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_START_LIMIT_S)
        self._lock = threading.Lock()
        self.alive = True
        command = [sys.executable, "-m", "fr3e_async.verify.fork_server", str(theirs.fileno()), setup.to_json()]
        with theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if setup.built_in else 2,  # what a user's function prints belongs into the log
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C must not reach it
                env=child_environment(),
            )

    def _request(self, message: str, files: list[int]) -> int:
        with self._lock:
            if not self.alive:
                raise ForkServerGone
            try:
                socket.send_fds(self._control, [message.encode()], files)
                reply = self._control.recv(64)
            except OSError as error:
                self.alive = False
                raise ForkServerGone from error
            if not reply:
                self.alive = False
                raise ForkServerGone
            return int(reply)

    def fork(self) -> Worker:
        """A new worker. Raises ``ForkServerGone``."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = self._request("fork", [theirs.fileno()])
            except ForkServerGone:
                ours.close()
                raise
        return Worker(fork_server=self, pid=pid, channel=Channel(ours))

    def end(self, pid: int) -> int:
        """Kill a worker that may have ended already; its exit status, negative for a signal."""
        try:
            return self._request(f"end {pid}", [])
        except ForkServerGone:
            return -signal.SIGKILL  # that is how a worker ends with its fork server

    def close(self) -> None:
        """End it and all its workers. Idempotent."""
        with self._lock:
            self.alive = False
            self._control.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Worker:
    """One killable process. Not thread-safe: the pool gives it to one thread at a time."""

    def __init__(self, *, fork_server: ForkServer, pid: int, channel: Channel) -> None:
        self.fork_server = fork_server
        self._channel = channel
        self.pid = pid

    def ask(self, tasks: Sequence[Task], *, wall_limit_s: float) -> list[Reply]:
        """Replies to the first of the tasks, at least one, and to all of them unless the last reply says that the worker has ended.

        A task that exceeds the wall limit, or that the process dies of, is unknown and names the limit. Raises
        ``WorkerGone`` if the process was dead already.
        """
        replies: list[Reply] = []
        try:
            self._channel.send(tasks, limit_s=wall_limit_s)
        except (BrokenPipeError, ConnectionResetError) as error:
            self.end()
            raise WorkerGone from error
        except TimeoutError:
            return [self._ended(WALL_LIMIT)]
        while len(replies) < len(tasks):
            try:
                ruling, retire = self._channel.receive(limit_s=wall_limit_s)
            except TimeoutError:
                return [*replies, self._ended(WALL_LIMIT)]
            except (EOFError, ConnectionResetError):
                return [*replies, self._ended("")]
            replies.append(Reply(Judgement(*ruling), usable=not retire))
            if retire:
                self.end()
                break
        return replies

    def _ended(self, reason: str) -> Reply:
        """End the process; the reply to the task that it had in hand. Without a reason its exit status tells it."""
        status = self.end()
        reason = reason or _ENDINGS.get(status, f"worker ended with status {status}")
        return Reply(Judgement(UNKNOWN, reason), usable=False)

    def end(self) -> int:
        """Kill it if need be and give its resources back; its exit status. Call once."""
        self._channel.close()
        return self.fork_server.end(self.pid)


def start_failed(setup: Setup) -> RunFailed:
    where = "their error is in the log of the process that needs them"
    if setup.built_in:
        return RunFailed(
            f"the math-verify processes do not start; {where}. Is math-verify installed there, and verifiers.memory_gib large enough?"
        )
    return RunFailed(
        f"the processes of reward={setup.job} do not start; {where}. Can its module be imported there, "
        "and is verifiers.memory_gib large enough?"
    )
