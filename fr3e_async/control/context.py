"""What the parts of one session's loop share: what the run is made of, and the queue on which events travel to the machine.

A part emits events and starts tasks through the context, and reads what another part is at from it. No part needs a callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.door import Door
from fr3e_async.control.ports import Checkpoints, LearnerPort, Payload, PayloadStore, Reporter
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.progress import Progress
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.trees import TreeRecorder
from fr3e_async.control.workers import Workers
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import LearnerLost
from fr3e_async.machine.events import Event, WorkerDown
from fr3e_async.machine.machine import Machine
from fr3e_async.store.journal import Journal
from fr3e_async.store.ledger_log import LedgerLog

SHELTER_S = 30.0  # for fetching the rollouts of a node that goes

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files that a session writes for its resume, its audit and its readers."""

    ledger_log: LedgerLog  # what became of every group
    checkpoints: Checkpoints
    journal: Journal | None = None  # every event and the commands that followed; None: not kept
    trees: TreeRecorder | None = None  # some settled groups in full; None: not kept


@dataclass(kw_only=True)
class RunContext:
    """One session of a run. The fields up to ``door`` are given, the others belong to the loop."""

    config: Config
    machine: Machine
    workers: Workers
    stream: PromptStream
    publisher: Publisher
    files: RunFiles
    reporter: Reporter
    progress: Progress
    clock: Clock
    table: PayloadTable = field(default_factory=lambda: PayloadTable())
    door: Door | None = None  # compares engines with the learner before they serve; None: no comparison
    events: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)  # None only wakes the loop
    tasks: asyncio.TaskGroup = field(init=False)  # one failed task fails the run
    running: set[asyncio.Task[None]] = field(default_factory=set)
    stop_reason: str = ""  # empty: no stop was requested
    budget_spent: bool = False  # budget.tokens is used up
    writing: str = ""  # what this process is writing, for the watchdog

    def __post_init__(self) -> None:
        self.learner = LearnerLock(self.workers.learner, limit_s=self.config.learner.step_timeout_s)
        self.moved_at = self.clock()  # when anything last got on

    def emit(self, event: Event) -> None:
        """Queue an event; the loop hands it to the machine in its turn."""
        self.events.put_nowait(event)

    def wake(self) -> None:
        """Have the loop look again whether the run has ended."""
        self.events.put_nowait(None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of the run; its failure fails the run."""
        task = self.tasks.create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    def moved(self) -> None:
        """Note progress: the stall watchdog restarts its count."""
        self.moved_at = self.clock()

    def down(self, name: str, why: str, *, node: bool = False) -> None:
        """Take a worker out of service. All its calls may report its death; the machine acts on the first report only.

        ``node``: it is gone with its node.
        """
        if self.workers.role(name):
            self.emit(WorkerDown(worker=name, why=self.workers.explained(name, why), node=node))

    @property
    def ends(self) -> bool:
        """True when the learner has no more batch to train, only the last checkpoint to write."""
        return bool(self.stop_reason) or self.budget_spent or self.machine.ledger.version >= self.config.run.steps


class LearnerLock:
    """Gives the learner to one user at a time, in the order of the requests. Each call has a time limit."""

    def __init__(self, learner: LearnerPort, *, limit_s: float) -> None:
        self.port, self._limit = learner, limit_s
        self._lock = asyncio.Lock()  # FIFO: batches, checkpoints and exports as they were asked for
        self._does = ""
        self._begun: set[asyncio.Task[Any]] = set()
        self.failed = False  # one of its calls has raised or took too long

    @property
    def does(self) -> str:
        """The learner's current work as a phrase; "" if it is idle, or waits for engines to take its weights."""
        return "" if self.port.waits() else self._does

    @asynccontextmanager
    async def turn(self, what: str) -> AsyncIterator[None]:
        """Hold the learner for a block. ``what``: its work as a phrase, such as "trains v8"."""
        async with self._lock:
            self._does = what
            try:
                yield
            finally:
                self._does = ""

    def done(self) -> None:
        """Mark the learner's part of this turn as done; the rest of the turn does not need it."""
        self._does = ""

    async def of(self, work: Awaitable[T]) -> T:
        """Wait for a call to the learner. Raises ``LearnerLost`` after ``learner.step_timeout_s``."""
        try:
            async with asyncio.timeout(self._limit):
                return await work
        except TimeoutError:
            self.failed = True
            raise LearnerLost(f"the learner took longer than learner.step_timeout_s ({self._limit:g} s)") from None
        except Exception:
            self.failed = True
            raise

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that continues when the waiter is cancelled: the learner cannot take back a batch or a checkpoint."""
        task = asyncio.ensure_future(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def rest(self) -> None:
        """Wait until all ``whole`` work has ended, with or without an error."""
        while self._begun:
            await asyncio.wait(self._begun)

    async def drop(self) -> None:
        """Cancel all ``whole`` work, whose results nobody needs, and wait until it has ended."""
        for task in self._begun:
            task.cancel()
        await self.rest()


class PayloadTable:
    """Handles of rollout batches by key, each held until its group retires."""

    def __init__(self, payloads: Mapping[int, tuple[str, Payload]] | None = None) -> None:
        """``payloads``: from the checkpoint of a resumed run, key -> (group, handle)."""
        self._payloads: dict[int, Payload] = {}
        self._of: dict[str, list[int]] = {}
        self._next = 0
        self._sheltering = False
        for key, (group, payload) in (payloads or {}).items():
            self.open(group)
            self.keep(group, payload, key=key)

    def __len__(self) -> int:
        return len(self._payloads)

    def __getitem__(self, key: int) -> Payload:
        return self._payloads[key]

    def __contains__(self, key: int) -> bool:
        return key in self._payloads

    def held(self) -> dict[int, Payload]:
        """Return all handles by key: whoever has them keeps the payloads, whatever retires meanwhile."""
        return dict(self._payloads)

    async def shelter(self, store: PayloadStore) -> None:
        """Copy all payloads to this node, as far as ``SHELTER_S`` allows; once for all workers of a node that goes."""
        if not self._sheltering:
            self._sheltering, payloads = True, list(self._payloads.values())
            await run_in_daemon_thread(lambda: store.fetch(payloads, timeout_s=SHELTER_S))
            self._sheltering = False

    def open(self, group: str) -> None:
        """Begin to hold the payloads of this group."""
        self._of.setdefault(group, [])

    def keep(self, group: str, payload: Payload, *, key: int = 0) -> int:
        """Hold a payload and return its key. A late duplicate, whose group has retired, gets a key and is not held.

        ``key``: that it had before a restart.
        """
        self._next = max(self._next + (key == 0), key)
        key = key or self._next
        if group in self._of:
            self._payloads[key] = payload
            self._of[group].append(key)
        return key

    def replace(self, key: int, payload: Payload) -> None:
        """Hold another batch of the same rollouts under this key, unless its group has retired."""
        if key in self._payloads:
            self._payloads[key] = payload

    def release(self, group: str) -> None:
        """Drop the handles of a group's payloads, so that the object store can free them."""
        for key in self._of.pop(group, []):
            del self._payloads[key]
