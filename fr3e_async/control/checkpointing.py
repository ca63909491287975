"""When a checkpoint is written: every so many batches, by time, before the learner leaves its nodes, when asked for, at the end.

How one is written stands below. What it holds is a consistent cut of the ledger between two events. Taking it stops nothing: its groups
are encoded a few in each turn of the loop, and one that is about to change before its turn is encoded first.
"""

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fr3e_async.control.context import RunContext
from fr3e_async.control.ports import Payload, TaskLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.progress import Cut, save_cut
from fr3e_async.errors import LearnerLost
from fr3e_async.evaluation.suite import HELDOUT
from fr3e_async.files.jsonl import to_json
from fr3e_async.store.checkpoints import checkpoint_name
from fr3e_async.store.ledger_log import CutRecord
from fr3e_async.types import RolloutBatch

LEAST_S = 300.0  # seconds between two checkpoints that are due by time, at least
ROOM = 2  # checkpoints that a disk should have room for, besides those that are there
LEFTOVER_S = 10.0  # seconds for the thread that writes trees to notice that the checkpoint has failed
COST = 20  # a checkpoint that took w seconds is followed by the next one after 20 · w: writing takes 5 % of the time at most


def interval_s(write_s: float) -> float:
    """Return the seconds from one checkpoint to the next one due by time. ``write_s``: seconds that writing the last one took.

    Example: 300 s for one that took 15 s or less, 600 s for one that took 30 s.
    """
    return max(LEAST_S, COST * write_s)


def span(seconds: float) -> str:
    """Write a duration for people: in seconds below two minutes (``90 s``), else in minutes (``5 min``)."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class Checkpointing:
    """Decides when the session writes a checkpoint, and writes it in a task of its own beside generation."""

    def __init__(self, context: RunContext) -> None:
        self._context, self._ledger, self._clock = context, context.machine.ledger, context.clock
        self._every, self._spawn = context.config.run.checkpoint_every, context.spawn
        self.version, self.at = self._ledger.version, self._clock()  # of the newest one
        self._cut_at = self.at  # when the newest one was begun
        self.took_s = 0.0  # seconds that writing the last one took
        self._begun = 0  # checkpoints that are being written now
        self._wanted = False  # write one after the batch in training, whatever ``every`` says
        self._evaluated: dict[str, int] = {}  # label and version of the newest evaluation that a checkpoint was written for
        self._leaves = ""  # why the learner group is to be restarted elsewhere

    def trained(self, version: int, *, evaluated: bool = False) -> None:
        """Begin a checkpoint if one is due after this batch, and an export. The run's last batch is left to ``last``.

        ``evaluated``: an evaluation of these weights is due.
        """
        run = self._context.config.run
        if run.keep_best and evaluated:
            self._wanted, self._evaluated = True, {f"step {version}": version}
        if run.export_every and version % run.export_every == 0:
            self._spawn(self._context.learner.whole(self._export(version)))
        if self._leaves:
            self._spawn(self._leave_nodes(self._leaves))
        elif version < self._context.config.run.steps and (
            self._wanted or self._due() or (self._every and version % self._every == 0)
        ):
            self._wanted = False
            self._spawn(self._write(self._cut()))

    def soon(self) -> None:
        """Write a checkpoint as soon as the weights are at rest: now, or after the batch in training."""
        if self._ledger.training or not self._ledger.version:
            self._wanted = True
        else:
            self._spawn(self._write(self._cut()))

    def beat(self) -> None:
        """Begin one that is due by time, or have it follow the batch in training; none if nothing moved since the last."""
        if not self._due() or self._context.moved_at <= self._cut_at or self._leaves or self._context.ends:
            return
        if self._ledger.training:
            self._wanted = True
        else:
            self._spawn(self._write(self._cut()))

    def _due(self) -> bool:
        """Say whether ``interval_s`` has passed since the newest checkpoint was begun, and none is being written."""
        return not self._begun and self._clock() - self._cut_at >= interval_s(self.took_s)

    def cost(self) -> str:
        """Tell a person how often checkpoints are written, and so how much work a kill loses."""
        every = f"every {self._every} batches, and " if self._every else ""
        return (
            f"a checkpoint is written {every}after {span(interval_s(self.took_s))} at the latest, when the batch in training is done: "
            "what came since the last one is lost at a kill"
        )

    def relocate(self, why: str) -> None:
        """Move the learner group off its nodes: after the batch in training, write a checkpoint and raise ``LearnerLost``."""
        if not self._leaves:
            self._leaves = why
            if not self._ledger.training:
                self._spawn(self._leave_nodes(why))

    async def last(self) -> None:
        if self._ledger.version > 0:
            await self._write(self._cut())

    async def _leave_nodes(self, why: str) -> None:
        if not self._context.ends and self._ledger.version > 0:  # also with one of this version: rollouts have come since
            await self._write(self._cut())
        if not self._context.ends:
            raise LearnerLost(why)

    def _cut(self) -> tuple[Cut, dict[int, Payload]]:
        """Take a cut of the state to save, and handles of all payloads that are held now. Logs the cut in ledger.jsonl."""
        ledger, context, self._cut_at = self._ledger, self._context, self._clock()
        taken = ledger.cut(to_json)
        open = taken.open
        context.files.ledger_log.write(
            CutRecord(version=ledger.version, admitted=ledger.admitted, settled=ledger.settled, open=open)
        )
        cut = Cut(
            version=ledger.version, groups=len(open), ledger=taken, stream=context.stream.state(), progress=context.progress.to_dict(self._cut_at)
        )  # fmt: skip
        return cut, context.table.held()

    async def _write(self, taken: tuple[Cut, dict[int, Payload]]) -> None:
        version, before = taken[0].version, interval_s(self.took_s)
        self._begun += 1
        try:
            final, spent = await self._context.learner.whole(self._save(*taken))
        finally:
            self._begun -= 1
        self.version, self.at = max(self.version, version), self._clock()
        self._context.progress.times |= spent
        self.took_s = took = spent["time/checkpoint_s"]
        after = interval_s(took)
        text = f"checkpoint {final.name} in {took:.1f} s" + (f"; the next one within {span(after)}" if after != before else "")
        self._context.reporter.note(text, "checkpoint_written", version=version, seconds=round(took, 3))
        if warning := await run_in_daemon_thread(lambda: little_room(final)):
            self._context.reporter.note(warning, "storage_pressure")

    async def _save(self, cut: Cut, payloads: Mapping[int, Payload]) -> tuple[Path, dict[str, float]]:
        """Write a checkpoint; generation and scoring continue. Returns its final folder, and its costs by metric name.

        Raises ``LearnerLost``: rollouts that it needs are gone, or the learner did not write its part.
        """
        async with self._context.learner.turn(f"writes checkpoint v{cut.version}"):
            started = self._clock()
            folder = await run_in_daemon_thread(lambda: self._context.files.checkpoints.begin(cut.version))
            self._context.writing = f"checkpoint v{cut.version}"
            trees = asyncio.ensure_future(self._controls_part(cut, folder, payloads))
            try:
                _, tree_bytes = await asyncio.gather(self._learners_part(folder / "learner"), trees)
            finally:  # else the next attempt would clear the folder under the thread that still writes
                await asyncio.wait([trees], timeout=LEFTOVER_S)
            final = await run_in_daemon_thread(lambda: self._commit(folder, cut.version))
            self._context.writing = ""
            return final, {
                "time/checkpoint_s": self._clock() - started,
                "checkpoint/tree_bytes": float(tree_bytes),
                "checkpoint/open_groups": float(cut.groups),
            }

    async def _controls_part(self, cut: Cut, folder: Path, payloads: Mapping[int, Payload]) -> int:
        await cut.encoded()
        needed = {key: payloads[key] for key in sorted(cut.ledger.payloads)}
        return await run_in_daemon_thread(lambda: save_cut(cut, folder, self._fetched(needed)))

    def _commit(self, folder: Path, version: int) -> Path:
        """Commit a checkpoint. With ``run.keep_best`` those stay whose evaluation is the best, or is not known yet."""
        store, progress = self._context.files.checkpoints, self._context.progress
        if not self._context.config.run.keep_best:
            return store.commit(folder, version)
        due = {version for label, version in self._evaluated.items() if not progress.has(label, HELDOUT)}
        final = store.commit(folder, version, spare={progress.best_version, *due, *progress.pending.values()})
        store.keep_best(progress.best_version)  # its evaluation may have been quicker than its checkpoint
        return final

    async def _export(self, version: int) -> None:
        learner = self._context.learner
        async with learner.turn(f"exports v{version}"):
            await learner.of(learner.port.save_model(self._context.files.checkpoints.models / checkpoint_name(version)))

    async def _learners_part(self, folder: Path) -> None:
        learner = self._context.learner
        await learner.of(learner.port.save(folder))
        learner.done()  # the rest of a checkpoint may take long, which the watchdog must not count against the learner

    def _fetched(self, payloads: Mapping[int, Payload]) -> Iterator[tuple[int, RolloutBatch]]:
        """Yield (payload key, batch), fetched one at a time in the writing thread so that memory holds only one."""
        for key, payload in payloads.items():
            try:
                batch = self._context.workers.payloads.get(payload)
            except TaskLost as error:  # its node is gone, for example; the checkpoint before has them
                raise LearnerLost(f"rollouts that a checkpoint needs are lost: {error}") from error
            yield key, batch


def little_room(checkpoint: Path) -> str:
    """Return a warning if the next checkpoints may not fit on this one's disk, else ""."""
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    free = shutil.disk_usage(checkpoint).free
    if free >= ROOM * size:
        return ""
    return f"run.dir: its disk has {free / 2**30:.1f} GiB left, and a checkpoint takes {size / 2**30:.1f} GiB: the next ones may not fit"
