"""What the benchmarks of the whole system share: a stage that outlives its runs, and ports that stand for others.

A stage is Ray with the toy's engines and verifier, started once. Runs follow each other on it as a run goes on after the loss of
its learner: a new learner, a new control loop, a run directory of its own, and engines that are given the first weights again.
Settings of the engines themselves are those of the stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil

from fr3e_async.algorithm.anchors import AnchorRule, anchors_of_row
from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.control.controller import Controller
from fr3e_async.control.crew import ENGINES, Crew, Worker
from fr3e_async.control.dispatch import GENERATORS, VERIFIERS
from fr3e_async.control.evaluator import Evaluator, pick_problems
from fr3e_async.control.ports import Delivery, LearnerPort, Payload, PayloadStore
from fr3e_async.control.progress import Progress
from fr3e_async.control.side import on_the_side
from fr3e_async.data.model import end_tokens, load_tokenizer, resolve_model
from fr3e_async.data.pieces import speller
from fr3e_async.data.prompts import load_datasets
from fr3e_async.ending import summary_of
from fr3e_async.errors import RunFailed
from fr3e_async.loader import LoadedConfig, load_config
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.observe.logs import quiet_environment
from fr3e_async.observe.recorder import Recorder
from fr3e_async.observe.run_dir import RunDir
from fr3e_async.rollout import EngineSpec
from fr3e_async.session import Session
from fr3e_async.types import Anchor, StepReport, WeightBundle
from fr3e_async.wiring import Deployment, Model, connect, disconnect

os.environ.update(quiet_environment(verbose=False))

ENDLESS = "run.steps=1000000"
Rows = list[dict[str, Any]]  # of metrics.jsonl


def toy(*overrides: str, config: str = "toy") -> LoadedConfig:
    return load_config([f"config={config}", "observe.console=off", *overrides])


# ---- rates ----


def pace(rows: Rows, *, first: int, last: int) -> dict[str, float]:
    """Batches and generated tokens a second from the end of step ``first`` to that of step ``last``."""
    at = {row["step"]: row["time_s"] for row in rows}
    seconds = at[last] - at[first]
    tokens = sum(row["tokens/generated"] for row in rows if first < row["step"] <= last)
    return {"batches_per_s": (last - first) / seconds, "tokens_per_s": tokens / seconds}


def cpu_s(*, ended: bool = False) -> float:
    """CPU time of this process and all that it has started and that still run; with ``ended`` also of those that do not."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended: its parent has its time
            times = process.cpu_times()
            total += times.user + times.system + (times.children_user + times.children_system if ended else 0.0)
    return total


# ---- the stage ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a run on the stage."""

    rows: Rows
    summary: dict[str, Any]  # of summary.json, as far as the run went
    failure: str  # why it failed; "" if it did not
    folder: Path  # its run directory
    batch_cpu_s: float  # CPU time of all processes, a batch; 0 if the run was not stopped
    cores: float  # that they kept busy


class Stage:
    """See the module's docstring. Use ``open_stage``."""

    def __init__(self, overrides: Sequence[str], folder: Path, config: str = "toy") -> None:
        self._overrides, self._folder, self._base = tuple(overrides), folder, config
        loaded = toy(*overrides, config=config)
        config = loaded.config
        tokenizer = load_tokenizer(config)
        self._spell = speller(tokenizer)
        self._datasets = load_datasets(config, tokenizer)
        self._model = Model(path=str(resolve_model(config)), end_token_ids=end_tokens(config, tokenizer))
        self._home = RunDir.open(folder / "stage", config=config, config_yaml=loaded.yaml)
        self._deployment = Deployment(config, self._model, self._home, clock=time.time)
        self._runs = 0
        self._config = config

    async def start(self) -> None:
        await self._deployment.start(resume_from=None)
        self._workers: list[tuple[str, Worker]] = self._of(self._deployment.crew)
        self._learner: LearnerPort = self._deployment.crew.learner

    @property
    def spec(self) -> EngineSpec:
        """That of the stage's generators."""
        return self._deployment._engine_spec(self._config.generators, seed=1)

    async def first_weights(self) -> WeightBundle:
        """The model as it was given. Its buckets outlive the learner."""
        return await self._learner.export(0)

    async def play(
        self,
        *overrides: str,
        batches: int = 0,
        learner: LearnerPort | None = None,
        around_learner: Callable[[LearnerPort], Any] = lambda port: port,
        around_engine: Callable[[Worker], Any] = lambda port: port,
        engines: int = 0,
        flat: bool = False,
        ruled: bool = False,
        evaluate: bool = False,
        before: float | None = 0.0,
    ) -> Played:
        """One run. ``batches``: stopped after so many, with all of its engines still at work; 0: to its end.

        ``learner``: instead of a real one. ``around_*``: put around ports. ``engines``: use so many only, 0: all.
        ``flat``: all engines are generators, for a strategy that does not branch. ``ruled``: anchors are picked by this run's rule
        and not by that of the stage, which its engines were started with. ``before``: the first accuracy, which is not measured then.

        A run that fails (a step that was refused) is told in ``Played.failure``; with ``evaluate`` its accuracy is that of the
        weights which the engines had last.
        """
        own = (*([ENDLESS] if batches else []), *(["evaluation.before=false"] if before is not None else []))
        loaded = toy(*self._overrides, *overrides, *own, config=self._base)
        config = loaded.config
        rule = make_strategy(config.algorithm).plan.rule
        if rule not in (None, make_strategy(self._config.algorithm).plan.rule) and not ruled:
            raise ValueError(f"the stage's engines pick anchors by another rule than {rule}; play it with ruled=True")
        self._runs += 1
        run_dir = RunDir.open(self._folder / f"run-{self._runs}", config=config, config_yaml=loaded.yaml)
        deployment = Deployment(config, self._model, run_dir, clock=time.time)
        payloads = self._deployment.crew.payloads
        if rule is not None and ruled:
            around_engine = partial(Ruled, rule=rule, seed=config.run.seed, payloads=payloads)
        crew = deployment.crew = Crew(
            config=config,
            learner=self._learner,
            payloads=payloads,
            start=self._deployment.start_worker,
            workers=[
                (role, worker if role == VERIFIERS else around_engine(worker)) for role, worker in self._cast(engines, flat)
            ],
        )
        if learner is None:
            await deployment.restart_learner(resume_from=None)
            self._learner = crew.learner
        crew.learner = around_learner(learner or self._learner)
        until = Until(crew.learner, batches)
        if batches:
            crew.learner = until
        mode, screen = make_console("off")
        view = ConsoleView(mode=mode, console=screen, name=config.run.name, steps=config.run.steps)
        recorder = Recorder(run_dir, config=config.observe, view=view, clock=time.time)
        datasets = self._datasets if evaluate else replace(self._datasets, heldout=())
        session = Session(config, self._model, datasets, run_dir, resume_from=None, started_at=time.time(), spell=self._spell)
        failure = ""
        try:
            controller = await session._controller(deployment, recorder, None, 1)
            if controller.progress.accuracy_before is None:
                controller.progress.accuracy_before = before
            if isinstance(crew.learner, Directed):
                crew.learner.controller = controller
            try:
                await controller.run()
            except RunFailed as error:
                failure = str(error) or type(error).__name__
                controller.progress.utilisation = controller.watch.utilisation()
                if evaluate:
                    at = controller.progress.milestone(controller.machine.ledger.version, time.time())
                    controller.progress.measured("after", await self._accuracy(crew), at=at)
            summary = json.loads(
                summary_of(controller, name="benchmark", reason=failure or "finished", now=time.time()).to_json()
            )
        finally:
            recorder.close()
            run_dir.close()
        if not engines and not flat:
            self._workers = [(role, getattr(worker, "inner", worker)) for role, worker in self._of(crew)]
        rows = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
        return Played(
            rows=rows, summary=summary, failure=failure, folder=run_dir.path, batch_cpu_s=until.batch_cpu_s, cores=until.cores
        )

    async def accuracy(self, *overrides: str) -> dict[str, Any]:
        """The record of an evaluation of what the engines hold: of the first weights, before anything is played."""
        config = toy(*self._overrides, *overrides, config=self._base).config
        deployed = self._deployment
        crew = Crew(
            config=config,
            learner=self._learner,
            payloads=deployed.crew.payloads,
            start=deployed.start_worker,
            workers=self._workers,
        )
        progress = Progress(began_at=time.time())
        progress.measured("before", await self._accuracy(crew), at=progress.milestone(0, time.time()))
        return progress.evaluations[0]

    async def _accuracy(self, crew: Crew) -> Any:
        @contextlib.asynccontextmanager
        async def lend(role: str, weight: int, *, priority: int) -> AsyncIterator[str]:
            yield crew.names(role)[0]

        problems = pick_problems(self._datasets.heldout, crew.config)
        return await Evaluator(crew, problems).run("after", lend=lend, on_progress=lambda: None)

    def _cast(self, engines: int, flat: bool) -> list[tuple[str, Worker]]:
        playing = [(GENERATORS if flat else role, worker) for role, worker in self._workers if role in ENGINES]
        return [*playing[: engines or None], *(entry for entry in self._workers if entry[0] == VERIFIERS)]

    @staticmethod
    def _of(crew: Crew) -> list[tuple[str, Worker]]:
        return [(crew.role(worker.name), worker) for worker in crew.workers()]

    async def close(self) -> None:
        for _, worker in self._workers:
            await worker.close()
        await self._learner.close()
        self._home.close()


@contextlib.contextmanager
def cluster(config: Any) -> Iterator[None]:
    """A Ray of our own. Outside of any event loop."""
    connect(config)
    try:
        yield
    finally:
        disconnect()


@contextlib.asynccontextmanager
async def open_stage(overrides: Sequence[str], folder: Path, config: str = "toy") -> AsyncIterator[Stage]:
    """A stage in its folder, within ``cluster``; run directories lie there, too."""
    stage = Stage(overrides, folder, config)
    await stage.start()
    try:
        yield stage
    finally:
        await stage.close()


# ---- parts that stand for others ----


class NoLearner:
    """Port ``LearnerPort``: every batch is trained at once, and the weights stay as they are under each new version."""

    def __init__(self, weights: WeightBundle) -> None:
        self._weights, self._steps = weights, 0

    async def train(self, rows: Sequence[Any], *, version: int) -> StepReport:
        self._steps += 1
        return StepReport(version=version, tokens=0, optimiser_steps=0, metrics={}, time_s=0.0)

    async def export(self, version: int) -> WeightBundle:
        return replace(self._weights, manifest=replace(self._weights.manifest, version=version), sent_bytes=0)

    async def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def waits(self) -> bool:
        return False

    async def pulse(self) -> int:
        return self._steps

    async def stacks(self, limit_s: float) -> list[str]:
        return []


class Ruled:
    """An engine whose anchors are picked here, by another rule than the one it was started with."""

    def __init__(self, inner: Any, *, rule: AnchorRule, seed: int, payloads: PayloadStore) -> None:
        self.inner, self._rule, self._seed, self._payloads = inner, rule, seed, payloads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def sample(self, prompts: Any, ids: Any, draw: Any, *, trunk: bool) -> tuple[Delivery, Payload]:
        delivery, payload = await self.inner.sample(prompts, ids, draw, trunk=trunk)
        return (replace(delivery, anchors=await on_the_side(lambda: self._anchors(payload))) if trunk else delivery), payload

    def _anchors(self, payload: Payload) -> tuple[Anchor, ...]:
        """As ``Roller.anchors`` in the engine's process."""
        batch = self._payloads.get(payload)
        rows = (anchors_of_row(self._rule, batch.completion(row), batch, row, seed=self._seed) for row in range(len(batch)))
        return tuple(anchor for anchors in rows for anchor in anchors)


class Directed:
    """A learner that something is done about. The stage tells it of its run's controller."""

    controller: Controller

    def __init__(self, inner: LearnerPort) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Until(Directed):
    """Stops the run after some batches. Until then more groups are admitted: none of its rates is that of a run that ends.

    CPU time is that between the ends of batch ``FIRST`` and the last one.
    """

    FIRST = 2

    def __init__(self, inner: LearnerPort, batches: int) -> None:
        super().__init__(inner)
        self._batches = batches
        self.batch_cpu_s = self.cores = 0.0

    async def train(self, rows: Sequence[Any], *, version: int) -> StepReport:
        report = await self.inner.train(rows, version=version)
        if version == self.FIRST:
            self._from = (time.time(), cpu_s())
        if version == self._batches:
            self.controller.stop(f"{version} batches")
            if version > self.FIRST:
                seconds, spent = time.time() - self._from[0], cpu_s() - self._from[1]
                self.batch_cpu_s, self.cores = spent / (version - self.FIRST), spent / seconds
        return report


class RunAhead(Directed):
    """A learner that begins a batch only when the engines have made all that ``flow.max_staleness`` lets them make.

    So every batch is as old as the bound allows: batch v is of version max(0, v - 1 - bound).
    """

    LOOK_S = 0.01

    async def train(self, rows: Sequence[Any], *, version: int) -> StepReport:
        while not self._nothing_to_make(version - 1):
            await asyncio.sleep(self.LOOK_S)
        return await self.inner.train(rows, version=version)

    def _nothing_to_make(self, newest: int) -> bool:
        machine = self.controller.machine
        desk = machine.desk
        return machine.ledger.live >= newest and not any(desk.queued(role) or desk.in_flight(role) for role in desk.roles)
