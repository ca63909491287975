"""Who waits for whom: the text that a run which stands still ends with.

It names queues, work in flight, the oldest groups and what they wait for, whether the object store answers, and what the threads of every
actor with work are doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fr3e_async.control.context import RunContext
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.workers import ROLES, Worker

DIAGNOSIS_LINES = 8
STACK_LINES = 60  # of one actor

T = TypeVar("T")


class Diagnosis:
    """Collects what every actor is doing, for error messages. Each question has a time limit."""

    def __init__(self, context: RunContext) -> None:
        self._context, self._workers, self._machine = context, context.workers, context.machine

    async def text(self) -> str:
        """Who waits for whom: queues, work in flight, the oldest groups, the object store, and the threads of those with work."""
        dispatcher = self._machine.dispatcher
        lines = [
            f"  {role}: {dispatcher.queued(role)} tasks queued, {dispatcher.in_flight(role)} in flight at {dispatcher.roles[role].slots} actors, "
            f"{dispatcher.roles[role].replacements} replaced"
            for role in ROLES
        ]
        for role, pool in self._machine.autoscaler.pools.items():
            if pool.hiring:
                lines.append(f"  {len(pool.hiring)} more of {role} asked for, and not up: the cluster may have no room for them")
        lines.append(f"  learner: {self._context.learner.does or 'has nothing to do'}")
        if self._context.writing:
            lines.append(f"  the control loop writes {self._context.writing}")
        lines.append(
            f"  weights: v{self._machine.ledger.version} trained, v{self._machine.fleet.target} to be served, "
            f"v{self._machine.fleet.live} served by all engines"
        )
        lines += [f"  {engine} is {state} at v{version}" for engine, state, version in self._machine.fleet.outdated()]
        lines.append(f"  object store: {await self.store()}")
        groups = self._machine.ledger.waiting()
        lines += [f"  group {line}" for line in groups[:DIAGNOSIS_LINES]]
        if len(groups) > DIAGNOSIS_LINES:
            lines.append(f"  and {len(groups) - DIAGNOSIS_LINES} more groups")
        busy = [worker for worker in self._workers.workers() if dispatcher.tasks_of(worker.name)]
        stacks = await asyncio.gather(*(self.stacks(worker) for worker in busy[:DIAGNOSIS_LINES]))
        lines += stacks
        if self._context.learner.does:
            limit = self._workers.config.observe.heartbeat_s
            told = await self.within_a_beat(self._workers.learner.stacks(limit), rounds=2)
            lines += [_indented(f"learner rank {rank}", text) for rank, text in enumerate(told or ["does not answer"])]
        return "\n".join(lines)

    async def stacks(self, worker: Worker) -> str:
        """Return the thread stacks of a worker as text, under a title with its tasks."""
        tasks = ", ".join(map(str, self._machine.dispatcher.tasks_of(worker.name)[:DIAGNOSIS_LINES]))
        title = f"{worker.name} with tasks {tasks or 'none'}"
        try:
            told = await self.within_a_beat(worker.stacks())
        except Exception as error:  # the error becomes part of the text, and must not replace it
            told = f"does not tell: {error}"
        return _indented(title, told if told is not None else "does not answer at all: its process or its node has stopped")

    async def store(self) -> str:
        """Test the object store with a put and a get; returns the result as text."""
        try:
            answer = await self.within_a_beat(run_in_daemon_thread(self._workers.payloads.probe))
        except Exception as error:  # full, say
            return f"fails: {error}"
        return "answers" if answer is not None else "does not answer: nothing that is large can be handed on"

    async def within_a_beat(self, work: Awaitable[T], *, rounds: int = 1) -> T | None:
        """Await a call for at most ``rounds`` heartbeats. Returns None if it takes longer."""
        try:
            async with asyncio.timeout(self._workers.config.observe.heartbeat_s * rounds):
                return await work
        except TimeoutError:
            return None


def _indented(title: str, text: str) -> str:
    lines = text.splitlines()
    shown = lines[:STACK_LINES] + ([f"and {len(lines) - STACK_LINES} more lines"] if len(lines) > STACK_LINES else [])
    return "\n".join([f"  {title}:", *(f"    {line}" for line in shown)])
