"""The learner's side of the loop: a batch is trained and its weights go out; trunks are re-scored while it is free. Decides nothing."""

import asyncio

from fr3e_async.control.context import RunContext
from fr3e_async.control.ports import TrainRow, Trunks
from fr3e_async.control.watchdog import Watchdog
from fr3e_async.machine.events import Exported, Rescored, Trained
from fr3e_async.machine.messages import Rescore, Train


class Learning:
    """Carries out ``Train`` and ``Rescore``, one at a time; each ends in its event."""

    def __init__(self, context: RunContext, watch: Watchdog) -> None:
        """``watch`` receives the intervals in which the learner worked, for the metrics of idle time."""
        self._context, self._watch, self._learner = context, watch, context.learner
        self._table, self._emit, self._clock = context.table, context.emit, context.clock
        self._rescores: asyncio.Queue[Rescore] = asyncio.Queue()
        self._hand_over = False
        self._held: list[int] = []  # versions that wait for it
        self._began: float | None = None  # the batch in training
        self._usual: float | None = None  # seconds that the last one took

    def hand_over(self) -> None:
        """Allow weights to go to the engines: the evaluation before training, which needs v0 in them, is done."""
        self._hand_over = True
        self._tell()

    def left_s(self) -> float | None:
        """Estimate the seconds left of the batch in training from the batch before; None without one."""
        if self._usual is None:
            return None
        return max(0.0, self._usual - (self._clock() - self._began if self._began is not None else 0.0))

    async def train(self, command: Train) -> None:
        await self._learner.whole(self._train(command))

    async def _train(self, command: Train) -> None:
        rows = [
            TrainRow(payload=self._table[item.payload], row=item.row, advantage=item.advantage, load=item.load)
            for item in command.items
        ]
        async with self._learner.turn(f"trains v{command.version}"):
            self._began = started = self._clock()
            report = await self._learner.of(self._learner.port.train(rows, version=command.version))
            trained = self._clock()
            weights = await self._learner.of(self._learner.port.export(command.version))
            if self._context.door is not None:
                await self._learner.of(self._context.door.learned(command.version))
            self._began, self._usual = None, self._clock() - started
            self._watch.learned((started, self._clock()))
            self._context.progress.trained(report, first_at=trained)
            self._context.progress.times |= {"time/train_s": trained - started, "time/export_s": self._clock() - trained}
            self._context.publisher.offer(weights)
            self._emit(Trained(version=command.version))
            self._held.append(command.version)
            self._tell()

    def _tell(self) -> None:
        if self._hand_over:
            for version in self._held:
                self._emit(Exported(version=version))
            self._held.clear()

    def rescore(self, command: Rescore) -> None:
        """Queue a request for anchors. The learner serves it once it is free; it ends in ``Rescored``."""
        self._rescores.put_nowait(command)

    async def keep_rescoring(self) -> None:
        """Send all waiting trunks to the learner in one call whenever it is free, except those of retired groups."""
        while True:
            waiting = [await self._rescores.get()]
            async with self._learner.turn("re-scores trunks"):
                while not self._rescores.empty():
                    waiting.append(self._rescores.get_nowait())
                commands = [command for command in waiting if command.payload in self._table]
                trunks = [
                    Trunks(payload=self._table[command.payload], ids=command.trunks, length=sum(command.lengths))
                    for command in commands
                ]
                started = self._clock()
                chosen = await self._learner.of(self._learner.port.rescore(trunks)) if trunks else []
                self._watch.learned((started, self._clock()))
            for command, (anchors, payload) in zip(commands, chosen, strict=True):
                self._table.replace(command.payload, payload)
                self._emit(Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))
