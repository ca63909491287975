"""How many actors every pool is to have, and which ones come and go. Pure.

    Busy (idle times) + the dispatcher's queues ─► wanted, from min to max ─► Hire | Move | Dismiss | drain ─► as many as wanted
    a worker is lost, leaves, or did not start                       ─► Hire, if one is missing

A pool grows when its tasks have waited without a pause for ``pools.grow_after_s``: to what holds all that it has and all that
waits, at most twofold at a time. (Nothing waits when the learner is what holds a run up: then the staleness bound stops
admission, and more engines would be idle.) It shrinks to the most that it needed over the last ``pools.shrink_after_s`` for
its actors to be at work ``pools.busy_target`` of the time. An engine that its own pool could spare for ``pools.grow_after_s``
is moved to the other one before a new one is started, if both are placed alike: it has weights and needs no node.

Who has asked for actors has them counted at once, so that a cluster that takes minutes for a node is asked once. A run never
waits for actors beyond ``min``: what comes later joins.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from fr3e_async.config import Config, PoolsConfig
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, OTHER, VERIFIERS, Dispatcher
from fr3e_async.machine.events import Utilization
from fr3e_async.machine.messages import Dismiss, Drain, Hire, Move, Resizing, SetPoolTarget

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
    """See the module's docstring. It looks at the dispatcher and moves slots there; the machine drains."""

    def __init__(self, bounds: Mapping[str, Bounds], config: PoolsConfig, dispatcher: Dispatcher, *, alike: bool) -> None:
        """``alike``: an engine of either pool could be one of the other."""
        self._config, self._dispatcher, self._alike = config, dispatcher, alike
        self.pools = {role: Pool(its, wanted=its.count) for role, its in bounds.items()}
        self._ticket = 0

    @property
    def elastic(self) -> bool:
        return any(pool.bounds.least < pool.bounds.most for pool in self.pools.values())

    def missing(self, role: str) -> int:
        """Return how many actors to start beyond those present or requested; negative: how many are too many."""
        pool = self.pools[role]
        return pool.wanted - self._dispatcher.staying(role) - len(pool.hiring)

    # ---- events ----

    def begun(self, *, again: bool = False) -> list[Resizing]:
        """All that was there is known. ``again``: it has the size that a session before gave it."""
        for role, pool in self.pools.items():
            pool.wanted = pool.clamp(max(0 if again else pool.wanted, self._dispatcher.staying(role)))
        return self._settle()

    def up(self, role: str, ticket: int) -> None:
        self.pools[role].hiring.pop(ticket, None)

    def lost(self, role: str, *, delay_s: float = 0.0, ticket: int = 0) -> list[Resizing]:
        """Replace a worker that is gone, is about to leave, or did not start (``ticket``), if the pool needs it."""
        self.pools[role].hiring.pop(ticket, None)
        return self._hire(role, self.missing(role), delay_s)

    def busy(self, event: Utilization) -> list[Resizing]:
        """Take a report of idle fractions and decide which pools grow or shrink."""
        idle = dict(event.idle)
        for role, pool in self.pools.items():
            self._look_at(role, pool, idle.get(role, 0.0), event.at)
        return self._settle(at=event.at)

    # ---- inside ----

    def _look_at(self, role: str, pool: Pool, idle: float, at: float) -> None:
        up, queued = self._dispatcher.staying(role), self._dispatcher.queued(role)
        pool.needs.append((at, math.ceil(up * (1 - idle) / self._config.busy_target - 1e-9)))
        while len(pool.needs) > 1 and pool.needs[1][0] <= at - self._config.shrink_after_s:
            pool.needs.popleft()
        if not queued:
            pool.waiting_since = None
            if (most := self._most_needed(pool, at, self._config.shrink_after_s)) is not None:
                pool.wanted = pool.clamp(min(pool.wanted, most))
            return
        pool.waiting_since = at if pool.waiting_since is None else pool.waiting_since
        if self._has_waited(pool, at):
            room = pool.bounds.most - self._dispatcher.leaving(role)  # one that drains counts until it has gone
            enough = min(math.ceil(self._dispatcher.fill(role)), math.floor(GROWTH * max(up, 1)), room)
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

    def _settle(self, at: float | None = None) -> list[Resizing]:
        """Return the commands that bring each pool from its present size to the wanted one; drains come last."""
        commands: list[Resizing] = []
        drained: list[Resizing] = []
        if at is not None and self._alike:
            for role in OTHER:
                commands += self._moves(role, at)
        for role, pool in self.pools.items():
            missing = self.missing(role)
            commands += self._hire(role, missing)
            while missing < 0 and pool.hiring:
                ticket, _ = pool.hiring.popitem()
                commands.append(Dismiss(ticket=ticket))
                missing += 1
            if missing < 0:
                drained += [Drain(worker=name, why="the pool is made smaller") for name in self._dispatcher.spare(role, -missing)]
            if pool.wanted != pool.told:
                pool.told = pool.wanted
                commands.append(SetPoolTarget(role=role, actors=pool.wanted))
        return commands + drained

    def _moves(self, role: str, at: float) -> list[Resizing]:
        """Engines that the other pool can spare, for one that waits for more."""
        pool, other = self.pools.get(role), self.pools.get(OTHER[role])
        if pool is None or other is None or not self._has_waited(pool, at):
            return []
        short = pool.wanted - self._dispatcher.staying(role)
        needed = self._most_needed(other, at, self._config.grow_after_s)
        if short <= 0 or needed is None or other.waiting_since is not None:
            return []
        spare = min(short, self._dispatcher.staying(OTHER[role]) - max(other.bounds.least, needed))
        moved: list[Resizing] = []
        for worker in self._dispatcher.spare(OTHER[role], max(spare, 0)):
            self._dispatcher.move(worker, role)
            other.wanted = other.clamp(other.wanted - 1)
            moved.append(Move(worker=worker, role=role))
        return moved

    def _hire(self, role: str, count: int, delay_s: float = 0.0) -> list[Resizing]:
        hires: list[Resizing] = []
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
