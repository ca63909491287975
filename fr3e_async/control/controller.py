"""The loop of a run: feeds events to the machine and has its commands carried out. Nobody waits at a barrier.

    prompts ─► _fill ──Admitted──►┌─────────┐──Assign──► executor ──► generators, explorers, verifiers ─┐
                                  │         │──Send, Hire, Wait … ─► executor ──────────────────────────┤  each command runs as
      one consumer, _pump: waits  │ machine │──Train, Rescore ─► learning ──► learner ──────────────────┤  its own task and
      for the next event only     │         │                                                           │  ends in an event
                                  └─────────┘◄───────────────────────── events ◄────────────────────────┘
    beside it: checkpointing (when a checkpoint is written), measuring (when accuracy is), telling (what a person sees), watch (all actors are
    asked for their state at every heartbeat; raises when nothing moves)

The machine decides everything; ``recording`` writes what happens into the journal (events and decisions) and the ledger log (what
became of every group). A background task that fails fails the run: all of them live in one ``asyncio.TaskGroup``; if the learner is sound,
a checkpoint is written before the failure is raised.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from fr3e_async.control.checkpointing import Checkpointing
from fr3e_async.control.context import RunContext
from fr3e_async.control.evaluating import EvaluationSchedule
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.executor import Executor
from fr3e_async.control.heartbeat import Records, Teller
from fr3e_async.control.learning import Learning
from fr3e_async.control.process import GcSchedule
from fr3e_async.control.watchdog import StalledError, Watchdog
from fr3e_async.control.workers import ROLES
from fr3e_async.data.stream import group_id
from fr3e_async.errors import LearnerLost, RunFailed, UserError
from fr3e_async.machine.events import Admitted, Begun, Event, Leaving, Pressure, Stopped, Trained, Utilization, WorkerUp
from fr3e_async.machine.ledger_state import LedgerError
from fr3e_async.machine.messages import Command, Live, Rescore, Retire, Train
from fr3e_async.machine.order import StalenessError
from fr3e_async.store.ledger_log import EndRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStart:
    """What a session inherits: its number, the weights that the engines hold, the learner's restarts."""

    session: int = 0  # number in the run, from 0 on
    engine_version: int = 0  # of the weights in the engines; -1: unknown, so all engines are given the newest ones
    learner_restarts: int = 0  # of the learner group, within this process


class Controller:
    """One session of a run. ``run`` returns when all steps are trained and live, the wall limit is reached, or ``stop`` was asked for."""

    def __init__(self, context: RunContext, *, evaluator: Evaluator | None = None, start: SessionStart | None = None) -> None:
        """Build the parts of the loop. Without an ``evaluator`` the run evaluates nothing."""
        self.context, self.start = context, start or SessionStart()
        self.machine, self.progress = context.machine, context.progress
        self._config, self._reporter, self._clock = context.config, context.reporter, context.clock
        self._checkpointing = Checkpointing(context)
        self._executor = Executor(context)
        self.watch = Watchdog(context, self._checkpointing)
        self._learning = Learning(context, self.watch)
        self.evaluations = EvaluationSchedule(context, evaluator, self._executor.lend)
        self.teller = Teller(
            context, self.watch, self._checkpointing, self.evaluations, learner_restarts=self.start.learner_restarts
        )
        self._records = Records(context, self.teller)

    def stop(self, reason: str) -> None:
        """Ask the run to end with a checkpoint after the batch in training. Safe to call more than once, from the loop."""
        if not self.context.stop_reason:
            self.context.stop_reason = reason
            self.context.emit(Stopped(reason=reason))
        self.evaluations.stop()

    def awaited(self) -> str:
        """Tell a person what the stop still waits for."""
        return self.teller.awaited(self._learning.left_s())

    async def run(self) -> str:
        """Train until the end; returns why it ended. The final checkpoint is written.

        Raises (after a last checkpoint, unless the learner is the cause):
            LearnerLost: the learner group must be restarted; the run can resume from the last checkpoint.
            RunFailed: the first failure of any part, with its diagnosis.
        """
        self.progress.begin(self._clock())
        if self.progress.benchmarks:  # without what was evaluated after the checkpoint, which is done again
            self._reporter.evaluations(self.progress.benchmarks)
        self.teller.begin()
        self._reporter.note(self._checkpointing.cost())
        try:
            async with asyncio.TaskGroup() as self.context.tasks:
                self.context.spawn(self._heartbeat())
                self.context.spawn(self._learning.keep_rescoring())
                self.context.spawn(self._measure_first())
                await self._pump()
                await self._evaluations_done()
                await self.watch.beat()
                self.progress.utilisation = self.watch.utilisation()
                await self._finish()
                for task in self.context.running:
                    task.cancel()
        except BaseExceptionGroup as group:
            failure = first_failure(group)
            await self._save_before(failure)
            raise failure from group
        finally:
            await self.context.learner.drop()
            self._records.close()
        reason = self.context.stop_reason or "finished"
        self.context.files.ledger_log.write(EndRecord(version=self.machine.ledger.version, reason=reason))
        return reason

    async def _save_before(self, failure: BaseException) -> None:
        """Write the last checkpoint of a run that fails for a cause outside the learner; raises nothing.

        The batch that the learner is at belongs to it. A second stop, which does not wait, ends this too.
        """

        async def guard() -> None:
            while True:
                await asyncio.sleep(self._config.observe.heartbeat_s)
                await self.watch.look_at_learner()

        learner = self.context.learner
        if not leaves_all_sound(failure) or (isinstance(failure, StalledError) and learner.does):
            return
        try:
            async with asyncio.timeout(self._config.learner.step_timeout_s), asyncio.TaskGroup() as tasks:
                guarding = tasks.create_task(guard())
                await learner.rest()
                self._settle_learner()
                if not learner.failed:
                    await self._checkpointing.last()
                guarding.cancel()
        except (BaseExceptionGroup, TimeoutError) as error:
            told = first_failure(error) if isinstance(error, BaseExceptionGroup) else "learner.step_timeout_s is over"
            with suppress(UserError):  # the disk is full, say
                self._reporter.note(f"no checkpoint could be written before the end: {told}")
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()

    def _settle_learner(self) -> None:
        """The batch that the learner was at when the run failed belongs to what is saved, since the learner has made it."""
        self._records.take(Stopped(reason="the run has failed"))
        while not self.context.events.empty():
            if isinstance(event := self.context.events.get_nowait(), Trained):
                self._records.take(event)

    # ---- the pump ----

    async def _pump(self) -> None:
        self._begin()
        while not self._done():
            if await self._pump_once():
                self._fill()

    async def _pump_once(self) -> bool:
        """Handle the next event. Returns False if it only woke the loop."""
        event = await self.context.events.get()
        if event is not None:
            self._feed(event)
        return event is not None

    def _begin(self) -> None:
        self.teller.beat()
        for group in self.machine.ledger.state().groups:
            self.context.table.open(group.name)
        self._perform(self._records.begin(self.start.session))
        for role in ROLES:
            for name in self.context.workers.names(role):
                worker = self.context.workers.worker(name)
                node = worker.node if worker is not None else ""
                self._feed(WorkerUp(role=role, worker=name, version=self.start.engine_version, node=node))
        self._feed(Begun(again=self.start.engine_version < 0))
        self.evaluations.resumed(self.machine.ledger.version)
        self._fill()

    def _done(self) -> bool:
        ledger = self.machine.ledger
        if ledger.closed:  # what is measured after a finished run is its last version
            return not ledger.training and (not self.context.budget_spent or ledger.live == ledger.version)
        limit = self._config.run.max_wall_s
        if limit and self.progress.wall_s(self._clock()) > limit:
            self.stop(f"run.max_wall_s ({limit:.0f} s) reached")
        budget = self._config.budget.tokens
        if budget and self.progress.tokens_generated >= budget and not self.context.budget_spent:
            self.context.budget_spent = True
            self.context.emit(Stopped(reason=f"budget.tokens ({budget:,}) is used up"))
        return ledger.finished

    def _fill(self) -> None:
        while self.machine.ledger.admissible() > 0:
            prompt, epoch = self.context.stream.take()
            group = group_id(prompt.uid, epoch)
            self.context.table.open(group)
            self._feed(Admitted(group=group))

    def _feed(self, event: Event) -> None:
        """Pass one event through the machine and begin the commands that it returns."""
        commands = self._records.take(event)
        if not isinstance(event, Admitted | WorkerUp | Begun | Pressure | Utilization):  # these come though nothing moves
            self.context.moved()
        if isinstance(event, Leaving):  # rollouts on a node that goes are fetched to this one, as far as there is room
            self.context.spawn(self.context.table.shelter(self.context.workers.payloads))
        if isinstance(event, Trained):
            self.evaluations.trained(event.version)
            self._checkpointing.trained(event.version, evaluated=self.evaluations.due == event.version)
        self._perform(commands)

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Retire():
                    pass  # done by the records, before anything else
                case Train():
                    self.context.spawn(self._learning.train(command))
                case Rescore():
                    self._learning.rescore(command)
                case Live():
                    self._live(command.version)
                case _:
                    self._executor.carry_out(command)

    # ---- weights ----

    def _live(self, version: int) -> None:
        sync = self.context.publisher.sync(version)
        self.progress.synced(time_s=sync.time_s, pause_s=sync.pause_s)
        self.progress.times |= sync.metrics
        self.evaluations.live(version)

    # ---- evaluation ----

    async def _measure_first(self) -> None:
        await self.evaluations.first(self.machine.ledger.version)
        self._learning.hand_over()

    async def _evaluations_done(self) -> None:
        while self.evaluations.busy:
            await self._pump_once()

    async def _finish(self) -> None:
        """The last checkpoint, and only then the last evaluation, which may take long; after a stop there is none."""
        await self._checkpointing.last()
        if not self.context.stop_reason:
            self.evaluations.last(self.machine.ledger.version)
            await self._evaluations_done()
        await self._records.finish()

    async def _heartbeat(self) -> None:
        sweep = GcSchedule()
        while True:
            await asyncio.sleep(self._config.observe.heartbeat_s)
            sweep(self._executor.departures)
            await self.watch.beat()
            self.teller.beat()
            self._checkpointing.beat()
            self.context.wake()  # the wall limit may be reached
            self._records.flush()


def first_failure(group: BaseExceptionGroup) -> BaseException:
    """The exception that a person should read: a ``RunFailed`` if there is one, else the first of the group."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            flat.append(error)
    return next((e for e in flat if isinstance(e, RunFailed)), flat[0])


def leaves_all_sound(failure: BaseException) -> bool:
    """True if ledger and learner are still consistent: starvation, deaths of other actors, a stall. False: a defect, a full disk."""
    return isinstance(failure, RunFailed) and not isinstance(failure, LearnerLost | LedgerError | StalenessError)
