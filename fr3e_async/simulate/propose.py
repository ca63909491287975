"""How many actors of each role a cluster should have: a search over splits, each of them simulated. Coarse first, then fine.

What is scarce is GPUs if any role uses them, else CPUs. It is split between generators, explorers and the learner; verifiers
are added until they are at work half of the time. Better means less time for a training batch.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config, EnginePoolConfig, VerifierPoolConfig
from fr3e_async.errors import ConfigError, aligned
from fr3e_async.machine.dispatch import VERIFIERS
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.stats import SimulationReport
from fr3e_async.simulate.world import simulate

Pool = TypeVar("Pool", EnginePoolConfig, VerifierPoolConfig)

WARMUP = 2  # batches until the pipeline is full
COARSE = (0.15, 0.3, 0.45, 0.6, 0.75)  # learner's part of the cluster, explorers' part of the engines
ALL_WAIT = 0.2  # idle part of the busiest role from which on it is said that no split helps
VERIFIER_LOAD = 0.5  # part of its time that a verifier's process is to be at work


@dataclass(frozen=True, slots=True, order=True)
class Split:
    generators: int
    explorers: int
    ranks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``gpus`` and ``cpus``; 0 CPUs: as many as needed."""

    gpus: int
    cpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    split: Split
    config: Config
    report: SimulationReport

    @property
    def settings(self) -> str:
        """The split as settings for a command line. ``max`` is ``count`` where a pool could grow: pools share the devices of this split."""
        s, c = self.split, self.config
        words = [
            _sized("generators", s.generators, c.generators.max),
            _sized("explorers", s.explorers, c.explorers.max),
            f"learner.ranks={s.ranks}",
            _sized("verifiers", c.verifiers.count, c.verifiers.max),
        ]
        return " ".join(filter(None, words))


def _sized(role: str, count: int, most: int) -> str:
    return f"{role}.count={count}" + (f" {role}.max={count}" if most else "") if count else ""


def _of_size(pool: Pool, count: int) -> Pool:
    """A pool with a fixed number of actors; ``max`` is told where it was before."""
    return replace(pool, count=count, min=0, max=count if pool.max else 0)


class Search:
    """The search over splits of a cluster: coarse, then fine. Each split is simulated once and its report kept."""

    def __init__(self, config: Config, model: SystemModel, cluster: Cluster, *, steps: int = 4, most: int = 60) -> None:
        """``steps``: batches that each simulation measures; ``most``: simulations at most. Raises ``ConfigError``."""
        self._config, self._model, self._cluster = config, model, cluster
        self._steps, self._most = steps, most
        plan = make_strategy(config.algorithm).plan
        self._branches = plan.rule is not None
        self._verifiers = 1  # actors; grows as simulations show that they are too busy
        g, e, learner = config.generators, config.explorers, config.learner
        by_gpu = bool(g.gpus or learner.gpus or (self._branches and e.gpus))
        self._what = "gpus" if by_gpu else "cpus"
        self._offer = float(cluster.gpus if by_gpu else cluster.cpus)
        self._cost = tuple(float(part.gpus if by_gpu else part.cpus) for part in (g, e, learner))
        self._cost_of_verifier = 0.0 if by_gpu else config.verifiers.cpus
        self.tried: dict[Split, Candidate] = {}
        least = Split(1, int(self._branches), 1)
        need = self._spent(least) + self._cost_of_verifier
        if need > self._offer:
            roles = ("generators", "explorers", "learner", *(() if by_gpu else ("verifiers",)))
            names = ", ".join(f"{role}.{self._what}" for role in roles)
            raise ConfigError(f"{self._what}={self._offer:g}: one actor of each role needs {need:g} ({names})")
        self._verifiers_at_most = self._most_verifiers(least)

    def best(self, *, progress: Callable[[str], None] = lambda line: None) -> list[Candidate]:
        """Simulate splits, a coarse grid and then the neighbours of the best, and return the candidates, best first."""
        for split in self._coarse():
            self._try(split, progress)
        stride = max(1, int(self._offer / max(self._cost) / 8))
        while True:
            best = self._ranked()[0]
            for split in self._near(best.split, stride):
                self._try(split, progress)
            if self._ranked()[0] is best:
                if stride == 1:
                    return self._ranked()
                stride //= 2
            if len(self.tried) >= self._most:
                return self._ranked()

    def _ranked(self) -> list[Candidate]:
        return sorted(self.tried.values(), key=lambda found: (found.report.step_s, found.split))

    def _spent(self, split: Split) -> float:
        return split.generators * self._cost[0] + split.explorers * self._cost[1] + split.ranks * self._cost[2]

    def _coarse(self) -> Iterator[Split]:
        seen = set()
        for learner in COARSE:
            for explorers in COARSE if self._branches else (0.0,):
                split = self.fill(self._count(learner, 2), self._count((1 - learner) * explorers, 1))
                if split is not None and split not in seen:
                    seen.add(split)
                    yield split

    def _count(self, part: float, role: int) -> int:
        return max(1, round(part * self._offer / max(self._cost[role], 1e-9)))

    def fill(self, ranks: int, explorers: int) -> Split | None:
        """The rest of the cluster is generators'; None if there is no rest."""
        explorers = explorers if self._branches else 0
        left = self._offer - explorers * self._cost[1] - ranks * self._cost[2] - self._verifiers * self._cost_of_verifier
        generators = int(left / max(self._cost[0], 1e-9) + 1e-9)
        return Split(generators, explorers, ranks) if generators >= 1 and ranks >= 1 and explorers >= self._branches else None

    def _near(self, split: Split, stride: int) -> Iterator[Split]:
        """Splits near this one: ``stride`` more or fewer ranks or explorers, or moved between them; generators take the rest."""
        moves = [(s, 0) for s in (-stride, stride)] + [(0, s) for s in (-stride, stride)] * self._branches
        moves += [(-stride, stride), (stride, -stride)] * self._branches
        for ranks, explorers in moves:
            found = self.fill(split.ranks + ranks, split.explorers + explorers)
            if found is not None:
                yield found

    def _try(self, split: Split, progress: Callable[[str], None]) -> None:
        if split in self.tried or len(self.tried) >= self._most:
            return
        while True:
            count = min(self._verifiers, self._most_verifiers(split))
            config = self.config_of(split, verifiers=count)
            report = simulate(config, self._model, steps=WARMUP + self._steps, warmup=WARMUP)
            needed = math.ceil(count * (1 - report.idle[VERIFIERS]) / VERIFIER_LOAD)
            self._verifiers = max(self._verifiers, min(needed, self._verifiers_at_most))
            if min(self._verifiers, self._most_verifiers(split)) <= count:
                break
        self.tried[split] = Candidate(split=split, config=config, report=report)
        progress(f"{len(self.tried):3d}  {split}  {report.step_s:.4g} s a batch")

    def config_of(self, split: Split, *, verifiers: int) -> Config:
        c = self._config
        return replace(
            c,
            generators=_of_size(c.generators, split.generators),
            explorers=_of_size(c.explorers, split.explorers or c.explorers.count),
            learner=replace(c.learner, ranks=split.ranks),
            verifiers=_of_size(c.verifiers, verifiers),
        )

    def _most_verifiers(self, split: Split) -> int:
        """Return how many verifiers fit on the CPUs that the other roles leave; ``sys.maxsize`` where CPUs do not count."""
        c = self._config
        if not self._cluster.cpus or not c.verifiers.cpus:
            return sys.maxsize
        others = split.generators * c.generators.cpus + split.explorers * c.explorers.cpus + split.ranks * c.learner.cpus
        return max(1, int((self._cluster.cpus - others) / c.verifiers.cpus))


def mean_length(model: SystemModel) -> float:
    """Estimate the mean length of a base rollout, in tokens, from 64 drawn trees."""
    drawn = [model.workload.tree(0, number, max_response=2**30).base(0).length for number in range(64)]
    return sum(drawn) / len(drawn)


def render(found: list[Candidate], *, rows: int = 5) -> str:
    """A table of the best, and the settings to copy."""
    roles = list(found[0].report.idle)
    header = ["generators", "explorers", "learner", "verifiers", "batch s", "rollouts/s", "tokens/s"]
    header += [f"{role} idle" for role in roles] + ["staleness"]
    table = [header]
    for candidate in found[:rows]:
        r, s = candidate.report, candidate.split
        ages = sum(age * count for age, count in r.staleness.items()) / max(1, sum(r.staleness.values()))
        table.append(
            [
                str(s.generators), str(s.explorers), str(s.ranks), str(candidate.config.verifiers.count), f"{r.step_s:.4g}",
                f"{r.rollouts_per_s:.4g}", f"{r.tokens_per_s:.4g}", *(f"{100 * r.idle[role]:.0f} %" for role in roles),
                f"{ages:.2f}, ≤ {r.staleness_max}",
            ]
        )  # fmt: skip
    lines = [f"  {line}" for line in aligned(table, left=())]
    settings = [f"  {candidate.settings}" for candidate in found[:rows]]
    return "\n".join(["simulation: the best splits", *lines, "settings, in the same order", *settings, *_notes(found[0])])


def _notes(best: Candidate) -> list[str]:
    """Return notes on limits that come from the ``flow`` settings, which no split of the actors removes."""
    flow, report = best.config.flow, best.report
    notes = []
    if report.late_tasks:
        notes.append(f"note: {report.late_tasks} tasks took longer than flow.lease_s={flow.lease_s:g}; raise it")
    if min(report.idle.values()) > ALL_WAIT:
        notes.append(
            f"note: every role waits, for the slowest groups of a batch; flow.groups_per_step={flow.groups_per_step}, "
            f"flow.max_staleness={flow.max_staleness} or flow.window={flow.window} could be raised"
        )
    return notes
