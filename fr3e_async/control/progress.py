"""What a run has achieved so far: the numbers of the summary, kept over resumes; and the control part of a checkpoint.

The control part is one JSON file (ledger, open groups, consumed prompts, progress) and the rollouts of the open groups in
safetensors files beside it. No pickles.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fr3e_async.errors import StorageError
from fr3e_async.evaluation.accuracy import EvaluationResult, evaluate
from fr3e_async.evaluation.scores import Evaluated
from fr3e_async.evaluation.suite import HELDOUT
from fr3e_async.files.durable import storage_errors
from fr3e_async.files.jsonl import from_json, to_json
from fr3e_async.machine.ledger_state import LedgerCut, LedgerState
from fr3e_async.machine.messages import Retire
from fr3e_async.store.rollouts import load_payloads, save_payloads
from fr3e_async.types import RolloutBatch, StepReport

CONTROL_FILE = "control.json"
TREES = "trees"
GROUPS_A_TURN = 16  # of a cut that are encoded before other work of the loop has its turn: some milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """Where a run stood when something was measured: the horizontal axes of its curves."""

    version: int  # batches trained
    generated: int  # tokens of the groups settled by then
    trained: int  # tokens of trained rollouts
    wall_s: float  # since the run's start, over all its sessions


@dataclass(slots=True)
class Progress:
    """Totals over the whole run. Times in seconds; ``*_at`` are points in time and are not kept over a resume."""

    wall_before_s: float = 0.0  # of earlier sessions of this run
    first_step_s: float | None = None  # from the start of the first session to its first finished update
    tokens_generated: int = 0
    tokens_prefilled: int = 0
    tokens_reused: int = 0
    tokens_useful: int = 0
    tokens_trained: int = 0
    optimiser_steps: int = 0
    staleness_max: int = 0
    staleness_weighted: float = 0.0  # Σ over batches of mean staleness · tokens
    accuracy_before: float | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # of data.heldout
    benchmarks: list[dict[str, Any]] = field(default_factory=list)  # rows of evaluations.jsonl: of data.heldout and the suite
    pending: dict[str, int] = field(default_factory=dict)  # evaluations that have begun and not ended: label -> version
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of verdicts
    policy_share: float | None = None  # the usual one of ``tally.PolicyWatch``
    resumed_from: int | None = None
    began_at: float = 0.0
    utilisation: dict[str, float] = field(default_factory=dict)  # of this session's training, by metric name
    syncs: list[tuple[float, float]] = field(default_factory=list)  # of this session: (s to hand over, s an engine paused)
    times: dict[str, float] = field(default_factory=dict)
    _step_metrics: dict[str, float] = field(default_factory=dict)

    def begin(self, now: float) -> None:
        """``began_at`` may have been set earlier, to count the start-up in."""
        self.began_at = self.began_at or now

    def wall_s(self, now: float) -> float:
        return self.wall_before_s + now - self.began_at

    def milestone(self, version: int, now: float) -> Milestone:
        return Milestone(
            version=version, generated=self.tokens_generated, trained=self.tokens_trained, wall_s=round(self.wall_s(now), 3)
        )

    def trained(self, report: StepReport, *, first_at: float) -> None:
        """Take in an update's report; its metrics wait for ``take_step_metrics``."""
        if self.first_step_s is None:
            self.first_step_s = first_at - self.began_at
        self.tokens_trained += report.tokens
        self.optimiser_steps += report.optimiser_steps
        self.staleness_max = max(self.staleness_max, int(report.metrics.get("lag/versions_max", 0)))
        self.staleness_weighted += report.metrics.get("lag/versions_mean", 0.0) * report.tokens
        self._step_metrics = dict(report.metrics)

    def synced(self, *, time_s: float, pause_s: float) -> None:
        self.times |= {"time/sync_s": time_s, "time/pause_s": pause_s}
        self.syncs.append((time_s, pause_s))

    def retired(self, group: Retire) -> None:
        self.tokens_generated += group.tokens.generated
        self.tokens_prefilled += group.tokens.prefilled
        self.tokens_reused += group.tokens.reused
        self.tokens_useful += group.tokens.useful
        wrong = group.rollouts - group.correct - group.unknown - group.failed
        self.verdicts.update(correct=group.correct, wrong=wrong, unknown=group.unknown, failed=group.failed)
        self.reasons.update(group.reasons)

    def take_step_metrics(self) -> dict[str, float]:
        """The update's metrics and the times measured since the last step."""
        taken = {**self._step_metrics, **self.times}
        self._step_metrics, self.times = {}, {}
        return taken

    def measured(self, label: str, result: EvaluationResult, *, at: Milestone) -> None:
        low, high = result.interval
        record = {"label": label, "accuracy": result.accuracy, "low": low, "high": high, **asdict(at), **asdict(result)}
        self.evaluations.append(record)
        if label == "before":
            self.accuracy_before = result.accuracy

    def evaluated(self, found: Evaluated, *, at: Milestone) -> dict[str, Any]:
        """Add an evaluation that began at ``at``, and return its record."""
        row = {"label": found.label, "benchmark": found.name, **asdict(at), **found.record()}
        self.benchmarks.append(row)
        if found.name != HELDOUT:
            return row
        self.measured(found.label, evaluate(found.judgements, found.rewards), at=at)
        return self.evaluations[-1]

    def has(self, label: str, benchmark: str) -> bool:
        """Say whether the run has a result for this benchmark under this label."""
        if benchmark == HELDOUT:
            return any(e["label"] == label for e in self.evaluations)
        return any((row["label"], row["benchmark"]) == (label, benchmark) for row in self.benchmarks)

    @property
    def best_version(self) -> int:
        """The trained version whose evaluation on data.heldout is the best so far, the first of equals; 0 without one."""
        trained = [e for e in self.evaluations if e["version"]]
        return max(trained, key=lambda e: e["accuracy"])["version"] if trained else 0

    @property
    def accuracy_after(self) -> float | None:
        return next((e["accuracy"] for e in reversed(self.evaluations) if e["label"] == "after"), None)

    @property
    def staleness_mean(self) -> float:
        return self.staleness_weighted / self.tokens_trained if self.tokens_trained else 0.0

    def to_dict(self, now: float) -> dict[str, Any]:
        kept = (
            "first_step_s", "tokens_generated", "tokens_prefilled", "tokens_reused", "tokens_useful", "tokens_trained", "optimiser_steps", "staleness_max",
            "staleness_weighted", "accuracy_before", "evaluations", "benchmarks", "pending", "verdicts", "reasons",
            "policy_share",
        )  # fmt: skip
        return {"wall_before_s": self.wall_s(now), **{name: copy.copy(getattr(self, name)) for name in kept}}

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, resumed_from: int) -> Progress:
        progress = cls(
            **{**data, "verdicts": Counter(data["verdicts"]), "reasons": Counter(data["reasons"])},
            resumed_from=resumed_from,
        )
        progress.evaluations = [e for e in progress.evaluations if e["label"] != "after"]
        progress.benchmarks = [row for row in progress.benchmarks if row["label"] != "after"]
        return progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A consistent cut between two events: what happens afterwards does not change it. The ledger's part is encoded bit by bit."""

    version: int
    groups: int  # open ones
    ledger: LedgerCut
    stream: dict[str, Any]
    progress: dict[str, Any]

    async def encoded(self) -> None:
        """Encode ``GROUPS_A_TURN`` groups in each turn of the loop, until all are."""
        while self.ledger.step(GROUPS_A_TURN):
            await asyncio.sleep(0)


class ControlFile(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a checkpoint's ``control.json``: the ledger, the prompt stream's state and the run's progress."""

    ledger: LedgerState
    stream: dict[str, Any]
    progress: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """The control part of a checkpoint, as read back; its rollouts are read by ``load_trees``."""

    ledger: LedgerState
    stream: dict[str, Any]
    progress: Progress


def save_cut(cut: Cut, folder: Path, payloads: Iterable[tuple[int, RolloutBatch]]) -> int:
    """Write and fsync; the folder becomes visible only when the caller commits it. Returns the bytes of the rollouts."""
    data = to_json(ControlFile(ledger=cut.ledger.state(), stream=cut.stream, progress=cut.progress))
    with storage_errors(folder):
        (folder / TREES).mkdir()
    written = save_payloads(payloads, folder / TREES)
    with storage_errors(folder), open(folder / CONTROL_FILE, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return written


def load_control_state(folder: Path) -> ControlState:
    """Raises ``StorageError``: the file is missing, or not what this version writes."""
    path = folder / CONTROL_FILE
    try:
        data = from_json(path.read_bytes(), msgspec.json.Decoder(ControlFile))
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"{path}: not a checkpoint that this version can read ({error})") from error
    progress = Progress.from_dict(data.progress, resumed_from=data.ledger.version)
    return ControlState(ledger=data.ledger, stream=data.stream, progress=progress)


def load_trees(folder: Path) -> Iterator[tuple[int, RolloutBatch]]:
    """The rollouts of a checkpoint's open groups, by payload key. Raises ``StorageError``."""
    return load_payloads(folder / TREES)
