"""A finished run's journal, as what it says about time: when each task began and ended, and what was in it.

The machine makes its decisions again from the recorded events, so nothing is read from their short form.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config
from fr3e_async.errors import ConfigError, RunFailed, StorageError
from fr3e_async.machine.events import Acked, Answered, Delivered, Event, Exported, Lost, Rescored, Scored, Trained, WorkerUp
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Assign, Command, Retire, Score, Send, Train
from fr3e_async.outcomes import Outcome
from fr3e_async.settings.loader import config_from
from fr3e_async.simulate.service import batch_tokens
from fr3e_async.simulate.stats import SimulationReport, Stats
from fr3e_async.simulate.workload import MeasuredAnswer, MeasuredGroup
from fr3e_async.store.journal import Entry, read_journal
from fr3e_async.types import Anchor, RolloutId, RolloutSummary

IS_CORRECT = {Outcome.CORRECT: True, Outcome.WRONG: False, Outcome.UNKNOWN: None}


@dataclass(slots=True)
class Span:
    """A task at a worker. Times in seconds; ``notes`` of an engine's task, ``answers`` of a verifier's."""

    worker: str
    start: float
    end: float = 0.0
    notes: tuple[RolloutSummary, ...] = ()
    answers: int = 0
    whole: bool = False  # it ended as it should


@dataclass(slots=True)
class Batch:
    """In the learner: from its turn until the weights were trained, and until they were exported."""

    tokens: int
    start: float
    end: float = 0.0
    exported: float = 0.0


@dataclass(slots=True)
class Recording:
    config: Config
    roles: dict[str, str] = field(default_factory=dict)  # worker -> role
    spans: list[Span] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    loads: list[tuple[str, float, float]] = field(default_factory=list)  # (engine, sent, acknowledged)
    cases: list[MeasuredGroup] = field(default_factory=list)
    events: int = 0


def read_recording(run: Path, *, warmup: int = 1) -> tuple[Recording, SimulationReport]:
    """Of a run's folder its longest session, or of one journal file. Raises ``StorageError``."""
    path = run
    if run.is_dir():
        files = sorted((run / "journal").glob("*.jsonl"), key=lambda file: file.stat().st_size)
        if not files:
            raise StorageError(f"{run}: no journal in it (observe.journal)")
        path = files[-1]
    try:
        header, entries = read_journal(path)
        config = config_from(header.config)
    except (ConfigError, ValueError, KeyError, TypeError) as error:  # fields have come or gone
        raise StorageError(f"{path}: not a journal of this version: {error}") from None
    machine = Machine(config, make_strategy(config.algorithm), state=header.state)
    stats = Stats(machine, warmup=warmup, lease_s=config.flow.lease_s)
    if header.state is not None:
        stats.resume(header.state)
    reader = _Reader(Recording(config))
    resumed = machine.start()  # done before the first event
    try:
        for entry in entries:
            commands = [*resumed, *machine.handle(entry.event)]
            resumed = []
            stats.observe(entry.time, entry.event, commands)
            reader.read(entry, commands)
    except RunFailed:
        pass  # as the recorded run ended
    recording = reader.recording
    if not recording.batches or not recording.batches[0].end:
        raise StorageError(f"{path}: not one batch was trained in this session")
    return recording, stats.report(label="measured", events=recording.events)


class _Reader:
    """Reads the events of a run's journal in order and fills a ``Recording`` from them."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._spans: dict[int, Span] = {}
        self._sent: dict[str, float] = {}
        self._notes: dict[str, list[RolloutSummary]] = {}
        self._anchors: dict[str, list[Anchor]] = {}
        self._correct: dict[RolloutId, bool | None] = {}

    def read(self, entry: Entry, commands: list[Command]) -> None:
        self.recording.events += 1
        self._event(entry.time, entry.event)
        for command in commands:
            self._command(entry.time, command)

    def _event(self, now: float, event: Event) -> None:
        match event:
            case Delivered():
                span = self._spans.get(event.task)
                if span is not None:
                    span.notes += event.notes
                if not event.left:
                    self._end(now, event.task)
                self._notes.setdefault(event.group, []).extend(event.notes)
                self._anchors.setdefault(event.group, []).extend(event.anchors or ())
            case Rescored():
                self._anchors.setdefault(event.group, []).extend(event.anchors)
            case Scored():
                self._end(now, event.task, answers=len(event.ids))
                self._correct.update((id, IS_CORRECT[v.outcome]) for id, v in zip(event.ids, event.verdicts, strict=True))
            case Lost() | Answered():
                span = self._spans.pop(event.task, None)
                if span is not None:
                    span.end = now
            case WorkerUp():
                self.recording.roles[event.worker] = event.role
            case Trained():
                self.recording.batches[-1].end = now
            case Exported():
                self._exported(now)
            case Acked():
                if event.worker in self._sent:
                    self.recording.loads.append((event.worker, self._sent.pop(event.worker), now))
            case _:
                pass

    def _exported(self, now: float) -> None:
        batches = self.recording.batches
        for batch in batches:
            if batch.end and not batch.exported:
                batch.exported = now
        if batches and not batches[-1].end:  # the next one waited for it
            batches[-1].start = max(batches[-1].start, now)

    def _command(self, now: float, command: Command) -> None:
        match command:
            case Assign():
                answers = len(command.work.ids) if isinstance(command.work, Score) else 0
                self._spans[command.task] = span = Span(command.worker, now, answers=answers)
                self.recording.spans.append(span)
            case Train():
                self.recording.batches.append(Batch(batch_tokens([item.load for item in command.items]), now))
            case Send():
                self._sent.update(dict.fromkeys(command.workers, now))
            case Retire():
                self._retire(command)
            case _:
                pass

    def _end(self, now: float, task: int, *, answers: int = 0) -> None:
        span = self._spans.pop(task, None)
        if span is not None:
            span.end, span.answers, span.whole = now, answers, True

    def _retire(self, group: Retire) -> None:
        notes, anchors = self._notes.pop(group.group, []), self._anchors.pop(group.group, [])
        correct = {note.id: self._correct.pop(note.id, None) for note in notes}
        bases = {note.id.branch: note for note in notes if note.id.node == 0}
        if not bases or sorted(bases) != list(range(len(bases))):
            return  # a base is missing
        branches: dict[int, list[MeasuredAnswer]] = {}
        for note in sorted(notes, key=lambda note: note.id):
            if note.id.node:
                branches.setdefault(note.id.node, []).append(MeasuredAnswer(note.length, correct[note.id]))
        grown: dict[int, list[tuple[int, tuple[MeasuredAnswer, ...]]]] = {}
        for anchor in sorted(anchors, key=lambda anchor: anchor.position):
            if anchor.node in branches:
                grown.setdefault(anchor.trunk, []).append((anchor.position, tuple(branches[anchor.node])))
        answers = tuple(MeasuredAnswer(bases[b].length, correct[bases[b].id]) for b in range(len(bases)))
        case = MeasuredGroup(bases[0].context, answers, tuple((base, tuple(found)) for base, found in grown.items()))
        self.recording.cases.append(case)
