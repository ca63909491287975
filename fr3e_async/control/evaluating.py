"""When a run is evaluated, and where the figures go. ``evaluator`` samples and scores. Decides nothing about training.

before    ─► the engines keep the first weights until it is known
step <n>  ─► begins when weights of batch n, or of a later one, are live on all engines; training continues beside it
after     ─► the last thing that a finished run does
"""

import asyncio

from fr3e_async.control.context import RunContext
from fr3e_async.control.evaluator import Evaluator, Lend
from fr3e_async.control.ports import TaskLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.progress import Milestone
from fr3e_async.evaluation.suite import TestSet

SAMPLES = 8  # responses of an evaluation that are shown where people follow the run
BEFORE, AFTER = "before", "after"


class EvaluationSchedule:
    """Starts evaluations before, during and after training, and records their results."""

    def __init__(self, context: RunContext, evaluator: Evaluator | None, lend: Lend) -> None:
        """``lend``: how an evaluation gets workers; their rollouts share the engines with training."""
        self.evaluator, self._context, self._lend = evaluator, context, lend
        self._config, self._progress, self._reporter = context.config, context.progress, context.reporter
        self._running: set[asyncio.Task[None]] = set()
        self.labels: set[str] = set()  # of evaluations under way
        self._writing = asyncio.Lock()
        self.due = 0  # newest step whose evaluation waits for its weights
        self._marks = 0  # multiples of evaluation.every_tokens that were passed

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def stop(self) -> None:
        for task in self._running:
            task.cancel()

    # ---- when ----

    async def first(self, version: int) -> None:
        if self._config.evaluation.before and version == 0 and self._unmeasured(BEFORE):
            await self._measure(BEFORE, version)

    def resumed(self, version: int) -> None:
        """Restart evaluations that the last session had not finished, if the weights are still the same; drop the others."""
        for label, of in sorted(self._progress.pending.items(), key=lambda item: item[1]):
            if of != version:
                del self._progress.pending[label]
                text = f"evaluation {label!r} had not ended when the session before did, and its weights are gone"
                self._reporter.note(text, "evaluation_lost", version=of)
        for label in self._progress.pending:
            self._begin(label, version)
        self._passes_a_mark()
        self.trained(version)
        self.live(version)

    def trained(self, version: int) -> None:
        every, marked = self._config.evaluation.every, self._passes_a_mark()
        if version < self._config.run.steps and (marked or (every and version % every == 0)):
            self.due = version  # 0, the model as it was given: ``first`` measures that

    def _passes_a_mark(self) -> bool:
        every = self._config.evaluation.every_tokens
        before, self._marks = self._marks, self._progress.tokens_generated // every if every else 0
        return self._marks > before

    def live(self, version: int) -> None:
        """All engines in service have ``version``: what is evaluated now is sampled from it, or from later ones as they come."""
        if self.due and version >= self.due:
            label, late, self.due = f"step {self.due}", version > self.due, 0
            if self._unmeasured(label) and label not in self._progress.pending:
                if late and self._config.run.keep_best:
                    text = (
                        f"evaluation {label!r} samples from v{version}: run.keep_best keeps that checkpoint, if one is made of it"
                    )
                    self._reporter.note(text, "note", version=version)
                self._begin(label, version)

    def last(self, version: int) -> None:
        if self.evaluator is not None:
            self._begin(AFTER, version)

    # ---- what ----

    def _begin(self, label: str, version: int) -> None:
        if label != AFTER:  # the one after training is always repeated
            self._progress.pending[label] = version
        task = self._context.spawn(self._measure(label, version))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self._context.wake())

    def _unmeasured(self, label: str) -> list[TestSet]:
        sets = self.evaluator.sets if self.evaluator else ()
        return [one for one in sets if not self._progress.has(label, one.name)]

    async def _measure(self, label: str, version: int) -> None:
        at = self._progress.milestone(version, self._context.clock())
        self.labels.add(label)
        try:
            await asyncio.gather(*(self._measure_set(one, label, at) for one in self._unmeasured(label)))
        finally:
            self.labels.discard(label)
        self._progress.pending.pop(label, None)

    async def _measure_set(self, test_set: TestSet, label: str, at: Milestone) -> None:
        assert self.evaluator is not None
        if not test_set.problems:
            text = f"{test_set.title}: no problem is left of it (data.max_prompt, data.on_long_prompt); it is not evaluated"
            self._reporter.note(text, "evaluation_lost", version=at.version)
            return
        try:
            found = await self.evaluator.measure(
                test_set,
                label,
                lend=self._lend,
                on_progress=self._context.moved,
                trains=label not in (BEFORE, AFTER),
                clock=self._context.clock,
            )
        except TaskLost as error:  # training continues without it
            text = f"evaluation {label!r}, {test_set.title}, failed: {error}"
            self._reporter.note(text, "evaluation_lost", version=at.version)
            return
        record = self._progress.evaluated(found, at=at)
        self._reporter.evaluations(self._progress.benchmarks)
        if keep := self._config.evaluation.results_mib:
            async with self._writing:  # not in the loop: tens of thousands of samples are megabytes
                await run_in_daemon_thread(lambda: self._reporter.problems(f"{label}-{test_set.name}", found.rows, keep_mib=keep))
        if samples := found.samples(test_set.problems, SAMPLES):
            self._reporter.samples(test_set.name, samples, version=at.version)
        versions = (found.scores.oldest_version, found.scores.newest_version)
        of = f"v{at.version}" if versions == (at.version, at.version) else f"v{versions[0]} to v{versions[1]}"
        self._reporter.note(f"{test_set.title}, {found} ({of})", "evaluation", version=at.version, measured=record)
        if self._config.run.keep_best and self._progress.best_version == at.version:
            await run_in_daemon_thread(lambda: self._context.files.checkpoints.keep_best(at.version))
