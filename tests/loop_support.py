"""A run of fakes, wired as the real one is: folder, workers, machine, controller; and what its files say afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import virtual_time
from builders import prompt, small_config
from machine_laws import Laws

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config
from fr3e_async.control.context import PayloadTable, RunContext, RunFiles
from fr3e_async.control.controller import Controller, SessionStart
from fr3e_async.control.door import Door
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.progress import Progress, load_control_state
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.trees import TreeRecorder
from fr3e_async.control.workers import Workers
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import RunFailed
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Event
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.machine import Machine
from fr3e_async.observe.events import event_row
from fr3e_async.observe.heartbeat import Heartbeat
from fr3e_async.observe.metrics import checked
from fr3e_async.run.resume import restored
from fr3e_async.store.checkpoints import CheckpointStore
from fr3e_async.store.journal import Journal, brief, read_journal
from fr3e_async.store.ledger_audit import LedgerReport, audit
from fr3e_async.store.ledger_log import LedgerLog, read_ledger_log
from fr3e_async.testing.fakes import FAKE_ANCHORS, FakeEngineWorker, FakeLearner, FakePayloads, FakeVerifier, Faults
from fr3e_async.types import RolloutId

COUNTS = {GENERATORS: 2, EXPLORERS: 2, VERIFIERS: 1}


class Notes:
    """Port ``Reporter`` that keeps what it is told, and refuses undeclared metrics as the real one does."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.lines: list[str] = []
        self.waited = ""
        self.kinds: list[str] = []
        self.heartbeats: list[Heartbeat] = []
        self.groups: list[dict] = []
        self.rows: list[dict] = []  # of evaluations
        self.by_problem: dict[str, list[dict]] = {}
        self.shown: dict[tuple[str, int], list[list[str]]] = {}

    def step(self, step, metrics):
        self.steps[step] = checked(metrics)

    def group(self, record):
        self.groups.append(json.loads(json.dumps(record)))  # what goes into groups.jsonl must be plain

    def note(self, text, kind="note", **fields):
        self.lines.append(text)
        self.kinds.append(event_row(text, kind, fields, time_s=0.0)["event"])

    def evaluations(self, rows):
        self.rows = json.loads(json.dumps(rows))

    def problems(self, name, rows, *, keep_mib):
        self.by_problem[name] = json.loads(json.dumps(rows))

    def samples(self, name, rows, *, version):
        self.shown[name, version] = rows

    def waits(self, text):
        self.waited = text

    def beat(self, heartbeat):
        self.heartbeats.append(heartbeat)


@dataclass(kw_only=True)
class LooseContext(RunContext):
    """A context without a loop: what is emitted stays in ``told``, what is noted in ``notes.lines``; tasks run by themselves."""

    stream: Any = None
    files: Any = None
    publisher: Any = None
    progress: Any = None
    reporter: Notes = field(default_factory=Notes)
    told: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.told.append(event)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self.running.add(task)
        return task


def payloads() -> FakePayloads:
    """A store that stops no clock while it holds somebody up."""
    made = FakePayloads()
    made.open = virtual_time.Gate()
    made.open.set()
    return made


def loop_config(*, strategy: str = "fr3e", **sections: dict[str, Any]) -> Config:
    """Batches of 4 groups, each of 3 bases and 2 · 2 branches; 8 of them unless told otherwise; waits of hundredths of seconds."""
    defaults: dict[str, dict[str, Any]] = {
        "flow": {"groups_per_step": 4, "max_staleness": 1, "lease_s": 5.0, "retry_backoff_s": 0.01},
        "run": {"steps": 8, "checkpoint_every": 0},
        "algorithm": {"anchors": FAKE_ANCHORS, "branches": 2, "bases": 3, "strategy": strategy},
        "observe": {"heartbeat_s": 0.05},
        "pools": {"replace_backoff_s": 0.01},
        "generators": {"count": COUNTS[GENERATORS], "rollouts_in_flight": 16},
        "explorers": {"count": COUNTS[EXPLORERS], "rollouts_in_flight": 16},
        "weights": {"ack_timeout_s": 5.0},
    }
    return small_config(**{name: defaults.get(name, {}) | sections.get(name, {}) for name in {**defaults, **sections}})


class World:
    """One session of a run in a folder, in virtual time. ``resume``: from the newest checkpoint there, as ``session`` does it."""

    # What a test may set before the controller is first used.
    trees: TreeRecorder | None = None
    evaluator: Evaluator | None = None
    journals = True

    def __init__(
        self,
        folder: Path,
        *,
        faults: Mapping[str, Faults] | None = None,
        resume: bool = False,
        evaluate: bool = False,
        prompts: int = 40,
        rescored: bool = False,
        counts: Mapping[str, int] = COUNTS,
        delay_s: float = 0.001,
        judge_s: float = 0.0,
        correct: float = 0.3,
        gain: float = 0.05,
        config: Config | None = None,
        workers: Workers | None = None,
        wrap: Callable[[Any], Any] = lambda part: part,
        clock: Callable[[], float] = virtual_time.now,
        **sections: Any,
    ) -> None:
        """``faults``: of the learner, or of the first worker of a role. ``workers``: of the session before, in the same process.
        ``wrap``: put around all parts that leave a trace outside of the process."""
        sized = {role: {"count": counts[role]} | sections.pop(role, {}) for role in COUNTS if counts[role]}
        self.folder, self.config = folder, config or loop_config(**sections, **sized)
        folder.mkdir(exist_ok=True)
        self._again = workers is not None
        self._faults, self._rescored, self._delay_s, self._judge_s = faults or {}, rescored, delay_s, judge_s
        self._correct, self._gain = correct, gain
        self._wrap, self._clock = wrap, clock
        self._names = dict.fromkeys(COUNTS, -1)
        self.started: list[str] = []  # workers that replaced others
        self.no_room = 0  # so many workers will not start
        self.problems = [prompt(f"p{i}") for i in range(prompts)]
        self.notes = Notes()
        self.store = CheckpointStore(folder / "checkpoints")
        self._read(resume)
        self.learner = FakeLearner(
            delay_s=2 * delay_s, version=self.state.version if self.state else 0, faults=self._faults.get("learner")
        )
        if workers is not None:
            self.learner = workers.learner
        self.workers = workers or Workers(
            config=self.config,
            learner=wrap(self.learner),
            payloads=payloads(),
            start=self.start_worker,
            workers=[(role, self.worker(role)) for role, count in counts.items() for _ in range(count)],
            clock=clock,
        )
        if evaluate:
            self.evaluator = Evaluator(self.workers, self.problems[:10])

    def _read(self, resume: bool) -> None:
        source = self.store.latest() if resume else None
        self.source, self.resumed = source, load_control_state(source) if source else None
        self.state = self.resumed.ledger if self.resumed else None
        self.payloads = restored(source, FakePayloads()) if source else None
        self.kept: list[RolloutId] = [id for _, batch in (self.payloads or {}).values() for id in batch.ids]

    @cached_property
    def door(self) -> Door | None:
        """What compares engines with the learner: nothing, here."""
        return None

    @cached_property
    def publisher(self) -> Publisher:
        return Publisher(ack_timeout_s=self.config.weights.ack_timeout_s, clock=self._clock)

    @cached_property
    def controller(self) -> Controller:
        config, resumed, folder = self.config, self.resumed, self.folder
        session = len(list((folder / "journal").glob("*.jsonl")))
        self.ledger_log = LedgerLog(folder / "ledger.jsonl")
        self.journal = Journal(folder / "journal", session=session, config=config, state=self.state)
        context = RunContext(
            config=config,
            machine=Machine(config, make_strategy(config.algorithm), state=self.state),
            workers=self.workers,
            stream=PromptStream(
                self.problems,
                config.run.seed,
                state=resumed.stream if resumed else None,
                taken=[group.name for group in self.state.groups] if self.state else (),
            ),
            publisher=self.publisher,
            files=RunFiles(
                ledger_log=self._wrap(self.ledger_log),
                checkpoints=self._wrap(self.store),
                journal=self._wrap(self.journal) if self.journals else None,
                trees=self.trees,
            ),
            reporter=self._wrap(self.notes),
            progress=resumed.progress if resumed else Progress(),
            clock=self._clock,
            table=PayloadTable(self.payloads),
            door=self.door,
        )
        start = SessionStart(session=session, engine_version=-1 if self._again else 0)
        return Controller(context, evaluator=self.evaluator, start=start)

    def worker(self, role: str) -> Any:
        self._names[role] += 1
        number = self._names[role]
        name, faults = f"{role.removesuffix('s')}-{number}", self._faults.get(role) if number == 0 else None
        if role == VERIFIERS:
            return FakeVerifier(name, delay_s=self._judge_s, faults=faults)
        made = FakeEngineWorker(
            name, delay_s=self._delay_s, correct=self._correct, gain=self._gain, faults=faults, clock=virtual_time.now
        )
        made.rescored = self._rescored
        return made

    async def start_worker(self, role: str) -> Any:
        if self.no_room:
            self.no_room -= 1
            raise RunFailed("no room")
        made = self.worker(role)
        self.started.append(made.name)
        return made

    # ---- running ----

    async def go(self) -> str:
        """What ``session`` does after the actors are up."""
        controller = self.controller
        if self.source or self._again:
            version = self.state.version if self.state else 0
            self.publisher.offer(await self.workers.learner.export(version))
        try:
            return await controller.run()
        finally:
            self.ledger_log.close()

    def run(self) -> str:
        """In virtual time."""
        return virtual_time.run(self.go())

    async def until(self, condition: Callable[[], bool]) -> None:
        await virtual_time.until(condition)

    # ---- what came of it ----

    @property
    def ledger(self) -> Ledger:
        return self.controller.machine.ledger

    def of(self, role: str) -> list[Any]:
        return [self.workers.worker(name) for name in self.workers.names(role)]

    @property
    def engines(self) -> list[Any]:
        return [*self.of(GENERATORS), *self.of(EXPLORERS)]

    def replaced(self) -> dict[str, int]:
        """Roles of which workers were replaced."""
        return {role: count for role, count in self.controller.watch.replaced().items() if count}

    def trained_groups(self) -> list[str]:
        return [row.payload.ids[row.row].group for batch in self.learner.trained for row in batch]

    def said(self, text: str) -> str:
        """The first note with this text in it, or nothing."""
        return next((line for line in self.notes.lines if text in line), "")


def audited(folder: Path, config: Config) -> LedgerReport:
    """The audit of the ledger log, which must break no law."""
    report = audit(
        read_ledger_log(folder / "ledger.jsonl"),
        groups_per_step=config.flow.groups_per_step,
        max_staleness=config.flow.max_staleness,
    )
    assert not report.violations, "\n".join(map(str, report.violations))
    return report


def replayed(folder: Path, config: Config) -> int:
    """Drive a machine through every journal again: it must decide the same, and a run's first session break no law. Events."""
    count = 0
    for path in sorted((folder / "journal").glob("*.jsonl")):
        header, entries = read_journal(path)
        machine = Machine(config, make_strategy(config.algorithm), state=header.state)
        laws = Laws(machine, config) if header.state is None else None
        started = machine.start()
        if laws is not None:
            laws.obey(started)
        handle = machine.handle if laws is None else laws.tell
        for entry in entries:
            assert tuple(map(brief, handle(entry.event))) == entry.commands, f"{path.name}: {entry.event}"
            count += 1
    return count
