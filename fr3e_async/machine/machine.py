"""The control plane as one pure state machine: groups, workers and weights. Events in, commands out.

    event ─► ledger     groups, staleness, batches            Sample, Branch, Score ─► a task of a pool
          ─► dispatcher who does which task                   Assign
          ─► fleet      which weights every engine serves     Send, Withdraw, Live ─► the ledger's slots
          ─► autoscaler how many workers there are to be      Hire, Dismiss, Move, Release

No clock, no chance that is not seeded, no Ray: the same events give the same commands, on any machine. So a recorded run can
be replayed step by step (``replay``), and the same machine runs on a virtual clock (``simulate``). The world around it, real
(``controller``), faked or simulated, carries out commands and reports what happened; it decides nothing.
"""

from collections.abc import Iterable

from fr3e_async.algorithm.strategies import Strategy, explorer_count
from fr3e_async.config import Config
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS, Dispatcher, Task
from fr3e_async.machine.events import (
    Acked,
    Answered,
    Asked,
    Begun,
    Delivered,
    Due,
    Event,
    Exported,
    Leaving,
    Lost,
    Pressure,
    Published,
    Refused,
    Scored,
    Stopped,
    Unhired,
    Utilization,
    WorkerDown,
    WorkerUp,
)
from fr3e_async.machine.fleet import Fleet, Steps
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import (
    Assign,
    Branch,
    Command,
    Drain,
    Forget,
    LedgerCommand,
    Live,
    Release,
    Resizing,
    Retire,
    Sample,
    Score,
    Send,
    Wait,
    Withdraw,
    Work,
    group_of,
)
from fr3e_async.machine.sizing import Autoscaler, alike, bounds_of
from fr3e_async.types import RolloutId

POOL_WORK = (Sample, Branch, Score)
CALLS_OF_A_VERIFIER_WORKER = 4  # calls given to a verifier for each of its processes: none of them runs dry


class Machine:
    """Turns events into commands. Call ``start`` once, then ``handle`` for each event."""

    def __init__(self, config: Config, strategy: Strategy, *, state: LedgerState | None = None) -> None:
        self._config = config
        self.ledger = Ledger(config, strategy, state=state)
        self.fleet = Fleet(config.weights, version=self.ledger.version)
        widths = {
            GENERATORS: config.generators.rollouts_in_flight,
            EXPLORERS: config.explorers.rollouts_in_flight,
            VERIFIERS: max(CALLS_OF_A_VERIFIER_WORKER * config.verifiers.workers, 8),
        }
        self.dispatcher = Dispatcher(widths, config.pools)
        bounds = bounds_of(config, explorers=explorer_count(config))
        self.autoscaler = Autoscaler(bounds, config.pools, self.dispatcher, alike=alike(config))
        self._resting: dict[str, Task] = {}  # by the key of its Wait: tasks that are tried again later
        self.leaves: dict[str, str] = {}  # worker that only finishes its running tasks -> why
        self._homes: dict[str, dict[RolloutId, str]] = {}  # group -> trunk -> engine that has its keys and values

    def start(self) -> list[Command]:
        """Return the commands that groups from a checkpoint still need."""
        return self._settle(self.ledger.resume())

    def handle(self, event: Event) -> list[Command]:
        """Apply one event and return the commands to begin now. Raises ``RunFailed`` kinds where the run must not continue."""
        match event:
            case Delivered() | Scored() | Lost():
                return self._task_over(event)
            case Asked():
                self.dispatcher.put(Task(event.task, event.role, event.weight, priority=event.priority))
                return self._settle([])
            case Answered():
                worker = self.dispatcher.end(event.task, proof=event.proof)
                return self._settle(self._if_idle(worker))
            case WorkerUp():
                return self._worker_up(event)
            case WorkerDown():
                return self._worker_down(event.worker, event.why, node=event.node)
            case Unhired():
                delay = self.dispatcher.not_started(event.role, event.why)
                return self._settle(self.autoscaler.lost(event.role, delay_s=delay, ticket=event.ticket))
            case Begun():
                return self._settle(self.autoscaler.begun(again=event.again))
            case Utilization():
                return self._settle(self.autoscaler.busy(event))
            case Leaving():
                return self._leaving(event)
            case Pressure():
                self.dispatcher.press(event.worker, kv_used=event.kv_used, waiting=event.waiting, preempted=event.preempted)
                return self._settle([])
            case Exported():
                return self._settle(self._follow(self.fleet.exported(event.version)))
            case Acked():
                followed = self._follow(self.fleet.acked(event.worker, event.version))
                return self._settle([*followed, *self._if_drained(event.worker)])
            case Refused():
                return self._worker_down(event.worker, f"did not take weights v{event.version}: {event.why}")
            case Due():
                return self._due(event.key)
            case Stopped():
                self.ledger.stop()
                return []
            case _:
                return self._settle(self.ledger.handle(event))

    # ---- tasks ----

    def _task_over(self, event: Delivered | Scored | Lost) -> list[Command]:
        if isinstance(event, Delivered) and event.left:
            return self._settle(self.ledger.handle(event), near=self.dispatcher.part(event.task, left=event.left))
        worker = self.dispatcher.end(event.task, proof=not isinstance(event, Lost))
        commands = self._settle(self.ledger.handle(event), near=worker)
        waited_for = worker in self.leaves or self._paused(worker)
        return commands + self._settle(self._if_idle(worker)) if waited_for else commands

    def _settle(self, commands: Iterable[LedgerCommand | Resizing | Command], near: str = "") -> list[Command]:
        """Route commands: work to the dispatcher's queues, what is for a part of the machine to it, the rest out; then hand out tasks."""
        out: list[Command] = []
        for command in commands:
            if isinstance(command, POOL_WORK):
                out += self._queue(command, near)
            elif isinstance(command, Forget):
                self._forget(command)
            elif isinstance(command, Drain):
                out += self._drain(command.worker, command.why, self._config.pools.drain_timeout_s)
            else:
                if isinstance(command, Retire):
                    self._homes.pop(command.group, None)
                out.append(command)
        for task, worker in self.dispatcher.place():
            if isinstance(task.work, Branch):
                self._homes.setdefault(task.work.group, {})[task.work.trunk] = worker
            out.append(Assign(task=task.number, worker=worker, work=task.work))
        return out

    def _queue(self, work: Work, near: str) -> list[Command]:
        """Queue a task: the first attempt now, a later one after a back-off that doubles each time."""
        task = self._task(work, near)
        delay = self._config.flow.retry_backoff_s
        if work.attempt == 1 or not delay:
            self.dispatcher.put(task)
            return []
        key = f"task {work.task}"
        self._resting[key] = task
        return [Wait(key=key, seconds=delay * 2 ** (work.attempt - 2))]

    def _forget(self, command: Forget) -> None:
        """Drop queued and delayed tasks. A task that a worker runs continues, but its result changes nothing."""
        for task in command.tasks:
            self._resting.pop(f"task {task}", None)
            self.dispatcher.drop(task)

    def _task(self, work: Work, near: str) -> Task:
        group = group_of(work)
        age = self.ledger.age_of(group)
        match work:
            case Sample():
                return Task(work.task, GENERATORS, len(work.ids), work, age=age)
            case Branch():
                home = self._homes[group].get(work.trunk, "") if group in self._homes else ""
                if not home and self._config.pools.flexible_roles:
                    home = near  # before it was branched: who made it
                return Task(work.task, EXPLORERS, len(work.ids), work, age=age, near=home)
            case Score():
                return Task(work.task, VERIFIERS, 1, work, age=age)

    def _due(self, key: str) -> list[Command]:
        task = self._resting.pop(key, None)
        if task is not None:
            self.dispatcher.put(task)
            return self._settle([])
        kind, _, rest = key.partition(" ")
        if kind == "idle":
            version, _, worker = rest.partition(" ")
            return self._settle(self._follow(self.fleet.overdue(worker, int(version))))
        if rest in self.leaves and (
            tasks := self.dispatcher.tasks_of(rest)
        ):  # of a worker that leaves, and no task's that has gone
            return [Withdraw(worker=rest, tasks=tasks)]
        return []

    # ---- workers ----

    def _worker_up(self, event: WorkerUp) -> list[Command]:
        self.dispatcher.slot_up(event.role, event.worker, node=event.node)
        self.autoscaler.up(event.role, event.ticket)
        commands = [] if event.role == VERIFIERS else self._follow(self.fleet.join(event.worker, event.version))
        return self._settle(commands)

    def _worker_down(self, worker: str, why: str, *, node: bool = False) -> list[Command]:
        down = self.dispatcher.slot_down(worker, why, node=node)
        if down is None:
            return []
        role, delay = down
        self.leaves.pop(worker, None)
        hired = self.autoscaler.lost(role, delay_s=delay)
        return self._settle([Release(worker=worker, why=why), *hired, *self._follow(self.fleet.leave(worker))])

    def _leaving(self, event: Leaving) -> list[Command]:
        """Another one is started at once; half of the notice is for the tasks that it has, the rest for giving them away."""
        slot = self.dispatcher.slots.get(event.worker)
        if slot is None:
            return []
        limit = self._config.pools.drain_timeout_s
        limit = min(limit, event.seconds / 2) if event.seconds else limit
        if slot.leaving:  # because the pool was made smaller, say, and with more time than there is now
            return [Wait(key=f"leave {event.worker}", seconds=limit)]
        drained = self._drain(event.worker, event.why, limit)
        return self._settle([*self.autoscaler.lost(slot.role), *drained])

    def _drain(self, worker: str, why: str, limit: float) -> list[Command]:
        """Give a worker no more tasks. It leaves once it has none; after ``limit`` seconds its tasks are withdrawn."""
        self.dispatcher.drain(worker)
        self.leaves[worker] = why
        return self._if_idle(worker) or [Wait(key=f"leave {worker}", seconds=limit)]

    def _if_drained(self, worker: str) -> list[Command]:
        """Release a leaving worker that has no task left, unless it is receiving weights."""
        if worker not in self.leaves or self.dispatcher.tasks_of(worker) or self.fleet.receives(worker):
            return []
        self.dispatcher.gone(worker)
        release = Release(worker=worker, why=self.leaves.pop(worker), lost=False)
        return [release, *self._follow(self.fleet.leave(worker))]

    # ---- weights ----

    def _follow(self, steps: Steps) -> list[Command]:
        """Apply the fleet's steps to the dispatcher; returns the remaining ones as commands."""
        commands: list[Command] = []
        for worker in steps.pause:
            self.dispatcher.hold(worker)
        for worker in steps.withdraw:
            if tasks := self.dispatcher.tasks_of(worker):
                commands.append(Withdraw(worker=worker, tasks=tasks))
        if steps.pause and self._config.weights.update == "wait_idle":
            delay, version = self._config.weights.idle_timeout_s, self.fleet.target
            commands += [Wait(key=f"idle {version} {w}", seconds=delay) for w in steps.pause]
        if steps.send is not None:
            commands.append(Send(version=self.fleet.target, workers=steps.send))
        for worker in steps.catch_up:
            commands.append(Send(version=self.fleet.target, workers=(worker,), alone=True))
        for worker in steps.serve:
            self.dispatcher.release(worker)
        for worker in steps.pause:
            commands += self._if_idle(worker)
        return commands + self._if_live()

    def _paused(self, worker: str) -> bool:
        slot = self.dispatcher.slots.get(worker)
        return slot is not None and slot.held

    def _if_idle(self, worker: str) -> list[Command]:
        """Let a worker without tasks leave if it is draining, and receive weights if it is paused."""
        if worker in self.leaves:
            return self._if_drained(worker)
        if not self._paused(worker) or self.dispatcher.tasks_of(worker):
            return []
        return self._follow(self.fleet.idle(worker))

    def _if_live(self) -> list[Command]:
        live = self.fleet.live
        if live <= self.ledger.live:
            return []
        self.ledger.handle(Published(version=live))  # frees slots, and asks for nothing
        return [Live(version=live)]
