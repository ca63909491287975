"""The result of a run as one object: ``summary.json``. Each key carries its unit and meaning; the documentation's table is made of it.

Knows nothing of how the numbers were measured. None means: not measured, e.g. no evaluation configured.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fr3e_async.files.durable import storage_errors, write_atomically


def key(meaning: str, unit: str = "", *, default: Callable[[], Any] | None = None) -> Any:
    """A field with its documentation; required, or filled by ``default`` where an older summary lacks it."""
    metadata = {"meaning": meaning, "unit": unit}
    return field(metadata=metadata) if default is None else field(default_factory=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of ``summary.json``. Numbers cover all sessions of the run unless their meaning says otherwise."""

    name: str = key("run.name")
    exit_reason: str = key("'finished', or why the run stopped before its last step")
    steps: int = key("training batches consumed", "batches")
    optimiser_steps: int = key("optimiser steps made", "optimiser steps")
    version: int = key("weight version of the final model")
    resumed_from: int | None = key("step of the checkpoint that the last session resumed from; null: it began the run", "batches")
    wall_s: float = key("wall time from the start of the program, start-up included, summed over sessions", "s")
    first_step_s: float | None = key("from the start of the program to the first finished batch", "s")
    accuracy_before: float | None = key("held-out accuracy before training (avg@k; unknown counts as not correct)", "fraction")
    accuracy_after: float | None = key("held-out accuracy of the final weights", "fraction")
    accuracy_intervals: dict[str, list[float]] = key(
        "95 % Wilson intervals of the two: {before: [low, high], after: [low, high]}"
    )
    reward_before: float | None = key("held-out mean reward before training (unknown counts as the lowest)", default=lambda: None)
    reward_after: float | None = key("held-out mean reward of the final weights", default=lambda: None)
    reward_intervals: dict[str, list[float]] = key(
        "95 % intervals of the two: {before: [low, high], after: [low, high]}", default=dict
    )
    evaluations: list[dict[str, Any]] = key("every evaluation of data.heldout in order, with label, counts and interval")
    benchmarks: list[dict[str, Any]] = key(
        "every evaluation of every benchmark of evaluation.suite in order, as in evaluations.jsonl", default=list
    )
    overlap_fraction: float = key("part of the learner's working time during which engines generated (last session)", "fraction")
    idle_fraction: dict[str, float] = key("by role: part of the training window without work (last session)", "fraction")
    staleness_max: int = key("age of the oldest trained token", "versions")
    staleness_mean: float = key("mean age of trained tokens", "versions")
    tokens_generated: int = key("tokens generated for settled groups, rejected ones included", "tokens")
    tokens_prefilled: int = key("context tokens that engines computed for them", "tokens")
    tokens_reused: int = key("context tokens that engines took from their prefix caches for them", "tokens")
    tokens_useful: int = key("of the generated tokens: trained with an advantage that is not 0", "tokens")
    tokens_per_prompt: float | None = key("generated tokens for one settled group, mean; see budget.tokens_per_prompt", "tokens")
    tokens_trained: int = key("trained tokens, those with an advantage of 0 included, summed over batches", "tokens")
    groups: dict[str, int] = key("prompt groups by outcome: trained, rejected_<reason>, failed, in_flight", "groups")
    verdicts: dict[str, int] = key("training rollouts by verdict: correct, wrong, unknown, failed", "rollouts")
    verdict_reasons: dict[str, int] = key("the same by the verifier's reason, e.g. integer, math-verify, cpu limit", "rollouts")
    retries: int = key("rollouts issued again because their task was lost (last session)", "rollouts")
    duplicates: int = key("results that arrived a second time and were not counted (last session)", "rollouts")
    replaced: dict[str, int] = key("by role: actors that were lost and replaced (last session)", "actors")
    cache_hit_fraction: float | None = key("context tokens taken from the engines' prefix caches (last session)", "fraction")
    sync_s: float | None = key("mean time to hand a version to all engines (last session)", "s")
    pause_s: float | None = key("mean time that an engine stood still for it (last session)", "s")

    def to_json(self) -> str:
        """Encode the summary as JSON. Raises ``ValueError`` if a number is not finite."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Decode a summary. Raises ``TypeError`` naming a key that is missing or unknown."""
        return cls(**json.loads(text))


# ---- What evaluations leave in a run directory: ``evaluations.jsonl``, and results by problem in a folder of bounded size ----
# Rows are plain mappings; knows nothing of what their numbers mean.

ROWS = "evaluations.jsonl"
FOLDER = "evaluations"


def write_evaluations(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All evaluations of the run so far, in order; the file is replaced as a whole. Raises ``StorageError``."""
    with storage_errors(run):
        write_atomically(run / ROWS, lines(rows))


def write_problems(run: Path, name: str, rows: Sequence[Mapping[str, Any]], *, keep_mib: int) -> None:
    """Results by problem, as ``evaluations/<name>.jsonl``; the oldest files go until all together are within the bound.

    The newest one stays if it alone is larger. Raises ``StorageError``.
    """
    folder = run / FOLDER
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}.jsonl"
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(path, lines(rows))
        files = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in folder.glob("*.jsonl") if file != path)
        if files and files[-1][0] >= path.stat().st_mtime_ns:  # the wall clock was set back, and the next one needs the order
            os.utime(path, ns=(files[-1][0] + 1,) * 2)
        size = path.stat().st_size + sum(size for _, size, _ in files)
        for _, freed, file in files:
            if size <= keep_mib << 20:
                break
            file.unlink()
            size -= freed


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Join rows as one JSON object a line. Raises ``ValueError`` if a number is not finite."""
    return "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
