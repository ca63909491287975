"""The learner's side of the loop: a batch is trained and its weights go out; trunks are re-scored while it is free. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fr3e_async.clock import Clock
from fr3e_async.control.door import Door
from fr3e_async.control.executor import Emit
from fr3e_async.control.payload_table import PayloadTable
from fr3e_async.control.ports import LearnerPort, TrainRow, Trunk
from fr3e_async.control.progress import Progress
from fr3e_async.control.publisher import Publisher
from fr3e_async.errors import LearnerLost
from fr3e_async.machine.events import Exported, Rescored, Trained
from fr3e_async.machine.messages import Rescore, Train

Busy = Callable[[tuple[float, float]], None]


class Learning:
    """Carries out ``Train`` and ``Rescore``, one at a time; each ends in its event."""

    def __init__(
        self,
        lock: LearnerLock,
        table: PayloadTable,
        publisher: Publisher,
        *,
        progress: Progress,
        emit: Emit,
        busy: Busy,
        clock: Clock,
        door: Door | None = None,
    ) -> None:
        """``busy`` is told from when to when the learner was at work. ``door``: what is to know the learner's numbers."""
        self._door = door
        self._learner_lock, self._table, self._publisher = lock, table, publisher
        self._progress, self._emit, self._busy, self._clock = progress, emit, busy, clock
        self._rescores: asyncio.Queue[Rescore] = asyncio.Queue()
        self._hand_over = False
        self._held: list[int] = []  # versions that wait for it
        self._began: float | None = None  # the batch in training
        self._usual: float | None = None  # seconds that the last one took

    def hand_over(self) -> None:
        """Weights may go to the engines from now on: the first accuracy, which needs v0 in them, is known."""
        self._hand_over = True
        self._tell()

    def left_s(self) -> float | None:
        """Seconds that the batch in training will still take, if it takes as long as the one before; None without one before."""
        if self._usual is None:
            return None
        return max(0.0, self._usual - (self._clock() - self._began if self._began is not None else 0.0))

    async def train(self, command: Train) -> None:
        await self._learner_lock.whole(self._train(command))

    async def _train(self, command: Train) -> None:
        rows = [
            TrainRow(payload=self._table[item.payload], row=item.row, advantage=item.advantage, load=item.load)
            for item in command.items
        ]
        async with self._learner_lock.turn(f"trains v{command.version}"):
            self._began = started = self._clock()
            report = await self._learner_lock.of(self._learner_lock.learner.train(rows, version=command.version))
            trained = self._clock()
            weights = await self._learner_lock.of(self._learner_lock.learner.export(command.version))
            if self._door is not None:
                await self._learner_lock.of(self._door.learned(command.version))
            self._began, self._usual = None, self._clock() - started
            self._busy((started, self._clock()))
            self._progress.trained(report, first_at=trained)
            self._progress.times |= {"time/train_s": trained - started, "time/export_s": self._clock() - trained}
            self._publisher.offer(weights)
            self._emit(Trained(version=command.version))
            self._held.append(command.version)
            self._tell()

    def _tell(self) -> None:
        if self._hand_over:
            for version in self._held:
                self._emit(Exported(version=version))
            self._held.clear()

    def rescore(self, command: Rescore) -> None:
        """When the learner is free."""
        self._rescores.put_nowait(command)

    async def keep_rescoring(self) -> None:
        """All trunks that wait when the learner is free go to it in one call; those of groups that have retired do not."""
        while True:
            waiting = [await self._rescores.get()]
            async with self._learner_lock.turn("re-scores trunks"):
                while not self._rescores.empty():
                    waiting.append(self._rescores.get_nowait())
                commands = [command for command in waiting if command.payload in self._table]
                trunks = [
                    Trunk(payload=self._table[command.payload], id=id, length=length)
                    for command in commands
                    for id, length in zip(command.trunks, command.lengths, strict=True)
                ]
                started = self._clock()
                chosen = iter(await self._learner_lock.of(self._learner_lock.learner.rescore(trunks)) if trunks else ())
                self._busy((started, self._clock()))
            for command in commands:
                anchors = tuple(anchor for _ in command.trunks for anchor in next(chosen))
                self._emit(Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))


# ---- The learner's turns: one thing at a time, in the order it was asked for, each call with a time limit ----

T = TypeVar("T")


class LearnerLock:
    """Who has the learner; the watchdog reads what it is at."""

    def __init__(self, learner: LearnerPort, *, limit_s: float) -> None:
        self.learner, self._limit = learner, limit_s
        self._lock = asyncio.Lock()  # FIFO: batches, checkpoints and exports as they were asked for
        self._does = ""
        self._begun: set[asyncio.Task[Any]] = set()
        self.failed = False  # one of its calls has raised or took too long

    @property
    def does(self) -> str:
        """What the learner is doing; empty if it has nothing to do, or waits for engines to take its weights."""
        return "" if self.learner.waits() else self._does

    @asynccontextmanager
    async def turn(self, what: str) -> AsyncIterator[None]:
        async with self._lock:
            self._does = what
            try:
                yield
            finally:
                self._does = ""

    def done(self) -> None:
        """The learner has done its part; what is left of the turn is others' work."""
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
        """Wait for work that continues when the waiting is cancelled: a batch or a checkpoint cannot be taken back from the learner."""
        task = asyncio.ensure_future(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def rest(self) -> None:
        """Wait until all ``whole`` work has ended, well or not."""
        while self._begun:
            await asyncio.wait(self._begun)

    async def drop(self) -> None:
        """What the learner is still at is of no use to anybody."""
        for task in self._begun:
            task.cancel()
        await self.rest()
