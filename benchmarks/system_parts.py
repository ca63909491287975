"""What the benchmarks of the whole system share: a stage that outlives its runs.

A stage is Ray with the toy's engines and verifier, started once. Runs follow each other on it as a run continues after the loss of
its learner: a new learner, a new control loop, a run directory of its own, and engines that are given the first weights again.
Settings of the engines themselves are those of the stage.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from stand_ins import Directed, Ruled, Until

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.clock import RunClock
from fr3e_async.config import Config
from fr3e_async.control.evaluator import Evaluator, pick_problems
from fr3e_async.control.ports import EngineWorker, LearnerPort
from fr3e_async.control.progress import Progress
from fr3e_async.control.workers import ENGINES, Worker, Workers
from fr3e_async.data.model import load_tokenizer, resolve_model
from fr3e_async.data.prompts import load_datasets
from fr3e_async.data.tokenizer import end_tokens, speller
from fr3e_async.errors import RunFailed
from fr3e_async.evaluation.accuracy import evaluate
from fr3e_async.files.process_logs import quiet_environment
from fr3e_async.machine.dispatch import GENERATORS, VERIFIERS
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.observe.recorder import Recorder
from fr3e_async.rollout import EngineSpec
from fr3e_async.run.session import Session
from fr3e_async.run.stop import summary_of
from fr3e_async.settings.loader import LoadedConfig, load_config
from fr3e_async.store.run_dir import RunDir
from fr3e_async.weights.manifest import WeightBundle
from fr3e_async.wiring import Deployment, PolicyFiles, connect, disconnect, engine_spec

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
        self.overrides, self._folder, self.base, self._clock = tuple(overrides), folder, config, RunClock()
        loaded = toy(*overrides, config=config)
        self.config = loaded.config
        tokenizer = load_tokenizer(self.config)
        self._spell = speller(tokenizer)
        self._datasets = load_datasets(self.config, tokenizer)
        self._model = PolicyFiles(path=str(resolve_model(self.config)), end_token_ids=end_tokens(self.config, tokenizer))
        self._home = RunDir.open(folder / "stage", config=self.config, config_yaml=loaded.yaml)
        self._deployment = Deployment(self.config, self._model, self._home, clock=self._clock)
        self._runs = 0

    async def start(self) -> None:
        await self._deployment.start(resume_from=None)
        self._actors: list[tuple[str, Worker]] = self._of(self._deployment.workers)
        self._learner: LearnerPort = self._deployment.workers.learner

    @property
    def spec(self) -> EngineSpec:
        """That of the stage's generators."""
        return engine_spec(self.config, self._model, self.config.generators, seed=1)

    async def first_weights(self) -> WeightBundle:
        """The model as it was given. Its buckets outlive the learner."""
        return await self._learner.export(0)

    async def play(
        self,
        *overrides: str,
        batches: int = 0,
        learner: LearnerPort | None = None,
        around_learner: Callable[[LearnerPort], LearnerPort] = lambda port: port,
        around_engine: Callable[[EngineWorker], EngineWorker] = lambda port: port,
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
        loaded = self._settings(overrides, batches=batches, measured=before is not None)
        config, rule = loaded.config, make_strategy(loaded.config.algorithm).plan.rule
        if rule not in (None, make_strategy(self.config.algorithm).plan.rule) and not ruled:
            raise ValueError(f"the stage's engines pick anchors by another rule than {rule}; play it with ruled=True")
        if rule is not None and ruled:
            around_engine = partial(Ruled, rule=rule, seed=config.run.seed, payloads=self._deployment.workers.payloads)
        self._runs += 1
        run_dir = RunDir.open(self._folder / f"run-{self._runs}", config=config, config_yaml=loaded.yaml)
        deployment = Deployment(config, self._model, run_dir, clock=self._clock)
        playing = self._cast(engines, flat)
        workers = deployment.workers = self._workers(
            config,
            [(role, worker if role == VERIFIERS else around_engine(cast(EngineWorker, worker))) for role, worker in playing],
        )
        if learner is None:
            await deployment.restart_learner(resume_from=None)
            self._learner = workers.learner
        workers.learner = around_learner(learner or self._learner)
        until = Until(workers.learner, batches)
        if batches:
            workers.learner = until
        summary, failure = await self._run(config, deployment, run_dir, evaluate=evaluate, before=before)
        if not engines and not flat:
            self._actors = [(role, getattr(worker, "inner", worker)) for role, worker in self._of(workers)]
        rows = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
        return Played(
            rows=rows, summary=summary, failure=failure, folder=run_dir.path, batch_cpu_s=until.batch_cpu_s, cores=until.cores
        )

    def _settings(self, overrides: Sequence[str], *, batches: int, measured: bool) -> LoadedConfig:
        own = (*([ENDLESS] if batches else []), *(["evaluation.before=false"] if measured else []))
        # Rollouts that are played again were made by other weights than those of their version number.
        return toy(*self.overrides, "learner.stop_above_mismatch=0", *overrides, *own, config=self.base)

    async def _run(
        self, config: Config, deployment: Deployment, run_dir: RunDir, *, evaluate: bool, before: float | None
    ) -> tuple[dict[str, Any], str]:
        """From the first group to the end of the run: its summary, and why it failed."""
        datasets = self._datasets if evaluate else replace(self._datasets, heldout=())
        session = Session(
            config,
            self._model,
            datasets,
            run_dir,
            resume_from=None,
            clock=self._clock,
            started_at=self._clock(),
            spell=self._spell,
        )
        failure = ""
        with recording(config, run_dir, self._clock) as recorder:
            controller = await session.controller(deployment, recorder, None, 1)
            if controller.progress.accuracy_before is None:
                controller.progress.accuracy_before = before
            if isinstance(learner := deployment.workers.learner, Directed):
                learner.controller = controller
            try:
                await controller.run()
            except RunFailed as error:
                failure = str(error) or type(error).__name__
                controller.progress.utilisation = controller.watch.utilisation()
                if evaluate:
                    at = controller.progress.milestone(controller.machine.ledger.version, self._clock())
                    controller.progress.measured("after", await self._accuracy(deployment.workers), at=at)
            told = summary_of(controller, name="benchmark", reason=failure or "finished", now=self._clock())
            return json.loads(told.to_json()), failure

    async def accuracy(self, *overrides: str) -> dict[str, Any]:
        """The record of an evaluation of what the engines hold: of the first weights, before anything is played."""
        config = toy(*self.overrides, *overrides, config=self.base).config
        workers = self._workers(config, self._actors)
        progress = Progress(began_at=self._clock())
        progress.measured("before", await self._accuracy(workers), at=progress.milestone(0, self._clock()))
        return progress.evaluations[0]

    async def _accuracy(self, workers: Workers) -> Any:
        @contextlib.asynccontextmanager
        async def lend(role: str, weight: int, *, priority: int) -> AsyncIterator[str]:
            yield workers.names(role)[0]

        problems = pick_problems(self._datasets.heldout, workers.config)
        evaluator = Evaluator(workers, problems)
        samples = await evaluator.sample(evaluator.sets[0], "after", lend=lend, on_progress=lambda: None)
        return evaluate(samples, workers.config.reward_range)

    def _workers(self, config: Config, workers: Sequence[tuple[str, Worker]]) -> Workers:
        deployed = self._deployment
        return Workers(
            config=config, learner=self._learner, payloads=deployed.workers.payloads, start=deployed.start_worker, workers=workers
        )

    def _cast(self, engines: int, flat: bool) -> list[tuple[str, Worker]]:
        playing = [(GENERATORS if flat else role, worker) for role, worker in self._actors if role in ENGINES]
        return [*playing[: engines or None], *(entry for entry in self._actors if entry[0] == VERIFIERS)]

    @staticmethod
    def _of(workers: Workers) -> list[tuple[str, Worker]]:
        return [(workers.role(worker.name), worker) for worker in workers.workers()]

    async def close(self) -> None:
        for _, worker in self._actors:
            await worker.close()
        await self._learner.close()
        self._home.close()


@contextlib.contextmanager
def recording(config: Config, run_dir: RunDir, clock: RunClock) -> Iterator[Recorder]:
    """The records of one run, without a console. Its directory is given back with them."""
    mode, screen = make_console("off")
    view = ConsoleView(mode=mode, console=screen, name=config.run.name, steps=config.run.steps)
    recorder = Recorder(run_dir, config=config.observe, view=view, clock=clock)
    try:
        yield recorder
    finally:
        recorder.close()
        run_dir.close()


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
