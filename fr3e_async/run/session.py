"""One session of a run in the driver process: connect, train, leave a result. ``preparing`` makes it.

connect   join or start the Ray cluster
run       actors up ─► controller ─► final model, summary, before/after table; signals end in a checkpoint
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.clock import Clock
from fr3e_async.config import Config, LearnerConfig
from fr3e_async.control.context import PayloadTable, RunContext, RunFiles
from fr3e_async.control.controller import Controller, SessionStart
from fr3e_async.control.door import Door
from fr3e_async.control.evaluator import Evaluator, pick_problems
from fr3e_async.control.process import run_in_daemon_thread, tuned_gc
from fr3e_async.control.progress import Progress, load_control_state
from fr3e_async.control.trees import TreeRecorder
from fr3e_async.data.prompts import Datasets
from fr3e_async.data.stream import PromptStream
from fr3e_async.data.tokenizer import Spell
from fr3e_async.errors import LearnerLost, RunFailed, StartRefused, StorageError, UserError
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.files.process_logs import stderr_in
from fr3e_async.machine.machine import Machine
from fr3e_async.observe.console import ConsoleView, make_console, say
from fr3e_async.observe.events import EventKind
from fr3e_async.observe.recorder import Recorder
from fr3e_async.observe.trackers import make_trackers
from fr3e_async.rollout.door import Questions
from fr3e_async.run.export import write_run_card
from fr3e_async.run.resume import newest_checkpoint, restored
from fr3e_async.run.stop import Stop, summary_of
from fr3e_async.store.checkpoints import step_of
from fr3e_async.store.journal import Journal
from fr3e_async.store.run_dir import RunDir
from fr3e_async.verify.rewards import MATH
from fr3e_async.wiring import Deployment, PolicyFiles, connect, connecting, disconnect, first_questions, gauges, mismatch_bound

T = TypeVar("T")

RESTART_BACKOFF_S = 1.0  # before the learner group is restarted; doubled each time
LONGEST_BACKOFF_S = 60.0


class Session:
    """One process of a run. A context manager: leaving it disconnects from the cluster and releases the directory's lock."""

    def __init__(
        self,
        config: Config,
        model: PolicyFiles,
        datasets: Datasets,
        run_dir: RunDir,
        *,
        benchmarks: Sequence[TestSet] = (),
        resume_from: Path | None,
        done: str = "",
        clock: Clock,
        started_at: float,
        spell: Spell,
        notes: Sequence[tuple[EventKind, str]] = (),
        questions: Questions | None = None,
        found: Sequence[str] = (),
    ) -> None:
        """Called by ``preparing.prepare``.

        ``resume_from``: the checkpoint to continue from. ``done``: why there is nothing left to do. ``found``: what the checks found, a line each.
        ``notes``: what to print once the console is there; empty ones are skipped. ``clock``: of all stamps and durations; ``started_at``: when the
        program began, by this clock. ``spell``: tokens as text. ``questions``: fixed rows that engines and learner must score alike, or None.
        """
        self.found = tuple(found)
        self._questions = questions if config.learner.stop_above_mismatch else None
        self.notes = tuple((kind, note) for kind, note in notes if note)
        self._config, self._model, self.datasets, self._run_dir = config, model, datasets, run_dir
        self._benchmarks, self.done = tuple(benchmarks), done
        self._clock, self._started_at, self._resume_from, self._spell = clock, started_at, resume_from, spell
        self._wall_before_s = 0.0  # of earlier processes
        self._connected = False
        self._reached_actors = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._connected:
            failed = kind is not None and issubclass(kind, RunFailed)
            disconnect(keep_logs=self._run_dir.logs / "ray" if failed else None)
        if not self._reached_actors:
            self._run_dir.discard()
        self._run_dir.close()

    def connect(self) -> None:
        """Join or start the cluster. Raises ``ConfigError`` if the actors do not fit."""
        self._connected = True
        say(self._config)(connecting(self._config))
        verbose = self._config.observe.verbose
        with nullcontext() if verbose else stderr_in(self._run_dir.logs / "driver.log"):
            connect(self._config)

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code. Raises ``RunFailed``."""
        self._reached_actors = True
        try:
            with tuned_gc():
                return asyncio.run(self.go())
        except StartRefused:
            self._reached_actors = False  # as bad input leaves nothing behind
            raise
        except UserError as error:  # a disk that has become full, say: not bad input any more
            raise RunFailed(str(error)) from error

    # ---- inside the event loop ----

    async def go(self) -> int:
        cut = load_control_state(self._resume_from).ledger if self._resume_from else None
        version, settled = (cut.version, cut.settled) if cut else (0, 0)
        mode, screen = make_console(self._config.observe.console)
        run = self._config.run
        graded = self._config.reward_range if any(term.function != MATH for term in self._config.reward_terms) else None
        view = ConsoleView(
            mode=mode, console=screen, name=run.name, steps=run.steps, done=version, graded=graded, clock=self._clock
        )  # fmt: skip
        recorder = Recorder(
            self._run_dir, config=self._config.observe, view=view, clock=self._clock, resumed_from=version, settled=settled,
            exporter=gauges(self._config), settings=asdict(self._config), trackers=make_trackers(self._config, self._run_dir.path),
        )  # fmt: skip
        deployment = Deployment(self._config, self._model, self._run_dir, clock=self._clock, note=recorder.note)
        view.start()
        stop = Stop(grace_s=self._config.run.stop_grace_s, say=recorder.note)
        stop.task = asyncio.create_task(self.train(deployment, recorder, stop))
        stop.listen()
        try:
            await stop.task
        except asyncio.CancelledError:
            if not stop.reason:
                raise
            saved = max([version, *self._run_dir.checkpoints.steps()])
            if stop.controller is not None and stop.controller.machine.ledger.version > saved:
                there = f"that of step {saved} stands" if saved else "there is none before"
                why = f"{stop.reason}: the last checkpoint was not waited for, since {stop.hurry}; {there}"
                recorder.failed(why)
                raise RunFailed(why) from None
            recorder.note(f"{stop.reason}; nothing new to save", "run_stopped", version=version)
            recorder.last_words()
        except (RunFailed, StartRefused) as error:
            recorder.failed(str(error))
            raise
        finally:
            recorder.close()
            await deployment.close()
        return 0

    async def train(self, deployment: Deployment, recorder: Recorder, stop: Stop) -> None:
        resumed = f", resuming from step {step_of(self._resume_from)}" if self._resume_from else ""
        recorder.note(f"run directory {self._run_dir.path}{resumed}", "run_resumed" if resumed else "run_started")
        for kind, note in self.notes:
            recorder.note(note, kind)
        if self.datasets.dropped:
            recorder.note(f"{self.datasets.dropped} prompts are longer than data.max_prompt and were dropped", "data_dropped")
        async with self._telling(recorder, deployment):
            await deployment.start(resume_from=self._resume_from)
        self._run_dir.renew(self._config)
        spent = self._clock() - self._started_at
        recorder.note(f"all actors up after {spent:.0f} s", "actors_up", seconds=round(spent, 3))
        controller, reason = await self.to_the_end(deployment, recorder, stop)
        whole = reason == "finished" and await self._save_model(deployment, recorder, stop)
        recorder.finish(summary_of(controller, name=self._config.run.name, reason=reason, now=self._clock()))
        if whole:
            self.write_card()

    async def to_the_end(self, deployment: Deployment, recorder: Recorder, stop: Stop) -> tuple[Controller, str]:
        """Train until the run ends; the last controller and why it ended. Restart a lost learner group from the last checkpoint.

        Raises ``RunFailed``: a failure that cannot be repaired, or the group was lost more than
            ``learner.max_restarts`` times without a new checkpoint between.
        """
        source, restarts, in_a_row = self._resume_from, 0, 0
        lost = ""  # why; the error itself would keep all that its traceback saw, the rollouts of the old session too
        while True:
            try:
                async with self._telling(recorder, deployment):
                    if lost:
                        gc.collect()  # the old session is a cycle, and its rollouts keep nodes that the cluster wants back
                        source = await self.restart_learner(deployment, recorder, lost, in_a_row)
                    controller = await self.controller(deployment, recorder, source, restarts)
                stop.controller = controller
                reason = await controller.run()
                stop.controller = None
                return controller, reason
            except LearnerLost as error:
                stop.controller = None
                newest, began_at = max([0, *self._run_dir.checkpoints.steps()]), step_of(source) if source else 0
                in_a_row = 1 if newest > began_at else in_a_row + 1  # a run that gets on may move as often as it must
                lost, restarts = str(error), restarts + 1
                if in_a_row > self._config.learner.max_restarts or stop.reason:
                    again = "; restart the same command with resume=auto to resume from the last checkpoint"
                    raise RunFailed(f"{error} (learner.max_restarts is {self._config.learner.max_restarts}){again}") from error

    @asynccontextmanager
    async def _telling(self, recorder: Recorder, deployment: Deployment) -> AsyncIterator[None]:
        """While the block waits for actors, tell every ``observe.heartbeat_s`` what is missing, so that the run is seen to be alive."""

        async def tell() -> None:
            while True:
                recorder.starting(await deployment.missing() or "all actors are up; learner and engines are made ready")
                await asyncio.sleep(self._config.observe.heartbeat_s)
                recorder.beat_again()

        task = asyncio.create_task(tell())
        try:
            yield
        finally:
            task.cancel()
            recorder.starting("")

    async def restart_learner(self, deployment: Deployment, recorder: Recorder, why: str, restarts: int) -> Path | None:
        """Restart the learner group from the newest checkpoint after a growing wait, and cut the records back to it; the checkpoint's folder.

        ``why``: how the group was lost; ``restarts``: losses in a row. Raises ``LearnerLost`` if the group does not come up.
        """
        source = await self._from_checkpoint(lambda: newest_checkpoint(self._run_dir))
        text = f"{why}; the learner group is restarted from {source.name if source else 'the model as it was given'}"
        recorder.note(text, "learner_lost", version=step_of(source) if source else 0)
        await asyncio.sleep(min(RESTART_BACKOFF_S * 2 ** (restarts - 1), LONGEST_BACKOFF_S))
        try:
            await deployment.restart_learner(resume_from=source)
        except (RunFailed, StartRefused) as failure:  # no room yet after the loss of a node, say
            raise LearnerLost(f"the learner group could not be restarted: {failure}") from failure
        cut = load_control_state(source).ledger if source else None
        recorder.go_back(*((cut.version, cut.settled) if cut else (0, 0)))
        return source

    async def _from_checkpoint(self, read: Callable[[], T]) -> T:
        """Run ``read`` in a thread and return its result, since files or objects may never come. Raises ``RunFailed`` at the time limit."""
        async with limited(self._config.learner, "start_timeout_s", "the checkpoint could not be read"):
            return await run_in_daemon_thread(read)

    def write_card(self) -> None:
        """Write the model's README.md. A failure is only printed: the result is written by now."""
        try:
            write_run_card(self._run_dir.path, dtype=self._config.learner.dtype)
        except StorageError as error:  # not recorded: the events log lies on the same disk
            say(self._config)(f"the model's README.md was not written: {error}")

    async def _save_model(self, deployment: Deployment, recorder: Recorder, stop: Stop) -> bool:
        """Write the final model; false if a stop came first, which leaves the last checkpoint to export."""
        try:
            async with limited(self._config.learner, "step_timeout_s", "the final model was not written"):
                await deployment.workers.learner.save_model(self._run_dir.model)
            return True
        except asyncio.CancelledError:
            if not stop.reason or stop.task is None:
                raise
            stop.task.uncancel()
            recorder.note(
                f"{stop.reason} before model/ was written; fr3e export {self._run_dir.path} OUT writes it",
                "model_not_written",
            )
            return False

    async def controller(
        self, deployment: Deployment, recorder: Recorder, source: Path | None, restarts: int
    ) -> Controller:  # fmt: skip
        """The control loop, from a checkpoint or from nothing. ``restarts``: of the learner group within this process."""
        config, train = self._config, self.datasets.train
        resumed = load_control_state(source) if source else None
        state = resumed.ledger if resumed else None
        progress = resumed.progress if resumed else Progress()
        if not restarts:
            self._wall_before_s = progress.wall_before_s
        progress.began_at, progress.wall_before_s = self._started_at, self._wall_before_s
        publisher = deployment.publisher()
        version = state.version if state else 0
        weights = await deployment.weights(version)
        publisher.offer(weights)
        door = await self._door(deployment, recorder, version)
        if version == 0 and not restarts:  # engines that begin with newer ones are given them, and asked, as those that join are
            asked_at = self._clock()
            engines = await first_questions(deployment, weights, door)
            spent = self._clock() - asked_at
            text = f"{engines} engines have the learner's weights{' and numbers' if door else ''} ({spent:.1f} s)"
            recorder.note(text, "engines_asked", seconds=round(spent, 3))
        heldout = pick_problems(self.datasets.heldout, config)
        session = self._run_dir.next_session()
        journal = Journal(self._run_dir.journal, session=session, config=config, state=state) if config.observe.journal else None
        keep, groups = config.observe.trees_per_step, [group.name for group in state.groups] if state else []
        context = RunContext(
            config=config,
            machine=Machine(config, make_strategy(config.algorithm), state=state),
            workers=deployment.workers,
            stream=PromptStream(
                train,
                config.run.seed,
                state=resumed.stream if resumed else None,
                taken=groups,
                parts=self.datasets.parts,
                template=self.datasets.template,
                ends=self.datasets.ends,
            ),
            publisher=publisher,
            files=RunFiles(
                ledger_log=recorder.ledger_log, checkpoints=self._run_dir.checkpoints, journal=journal,
                trees=TreeRecorder(per_step=keep, store=deployment.workers.payloads, spell=self._spell, keep=recorder) if keep else None,
            ),
            reporter=recorder, progress=progress, clock=self._clock, door=door,
            table=PayloadTable(
                await self._from_checkpoint(lambda: restored(source, deployment.workers.payloads)) if source else None
            ),
        )  # fmt: skip
        evaluator = Evaluator(deployment.workers, heldout, self._benchmarks) if heldout or self._benchmarks else None
        start = SessionStart(session=session, engine_version=-1 if restarts else 0, learner_restarts=restarts)
        return Controller(context, evaluator=evaluator, start=start)

    async def _door(self, deployment: Deployment, recorder: Recorder, version: int) -> Door | None:
        """The check of new engines, with the learner's scores at ``version``; None if nothing is compared."""
        if self._questions is None:
            return None
        config, workers = self._config, deployment.workers
        door = Door(
            self._questions, learner=workers.learner, payloads=workers.payloads, temperature=config.sampling.temperature,
            bound=mismatch_bound(config), limit_s=config.flow.lease_s, record=recorder.event,
        )  # fmt: skip
        async with limited(config.learner, "step_timeout_s", "the learner did not score the fixed rows", LearnerLost):
            await door.learned(version)
        return door


@asynccontextmanager
async def limited(learner: LearnerConfig, limit: str, failure: str, error: type[RunFailed] = RunFailed) -> AsyncIterator[None]:
    """End the block after a time limit of the learner with an ``error`` that names the setting.

    Example: ``limited(config.learner, "step_timeout_s", "the final model was not written")``.
    """
    seconds = getattr(learner, limit)
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise error(f"{failure} within learner.{limit} ({seconds:g} s)") from None
