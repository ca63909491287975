"""How rollouts come out of an engine actor: three ways through Ray, their cost, and what each keeps when things go wrong.

    python benchmarks/delivery.py [--quick] [--json OUT]

task      one call for n rollouts, two return values (notes, payload): all come when the last one ends
call      one call for each rollout, two return values (note, payload)
stream    one streaming call for n rollouts: it yields a note, then its payload, as each rollout ends. The driver awaits the note and
          takes the payload's reference without fetching it
batch     the same, but one pair of items holds all rollouts of the call that end within 10 ms

cost      CPU milliseconds a rollout, by process, and rollouts a second, engines that cost nothing
memory    growth of the driver for each open rollout of 200, 2,000 and 8,000 tokens, by ``max_direct_call_object_size``
faults    killed after delivery, killed in the middle, cancelled in the middle: what is still readable, what continues
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import psutil
import ray
from common import finish, machine, parser, quiet, table
from numpy.typing import NDArray

Note = tuple[int, int, int]  # index, tokens, version
Payload = dict[str, NDArray[Any]]
INLINE = (100 * 1024, 2048)  # bytes; the first is Ray's own default
TOKENS = (200, 2000, 8000)
LINGER_S = 0.01  # for which an item waits for further rollouts


def payload(index: int, tokens: int, rows: int = 1) -> Payload:
    """Columns as a trajectory has them: token ids, log-probabilities, entropies, versions."""
    shape = rows * tokens
    return {
        "tokens": np.full(shape, index, np.int32),
        "logprobs": np.zeros(shape, np.float32),
        "entropies": np.zeros(shape, np.float32),
        "versions": np.zeros(shape, np.int32),
    }


class InstantEngine:
    """Ends rollouts at once, or one every ``gap_s``."""

    def pid(self) -> int:
        return os.getpid()

    async def task(self, indices: list[int], tokens: int, gap_s: float) -> tuple[list[Note], Payload]:
        await asyncio.sleep(gap_s * len(indices))
        return [(index, tokens, 0) for index in indices], payload(indices[0], tokens, len(indices))

    async def call(self, index: int, tokens: int, gap_s: float) -> tuple[Note, Payload]:
        await asyncio.sleep(gap_s)
        return (index, tokens, 0), payload(index, tokens)

    async def stream(self, indices: list[int], tokens: int, gap_s: float) -> AsyncIterator[Note | Payload]:
        for index in indices:
            await asyncio.sleep(gap_s)
            yield (index, tokens, 0)
            yield payload(index, tokens)

    async def batch(self, indices: list[int], tokens: int, gap_s: float) -> AsyncIterator[list[Note] | Payload]:
        ended: asyncio.Queue[int] = asyncio.Queue()

        async def one(place: int, index: int) -> None:
            await asyncio.sleep(gap_s * (place + 1))
            ended.put_nowait(index)

        running = [asyncio.create_task(one(place, index)) for place, index in enumerate(indices)]
        left = len(running)
        while left:
            found = [await ended.get()]
            if left > 1:
                await asyncio.sleep(LINGER_S)
            while not ended.empty():
                found.append(ended.get_nowait())
            left -= len(found)
            yield [(index, tokens, 0) for index in found]
            yield payload(found[0], tokens, len(found))

    async def read(self, found: Payload) -> int:
        return int(found["tokens"][0])


Engine: Any = ray.remote(num_cpus=0, max_concurrency=100_000)(InstantEngine)


class Ways:
    """The driver's side of each way: awaits what an engine delivers and keeps the references of the payloads."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.notes: list[Note] = []
        self.payloads: list[ray.ObjectRef] = []

    async def task(self, indices: list[int], tokens: int, gap_s: float = 0.0) -> None:
        notes, held = self.engine.task.options(num_returns=2).remote(indices, tokens, gap_s)
        self.notes += await notes
        self.payloads.append(held)

    async def call(self, indices: list[int], tokens: int, gap_s: float = 0.0) -> None:
        async def one(place: int, index: int) -> None:
            note, held = self.engine.call.options(num_returns=2).remote(index, tokens, gap_s * (place + 1))
            self.notes.append(await note)
            self.payloads.append(held)

        await asyncio.gather(*(one(place, index) for place, index in enumerate(indices)))

    async def stream(self, indices: list[int], tokens: int, gap_s: float = 0.0) -> None:
        items = self.engine.stream.options(num_returns="streaming").remote(indices, tokens, gap_s)
        async for note in items:
            self.notes.append(await note)
            while not items.next_ready():  # an await would fetch it
                await asyncio.sleep(0.001)
            self.payloads.append(next(items))

    async def batch(self, indices: list[int], tokens: int, gap_s: float = 0.0) -> None:
        items = self.engine.batch.options(num_returns="streaming").remote(indices, tokens, gap_s)
        async for notes in items:
            self.notes += await notes
            while not items.next_ready():
                await asyncio.sleep(0.001)
            self.payloads.append(next(items))


WAYS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "task": Ways.task,
    "call": Ways.call,
    "stream": Ways.stream,
    "batch": Ways.batch,
}


def roles() -> dict[str, psutil.Process]:
    """The processes that delivery costs CPU time in."""
    found = {"driver": psutil.Process()}
    for process in psutil.Process().children(recursive=True):
        name = process.name()
        if "raylet" in name or "gcs_server" in name:
            found["raylet" if "raylet" in name else "gcs"] = process
        elif "InstantEngine" in " ".join(process.cmdline()):
            found["engine"] = process
    return found


def spent(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {role: sum(process.cpu_times()[:2]) for role, process in processes.items()}


async def cost(engine: Any, way: str, *, tasks: int, rows: int, tokens: int, at_once: int) -> dict[str, float]:
    ways, room = Ways(engine), asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with room:
            await WAYS[way](ways, list(range(number * rows, (number + 1) * rows)), tokens)
            del ways.payloads[:-64]  # a run lets them go, too

    processes = roles()
    before, began = spent(processes), time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(tasks)))
    seconds, after = time.perf_counter() - began, spent(processes)
    assert len(ways.notes) == tasks * rows
    used = {role: 1e3 * (after[role] - before[role]) / (tasks * rows) for role in processes}
    return {**used, "all": sum(used.values()), "rollouts/s": tasks * rows / seconds}


async def memory(engine: Any, way: str, *, count: int, rows: int, tokens: int) -> float:
    """Bytes by which the driver's own memory grows for each rollout that it holds a reference of."""
    ways = Ways(engine)
    await WAYS[way](ways, list(range(rows)), tokens)
    gc.collect()
    before = own_memory()
    for start in range(0, count, 500):
        parts = range(start, min(start + 500, count), rows)
        await asyncio.gather(*(WAYS[way](ways, list(range(i, i + rows)), tokens) for i in parts))
    gc.collect()
    return (own_memory() - before) / count


def own_memory() -> int:
    """Anonymous memory of the driver in bytes; what it has mapped of the object store is not in it."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))


async def faults(way: str) -> dict[str, Any]:
    """What is left after each of three faults, of 8 rollouts that end one after another within 1.6 s."""
    told: dict[str, Any] = {}
    for fault in ("killed after", "killed within", "cancelled within"):
        engine, reader = Engine.remote(), Engine.remote()
        pid = await engine.pid.remote()
        await reader.pid.remote()
        ways = Ways(engine)
        work = asyncio.ensure_future(WAYS[way](ways, list(range(8)), 20_000, 0.2))
        await asyncio.sleep(0.9 if "within" in fault else 3.0)
        if fault.startswith("killed"):
            os.kill(pid, signal.SIGKILL)
        else:
            work.cancel()
        outcome = await asyncio.gather(work, return_exceptions=True)
        await asyncio.sleep(1.0)
        read = await asyncio.gather(*(reader.read.remote(held) for held in ways.payloads), return_exceptions=True)
        told[fault] = {
            "notes": len(ways.notes),
            "readable elsewhere": sum(isinstance(item, int) for item in read),
            "driver saw": type(outcome[0]).__name__,
        }
        ray.kill(engine)
        ray.kill(reader)
    return told


def cluster(inline: int) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=2 << 30,
        _system_config={"max_direct_call_object_size": inline},
    )


def main() -> int:
    args = parser(__doc__ or "").parse_args()
    facts = machine()
    figures: dict[str, list[dict[str, Any]]] = {"cost": [], "memory": [], "faults": []}
    with quiet():
        for inline in INLINE[:1] if args.quick else INLINE:
            cluster(inline)
            try:
                engine = Engine.remote()
                ray.get(engine.pid.remote())
                tasks, count = (30, 500) if args.quick else (400, 10_000)
                for way in WAYS:
                    for tokens in TOKENS[:1] if args.quick else (20, *TOKENS):
                        asyncio.run(cost(engine, way, tasks=10, rows=8, tokens=tokens, at_once=32))
                        used = asyncio.run(cost(engine, way, tasks=tasks, rows=8, tokens=tokens, at_once=32))
                        figures["cost"].append({"way": way, "inline": inline, "tokens": tokens, **used})
                    for tokens in TOKENS[:1] if args.quick else TOKENS:
                        grown = asyncio.run(memory(engine, way, count=count, rows=8, tokens=tokens))
                        figures["memory"].append({"way": way, "inline": inline, "tokens": tokens, "bytes": grown})
                if inline == INLINE[0]:
                    figures["faults"] = [{"way": way, **asyncio.run(faults(way))} for way in WAYS]
            finally:
                ray.shutdown()
    for name, rows in figures.items():
        print(f"\n{name}")
        header = list(rows[0]) if rows else []
        table(header, [[f"{v:.3g}" if isinstance(v, float) else v for v in row.values()] for row in rows])
    finish(args, figures, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
