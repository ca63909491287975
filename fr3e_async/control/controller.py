"""The loop of a run: feeds events to the ledger and carries out its commands. Nobody waits at a barrier.

    prompts ─► _fill ──Admitted──►┌────────┐──Sample─► generators ──Delivered──┐
                                  │        │──Branch─► explorers  ──Delivered──┤      each command runs as its own
      one consumer, _pump: waits  │ ledger │──Score──► verifiers  ──Judged─────┤      task and ends in one event;
      for the next event only     │        │──Train──► learner    ──Trained────┤      a lost task ends in Lost
                                  └────────┘◄──────────── events ◄─────────────┘
    _train     waits for the learner only; hands weights to _publish and is done
    _publish   waits for every engine's acknowledgement, or its time limit; then Published frees the slots
    _heartbeat asks the engines for their state; raises when nothing moves

A background task that fails fails the run: all of them live in one ``asyncio.TaskGroup``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

from fr3e_async.config import Config
from fr3e_async.control.crew import Crew
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.ledger import Ledger
from fr3e_async.control.messages import (
    Admitted,
    Branch,
    Command,
    Delivered,
    Event,
    Judged,
    Lost,
    Published,
    Rescore,
    Rescored,
    Retire,
    Sample,
    Score,
    Train,
    Trained,
)
from fr3e_async.control.pool import TaskLost
from fr3e_async.control.ports import Checkpoints, Clock, Payload, Reporter, TrainRow, Trunk
from fr3e_async.control.progress import Progress, control_state, save_control_state
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.tally import Tally
from fr3e_async.control.watch import Watch
from fr3e_async.data.stream import PromptStream, group_id
from fr3e_async.errors import RunFailed
from fr3e_async.types import WeightBundle

T = TypeVar("T")


class Controller:
    """One run. ``run`` returns when all steps are trained and live, the wall limit is reached, or ``stop`` was asked for."""

    def __init__(
        self,
        *,
        config: Config,
        crew: Crew,
        ledger: Ledger,
        stream: PromptStream,
        publisher: Publisher,
        evaluator: Evaluator | None,
        reporter: Reporter,
        checkpoints: Checkpoints,
        progress: Progress,
        clock: Clock,
    ) -> None:
        self._config, self._crew, self.ledger, self._stream = config, crew, ledger, stream
        self._publisher, self._evaluator, self._reporter = publisher, evaluator, reporter
        self._checkpoints, self.progress, self._clock = checkpoints, progress, clock
        self._tally = Tally()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._weights: asyncio.Queue[tuple[int, WeightBundle]] = asyncio.Queue()
        self._rescores: asyncio.Queue[Rescore] = asyncio.Queue()
        self._learner = asyncio.Lock()  # FIFO: train, checkpoint and export in the order they were asked for
        self.watch = Watch(crew, clock=clock, waiting=ledger.waiting, learner_busy=self._learner.locked)
        self._payloads: dict[int, Payload] = {}
        self._payloads_of: dict[str, list[int]] = {}
        self._next_payload = 0
        self._stop_reason = ""
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._measured_first = asyncio.Event()  # set once the first accuracy is known: until then weights stay at v0
        self._evaluations: set[asyncio.Task[None]] = set()
        self._last_step_at = 0.0

    def stop(self, reason: str) -> None:
        """Ask the run to end with a checkpoint after the batch in training. Safe to call more than once, from the loop."""
        self._stop_reason = self._stop_reason or reason
        self.ledger.stop()
        for task in self._evaluations:
            task.cancel()
        self._events.put_nowait(None)

    async def run(self) -> str:
        """Train until the end; returns why it ended. The final checkpoint is written.

        Raises:
            RunFailed: the first failure of any part, with its diagnosis.
        """
        self.progress.begin(self._clock())
        self._last_step_at = self._clock()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._spawn(self._heartbeat())
                self._spawn(self._publish())
                self._spawn(self._rescore())
                self._spawn(self._measure_first())
                await self._pump()
                await self._evaluations_done()
                await self.watch.beat()
                self.progress.utilisation = self.watch.utilisation()
                await self._finish()
                for task in self._running:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _first_failure(group) from group
        return self._stop_reason or "finished"

    # ---- the pump ----

    async def _pump(self) -> None:
        self._fill()
        while not self._done():
            event = await self._events.get()
            self.watch.progress()
            if event is not None:
                self._apply(event)
                self._fill()

    def _done(self) -> bool:
        if self.ledger.closed:
            return not self.ledger.training
        limit = self._config.run.max_wall_s
        if limit and self.progress.wall_s(self._clock()) > limit:
            self.stop(f"run.max_wall_s ({limit:.0f} s) reached")
        return self.ledger.finished

    def _fill(self) -> None:
        while self.ledger.admissible() > 0:
            prompt, epoch = self._stream.take()
            group = group_id(prompt.uid, epoch)
            self._payloads_of[group] = []
            self._apply(Admitted(group=group, prompt=prompt))

    def _apply(self, event: Event) -> None:
        commands = self.ledger.handle(event)
        for command in commands:
            if isinstance(command, Retire):
                self._retire(command)
        if isinstance(event, Trained):
            self._after_training(event.version)
        for command in commands:
            self._start(command)

    def _start(self, command: Command) -> None:
        match command:
            case Sample():
                self._spawn(self._sample(command))
            case Branch():
                self._spawn(self._branch(command))
            case Rescore():
                self._rescores.put_nowait(command)
            case Score():
                self._spawn(self._score(command))
            case Train():
                self._spawn(self._train(command))
            case Retire():
                pass  # done in _apply: books first

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    # ---- commands ----

    async def _sample(self, command: Sample) -> None:
        group = command.ids[0].group
        try:
            delivery, payload = await self._crew.sample(
                [command.prompt] * len(command.ids), command.ids, self._crew.training_draw, trunk=command.trunk
            )
        except TaskLost as error:
            self._emit(Lost(task=command.task, group=group, ids=command.ids, reason=str(error)))
            return
        self._emit(
            Delivered(
                task=command.task,
                group=group,
                payload=self._keep(group, payload),
                notes=delivery.notes,
                anchors=delivery.anchors,
            )
        )

    async def _branch(self, command: Branch) -> None:
        try:
            delivery, payload = await self._crew.branch(
                self._payloads[command.trunk_payload], command.trunk, command.anchors, command.ids
            )
        except TaskLost as error:
            self._emit(Lost(task=command.task, group=command.group, ids=command.ids, reason=str(error)))
            return
        key = self._keep(command.group, payload)
        self._emit(Delivered(task=command.task, group=command.group, payload=key, notes=delivery.notes))

    async def _score(self, command: Score) -> None:
        group = command.ids[0].group
        prompts = [command.prompt] * len(command.ids)
        try:
            verdicts = await self._crew.judge(self._payloads[command.payload], command.rows, prompts)
        except TaskLost as error:
            lost = Lost(task=command.task, group=group, ids=command.ids, reason=str(error), scoring=True, payload=command.payload)
            self._emit(lost)
            return
        self._emit(Judged(task=command.task, group=group, ids=command.ids, verdicts=tuple(verdicts)))

    async def _train(self, command: Train) -> None:
        rows = [
            TrainRow(payload=self._payloads[item.payload], row=item.row, advantage=item.advantage, load=item.load)
            for item in command.items
        ]
        async with self._learner:
            started = self._clock()
            report = await self._of_learner(self._crew.learner.train(rows, version=command.version))
            trained = self._clock()
            weights = await self._of_learner(self._crew.learner.export(command.version))
            self.watch.learned((started, self._clock()))
            self.progress.trained(report, first_at=trained)
            self._tally_times(trained - started, self._clock() - trained)
            self._weights.put_nowait((command.version, weights))
            self._emit(Trained(version=command.version))

    async def _rescore(self) -> None:
        """All trunks that wait when the learner is free go to it in one call; those of groups that have retired do not."""
        while True:
            waiting = [await self._rescores.get()]
            async with self._learner:
                while not self._rescores.empty():
                    waiting.append(self._rescores.get_nowait())
                commands = [command for command in waiting if command.payload in self._payloads]
                trunks = [
                    Trunk(payload=self._payloads[command.payload], id=id, length=length)
                    for command in commands
                    for id, length in zip(command.trunks, command.lengths, strict=True)
                ]
                started = self._clock()
                chosen = iter(await self._of_learner(self._crew.learner.rescore(trunks)) if trunks else ())
                self.watch.learned((started, self._clock()))
            for command in commands:
                anchors = tuple(anchor for _ in command.trunks for anchor in next(chosen))
                self._emit(Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))

    async def _of_learner(self, work: Awaitable[T]) -> T:
        limit = self._config.learner.step_timeout_s
        try:
            return await asyncio.wait_for(work, limit)
        except TimeoutError:
            raise RunFailed(f"the learner took longer than learner.step_timeout_s ({limit:g} s)") from None

    def _tally_times(self, train_s: float, export_s: float) -> None:
        self.progress.times |= {"time/train_s": train_s, "time/export_s": export_s}

    def _emit(self, event: Event) -> None:
        self._events.put_nowait(event)

    def _keep(self, group: str, payload: Payload) -> int:
        """Hold a payload until its group retires; one that comes after that (a late duplicate) is not held at all."""
        self._next_payload += 1
        if group in self._payloads_of:
            self._payloads[self._next_payload] = payload
            self._payloads_of[group].append(self._next_payload)
        return self._next_payload

    def _retire(self, group: Retire) -> None:
        self._tally.add(group)
        self.progress.retired(group)
        self._reporter.group(asdict(group))
        self._stream.mark_consumed(group.group)
        for key in self._payloads_of.pop(group.group, []):
            del self._payloads[key]

    # ---- after a batch ----

    def _after_training(self, version: int) -> None:
        now = self._clock()
        queues = {
            "queue/generators": float(self._crew.generators.queued),
            "queue/explorers": float(self._crew.explorers.queued),
            "queue/verifiers": float(self._crew.verifiers.queued),
            "queue/ready_groups": float(self.ledger.ready),
        }
        taken = self._tally.take()
        step_s = max(now - self._last_step_at, 1e-9)
        rates = {"time/step_s": step_s, "tokens/rate_per_s": taken["tokens/generated"] / step_s}
        self._last_step_at = now
        self._reporter.step(
            version, {**taken, **queues, **rates, **self.watch.utilisation(), **self.progress.take_step_metrics()}
        )
        every = self._config.run.checkpoint_every
        if every and version % every == 0 and version < self._config.run.steps:
            self._spawn(self._checkpoint(self._control_state()))
        measure_every = self._config.evaluation.every
        if self._evaluator and measure_every and version % measure_every == 0 and version < self._config.run.steps:
            self._evaluate(f"step {version}", version)

    def _control_state(self) -> dict[str, Any]:
        """A consistent cut, taken between two events: what is in flight is left out and will be admitted again."""
        return control_state(ledger=self.ledger.state(), stream=self._stream.state(), progress=self.progress, now=self._clock())

    async def _checkpoint(self, state: dict[str, Any]) -> None:
        async with self._learner:
            started = self._clock()
            folder = self._checkpoints.begin(state["ledger"]["version"])
            await self._of_learner(self._crew.learner.save(folder / "learner"))
            save_control_state(state, folder)
            final = self._checkpoints.commit(folder, state["ledger"]["version"])
            self.progress.times["time/checkpoint_s"] = self._clock() - started
            self._reporter.note(f"checkpoint {final.name} in {self._clock() - started:.1f} s")

    async def _publish(self) -> None:
        """One hand-over at a time; when several versions wait, only the newest is sent."""
        await self._measured_first.wait()
        while True:
            version, weights = await self._weights.get()
            while not self._weights.empty():
                version, weights = self._weights.get_nowait()
            sync = await self._publisher.publish(version, weights)
            self.progress.synced(time_s=sync.time_s, pause_s=sync.pause_s)
            self.progress.times |= sync.metrics
            for name, why in sync.quarantined.items():
                self._reporter.note(f"{name} did not acknowledge weights v{version} and is replaced: {why}")
            self._emit(Published(version=version))

    async def _measure_first(self) -> None:
        if self._evaluator and self.ledger.version == 0:
            await self._measure("before", self.ledger.version)
        self._measured_first.set()

    async def _measure(self, label: str, version: int) -> None:
        assert self._evaluator is not None
        result = await self._evaluator.run(label, on_progress=self.watch.progress)
        self.progress.measured(label, result)
        low, high = result.interval
        self._reporter.note(f"held-out accuracy, {label}: {result.accuracy:.3f} [{low:.3f}, {high:.3f}] at v{version}")

    def _evaluate(self, label: str, version: int) -> None:
        """Begin an evaluation; ``stop`` ends it."""
        task = self._spawn(self._measure(label, version))
        self._evaluations.add(task)
        task.add_done_callback(self._evaluations.discard)

    async def _evaluations_done(self) -> None:
        if self._evaluations:
            await asyncio.wait(self._evaluations)

    async def _finish(self) -> None:
        """The last checkpoint, and only then the last evaluation, which may take long; after a stop there is none."""
        if self.ledger.version > 0:
            await self._checkpoint(self._control_state())
        if not self._stop_reason and self._evaluator:
            self._evaluate("after", self.ledger.version)
            await self._evaluations_done()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._config.observe.heartbeat_s)
            await self.watch.beat()


def _first_failure(group: BaseExceptionGroup) -> BaseException:
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
