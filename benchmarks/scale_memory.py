"""What prompt groups in flight cost the driver: memory, the cut of a checkpoint, and the speed of the machine at that size.

The state machine and the payload table are the package's own; handles of payloads are stand-ins. Each figure comes from a fresh process.
"Fullest": every group in flight has all its rollouts, verdicts and credit, half of them with the learner and half ready, which is the
most that so many groups can take.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import random
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
from common import table

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config
from fr3e_async.control.context import PayloadTable
from fr3e_async.control.process import tuned_gc
from fr3e_async.control.progress import GROUPS_A_TURN
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Acked, Admitted, Delivered, Event, Exported, Scored, Trained, WorkerUp
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Assign, Branch, Command, Retire, Sample, Score, Send, Train, group_of
from fr3e_async.outcomes import Outcome
from fr3e_async.settings.loader import load_config
from fr3e_async.types import Anchor, Finish, RolloutId, RolloutSummary, Verdict

SIZES, QUICK_SIZES = (100, 1_000, 10_000), (100, 500)
TRACED, QUICK_TRACED = 1_000, 100  # groups under tracemalloc, which makes everything some times slower and larger
PASSES, EVENTS_OF_A_GROUP, LEAST_EVENTS = 2, 7, 20_000  # times that all groups in flight are replaced while the machine is timed
LENGTH = 4_000  # tokens of a response
VERDICTS = (Verdict(outcome=Outcome.CORRECT, reason="told"), Verdict(outcome=Outcome.WRONG, reason="told"))
ROLLOUT_BYTES = 20  # a token of a rollout: its id, log-prob, entropy, error of that, version
HANDLES, QUICK_HANDLES, AT_ONCE = 2_000, 100, 50
STORED, INLINE = 8_000, 4_000  # tokens of a payload in the object store, and of one that Ray leaves with its owner
PAYLOADS = (STORED, 20, INLINE)
Figures = dict[str, Any]


class Handle:
    """Stands for an object reference: 28 bytes of identity."""

    __slots__ = ("id",)

    def __init__(self, number: int) -> None:
        self.id = number.to_bytes(28, "little")


def paper(in_flight: int) -> Config:
    """The 7B preset with batches of such a size that ``in_flight`` groups may be alive: half of them, at a bound of 1."""
    steps = f"flow.groups_per_step={in_flight // 2}"
    return load_config(["config=paper/qwen2.5-7b", "run.steps=1000000", "flow.max_staleness=1", steps]).config


class Crowd:
    """A machine with workers that carry out every command at once, in order. Only ``Machine.handle`` is timed; only the payload table is kept."""

    def __init__(self, config: Config, *, learner: bool) -> None:
        """Without ``learner`` a batch that is given to it never ends, so all slots fill and stay so."""
        self._config, self._learner = config, learner
        self.machine, self.table = Machine(config, make_strategy(config.algorithm)), PayloadTable()
        self._chance = random.Random(0)
        self._todo: deque[Command] = deque(self.machine.start())
        self._payloads = 0
        self.told, self.cpu_s, self.longest_s, self.longest = 0, 0.0, 0.0, ""
        self._hire()

    def fill(self) -> None:
        """Until nothing is left to be done."""
        self._run(lambda: not self._todo)

    def steady(self, events: int) -> None:
        """Until a batch is trained, then so many events that count."""
        self._run(lambda: self.machine.ledger.version > 0)
        self.told, self.cpu_s, self.longest_s = 0, 0.0, 0.0
        self._run(lambda: self.told >= events)

    def _run(self, over: Callable[[], bool]) -> None:
        ledger = self.machine.ledger
        while True:
            while ledger.admissible() > 0:
                name = f"p{ledger.admitted}"
                self.table.open(f"{name}@0")
                self._tell(Admitted(group=f"{name}@0"))
            if over():
                return
            for event in self.done(self._todo.popleft()):
                self._tell(event)

    def _hire(self) -> None:
        """As many engines as the groups keep busy."""
        rollouts = self._config.flow.capacity * make_strategy(self._config.algorithm).plan.rollouts
        engines = max(1, rollouts // (2 * self._config.generators.rollouts_in_flight))
        for role, count in {GENERATORS: engines, EXPLORERS: engines, VERIFIERS: max(1, engines // 4)}.items():
            for number in range(count):
                self._tell(WorkerUp(role=role, worker=f"{role}-{number}"))

    def _tell(self, event: Event) -> None:
        began = time.thread_time()
        commands = self.machine.handle(event)
        spent = time.thread_time() - began
        self.told, self.cpu_s = self.told + 1, self.cpu_s + spent
        if spent > self.longest_s:
            self.longest_s, self.longest = spent, type(event).__name__
        self._todo.extend(commands)

    def done(self, command: Command) -> Iterator[Event]:
        match command:
            case Assign(work=Score() as work):
                verdicts = tuple(self._chance.choice(VERDICTS) for _ in work.ids)
                yield Scored(task=work.task, group=group_of(work), ids=work.ids, verdicts=verdicts)
            case Assign(work=Sample() | Branch() as work):
                yield self._delivered(work)
            case Retire():
                self.table.release(command.group)
            case Train() if self._learner:
                yield Trained(version=command.version)
                yield Exported(version=command.version)
            case Send():
                for worker in command.workers:
                    yield Acked(worker=worker, version=command.version)

    def _delivered(self, work: Sample | Branch) -> Delivered:
        self._payloads += 1
        group, live = group_of(work), self.machine.ledger.live
        trunks = work.ids if isinstance(work, Sample) and work.trunk else ()
        notes = tuple(
            RolloutSummary(
                id=id, length=LENGTH, context=LENGTH, cached=0, entropy_sum=1.0, entropy_error_sum=0.0, finish=Finish.STOP,
                oldest_version=live, newest_version=live,
            )
            for id in work.ids
        )  # fmt: skip
        anchors = tuple(anchor for id in trunks for anchor in self._anchors(id)) if trunks else None
        payload = self.table.keep(group, Handle(self._payloads))
        return Delivered(task=work.task, group=group, payload=payload, notes=notes, anchors=anchors)

    def _anchors(self, trunk: RolloutId) -> Iterator[Anchor]:
        count = self._config.algorithm.anchors
        first = count * trunk.branch
        for j in range(1, count + 1):
            parent = first + j - 1 if j > 1 else 0
            yield Anchor(node=first + j, parent=parent, trunk=trunk.branch, position=LENGTH * j // 8, score=1.0)


class Collections:
    """CPU time in Python's garbage collector while it is hooked in."""

    def __init__(self) -> None:
        self.longest_s = self.total_s = 0.0
        gc.callbacks.append(self._heard)

    def _heard(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            spent = time.thread_time() - self._began
            self.total_s, self.longest_s = self.total_s + spent, max(self.longest_s, spent)

    def close(self) -> None:
        gc.callbacks.remove(self._heard)


# ---- each in a process of its own ----


def full(in_flight: int) -> Figures:
    """The fullest state: resident memory, and CPU time of a checkpoint's cut: to take it, its longest turn of the loop, and all turns."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    crowd = Crowd(paper(in_flight), learner=False)
    crowd.fill()
    gc.collect()
    grown = process.memory_info().rss - before
    times = [time.thread_time()]
    cut, held = crowd.machine.ledger.cut(to_json), crowd.table.held()
    times.append(time.thread_time())
    while cut.step(GROUPS_A_TURN):
        times.append(time.thread_time())
    times.append(time.thread_time())
    taken, *turns = (after - before for before, after in itertools.pairwise(times))
    state = crowd.machine.ledger.state()
    return {
        "in_flight": crowd.machine.ledger.in_flight, "rollouts": sum(len(group.rollouts) for group in state.groups),
        "payloads": len(held), "bytes": grown, "cut_s": taken, "turn_s": max(turns), "encode_s": sum(turns),
        "json_bytes": len(to_json(cut.state())),
    }  # fmt: skip


def traced(in_flight: int) -> Figures:
    """The same state as ``tracemalloc`` counts it: without what the allocator keeps for later."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    crowd = Crowd(paper(in_flight), learner=False)
    crowd.fill()
    gc.collect()
    found = {"bytes": tracemalloc.get_traced_memory()[0] - before, "in_flight": crowd.machine.ledger.in_flight}
    tracemalloc.stop()
    return found


@tuned_gc()
def speed(in_flight: int, events: int) -> Figures:
    """Events a second of ``Machine.handle`` with so many groups in flight, the garbage collector set as in a run."""
    crowd = Crowd(paper(in_flight), learner=True)
    collections = Collections()
    crowd.steady(events)
    collections.close()
    return {
        "events": crowd.told, "events_per_cpu_s": crowd.told / crowd.cpu_s, "longest_ms": 1e3 * crowd.longest_s,
        "longest": crowd.longest, "collection_ms": 1e3 * collections.longest_s, "collections_s": collections.total_s,
    }  # fmt: skip


def alone(work: Callable[..., Figures], *arguments: Any) -> Figures:
    """In a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


# ---- handles in Ray ----


class Maker:
    """Returns payloads as an engine does: the second of two values, owned by the caller."""

    def make(self, nbytes: int) -> tuple[int, Any]:
        import numpy as np

        return 0, np.ones(nbytes, np.uint8)


def handles(count: int) -> Figures:
    """Bytes that the driver's process grows by for each payload it owns, by the payload's tokens."""
    import ray
    from scale_actors import local_ray

    process, kept, found = psutil.Process(), [], {}
    with local_ray(store_gib=1.0):
        maker = ray.remote(Maker).options(num_cpus=0).remote()
        ask = maker.make.options(num_returns=2)
        for tokens, payloads in (
            (STORED, AT_ONCE),
            *((tokens, count) for tokens in PAYLOADS),
        ):  # first some for Ray's own buffers
            before = process.memory_info().rss
            for _ in range(payloads // AT_ONCE):
                calls = [ask.remote(tokens * ROLLOUT_BYTES) for _ in range(AT_ONCE)]
                ray.get([first for first, _ in calls])
                kept += [second for _, second in calls]  # all to the end: what is freed would be used again
            ray.wait(kept[-payloads:], num_returns=payloads, fetch_local=False)
            found[str(tokens)] = {"payload": tokens * ROLLOUT_BYTES, "bytes": (process.memory_info().rss - before) / payloads}
    return found


def section(measured: Mapping[str, Figures], *, quick: bool) -> Figures:
    """``measured``: nothing is needed of other sections."""
    found: Figures = {"sizes": {}, "traced": alone(traced, QUICK_TRACED if quick else TRACED)}
    for size in QUICK_SIZES if quick else SIZES:
        events = max(PASSES * EVENTS_OF_A_GROUP * size, LEAST_EVENTS)
        found["sizes"][str(size)] = alone(full, size) | {"speed": alone(speed, size, events)}
    found["handles"] = alone(handles, QUICK_HANDLES if quick else HANDLES)
    return found


def bytes_of_a_group(found: Figures) -> float:
    """Of the driver, for a group in flight: at the largest size, with one payload that stays in its process and two in the store."""
    row, own = list(found["sizes"].values())[-1], found["handles"]
    return row["bytes"] / row["in_flight"] + own[str(INLINE)]["bytes"] + 2 * own[str(STORED)]["bytes"]


def cut_of_a_group(found: Figures) -> float:
    """Seconds in which the loop decides nothing, for a group in flight: at the largest size. A turn of it does not grow with them."""
    row = list(found["sizes"].values())[-1]
    return row["cut_s"] / row["in_flight"]


def show(found: Figures) -> None:
    print(
        "\nDriver: prompt groups in flight (4 bases, 3 anchors, 4 branches each), fullest state; pure machine and payload table"
    )
    rows = []
    for row in found["sizes"].values():
        made, per = row["speed"], row["bytes"] / row["in_flight"]
        rows.append(
            (f"{row['in_flight']:,}", f"{row['bytes'] / 2**20:.0f}", f"{per / 1024:.1f}", f"{per * 10_000 / 2**20:.0f}",
             f"{1e3 * row['cut_s']:.1f}", f"{1e3 * row['turn_s']:.1f}", f"{1e3 * row['encode_s']:.0f}", f"{row['json_bytes'] / 2**20:.1f}",
             f"{made['events_per_cpu_s']:,.0f}", f"{made['longest_ms']:.0f} ({made['longest']})", f"{made['collection_ms']:.0f}")
        )  # fmt: skip
    head = ("in flight", "MiB", "KiB a group", "MiB for 10,000", "cut: taken in ms", "longest turn ms", "all turns ms", "JSON MiB",
            "events a CPU second", "longest event ms", "longest collection ms")  # fmt: skip
    table(head, rows)
    seen = found["traced"]
    print(f"by tracemalloc: {seen['bytes'] / seen['in_flight'] / 1024:.1f} KiB a group at {seen['in_flight']:,} in flight")
    print("\nDriver: what it holds for each payload that an actor returned to it")
    cells = [(name, f"{row['payload'] / 1024:.1f}", f"{row['bytes'] / 1024:.1f}") for name, row in found["handles"].items()]
    table(("tokens in the payload", "KiB", "KiB of the driver"), cells)
