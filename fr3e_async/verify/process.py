"""The parent's side of killable processes: the fork server, one worker asked with a wall limit, and ``TaskPool``, which makes workers when they
are first needed and replaces those that ended.

Knows nothing of answers or rewards: a task goes in, and a worker's judgement or the reason for its silence comes out. ``Setup`` names the job,
which knows what a task is. ``TaskPool`` can be used from any thread.
"""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from fr3e_async.errors import RunFailed
from fr3e_async.verify.jobs import UNKNOWN, Judgement
from fr3e_async.verify.rewards import child_environment
from fr3e_async.verify.wire import Channel, Setup

_START_LIMIT_S = 120.0  # for the import of math-verify on a machine that is busy starting engines
WALL_LIMIT = "wall limit"
_STILLBIRTHS = 3  # workers in a row that end before they take a task: then something is wrong with all of them
_ENDINGS = {-signal.SIGPROF: "cpu limit", -signal.SIGKILL: "killed, perhaps for memory", -signal.SIGSEGV: "crashed"}

Task = Sequence[Any]  # what a job takes, in a form of JSON


class ForkServerGone(Exception):
    """The fork server has ended or does not answer; its workers have ended with it."""


class WorkerGone(Exception):
    """The worker had ended before it got the question, which may be put to another."""


class Reply(NamedTuple):
    judgement: Judgement
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
        """Fork a worker and return it, connected. Raises ``ForkServerGone`` where the fork server has ended."""
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
        """End the fork server and all its workers; a second call does nothing."""
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
                judgement, retire = self._channel.receive(limit_s=wall_limit_s)
            except TimeoutError:
                return [*replies, self._ended(WALL_LIMIT)]
            except (EOFError, ConnectionResetError):
                return [*replies, self._ended("")]
            replies.append(Reply(Judgement(*judgement), usable=not retire))
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


# ---- A pool of workers ----


class Result(NamedTuple):
    judgement: Judgement
    attempts: int  # how often the task was put to a process


class TaskPool:
    """Close it when done. A worker is busy with one batch of tasks at a time."""

    def __init__(self, setup: Setup, *, workers: int, wall_limit_s: float, retry: bool = False) -> None:
        """Starts nothing; see ``warm``. ``retry``: put a task that ended its process once more to a fresh one."""
        self._setup, self._wall_limit_s, self._retry = setup, wall_limit_s, retry
        self.fork_server: ForkServer | None = None
        self._lock_of_fork_server = threading.Lock()
        self._closed = False
        # None stands for a worker still to be made. Last in, first out: made ones are used before another is made.
        self.free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self.free.put(None)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")
        self.replaced = 0  # workers that were ended by a limit or died, ever

    def warm(self) -> None:
        """Start the fork server in the background; without this the first task waits for its imports."""
        self._threads.submit(self._running_fork_server)

    def submit(self, tasks: Sequence[Task]) -> Future[list[Result]]:
        """A result for each task, in their order, from one worker as long as it lives. Batches are served in order of arrival.

        The future raises ``RunFailed`` if no worker can be started.
        """
        if self._closed:
            raise RuntimeError("verifier pool: used after close")
        return self._threads.submit(self._do, tasks)

    def close(self) -> None:
        """Finish what is in hand and end all processes. Idempotent."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock_of_fork_server:
            fork_server, self.fork_server = self.fork_server, None
        if fork_server is not None:
            fork_server.close()

    def _do(self, tasks: Sequence[Task]) -> list[Result]:
        worker = self.free.get()
        kept: Worker | None = None
        results: list[Result] = []
        attempts, stillbirths = 1, 0
        try:
            while len(results) < len(tasks):
                worker = worker or self._new_worker(stillbirths)
                try:
                    replies = worker.ask(tasks[len(results) :], wall_limit_s=self._wall_limit_s)
                except WorkerGone:  # killed while idle, e.g. by the kernel for memory
                    worker = None
                    self.replaced += 1
                    stillbirths += 1
                    continue
                stillbirths = 0
                last = replies[-1]
                first_time = attempts == 1 or len(replies) > 1  # of the last task; the first one may be at its second attempt
                again = self._retry and first_time and not last.usable and last.judgement.outcome == UNKNOWN
                for reply in replies[:-1] if again else replies:
                    results.append(Result(reply.judgement, attempts))
                    attempts = 1
                attempts = 2 if again else 1
                if not last.usable:
                    worker = None
                    self.replaced += 1
            kept = worker
            return results
        finally:
            if worker is not None and kept is None:
                worker.end()  # its next words would belong to questions that nobody waits for any more
            self.free.put(kept)

    def _new_worker(self, stillbirths: int) -> Worker:
        if stillbirths <= _STILLBIRTHS:
            for _ in range(2):  # the fork server itself may have been killed since it was last used
                try:
                    return self._running_fork_server().fork()
                except ForkServerGone:
                    continue
        raise start_failed(self._setup)

    def _running_fork_server(self) -> ForkServer:
        with self._lock_of_fork_server:
            if self._closed:
                raise RuntimeError("verifier pool: used after close")
            if self.fork_server is None or not self.fork_server.alive:
                if self.fork_server is not None:
                    self.fork_server.close()
                self.fork_server = ForkServer(self._setup)
            return self.fork_server
