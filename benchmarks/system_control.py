"""Capacity of the control plane: the bare state machine, and the whole loop through Ray with actors that answer at once.

What the actors return is real in form: rollout batches, notes, anchors, verdicts. A rollout's length and reward follow from its
id, so that groups have a spread and are trained as they would be. The actors are kinds of the package's own, so that mypy finds a
call that one of them does not take; the loop is put together by ``Session``, as for a run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from system_parts import cluster, pace, recording, toy

from fr3e_async.actors.cluster import RayPayloads
from fr3e_async.actors.engine import EngineActor
from fr3e_async.actors.learner import LearnerActor, Pick
from fr3e_async.actors.proxies import RayEngine, RayLearner, RayVerifier
from fr3e_async.actors.verifier import Problem, VerifierActor
from fr3e_async.actors.watch import watchable
from fr3e_async.algorithm.anchors import anchor_positions, with_anchors
from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.clock import RunClock, steady
from fr3e_async.config import Config
from fr3e_async.control.ports import Delivery
from fr3e_async.control.process import tuned_gc
from fr3e_async.control.workers import Worker, Workers
from fr3e_async.data.prompts import Datasets
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Acked, Admitted, Delivered, Event, Exported, Scored, Trained, WorkerUp
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Assign, Branch, Command, Sample, Score, Send, Train
from fr3e_async.outcomes import Outcome
from fr3e_async.rollout import EngineStats
from fr3e_async.run.session import Session
from fr3e_async.store.run_dir import RunDir
from fr3e_async.types import (
    Anchor,
    Completion,
    Draw,
    Finish,
    Prompt,
    RolloutBatch,
    RolloutId,
    RolloutSummary,
    StepReport,
    Verdict,
)
from fr3e_async.weights.bundle import stream
from fr3e_async.weights.manifest import WeightAck, WeightBucket, WeightBundle, WeightManifest
from fr3e_async.wiring import Deployment, PolicyFiles

ROLLOUTS_GOAL = 1000.0  # a second, on two cores
EVENTS_GOAL = 50_000.0  # a second
WORKERS = {GENERATORS: 1, EXPLORERS: 1, VERIFIERS: 1}
CALLS_AT_ONCE = 10_000
LENGTH = 20  # tokens of a response, about that of the toy
CORRECT, WRONG = 1, 2  # the last token says whether the response is correct


def number_of(id: RolloutId) -> int:
    """The same in every process."""
    return zlib.crc32(f"{id.group}/{id.node}/{id.branch}".encode())


def is_correct(id: RolloutId) -> bool:
    return bool(number_of(id) >> 7 & 1)


def anchors_of(trunk: RolloutId) -> tuple[Anchor, ...]:
    """Three of them: nodes are numbered for algorithm.anchors = 3."""
    first = 3 * trunk.branch
    return tuple(
        Anchor(node=first + j, parent=first + j - 1 if j > 1 else 0, trunk=trunk.branch, position=4 * j, score=1.0)
        for j in (1, 2, 3)
    )


def prompts(count: int) -> list[Prompt]:
    return [Prompt(uid=f"p{i}", text="", reference="1", token_ids=np.arange(3, 23, dtype=np.int32)) for i in range(count)]


# ---- the bare machine ----


class Player:
    """A world that carries out every command at once, in order, and keeps all events that it told the machine."""

    def __init__(self, config: Config) -> None:
        self.machine = Machine(config, make_strategy(config.algorithm))
        self.events: list[Event] = []
        self._todo: deque[Command] = deque(self.machine.start())
        self._payloads = 0

    def play(self, events: int) -> list[Event]:
        for role, count in {**WORKERS, GENERATORS: 2, EXPLORERS: 2}.items():
            for number in range(count):
                self._tell(WorkerUp(role=role, worker=f"{role}-{number}"))
        admitted = 0
        while len(self.events) < events:
            while self.machine.ledger.admissible() > 0:
                admitted += 1
                self._tell(Admitted(group=f"p{admitted}@0"))
            for event in self.done(self._todo.popleft()):
                self._tell(event)
        return self.events

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self._todo.extend(self.machine.handle(event))

    def done(self, command: Command) -> Iterator[Event]:
        match command:
            case Assign(work=Score() as work):
                verdicts = tuple(Verdict(outcome=Outcome.CORRECT if is_correct(id) else Outcome.WRONG) for id in work.ids)
                yield Scored(task=work.task, group=work.ids[0].group, ids=work.ids, verdicts=verdicts)
            case Assign(work=Sample() | Branch() as work):
                self._payloads += 1
                trunk = isinstance(work, Sample) and work.trunk
                yield Delivered(
                    task=work.task,
                    group=work.ids[0].group,
                    payload=self._payloads,
                    notes=tuple(map(self._note, work.ids)),
                    anchors=tuple(anchor for id in work.ids for anchor in anchors_of(id)) if trunk else None,
                )
            case Train():
                yield Trained(version=command.version)
                yield Exported(version=command.version)
            case Send():
                for worker in command.workers:
                    yield Acked(worker=worker, version=command.version)

    def _note(self, id: RolloutId) -> RolloutSummary:
        version = self.machine.ledger.live
        return RolloutSummary(
            id=id, length=LENGTH, context=20, cached=0, entropy_sum=1.0, entropy_error_sum=0.0, finish=Finish.STOP,
            oldest_version=version, newest_version=version,
        )  # fmt: skip


@tuned_gc()  # as a run does
def machine_section(*, quick: bool) -> dict[str, Any]:
    """Events are recorded first and then told to fresh machines: nothing but ``Machine.handle`` is in the time."""
    config = toy("run.steps=1000000").config
    events = Player(config).play(5_000 if quick else 50_000)
    seconds, cpu = [], []
    for _ in range(3):
        fresh = Machine(config, make_strategy(config.algorithm))
        fresh.start()
        started, worked = time.perf_counter(), time.process_time()
        for event in events:
            fresh.handle(event)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
    kinds = Counter(type(event).__name__ for event in events)
    rate = len(events) / statistics.median(seconds)
    return {
        "events": len(events), "kinds": dict(kinds), "events_per_s": rate, "events_per_cpu_s": len(events) / min(cpu),
        "goal": EVENTS_GOAL, "met": rate >= EVENTS_GOAL,
    }  # fmt: skip


# ---- the loop through Ray ----


class InstantEngine(EngineActor):
    """Answers what it is asked for, without any model."""

    def __init__(self) -> None:
        self._version = self._tokens = self._calls = 0

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, trunk: bool
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        contexts = [prompt.token_ids for prompt in prompts[:1]]
        anchors = tuple(anchor for id in ids for anchor in anchors_of(id)) if trunk else None
        for part in self._made(ids, contexts, [0] * len(ids), len(contexts[0]), anchors):
            yield part

    async def branch(
        self, payload: RolloutBatch, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        row = payload.row_of(trunk)
        prompt, spine = payload.context(row), payload.completion(row).tokens
        positions = anchor_positions(payload)
        contexts = [np.concatenate([prompt, spine[:position]]) for position in positions.values()]
        nodes = list(positions)
        for part in self._made(ids, contexts, [nodes.index(id.node) for id in ids], len(prompt), None):
            yield part

    def _made(
        self, ids: Sequence[RolloutId], contexts: list[Any], context_of: list[int], prompt: int, anchors: Any
    ) -> tuple[Delivery, RolloutBatch]:
        self._calls += 1
        self._tokens += LENGTH * len(ids)
        batch = RolloutBatch.build(
            ids=list(ids), contexts=contexts, prompt_lens=[prompt] * len(contexts), context_of=context_of,
            completions=[self._completion(id) for id in ids],
        )  # fmt: skip
        return Delivery.of(batch, anchors), batch if anchors is None else with_anchors(batch, anchors)

    def _completion(self, id: RolloutId) -> Completion:
        tokens = np.full(LENGTH, number_of(id) % 1000 + 3, dtype=np.int32)
        tokens[-1] = CORRECT if is_correct(id) else WRONG
        floats = np.full(LENGTH, -1.0, dtype=np.float32)
        return Completion(
            tokens=tokens, logprobs=floats, entropies=-floats, entropy_errors=np.zeros(LENGTH, dtype=np.float32),
            versions=np.full(LENGTH, self._version, dtype=np.int32), finish=Finish.STOP,
        )  # fmt: skip

    async def load_weights(self, bundle: WeightBundle) -> WeightAck:
        self._version = bundle.version
        return WeightAck(
            version=bundle.version, checksum=bundle.checksum, verified_tensors=1, loaded_tensors=1, copied_bytes=4,
            skipped_bytes=0, copy_s=0.0, load_s=0.0, verify_s=0.0, pause_s=0.0,
        )  # fmt: skip

    async def stats(self) -> EngineStats:
        return EngineStats(
            version=self._version, running=0, tokens_generated=self._tokens, prompt_tokens=0, cached_prompt_tokens=0,
            pause_s=0.0, at=steady(), busy=(),
        )  # fmt: skip

    def pulse(self) -> int:
        return self._calls


class InstantVerifier(VerifierActor):
    """Reads the answer off the last token."""

    def __init__(self) -> None:
        self._judged = 0

    async def judge(self, batch: RolloutBatch, rows: Sequence[int], problems: Sequence[Problem]) -> list[Verdict]:
        self._judged += len(rows)
        last = [batch.completion(row).tokens[-1] for row in rows]
        return [Verdict(outcome=Outcome.CORRECT if token == CORRECT else Outcome.WRONG) for token in last]

    def pulse(self) -> int:
        return self._judged


class InstantRank(LearnerActor):
    """A learner rank that fetches its rows, as a real one does, and leaves them."""

    def __init__(self) -> None:
        self._steps = 0

    def train(self, payloads: Sequence[ray.ObjectRef], picks: Sequence[Pick], version: int) -> StepReport:
        ray.get(list(payloads))
        self._steps += 1
        return StepReport(version=version, tokens=LENGTH * len(picks), optimiser_steps=1, metrics={}, time_s=0.0)

    def export(
        self, version: int | None, held: WeightManifest | None, bucket_bytes: int
    ) -> Iterator[WeightBucket | WeightManifest]:
        assert version is not None
        weights = [("w", torch.full((16,), float(version)))]
        yield from stream([weights], version=version, dtype="float32", held=held)

    def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)

    def pulse(self) -> int:
        return self._steps


def hired() -> tuple[list[tuple[str, Worker]], RayLearner]:
    """Actors of all roles. They take no Ray CPUs: what they do is nothing."""
    options = {"num_cpus": 0, "max_concurrency": CALLS_AT_ONCE}
    workers: list[tuple[str, Worker]] = []
    for role, count in WORKERS.items():
        for number in range(count):
            proxy, kind = (RayVerifier, InstantVerifier) if role == VERIFIERS else (RayEngine, InstantEngine)
            workers.append((role, proxy(f"{role}-{number}", watchable(kind).options(**options).remote())))
    rank = watchable(InstantRank).options(num_cpus=0).remote()
    return workers, RayLearner([rank], None, bucket_bytes=1 << 20)


async def loop_run(folder: Path, *, steps: int) -> dict[str, Any]:
    loaded = toy(
        f"run.steps={steps}", "run.checkpoint_every=0", "generators.rollouts_in_flight=512", "explorers.rollouts_in_flight=512",
        "observe.trees_per_step=0",
    )  # fmt: skip
    config = loaded.config
    run_dir = RunDir.open(folder / "run", config=config, config_yaml=loaded.yaml)
    workers, learner = hired()

    async def nobody(role: str) -> Worker:
        raise AssertionError(f"a worker of {role} was lost")

    model = PolicyFiles(path="", end_token_ids=())
    clock = RunClock()
    deployment = Deployment(config, model, run_dir, clock=clock)
    deployment.workers = Workers(config=config, learner=learner, payloads=RayPayloads(), start=nobody, workers=workers)
    datasets = Datasets(train=tuple(prompts(4096)), heldout=(), dropped=0)
    session = Session(
        config, model, datasets, run_dir, resume_from=None, clock=clock, started_at=clock(), spell=lambda tokens: []
    )
    with recording(config, run_dir, clock) as recorder:
        controller = await session.controller(deployment, recorder, None, 0)
        cpu = time.process_time()
        started = time.perf_counter()
        await controller.run()
        whole, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"whole_s": whole, "driver_cpu_s": cpu, "metrics": run_dir.metrics}


def control_section(folder: Path, *, quick: bool) -> dict[str, Any]:
    steps = 8 if quick else 48
    with cluster(toy().config):
        run = asyncio.run(loop_run(folder, steps=steps))
    rows = [json.loads(line) for line in run["metrics"].read_text().splitlines()]
    # From the second batch to the last but two: with no more groups to admit, fewer are in flight.
    rate = pace(rows, first=2, last=steps - 2)["tokens_per_s"] / LENGTH
    rollouts = sum(row["tokens/generated"] for row in rows) / LENGTH
    return {
        "rollouts": rollouts, "rollouts_per_s": rate, "batches": steps, "whole_s": run["whole_s"],
        "driver_cpu_s": run["driver_cpu_s"], "goal": ROLLOUTS_GOAL, "met": rate >= ROLLOUTS_GOAL,
    }  # fmt: skip
