"""Heartbeats and the stall watchdog: is every actor at work, who is stuck, and who waits for whom.

every observe.heartbeat_s   engines: state (busy times, cache pressure); all actors with work: does their pulse move? (see ``looks``)
an actor is silent, or has work and no pulse, for watchdog.stuck_s   ─► its stacks, then it is replaced
the learner has work and no pulse for watchdog.stuck_s               ─► its stacks, the group is restarted
nothing moved for watchdog.timeout_s                                 ─► the whole diagnosis ends the run
a node will be taken away (a notice of preemption)                   ─► its workers leave it, and the learner group
"""

import asyncio
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from fr3e_async.clock import RemoteClock
from fr3e_async.config import Config
from fr3e_async.control.checkpointing import Checkpointing
from fr3e_async.control.context import RunContext
from fr3e_async.control.ports import EngineWorker, TaskLost, WorkerLost
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.control.workers import ENGINES, ROLES, Worker
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.machine.dispatch import VERIFIERS
from fr3e_async.machine.events import Leaving, Pressure, Utilization
from fr3e_async.observe.intervals import Interval, clip, idle_share, intersection, measure, union
from fr3e_async.rollout.port import EngineStats

LOOKS = 128  # actors that are looked at in a heartbeat, at least
TURNS = 4  # of an actor in ``watchdog.stuck_s``, at least: none is taken for stuck after a single look
CLEARLY_S = 5.0  # a notice that leaves so many seconds less than the one before is reported again
DIAGNOSIS_LINES = 8
STACK_LINES = 60  # of one actor
T = TypeVar("T")


class StalledError(RunFailed):
    """Nothing has moved for ``watchdog.timeout_s``: the learner has not either, if it had work."""


@dataclass(slots=True)
class Sign:
    """When an actor last showed that it gets on, or had nothing to do; and when it last answered at all."""

    pulse: int = -1
    at: float = 0.0
    answered_at: float = 0.0


class Watchdog:
    """Collects busy times and counters by role, too: the raw material of idle fractions, overlap and cache hits."""

    def __init__(self, context: RunContext, checkpointing: Checkpointing) -> None:
        """``checkpointing``: told when the learner group, or the control loop itself, must leave its node."""
        self._context, self._checkpointing, self._note = context, checkpointing, context.reporter.note
        self._workers, self._machine, self._clock = context.workers, context.machine, context.clock
        self.diagnosis = Diagnosis(context)
        self._began = self._last_beat = self._clock()
        self.busy_s: defaultdict[str, float] = defaultdict(float)  # actor-seconds at work since the session began, by role
        self._generating: list[Interval] = []  # any engine at work, not folded yet
        self._learning: list[Interval] = []
        self._overlap_s = self._learning_s = 0.0  # folded
        self._prompt_tokens: Counter[str] = Counter()  # by engine
        self._cached_tokens: Counter[str] = Counter()
        self.stats: dict[str, EngineStats] = {}  # the last answer of each engine, by name
        self._clocks: defaultdict[str, RemoteClock] = defaultdict(RemoteClock)  # of engines, by name
        self._signs: dict[str, Sign] = {}
        self._looked_at: dict[str, float] = {}  # by worker
        self._there_s: defaultdict[str, float] = defaultdict(float)  # actor-seconds by role, until the last beat
        self._busy_then: dict[str, float] = {}  # actor-seconds by role, at the last beat
        self._leave_by: dict[str, float] = {}  # workers that were told to leave, and by when
        self._asked: asyncio.Future[Mapping[str, float]] | None = None  # which nodes will be taken away
        self._unanswered = False
        self.notices: set[str] = set()  # nodes of ours that were to be taken away

    # ---- inputs ----

    def learned(self, interval: Interval) -> None:
        """Record when the learner was at work (start, end), in seconds of the run's clock."""
        self.busy_s["learner"] += interval[1] - interval[0]
        self._learning.append(interval)

    # ---- queries ----

    def utilisation(self) -> dict[str, float]:
        """Metrics since the session began: idle fractions by role, overlap of generation and learning, prefix-cache hits."""
        now, roles = self._clock(), self._machine.dispatcher.roles
        there = {role: self._there_s[role] + roles[role].slots * (now - self._last_beat) for role in ROLES}
        metrics = {
            f"idle/{role}_fraction": idle_share(self.busy_s[role], available_s=seconds)
            for role, seconds in (there | {"learner": now - self._began}).items()
            if seconds
        }
        metrics["overlap/fraction"] = self._overlap()
        if total := self._prompt_tokens.total():
            metrics["cache/hit_fraction"] = self._cached_tokens.total() / total
        metrics["actors/replaced"] = float(sum(self.replaced().values()))
        return metrics

    def replaced(self) -> dict[str, int]:
        return {role: self._machine.dispatcher.roles[role].replacements for role in ROLES}

    def _overlap(self) -> float:
        """Return the fraction of the learner's working time during which engines generated too, in [0, 1]."""
        shared = self._overlap_s + measure(intersection(self._generating, self._learning))
        total = self._learning_s + measure(self._learning)
        return min(1.0, shared / total) if total else 0.0

    # ---- a round ----

    async def beat(self) -> None:
        """Ask actors at once, each with a time limit. Raises ``RunFailed`` kinds for what cannot be repaired."""
        began = self._clock()
        workers = self._workers.workers()
        turn = heapq.nsmallest(
            looks(len(workers), self._workers.config), workers, key=lambda worker: self._looked_at.get(worker.name, -1.0)
        )
        await asyncio.gather(*map(self._look_at, turn), self.look_at_learner(), self._look_at_nodes())
        self._fold(before=self._last_beat)
        if self._machine.autoscaler.elastic:
            self._context.emit(Utilization(at=began - self._began, idle=self._idle(began - self._last_beat)))
        for role in ROLES:  # pools come and go
            self._there_s[role] += self._machine.dispatcher.roles[role].slots * (began - self._last_beat)
        self._last_beat = began
        stalled = self._clock() - self._context.moved_at
        limit, knob = self._workers.config.watchdog.timeout_s, "watchdog.timeout_s"
        if self._waits_for_room() and self._workers.config.ray.room_timeout_s > limit:
            limit, knob = self._workers.config.ray.room_timeout_s, "ray.room_timeout_s"
        if stalled > limit:
            raise StalledError(f"nothing moved for {stalled:.0f} s ({knob} is {limit:g})\n{await self.diagnosis.text()}")

    def _waits_for_room(self) -> bool:
        """A pool has nobody, and has asked for somebody: a cluster may take its time, as at the beginning."""
        dispatcher, pools = self._machine.dispatcher, self._machine.autoscaler.pools
        return any(pool.hiring and not dispatcher.roles[role].slots for role, pool in pools.items())

    def _idle(self, seconds: float) -> tuple[tuple[str, float], ...]:
        """Return (role, fraction of the last ``seconds`` that its actors were idle, in [0, 1]) for each role with actors."""
        idle = []
        for role in ROLES:
            busy = self.busy_s[role] - self._busy_then.get(role, 0.0)
            self._busy_then[role] = self.busy_s[role]
            if slots := self._machine.dispatcher.roles[role].slots:
                idle.append((role, round(min(1.0, max(0.0, idle_share(busy, available_s=seconds * slots))), 3)))
        return tuple(idle)

    async def _look_at_nodes(self) -> None:
        """Workers on nodes that will be taken away are told to leave; so is the learner group."""
        draining = await self.draining()
        concerned = {worker.node for worker in self._workers.workers()} | set(self._workers.learner.nodes)
        self.notices |= draining.keys() & concerned
        for worker in self._workers.workers():
            if worker.node in draining:
                self._tell_to_leave(worker, draining[worker.node])
        if any(node in draining for node in self._workers.learner.nodes):
            self._checkpointing.relocate("a node of the learner group will be taken away")
        if self._workers.node in draining and self._workers.node not in self.notices:
            self.notices.add(self._workers.node)
            self._note("the node of the control loop itself will be taken away: a checkpoint is written", "node_notice")
            self._checkpointing.soon()

    async def draining(self) -> Mapping[str, float]:
        """Nodes and the seconds until they go. Asked once at a time; a cluster that does not say is no reason to stop."""
        self._asked = asked = self._asked or asyncio.ensure_future(self._workers.draining())
        done, _ = await asyncio.wait([asked], timeout=self._workers.config.observe.heartbeat_s)
        if not done:
            return {}
        self._asked = None if self._asked is asked else self._asked  # another look may have waited for the same answer
        try:
            return asked.result()
        except Exception as error:  # of what lies inside Ray; without an answer there are no notices
            if not self._unanswered:
                self._note(f"notices of nodes cannot be had: {error}")
            self._unanswered = True
            return {}

    def _tell_to_leave(self, worker: Worker, seconds: float) -> None:
        """Tell the machine that a worker's node goes in ``seconds`` (0: unknown). Repeat only if the time shrinks clearly."""
        until = self._clock() + seconds if seconds else math.inf
        if worker.name in self._leave_by and until > self._leave_by[worker.name] - CLEARLY_S:
            return
        self._leave_by[worker.name] = until
        text = f"the node of {worker.name} will be taken away" + (f" in {seconds:.0f} s" if seconds else "")
        self._note(text, "node_notice", actor=worker.name, seconds=seconds)
        self._context.emit(Leaving(worker=worker.name, why="its node is taken away", seconds=seconds))

    def _fold(self, *, before: float) -> None:
        """Add up the intervals before ``before`` and drop them, so that the lists stay short over a long run."""
        self._generating = union(self._generating)
        if self._context.learner.does:  # its interval will begin in the past
            return
        past, rest = (0.0, before), (before, float("inf"))
        learning = clip(self._learning, past)
        self._overlap_s += measure(intersection(clip(self._generating, past), learning))
        self._learning_s += measure(learning)
        self._generating, self._learning = clip(self._generating, rest), clip(self._learning, rest)

    async def _look_at(self, worker: Worker) -> None:
        """Ask an actor for its pulse and state. It is stuck after ``watchdog.stuck_s`` without an answer, or with work and no progress."""
        role = self._workers.role(worker.name)
        self._looked_at[worker.name] = now = self._clock()
        sign = self._signs.setdefault(worker.name, Sign(at=now, answered_at=now))
        try:
            pulse = await self.diagnosis.within_a_beat(worker.pulse())
            asked = self._clock()
            stats = await self.diagnosis.within_a_beat(cast(EngineWorker, worker).stats()) if role in ENGINES else None
        except (WorkerLost, TaskLost) as error:
            self._context.down(worker.name, str(error), node=error.node)
            return
        now = self._clock()
        if stats is not None:
            self._measured(role, worker.name, stats, asked=asked, answered=now)
        else:
            self.busy_s[role] += measure(self._workers.drain_busy(worker.name))
        if pulse is not None and (stats is not None or role == VERIFIERS):
            sign.answered_at = now
        idle = not self._machine.dispatcher.tasks_of(worker.name) and not self._machine.fleet.receives(worker.name)
        if pulse is not None and (pulse != sign.pulse or idle):
            sign.pulse, sign.at = pulse, now
        limit = self._workers.config.watchdog.stuck_s
        if now - sign.answered_at > limit:
            await self._stuck(worker, f"it has not answered for {now - sign.answered_at:.0f} s")
        elif now - sign.at > limit:
            await self._stuck(worker, f"it has work and has not got on for {now - sign.at:.0f} s")

    async def _stuck(self, worker: Worker, why: str) -> None:
        """Report a stuck worker with its stacks, and declare it down, so that the machine replaces it and reissues its tasks."""
        stacks, store = await asyncio.gather(self.diagnosis.stacks(worker), self.diagnosis.store())
        text = f"{worker.name} is stuck: {why} (watchdog.stuck_s)\n{stacks}\n  object store: {store}"
        self._note(text, "actor_stuck", actor=worker.name, role=self._workers.role(worker.name))
        self._signs.pop(worker.name, None)
        self._context.down(worker.name, f"stuck: {why}")

    async def look_at_learner(self) -> None:
        """Check the learner's pulse. Raises ``LearnerLost`` if it is gone, or has work but makes no progress."""
        doing, now = self._context.learner.does, self._clock()
        sign = self._signs.setdefault("learner", Sign(at=now))
        if not doing:
            sign.at, sign.pulse = now, -1
            return
        try:
            pulse = await self.diagnosis.within_a_beat(self._workers.learner.pulse())
        except WorkerLost as error:
            raise LearnerLost(str(error)) from error
        now = self._clock()
        if pulse is not None and pulse != sign.pulse:
            sign.at, sign.pulse = now, pulse
            self._context.moved()
        limit = self._workers.config.watchdog.stuck_s
        if now - sign.at > limit:
            raise LearnerLost(
                f"the learner is stuck: it {doing} and has not got on for {now - sign.at:.0f} s (watchdog.stuck_s)\n"
                f"{await self.diagnosis.text()}"
            )

    def _measured(self, role: str, name: str, stats: EngineStats, *, asked: float, answered: float) -> None:
        self.busy_s[role] += measure(stats.busy)
        self._generating += self._clocks[name].ours(stats.busy, theirs=stats.at, asked=asked, answered=answered)
        self._prompt_tokens[name] = stats.prompt_tokens
        self._cached_tokens[name] = stats.cached_prompt_tokens
        before = self.stats.get(name)
        self.stats[name] = stats
        full = stats.kv_used > self._workers.config.pools.kv_low
        # Requests lose their cache to an update of the weights, too; in a full cache and without one it is lack of room.
        same = before is not None and before.version == stats.version
        preempted = stats.preempted - before.preempted if before is not None and same and full else 0
        slot = self._machine.dispatcher.slots.get(name)
        if slot is not None and (full or slot.limit < self._machine.dispatcher.roles[slot.role].width):
            self._context.emit(Pressure(worker=name, kv_used=stats.kv_used, waiting=stats.waiting, preempted=preempted))


def looks(workers: int, config: Config) -> int:
    """How many workers a heartbeat looks at: all of a few; of many those not seen for longest, so many that each has its ``TURNS``."""
    share = TURNS * config.observe.heartbeat_s / config.watchdog.stuck_s
    return min(workers, max(LOOKS, math.ceil(share * workers)))


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
        lines += await asyncio.gather(*(self.stacks(worker) for worker in busy[:DIAGNOSIS_LINES]))
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
