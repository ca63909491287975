"""Some of the settled groups as whole trees in ``trees.jsonl``, for people to look at: tokens, entropies, values, verdicts.

A group retires ─► is it among the first of its batch? ─► a task beside the loop fetches and writes its rollouts

The loop never waits for it: what is still being written when the next ones come is all that is kept in memory, and a rollout
that cannot be fetched any more costs its tree. Decides nothing about training.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from fr3e_async.control.ports import Payload, PayloadStore, TaskLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.data.tokenizer import Spell
from fr3e_async.errors import StorageError
from fr3e_async.machine.group import Status
from fr3e_async.machine.messages import Retire
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Completion, Prompt, RolloutId

WIDEST = 1 << 16  # most steps between two that are kept
WAITING = 64  # trees that may wait to be written; beyond, they are passed over
UNKNOWN = 0.99  # an entropy whose error is nearly as large as itself was not measured


FINISH_S = 60.0  # seconds that a run's end waits for trees still to be written


class Keep(Protocol):
    """Receives the rows of ``trees.jsonl`` and notes for people."""

    def tree(self, line: str) -> bool:
        """Append one row, a JSON line. Returns False when the file has reached its limit."""

    def thin_trees(self, stride: int) -> bool:
        """Delete all rows but those of every ``stride``-th step. Returns False if the file is still more than half full.

        Runs in a thread.
        """

    def note(self, text: str) -> None: ...


class TreeRecorder:
    """Keeps ``per_step`` trained groups and as many others of every batch; of every second one, every fourth, … as the file fills,
    so that what is kept spans the run."""

    def __init__(self, *, per_step: int, store: PayloadStore, spell: Spell, keep: Keep) -> None:
        self._per_step, self._store, self._spell, self._keep = per_step, store, spell, keep
        self._stride = 1  # trees of every so many steps are kept
        self._taken: dict[bool, int] = {}  # trees kept of this batch, by whether the group was trained
        self._step = -1
        self._queue: list[Callable[[], str | None]] = []
        self._task: asyncio.Task[None] | None = None
        self._full = False

    def offer(self, retired: Retire, prompt: Prompt, payloads: Callable[[int], Payload], *, step: int, settled: int) -> None:
        """Queue a retired group for writing if its batch still has room for one.

        ``payloads``: gives the handle of a payload key. ``step``: batches trained so far. ``settled``: the group's number in the run.
        """
        if step != self._step:
            self._step, self._taken = step, {}
        trained = retired.outcome == "trained"
        if self._full or step % self._stride or self._taken.get(trained, 0) >= self._per_step or len(self._queue) >= WAITING:
            return
        self._taken[trained] = self._taken.get(trained, 0) + 1
        keys = {rollout.payload for rollout in retired.tree.rollouts.values() if rollout.payload >= 0}
        handles = {key: payloads(key) for key in keys}
        self._queue.append(lambda: self._line(retired, prompt, handles, step, settled))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Discard the trees that are not written yet: the run has failed, or returns to an earlier checkpoint."""
        self._full = True
        if self._task is not None:
            self._task.cancel()

    async def finish(self) -> None:
        """Wait until every queued tree is written, at most ``FINISH_S`` seconds; discard the rest."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=FINISH_S)
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._queue and not self._full:
                line = await run_in_daemon_thread(self._queue[0])
                del self._queue[0]  # this also releases the handles of its rollouts
                if line is not None and not self._keep.tree(line):
                    await self._thin()
        except StorageError as error:  # the run's other files on that disk raise their own error
            self._full = True
            self._keep.note(f"no more trees are kept: {error}")
        finally:
            self._queue.clear()
            self._task = None

    async def _thin(self) -> None:
        while self._stride < WIDEST:
            self._stride *= 2
            if await run_in_daemon_thread(lambda: self._keep.thin_trees(self._stride)):
                return
        self._full = True
        self._keep.note("trees.jsonl is full (observe.trees_mib): no more trees are kept")

    def _line(self, retired: Retire, prompt: Prompt, handles: Mapping[int, Payload], step: int, settled: int) -> str | None:
        try:
            batches = {key: self._store.get(handle) for key, handle in handles.items()}
        except TaskLost:
            return None
        drawn = {
            id: batches[rollout.payload].completion(rollout.row)
            for id, rollout in retired.tree.rollouts.items()
            if rollout.payload >= 0
        }
        row = {"settled": settled, **tree_row(retired, prompt, drawn, self._spell, step=step)}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def tree_row(
    retired: Retire, prompt: Prompt, drawn: Mapping[RolloutId, Completion], spell: Spell, *, step: int
) -> dict[str, Any]:  # fmt: skip
    """Build a row of ``trees.jsonl`` (docs/outputs.md). ``drawn``: completions of the rollouts that were sampled."""
    group = retired.tree
    advantages = group.credit.advantages if group.credit and retired.outcome == "trained" else {}
    rollouts = []
    for id, rollout in sorted(group.rollouts.items()):
        done = drawn.get(id)
        advantage = advantages.get(id)
        row: dict[str, Any] = {
            "node": id.node,
            "branch": id.branch,
            "outcome": _outcome(rollout.status, correct=rollout.correct, unknown=rollout.unknown),
            "reason": rollout.reason,
            "reward": rollout.reward,
            "advantage": None if advantage is None else [[span.start, round(float(span.value), 4)] for span in advantage],
        }
        rollouts.append(row if done is None else row | _tokens(done, spell))
    return {
        "group": group.name,
        "step": step,
        "outcome": retired.outcome,
        "prompt": prompt.text,
        "gold": prompt.reference,
        "states": msgspec.to_builtins(retired.states),
        "rollouts": rollouts,
    }


def _tokens(done: Completion, spell: Spell) -> dict[str, Any]:
    measured = done.entropy_errors <= UNKNOWN * done.entropies
    entropies = [round(float(value), 3) if known else None for value, known in zip(done.entropies, measured, strict=True)]
    return {
        "pieces": spell(done.tokens),
        "entropies": entropies,
        "logprobs": [round(float(value), 3) for value in done.logprobs],
        "versions": _spans(done.versions),
        "finish": done.finish.name.lower(),
    }


def _spans(values: NDArray[np.int32]) -> list[list[int]]:
    """Run-length encode: [start, value] of each run of equal values. Example: [7, 7, 8] gives [[0, 7], [2, 8]]."""
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist()] if len(values) else []
    return [[start, int(values[start])] for start in starts]


def _outcome(status: Status, *, correct: bool, unknown: bool) -> Outcome:
    if status is not Status.SCORED:
        return Outcome.FAILED
    return Outcome.UNKNOWN if unknown else Outcome.CORRECT if correct else Outcome.WRONG
