"""Writing a checkpoint: the learner writes its part, the open trees are written beside it; generation and judging go on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fr3e_async.clock import Clock
from fr3e_async.control.ports import Checkpoints, Payload, PayloadStore, TaskLost
from fr3e_async.control.progress import Cut, save_cut
from fr3e_async.control.side import on_the_side
from fr3e_async.control.turns import Turns
from fr3e_async.errors import LearnerLost
from fr3e_async.types import RolloutBatch

ROOM = 2  # checkpoints that a disk should have room for, besides those that are there
LEFTOVER_S = 10.0  # for the thread that writes trees to notice that the checkpoint has failed


class Saver:
    """One checkpoint at a time."""

    def __init__(self, turns: Turns, checkpoints: Checkpoints, payloads: PayloadStore, *, clock: Clock) -> None:
        self._turns, self._checkpoints, self._payloads, self._clock = turns, checkpoints, payloads, clock
        self.writes = ""  # what this process is writing, for the watchdog

    async def save(self, cut: Cut, payloads: Mapping[int, Payload]) -> tuple[Path, dict[str, float]]:
        """Where it is, and what it took, by metric name.

        Raises ``LearnerLost``: rollouts that it needs are gone, or the learner did not write its part.
        """
        return await self._turns.whole(self._save(cut, payloads))

    async def _save(self, cut: Cut, payloads: Mapping[int, Payload]) -> tuple[Path, dict[str, float]]:
        async with self._turns.turn(f"writes checkpoint v{cut.version}"):
            started = self._clock()
            folder = await on_the_side(lambda: self._checkpoints.begin(cut.version))
            self.writes = f"checkpoint v{cut.version}"
            trees = on_the_side(lambda: save_cut(cut, folder, self._fetched(payloads)))
            try:
                _, tree_bytes = await asyncio.gather(self._learners_part(folder / "learner"), trees)
            finally:  # else the next attempt would clear the folder under the thread that still writes
                await asyncio.wait([trees], timeout=LEFTOVER_S)
            final = await on_the_side(lambda: self._checkpoints.commit(folder, cut.version))
            self.writes = ""
            return final, {
                "time/checkpoint_s": self._clock() - started,
                "checkpoint/tree_bytes": float(tree_bytes),
                "checkpoint/open_groups": float(len(cut.open)),
            }

    async def _learners_part(self, folder: Path) -> None:
        await self._turns.of(self._turns.learner.save(folder))
        self._turns.done()  # what is left of a checkpoint may take long, and is not its fault

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
