"""The outcome of a simulated or recorded run, as numbers and as text that says which of the two it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
