"""Accuracy on held-out problems, on the engines that serve training, without a barrier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import numpy as np

from fr3e_async.config import Config
from fr3e_async.control.crew import Crew
from fr3e_async.control.dispatch import GENERATORS, VERIFIERS
from fr3e_async.control.ports import TaskLost
from fr3e_async.evaluation.accuracy import EvaluationResult, Judgement, evaluate
from fr3e_async.types import Draw, Finish, Prompt, RolloutId

ROLLOUTS_PER_TASK = 64  # at most: large enough to keep calls few, small enough to spread over engines,
PARTS_OF_AN_ENGINE = 4  # and small beside what an engine is given: one that waits for room holds up what comes after it
EVALUATION_PRIORITY = -1  # before training work: an evaluation is short, and its versions should not spread


class Lend(Protocol):
    """Gives the name of a worker of a role, with room for ``weight`` rollouts, for as long as the block lasts."""

    def __call__(self, role: str, weight: int, *, priority: int) -> AbstractAsyncContextManager[str]: ...


def pick_problems(heldout: Sequence[Prompt], config: Config) -> list[Prompt]:
    """The same ``evaluation.problems`` held-out problems at every evaluation of a run (0: all of them)."""
    count = config.evaluation.problems
    if not count or count >= len(heldout):
        return list(heldout)
    chosen = np.random.default_rng([config.run.seed, 7]).permutation(len(heldout))[:count]
    return [heldout[i] for i in sorted(chosen)]


class Evaluator:
    """Samples every problem ``evaluation.samples`` times and has the answers judged."""

    def __init__(self, crew: Crew, problems: Sequence[Prompt]) -> None:
        self._crew, self._problems = crew, list(problems)

    async def run(self, label: str, *, lend: Lend, on_progress: Callable[[], None]) -> EvaluationResult:
        """``on_progress`` is called for every part that is done. Raises ``TaskLost`` if a part of it was lost ``flow.max_attempts`` times."""
        config = self._crew.config
        samples = config.evaluation.samples
        work = [(problem, RolloutId(f"{label}:{problem.uid}", 0, k)) for problem in self._problems for k in range(samples)]
        size = max(1, min(ROLLOUTS_PER_TASK, config.generators.rollouts_in_flight // PARTS_OF_AN_ENGINE))
        parts = [work[i : i + size] for i in range(0, len(work), size)]
        judgements = await asyncio.gather(*(self._part(part, lend, on_progress) for part in parts))
        return evaluate([j for part in judgements for j in part])

    async def _part(self, part: list[tuple[Prompt, RolloutId]], lend: Lend, on_progress: Callable[[], None]) -> list[Judgement]:
        flow = self._crew.config.flow
        for attempt in range(flow.max_attempts):
            try:
                judgements = await self._attempt([p for p, _ in part], [id for _, id in part], lend)
                on_progress()
                return judgements
            except TaskLost as error:
                reason = str(error)
                await asyncio.sleep(flow.retry_backoff_s * 2**attempt)
        raise TaskLost(f"a part of it was lost {flow.max_attempts} times (flow.max_attempts): {reason}")

    async def _attempt(self, prompts: list[Prompt], ids: list[RolloutId], lend: Lend) -> list[Judgement]:
        config = self._crew.config
        draw = Draw(
            max_tokens=config.sampling.max_response,
            temperature=config.evaluation.temperature,
            top_p=config.evaluation.top_p,
        )
        async with lend(GENERATORS, len(ids), priority=EVALUATION_PRIORITY) as engine:
            delivery, payload = await self._crew.sample(engine, prompts, ids, draw)
        if any(note.finish is Finish.ABORT for note in delivery.notes):
            raise TaskLost("the engine gave up a sample")
        async with lend(VERIFIERS, 1, priority=EVALUATION_PRIORITY) as verifier:
            verdicts = await self._crew.judge(verifier, payload, range(len(ids)), prompts)
        return [
            Judgement(
                problem=prompt.uid,
                outcome=verdict.outcome,
                length=note.length,
                entropy_sum=note.entropy_sum,
                truncated=note.finish is not Finish.STOP,
                oldest_version=note.oldest_version,
                newest_version=note.newest_version,
            )
            for prompt, note, verdict in zip(prompts, delivery.notes, verdicts, strict=True)
        ]
