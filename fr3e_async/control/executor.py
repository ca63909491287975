"""Carries out the machine's commands: each runs as its own task and ends in exactly one event. Decides nothing.

Assign ─► a call to the worker, with a lease ─► Delivered, … | Scored | Lost (and WorkerDown, if that is why)
Send   ─► Publisher ─► Acked | Refused          Hire ─► wait, start a new worker ─► WorkerUp | Unhired    Dismiss ─► not any more
Wait   ─► Due                                    Release ─► it is ended    Withdraw ─► the calls are cancelled ─► Lost(counted=False)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

from fr3e_async.control.context import SHELTER_S, RunContext
from fr3e_async.control.door import Door
from fr3e_async.control.ports import Delivery, EngineWorker, Payload, TaskLost, WorkerLost
from fr3e_async.control.workers import Worker
from fr3e_async.errors import LearnerLost, RunFailed, StartRefused
from fr3e_async.machine.dispatch import VERIFIERS
from fr3e_async.machine.events import Acked, Answered, Asked, Delivered, Due, Lost, Refused, Scored, Unhired, WorkerUp
from fr3e_async.machine.messages import (
    Assign,
    Branch,
    Dismiss,
    Hire,
    Move,
    Release,
    Sample,
    Score,
    Send,
    SetPoolTarget,
    Staffing,
    Wait,
    Withdraw,
    group_of,
)
from fr3e_async.types import RolloutId
from fr3e_async.weights.manifest import WeightAck


class Executor:
    """Carries out commands for workers; a command for the learner is ``Learning``'s."""

    def __init__(self, context: RunContext) -> None:
        self._workers, self._publisher, self._stream = context.workers, context.publisher, context.stream
        self._table, self._door, self._note = context.table, context.door, context.reporter.note
        self._emit, self._spawn, self._down = context.emit, context.spawn, context.down
        self.calls: dict[int, asyncio.Task[Any]] = {}  # by task: the call to a worker
        self.withdrawn: set[int] = set()
        self._loans: dict[int, asyncio.Future[str]] = {}  # by task: who waits for a worker
        self._last_loan = 0
        self.endings: set[asyncio.Task[None]] = set()
        self.hires: dict[int, asyncio.Task[None]] = {}  # by ticket
        self._wanted: dict[str, int] = {}  # by role
        self.departures = 0  # workers that have gone, one way or another

    def carry_out(self, command: Assign | Send | Staffing | Wait | Withdraw) -> None:
        match command:
            case Assign(work=None):
                self._lent(command)
            case Assign():
                self._begin(command)
            case Send():
                self._spawn(self._send(command))
            case Hire():
                self.hires[command.ticket] = self._spawn(self._hire(command))
            case Dismiss():
                if (hire := self.hires.pop(command.ticket, None)) is not None:
                    hire.cancel()
            case Release():
                self._release(command)
            case Move():
                self._workers.move(command.worker, command.role)
                text = f"{command.worker} works for the {command.role} from now on"
                self._note(text, "actor_moved", actor=command.worker, role=command.role)
            case SetPoolTarget():
                self._want(command)
            case Wait():
                self._spawn(self._wait(command))
            case Withdraw():
                for task in command.tasks:
                    self._withdraw(task)

    # ---- tasks of groups ----

    def _begin(self, command: Assign) -> None:
        """Start the worker's call. It is registered here, because it may be withdrawn before the task that awaits it runs."""
        assert command.work is not None
        owed = set(command.work.ids)
        call = asyncio.ensure_future(self._call(command, owed))
        self.calls[command.task] = call
        self._spawn(self._assign(command, call, owed)).add_done_callback(lambda _: call.cancel())

    async def _assign(self, command: Assign, call: asyncio.Future[None], owed: set[RolloutId]) -> None:
        """Await a call and report how it ended. ``owed``: rollouts that it has not delivered yet."""
        work = command.work
        assert work is not None
        group = group_of(work)

        def lost(reason: str, *, gone: bool = False, counted: bool = True) -> None:
            if not owed:  # everything had been delivered
                return
            scoring, payload = (True, work.payload) if isinstance(work, Score) else (False, -1)
            self._emit(
                Lost(
                    task=command.task, group=group, ids=tuple(id for id in work.ids if id in owed), reason=reason, scoring=scoring, payload=payload,
                    gone=gone, counted=counted,
                )
            )  # fmt: skip

        try:
            await call
        except TaskLost as error:
            if error.dead:
                self._down(error.dead, str(error), node=error.node)
            lost(str(error), gone=error.gone)
            return
        except asyncio.CancelledError:
            if command.task not in self.withdrawn:  # we ourselves are cancelled: the run ends
                raise
            self.withdrawn.discard(command.task)
            lost("withdrawn", counted=False)
            return
        finally:
            self.calls.pop(command.task, None)
            del call  # it holds its error, which holds this frame
        self.withdrawn.discard(command.task)
        lost(f"{command.worker} ended the task without {len(owed)} of its {len(work.ids)} rollouts")

    async def _call(self, command: Assign, owed: set[RolloutId]) -> None:
        """Report each result of the worker to the machine as it arrives, and remove its ids from ``owed``."""
        workers, name, work = self._workers, command.worker, command.work
        assert work is not None
        group = group_of(work)
        prompt = self._stream.prompt(group)
        match work:
            case Sample():
                await self._deliver(command, workers.sample(name, work, prompt), owed)
            case Branch():
                await self._deliver(command, workers.branch(name, work, self._table[work.trunk_payload]), owed)
            case Score():
                verdicts = await workers.judge(name, self._table[work.payload], work.rows, [prompt] * len(work.ids))
                owed.clear()
                self._emit(Scored(task=command.task, group=group, ids=work.ids, verdicts=tuple(verdicts)))

    async def _deliver(self, command: Assign, deliveries: AsyncIterator[tuple[Delivery, Payload]], owed: set[RolloutId]) -> None:
        assert command.work is not None
        group = group_of(command.work)
        async with aclosing(deliveries):  # type: ignore[type-var]
            async for delivery, made in deliveries:
                owed.difference_update(note.id for note in delivery.notes)
                key = self._table.keep(group, made)
                self._emit(
                    Delivered(
                        task=command.task, group=group, payload=key, notes=delivery.notes, anchors=delivery.anchors,
                        left=len(owed),
                    )
                )  # fmt: skip

    def _withdraw(self, task: int) -> None:
        call = self.calls.get(task)
        if call is not None and not call.done():  # there is none for a loan: an evaluation continues over an update
            self.withdrawn.add(task)
            call.cancel()

    # ---- loans of workers, for what is not a group's ----

    @asynccontextmanager
    async def lend(self, role: str, weight: int, *, priority: int) -> AsyncIterator[str]:
        """Reserve ``weight`` rollouts (verifiers: calls) on a worker of the role until the block ends; yields its name."""
        self._last_loan -= 1
        task, proof = self._last_loan, False
        self._loans[task] = asyncio.get_running_loop().create_future()
        self._emit(Asked(task=task, role=role, weight=weight, priority=priority))
        try:
            yield await self._loans[task]
            proof = True
        except TaskLost as error:
            if error.dead:
                self._down(error.dead, str(error), node=error.node)
            raise
        finally:
            del self._loans[task]
            self._emit(Answered(task=task, proof=proof))

    def _lent(self, command: Assign) -> None:
        waiting = self._loans.get(command.task)
        if waiting is not None and not waiting.done():  # else its Answered is on its way
            waiting.set_result(command.worker)

    # ---- workers and weights ----

    async def _hire(self, command: Hire) -> None:
        await asyncio.sleep(command.delay_s)
        try:
            new = await self._workers.start(command.role)
        except (WorkerLost, TimeoutError, RunFailed, StartRefused) as error:
            if isinstance(error, LearnerLost):
                raise
            self._note(f"a new one of {command.role} did not start: {error}", "actor_failed", role=command.role)
            self._emit(Unhired(ticket=command.ticket, role=command.role, why=str(error)))
            return
        finally:
            self.hires.pop(command.ticket, None)
        if why := await self._unfit(command.role, new):
            await new.close()
            self._emit(Unhired(ticket=command.ticket, role=command.role, why=self._workers.explained(new.name, why)))
            return
        self._workers.add(command.role, new)
        self._note(f"{new.name} has joined", "actor_joined", actor=new.name, role=command.role)
        self._emit(WorkerUp(role=command.role, worker=new.name, ticket=command.ticket, node=new.node))

    async def _unfit(self, role: str, new: Worker) -> str:
        """Return why a new engine must not serve its initial weights, or "". Newer weights are checked when it receives them."""
        if role == VERIFIERS:
            return ""
        engine, refused = cast(EngineWorker, new), ""

        def told(name: str, reply: WeightAck | str) -> None:
            nonlocal refused
            refused = reply if isinstance(reply, str) else ""

        if self._publisher.version == 0:  # the weights that it read from its disk have not been compared yet
            await self._publisher.hand_over([engine], told, alone=True)
        if refused or self._door is None or not self._door.knows(0):
            return refused
        return await self._door.ask(engine)

    def _release(self, command: Release) -> None:
        """End a worker's actor. Its running calls fail, and the machine gives their tasks to others."""
        role = self._workers.role(command.worker)
        if command.lost:
            self._note(f"{command.worker} is lost: {command.why}", "actor_lost", actor=command.worker, role=role)
        else:
            self._note(f"{command.worker} has left: {command.why}", "actor_left", actor=command.worker, role=role)
        self.departures += 1
        old = self._workers.remove(command.worker)
        if old is None:
            return
        ending = old.close() if command.lost else self._see_off(old)
        task = asyncio.get_running_loop().create_task(ending)  # not one of the run's: that ends, and this must not be left out
        self.endings.add(task)
        task.add_done_callback(self.endings.discard)

    async def _see_off(self, worker: Worker) -> None:
        """Copy the payloads that the run needs to this node, then close the worker: its node may go away with it."""
        try:
            async with asyncio.timeout(2 * SHELTER_S):
                await self._table.shelter(self._workers.payloads)
        except TimeoutError:
            self._note(f"rollouts of {worker.name} could not be fetched within {2 * SHELTER_S:g} s")
        finally:
            await worker.close()

    def _want(self, command: SetPoolTarget) -> None:
        before = self._wanted.get(command.role)
        self._wanted[command.role] = command.actors
        self._workers.set_target(command.role, command.actors)
        if before is not None:
            text = f"{command.role}: {command.actors} wanted, {before} before"
            self._note(text, "pool_resized", role=command.role, count=command.actors)

    async def _send(self, command: Send) -> None:
        engines = [engine for name in command.workers if (engine := self._workers.engine(name)) is not None]

        def told(name: str, reply: WeightAck | str) -> None:
            if isinstance(reply, str):
                self._emit(Refused(worker=name, version=command.version, why=self._workers.explained(name, reply)))
            elif self._door is not None and self._door.wants(name):
                self._spawn(self._at_the_door(self._door, name, reply.version))
            else:
                self._emit(Acked(worker=name, version=reply.version))

        await self._publisher.hand_over(engines, told, alone=command.alone)

    async def _at_the_door(self, door: Door, name: str, version: int) -> None:
        """One that is in service continues meanwhile; another one serves only if its numbers are the learner's."""
        fresh, engine = door.fresh(name), self._workers.engine(name)
        if not fresh:
            self._emit(Acked(worker=name, version=version))
        why = await door.ask(engine) if engine is not None else ""
        if why and fresh:
            self._emit(Refused(worker=name, version=version, why=self._workers.explained(name, why)))
        elif why:
            self._down(name, why)
        elif fresh:
            self._emit(Acked(worker=name, version=version))

    async def _wait(self, command: Wait) -> None:
        await asyncio.sleep(command.seconds)
        self._emit(Due(key=command.key))
