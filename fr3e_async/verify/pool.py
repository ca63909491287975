"""``VerifierPool``: verdicts on responses, from any thread or from an asyncio actor, whatever the responses contain.

For math, plain integers are compared here and now; everything else goes to one of ``workers`` killable processes. For a user's function
everything goes there, as it is. Knows nothing of rollouts, Ray or what is done with an unknown verdict.
"""

import asyncio
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import PurePath
from typing import Any, NamedTuple, Self

from msgspec.structs import replace

from fr3e_async.algorithm.answer_span import THINK, Thoughts
from fr3e_async.config import RewardConfig, VerifierPoolConfig
from fr3e_async.config.reward import reward_terms
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Verdict
from fr3e_async.verify import answers
from fr3e_async.verify.jobs import Judgement
from fr3e_async.verify.process import Result, Task, TaskPool
from fr3e_async.verify.rewards import MATH, MAX_RESPONSE_CHARS, search_path
from fr3e_async.verify.rulings import Policies
from fr3e_async.verify.wire import Limits, Setup

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+), in (?P<name>.*)')  # of a traceback
_LAST_WORDS = 300  # characters
RESPONSE_TOO_LONG = "response too long"
# Questions given to a worker at once: enough to make the hand-over cheap, few enough that nobody waits long behind them, and
# so many batches for each worker that none idles for long when the last ones end.
_BATCH = 8
_BATCHES_EACH = 4


class Question(NamedTuple):
    """One response to judge against a reference answer. *Example*: ``Question("\\\\boxed{5}", "5")``."""

    response: str  # exactly what was sampled
    reference: str
    prompt: str = ""  # the problem's text, for a user's reward
    shown: str | None = None  # the response without special tokens, for a user's reward; None: the same
    thoughts: Thoughts = THINK
    fault: str = ""  # why it is wrong whatever it says
    answer_fault: str = ""  # why its answer is wrong, for math
    margins: Sequence[Fraction] = ()  # how far its answer may be off, for math
    length: int | None = None  # tokens, for a user's reward; None: nobody knows
    finish: str = "stop"  # "stop" or "length", for a user's reward
    columns: Mapping[str, Any] = {}  # of the row, for a user's reward


class VerifierPool:
    """Judges responses in killable processes. Close it, or use it in a ``with`` block.

    Example: ``pool.judge("so \\\\boxed{0.50}", "1/2")`` is correct with the reason "math-verify".
    """

    def __init__(self, config: VerifierPoolConfig, reward: str | Sequence[RewardConfig] = MATH) -> None:
        """Starts nothing; see ``warm``. ``reward``: the functions whose weighted sum it is, as ``check_reward`` has let them pass, or the
        name of one: 'math' or package.module:function."""
        terms = reward_terms(reward, ()) if isinstance(reward, str) else reward
        self.functions = [_Function(config, term) for term in terms]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def replaced(self) -> int:
        """Worker processes that were ended by a limit or died, ever."""
        return sum(one.tasks.replaced for one in self.functions)

    def warm(self) -> None:
        """Start the processes that hold math-verify and users' modules, in the background, as far as every response needs them."""
        for one in self.functions:
            if one.always_asked:
                one.tasks.warm()

    def judge(self, response: str, reference: str, prompt: str = "", *more: Any, **given: Any) -> Verdict:
        """The verdict on one response; once a worker is free it takes at most about ``verifiers.wall_limit_s`` an attempt.

        ``more``, ``given``: further fields of ``Question``. Questions wait for a worker in the order in which they came. Raises ``RunFailed``
        if no worker can be started.
        """
        question = Question(response, reference, prompt, *more, **given)
        return self._sum([one.judge(question) for one in self.functions])

    def judge_answer(self, answer: str | None, reference: str) -> Verdict:
        """Like ``judge``, for what ``answers.answer_of`` found. Only for math alone."""
        (math_alone,) = self.functions
        return math_alone.finished(math_alone.prepared_answer(answer, reference))

    async def judge_many(self, questions: Iterable[Question | tuple[str, str]]) -> list[Verdict]:
        """Verdicts on all questions, in their order, without blocking the event loop on a worker."""
        asked = [Question(*question) for question in questions]
        found = await asyncio.gather(*(one.judge_many(asked) for one in self.functions))
        return [self._sum(verdicts) for verdicts in zip(*found, strict=True)]

    def close(self) -> None:
        """Finish what is being judged and end all processes. Idempotent."""
        for one in self.functions:
            one.tasks.close()

    def _sum(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Add up the weighted scores. The first function decides what is correct; one unknown makes the sum unknown."""
        terms = [one.term for one in self.functions]
        if len(terms) == 1 and terms[0].weight == 1:
            return verdicts[0]
        attempts = max(verdict.attempts for verdict in verdicts)
        for term, verdict in zip(terms, verdicts, strict=True):
            if verdict.outcome is Outcome.UNKNOWN:
                return replace(verdict, reason=f"{term.function}: {verdict.reason}", attempts=attempts)
        score = math.fsum(term.weight * (verdict.reward or 0.0) for term, verdict in zip(terms, verdicts, strict=True))
        return replace(verdicts[0], score=score, attempts=attempts)


class _Function:
    """One of the functions of a reward, in processes of its own."""

    def __init__(self, config: VerifierPoolConfig, term: RewardConfig) -> None:
        self.term, self._config, self._math = term, config, term.function == MATH
        self._again = config.on_unknown == "retry"
        self.tasks = task_pool(config, job=term.function, term=term)
        self._complained: set[str] = set()  # reasons that were told

    @property
    def always_asked(self) -> bool:
        return not (self._math and self._config.exact_integers)

    def judge(self, question: Question) -> Verdict:
        prepared = self.prepared(question)
        if isinstance(prepared, Verdict) or not self.term.batch:
            return self._beside(question, self.finished(prepared))
        (verdict,) = self._batch([prepared], self.tasks.submit([[prepared]]).result()[0])
        return verdict

    async def judge_many(self, questions: Sequence[Question]) -> list[Verdict]:
        """Judge equal answers to one reference once: if a policy answers ``9^{9^9}`` in every rollout, it meets the time limit once.
        One worker gets all answers to one reference answer, as far as that keeps every worker busy: it parses that one once."""
        verdicts: list[Verdict | None] = []
        jobs_by_key: dict[Any, tuple[Task, list[int]]] = {}
        for index, question in enumerate(questions):
            prepared = self.prepared(question)
            verdicts.append(prepared if isinstance(prepared, Verdict) else None)
            if not isinstance(prepared, Verdict):
                key = prepared if self._math else index  # a user's function may well not say the same thing twice
                jobs_by_key.setdefault(key, (prepared, []))[1].append(index)
        jobs = sorted(jobs_by_key.values(), key=lambda job: job[0][1])  # by reference answer
        size = self.term.batch or min(math.ceil(len(jobs) / self._config.workers / _BATCHES_EACH), _BATCH)
        batches = [jobs[start : start + size] for start in range(0, len(jobs), size or 1)]
        judged = await asyncio.gather(*(self._judged([task for task, _ in batch]) for batch in batches))
        for batch, its in zip(batches, judged, strict=True):
            for (_, indices), verdict in zip(batch, its, strict=True):
                for index in indices:
                    verdicts[index] = verdict
        return [self._beside(q, verdict) for q, verdict in zip(questions, verdicts, strict=True) if verdict is not None]

    async def _judged(self, tasks: Sequence[Task]) -> list[Verdict]:
        """Judge tasks in one worker, as long as it lives."""
        if not self.term.batch:
            return [self._verdict(result) for result in await asyncio.wrap_future(self.tasks.submit(tasks))]
        (result,) = await asyncio.wrap_future(self.tasks.submit([tasks]))
        if result.judgement.parts or not self._again or len(tasks) == 1:
            return self._batch(tasks, result)
        alone = await asyncio.gather(*(asyncio.wrap_future(self.tasks.submit([[task]])) for task in tasks))
        singles = [self._batch([task], one) for task, (one,) in zip(tasks, alone, strict=True)]
        return [replace(verdict, attempts=2) for (verdict,) in singles]

    def _batch(self, tasks: Sequence[Task], result: Result) -> list[Verdict]:
        parts = [Judgement(*part) for part in result.judgement.parts] or [result.judgement] * len(tasks)
        return [self._verdict(Result(part, result.attempts)) for part in parts]

    def prepared(self, question: Question) -> Verdict | Task:
        """Return the verdict if no process is needed, else the task for one."""
        if fault := question.fault or (self._math and question.answer_fault):
            return Verdict(outcome=Outcome.WRONG, reason=fault, score=None if self._math else self.term.range[0] or None)
        if self._math:
            return self.prepared_answer(answers.final_answer(question.response, question.thoughts), question.reference)
        if len(question.response) > MAX_RESPONSE_CHARS:
            return Verdict(outcome=Outcome.UNKNOWN, reason=RESPONSE_TOO_LONG)
        shown = question.response if question.shown is None else question.shown
        by_name = {"exact": question.response, "length": question.length, "finish": question.finish, **question.columns}
        return shown, question.reference, question.prompt, by_name

    def prepared_answer(self, answer: str | None, reference: str) -> Verdict | Task:
        config = self._config
        answer, reference = answer if answer is None else answers.strip_dollars(answer), bare_reference(reference)
        quick = answers.quick_verdict(answer, reference, max_chars=config.max_answer_chars, exact_integers=config.exact_integers)
        return quick or (answer or "", reference)

    def finished(self, prepared: Verdict | Task) -> Verdict:
        return prepared if isinstance(prepared, Verdict) else self._verdict(self.tasks.submit([prepared]).result()[0])

    def _beside(self, question: Question, verdict: Verdict) -> Verdict:
        """Correct after all if the answer lies within a margin of its benchmark."""
        if not (self._math and question.margins) or question.fault or question.answer_fault:
            return verdict
        from fr3e_async.verify.margins import with_margins

        answer = answers.final_answer(question.response, question.thoughts)
        return with_margins(verdict, answer, question.reference, question.margins, self._config)

    def _verdict(self, result: Result) -> Verdict:
        outcome, reason, score, complaint, _ = result.judgement
        if not complaint or reason in self._complained:
            return Verdict(outcome=Outcome(outcome), reason=reason, score=score, attempts=result.attempts)
        self._complained.add(reason)
        logging.getLogger(__name__).error(
            "reward=%s: %s (later ones are only counted)\n%s", self.term.function, reason, complaint
        )
        return Verdict(outcome=Outcome(outcome), reason=reason, attempts=result.attempts, complaint=last_words(complaint))


def last_words(complaint: str) -> str:
    """The last line of a traceback and where it was raised. *Example*: ``ValueError: no digits (rewards.py, line 12, in score)``."""
    lines = complaint.strip().splitlines()
    at = [found for line in lines if (found := _FRAME.fullmatch(line))]
    where = f" ({PurePath(at[-1]['file']).name}, line {at[-1]['line']}, in {at[-1]['name']})" if at else ""
    return f"{lines[-1][:_LAST_WORDS]}{where}"


def bare_reference(reference: str) -> str:
    """Return the reference answer without ``\\boxed`` and dollar signs."""
    return answers.strip_dollars(answers.final_answer(reference) or reference)


def policies_of(config: VerifierPoolConfig) -> Policies:
    """Read the judge's policies from the section ``verifiers``."""
    return Policies(
        unfinished=config.unfinished, units=config.units, percent=config.percent, decimal_digits=config.decimal_digits
    )  # fmt: skip


def task_pool(config: VerifierPoolConfig, *, job: str, term: RewardConfig = RewardConfig()) -> TaskPool:
    """Killable processes for a job, under the limits of ``verifiers``, or those of ``term``, the function's own."""
    limits = Limits(cpu_s=term.cpu_limit_s or config.cpu_limit_s, memory_bytes=int(config.memory_gib * 2**30))
    options: dict[str, Any] = asdict(policies_of(config)) if job == MATH else {}
    if ":" in job:
        options = {"batch": bool(term.batch), "low": float(term.range[0]), "high": float(term.range[1])}
    setup = Setup(job=job, limits=limits, sys_path=search_path(), options=options)
    wall_limit_s = term.wall_limit_s or config.wall_limit_s
    return TaskPool(
        setup, workers=config.workers, wall_limit_s=wall_limit_s, retry=config.on_unknown == "retry" and not term.batch
    )  # fmt: skip
