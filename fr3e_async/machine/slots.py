"""Queues by role, and slots of workers: the slot with the most room, affinity, limits that follow the cache. Pure.

    put ─► queue of the role ─► place ─► (task, worker)               a slot has room for weight ``limit`` at once
    end ─► room again                                                 press ─► the slot's limit falls or grows (AIMD)
    slot_up, slot_down, hold, release ─► slots come, go, get nothing for a while
    drain, gone, move ─► a slot gets nothing any more, is lost, belongs to the other engine role

A task goes to the slot of its role with the most room; to the worker that holds its prefix if that is not much fuller; with
flexible roles to a slot of the other engine role that is much emptier, while that role has nothing waiting itself. Older
groups come first, because a batch waits for its slowest group. Choosing costs O(log slots): slots lie in a heap by room,
stale entries are dropped when met.

Capacity does not leak: a slot's load is the weight of the tasks that it has, and a task leaves it in ``end`` and nowhere
else, whatever became of the worker.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from fr3e_async.config import PoolsConfig
from fr3e_async.errors import RunFailed, cause_of
from fr3e_async.machine.messages import Work

GENERATORS, EXPLORERS, VERIFIERS = "generators", "explorers", "verifiers"
OTHER = {GENERATORS: EXPLORERS, EXPLORERS: GENERATORS}
GROWTH = 16  # a limit grows by the role's width / GROWTH at a time
STALE = 64  # entries for each slot after which a heap is cleared of stale ones
LONGEST_BACKOFF_S = 60.0  # before replacing a worker that finished no task
SLACK = 4  # loads that differ by less than width / SLACK count as equal: then a prefix at hand decides, or the role


class Task(msgspec.Struct, frozen=True, eq=False):
    """Something for a worker of a role to do. ``weight``: rollouts; ``near``: the worker that holds the prefix."""

    number: int
    role: str
    weight: int
    work: Work | None = None
    priority: int = 0  # lower ones first
    age: int = 0  # lower ones first among equals: when the group was admitted
    near: str = ""


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """A worker with its running tasks, and the most it may run at once (``limit``, in rollouts; verifiers: calls)."""

    worker: str
    role: str
    limit: int
    node: str = ""
    load: int = 0
    tasks: set[int] = field(default_factory=set)
    held: bool = False  # gets nothing while its weights change
    leaving: bool = False  # gets nothing any more,
    why: str = ""  # and the reason
    receiving: bool = False  # new weights are on their way to it
    up: bool = True
    proven: bool = False  # it has finished a task
    stamp: int = 0  # of its newest entry in the heap

    @property
    def room(self) -> int:
        return self.limit - self.load

    @property
    def open(self) -> bool:
        """True if the worker may receive tasks: in service, not held, not leaving."""
        return self.up and not self.held and not self.leaving


@dataclass(slots=True)
class Role:
    """The queue of a role and the slots that take from it."""

    width: int  # largest limit of a slot
    queue: list[tuple[int, int, int, Task]] = field(default_factory=list)
    rooms: list[tuple[int, int, int, WorkerSlot]] = field(default_factory=list)  # most room first
    waiting: int = 0  # tasks queued
    waiting_weight: int = 0  # of these
    slots: int = 0
    deaths_in_a_row: int = 0  # workers that died before they finished a task, or did not start
    last_cause: str = ""  # of the last of these, as its log has it
    replacements: int = 0


class Slots:
    """Track which worker has room: ``put`` queues a task, ``place`` assigns the tasks that fit, ``end`` frees the room of one."""

    def __init__(self, widths: Mapping[str, int], config: PoolsConfig) -> None:
        """``widths``: by role, the most rollouts (verifiers: calls) that one worker is given at once."""
        self._config = config
        self.roles = {role: Role(width) for role, width in widths.items()}
        self.slots: dict[str, WorkerSlot] = {}
        self._at: dict[int, tuple[WorkerSlot, int]] = {}  # task -> where it is, and its weight
        self._queued: dict[int, Task] = {}
        self._order = itertools.count()

    # ---- queries ----

    def queued(self, role: str) -> int:
        return self.roles[role].waiting

    def in_flight(self, role: str) -> int:
        """Rollouts (verifiers: calls) that the role's workers have now."""
        return sum(slot.load for slot in self.slots.values() if slot.role == role)

    def tasks_of(self, worker: str) -> tuple[int, ...]:
        slot = self.slots.get(worker)
        return tuple(sorted(slot.tasks)) if slot else ()

    def staying(self, role: str) -> int:
        """Workers of the role that are not about to leave."""
        return sum(slot.role == role and not slot.leaving for slot in self.slots.values())

    def leaving(self, role: str) -> int:
        """Workers of the role that are about to leave."""
        return sum(slot.role == role and slot.leaving for slot in self.slots.values())

    def fill(self, role: str) -> float:
        """Number of workers that could run all of the role's tasks, running and queued, at once."""
        limits = [slot.limit for slot in self.slots.values() if slot.role == role and not slot.leaving]
        each = sum(limits) / len(limits) if limits else self.roles[role].width
        return (self.in_flight(role) + self.roles[role].waiting_weight) / max(each, 1)

    def spare(self, role: str, count: int) -> list[str]:
        """Choose ``count`` workers of the role: from the nodes with the fewest staying workers first, so that nodes become empty,
        then those with the least load, then the newest."""
        staying = [slot for slot in reversed(self.slots.values()) if slot.role == role and not slot.leaving]
        company = Counter(slot.node for slot in self.slots.values() if slot.node and not slot.leaving)
        return [slot.worker for slot in sorted(staying, key=lambda slot: (company[slot.node], slot.load))[:count]]

    # ---- tasks ----

    def put(self, task: Task) -> None:
        """Queue a task of its role, by priority, then by the age of its group, then in order of arrival."""
        role = self.roles[task.role]
        heapq.heappush(role.queue, (task.priority, task.age, next(self._order), task))
        self._queued[task.number] = task
        role.waiting += 1
        role.waiting_weight += task.weight

    def end(self, number: int, *, proof: bool) -> str:
        """End a finished or cancelled task. Returns the worker that had it, or "". ``proof``: the worker finished it."""
        if self.drop(number):
            return ""
        at = self._at.pop(number, None)
        if at is None:
            return ""
        slot, weight = at
        slot.load -= weight
        slot.tasks.discard(number)
        if proof:
            self._prove(slot)
        self._offer(slot)
        return slot.worker

    def _prove(self, slot: WorkerSlot) -> None:
        """Note that the worker finished a task, which resets its role's count of consecutive deaths."""
        slot.proven = True
        self.roles[slot.role].deaths_in_a_row, self.roles[slot.role].last_cause = 0, ""

    def part(self, number: int, *, left: int) -> str:
        """Free the room of a task's finished rollouts; ``left`` still run. Returns the worker that runs the task, or ""."""
        slot, weight = self._at.get(number, (None, 0))
        if slot is None or left >= weight:  # the event comes a second time
            return ""
        slot.load -= weight - left
        self._at[number] = (slot, left)
        self._prove(slot)
        self._offer(slot)
        return slot.worker

    def drop(self, number: int) -> bool:
        """Take a task out of the queue; False if it is in none."""
        task = self._queued.pop(number, None)
        if task is not None:  # its entry in the heap is stale now
            self.roles[task.role].waiting -= 1
            self.roles[task.role].waiting_weight -= task.weight
        return task is not None

    def place(self) -> list[tuple[Task, str]]:
        """Assign queued tasks while slots have room; returns (task, worker) pairs."""
        placed: list[tuple[Task, str]] = []
        # Generators twice: once the explorers' queue is empty they may lend.
        for name in [*self.roles, GENERATORS] if self._config.flexible_roles else self.roles:
            role = self.roles[name]
            while role.waiting:
                task = role.queue[0][3]
                if task.number not in self._queued:
                    heapq.heappop(role.queue)
                    continue
                slot = self._slot_for(name, task)
                if slot is None:
                    break
                heapq.heappop(role.queue)
                self.drop(task.number)
                self._at[task.number] = (slot, task.weight)
                slot.load += task.weight
                slot.tasks.add(task.number)
                self._offer(slot)
                placed.append((task, slot.worker))
        return placed

    def _slot_for(self, role: str, task: Task) -> WorkerSlot | None:
        """Choose the roomiest slot of its role, the one with its prefix if that has not much less room, or one of the other role.

        A task wider than a slot gets an empty one.
        """
        own = self._roomiest(role)
        if not self._config.flexible_roles and not task.near:
            return own if own is not None and (own.room >= task.weight or own.load == 0) else None
        slack = self.roles[role].width // SLACK
        other = self._roomiest(OTHER[role]) if self._lends(role) else None
        best = own if other is None or (own is not None and own.room + slack >= other.room) else other
        if best is None:
            return None
        near = self.slots.get(task.near) if task.near else None
        if near is not None and self._takes(near, role) and near.room >= task.weight and near.room + slack >= best.room:
            return near
        return best if best.room >= task.weight or best.load == 0 else None

    def _takes(self, slot: WorkerSlot, role: str) -> bool:
        return slot.open and (slot.role == role or (slot.role == OTHER.get(role) and self._lends(role)))

    def _lends(self, role: str) -> bool:
        """Say whether this role's tasks may go to the other engine role: not while that role has queued tasks."""
        other = OTHER.get(role, "")
        return self._config.flexible_roles and other in self.roles and not self.roles[other].waiting

    def _roomiest(self, role: str) -> WorkerSlot | None:
        rooms = self.roles[role].rooms
        while rooms:
            _, _, stamp, slot = rooms[0]
            if stamp == slot.stamp and slot.open:
                return slot
            heapq.heappop(rooms)
        return None

    def _offer(self, slot: WorkerSlot) -> None:
        """Push the slot's newest heap entry; its older entries become stale."""
        if slot.open:
            role = self.roles[slot.role]
            slot.stamp = next(self._order)
            heapq.heappush(role.rooms, (-slot.room, slot.stamp, slot.stamp, slot))
            if len(role.rooms) > STALE * role.slots:  # those of little room may never come to the top
                role.rooms = [entry for entry in role.rooms if entry[3].open and entry[2] == entry[3].stamp]
                heapq.heapify(role.rooms)

    # ---- slots ----

    def slot_up(self, role: str, worker: str, *, node: str = "") -> None:
        if worker in self.slots:
            raise RunFailed(f"two workers have the name {worker}")
        slot = WorkerSlot(worker, role, limit=self.roles[role].width, node=node)
        self.slots[worker] = slot
        self.roles[role].slots += 1
        self._offer(slot)

    def slot_down(self, worker: str, why: str, *, node: bool = False) -> tuple[str, float] | None:
        """Remove a worker. Returns its role and the seconds to wait before a replacement starts; None if it was removed before.

        ``node``: its node was lost, so this death does not count against the role. Its tasks count until each has ended.
        Raises ``RunFailed``: too many workers of the role have died in a row.
        """
        slot = self._vacate(worker)
        if slot is None:
            return None
        self.roles[slot.role].replacements += 1
        return slot.role, self._after_death(slot.role, worker, why, proven=slot.proven or slot.leaving or node)

    def not_started(self, role: str, why: str) -> float:
        """Count a failed start. Returns the seconds to wait before the next. Raises ``RunFailed`` like ``slot_down``."""
        return self._after_death(role, f"a new one of {role}", why, proven=False)

    def gone(self, worker: str) -> None:
        """Remove a worker that was drained and has ended. It is not replaced and does not count as a death."""
        self._vacate(worker)

    def _vacate(self, worker: str) -> WorkerSlot | None:
        slot = self.slots.pop(worker, None)
        if slot is not None:
            slot.up = False
            self.roles[slot.role].slots -= 1
        return slot

    def _after_death(self, name: str, worker: str, why: str, *, proven: bool) -> float:
        role, most = self.roles[name], self._config.max_deaths_in_a_row
        if not proven:
            role.deaths_in_a_row += 1
            same, role.last_cause = bool(cause := cause_of(why)) and cause == role.last_cause, cause
        else:
            same = False
        works = any(slot.role == name and slot.proven and not slot.leaving for slot in self.slots.values())
        if same and not works:
            raise RunFailed(f"{name}: two workers in a row died of the same cause without finishing a task; {worker}: {why}")
        if role.deaths_in_a_row > most and not works:  # else a node may have died that many were about to start on
            raise RunFailed(
                f"{name}: {most} workers in a row died without finishing a task (pools.max_deaths_in_a_row); the last one: "
                f"{worker}: {why}"
            )
        delay = self._config.replace_backoff_s * 2 ** min(role.deaths_in_a_row - 1, 30) if role.deaths_in_a_row else 0.0
        return min(delay, LONGEST_BACKOFF_S)

    def drain(self, worker: str, why: str = "") -> None:
        """Give this worker no more tasks. Its running tasks continue."""
        self.slots[worker].leaving, self.slots[worker].why = True, why

    def move(self, worker: str, role: str) -> None:
        """Move this worker's slot to the other engine role. Its running tasks continue."""
        slot = self.slots[worker]
        self.roles[slot.role].slots -= 1
        slot.role, slot.limit = role, self.roles[role].width
        self.roles[role].slots += 1
        self._offer(slot)

    def hold(self, worker: str) -> None:
        """Give this worker no tasks until ``release``. Its running tasks continue."""
        self.slots[worker].held = True

    def release(self, worker: str) -> None:
        slot = self.slots[worker]
        slot.held = False
        self._offer(slot)

    def press(self, worker: str, *, kv_used: float, waiting: int, preempted: int) -> None:
        """Adjust an engine's limit by additive increase, multiplicative decrease (AIMD).

        Evictions throw work away, which is then redone, so the limit is halved; it grows by a sixteenth while the
        cache has room and nothing waits inside the engine.
        """
        slot = self.slots.get(worker)
        if slot is None:
            return
        width = self.roles[slot.role].width
        if preempted > 0 or kv_used > self._config.kv_high:
            limit = max(min(self._config.least_in_flight, width), min(slot.limit, max(slot.load, 1)) // 2)
        elif kv_used < self._config.kv_low and waiting == 0:
            limit = min(width, slot.limit + max(1, width // GROWTH))
        else:
            limit = slot.limit
        if limit != slot.limit:
            slot.limit = limit
            self._offer(slot)
