"""What a worker can be asked to do: judge an answer, look at a reference answer, or call a user's reward function.

A job turns a task into a ``Judgement``, or a batch of tasks into one for each. Runs inside a killable process: it knows nothing of
limits, pools, numpy or our types, and loads math-verify only for the jobs that need it.
"""

import asyncio
import functools
import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fr3e_async.verify.rewards import MATH, resolve, takes, takes_lists

REFERENCES = "references"
CORRECT, WRONG, UNKNOWN = "correct", "wrong", "unknown"
SAID_UNKNOWN = "reward said unknown"  # a user's function returned None: its word, and no failure
READABLE, TEXT_ONLY = "readable", "text only"
MEMORY_LIMIT = "memory limit"
_TRACE_CHARS = 4000  # its end says most


class Judgement(NamedTuple):
    """The result of a job for one task. *Example*: ``Judgement("correct", "math-verify")``."""

    outcome: str
    reason: str
    score: float | None = None  # of a user's function
    complaint: str = ""  # what is wrong with a user's function, for a log
    parts: Sequence[Sequence[Any]] = ()  # of a batch: a judgement for each of its tasks; none: this one is of all of them


Job = Callable[[Sequence[Any]], Judgement]


def load_job(name: str, options: dict[str, Any]) -> Job:
    """The job of this name, its modules imported. Raises what importing a user's module raises."""
    if name == MATH:
        return _math_job(options)
    if name == REFERENCES:
        return _references_job()
    return Reward(resolve(name), **options)


def _math_job(options: dict[str, Any]) -> Job:
    from fr3e_async.verify import judge

    def run(task: Sequence[str]) -> Judgement:
        answer, reference = task
        try:
            return Judgement(*judge.judge(answer, reference, **options))
        except MemoryError:
            return Judgement(UNKNOWN, MEMORY_LIMIT)

    return run


def _references_job() -> Job:
    """Build the job that checks whether a reference answer reads as mathematics. "text only": only the same words are correct."""
    from fr3e_async.verify.readable import reference_kind

    def run(task: Sequence[str]) -> Judgement:
        return Judgement(TEXT_ONLY, "not mathematics") if reference_kind(task[0]) == "text" else Judgement(READABLE, "")

    return run


class Reward:
    """A user's function as a job: tasks are [response, reference answer, prompt, {name: value}]. Whatever it does wrong makes
    a verdict unknown."""

    def __init__(self, function: Callable[..., Any], *, batch: bool = False, low: float = 0.0, high: float = 1.0) -> None:
        """``batch``: the function takes lists of tasks. ``low``, ``high``: bounds of its numbers; ``high`` is correct."""
        self._function, self._batch, self._low, self._high = function, batch, low, high
        self._takes = functools.cache(functools.partial(takes, function))
        self._loop: asyncio.Runner | None = None  # one for all calls, so that a client of the module's can keep its connections

    def __call__(self, task: Sequence[Any]) -> Judgement:
        if not self._batch:
            return self._guarded(lambda: self._ruled(self._value(*self._arguments(task))))
        if takes_lists(self._function):
            return self._guarded(lambda: self._ruled_all(self._value(*self._lists(task)), len(task)))
        return Judgement("", "", parts=self._awaited(self._side_by_side(task)))

    def _guarded(self, call: Callable[[], Judgement]) -> Judgement:
        try:
            return call()
        except (Exception, SystemExit) as error:  # a stranger's code: any error is its word, "I cannot tell"
            return _failed(error)

    async def _side_by_side(self, tasks: Sequence[Sequence[Any]]) -> list[Judgement]:
        async def one(task: Sequence[Any]) -> Judgement:
            try:
                arguments, named = self._arguments(task)
                return self._ruled(await self._function(*arguments, **named))
            except (Exception, SystemExit) as error:  # as above
                return _failed(error)

        return await asyncio.gather(*map(one, tasks))

    def _value(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        value = self._function(*arguments, **named)
        return self._awaited(value) if inspect.isawaitable(value) else value

    def _awaited(self, value: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await value

        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(wait())

    def _arguments(self, task: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        *arguments, given = task
        return arguments, {name: value for name, value in given.items() if self._takes(name)}

    def _lists(self, tasks: Sequence[Sequence[Any]]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Turn tasks into one list for each argument, in the order of the tasks."""
        each = [self._arguments(task) for task in tasks]
        named = {name: [its.get(name) for _, its in each] for _, its in each for name in its}
        return [list(column) for column in zip(*(arguments for arguments, _ in each), strict=True)], named

    def _ruled_all(self, values: Any, count: int) -> Judgement:
        values = values.tolist() if hasattr(values, "tolist") else values  # an array of numpy or torch
        if not isinstance(values, list | tuple) or len(values) != count:
            many = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
            return Judgement(
                UNKNOWN, f"reward returned {many} for {count} responses", complaint=f"it returned {repr(values)[:200]}"
            )
        return Judgement("", "", parts=[self._guarded(lambda value=value: self._ruled(value)) for value in values])  # type: ignore[misc]

    def _ruled(self, value: Any) -> Judgement:
        value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
        if value is None:
            return Judgement(UNKNOWN, SAID_UNKNOWN)
        if not isinstance(value, bool | int | float):
            return Judgement(UNKNOWN, f"reward returned {type(value).__name__}", complaint=f"it returned {repr(value)[:200]}")
        if not self._low <= value <= self._high:  # also where it is not a number
            return Judgement(UNKNOWN, f"reward outside [{self._low:g}, {self._high:g}]", complaint=f"it returned {value}")
        return Judgement(CORRECT if value == self._high else WRONG, "reward", score=float(value))


def _failed(error: BaseException) -> Judgement:
    if isinstance(error, MemoryError):
        return Judgement(UNKNOWN, MEMORY_LIMIT)
    told = "".join(traceback.format_exception(error))[-_TRACE_CHARS:]
    return Judgement(UNKNOWN, f"reward raised {type(error).__name__}", complaint=told)
