"""Decide how many actors each pool has, and which ones start, move or leave. Pure.

    Census (idle times, queues, who stays)     ─► wanted, from min to max ─► Hire | Move | Dismiss | Drain ─► as many as wanted
    Vacant (a worker is lost, leaves, or did not start) ─► Hire, if one is missing
    WorkerUp ─► its ticket is done

A pool grows when its tasks have waited without a pause for ``pools.grow_after_s``: to what holds all that it has and all that
waits, at most twofold at a time. (Nothing waits when the learner is what holds a run up: then the staleness bound stops
admission, and more engines would be idle.) It shrinks to the most that it needed over the last ``pools.shrink_after_s`` for
its actors to be at work ``pools.busy_target`` of the time. An engine that its own pool could spare for ``pools.grow_after_s``
is moved to the other one before a new one is started, if both are placed alike: it has weights and needs no node.

Requested actors count at once, so a cluster that takes minutes to start a node is asked only once. A run never
waits for actors beyond ``min``: what comes later joins.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fr3e_async.config import Config, PoolsConfig
from fr3e_async.machine.events import WorkerUp
from fr3e_async.machine.messages import Census, Dismiss, Drain, Hire, Message, Move, PoolCensus, SetPoolTarget, Vacant
from fr3e_async.machine.slots import EXPLORERS, GENERATORS, OTHER, VERIFIERS

GROWTH = 2.0  # largest factor at a time


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many actors a pool may have: at least, when a run begins, at most."""

    least: int
    count: int  # when a run begins
    most: int


@dataclass(slots=True)
class Pool:
    """How many actors a role is to have (``wanted``), and the measurements behind that number."""

    bounds: Bounds
    wanted: int
    told: int = -1  # the target last sent to the cluster's autoscaler
    hiring: dict[int, None] = field(default_factory=dict)  # tickets, oldest first
    waiting_since: float | None = None  # tasks, without a pause
    needs: deque[tuple[float, int]] = field(default_factory=deque)  # (time, actors that were needed then)

    def clamp(self, actors: int) -> int:
        return max(self.bounds.least, min(self.bounds.most, actors))


class Autoscaler:
    """See the module's docstring. It knows the workers only from the census; the dispatcher moves and drains them."""

    def __init__(self, bounds: Mapping[str, Bounds], config: PoolsConfig, *, alike: bool) -> None:
        """``alike``: an engine of either pool could be one of the other."""
        self._config, self._alike = config, alike
        self.pools = {role: Pool(its, wanted=its.count) for role, its in bounds.items()}
        self._ticket = 0
        self._handlers: dict[type, Callable[[Any], list[Message]]] = {
            Census: self._counted,
            Vacant: self._vacant,
            WorkerUp: self._worker_up,
        }

    @property
    def elastic(self) -> bool:
        return any(pool.bounds.least < pool.bounds.most for pool in self.pools.values())

    # ---- events ----

    def handle(self, message: Message) -> list[Message]:
        """Apply one event, or a message of the dispatcher; return commands that start, move and remove actors."""
        return self._handlers[type(message)](message)

    def _worker_up(self, event: WorkerUp) -> list[Message]:
        self.pools[event.role].hiring.pop(event.ticket, None)
        return []

    def _vacant(self, message: Vacant) -> list[Message]:
        """Replace a worker, if the pool needs it."""
        pool = self.pools[message.role]
        pool.hiring.pop(message.ticket, None)
        return self._hire(message.role, pool.wanted - message.staying - len(pool.hiring), message.delay_s)

    def _counted(self, census: Census) -> list[Message]:
        """Decide which pools grow or shrink; at first all that is there stays, within the bounds."""
        staying = {role: list(census.pools[role].spare) for role in self.pools}
        commands: list[Message] = []
        if census.at is None:  # after ``again`` they have the size that a session before gave them
            for role, pool in self.pools.items():
                pool.wanted = pool.clamp(max(0 if census.again else pool.wanted, len(staying[role])))
        else:
            for role, pool in self.pools.items():
                self._look_at(pool, census.pools[role], census.at)
            if self._alike:
                for role in OTHER:
                    commands += self._moves(role, staying, census.at)
        return commands + self._settle(staying)

    # ---- inside ----

    def _look_at(self, pool: Pool, census: PoolCensus, at: float) -> None:
        up = len(census.spare)
        pool.needs.append((at, math.ceil(up * (1 - census.idle) / self._config.busy_target - 1e-9)))
        while len(pool.needs) > 1 and pool.needs[1][0] <= at - self._config.shrink_after_s:
            pool.needs.popleft()
        if not census.queued:
            pool.waiting_since = None
            if (most := self._most_needed(pool, at, self._config.shrink_after_s)) is not None:
                pool.wanted = pool.clamp(min(pool.wanted, most))
            return
        pool.waiting_since = at if pool.waiting_since is None else pool.waiting_since
        if self._has_waited(pool, at):
            room = pool.bounds.most - census.leaving  # one that drains counts until it has gone
            enough = min(math.ceil(census.fill), math.floor(GROWTH * max(up, 1)), room)
            pool.wanted = pool.clamp(max(pool.wanted, enough))
            pool.needs[-1] = (at, max(pool.needs[-1][1], enough))  # so that no requested worker is dropped before it starts

    def _has_waited(self, pool: Pool, at: float) -> bool:
        return pool.waiting_since is not None and at - pool.waiting_since >= self._config.grow_after_s

    def _most_needed(self, pool: Pool, at: float, seconds: float) -> int | None:
        """Return the most actors needed at once over the last ``seconds``; None if reports do not reach back so far."""
        if not pool.needs or pool.needs[0][0] > at - seconds:
            return None
        inside = [needed for when, needed in pool.needs if when > at - seconds]
        return max(inside, default=pool.needs[-1][1])

    def _settle(self, staying: Mapping[str, list[str]]) -> list[Message]:
        """Return the commands that bring each pool from its present size to the wanted one; drains come last."""
        commands: list[Message] = []
        drained: list[Message] = []
        for role, pool in self.pools.items():
            missing = pool.wanted - len(staying[role]) - len(pool.hiring)
            commands += self._hire(role, missing)
            while missing < 0 and pool.hiring:
                ticket, _ = pool.hiring.popitem()
                commands.append(Dismiss(ticket=ticket))
                missing += 1
            drained += [Drain(worker=name, why="the pool is made smaller") for name in staying[role][: max(-missing, 0)]]
            if pool.wanted != pool.told:
                pool.told = pool.wanted
                commands.append(SetPoolTarget(role=role, actors=pool.wanted))
        return commands + drained

    def _moves(self, role: str, staying: dict[str, list[str]], at: float) -> list[Message]:
        """Move engines that the other pool can spare, to one that waits for more. ``staying`` follows."""
        pool, other = self.pools.get(role), self.pools.get(OTHER[role])
        if pool is None or other is None or not self._has_waited(pool, at):
            return []
        short = pool.wanted - len(staying[role])
        needed = self._most_needed(other, at, self._config.grow_after_s)
        if short <= 0 or needed is None or other.waiting_since is not None:
            return []
        theirs = staying[OTHER[role]]
        count = max(0, min(short, len(theirs) - max(other.bounds.least, needed)))
        moved, theirs[:count] = theirs[:count], []
        staying[role] += moved
        for _ in moved:
            other.wanted = other.clamp(other.wanted - 1)
        return [Move(worker=worker, role=role) for worker in moved]

    def _hire(self, role: str, count: int, delay_s: float = 0.0) -> list[Message]:
        hires: list[Message] = []
        for _ in range(count):
            self._ticket += 1
            self.pools[role].hiring[self._ticket] = None
            hires.append(Hire(ticket=self._ticket, role=role, delay_s=delay_s))
        return hires


def bounds_of(config: Config, *, explorers: int) -> dict[str, Bounds]:
    """Return the pool bounds by role. ``explorers``: 0 where the strategy does not branch."""
    pools = {GENERATORS: config.generators, EXPLORERS: config.explorers, VERIFIERS: config.verifiers}
    bounds = {role: Bounds(pool.least, pool.count, pool.most) for role, pool in pools.items()}
    return bounds if explorers else bounds | {EXPLORERS: Bounds(0, 0, 0)}


def alike(config: Config) -> bool:
    """Whether both pools ask for the same resources, so that an engine of one could be one of the other."""
    g, e = config.generators, config.explorers
    return (g.cpus, g.gpus, g.resources, g.labels) == (e.cpus, e.gpus, e.resources, e.labels)
