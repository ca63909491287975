"""``VerifierPool``: verdicts on responses, from any thread or from an asyncio actor, whatever the responses contain.

Plain integers are compared here and now; everything else goes to one of ``workers`` killable processes. With a user's reward
everything goes there, as it is. Knows nothing of rollouts, Ray or what is done with an unknown verdict.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from fr3e_async.algorithm.answer_span import THINK, Thoughts
from fr3e_async.config import VerifierPoolConfig
from fr3e_async.types import Outcome, Verdict
from fr3e_async.verify import answers
from fr3e_async.verify.limits import Limits, Setup
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.process import Task
from fr3e_async.verify.rewards import MATH, MAX_RESPONSE_CHARS, search_path
from fr3e_async.verify.tasks import Result, TaskPool

RESPONSE_TOO_LONG = "response too long"
# Questions given to a worker at once: enough to make the hand-over cheap, few enough that nobody waits long behind them, and
# so many batches for each worker that none idles for long when the last ones end.
_BATCH = 8
_BATCHES_EACH = 4


class Question(NamedTuple):
    """One response to judge against a gold. *Example*: ``Question("\\\\boxed{5}", "5")``."""

    response: str  # exactly what was sampled
    gold: str
    prompt: str = ""  # the problem's text, for a user's reward
    shown: str | None = None  # the response without special tokens, for a user's reward; None: the same
    thoughts: Thoughts = THINK
    fault: str = ""  # why it is wrong whatever it says


class VerifierPool:
    """Judges responses in killable processes. Close it, or use it in a ``with`` block.

    Example: ``pool.judge("so \\\\boxed{0.50}", "1/2")`` is right with the reason "math-verify".
    """

    def __init__(self, config: VerifierPoolConfig, reward: str = MATH) -> None:
        """Starts nothing; see ``warm``. ``reward``: 'math' or package.module:function, as ``check_reward`` has let pass."""
        self._config, self._reward = config, reward
        self._tasks = task_pool(config, job=reward)
        self._complained = False

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def replaced(self) -> int:
        """Worker processes that were ended by a limit or died, ever."""
        return self._tasks.replaced

    def warm(self) -> None:
        """Start the process that holds math-verify, in the background; without this the first answer that needs it waits."""
        self._tasks.warm()

    def judge(self, response: str, gold: str, prompt: str = "") -> Verdict:
        """The verdict on one response; once a worker is free it takes at most about ``verifiers.wall_limit_s`` an attempt.

        Questions wait for a worker in the order in which they came. Raises ``RunFailed`` if no worker can be started.
        """
        return self._finished(self._prepared(Question(response, gold, prompt)))

    def judge_answer(self, answer: str | None, gold: str) -> Verdict:
        """Like ``judge``, for what ``answers.answer_of`` found. Not for a user's reward."""
        return self._finished(self._prepared_answer(answer, gold))

    async def judge_many(self, questions: Iterable[Question | tuple[str, str]]) -> list[Verdict]:
        """Verdicts on all questions, in their order, without blocking the event loop on a worker.

        Equal answers to one gold are judged once: when a policy answers ``9^{9^9}`` in every rollout, the limit is paid once.
        Answers to one gold go to one worker as far as that keeps all of them busy, because it parses the gold once.
        """
        verdicts: list[Verdict | None] = []
        places: dict[Any, tuple[Task, list[int]]] = {}
        for index, question in enumerate(questions):
            prepared = self._prepared(Question(*question))
            if isinstance(prepared, Verdict):
                verdicts.append(prepared)
                continue
            verdicts.append(None)
            key = prepared if self._reward == MATH else index  # a user's function may well not say the same thing twice
            places.setdefault(key, (prepared, []))[1].append(index)
        jobs = sorted(places.values(), key=lambda job: job[0][1])  # by gold
        size = min(math.ceil(len(jobs) / self._config.workers / _BATCHES_EACH), _BATCH)
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size or 1)]
        futures = [asyncio.wrap_future(self._tasks.submit([task for task, _ in batch])) for batch in batches]
        for batch, results in zip(batches, await asyncio.gather(*futures), strict=True):
            for (_, indices), result in zip(batch, results, strict=True):
                for index in indices:
                    verdicts[index] = self._verdict(result)
        return [verdict for verdict in verdicts if verdict is not None]

    def close(self) -> None:
        """Finish what is being judged and end all processes. Idempotent."""
        self._tasks.close()

    def _prepared(self, question: Question) -> Verdict | Task:
        """The verdict if it takes no process, else the task for one."""
        response, gold, prompt, shown, thoughts, fault = question
        if fault:
            return Verdict(outcome=Outcome.WRONG, reason=fault)
        if self._reward == MATH:
            return self._prepared_answer(answers.final_answer(response, thoughts), gold)
        if len(response) > MAX_RESPONSE_CHARS:
            return Verdict(outcome=Outcome.UNKNOWN, reason=RESPONSE_TOO_LONG)
        return response if shown is None else shown, gold, prompt, response

    def _prepared_answer(self, answer: str | None, gold: str) -> Verdict | Task:
        config = self._config
        answer, gold = answer if answer is None else answers.strip_dollars(answer), bare_gold(gold)
        quick = answers.quick_verdict(answer, gold, max_chars=config.max_answer_chars, exact_integers=config.exact_integers)
        return quick or (answer or "", gold)

    def _finished(self, prepared: Verdict | Task) -> Verdict:
        return prepared if isinstance(prepared, Verdict) else self._verdict(self._tasks.submit([prepared]).result()[0])

    def _verdict(self, result: Result) -> Verdict:
        outcome, reason, score, complaint = result.ruling
        if complaint and not self._complained:
            self._complained = True
            logging.getLogger(__name__).error(
                "reward=%s: %s (later errors of it are only counted)\n%s", self._reward, reason, complaint
            )
        return Verdict(outcome=Outcome(outcome), reason=reason, score=score, attempts=result.attempts)


def bare_gold(gold: str) -> str:
    """A gold without box and dollar signs."""
    return answers.strip_dollars(answers.final_answer(gold) or gold)


def task_pool(config: VerifierPoolConfig, *, job: str) -> TaskPool:
    """Killable processes for a job, under the limits of ``verifiers``."""
    limits = Limits(cpu_s=config.cpu_limit_s, memory_bytes=int(config.memory_gib * 2**30))
    options = asdict(Policies.of(config)) if job == MATH else {}
    setup = Setup(job=job, limits=limits, sys_path=search_path(), options=options)
    return TaskPool(setup, workers=config.workers, wall_limit_s=config.wall_limit_s, retry=config.on_unknown == "retry")
