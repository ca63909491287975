"""What limits at 1,000 and 10,000 engines: the real state machine in a simulated cluster, against costs measured in the same run.

The simulation says what has to be done: events a second, groups in flight, time of a batch. What one core can carry is measured:
the machine's own time for each event as the simulation calls it, the loop's time for an event through Ray, for an engine's heartbeat,
and the driver's memory for a group. Loads are parts of one core (memory: of ``DRIVER_GIB``; weights: of a batch's time). They grow
with the number of engines, so each reaches 1 at engines / load.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import table

from fr3e_async.config import Config
from fr3e_async.control.watchdog import looks
from fr3e_async.learner.memory import model_shape
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Event, Pressure
from fr3e_async.machine.messages import Command
from fr3e_async.settings.loader import load_config
from fr3e_async.simulate.roofline import BYTES, STORE_BYTES_PER_S, device_of, roofline
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.workload import LogNormalWorkload
from fr3e_async.simulate.world import World

CONFIG, DEVICE = "paper/qwen2.5-7b", "H100"
MEAN_TOKENS, SIGMA_TOKENS, PROMPT_TOKENS = 4096, 2458, 256  # what `fr3e plan` assumes of this preset
GROUPS_AN_ENGINE, STALENESS = 4, 2  # of a batch, and the bound: with less of both the engines wait for the slowest groups
ENGINES_A_VERIFIER = 32
ENGINES, QUICK_ENGINES = (100, 1_000, 10_000), (20, 40)
GPUS_PER_NODE = 8
TARGET = 0.5  # load of a shard: above it an event waits longer than it takes
DRIVER_GIB = 64.0  # of a head node, for the driver alone
TREE = "weights, down a tree"  # the one load that does not grow with the number of engines, but with its logarithm
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured on this machine: of the loop's one thread, and of the driver's memory."""

    event_s: float  # an event through loop, journal, ledger log and Ray
    beat_s: float  # one engine's heartbeat
    group_bytes: float  # of a group in flight
    cut_s: float  # of a checkpoint's cut, for a group in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a simulated cluster asks of the control, a second where nothing else is said."""

    engines: int
    step_s: float
    events_per_s: float  # of tasks, groups and weights
    machine_load: float  # CPU seconds of ``Machine.handle`` in a second, cache pressure included
    in_flight: float  # groups, at most
    looks_per_s: float  # at workers, by heartbeats
    weight_bytes: float


def preset() -> tuple[Config, SystemModel]:
    """The 7B preset with service times from data sheets, and a learner that keeps up with any number of engines."""
    fixed = [f"{role}.{bound}=0" for role in (GENERATORS, EXPLORERS, VERIFIERS) for bound in ("min", "max")]  # as many as count
    config = load_config([f"config={CONFIG}", "pools.flexible_roles=true", *fixed]).config
    shape = model_shape(config)
    assert shape is not None, "the preset names the number of parameters"
    workload = LogNormalWorkload(mean=MEAN_TOKENS, sigma=SIGMA_TOKENS, prompt=PROMPT_TOKENS)
    model = roofline(config, shape, device_of(DEVICE), workload, name=DEVICE)
    service = replace(model.service, learner=replace(model.service.learner, token_s=0.0))
    return config, replace(model, service=service)


def scaled(config: Config, engines: int) -> Config:
    """So many engines, half of them of either role, and batches that keep all of them at work."""
    return replace(
        config,
        generators=replace(config.generators, count=engines - engines // 2),
        explorers=replace(config.explorers, count=engines // 2),
        verifiers=replace(config.verifiers, count=math.ceil(engines / ENGINES_A_VERIFIER)),
        flow=replace(config.flow, groups_per_step=GROUPS_AN_ENGINE * engines, max_staleness=STALENESS),
    )


class Enough(Exception):
    """All batches that count are trained. The run itself would continue: its end is not what it is like in between."""


class Timed:
    """Stands between a simulated world and its machine: CPU time and kinds of the events from the end of the warm-up on."""

    def __init__(self, world: World, *, warmup: int) -> None:
        self._machine, self._handle = world.machine, world.machine.handle
        world.machine.handle = self.handle  # type: ignore[method-assign]
        self._warmup, self._last = warmup, 2 * warmup
        self.cpu_s, self.kinds, self.in_flight = 0.0, Counter[str](), 0
        self.longest_s, self.longest = 0.0, ""

    def handle(self, event: Event) -> list[Command]:
        version = self._machine.ledger.version
        if version == self._last:
            raise Enough
        began = time.thread_time()
        commands = self._handle(event)
        spent = time.thread_time() - began
        if version < self._warmup:
            return commands
        kind = type(event).__name__
        self.cpu_s += spent
        self.kinds[kind] += 1
        self.in_flight = max(self.in_flight, self._machine.ledger.in_flight)
        if spent > self.longest_s:
            self.longest_s, self.longest = spent, kind
        return commands


def simulated(config: Config, model: SystemModel, engines: int) -> Figures:
    """Demand of one cluster, with what the simulation says besides."""
    warmup = config.flow.max_staleness + 1  # every slot is used once, and once more while it is counted
    world = World(config, model, seed=0, warmup=warmup)
    timed = Timed(world, warmup=warmup)
    began = time.perf_counter()
    gc.disable()  # no cycles in a simulation, and millions of its objects that a driver does not have
    try:
        with contextlib.suppress(Enough):
            world.run()
    finally:
        gc.enable()
    report = world.stats.report(label="simulation")
    pressure = timed.kinds.pop(Pressure.__name__, 0)
    events = timed.kinds.total()
    shape = model_shape(config)
    assert shape is not None
    demand = Demand(
        engines=engines, step_s=report.step_s, events_per_s=events / report.seconds, machine_load=timed.cpu_s / report.seconds,
        in_flight=timed.in_flight, looks_per_s=looks(engines, config) / config.observe.heartbeat_s,
        weight_bytes=float(shape.parameters * BYTES[config.learner.dtype]),
    )  # fmt: skip
    return {
        "demand": asdict(demand), "bare_events_per_s": (events + pressure) / timed.cpu_s, "kinds": dict(timed.kinds),
        "pressure": pressure, "longest_ms": 1e3 * timed.longest_s, "longest": timed.longest,
        "rollouts_per_s": report.rollouts_per_s, "idle": dict(report.idle), "groups_per_step": config.flow.groups_per_step,
        "simulated_s": report.seconds, "computed_s": time.perf_counter() - began,
    }  # fmt: skip


# ---- arithmetic ----


def star_s(weight_bytes: float, nodes: int) -> float:
    """Every node gets its one copy from the learner's node."""
    return nodes * weight_bytes / STORE_BYTES_PER_S


def tree_s(weight_bytes: float, nodes: int) -> float:
    """Every node that has a copy gives one to another node at a time: who has it doubles."""
    return math.ceil(math.log2(nodes + 1)) * weight_bytes / STORE_BYTES_PER_S


def nodes_of(engines: int) -> int:
    return math.ceil(engines / GPUS_PER_NODE)


def loads(demand: Demand, costs: Costs) -> dict[str, float]:
    """What each part is asked for, of what one can give; 1 is the limit."""
    events = demand.events_per_s * costs.event_s
    beats = demand.looks_per_s * costs.beat_s
    nodes = nodes_of(demand.engines)
    return {
        "bare machine": demand.machine_load,
        "events through the loop": events,
        "heartbeats": beats,
        "the loop together": events + beats,
        "driver memory": demand.in_flight * costs.group_bytes / 2**30 / DRIVER_GIB,
        "weights, all nodes from one": star_s(demand.weight_bytes, nodes) / demand.step_s,
        TREE: tree_s(demand.weight_bytes, nodes) / demand.step_s,
    }


def limit(load: float, engines: int) -> float:
    """Engines at which a load that grows with them is 1."""
    return engines / load if load else math.inf


def shards(loop_load: float, memory_load: float) -> int:
    """Loops that carry it, each loaded to ``TARGET`` at most."""
    return max(1, math.ceil(loop_load / TARGET), math.ceil(memory_load))


# ---- costs ----


def loop_cost(*, quick: bool) -> Figures:
    """The real loop through Ray with actors that answer at once: CPU time of its thread for each event of the journal."""
    from system_control import loop_run
    from system_parts import cluster, toy

    with tempfile.TemporaryDirectory(prefix="fr3e-") as scratch, cluster(toy().config):
        folder, thread = Path(scratch), time.thread_time()
        run = asyncio.run(loop_run(folder, steps=5 if quick else 32))
        thread = time.thread_time() - thread
        events = sum(len(path.read_text().splitlines()) - 1 for path in (folder / "run" / "journal").glob("*.jsonl"))
    return {"events": events, "loop_s": thread / events, "driver_s": run["driver_cpu_s"] / events, "whole_s": run["whole_s"]}


def section(measured: Mapping[str, Figures], *, quick: bool) -> Figures:
    """``measured``: the sections ``start`` and ``memory`` of this run."""
    import scale_memory
    import scale_start

    loop = loop_cost(quick=quick)
    costs = Costs(
        event_s=loop["loop_s"],
        beat_s=scale_start.beat_cost(measured["start"]) / 1e3,
        group_bytes=scale_memory.bytes_of_a_group(measured["memory"]),
        cut_s=scale_memory.cut_of_a_group(measured["memory"]),
    )
    config, model = preset()
    found: Figures = {"loop": loop, "costs": asdict(costs), "engines": {}}
    for engines in QUICK_ENGINES if quick else ENGINES:
        row = simulated(scaled(config, engines), model, engines)
        load = loads(Demand(**row["demand"]), costs)
        row["cut_s"] = costs.cut_s * row["demand"]["in_flight"]
        row["loads"] = load
        row["shards"] = shards(load["the loop together"], load["driver memory"])
        found["engines"][str(engines)] = row
    return found


def show(found: Figures) -> None:
    costs = found["costs"]
    print(
        f"\nLimits: simulation, no such run took place. {CONFIG} on {DEVICE}, {GROUPS_AN_ENGINE} groups a batch for each engine, "
        f"staleness at most {STALENESS}, a learner that keeps up"
    )
    print(
        f"costs measured here: an event {1e3 * costs['event_s']:.3f} ms of the loop's thread "
        f"({1e3 * found['loop']['driver_s']:.3f} ms of the driver), an engine's heartbeat {1e3 * costs['beat_s']:.3f} ms, "
        f"a group in flight {costs['group_bytes'] / 1024:.0f} KiB"
    )
    rows = []
    for name, row in found["engines"].items():
        demand = row["demand"]
        idle = " / ".join(f"{row['idle'][role]:.2f}" for role in ("generators", "explorers", "verifiers"))
        rows.append(
            (f"{int(name):,}", f"{demand['step_s']:.0f}", idle, f"{row['rollouts_per_s']:,.0f}", f"{demand['events_per_s']:,.0f}",
             f"{row['bare_events_per_s']:,.0f}", f"{demand['in_flight']:,}", f"{1e3 * row['cut_s']:,.0f}",
             f"{row['longest_ms']:,.0f} ({row['longest']})")
        )  # fmt: skip
    table(("engines", "s a batch", "idle gen / expl / ver", "rollouts/s", "events/s", "bare machine events a CPU second",
           "groups in flight", "cut ms", "longest event ms"), rows)  # fmt: skip
    print("\nloads: of one core, of the driver's memory, of a batch's time; in brackets the engines at which each is 1")
    names = list(next(iter(found["engines"].values()))["loads"])
    cells = []
    for name in names:
        pairs = [(row["loads"][name], int(count)) for count, row in found["engines"].items()]
        cells.append((name, *(f"{load:.3g}" + f" ({limit(load, count):,.0f})" * (name != TREE) for load, count in pairs)))
    table(("load", *(f"{int(count):,} engines" for count in found["engines"])), cells)
    for count, row in found["engines"].items():
        print(f"{int(count):,} engines: {verdict(row['loads'], int(count))}; shards of control: {row['shards']}")


def verdict(found: Mapping[str, float], engines: int) -> str:
    """What is reached first when engines are added, and what of control."""
    first = max(found, key=lambda name: found[name])
    loop = "the loop together"
    after = f", control at {limit(found[loop], engines):,.0f}" if first != loop else ""
    return f"{first} limits first, at {limit(found[first], engines):,.0f}{after}"
