"""A simulated run from its settings to its report."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import replace

from fr3e_async.config import Config
from fr3e_async.simulate.report import SimulationReport
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.station import EventLog
from fr3e_async.simulate.world import World


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Nothing in a simulation is a cycle, and looking for some among millions of objects takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def simulate(
    config: Config, model: SystemModel, *, steps: int = 0, seed: int = 0, cores: float = 0, warmup: int = 1, log: EventLog | None = None
) -> SimulationReport:  # fmt: skip
    """Run ``steps`` batches (0: run.steps) of a config on virtual time. Raises ``RunFailed`` like a real run."""
    steps = steps or config.run.steps
    config = replace(config, run=replace(config.run, steps=steps))
    began = time.perf_counter()
    world = World(config, model, seed=seed, cores=cores, warmup=min(warmup, steps - 1), log=log)
    with _without_gc():
        world.run()
    return world.stats.report(label="simulation", events=world.events, seconds=time.perf_counter() - began)
