"""The loop of a run: feeds events to the machine and has its commands carried out. Nobody waits at a barrier.

    prompts ─► _fill ──Admitted──►┌─────────┐──Assign──► executor ──► generators, explorers, verifiers ─┐
                                  │         │──Send, Hire, Wait … ─► executor ──────────────────────────┤  each command runs as
      one consumer, _pump: waits  │ machine │──Train, Rescore ─► learning ──► learner ──────────────────┤  its own task and
      for the next event only     │         │                                                           │  ends in an event
                                  └─────────┘◄───────────────────────── events ◄────────────────────────┘
    beside it: checkpointing (when a checkpoint is written), measuring (when accuracy is), telling (what a person sees), watch (all actors are
    asked for their state at every heartbeat; raises when nothing moves)

The machine decides everything; ``recording`` writes what happens into the journal (events and decisions) and the books (what
became of every group). A background task that fails fails the run: all of them live in one ``asyncio.TaskGroup``; if the learner is sound,
a checkpoint is written before the failure is raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.checkpointing import Checkpointing, CheckpointWriter
from fr3e_async.control.door import Door
from fr3e_async.control.evaluating import EvaluationSchedule
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.executor import Executor
from fr3e_async.control.failing import first_failure, save_before
from fr3e_async.control.heartbeat import Teller
from fr3e_async.control.learning import LearnerLock, Learning
from fr3e_async.control.payload_table import PayloadTable
from fr3e_async.control.ports import Checkpoints, Payload, Reporter
from fr3e_async.control.process import GcSchedule
from fr3e_async.control.progress import Progress
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.recording import Records
from fr3e_async.control.trees import TreeKeeper
from fr3e_async.control.watchdog import Watchdog
from fr3e_async.control.workers import ROLES, Workers
from fr3e_async.data.stream import PromptStream, group_id
from fr3e_async.machine.events import Admitted, Begun, Event, Leaving, Pressure, Stopped, Trained, Utilization, WorkerUp
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Command, Live, Rescore, Retire, Train
from fr3e_async.store.journal import Journal
from fr3e_async.store.ledger_log import EndRecord, LedgerLog


class Controller:
    """One session of a run. ``run`` returns when all steps are trained and live, the wall limit is reached, or ``stop`` was asked for."""

    def __init__(
        self, *, config: Config, workers: Workers, machine: Machine, stream: PromptStream, publisher: Publisher, evaluator: Evaluator | None,
        reporter: Reporter, ledger_log: LedgerLog, journal: Journal | None, checkpoints: Checkpoints, progress: Progress, clock: Clock,
        session: int = 0, payloads: dict[int, tuple[str, Payload]] | None = None, engine_version: int = 0, learner_restarts: int = 0,
        trees: TreeKeeper | None = None, door: Door | None = None,
    ) -> None:  # fmt: skip
        """``payloads``: by key, (group, handle) of the open groups that the machine begins with. ``engine_version``: of the
        weights in the engines; -1: whatever they are, they are to be given the newest ones. ``door``: what is asked of engines."""
        self._config, self._workers, self.machine, self._stream = config, workers, machine, stream
        self._publisher, self._reporter, self._session = publisher, reporter, session
        self.progress, self._clock = progress, clock
        self._engine_version = engine_version
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._learner_lock = LearnerLock(workers.learner, limit_s=config.learner.step_timeout_s)
        self._table = PayloadTable(payloads)
        self._executor = Executor(
            workers,
            publisher,
            self._table,
            prompt_of=stream.prompt,
            emit=self._emit,
            spawn=self._spawn,
            note=reporter.note,
            door=door,
        )
        writer = CheckpointWriter(self._learner_lock, checkpoints, workers.payloads, clock=clock)
        self._checkpointing = Checkpointing(
            writer, machine.ledger, self._table, stream, every=config.run.checkpoint_every, steps=config.run.steps, ledger_log=ledger_log,
            progress=progress, reporter=reporter, spawn=self._spawn, ends=self._ends, clock=clock,
        )  # fmt: skip
        self.watch = Watchdog(
            workers, machine, clock=clock, down=self._executor.down, tell=self._emit, learner_busy=lambda: self._learner_lock.does,
            writing=lambda: writer.writes, relocate=self._checkpointing.relocate, save=self._checkpointing.soon, note=reporter.note,
        )  # fmt: skip
        self._learning = Learning(
            self._learner_lock, self._table, publisher, progress=progress, emit=self._emit, busy=self.watch.learned, clock=clock, door=door,
        )  # fmt: skip
        self._stop_reason = ""
        self._spent = False  # budget.tokens is used up
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._evaluations = EvaluationSchedule(
            evaluator, config=config, progress=progress, reporter=reporter, lend=self._executor.lend, spawn=self._spawn,
            alive=self.watch.progress, wake=lambda: self._emit(None), clock=clock,
        )  # fmt: skip
        self._teller = Teller(
            config, machine, self.watch, self._checkpointing, learner=lambda: self._learner_lock.does, evaluations=lambda: self._evaluations.labels,
            progress=progress, reporter=reporter, learner_restarts=learner_restarts, clock=clock,
        )  # fmt: skip
        self._records = Records(
            machine, ledger_log=ledger_log, journal=journal, trees=trees, teller=self._teller, progress=progress, reporter=reporter, stream=stream,
            table=self._table, clock=clock,
        )  # fmt: skip

    def stop(self, reason: str) -> None:
        """Ask the run to end with a checkpoint after the batch in training. Safe to call more than once, from the loop."""
        if not self._stop_reason:
            self._stop_reason = reason
            self._emit(Stopped(reason=reason))
        self._evaluations.stop()

    def awaited(self) -> str:
        """What a stop waits for, in words."""
        return self._teller.awaited(self._learning.left_s())

    async def run(self) -> str:
        """Train until the end; returns why it ended. The final checkpoint is written.

        Raises (after a last checkpoint, unless the learner is the cause):
            LearnerLost: the learner group must be made anew; the run can go on from the last checkpoint.
            RunFailed: the first failure of any part, with its diagnosis.
        """
        self.progress.begin(self._clock())
        if self.progress.benchmarks:  # without what was evaluated after the checkpoint, which is done again
            self._reporter.evaluations(self.progress.benchmarks)
        self._teller.begin()
        self._reporter.note(self._checkpointing.cost())
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._spawn(self._heartbeat())
                self._spawn(self._learning.keep_rescoring())
                self._spawn(self._measure_first())
                await self._pump()
                await self._evaluations_done()
                await self.watch.beat()
                self.progress.utilisation = self.watch.utilisation()
                await self._finish()
                for task in self._running:
                    task.cancel()
        except BaseExceptionGroup as group:
            failure = first_failure(group)
            await save_before(
                failure, lock=self._learner_lock, checkpointing=self._checkpointing, watch=self.watch, settle=self._settle_learner,
                note=self._reporter.note, config=self._config,
            )  # fmt: skip
            raise failure from group
        finally:
            await self._learner_lock.drop()
            self._records.close()
        reason = self._stop_reason or "finished"
        self._records.ledger_log.write(EndRecord(version=self.machine.ledger.version, reason=reason))
        return reason

    def _settle_learner(self) -> None:
        """The batch that the learner was at when the run failed belongs to what is saved, since the learner has made it."""
        self._records.take(Stopped(reason="the run has failed"))
        while not self._events.empty():
            if isinstance(event := self._events.get_nowait(), Trained):
                self._records.take(event)

    # ---- the pump ----

    async def _pump(self) -> None:
        self._begin()
        while not self._done():
            if await self._pump_once():
                self._fill()

    async def _pump_once(self) -> bool:
        """False if there was nothing but a call to wake up."""
        event = await self._events.get()
        if event is not None:
            self._feed(event)
        return event is not None

    def _begin(self) -> None:
        self._teller.beat()
        for group in self.machine.ledger.state().groups:
            self._table.open(group.name)
        self._perform(self._records.begin(self._session))
        for role in ROLES:
            for name in self._workers.names(role):
                worker = self._workers.worker(name)
                node = worker.node if worker is not None else ""
                self._feed(WorkerUp(role=role, worker=name, version=self._engine_version, node=node))
        self._feed(Begun(again=self._engine_version < 0))
        self._evaluations.resumed(self.machine.ledger.version)
        self._fill()

    def _done(self) -> bool:
        ledger = self.machine.ledger
        if ledger.closed:  # what is measured after a finished run is its last version
            return not ledger.training and (not self._spent or ledger.live == ledger.version)
        limit = self._config.run.max_wall_s
        if limit and self.progress.wall_s(self._clock()) > limit:
            self.stop(f"run.max_wall_s ({limit:.0f} s) reached")
        budget = self._config.budget.tokens
        if budget and self.progress.tokens_generated >= budget and not self._spent:
            self._spent = True
            self._emit(Stopped(reason=f"budget.tokens ({budget:,}) is used up"))
        return ledger.finished

    def _fill(self) -> None:
        while self.machine.ledger.admissible() > 0:
            prompt, epoch = self._stream.take()
            group = group_id(prompt.uid, epoch)
            self._table.open(group)
            self._feed(Admitted(group=group))

    def _feed(self, event: Event) -> None:
        """One event through the machine, and its commands are begun."""
        commands = self._records.take(event)
        if not isinstance(event, Admitted | WorkerUp | Begun | Pressure | Utilization):  # these come though nothing moves
            self.watch.progress()
        if isinstance(event, Leaving):  # rollouts on a node that goes are fetched to this one, as far as there is room
            self._spawn(self._table.shelter(self._workers.payloads))
        if isinstance(event, Trained):
            self._checkpointing.trained(event.version)
            self._evaluations.trained(event.version)
        self._perform(commands)

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Retire():
                    pass  # done by the records, before anything else
                case Train():
                    self._spawn(self._learning.train(command))
                case Rescore():
                    self._learning.rescore(command)
                case Live():
                    self._live(command.version)
                case _:
                    self._executor.carry_out(command)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _emit(self, event: Event | None) -> None:
        """None only wakes the pump."""
        self._events.put_nowait(event)

    # ---- weights ----

    def _live(self, version: int) -> None:
        sync = self._publisher.sync(version)
        self.progress.synced(time_s=sync.time_s, pause_s=sync.pause_s)
        self.progress.times |= sync.metrics
        self._evaluations.live(version)

    def _ends(self) -> bool:
        """Nothing is left for the learner but the last checkpoint."""
        return bool(self._stop_reason) or self._spent or self.machine.ledger.version >= self._config.run.steps

    # ---- evaluation ----

    async def _measure_first(self) -> None:
        await self._evaluations.first(self.machine.ledger.version)
        self._learning.hand_over()

    async def _evaluations_done(self) -> None:
        while self._evaluations.busy:
            await self._pump_once()

    async def _finish(self) -> None:
        """The last checkpoint, and only then the last evaluation, which may take long; after a stop there is none."""
        await self._checkpointing.last()
        if not self._stop_reason:
            self._evaluations.last(self.machine.ledger.version)
            await self._evaluations_done()
        await self._records.finish()

    async def _heartbeat(self) -> None:
        sweep = GcSchedule()
        while True:
            await asyncio.sleep(self._config.observe.heartbeat_s)
            sweep(self._executor.departures)
            await self.watch.beat()
            self._teller.beat()
            self._checkpointing.beat(self.watch.last_progress)
            self._emit(None)  # the wall limit may be reached
            self._records.flush()
