"""What is counted of a run: an observer of every event with its decisions. Simulated and recorded runs are counted alike.

An engine or verifier is busy while it has a task, the learner from ``Train`` until the weights are exported.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Answered, Delivered, Event, Exported, Lost, Scored, Trained, WorkerDown, WorkerUp
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Assign, Command, Live, Move, Release, Retire, Train

ROLES = (GENERATORS, EXPLORERS, VERIFIERS)
LEARNER = "learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """Means over the time from the end of the warm-up to the last trained batch."""

    label: str  # "simulation" or "measured"
    seconds: float
    steps: int
    step_s: float
    train_s: float  # one batch in the learner
    sync_s: float  # from exported weights to all engines having them
    rollouts_per_s: float
    tokens_per_s: float  # generated
    trained_tokens_per_s: float
    idle: Mapping[str, float]  # by role: part of its workers' time without a task
    staleness: Mapping[int, int]  # trained rollouts by the age of their oldest token, versions
    queued: Mapping[str, float]  # tasks waiting when a batch was trained
    ready_groups: float
    slots_held: float
    slots_held_max: int
    rejected: float  # part of the settled groups that taught nothing
    cached: float  # part of the context that came from prefix caches
    lost_tasks: int
    late_tasks: int  # longer than flow.lease_s: a real run would give them to someone else
    events: int = 0  # of the control machine
    wall_s: float = 0.0  # real time that the simulation took

    @property
    def staleness_max(self) -> int:
        return max(self.staleness, default=0)

    def render(self) -> str:
        """Several lines; the first one says that it is a simulation."""
        rows = [
            ("time", f"{self.seconds:.1f} s for {self.steps} batches: {self.step_s:.3g} s each, {1 / self.step_s:.4g} a second"),
            ("rollouts", f"{self.rollouts_per_s:.4g} a second, {100 * self.rejected:.0f} % of the groups rejected"),
            ("tokens", f"{self.tokens_per_s:.4g} generated, {self.trained_tokens_per_s:.4g} trained a second"),
            ("context", f"{100 * self.cached:.0f} % from prefix caches"),
            ("learner", f"{self.train_s:.3g} s a batch; weights in all engines after {self.sync_s:.3g} s"),
            ("busy", ", ".join(f"{role} {100 - 100 * idle:.0f} %" for role, idle in self.idle.items())),
            ("idle", ", ".join(f"{role} {100 * idle:.0f} %" for role, idle in self.idle.items())),
            ("staleness", self._ages()),
            (
                "queued",
                ", ".join(f"{role} {n:.0f}" for role, n in self.queued.items()) + f", ready groups {self.ready_groups:.0f}",
            ),
            ("slots", f"{self.slots_held:.0f} held on average, {self.slots_held_max} at most"),
        ]
        if self.lost_tasks or self.late_tasks:
            rows.append(("tasks", f"{self.lost_tasks} lost; {self.late_tasks} took longer than flow.lease_s"))
        if self.wall_s:
            rows.append(("computed", f"{self.events} events of the control machine in {self.wall_s:.1f} s"))
        title = f"{self.label}: no such run took place" if self.label == "simulation" else self.label
        return "\n".join([title, *(f"  {name:<10}{text}" for name, text in rows)])

    def _ages(self) -> str:
        total = sum(self.staleness.values()) or 1
        shares = ", ".join(f"{age}: {100 * count / total:.0f} %" for age, count in self.staleness.items())
        return f"at most {self.staleness_max} versions ({shares})"


@dataclass(slots=True)
class Meter:
    """How many of a role are there and at work, and the integrals of both over time, in worker-seconds."""

    there: int = 0
    busy: int = 0
    there_s: float = 0.0
    busy_s: float = 0.0
    since: float = 0.0

    def advance(self, now: float) -> None:
        passed, self.since = now - self.since, now
        self.there_s += self.there * passed
        self.busy_s += self.busy * passed


@dataclass(slots=True)
class SimulatedStep:
    """The state of affairs when a version was trained."""

    time: float
    queued: dict[str, int]
    ready: int
    slots: int
    duration: float  # in the learner


@dataclass(slots=True)
class Counts:
    """Sums since the beginning, or since the end of the warm-up."""

    rollouts: int = 0
    tokens: int = 0
    context: int = 0
    cached: int = 0
    lost: int = 0
    late: int = 0  # tasks that took longer than a lease
    outcomes: Counter[str] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)  # trained rows by the age of their oldest token
    trained_tokens: int = 0


class Stats:
    """Counting starts over when version ``warmup`` is trained: the pipeline is full by then."""

    def __init__(self, machine: Machine, *, warmup: int, lease_s: float) -> None:
        self._machine, self._warmup, self._lease_s = machine, warmup, lease_s
        self.meters = {role: Meter() for role in (*ROLES, LEARNER)}
        self.meters[LEARNER].there = 1
        self.counts = Counts()
        self.steps: list[SimulatedStep] = []
        self.live_at: dict[int, float] = {}
        self.exported_at: dict[int, float] = {}
        self._began = 0.0
        self._roles: dict[str, str] = {}
        self._load: Counter[str] = Counter()  # tasks by worker
        self.tasks: dict[int, tuple[str, float]] = {}  # (worker, since)
        self._learning = 0
        self._train_at: dict[int, float] = {}
        self._oldest: dict[int, dict[int, int]] = {}  # payload -> row -> oldest version
        self._payloads: dict[str, list[int]] = {}
        self._started = False
        self._trained_batches = 0
        self._cut = self._integrals(0.0), self.counts  # as of the last batch

    def resume(self, state: LedgerState) -> None:
        """What open groups had when the session began."""
        for group in state.groups:
            for rollout in group.rollouts.values():
                if rollout.note is None:
                    continue
                if rollout.payload not in self._oldest:
                    self._oldest[rollout.payload] = {}
                    self._payloads.setdefault(group.name, []).append(rollout.payload)
                self._oldest[rollout.payload][rollout.row] = rollout.note.oldest_version

    def observe(self, now: float, event: Event, commands: Sequence[Command]) -> None:
        if not self._started:
            self._started = True
            self._restart(now)
        match event:
            case Delivered():
                if not event.left:
                    self._ends(now, event.task)
                self._delivered(event)
            case Scored() | Answered():
                self._ends(now, event.task)
            case Lost():
                self._ends(now, event.task)
                self.counts.lost += 1
            case WorkerUp():
                self._roles[event.worker] = event.role
                self._change(now, event.role, there=1)
            case WorkerDown():
                self._down(now, event.worker)
            case Exported():
                self._learns(now, -1)
                self.exported_at[event.version] = now
            case _:
                pass
        for command in commands:
            if isinstance(command, Assign):
                self._begins(now, command)
            elif isinstance(command, Retire):
                self.counts.outcomes[command.outcome] += 1
                for payload in self._payloads.pop(command.group, ()):
                    del self._oldest[payload]
            elif isinstance(command, Train):
                self._train(now, command)
            elif isinstance(command, Live):
                self.live_at[command.version] = now
            elif isinstance(command, Release):
                self._down(now, command.worker)
            elif isinstance(command, Move):
                self._moved(now, command)
        if isinstance(event, Trained):
            self._trained(now, event.version)

    # ---- tasks ----

    def _begins(self, now: float, command: Assign) -> None:
        worker = command.worker
        self.tasks[command.task] = (worker, now)
        self._load[worker] += 1
        if self._load[worker] == 1 and worker in self._roles:
            self._change(now, self._roles[worker], busy=1)

    def _ends(self, now: float, task: int) -> None:
        worker, since = self.tasks.pop(task, ("", now))
        if not worker:
            return
        self.counts.late += now - since > self._lease_s
        self._load[worker] -= 1
        if self._load[worker] == 0 and worker in self._roles:
            self._change(now, self._roles[worker], busy=-1)

    def _down(self, now: float, worker: str) -> None:
        role = self._roles.pop(worker, "")
        if role:
            self._change(now, role, there=-1, busy=-(self._load[worker] > 0))

    def _moved(self, now: float, command: Move) -> None:
        busy = self._load[command.worker] > 0
        self._change(now, self._roles[command.worker], there=-1, busy=-busy)
        self._roles[command.worker] = command.role
        self._change(now, command.role, there=1, busy=busy)

    def busy_s(self, now: float) -> dict[str, tuple[float, float]]:
        """By role of the pools, since the counting began: (worker-seconds at work, worker-seconds there)."""
        return {role: its for role, its in self._integrals(now).items() if role in ROLES}

    def _change(self, now: float, role: str, *, there: int = 0, busy: int = 0) -> None:
        meter = self.meters[role]
        meter.advance(now)
        meter.there += there
        meter.busy += busy

    def _delivered(self, event: Delivered) -> None:
        counts, oldest = self.counts, {}
        for row, note in enumerate(event.notes):
            counts.tokens += note.length
            counts.context += note.context
            counts.cached += note.cached
            oldest[row] = note.oldest_version
        counts.rollouts += len(oldest)
        self._oldest[event.payload] = oldest
        self._payloads.setdefault(event.group, []).append(event.payload)

    # ---- the learner ----

    def _learns(self, now: float, by: int) -> None:
        before, self._learning = self._learning > 0, self._learning + by
        self._change(now, LEARNER, busy=(self._learning > 0) - before)

    def _train(self, now: float, command: Train) -> None:
        self._learns(now, +1)
        self._train_at[command.version] = now
        version = command.version - 1
        for item in command.items:
            self.counts.ages[version - self._oldest[item.payload][item.row]] += 1
            self.counts.trained_tokens += item.load.completion

    def _trained(self, now: float, version: int) -> None:
        machine = self._machine
        began = max(self._train_at.pop(version, now), self.exported_at.get(version - 1, 0.0))
        step = SimulatedStep(
            time=now,
            queued={role: machine.dispatcher.queued(role) for role in ROLES},
            ready=machine.ledger.ready,
            slots=machine.ledger.slots_held,
            duration=now - began,
        )
        self._trained_batches += 1
        if self._trained_batches <= self._warmup:
            self._restart(now)
        else:
            self.steps.append(step)
        self._cut = self._integrals(now), replace(self.counts, outcomes=self.counts.outcomes.copy(), ages=self.counts.ages.copy())

    def _integrals(self, now: float) -> dict[str, tuple[float, float]]:
        """Return for each role (worker-seconds busy, worker-seconds present), up to ``now``."""
        for meter in self.meters.values():
            meter.advance(now)
        return {role: (meter.busy_s, meter.there_s) for role, meter in self.meters.items()}

    def _restart(self, now: float) -> None:
        self._began = now
        self.counts = Counts()
        for meter in self.meters.values():
            meter.advance(now)
            meter.there_s = meter.busy_s = 0.0

    # ---- the end ----

    def report(self, *, label: str, events: int = 0, seconds: float = 0.0) -> SimulationReport:
        """Of the time from the end of the warm-up to the last trained version. ``label``: "simulation" or "measured"."""
        steps, (meters, counts) = self.steps, self._cut
        span = max(steps[-1].time - self._began, 1e-9) if steps else 1e-9
        settled = counts.outcomes.total()
        synced = [self.live_at[v] - at for v, at in self.exported_at.items() if v in self.live_at]
        return SimulationReport(
            label=label,
            seconds=span,
            steps=len(steps),
            step_s=span / max(len(steps), 1),
            train_s=_mean([step.duration for step in steps]),
            sync_s=_mean(synced),
            rollouts_per_s=counts.rollouts / span,
            tokens_per_s=counts.tokens / span,
            trained_tokens_per_s=counts.trained_tokens / span,
            idle={role: 1 - min(1.0, busy / there) for role, (busy, there) in meters.items() if there},
            staleness=dict(sorted(counts.ages.items())),
            queued={role: _mean([float(s.queued[role]) for s in steps]) for role in ROLES if meters[role][1]},
            ready_groups=_mean([float(step.ready) for step in steps]),
            slots_held=_mean([float(step.slots) for step in steps]),
            slots_held_max=max((step.slots for step in steps), default=0),
            rejected=(settled - counts.outcomes["trained"]) / settled if settled else 0.0,
            cached=counts.cached / counts.context if counts.context else 0.0,
            lost_tasks=counts.lost,
            late_tasks=counts.late,
            events=events,
            wall_s=seconds,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
