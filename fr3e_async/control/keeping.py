"""When a checkpoint is written: every so many batches, by time, before the learner leaves its nodes, when asked for, at the end.

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

LEAST_S = 300.0  # between two checkpoints that are due by time
COST = 20  # a checkpoint that took w seconds is followed by the next one after 20 · w: writing takes 5 % of the time at most


def interval_s(write_s: float) -> float:
    """Seconds after which the next checkpoint is due, whatever number of batches came since. ``write_s``: that writing the last one took.

    Example: 300 s for one that took 15 s or less, 600 s for one that took 30 s.
    """
    return max(LEAST_S, COST * write_s)


def span(seconds: float) -> str:
    """``90 s``, ``5 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


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
        """``every``: batches, 0: by time only; ``steps``: of the run. ``ends``: nothing is left for the learner but the last checkpoint, so that another one
        would come too late to be of use."""
        self._saver, self._ledger, self._shelf, self._stream = saver, ledger, shelf, stream
        self._every, self._steps = every, steps
        self._books, self._progress, self._reporter = books, progress, reporter
        self._spawn, self._ends, self._clock = spawn, ends, clock
        self.version, self.at = ledger.version, clock()  # of the newest one
        self._cut_at = clock()  # of the newest one that was begun
        self.took_s = 0.0  # the last one, to write
        self._begun = 0  # and not written
        self._wanted = False  # whatever ``every`` says
        self._leaves = ""  # why the learner group is to be made anew elsewhere

    def trained(self, version: int) -> None:
        """A batch is done; the run's last one is kept by ``last``."""
        if self._leaves:
            self._spawn(self._leave_nodes(self._leaves))
        elif version < self._steps and (self._wanted or self._due() or (self._every and version % self._every == 0)):
            self._wanted = False
            self._spawn(self._write(self._cut()))

    def soon(self) -> None:
        """After the batch in training."""
        if self._ledger.training or not self._ledger.version:
            self._wanted = True
        else:
            self._spawn(self._write(self._cut()))

    def beat(self, moved_at: float) -> None:
        """Begin one that is due by time, or have it follow the batch in training. ``moved_at``: when anything moved last."""
        if not self._due() or moved_at <= self._cut_at or self._leaves or self._ends():
            return
        if self._ledger.training:
            self._wanted = True
        else:
            self._spawn(self._write(self._cut()))

    def _due(self) -> bool:
        """By time."""
        return not self._begun and self._clock() - self._cut_at >= interval_s(self.took_s)

    def cost(self) -> str:
        """What a kill costs, in words."""
        every = f"every {self._every} batches, and " if self._every else ""
        return (
            f"a checkpoint is written {every}after {span(interval_s(self.took_s))} at the latest, when the batch in training is done: "
            "what came since the last one is lost at a kill"
        )

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
        state, self._cut_at = self._ledger.state(), self._clock()
        self._books.cut(
            state.version, admitted=state.admitted, settled=state.settled, open=[group.name for group in state.groups]
        )
        cut = cut_of(ledger=state, stream=self._stream.state(), progress=self._progress, now=self._clock())
        return cut, {key: self._shelf[key] for key in sorted(state.payloads)}

    async def _write(self, taken: tuple[Cut, dict[int, Payload]]) -> None:
        version, before = taken[0].version, interval_s(self.took_s)
        self._begun += 1
        try:
            final, spent = await self._saver.save(*taken)
        finally:
            self._begun -= 1
        self.version, self.at = max(self.version, version), self._clock()
        self._progress.times |= spent
        self.took_s = took = spent["time/checkpoint_s"]
        after = interval_s(took)
        text = f"checkpoint {final.name} in {took:.1f} s" + (f"; the next one within {span(after)}" if after != before else "")
        self._reporter.note(text, "checkpoint_written", version=version, seconds=round(took, 3))
        if warning := await on_the_side(lambda: little_room(final)):
            self._reporter.note(warning, "storage_pressure")
