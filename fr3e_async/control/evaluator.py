"""Accuracy on held-out problems and benchmarks, on the engines that serve training, without a barrier."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import NamedTuple, Protocol

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.ports import TaskLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.workers import Workers
from fr3e_async.evaluation.accuracy import ScoredSample
from fr3e_async.evaluation.scores import Evaluated, score
from fr3e_async.evaluation.suite import HELDOUT, TestSet, heldout_set, pick
from fr3e_async.machine.dispatch import GENERATORS, VERIFIERS
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Draw, Finish, Prompt, RolloutId

ROLLOUTS_PER_TASK = 64  # at most: large enough to keep calls few, small enough to spread over engines,
PARTS_OF_AN_ENGINE = 4  # and small beside what an engine is given: one that waits for room holds up what comes after it
AHEAD = 1024  # samples of a held-out set that goes ahead of training as a whole: it is over soon, and its versions stay close
EVALUATION_PRIORITY = -1  # before training work: an evaluation is short, and its versions should not spread


class Lend(Protocol):
    """Gives the name of a worker of a role, with room for ``weight`` rollouts, for as long as the block lasts."""

    def __call__(self, role: str, weight: int, *, priority: int) -> AbstractAsyncContextManager[str]: ...


class WantedSample(NamedTuple):
    """One sample to draw: the problem, and the id whose ``branch`` numbers its samples."""

    problem: Prompt
    id: RolloutId


OnProblem = Callable[[str, list[ScoredSample]], None]  # problem id and all its samples, in order


def pick_problems(heldout: Sequence[Prompt], config: Config) -> list[Prompt]:
    """The same ``evaluation.problems`` held-out problems at every evaluation of a run (0: all of them)."""
    return pick(heldout, config.evaluation.problems, seed=config.run.seed)


class Evaluator:
    """Samples every problem of a test set as often as the set says, and has verifiers score the answers."""

    def __init__(self, workers: Workers, problems: Sequence[Prompt], suite: Sequence[TestSet] = ()) -> None:
        """``problems``: held-out ones, sampled ``evaluation.samples`` times; without any there is no set of them."""
        self._workers = workers
        heldout = [heldout_set(problems, samples=workers.config.evaluation.samples)] if problems else []
        self.sets = (*heldout, *suite)
        self._gate = Gate(self._room)

    async def measure(
        self, test_set: TestSet, label: str, *, lend: Lend, on_progress: Callable[[], None], trains: bool, clock: Clock
    ) -> Evaluated:
        """A set with its scores. ``trains``: all that is evaluated then leaves room to training, but for a held-out set of few
        samples. Raises ``TaskLost`` as ``sample`` does."""
        started = clock()
        ahead = test_set.name == HELDOUT and len(test_set.problems) * test_set.samples <= AHEAD
        judgements = await self.sample(test_set, label, lend=lend, on_progress=on_progress, gated=trains and not ahead)
        rewards = self._workers.config.reward_range
        scores = await run_in_daemon_thread(lambda: score(judgements, rewards))
        return Evaluated(
            label=label,
            name=test_set.name,
            digest=test_set.digest,
            judgements=judgements,
            scores=scores,
            took_s=clock() - started,
            rewards=rewards,
        )

    async def sample(
        self,
        test_set: TestSet,
        label: str,
        *,
        lend: Lend,
        on_progress: Callable[[], None] = lambda: None,
        gated: bool = False,
        known: Collection[str] = (),
        on_problem: OnProblem = lambda problem, samples: None,
    ) -> list[ScoredSample]:
        """All samples of a set's problems but for the ``known`` ones, in order.

        ``on_progress`` is called for every part that is done, ``on_problem`` for every problem. ``gated``: no more than
        ``evaluation.share`` of the generators' room is taken, by all that is gated together. Raises ``TaskLost`` if a part of it
        was lost ``flow.max_attempts`` times; nothing more is sampled then.
        """
        work = [
            WantedSample(problem, RolloutId(f"{label}:{problem.uid}", 0, k))
            for problem in test_set.problems
            if problem.uid not in known
            for k in range(test_set.samples)
        ]
        size = max(1, min(ROLLOUTS_PER_TASK, self._workers.config.generators.rollouts_in_flight // PARTS_OF_AN_ENGINE))
        parts = [work[i : i + size] for i in range(0, len(work), size)]
        gathered = _ByProblem(test_set.samples, on_problem)

        async def one(part: list[WantedSample]) -> list[ScoredSample]:
            async with self._gate.room(len(part)) if gated else nullcontext():
                judgements = await self._part(part, lend)
            on_progress()
            gathered.add(part, judgements)
            return judgements

        try:
            async with asyncio.TaskGroup() as tasks:
                done = [tasks.create_task(one(part)) for part in parts]
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        return [judgement for part in done for judgement in part.result()]

    def _room(self) -> float:
        """Rollouts of gated evaluations that may be under way at once."""
        config = self._workers.config
        return config.evaluation.share * len(self._workers.names(GENERATORS)) * config.generators.rollouts_in_flight

    async def _part(self, part: list[WantedSample], lend: Lend) -> list[ScoredSample]:
        flow = self._workers.config.flow
        for attempt in range(flow.max_attempts):
            try:
                return await self.attempt(part, lend)
            except TaskLost as error:
                reason = str(error)
                await asyncio.sleep(flow.retry_backoff_s * 2**attempt)
        raise TaskLost(f"a part of it was lost {flow.max_attempts} times (flow.max_attempts): {reason}")

    async def attempt(self, part: list[WantedSample], lend: Lend) -> list[ScoredSample]:
        prompts, ids, rows = [one.problem for one in part], [one.id for one in part], range(len(part))
        async with lend(GENERATORS, len(ids), priority=EVALUATION_PRIORITY) as engine:
            delivery, payload = await self._workers.sample_together(engine, prompts, ids, self._draw)
        if any(note.finish is Finish.ABORT for note in delivery.notes):
            raise TaskLost("the engine gave up a sample")
        async with lend(VERIFIERS, 1, priority=EVALUATION_PRIORITY) as verifier:
            verdicts = await self._workers.judge(verifier, payload, rows, prompts)
            kept = [row for row, id in enumerate(ids) if id.branch < self._workers.config.evaluation.texts]
            answers = await self._workers.answers(verifier, payload, rows, kept)
        lowest = self._workers.config.reward_range.low or None
        return [
            ScoredSample(
                problem=prompt.uid,
                outcome=verdict.outcome,
                score=lowest if verdict.outcome is Outcome.UNKNOWN else verdict.score,
                answer=answer,
                text=text,
                length=note.length,
                entropy_sum=note.entropy_sum,
                truncated=note.finish is not Finish.STOP,
                oldest_version=note.oldest_version,
                newest_version=note.newest_version,
            )
            for prompt, note, verdict, (answer, text) in zip(prompts, delivery.notes, verdicts, answers, strict=True)
        ]

    @property
    def _draw(self) -> Draw:
        config = self._workers.config
        return Draw(
            max_tokens=config.sampling.max_response, temperature=config.evaluation.temperature, top_p=config.evaluation.top_p
        )  # fmt: skip


class Gate:
    """Lets parts in while all of them together are within a limit that may change; one alone always gets in. First come, first served."""

    def __init__(self, limit: Callable[[], float]) -> None:
        self._limit, self.taken = limit, 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        entry = (size, asyncio.get_running_loop().create_future())
        self.waiting.append(entry)
        self._let_in()
        try:
            await entry[1]
            yield
        finally:
            if entry in self.waiting:
                self.waiting.remove(entry)
            else:
                self.taken -= size
            self._let_in()

    def _let_in(self) -> None:
        while self.waiting and (not self.taken or self.taken + self.waiting[0][0] <= self._limit()):
            size, entered = self.waiting.popleft()
            self.taken += size
            if not entered.done():  # else it was cancelled, and gives its room back itself
                entered.set_result(None)


def _first(errors: BaseExceptionGroup) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _ByProblem:
    """Gathers judgements until all samples of a problem are there."""

    def __init__(self, samples: int, tell: OnProblem) -> None:
        self._samples, self._tell = samples, tell
        self._have: dict[str, dict[int, ScoredSample]] = defaultdict(dict)

    def add(self, part: Sequence[WantedSample], judgements: Sequence[ScoredSample]) -> None:
        for wanted, judgement in zip(part, judgements, strict=True):
            have = self._have[judgement.problem]
            have[wanted.id.branch] = judgement
            if len(have) == self._samples:
                del self._have[judgement.problem]
                self._tell(judgement.problem, [have[k] for k in range(self._samples)])
