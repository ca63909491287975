"""An evaluation under way: engines up, all sets sampled side by side, every finished problem kept, results at the end.

What is asked for is ``evaluate``'s; how samples are made and judged is ``control.evaluator``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.dispatch import GENERATORS, VERIFIERS
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.lender import Lender
from fr3e_async.control.ports import TaskLost
from fr3e_async.errors import RunFailed, UserError, printable
from fr3e_async.evaluation.accuracy import Judgement
from fr3e_async.evaluation.scores import Scores, score
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.evaluation.table import scores_table
from fr3e_async.observe.evaluation_dir import EvaluationDir
from fr3e_async.signals import listen
from fr3e_async.wiring import Deployment, Model

PROGRESS_S = 15.0  # between lines that say how far it is
LABEL = "alone"


class Job:
    """``run`` once."""

    def __init__(
        self,
        config: Config,
        model: Model,
        sets: Sequence[TestSet],
        folder: EvaluationDir,
        facts: Mapping[str, Any],
        *,
        clock: Clock,
        started_at: float,
    ) -> None:
        """``clock``: of all durations; ``started_at``: by it. ``facts``: what results.json says besides the scores, with a mapping
        ``benchmarks`` by name. Raises ``StorageError``."""
        self._config, self._model, self._folder, self._facts = config, model, folder, facts
        self._sets, self._clock, self._started_at = list(sets), clock, started_at
        self._earlier = {name: row for name, row in folder.earlier().items() if name not in {one.name for one in sets}}
        self._known = {one.name: folder.finished(one.name, samples=one.samples) for one in self._sets}
        self._wanted = sum(len(one.problems) for one in self._sets)  # problems
        self._done = sum(prompt.uid in self._known[one.name] for one in self._sets for prompt in one.problems)
        self._told_at = clock()

    def say(self, text: str) -> None:
        """Print, unless the console is off."""
        if self._config.observe.console != "off":
            print(printable(text), flush=True)

    @property
    def missing(self) -> int:
        """Problems that are not finished."""
        return self._wanted - self._done

    async def run(self) -> int:
        """The exit code. Raises ``RunFailed``; what is finished is kept. A cluster must be connected if something is missing."""
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
        return f"the same command with out={self._folder.path} goes on"

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
        self.say(f"\n{scores_table({**earlier, **scores})}\n\nin percent with 95 % intervals; {self._folder.results}")

    async def _sample(self) -> None:
        """All that is missing. Raises ``RunFailed``."""

        def note(text: str, *_: object, **__: object) -> None:
            self.say(text)

        deployment = Deployment(self._config, self._model, self._folder, clock=self._clock, note=note)
        calling = asyncio.create_task(self._call_the_roll(deployment))
        try:
            try:
                await deployment.start_serving()
            finally:
                calling.cancel()
            self.say(f"engines are up after {self._clock() - self._started_at:.0f} s")
            evaluator = Evaluator(deployment.crew, (), self._sets)
            async with Lender(deployment.crew, note=self.say) as lender:
                self._expect_more(lender)
                await self._all_sets(evaluator, lender)
        finally:
            await deployment.close()

    async def _call_the_roll(self, deployment: Deployment) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            if missing := await deployment.missing():
                self.say(f"waiting for {self._clock() - self._started_at:.0f} s: {missing}")

    def _expect_more(self, lender: Lender) -> None:
        """The actors of elastic pools that the start does not wait for."""
        pools = ((GENERATORS, self._config.generators), (VERIFIERS, self._config.verifiers))
        for role, missing in ((role, pool.count - pool.least) for role, pool in pools):
            for _ in range(missing):
                lender.expect(role)

    async def _all_sets(self, evaluator: Evaluator, lender: Lender) -> None:
        async def one(test_set: TestSet) -> None:
            its = self._known[test_set.name]

            def keep(problem: str, samples: list[Judgement]) -> None:
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
