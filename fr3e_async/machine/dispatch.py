"""The dispatcher: which worker does which task, which one rests or leaves. Pure.

    Sample, Branch, Score ─► a task in its role's queue; a later attempt first rests: Wait ─► Due ─► the queue
    Delivered, Scored, Lost, Answered ─► its worker has room again
    Hold, Serve, TakeBack, Send (from the fleet) ─► a worker pauses, works again, loses its tasks, receives weights
    Leaving, Drain ─► a worker gets nothing more, and goes once it has nothing left: Release, Gone
    WorkerDown, Refused, Unhired ─► Release, Gone, and Vacant: the autoscaler replaces it

``Settle`` ends the handling of every event: it hands out what can be handed out, then looks after the workers that have run empty.
``slots`` has the rule by which a task finds its worker.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fr3e_async.config import PoolsConfig
from fr3e_async.machine import events, messages
from fr3e_async.machine.messages import Message, Work
from fr3e_async.machine.slots import EXPLORERS, GENERATORS, OTHER, VERIFIERS, Role, Slots, Task, WorkerSlot
from fr3e_async.types import RolloutId

__all__ = ["EXPLORERS", "GENERATORS", "OTHER", "VERIFIERS", "Dispatcher", "Role", "Task", "WorkerSlot"]


class Dispatcher(Slots):
    """See the module's docstring. Its slots and queues are those of ``Slots``; ``handle`` is the only way to change them."""

    def __init__(self, widths: Mapping[str, int], config: PoolsConfig, *, retry_backoff_s: float = 0.0) -> None:
        """``widths``: by role, the most rollouts (verifiers: calls) that one worker is given at once.

        ``retry_backoff_s``: seconds that a second attempt rests; each later one rests twice as long.
        """
        super().__init__(widths, config)
        self._backoff_s = retry_backoff_s
        self._resting: dict[str, Task] = {}  # by the key of its Wait: tasks that are tried again later
        self._homes: dict[str, dict[RolloutId, str]] = {}  # group -> trunk -> engine that has its keys and values
        self._near = ""  # the worker whose task ends in the event that is being handled
        self._to_look_at: list[str] = []  # workers that may have run empty in it
        self._handlers: dict[type, Callable[[Any], list[Message]]] = {
            events.Delivered: self._task_ended,
            events.Scored: self._task_ended,
            events.Lost: self._task_ended,
            events.Asked: self._asked,
            events.Answered: self._answered,
            events.WorkerUp: self._worker_up,
            events.WorkerDown: lambda event: self._worker_down(event.worker, event.why, node=event.node),
            events.Refused: lambda event: self._worker_down(event.worker, f"did not take weights v{event.version}: {event.why}"),
            events.Unhired: self._unhired,
            events.Leaving: self._leaving,
            events.Begun: lambda event: [self._census(again=event.again)],
            events.Utilization: lambda event: [self._census(at=event.at, idle=dict(event.idle))],
            events.Pressure: self._pressure,
            events.Acked: self._acked,
            events.Due: self._due,
            messages.Settle: self._settle,
            messages.Sample: lambda work: self._queue(work, GENERATORS, len(work.ids)),
            messages.Branch: lambda work: self._queue(work, EXPLORERS, len(work.ids), near=self._home(work)),
            messages.Score: lambda work: self._queue(work, VERIFIERS, 1),
            messages.Forget: self._forget,
            messages.Retire: self._retire,
            messages.Hold: self._hold,
            messages.Serve: self._serve,
            messages.TakeBack: lambda command: self._withdraw(command.worker),
            messages.Send: self._send,
            messages.Move: self._move,
            messages.Drain: self._drain,
        }

    def handle(self, message: Message) -> list[Message]:
        """Apply an event, or a command of another part. Returns what follows, all but what ``Settle`` finds."""
        return self._handlers[type(message)](message)

    def _settle(self, _: messages.Settle) -> list[Message]:
        """End the handling of an event: assign queued tasks, then let workers without tasks leave, or say that they are idle."""
        commands: list[Message] = []
        for task, worker in self.place():
            if type(task.work) is messages.Branch:
                self._homes.setdefault(task.work.group, {})[task.work.trunk] = worker
            commands.append(messages.Assign(task=task.number, worker=worker, work=task.work))
        self._near = ""
        if self._to_look_at:
            workers, self._to_look_at = self._to_look_at, []
            for worker in workers:
                commands += self._if_empty(worker)
        return commands

    # ---- tasks ----

    def _queue(self, work: Work, role: str, weight: int, near: str = "") -> list[Message]:
        """Queue a task: the first attempt now, a later one after a back-off that doubles each time."""
        task = Task(work.task, role, weight, work, age=work.age, near=near)
        if work.attempt == 1 or not self._backoff_s:
            self.put(task)
            return []
        key = f"task {work.task}"
        self._resting[key] = task
        return [messages.Wait(key=key, seconds=self._backoff_s * 2 ** (work.attempt - 2))]

    def _home(self, work: messages.Branch) -> str:
        """Return the engine with the trunk's keys and values: the one that branched it before, else the one that has just made it."""
        known = self._homes.get(work.group)
        return (known and known.get(work.trunk, "")) or (self._near if self._config.flexible_roles else "")

    def _task_ended(self, event: events.Delivered | events.Scored | events.Lost) -> list[Message]:
        if type(event) is events.Delivered and event.left:
            self._near = self.part(event.task, left=event.left)
        else:
            self._near = self._ended(event.task, proof=type(event) is not events.Lost)
        return []

    def _asked(self, event: events.Asked) -> list[Message]:
        self.put(Task(event.task, event.role, event.weight, priority=event.priority))
        return []

    def _answered(self, event: events.Answered) -> list[Message]:
        self._ended(event.task, proof=event.proof)
        return []

    def _ended(self, task: int, *, proof: bool) -> str:
        worker = self.end(task, proof=proof)
        slot = self.slots.get(worker)
        if slot is not None and not slot.tasks and not slot.open:
            self._to_look_at.append(worker)
        return worker

    def _forget(self, command: messages.Forget) -> list[Message]:
        """Drop queued and resting tasks. A task that a worker runs continues, but its result changes nothing."""
        for task in command.tasks:
            self._resting.pop(f"task {task}", None)
            self.drop(task)
        return []

    def _retire(self, command: messages.Retire) -> list[Message]:
        self._homes.pop(command.group, None)
        return []

    def _due(self, event: events.Due) -> list[Message]:
        """Queue a task whose back-off is over, or withdraw the tasks of a leaving worker whose time is up."""
        if (task := self._resting.pop(event.key, None)) is not None:
            self.put(task)
            return []
        kind, _, worker = event.key.partition(" ")
        slot = self.slots.get(worker)
        return self._withdraw(worker) if kind == "leave" and slot is not None and slot.leaving else []

    def _withdraw(self, worker: str) -> list[Message]:
        tasks = self.tasks_of(worker)
        return [messages.Withdraw(worker=worker, tasks=tasks)] if tasks else []

    # ---- workers ----

    def _worker_up(self, event: events.WorkerUp) -> list[Message]:
        self.slot_up(event.role, event.worker, node=event.node)
        return []

    def _worker_down(self, worker: str, why: str, *, node: bool = False) -> list[Message]:
        down = self.slot_down(worker, why, node=node)
        if down is None:
            return []
        role, delay_s = down
        return [messages.Release(worker=worker, why=why), self._vacant(role, delay_s), messages.Gone(worker=worker)]

    def _unhired(self, event: events.Unhired) -> list[Message]:
        return [self._vacant(event.role, self.not_started(event.role, event.why), event.ticket)]

    def _vacant(self, role: str, delay_s: float = 0.0, ticket: int = 0) -> messages.Vacant:
        return messages.Vacant(role=role, staying=self.staying(role), delay_s=delay_s, ticket=ticket)

    def _leaving(self, event: events.Leaving) -> list[Message]:
        """Start a replacement at once. The worker's tasks get half of the notice to finish; the rest is for reassigning them."""
        slot = self.slots.get(event.worker)
        if slot is None:
            return []
        limit = self._config.drain_timeout_s
        limit = min(limit, event.seconds / 2) if event.seconds else limit
        if slot.leaving:  # because the pool was made smaller, say, and with more time than there is now
            return [messages.Wait(key=f"leave {event.worker}", seconds=limit)]
        self.drain(event.worker, event.why)
        return [self._vacant(slot.role), messages.Drain(worker=event.worker, why=event.why, seconds=limit)]

    def _drain(self, command: messages.Drain) -> list[Message]:
        """Give a worker no more tasks. It leaves once it has none; after a time its tasks are withdrawn."""
        self.drain(command.worker, command.why)
        limit = self._config.drain_timeout_s if command.seconds is None else command.seconds
        return self._if_empty(command.worker) or [messages.Wait(key=f"leave {command.worker}", seconds=limit)]

    def _if_empty(self, worker: str) -> list[Message]:
        """Release a leaving worker without tasks, unless it receives weights; tell the fleet of a held one that it is idle."""
        slot = self.slots.get(worker)
        if slot is None or slot.tasks:
            return []
        if not slot.leaving:
            return [messages.Idle(worker=worker)] if slot.held else []
        if slot.receiving:
            return []
        self.gone(worker)
        return [messages.Release(worker=worker, why=slot.why, lost=False), messages.Gone(worker=worker)]

    def _pressure(self, event: events.Pressure) -> list[Message]:
        self.press(event.worker, kv_used=event.kv_used, waiting=event.waiting, preempted=event.preempted)
        return []

    def _move(self, command: messages.Move) -> list[Message]:
        self.move(command.worker, command.role)
        return []

    def _census(self, *, at: float | None = None, idle: Mapping[str, float] = {}, again: bool = False) -> messages.Census:
        pools = {
            name: messages.PoolCensus(
                spare=tuple(self.spare(name, len(self.slots))), leaving=self.leaving(name), queued=role.waiting,
                fill=self.fill(name), idle=idle.get(name, 0.0),
            )
            for name, role in self.roles.items()
        }  # fmt: skip
        return messages.Census(pools=pools, at=at, again=again)

    # ---- weights ----

    def _hold(self, command: messages.Hold) -> list[Message]:
        self.hold(command.worker)
        self._to_look_at.append(command.worker)
        return []

    def _serve(self, command: messages.Serve) -> list[Message]:
        self.release(command.worker)
        return []

    def _send(self, command: messages.Send) -> list[Message]:
        for worker in command.workers:
            self.slots[worker].receiving = True
        return []

    def _acked(self, event: events.Acked) -> list[Message]:
        if (slot := self.slots.get(event.worker)) is not None:
            slot.receiving = False
            if slot.leaving:
                self._to_look_at.append(event.worker)
        return []
