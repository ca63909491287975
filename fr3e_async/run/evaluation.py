"""An evaluation without training: start engines, sample all sets side by side, keep every finished problem, write the results.

``run.benchmarking`` checks the request; ``control.evaluator`` makes and judges samples.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.ports import TaskLost, WorkerLost
from fr3e_async.control.workers import Workers
from fr3e_async.errors import RunFailed, UserError
from fr3e_async.evaluation.accuracy import ScoredSample
from fr3e_async.evaluation.scores import Scores, score, scores_table
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.machine.dispatch import GENERATORS, VERIFIERS
from fr3e_async.observe.console import say
from fr3e_async.signals import listen
from fr3e_async.store.evaluation_dir import EvaluationDir
from fr3e_async.wiring import Deployment, PolicyFiles

PROGRESS_S = 15.0  # between lines that say how far it is
LABEL = "alone"


class EvaluationJob:
    """Samples and scores the benchmarks of one model outside training. Call ``run`` once per object."""

    def __init__(
        self,
        config: Config,
        model: PolicyFiles,
        sets: Sequence[TestSet],
        folder: EvaluationDir,
        facts: Mapping[str, Any],
        *,
        clock: Clock,
        started_at: float,
    ) -> None:
        """Read what earlier calls have finished in ``folder``. Raises ``StorageError``.

        ``facts``: what results.json says besides the scores, with a mapping ``benchmarks`` by name. ``clock``: of all durations;
        ``started_at``: when the program began, by this clock.
        """
        self._config, self._model, self._folder, self._facts = config, model, folder, facts
        self._sets, self._clock, self._started_at = list(sets), clock, started_at
        self._earlier = {name: row for name, row in folder.earlier().items() if name not in {one.name for one in sets}}
        self._known = {one.name: folder.finished(one.name, samples=one.samples) for one in self._sets}
        self._wanted = sum(len(one.problems) for one in self._sets)  # problems
        self._done = sum(prompt.uid in self._known[one.name] for one in self._sets for prompt in one.problems)
        self._told_at = clock()
        self.say = say(config)

    @property
    def missing(self) -> int:
        """Count the problems that have no results yet."""
        return self._wanted - self._done

    async def run(self) -> int:
        """Sample what is missing and write the results; the exit code: 0, or 130 after a signal.

        Needs a connected cluster if something is missing. Raises ``RunFailed``. Finished problems are kept in any case.
        """
        work = asyncio.create_task(self._run())
        stopped: list[str] = []

        def stop(name: str) -> None:
            stopped.append(name)
            work.cancel()

        listen(stop)
        try:
            await work
        except asyncio.CancelledError:
            if not stopped:
                raise
            self.say(f"stopped by {stopped[0]}: {self._done} of {self._wanted} problems are finished and kept; {self._again}")
            return 130
        except (RunFailed, UserError) as error:  # a full disk is no bad input any more
            raise RunFailed(f"{error}; finished problems are kept, {self._again}") from error
        return 0

    @property
    def _again(self) -> str:
        return f"the same command with out={self._folder.path} resumes it"

    async def _run(self) -> None:
        self.say(f"results go to {self._folder.path}" + (f"; {self._done} problems are there already" if self._done else ""))
        if self.missing:
            await self._sample()
        scores = {
            one.name: score([j for prompt in one.problems for j in self._known[one.name][prompt.uid]], self._config.reward_range)
            for one in self._sets
            if one.problems
        }
        self._write(scores)
        earlier = {name: Scores.from_record(row) for name, row in self._earlier.items()}
        self.say(
            f"\n{scores_table({**earlier, **scores})}\n\nin percent (a reward as it is), with 95 % intervals; {self._folder.results}"
        )

    async def _sample(self) -> None:
        """Start engines and verifiers, and sample all problems that are missing. Raises ``RunFailed``."""

        def note(text: str, *_: object, **__: object) -> None:
            self.say(text)

        deployment = Deployment(self._config, self._model, self._folder, clock=self._clock, note=note)
        waiting = asyncio.create_task(self._tell_who_is_missing(deployment))
        try:
            try:
                await deployment.start_serving()
            finally:
                waiting.cancel()
            self.say(f"engines are up after {self._clock() - self._started_at:.0f} s")
            evaluator = Evaluator(deployment.workers, (), self._sets)
            async with Lender(deployment.workers, note=self.say) as lender:
                self._expect_more(lender)
                await self._all_sets(evaluator, lender)
        finally:
            await deployment.close()

    async def _tell_who_is_missing(self, deployment: Deployment) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            if missing := await deployment.missing():
                self.say(f"waiting for {self._clock() - self._started_at:.0f} s: {missing}")

    def _expect_more(self, lender: Lender) -> None:
        """Start the actors of elastic pools that ``start_serving`` does not wait for."""
        pools = ((GENERATORS, self._config.generators), (VERIFIERS, self._config.verifiers))
        for role, missing in ((role, pool.count - pool.least) for role, pool in pools):
            for _ in range(missing):
                lender.expect(role)

    async def _all_sets(self, evaluator: Evaluator, lender: Lender) -> None:
        async def one(test_set: TestSet) -> None:
            its = self._known[test_set.name]

            def keep(problem: str, samples: list[ScoredSample]) -> None:
                self._folder.keep(test_set.name, problem, samples)
                its[problem] = samples
                self._progress()

            await evaluator.sample(test_set, LABEL, lend=lender.lend, known=frozenset(its), on_problem=keep)

        try:
            async with asyncio.TaskGroup() as tasks:
                for test_set in self._sets:
                    tasks.create_task(one(test_set))
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            if isinstance(first, TaskLost):
                raise RunFailed(str(first)) from group
            raise first from group

    def _progress(self) -> None:
        self._done += 1
        now = self._clock()
        if now - self._told_at >= PROGRESS_S:
            self._told_at = now
            self.say(f"{self._done} of {self._wanted} problems, {self._clock() - self._started_at:.0f} s")

    def _write(self, scores: Mapping[str, Scores]) -> None:
        rows = {name: {**self._facts["benchmarks"].get(name, {}), **its.record()} for name, its in scores.items()}
        took = round(self._clock() - self._started_at, 3)
        self._folder.write_results({**self._facts, "wall_s": took, "benchmarks": {**self._earlier, **rows}})


# ---- Workers of an evaluation without training; beside training the machine hands them out (``executor.lend``) ----


class Lender:
    """Lends the worker with most room, and replaces workers that die. A context manager: leaving it ends what still starts.

    ``lend`` is an ``evaluator.Lend``.
    """

    def __init__(self, workers: Workers, *, note: Callable[[str], None]) -> None:
        """``note`` is called with a line for each worker that is lost or joins."""
        self._workers, self._note = workers, note
        self._load: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._starting: set[asyncio.Task[None]] = set()
        self._coming: Counter[str] = Counter()  # workers that are being started, by role
        self._deaths: dict[str, int] = {}  # in a row, by role
        self._failure = ""

    async def __aenter__(self) -> Lender:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def expect(self, role: str) -> None:
        """Start one more worker of the role; it joins when it is up."""
        self._begin(role, delay_s=0.0)

    def _begin(self, role: str, *, delay_s: float) -> None:
        self._coming[role] += 1
        task = asyncio.get_running_loop().create_task(self._start(role, delay_s=delay_s))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    @asynccontextmanager
    async def lend(self, role: str, weight: int, *, priority: int) -> AsyncIterator[str]:
        """Wait for a worker with room for ``weight`` rollouts and hold that room until the block ends; the worker's name.

        Raises ``RunFailed`` when workers of the role have died too often (pools.max_deaths_in_a_row).
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or self._pick(role, weight))
            if self._failure:
                raise RunFailed(self._failure)
            name = self._pick(role, weight)
            self._load[name] = self._load.get(name, 0) + weight
        try:
            yield name
            self._deaths[role] = 0
        except TaskLost as error:
            if error.dead:
                await self._bury(role, error)
            raise
        finally:
            self._load[name] -= weight
            async with self._changed:
                self._changed.notify_all()

    def _pick(self, role: str, weight: int) -> str:
        """The least loaded worker if it has room, else "". An idle worker has room for any weight."""
        names = self._workers.names(role)
        if not names:
            return ""
        name = min(names, key=lambda one: self._load.get(one, 0))
        load = self._load.get(name, 0)
        room = self._workers.config.generators.rollouts_in_flight
        return name if role != GENERATORS or not load or load + weight <= room else ""

    async def _bury(self, role: str, error: TaskLost) -> None:
        """Remove a dead worker and start another; only the first call for one death does something."""
        old = self._workers.remove(error.dead)
        if old is None:
            return
        self._note(f"{error.dead} is lost: {error}")
        await old.close()
        pools, deaths = self._workers.config.pools, self._deaths.get(role, 0) + 1
        self._deaths[role] = deaths
        if deaths > pools.max_deaths_in_a_row:
            await self._fail(f"{deaths} of {role} died in a row (pools.max_deaths_in_a_row); the last one: {error}")
            return
        self._begin(role, delay_s=pools.replace_backoff_s * 2 ** (deaths - 1))

    async def _start(self, role: str, *, delay_s: float) -> None:
        """Start a worker and let it join. Retry with a growing delay, pools.max_deaths_in_a_row times: a dead one's memory may not be free yet."""
        pools, why = self._workers.config.pools, ""
        for attempt in range(pools.max_deaths_in_a_row):
            await asyncio.sleep(delay_s)
            try:
                worker = await self._workers.start(role)
                break
            except (WorkerLost, TimeoutError, RunFailed) as error:
                why, delay_s = str(error), pools.replace_backoff_s * 2 ** min(attempt, 30)
                self._note(f"a new one of {role} did not start: {why}")
        else:
            self._coming[role] -= 1
            if not self._workers.names(role) and not self._coming[role]:
                await self._fail(f"no worker of {role} is left, and a new one did not start: {why}")
            return
        self._coming[role] -= 1
        self._workers.add(role, worker)
        self._note(f"{worker.name} has joined")
        async with self._changed:
            self._changed.notify_all()

    async def _fail(self, why: str) -> None:
        self._failure = why
        async with self._changed:
            self._changed.notify_all()
