"""One place that a run reports to: metrics.jsonl, groups.jsonl, TensorBoard, trackers, Prometheus, the console, the events log.

Fits ``control.ports.Reporter``. Checks names against ``metrics``; knows nothing of what they mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, Unpack

from fr3e_async.clock import Clock, wall
from fr3e_async.config import ObserveConfig
from fr3e_async.errors import StorageError
from fr3e_async.files.jsonl import JsonlWriter
from fr3e_async.observe.console import ConsoleView
from fr3e_async.observe.events import EventFields, EventKind, event_row
from fr3e_async.observe.heartbeat import Heartbeat
from fr3e_async.observe.metrics import checked
from fr3e_async.observe.prometheus import Exporter, HeartbeatSamples
from fr3e_async.observe.tensorboard import TensorBoardWriter
from fr3e_async.observe.trackers import Ending, Trackers, flat_settings, measured_values
from fr3e_async.store.ledger_log import LedgerLog
from fr3e_async.store.run_dir import RunDir
from fr3e_async.store.summary import Summary, write_evaluations, write_problems

SAMPLES = ("problem", "gold", "response", "verdict", "reward")
ENDINGS: dict[str, Ending] = {"run_finished": "finished", "run_stopped": "stopped", "run_failed": "failed"}


class Recorder:
    """Rows are ``{"step", "time_s", **metrics}``, ``time_s`` being seconds since the epoch, of a clock that never jumps."""

    def __init__(
        self,
        run_dir: RunDir,
        *,
        config: ObserveConfig,
        view: ConsoleView,
        clock: Clock,
        resumed_from: int = 0,
        settled: int = 0,
        exporter: Exporter | None = None,
        trackers: Trackers | None = None,
        settings: Mapping[str, Any] = {},
    ) -> None:
        """``resumed_from`` and ``settled``: last step of the checkpoint and groups settled by then; what was recorded of
        later ones goes. ``exporter``: to Prometheus, ``trackers``: W&B and MLflow, if at all; ``settings``: all of the run's, as TensorBoard shows them. Raises ``StorageError``."""
        self._run_dir, self._view, self._clock, self._config = run_dir, view, clock, config
        self._exporter, self._samples, self._trackers = exporter, HeartbeatSamples(), trackers or Trackers()
        self._heartbeat: Heartbeat | None = None  # of the last beat
        self._tree_lock = Lock()  # the file is thinned in a thread
        self._events = JsonlWriter(run_dir.logs / "events.jsonl")
        self.ledger_log = LedgerLog(run_dir.ledger_log)
        self._open(resumed_from, settled)
        if self._tensorboard is not None and settings:
            self._tensorboard.text(resumed_from, "settings", [("setting", "value"), *flat_settings(settings).items()])

    def go_back(self, step: int, settled: int) -> None:
        """Drop what was recorded after the step that the run resumes from. Raises ``StorageError``."""
        self._close_rows()
        self._open(step, settled)
        self._view.go_back(step)
        self._trackers.back_to(step)

    def _open(self, step: int, settled: int) -> None:
        with self._tree_lock:
            self._run_dir.go_back(step, settled)
            self._trees = JsonlWriter(self._run_dir.trees) if self._config.trees_per_step else None
        self._metrics = JsonlWriter(self._run_dir.metrics)
        self._groups = JsonlWriter(self._run_dir.groups)
        self._tensorboard = (
            TensorBoardWriter(self._run_dir.tensorboard, clock=self._clock, first_step=step + 1)
            if self._config.tensorboard
            else None
        )

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a finished training batch.

        Raises:
            MetricError: a name is not declared, or a value is not finite.
            StorageError: the disk is full.
        """
        values, now = checked(metrics), self._clock()
        self._metrics.write({"step": step, "time_s": now, **values})
        if self._tensorboard is not None:
            self._tensorboard.write(step, values)
        self._trackers.write(step, values, time_s=now)
        if self._exporter is not None:
            self._exporter.publish(self._samples.step(values))
        self._view.step(step, values)

    def waits(self, text: str) -> None:
        """Show what the run waits for now; "" once it continues."""
        self._view.waits(text)

    def starting(self, text: str) -> None:
        """Show what the start waits for; "" when it is over."""
        self._view.starting(text)

    def beat(self, heartbeat: Heartbeat) -> None:
        """Publish the state of the loop. Call it before any work too: the first one of a session is its zero."""
        self._heartbeat = heartbeat
        self._tell(self._trackers.news())
        if self._exporter is not None:
            self._exporter.publish(self._samples.beat(heartbeat, now=wall()))

    def beat_again(self) -> None:
        """Publish the last heartbeat again: gauges that nobody sets vanish."""
        if self._heartbeat is not None:
            self.beat(self._heartbeat)

    def group(self, record: Mapping[str, Any]) -> None:
        """Append the row of a settled group to groups.jsonl. Raises ``StorageError``."""
        self._groups.write(record)

    def evaluations(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the file of evaluations again, with all of them so far. Raises ``StorageError``."""
        write_evaluations(self._run_dir.path, rows)

    def problems(self, name: str, rows: Sequence[Mapping[str, Any]], *, keep_mib: int) -> None:
        """Keep an evaluation's results by problem, as far as there is room for them. Raises ``StorageError``."""
        write_problems(self._run_dir.path, name, rows, keep_mib=keep_mib)

    def samples(self, name: str, rows: Sequence[Sequence[str]], *, version: int) -> None:
        """Show some responses of an evaluation in TensorBoard and trackers. Raises ``StorageError``."""
        if self._tensorboard is not None:
            cells = [[f"```\n{cell}\n```" for cell in row] for row in rows]  # as they are, and not as Markdown
            self._tensorboard.text(version, f"samples/{name}", [SAMPLES, *cells])
        self._trackers.show(version, name, [SAMPLES, *rows])

    def tree(self, line: str) -> bool:
        """Keep a group's tree; False once the file has ``observe.trees_mib``. Raises ``StorageError``."""
        with self._tree_lock:
            return self._trees is None or self._trees.append(line) < self._config.trees_mib << 20

    def thin_trees(self, stride: int) -> bool:
        """Leave the trees of every ``stride``-th step; False: they are still more than half of what may be kept. In a thread."""
        with self._tree_lock:
            if self._trees is None:
                return True
            self._trees.close()
            left = self._run_dir.thin_trees(stride)
            self._trees = JsonlWriter(self._run_dir.trees)
            return left <= self._config.trees_mib << 19

    def note(self, text: str, kind: EventKind = "note", **fields: Unpack[EventFields]) -> None:
        """Report an event to the user: its text on the console, all of it in ``logs/events.jsonl``."""
        self.event(text, kind, **fields)
        self._view.note(text)

    def event(self, text: str, kind: EventKind, **fields: Unpack[EventFields]) -> None:
        """Write an event to ``logs/events.jsonl`` only. Raises ``StorageError``, and ``KeyError`` for a kind that is not declared."""
        now = self._clock()
        self._events.write(event_row(text, kind, fields, time_s=now))
        if record := fields.get("measured"):
            if self._tensorboard is not None:
                self._tensorboard.write(record["version"], measured_values(record))
            self._trackers.measured(record, time_s=now)
        if ending := ENDINGS.get(kind):
            self._trackers.ended(ending, reason=text)

    def finish(self, summary: Summary) -> None:
        """Write summary.json and show the result. Raises ``StorageError``."""
        self._run_dir.write_summary(summary.to_json())
        self._trackers.summarised(asdict(summary))
        self.event(
            summary.exit_reason,
            "run_finished" if summary.exit_reason == "finished" else "run_stopped",
            version=summary.version,
            seconds=summary.wall_s,
        )
        self._view.finish(summary, self._run_dir.path, model=self._model(), saved=bool(self._run_dir.checkpoints.steps()))

    def failed(self, why: str) -> None:
        """Report that the run failed, as an event if the disk takes it, and say what is left of the run."""
        with suppress(StorageError):
            self.event(why, "run_failed")
        self.last_words()

    def last_words(self) -> None:
        """Say how model, page and the rest of the run are had, if there is a checkpoint."""
        if self._run_dir.checkpoints.steps():
            self._view.last_words(self._run_dir.path, model=self._model())

    def close(self) -> None:
        """Flush everything, whatever way the run ended. Idempotent."""
        with suppress(StorageError):  # the disk is full: what else is to be closed says so
            self._tell(self._trackers.close())
        self._view.stop()
        self._events.close()
        self.ledger_log.close()
        self._close_rows()

    def _model(self) -> Path | None:
        return self._run_dir.model if self._run_dir.model.is_dir() else None

    def _tell(self, news: Iterable[str]) -> None:
        for text in news:
            self.note(text, "tracker_failed")

    def _close_rows(self) -> None:
        self._metrics.close()
        self._groups.close()
        with self._tree_lock:
            if self._trees is not None:
                self._trees.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
