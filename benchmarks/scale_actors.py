"""Actors of the scale benchmark, and the Ray that they run in. Importable by Ray's workers; knows nothing of what is measured.

A fake engine is the package's own fake behind a shell like ``actors.engine``'s: the same options, calls and concurrency groups, but
its process loads no vLLM and no torch. So what is seen is Ray's part of a start, and the least that an engine can cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray

from fr3e_async.actors.watch import Watched, watchable
from fr3e_async.rollout.port import EngineStats
from fr3e_async.testing.fakes import FakeEngineWorker

CALLS_AT_ONCE = 10_000  # as in the package's wiring
LEAST_FREE_GIB = 2.0  # below this nothing more is started
GONE_S = 60.0  # for killed actors to leave


class MemoryLow(RuntimeError):
    """Less memory is left than the next step needs, or than ``LEAST_FREE_GIB``."""


@contextlib.contextmanager
def local_ray(*, store_gib: float) -> Iterator[None]:
    """A Ray of our own on this machine's cores."""
    ray.init(
        address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=int(store_gib * 2**30),
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


# ---- actors ----


class Nothing:
    """The floor: a process and its id."""

    def start(self) -> int:
        return os.getpid()


class FakeEngineActor(Watched):
    """A fake engine in a process of its own."""

    def __init__(self, name: str) -> None:
        self._engine = FakeEngineWorker(name)

    async def start(self) -> int:
        self.loop = asyncio.get_running_loop()
        return os.getpid()

    async def stats(self) -> EngineStats:
        return await self._engine.stats()

    def pulse(self) -> int:
        return self._engine._pulse


def bare(count: int) -> list[Any]:
    return [ray.remote(Nothing).options(num_cpus=0).remote() for _ in range(count)]


def engines(count: int) -> list[Any]:
    """All asked for at once, with the options that wiring gives; none of them takes one of Ray's CPUs."""
    options: dict[str, Any] = {
        "num_cpus": 0, "max_concurrency": CALLS_AT_ONCE, "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}},
    }  # fmt: skip
    return [watchable(FakeEngineActor).options(**options).remote(f"engine-{i}") for i in range(count)]


# ---- what they cost ----


def require_memory(gib: float, what: str) -> None:
    """Raise ``MemoryLow`` unless so much is free besides what must stay free."""
    free = psutil.virtual_memory().available / 2**30
    if free < gib + LEAST_FREE_GIB:
        raise MemoryLow(f"{what} would take some {gib:.1f} GiB, but {free:.1f} GiB are free and {LEAST_FREE_GIB:g} must stay so")


def wait_all(calls: Sequence[Any]) -> list[Any]:
    """Their results; raises ``MemoryLow`` if memory runs low meanwhile."""
    left = list(calls)
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=0.5)
        require_memory(0.0, f"waiting for {len(left)} more actors")
    return ray.get(list(calls))


def end(actors: Sequence[Any], pids: Sequence[int]) -> None:
    """Kill them and wait until their processes have gone."""
    for actor in actors:
        ray.kill(actor)
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    psutil.wait_procs(processes, timeout=GONE_S)


def memory_mib(pids: Sequence[int]) -> tuple[float, float]:
    """Means over processes: (what each has for itself alone, what the system shows as resident, shared pages included)."""
    own = resident = 0
    for pid in pids:
        found = psutil.Process(pid).memory_full_info()
        own, resident = own + found.uss, resident + found.rss
    return own / len(pids) / 2**20, resident / len(pids) / 2**20


class Spent:
    """Seconds since it was made: on the clock, of CPU by this thread, of CPU by this process."""

    def __init__(self) -> None:
        self._from = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.perf_counter(), time.thread_time(), time.process_time()

    def seconds(self) -> tuple[float, float, float]:
        wall, thread, process = (now - then for now, then in zip(self._now(), self._from, strict=True))
        return wall, thread, process
