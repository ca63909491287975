"""Heartbeats and the stall watchdog: asks every engine for its state, and says who waits for whom when nothing moves."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from fr3e_async.control.crew import Crew
from fr3e_async.control.pool import Interval, Pool
from fr3e_async.control.ports import Clock, EngineWorker, WorkerLost
from fr3e_async.errors import RunFailed
from fr3e_async.observe.timeline import idle_share, measure, overlap_fraction, union

MISSED_BEATS = 15  # heartbeats without an answer before an engine is replaced
DIAGNOSIS_LINES = 8


class Watch:
    """Collects busy times and counters by role: the raw material of idle fractions, overlap and cache hits."""

    def __init__(self, crew: Crew, *, clock: Clock, waiting: Callable[[], list[str]], learner_busy: Callable[[], bool]) -> None:
        """``learner_busy``: while it is, ``learner.step_timeout_s`` bounds the wait and the watchdog does not."""
        self._crew, self._clock, self._waiting, self._learner_busy = crew, clock, waiting, learner_busy
        self._began = clock()
        self._busy_s: defaultdict[str, float] = defaultdict(float)  # actor-seconds by role
        self._generating: list[Interval] = []  # any engine at work; merged, so that it stays short over a long run
        self._learning: list[Interval] = []
        self._prompt_tokens: Counter[str] = Counter()  # by engine
        self._cached_tokens: Counter[str] = Counter()
        self.last_progress = clock()
        self._missed: dict[str, int] = {}

    def learned(self, interval: Interval) -> None:
        """The learner was at work."""
        self._busy_s["learner"] += interval[1] - interval[0]
        self._learning.append(interval)

    def utilisation(self) -> dict[str, float]:
        """Metrics since the run began: idle fractions by role, overlap of generation and learning, prefix-cache hits."""
        window = self._clock() - self._began
        actors = {role: len(pool.seats) for role, pool in self._roles()} | {"learner": 1}
        metrics = {
            f"idle/{role}_fraction": idle_share(self._busy_s[role], available_s=window * count)
            for role, count in actors.items()
            if count
        }
        metrics["overlap/fraction"] = overlap_fraction(self._generating, self._learning)
        if total := self._prompt_tokens.total():
            metrics["cache/hit_fraction"] = self._cached_tokens.total() / total
        metrics["actors/replaced"] = float(sum(pool.replacements for _, pool in self._roles()))
        return metrics

    def replaced(self) -> dict[str, int]:
        return {role: pool.replacements for role, pool in self._roles()}

    def progress(self) -> None:
        self.last_progress = self._clock()

    async def beat(self) -> None:
        """One round: ask every engine at once, each with a time limit, and raise what a pool could not repair."""
        for pool in self._crew.pools:
            if pool.failure is not None:
                raise pool.failure
        self._busy_s["verifiers"] += sum(end - start for start, end in self._crew.verifiers.drain_busy())
        await asyncio.gather(*(self._ask(role, pool, w) for role, pool in self._engine_pools() for w in list(pool.workers)))
        self._generating = union(self._generating)  # once a round, however many engines there are
        self._check_stall()

    def _roles(self) -> list[tuple[str, Pool[Any]]]:
        return [*self._engine_pools(), ("verifiers", self._crew.verifiers)]

    def _engine_pools(self) -> list[tuple[str, Pool[EngineWorker]]]:
        return [("generators", self._crew.generators), ("explorers", self._crew.explorers)]

    async def _ask(self, role: str, pool: Pool[EngineWorker], worker: EngineWorker) -> None:
        limit = self._crew.config.observe.heartbeat_s
        try:
            stats = await asyncio.wait_for(worker.stats(), limit)
        except TimeoutError:
            self._missed[worker.name] = self._missed.get(worker.name, 0) + 1
            if self._missed[worker.name] >= MISSED_BEATS:
                pool.retire(worker)
            return
        except WorkerLost:
            pool.retire(worker)
            return
        self._missed.pop(worker.name, None)
        self._busy_s[role] += measure(stats.busy)
        self._generating += stats.busy
        self._prompt_tokens[worker.name] = stats.prompt_tokens
        self._cached_tokens[worker.name] = stats.cached_prompt_tokens

    def _check_stall(self) -> None:
        if self._learner_busy():
            self.progress()
        stalled = self._clock() - self.last_progress
        limit = self._crew.config.watchdog.timeout_s
        if stalled > limit:
            raise RunFailed(f"nothing moved for {stalled:.0f} s (watchdog.timeout_s is {limit:g})\n{self.diagnosis()}")

    def diagnosis(self) -> str:
        """Queue depths, work in flight by role, and what the oldest groups still wait for."""
        lines = [
            f"  {role}: {pool.queued} tasks queued, {pool.in_flight} in flight at {len(pool.workers)} actors, "
            f"{pool.replacements} replaced"
            for role, pool in self._roles()
        ]
        groups = self._waiting()
        lines += [f"  group {line}" for line in groups[:DIAGNOSIS_LINES]]
        if len(groups) > DIAGNOSIS_LINES:
            lines.append(f"  and {len(groups) - DIAGNOSIS_LINES} more groups")
        return "\n".join(lines)
