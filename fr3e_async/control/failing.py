"""A run that fails: which error a person reads, and whether a checkpoint is worth writing before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from fr3e_async.config import Config
from fr3e_async.control.checkpointing import Checkpointing
from fr3e_async.control.learning import LearnerLock
from fr3e_async.control.watchdog import StalledError, Watchdog
from fr3e_async.errors import LearnerLost, RunFailed, UserError
from fr3e_async.machine.ledger_state import LedgerError
from fr3e_async.machine.order import StalenessError
from fr3e_async.observe.events import Note


def first_failure(group: BaseExceptionGroup) -> BaseException:
    """The exception that a person should read: a ``RunFailed`` if there is one, else the first of the group."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            flat.append(error)
    return next((e for e in flat if isinstance(e, RunFailed)), flat[0])


def leaves_all_sound(failure: BaseException) -> bool:
    """Books and learner are as they should be: starvation, deaths of other actors, a stall; not a defect of ours, nor a full disk."""
    return isinstance(failure, RunFailed) and not isinstance(failure, LearnerLost | LedgerError | StalenessError)


async def save_before(
    failure: BaseException,
    *,
    lock: LearnerLock,
    checkpointing: Checkpointing,
    watch: Watchdog,
    settle: Callable[[], None],
    note: Note,
    config: Config,
) -> None:
    """Write the last checkpoint of a run that fails for a cause outside the learner; raises nothing.

    ``settle``: takes a batch that the learner has made meanwhile into the ledger. A stop that does not wait ends this, too.
    """

    async def guard() -> None:
        while True:
            await asyncio.sleep(config.observe.heartbeat_s)
            await watch.look_at_learner()

    if not leaves_all_sound(failure) or (isinstance(failure, StalledError) and lock.does):
        return
    try:
        async with asyncio.timeout(config.learner.step_timeout_s), asyncio.TaskGroup() as tasks:
            guarding = tasks.create_task(guard())
            await lock.rest()
            settle()
            if not lock.failed:
                await checkpointing.last()
            guarding.cancel()
    except (BaseExceptionGroup, TimeoutError) as error:
        told = first_failure(error) if isinstance(error, BaseExceptionGroup) else "learner.step_timeout_s is over"
        with suppress(UserError):  # the disk is full, say
            note(f"no checkpoint could be written before the end: {told}")
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
