"""Start-up time against the number of actors, and what one heartbeat over all of them costs the driver."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common import cpu_s, table
from scale_actors import MemoryLow, Spent, bare, end, engines, local_ray, memory_mib, require_memory, wait_all

from fr3e_async.actors.proxies import RayEngine

COUNTS, QUICK_COUNTS = (1, 10, 50, 100, 200), (1, 4)
MEMORY_GUESS_MIB = 100.0  # of an actor, before one was seen
Figures = dict[str, Any]


def started(make: Callable[[int], list[Any]], count: int) -> tuple[Figures, list[Any], list[int]]:
    """Ask for so many actors at once and wait until each has answered: (figures, actors, their processes)."""
    cpu, began = cpu_s(own=False), time.perf_counter()
    actors = make(count)
    try:
        pids = wait_all([actor.start.remote() for actor in actors])
    except MemoryLow:
        end(actors, [])
        raise
    seconds = time.perf_counter() - began
    own, resident = memory_mib(pids)
    row = {"seconds": seconds, "cpu_s": (cpu_s(own=False) - cpu) / count, "own_mib": own, "resident_mib": resident}
    return row, actors, pids


async def beats(actors: Sequence[Any], rounds: int) -> Figures:
    """Rounds of what the watch asks of every engine: its pulse, then its state."""
    workers = [RayEngine(f"engine-{i}", actor) for i, actor in enumerate(actors)]

    async def look(worker: RayEngine) -> None:
        await worker.pulse()
        await worker.stats()

    await asyncio.gather(*map(look, workers))  # connections are made by the first call
    spent = Spent()
    for _ in range(rounds):
        await asyncio.gather(*map(look, workers))
    wall, thread, process = (seconds / rounds for seconds in spent.seconds())
    each = 1e3 / len(workers)
    return {"round_s": wall, "loop_cpu_ms": thread * each, "driver_cpu_ms": process * each}


def section(measured: Mapping[str, Figures], *, quick: bool) -> Figures:
    """Rows by number of actors, ``stopped`` why there are no more of them. ``measured``: nothing is needed of other sections."""
    found: Figures = {"rows": {}, "stopped": ""}
    need = MEMORY_GUESS_MIB
    with local_ray(store_gib=0.1):
        warm, actors, pids = started(engines, 1)  # the driver's and Ray's own first times
        end(actors, pids)
        need = max(need, warm["own_mib"])
        for count in QUICK_COUNTS if quick else COUNTS:
            try:
                require_memory(count * need / 1024, f"{count} actors")
                floor, actors, pids = started(bare, count)
                end(actors, pids)
                row, actors, pids = started(engines, count)
            except MemoryLow as error:
                found["stopped"] = f"stopped before {count} actors: {error}"
                break
            row |= asyncio.run(beats(actors, rounds=3 if quick else 5))
            end(actors, pids)
            need = max(need, row["own_mib"])
            found["rows"][str(count)] = {"floor": floor, **row, "ratio": row["seconds"] / floor["seconds"]}
    return found


def beat_cost(found: Figures) -> float:
    """Milliseconds of the loop's thread for one engine and heartbeat, at the largest number that was started."""
    return list(found["rows"].values())[-1]["loop_cpu_ms"]


def slope(found: Figures) -> float:
    """Seconds for one actor more, over the sizes that were started (median of the differences)."""
    rows = [(int(count), row["seconds"]) for count, row in found["rows"].items()]
    return statistics.median((b - a) / (m - n) for (n, a), (m, b) in itertools.pairwise(rows))


def show(found: Figures) -> None:
    print("\nStart-up: fake engines, one process each, all asked for at once; floor: as many actors that do nothing")
    rows = []
    for count, row in found["rows"].items():
        floor = row["floor"]
        rows.append(
            (count, f"{row['seconds']:.2f}", f"{floor['seconds']:.2f}", f"{row['ratio']:.2f}", f"{row['cpu_s']:.2f}",
             f"{floor['cpu_s']:.2f}", f"{row['own_mib']:.0f} / {row['resident_mib']:.0f}", f"{1e3 * row['round_s']:.0f}",
             f"{row['loop_cpu_ms']:.2f} / {row['driver_cpu_ms']:.2f}")
        )  # fmt: skip
    head = ("actors", "s until all answer", "floor s", "ratio", "CPU s an actor", "floor CPU s", "MiB own / resident",
            "heartbeat ms", "driver CPU ms an engine: loop / all")  # fmt: skip
    table(head, rows)
    if len(rows) > 1:
        print(f"one actor more: {slope(found):.3f} s")
    if found["stopped"]:
        print(found["stopped"])
