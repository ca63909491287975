"""Reference answers that math-verify cannot work with, found before a run starts.

Where math-verify reads no mathematics, the reference is matched as text: every other way to write it is unknown. Knows nothing
of responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fr3e_async.config import Config, VerifierPoolConfig
from fr3e_async.data.row import DataRow
from fr3e_async.data.rows import Rows
from fr3e_async.errors import DataError
from fr3e_async.verify import answers
from fr3e_async.verify.jobs import READABLE, REFERENCES
from fr3e_async.verify.pool import bare_reference, task_pool
from fr3e_async.verify.process import Task
from fr3e_async.verify.rewards import MATH

TOO_LONG = "longer than verifiers.max_answer_chars"
_BATCH = 32  # reference answers given to a worker at once
_SHOWN = 3  # rows named in a message
MANY = 2000  # from this many on the user is told of the wait: a worker parses some 150 a second


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFlag:
    """A reference answer that can be matched as text at most. *Example*: ``ReferenceFlag(reference="1或2", reason="not mathematics")``."""

    reference: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """The rows to keep, and a line for a person; "" if there is nothing to report."""

    rows: Rows
    note: str


def flag_references(
    references: Sequence[str], config: VerifierPoolConfig, announce: Callable[[str], None] = lambda _: None
) -> list[ReferenceFlag]:
    """A flag for each distinct reference answer, in order of appearance, that math-verify reads as text only or not at all.

    Plain integers are never flagged and take no process; without anything else none is started. The others are parsed in
    killable processes under the limits of ``verifiers``. ``announce`` hears of work that takes long. Raises ``RunFailed``
    if no process can be started.
    """
    flags: dict[str, ReferenceFlag] = {}
    tasks: dict[str, Task] = {}
    for reference in dict.fromkeys(references):
        bare = bare_reference(reference)
        if len(bare) > config.max_answer_chars:
            flags[reference] = ReferenceFlag(reference=reference, reason=TOO_LONG)
        elif answers.plain_integer(bare) is None:
            tasks[reference] = (bare,)
    waiting = list(tasks)
    if len(waiting) > MANY:
        announce(f"parsing {len(waiting)} reference answers, see data.on_string_gold")
    pool = task_pool(config, job=REFERENCES)
    try:
        batches = [waiting[start : start + _BATCH] for start in range(0, len(waiting), _BATCH)]
        futures = [pool.submit([tasks[reference] for reference in batch]) for batch in batches]
        for batch, future in zip(batches, futures, strict=True):
            for reference, result in zip(batch, future.result(), strict=True):
                if result.judgement.outcome != READABLE:
                    flags[reference] = ReferenceFlag(reference=reference, reason=result.judgement.reason)
    finally:
        pool.close()
    return [flags[reference] for reference in dict.fromkeys(references) if reference in flags]


def screen_references(rows: Rows, config: Config, announce: Callable[[str], None] = lambda _: None) -> Screened:
    """Do as ``data.on_string_gold`` says with problems whose reference answer is flagged. ``DataError`` for 'error', and if nothing is left.

    Only where math judges: a user's function may read a reference answer as it likes.
    """
    if all(term.function != MATH for term in config.reward_terms):
        return Screened(rows=rows, note="")
    policy = config.data.on_string_gold
    reasons = {
        f.reference: f.reason
        for f in flag_references([r.answer for r in (*rows.train, *rows.heldout)], config.verifiers, announce)
    }
    flagged = [row for row in (*rows.train, *rows.heldout) if row.answer in reasons]
    if not flagged:
        return Screened(rows=rows, note="")
    told = _told(flagged, reasons)
    if policy == "error":
        raise DataError(f"{told}; leave such problems out with data.on_string_gold=drop, or keep them with =flag")
    if policy == "flag":
        return Screened(rows=rows, note=f"{told}: other ways to write it will be unknown, see data.on_string_gold")
    train, heldout = (tuple(row for row in part if row.answer not in reasons) for part in (rows.train, rows.heldout))
    for name, part, left in (("train", rows.train, train), ("heldout", rows.heldout, heldout)):
        if part and not left:
            raise DataError(f"data.{name}: nothing is left with data.on_string_gold=drop: {told}")
    return Screened(rows=replace(rows, train=train, heldout=heldout), note=f"{told}: left out (data.on_string_gold=drop)")


def _told(flagged: Sequence[DataRow], reasons: dict[str, str]) -> str:
    examples = ", ".join(f"{row.source} ({reasons[row.answer]})" for row in flagged[:_SHOWN])
    more = f" and {len(flagged) - _SHOWN} more" if len(flagged) > _SHOWN else ""
    count = "1 problem has a reference answer" if len(flagged) == 1 else f"{len(flagged)} problems have a reference answer"
    return f"{count} that can be matched as text at most: {examples}{more}"
