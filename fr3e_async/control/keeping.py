"""When a checkpoint is written: every so many batches, before the learner leaves its nodes, when asked for, at the end.

How one is written is ``saving``. What it holds is a consistent cut of the books between two events, so taking it stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from fr3e_async.clock import Clock
from fr3e_async.control.hands import Shelf, Spawn
from fr3e_async.control.ledger import Ledger
from fr3e_async.control.ports import Payload, Reporter
from fr3e_async.control.progress import Cut, Progress, cut_of
from fr3e_async.control.saving import Saver, little_room
from fr3e_async.control.side import on_the_side
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import LearnerLost
from fr3e_async.observe.books import Books


class Keeper:
    """See the module's docstring."""

    def __init__(
        self,
        saver: Saver,
        ledger: Ledger,
        shelf: Shelf,
        stream: PromptStream,
        *,
        every: int,
        steps: int,
        books: Books,
        progress: Progress,
        reporter: Reporter,
        spawn: Spawn,
        ends: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """``every``: batches, 0: none; ``steps``: of the run. ``ends``: nothing is left for the learner but the last checkpoint, so that another one
        would come too late to be of use."""
        self._saver, self._ledger, self._shelf, self._stream = saver, ledger, shelf, stream
        self._every, self._steps = every, steps
        self._books, self._progress, self._reporter = books, progress, reporter
        self._spawn, self._ends, self._clock = spawn, ends, clock
        self.version, self.at = ledger.version, clock()  # of the newest one
        self._wanted = False  # whatever ``every`` says
        self._leaves = ""  # why the learner group is to be made anew elsewhere

    def trained(self, version: int) -> None:
        """A batch is done; the run's last one is kept by ``last``."""
        if self._leaves:
            self._spawn(self._leave_nodes(self._leaves))
        elif self._wanted or (self._every and version % self._every == 0 and version < self._steps):
            self._wanted = False
            self._spawn(self._write(self._cut()))

    def soon(self) -> None:
        """After the batch in training."""
        if self._ledger.training or not self._ledger.version:
            self._wanted = True
        else:
            self._spawn(self._write(self._cut()))

    def relocate(self, why: str) -> None:
        """The learner group must leave its nodes: after the batch in training, from a checkpoint of its own."""
        if not self._leaves:
            self._leaves = why
            if not self._ledger.training:
                self._spawn(self._leave_nodes(why))

    async def last(self) -> None:
        if self._ledger.version > 0:
            await self._write(self._cut())

    async def _leave_nodes(self, why: str) -> None:
        if not self._ends() and self._ledger.version > 0:  # also with one of this version: rollouts have come since
            await self._write(self._cut())
        if not self._ends():
            raise LearnerLost(why)

    def _cut(self) -> tuple[Cut, dict[int, Payload]]:
        """The books as they stand, and handles of the payloads that the open groups need."""
        state = self._ledger.state()
        self._books.cut(
            state.version, admitted=state.admitted, settled=state.settled, open=[group.name for group in state.groups]
        )
        cut = cut_of(ledger=state, stream=self._stream.state(), progress=self._progress, now=self._clock())
        return cut, {key: self._shelf[key] for key in sorted(state.payloads)}

    async def _write(self, taken: tuple[Cut, dict[int, Payload]]) -> None:
        version = taken[0].version
        final, spent = await self._saver.save(*taken)
        self.version, self.at = max(self.version, version), self._clock()
        self._progress.times |= spent
        took = spent["time/checkpoint_s"]
        text = f"checkpoint {final.name} in {took:.1f} s"
        self._reporter.note(text, "checkpoint_written", version=version, seconds=round(took, 3))
        if warning := await on_the_side(lambda: little_room(final)):
            self._reporter.note(warning, "storage_pressure")
