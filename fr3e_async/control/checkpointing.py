"""When a checkpoint is written: every so many batches, by time, before the learner leaves its nodes, when asked for, at the end.

How one is written stands below. What it holds is a consistent cut of the ledger between two events, so taking it stops nothing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fr3e_async.clock import Clock
from fr3e_async.control.executor import Spawn
from fr3e_async.control.learning import LearnerLock
from fr3e_async.control.payload_table import PayloadTable
from fr3e_async.control.ports import Checkpoints, Payload, PayloadStore, Reporter, TaskLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.progress import Cut, Progress, cut_of, save_cut
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import LearnerLost
from fr3e_async.machine.ledger import Ledger
from fr3e_async.store.ledger_log import CutRecord, LedgerLog
from fr3e_async.types import RolloutBatch

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


class Checkpointing:
    """See the module's docstring."""

    def __init__(
        self,
        writer: CheckpointWriter,
        ledger: Ledger,
        table: PayloadTable,
        stream: PromptStream,
        *,
        every: int,
        steps: int,
        ledger_log: LedgerLog,
        progress: Progress,
        reporter: Reporter,
        spawn: Spawn,
        ends: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """``every``: batches, 0: by time only; ``steps``: of the run. ``ends``: nothing is left for the learner but the last checkpoint, so that another one
        would come too late to be of use."""
        self._writer, self._ledger, self._table, self._stream = writer, ledger, table, stream
        self._every, self._steps = every, steps
        self._ledger_log, self._progress, self._reporter = ledger_log, progress, reporter
        self._spawn, self._ends, self._clock = spawn, ends, clock
        self.version, self.at = ledger.version, clock()  # of the newest one
        self._cut_at = clock()  # of the newest one that was begun
        self.took_s = 0.0  # the last one, to write
        self._begun = 0  # and not written
        self._wanted = False  # whatever ``every`` says
        self._leaves = ""  # why the learner group is to be restarted elsewhere

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
        """The ledger as it stands, and handles of the payloads that the open groups need."""
        state, self._cut_at = self._ledger.state(), self._clock()
        open = tuple(group.name for group in state.groups)
        self._ledger_log.write(CutRecord(version=state.version, admitted=state.admitted, settled=state.settled, open=open))
        cut = cut_of(ledger=state, stream=self._stream.state(), progress=self._progress, now=self._clock())
        return cut, {key: self._table[key] for key in sorted(state.payloads)}

    async def _write(self, taken: tuple[Cut, dict[int, Payload]]) -> None:
        version, before = taken[0].version, interval_s(self.took_s)
        self._begun += 1
        try:
            final, spent = await self._writer.save(*taken)
        finally:
            self._begun -= 1
        self.version, self.at = max(self.version, version), self._clock()
        self._progress.times |= spent
        self.took_s = took = spent["time/checkpoint_s"]
        after = interval_s(took)
        text = f"checkpoint {final.name} in {took:.1f} s" + (f"; the next one within {span(after)}" if after != before else "")
        self._reporter.note(text, "checkpoint_written", version=version, seconds=round(took, 3))
        if warning := await run_in_daemon_thread(lambda: little_room(final)):
            self._reporter.note(warning, "storage_pressure")


# ---- Writing a checkpoint: the learner writes its part, the open trees are written beside it; generation and judging go on ----

ROOM = 2  # checkpoints that a disk should have room for, besides those that are there
LEFTOVER_S = 10.0  # for the thread that writes trees to notice that the checkpoint has failed


class CheckpointWriter:
    """One checkpoint at a time."""

    def __init__(self, lock: LearnerLock, checkpoints: Checkpoints, payloads: PayloadStore, *, clock: Clock) -> None:
        self._learner_lock, self._checkpoints, self._payloads, self._clock = lock, checkpoints, payloads, clock
        self.writes = ""  # what this process is writing, for the watchdog

    async def save(self, cut: Cut, payloads: Mapping[int, Payload]) -> tuple[Path, dict[str, float]]:
        """Where it is, and what it took, by metric name.

        Raises ``LearnerLost``: rollouts that it needs are gone, or the learner did not write its part.
        """
        return await self._learner_lock.whole(self._save(cut, payloads))

    async def _save(self, cut: Cut, payloads: Mapping[int, Payload]) -> tuple[Path, dict[str, float]]:
        async with self._learner_lock.turn(f"writes checkpoint v{cut.version}"):
            started = self._clock()
            folder = await run_in_daemon_thread(lambda: self._checkpoints.begin(cut.version))
            self.writes = f"checkpoint v{cut.version}"
            trees = run_in_daemon_thread(lambda: save_cut(cut, folder, self._fetched(payloads)))
            try:
                _, tree_bytes = await asyncio.gather(self._learners_part(folder / "learner"), trees)
            finally:  # else the next attempt would clear the folder under the thread that still writes
                await asyncio.wait([trees], timeout=LEFTOVER_S)
            final = await run_in_daemon_thread(lambda: self._checkpoints.commit(folder, cut.version))
            self.writes = ""
            return final, {
                "time/checkpoint_s": self._clock() - started,
                "checkpoint/tree_bytes": float(tree_bytes),
                "checkpoint/open_groups": float(len(cut.open)),
            }

    async def _learners_part(self, folder: Path) -> None:
        await self._learner_lock.of(self._learner_lock.learner.save(folder))
        self._learner_lock.done()  # what is left of a checkpoint may take long, and is not its fault

    def _fetched(self, payloads: Mapping[int, Payload]) -> Iterator[tuple[int, RolloutBatch]]:
        """One after another, in the thread that writes them."""
        for key, payload in payloads.items():
            try:
                batch = self._payloads.get(payload)
            except TaskLost as error:  # its node is gone, say: they are in the checkpoint before
                raise LearnerLost(f"rollouts that a checkpoint needs are lost: {error}") from error
            yield key, batch


def little_room(checkpoint: Path) -> str:
    """What a person should know if the next checkpoints may not fit on this one's disk; else an empty text."""
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    free = shutil.disk_usage(checkpoint).free
    if free >= ROOM * size:
        return ""
    return f"run.dir: its disk has {free / 2**30:.1f} GiB left, and a checkpoint takes {size / 2**30:.1f} GiB: the next ones may not fit"
