"""Long tails: the field's lengths through the loop, per-rollout against per-task delivery, by flow.order and flow.max_staleness.

    python benchmarks/long_tails.py --json OUT [--quick] [--only simulator ray] [--batches 16] [--scale 8]

The model is fixed here, before anything is measured:

lengths   log-normal, σ of the logarithm 0.8, mean 6,000 tokens before the cut at 16,384 (4.9 % are cut); half of the variance is the
          prompt's. Each group has 4 bases and 3 anchors with 4 branches each on its first base; a branch ends where a response would
engine    a decode step of a + b·n seconds for n running requests, fitted to a published curve (``CURVE``), 64 requests at once
learner   as much time for a batch as the engines need for it with all of their 64 places taken; 4 engines and 4 ranks
per task  the engine keeps what has ended until the last rollout of its task ends, and the driver counts its places as taken

Bounds, of the seconds P between two batches of G groups with T tokens each, on E engines (``Bounds``):

engines   P ≥ G·(T·(a + b·W)/W + c·prefill) / E + pause               with W requests running in each
learner   P ≥ fixed + G·tokens·each / ranks + export
slots     (η + 1)·P ≥ chain·(a + b·n) + learner + fetch + pause       a group keeps its slot from admission until its weights are live.
          chain: tokens one after another (first base, then its longest branch; or another base) of a batch's longest group, in either
          order: it has to be trained before its tokens are too old; n: the requests that an engine runs on average at that P
per task  as engines, with u·W running: u = Σ lengths / Σ (rollouts of a task · its longest one)

Cells that are in OUT are not run again. ``ray``: some cells with fake engines over real Ray, ``--scale`` times as fast, and each of them in
the simulator: the same groups, batches and code that counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from common import finish, machine, parser, table

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.algorithm.strategies import GroupRewards, Strategy, make_strategy
from fr3e_async.config import Config
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS
from fr3e_async.machine.messages import Branch, Sample
from fr3e_async.outcomes import Outcome
from fr3e_async.settings.loader import LoadedConfig, load_config
from fr3e_async.simulate.engine import Request
from fr3e_async.simulate.groups import Groups
from fr3e_async.simulate.service import EngineTimes, LearnerTimes, Service, SystemModel, VerifierTimes, WeightTimes, batch_tokens
from fr3e_async.simulate.stats import LEARNER, SimulationReport
from fr3e_async.simulate.workload import LogNormalWorkload
from fr3e_async.simulate.world import EventLog, World
from fr3e_async.types import RolloutId

# Inter-token latency in ms by requests at once: Llama 3.1 8B on one H100, NVIDIA NIM 1.8.0, docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance
CURVE = {1: 4.63, 5: 4.58, 25: 5.19, 50: 5.91, 100: 7.57}
REQUEST_S, STEP_S = (float(x) / 1e3 for x in np.polyfit([*CURVE], [*CURVE.values()], 1))
PREFILL_S = 2 * 8e9 / (989e12 * 0.5)  # a token: arithmetic of 8 G parameters at half of an H100's peak
GROUPS, IN_FLIGHT, MOST = 64, 64, 16_384  # of a batch; of an engine; tokens
DEVICES, SEED = 8, 0
WORKLOAD = LogNormalWorkload(mean=6000, sigma=6000 * (np.exp(0.8**2) - 1) ** 0.5, prompt=200, correct_alpha=20, correct_beta=20)
WEIGHTS = WeightTimes(fetch_s=3.0, pause_s=1.5)  # 16 GB at 5 and at 10 GB/s
FIXED_S, EXPORT_S = 2.0, 3.0
Rows = dict[str, dict[str, Any]]  # by the name of the cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Batches that are left out at the beginning, and those that are measured after them: in every cell the same groups."""

    warmup: int
    batches: int

    @property
    def last(self) -> int:
        return self.warmup + self.batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run. ``engines`` of them, the other devices are ranks of the learner; ``colocated``: all devices are both, in turn."""

    staleness: int
    delivery: str = "rollout"  # or "task"
    order: str = "admission"
    engines: int = DEVICES // 2
    colocated: bool = False
    request: float = 1.0  # times b
    groups: int = GROUPS

    @property
    def name(self) -> str:
        kind = "colocated" if self.colocated else f"{self.engines} engines"
        more = f", b x {self.request:g}" if self.request != 1 else ""
        return f"{kind}, staleness {self.staleness}, {self.order}, per {self.delivery}{more}"

    @property
    def config(self) -> Config:
        return cell_settings(self).config


@lru_cache
def cell_settings(cell: Cell, *more: str) -> LoadedConfig:
    engines, ranks = (DEVICES, DEVICES) if cell.colocated else (cell.engines, DEVICES - cell.engines)
    window = (f"flow.window={cell.groups}",) if cell.order == "window" else ()
    return load_config([
        "config=toy", "observe.console=off", "run.steps=1000000", f"sampling.max_response={MOST}", "algorithm.min_gap=8",
        "data.max_prompt=256", "learner.micro_batch_tokens=17408", "learner.minibatches=2", "flow.lease_s=1000000", "watchdog.timeout_s=1000000",
        f"flow.groups_per_step={cell.groups}", f"flow.max_staleness={cell.staleness}", f"flow.order={cell.order}", *window,
        "pools.flexible_roles=true", "engine.clear_cache_on_update=false", "engine.block_size=16",
        f"generators.count={engines - engines // 2}", f"explorers.count={engines // 2}",
        f"generators.rollouts_in_flight={IN_FLIGHT}", f"explorers.rollouts_in_flight={IN_FLIGHT}", f"learner.ranks={ranks}", *more,
    ])  # fmt: skip


# ---- what a batch is, and the bounds ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Means over the batches that are measured, those of ``flow.order=admission``."""

    tokens: float  # generated
    prefill: float  # context tokens, each computed once
    trained: float  # tokens that the learner computes
    chain: float  # tokens of the longest chain of a batch
    filled: float  # u: of the places that tasks keep, part that is running

    @classmethod
    def of(cls, cell: Cell, span: Span) -> Batches:
        config, size = cell.config, cell.groups
        strategy = make_strategy(config.algorithm)
        groups = Groups(config, strategy.plan, WORKLOAD, seed=SEED)
        rows = np.array([grown(groups, strategy, number) for number in range(span.warmup * size, span.last * size)])
        tokens, prefill, trained, chain, kept = rows.reshape(span.batches, size, 5).transpose(2, 0, 1)
        return cls(
            tokens=tokens.sum() / span.batches, prefill=prefill.sum() / span.batches, trained=trained.sum() / span.batches,
            chain=chain.max(axis=1).mean(), filled=tokens.sum() / kept.sum(),
        )  # fmt: skip


def grown(groups: Groups, strategy: Strategy, number: int) -> tuple[int, int, int, int, int]:
    """(tokens, fresh context, learner's tokens, longest chain, places kept by its tasks · steps) of one group."""
    name, home = f"p{number}@0", ("any", 0)
    groups.open(name, number)
    trunk, *others = [RolloutId(name, 0, base) for base in range(4)]
    anchors = tuple(groups.anchors(trunk))
    ids = tuple(RolloutId(name, anchor.node, m) for anchor in anchors for m in range(4))
    tasks = [
        groups.rows(Sample(task=0, ids=(trunk,), trunk=True), home),
        groups.rows(Sample(task=0, ids=tuple(others)), home),
        groups.rows(Branch(task=0, group=name, ids=ids, trunk=trunk, trunk_payload=0), home) if ids else [],
    ]
    rows = [row for task in tasks for row in task]
    verdicts = groups.verdicts(name, [row.id for row in rows])
    rewards = {row.id: float(verdict.outcome is Outcome.CORRECT) for row, verdict in zip(rows, verdicts, strict=True)}
    nodes = {anchor.node: anchor for anchor in anchors}
    credit = strategy.credit(GroupRewards(group=name, rewards=rewards, anchors=nodes, trunks=(trunk,)))
    groups.close(name)
    longest = [max([row.length for row in task], default=0) for task in tasks]
    return (
        sum(row.length for row in rows),
        sum(row.context - row.cached for row in rows),
        batch_tokens([RowCost(0, 0, row.context, row.length) for row in rows if row.id in credit.advantages]),
        max(longest[0] + longest[2], longest[1]),
        sum(most * len(task) for most, task in zip(longest, tasks, strict=True)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Least seconds between two batches; see the module's docstring."""

    engines: float
    engines_per_task: float
    learner: float
    slots: float

    @classmethod
    def of(cls, cell: Cell, batch: Batches, times: Service) -> Bounds:
        engine, ranks = times.engine, cell.config.learner.ranks
        count = DEVICES if cell.colocated else cell.engines
        prefill = batch.prefill * engine.prefill_s

        def engines(running: float) -> float:
            return (batch.tokens * step_s(engine, running) / running + prefill) / count + times.weights.pause_s

        learner = times.learner.fixed_s + times.learner.token_s * batch.trained / ranks + times.learner.export_s
        waits = learner + times.weights.fetch_s + times.weights.pause_s
        slots = least(
            lambda seconds: (batch.chain * spread_s(engine, batch.tokens / count / seconds) + waits) / (cell.staleness + 1)
        )
        return cls(engines=engines(IN_FLIGHT), engines_per_task=engines(batch.filled * IN_FLIGHT), learner=learner, slots=slots)

    def period(self, cell: Cell) -> float:
        """The largest of them. With staleness 0 nothing overlaps: the slots say it all."""
        return max(self.engines_per_task if cell.delivery == "task" else self.engines, self.learner, self.slots)


def step_s(engine: EngineTimes, running: float) -> float:
    return engine.step_s + engine.request_s * running


def spread_s(engine: EngineTimes, tokens_per_s: float) -> float:
    """Step time of an engine that makes so many tokens a second with as few requests at once as it can."""
    room = 1 - tokens_per_s * engine.request_s
    return engine.step_s / room if room > 0 else float("inf")


def least(need: Callable[[float], float]) -> float:
    """The least P with P ≥ need(P), for a need that falls with P."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if need(middle) <= middle else (middle, high)
    return high


def service(cell: Cell, span: Span) -> Service:
    """Times of the cell's devices; the learner's are such that 4 ranks need as long for a batch as 4 engines with all places taken."""
    half = replace(Cell(staleness=0), request=cell.request, groups=cell.groups)
    batch, engine = (
        Batches.of(half, span),
        EngineTimes(step_s=STEP_S, request_s=REQUEST_S * cell.request, prefill_s=PREFILL_S, task_s=0.02),
    )
    times = Service(
        engine=engine, weights=WEIGHTS, verifier=VerifierTimes(answer_s=0.02),
        learner=LearnerTimes(fixed_s=FIXED_S, token_s=0.0, export_s=EXPORT_S),
    )  # fmt: skip
    spent = Bounds.of(half, batch, times).engines - FIXED_S - EXPORT_S
    token_s = spent * half.config.learner.ranks / batch.trained
    return replace(times, learner=replace(times.learner, token_s=token_s))


# ---- the simulator ----


class Enough(Exception):
    """The batches that were asked for are trained."""


class Endless(World):
    """A world that stops in the middle of its work. ``per_task``: engines keep what has ended until the task's last rollout ends."""

    def __init__(self, *args: Any, batches: int, per_task: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batches, self._per_task = batches, per_task
        self._kept: dict[int, list[Request]] = {}

    def _ended(self, request: Request) -> None:
        kept = self._kept.setdefault(request.job.task, [])
        kept.append(request)
        if not self._per_task or len(kept) == len(request.job.work.ids):
            for one in self._kept.pop(request.job.task):
                super()._ended(one)

    def _trained(self, version: int) -> None:
        super()._trained(version)
        if version == self._batches:
            raise Enough


def simulated(cell: Cell, times: Service, span: Span, log: EventLog | None = None) -> SimulationReport:
    world = Endless(
        cell.config, SystemModel(service=times, workload=WORKLOAD), seed=SEED, warmup=span.warmup, batches=span.last,
        per_task=cell.delivery == "task",
        log=log,
    )  # fmt: skip
    with contextlib.suppress(Enough):
        world.run()
    return world.stats.report(label="simulation", events=world.events)


# ---- cells ----


def cells() -> Iterator[Cell]:
    """By staleness bound: per rollout and per task, both orders; then what they are compared with, and longer contexts (b · 4)."""
    for staleness in (0, 1, 2, 4, 8):
        for delivery in ("rollout", "task"):
            for order in ("admission", "window")[: 1 + (staleness > 0)]:
                yield Cell(staleness=staleness, delivery=delivery, order=order)
    yield Cell(staleness=0, colocated=True)
    yield from (Cell(staleness=0, engines=engines) for engines in (2, 3, 5, 6))
    yield Cell(staleness=0, colocated=True, request=4)
    for staleness in (1, 4):
        yield from (Cell(staleness=staleness, delivery=delivery, request=4) for delivery in ("rollout", "task"))


def ray_cells() -> Iterator[Cell]:
    """Those that are also run over real Ray: both deliveries, three bounds, other numbers of engines, the window."""
    yield Cell(staleness=1)
    yield Cell(staleness=1, delivery="task")
    yield Cell(staleness=1, engines=2)
    yield Cell(staleness=4)
    yield Cell(staleness=0)
    yield Cell(staleness=1, engines=6)
    yield Cell(staleness=1, order="window")


def kept(cell: Cell, times: Service, span: Span, report: SimulationReport, scale: float = 1.0) -> dict[str, Any]:
    """What is kept of a run. ``scale``: how much faster than the model it ran; all figures are in seconds of the model."""
    bounds, total = Bounds.of(cell, Batches.of(cell, span), times), sum(report.staleness.values())
    return {
        **asdict(cell), "seconds": report.step_s * scale, "bound": bounds.period(cell), "bounds": asdict(bounds), "batches": report.steps,
        "tokens_per_s": report.tokens_per_s / scale, "train_s": report.train_s * scale, "sync_s": report.sync_s * scale,
        "idle": dict(report.idle), "ages": {str(age): count / total for age, count in report.staleness.items()},
        "slots": report.slots_held,
    }  # fmt: skip


def tell(found: Rows) -> None:
    """A row for each cell; the part of the bound is bound / measured."""
    print("\n| cell | s a batch | bound | reached | tokens/s | idle engines / learner | age mean / max |\n|" + " --- |" * 7)
    for name, r in found.items():
        ages = {int(age): part for age, part in r["ages"].items()}
        idle = fmean(r["idle"][role] for role in (GENERATORS, EXPLORERS))
        print(
            f"| {name} | {r['seconds']:.1f} | {r['bound']:.1f} | {r['bound'] / r['seconds']:.2f} | {r['tokens_per_s']:,.0f} | "
            f"{idle:.2f} / {r['idle'][LEARNER]:.2f} | {sum(age * part for age, part in ages.items()):.2f} / {max(ages)} |",
            flush=True,
        )


def ratios(found: Rows) -> dict[str, tuple[float, float]]:
    """(ratio, its bound) of what line 5 asks for: the bound of the numerator over the measured denominator. The better order counts."""

    def best(**wanted: Any) -> dict[str, Any]:
        fits = [r for r in found.values() if all(r[key] == value for key, value in ({"request": 1.0} | wanted).items())]
        return min(fits, key=lambda r: r["seconds"])

    told = {}
    for staleness in (1, 4):
        rollout, task = best(staleness=staleness, delivery="rollout", engines=4), best(staleness=staleness, delivery="task")
        told[f"per rollout / per task, staleness {staleness}"] = (
            task["seconds"] / rollout["seconds"],
            task["seconds"] / rollout["bound"],
        )
    over = best(staleness=4, delivery="rollout")
    for kind in (False, True):
        sync = best(staleness=0, delivery="rollout", colocated=kind)
        name = "colocated, all devices in both phases" if kind else f"the best split at staleness 0 ({sync['engines']} engines)"
        told[f"staleness 4 / {name}"] = (sync["seconds"] / over["seconds"], sync["seconds"] / over["bound"])
    return told


# ---- all of it ----


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=("simulator", "ray"), default=["simulator", "ray"])
    made.add_argument("--batches", type=int, default=16, help="that are measured")
    made.add_argument("--warmup", type=int, default=10, help="batches before them")
    made.add_argument("--scale", type=float, default=8.0, help="how much faster than the model the fakes run over Ray")
    return made.parse_args()


def main() -> int:
    args = arguments()
    span, facts = Span(warmup=2, batches=3) if args.quick else Span(warmup=args.warmup, batches=args.batches), machine()
    found: dict[str, Rows] = json.loads(args.json.read_text())["cells"] if args.json and args.json.is_file() else {}
    todo = {"simulator": [Cell(staleness=1), Cell(staleness=1, delivery="task")] if args.quick else list(cells())}
    todo["ray"] = [Cell(staleness=1)] if args.quick else list(ray_cells())
    for where in args.only:
        rows = found.setdefault(where, {})
        for cell in todo[where]:
            cell = replace(cell, groups=4) if args.quick else cell
            if cell.name not in rows:
                times = service(cell, span)
                if where == "simulator":
                    rows[cell.name] = kept(cell, times, span, simulated(cell, times, span))
                else:
                    from long_tails_ray import played  # Ray is not needed for the simulator

                    rows[cell.name] = played(cell, times, span, scale=200 if args.quick else args.scale)
                tell({cell.name: rows[cell.name]})
                finish(args, {"curve": CURVE, "cells": found}, facts)
    for where in found:
        print(f"\n## {where}")
        tell(found[where])
    if not args.quick and len(found.get("simulator", {})) >= len(todo["simulator"]):
        table(
            ("ratio", "measured", "bound", "reached"),
            [(name, f"{x:.2f}", f"{y:.2f}", f"{x / y:.2f}") for name, (x, y) in ratios(found["simulator"]).items()],
        )
    finish(args, {"curve": CURVE, "cells": found}, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
