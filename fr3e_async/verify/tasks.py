"""``TaskPool``: rulings on tasks by killable processes, which are made when they are first needed and replaced when they end.

Knows nothing of answers, golds or rewards: that is the job that ``Setup`` names. Usable from any thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from fr3e_async.verify.jobs import UNKNOWN, Judgement
from fr3e_async.verify.process import ForkServer, ForkServerGone, Task, Worker, WorkerGone, start_failed
from fr3e_async.verify.wire import Setup

_STILLBIRTHS = 3  # workers in a row that end before they take a task: then something is wrong with all of them


class Result(NamedTuple):
    ruling: Judgement
    attempts: int  # how often the task was put to a process


class TaskPool:
    """Close it when done. A worker is busy with one batch of tasks at a time."""

    def __init__(self, setup: Setup, *, workers: int, wall_limit_s: float, retry: bool = False) -> None:
        """Starts nothing; see ``warm``. ``retry``: put a task that ended its process once more to a fresh one."""
        self._setup, self._wall_limit_s, self._retry = setup, wall_limit_s, retry
        self.fork_server: ForkServer | None = None
        self._fork_server_lock = threading.Lock()
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
        with self._fork_server_lock:
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
                again = self._retry and first_time and not last.usable and last.ruling.outcome == UNKNOWN
                for reply in replies[:-1] if again else replies:
                    results.append(Result(reply.ruling, attempts))
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
        with self._fork_server_lock:
            if self._closed:
                raise RuntimeError("verifier pool: used after close")
            if self.fork_server is None or not self.fork_server.alive:
                if self.fork_server is not None:
                    self.fork_server.close()
                self.fork_server = ForkServer(self._setup)
            return self.fork_server
