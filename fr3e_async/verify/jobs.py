"""What a worker can be asked to do: judge an answer, look at a gold, or call a user's reward function.

A job turns a task (a list of texts) into a ``Ruling``. Runs inside a killable process: it knows nothing of limits, pools, numpy
or our types, and loads math-verify only for the jobs that need it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fr3e_async.verify.rewards import MATH, resolve, wants_exact

GOLDS = "golds"
RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
READABLE, TEXT_ONLY = "readable", "text only"
MEMORY_LIMIT = "memory limit"
_TRACE_CHARS = 4000  # its end says most


class Ruling(NamedTuple):
    """A job's word on one task. *Example*: ``Ruling("right", "math-verify")``."""

    outcome: str
    reason: str
    score: float | None = None  # of a user's function
    complaint: str = ""  # what is wrong with a user's function, for a log


Job = Callable[[Sequence[str]], Ruling]


def load_job(name: str, options: dict[str, Any]) -> Job:
    """The job of this name, its modules imported. Raises what importing a user's module raises."""
    if name == MATH:
        return _math_job(options)
    if name == GOLDS:
        return _golds_job()
    function = resolve(name)
    exact = wants_exact(function)
    return lambda task: call_reward(function, task[:3], **({"exact": task[3]} if exact else {}))


def _math_job(options: dict[str, Any]) -> Job:
    from fr3e_async.verify import judge

    def run(task: Sequence[str]) -> Ruling:
        answer, gold = task
        return Ruling(*judge.judge(answer, gold, **options))

    return run


def _golds_job() -> Job:
    """Can a gold be read as mathematics? "text only": nothing but the same words is known to be right."""
    from fr3e_async.verify.readable import gold_kind

    def run(task: Sequence[str]) -> Ruling:
        return Ruling(TEXT_ONLY, "not mathematics") if gold_kind(task[0]) == "text" else Ruling(READABLE, "")

    return run


def call_reward(function: Callable[..., Any], task: Sequence[str], **exact: str) -> Ruling:
    """A user's function on (response, gold, prompt), and ``exact`` if it takes that. Whatever it does wrong makes the verdict unknown."""
    try:
        value = function(*task, **exact)
        value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
    except MemoryError:
        return Ruling(UNKNOWN, MEMORY_LIMIT)
    except (Exception, SystemExit) as error:  # a stranger's code: any error is its word, "I cannot tell"
        return Ruling(UNKNOWN, f"reward raised {type(error).__name__}", complaint=traceback.format_exc()[-_TRACE_CHARS:])
    if value is None:
        return Ruling(UNKNOWN, "reward said unknown")
    if not isinstance(value, bool | int | float):
        return Ruling(UNKNOWN, f"reward returned {type(value).__name__}", complaint=f"it returned {repr(value)[:200]}")
    if not 0 <= value <= 1:  # also where it is not a number
        return Ruling(UNKNOWN, "reward outside [0, 1]", complaint=f"it returned {value}")
    return Ruling(RIGHT if value == 1 else WRONG, "reward", score=float(value))
