"""Fake engines of the simulator's kind over real Ray: the real loop, proxies, streams and object store, with a clock that is ``scale`` times as fast.

An engine is ``simulate/engine.py`` on the event loop's clock, so that it sleeps where the simulator's jumps. Its rollouts are those of
the simulator, group by group, as arrays of their full length. The learner fetches its rows and sleeps. A run whose processes kept the
machine busy measured that and not the system: it is refused.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import quiet
from stand_ins import Directed, Until
from system_control import CALLS_AT_ONCE, CORRECT, WRONG, InstantEngine, InstantRank, InstantVerifier, prompts
from system_parts import cluster, recording

from fr3e_async.actors.cluster import RayPayloads
from fr3e_async.actors.proxies import RayEngine, RayLearner, RayVerifier
from fr3e_async.actors.watch import watchable
from fr3e_async.algorithm.anchors import anchor_positions, with_anchors
from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.clock import RunClock
from fr3e_async.config import Config
from fr3e_async.control.ports import Delivery, LearnerPort, TrainRow
from fr3e_async.control.workers import Worker, Workers
from fr3e_async.data.prompts import Datasets
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.messages import Branch, Sample
from fr3e_async.outcomes import Outcome
from fr3e_async.rollout.port import LINGER_S
from fr3e_async.run.session import Session
from fr3e_async.simulate.clock import Cores, VirtualClock
from fr3e_async.simulate.engine import Request, SimulatedEngine
from fr3e_async.simulate.groups import Groups
from fr3e_async.simulate.recording import read_recording
from fr3e_async.simulate.service import Service
from fr3e_async.simulate.workload import Workload
from fr3e_async.store.run_dir import RunDir
from fr3e_async.types import Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId, StepReport
from fr3e_async.weights.manifest import WeightAck, WeightBundle
from fr3e_async.wiring import Deployment, PolicyFiles

if TYPE_CHECKING:
    from long_tails import Cell, Span

MOST_CPU = 0.8  # of one core that the driver may use, and of all cores that everybody may use, before a run is refused


class LoopClock(VirtualClock):
    """The event loop's time, ``scale`` times as fast. ``now`` is brought up to date by ``look`` and before each call."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._loop, self._scale = asyncio.get_running_loop(), scale
        self._began = self._loop.time()

    def look(self) -> None:
        self.now = (self._loop.time() - self._began) * self._scale

    def at(self, time: float, call: Any, argument: Any = None) -> None:
        self._loop.call_at(self._began + time / self._scale, self._fire, call, argument)

    def _fire(self, call: Any, argument: Any) -> None:
        self.look()
        call(argument)


class TailEngine(InstantEngine):
    """An engine with the simulator's step times and rollouts. ``together``: a task's rollouts are kept until the last one ends."""

    def __init__(
        self, config: Config, times: Service, workload: Workload, *, seed: int, scale: float, together: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self._config, self._times, self._scale, self._together = config, times, scale, together
        self._groups = Groups(config, make_strategy(config.algorithm).plan, workload, seed=seed)
        self._inner: SimulatedEngine | None = None

    def _running(self) -> SimulatedEngine:
        if self._inner is None:
            self._clock = LoopClock(self._scale)
            self._inner = SimulatedEngine(
                self._clock, Cores(0), self._times.engine, max_running=self._config.engine.max_running, threads=1,
                ended=lambda request: request.job.put_nowait((request, self._version)),
            )  # fmt: skip
        self._clock.look()
        return self._inner

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, trunk: bool
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        context = prompts[0].token_ids
        work = Sample(task=0, ids=tuple(ids), trunk=trunk)
        async for part in self._drawn(work, dict.fromkeys(ids, context), len(context)):
            yield part

    async def branch(
        self, payload: RolloutBatch, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        place = payload.row_of(trunk)
        prompt, spine = payload.context(place), payload.completion(place).tokens
        contexts = {node: np.concatenate([prompt, spine[:position]]) for node, position in anchor_positions(payload).items()}
        work = Branch(task=0, group=trunk.group, ids=tuple(ids), trunk=trunk, trunk_payload=0)
        async for part in self._drawn(work, {id: contexts[id.node] for id in ids}, len(prompt)):
            yield part

    async def _drawn(
        self, work: Sample | Branch, contexts: dict[RolloutId, Any], prompt: int
    ) -> AsyncIterator[Delivery | RolloutBatch]:
        group, engine = work.ids[0].group, self._running()
        if group not in self._groups:
            self._groups.open(group, int(group[1:].split("@")[0]))
        rows = self._groups.rows(work, ("here", engine.cache))
        ended: asyncio.Queue[tuple[Request, int]] = asyncio.Queue()
        engine.add([Request(ended, row.length, row.context - row.cached, row=row) for row in rows])
        left = len(rows)
        while left:
            found = [await ended.get()]
            while self._together and len(found) < left:
                found.append(await ended.get())
            if len(found) < left:
                await asyncio.sleep(LINGER_S)
            while not ended.empty():
                found.append(ended.get_nowait())
            left -= len(found)
            batch = self._batch(found, contexts, prompt)
            trunk = isinstance(work, Sample) and work.trunk
            anchors = tuple(a for id in batch.ids for a in self._groups.anchors(id)) if trunk else None
            yield Delivery.of(batch, anchors)
            yield batch if anchors is None else with_anchors(batch, anchors)

    def _batch(self, ended: list[tuple[Request, int]], contexts: dict[RolloutId, Any], prompt: int) -> RolloutBatch:
        self._calls += 1
        self._tokens += sum(request.row.length for request, _ in ended)
        return RolloutBatch.build(
            ids=[request.row.id for request, _ in ended],
            contexts=[contexts[request.row.id] for request, _ in ended],
            prompt_lens=[prompt] * len(ended),
            context_of=range(len(ended)),
            completions=[self._completed(request, version) for request, version in ended],
        )

    def _completed(self, request: Request, version: int) -> Completion:
        row = request.row
        (verdict,) = self._groups.verdicts(row.id.group, [row.id])
        tokens = np.full(row.length, 7, dtype=np.int32)
        tokens[-1] = CORRECT if verdict.outcome is Outcome.CORRECT else WRONG
        floats = np.full(row.length, -1.0, dtype=np.float32)
        versions = np.full(row.length, version, dtype=np.int32)
        versions[0] = request.version
        return Completion(
            tokens=tokens, logprobs=floats, entropies=-floats, entropy_errors=np.zeros_like(floats), versions=versions,
            finish=Finish.STOP, cached_tokens=row.cached,
        )  # fmt: skip

    async def load_weights(self, bundle: WeightBundle) -> WeightAck:
        await asyncio.sleep(self._times.weights.fetch_s / self._scale)
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running().load(self._times.weights.pause_s, clear_cache=False, call=loaded.set_result, argument=None)
        await loaded
        self._running().version = bundle.version
        return await super().load_weights(bundle)


class Paced(Directed):
    """A learner that takes as long for a batch and its export as the model says."""

    def __init__(self, inner: LearnerPort, config: Config, times: Service, scale: float) -> None:
        super().__init__(inner)
        self._ranks, self._times, self._scale = config.learner.ranks, times.learner, scale

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        seconds = self._times.train_s([row.load for row in rows], ranks=self._ranks) / self._scale
        report, _ = await asyncio.gather(self.inner.train(rows, version=version), asyncio.sleep(seconds))
        return report

    async def export(self, version: int) -> WeightBundle:
        bundle, _ = await asyncio.gather(self.inner.export(version), asyncio.sleep(self._times.export_s / self._scale))
        return bundle


def hired(cell: Cell, config: Config, times: Service, scale: float) -> tuple[list[tuple[str, Worker]], RayLearner]:
    """Actors of all roles; they take no CPUs of Ray's."""
    from long_tails import SEED, WORKLOAD

    options = {"num_cpus": 0, "max_concurrency": CALLS_AT_ONCE}
    workers: list[tuple[str, Worker]] = []
    for role, count in {GENERATORS: config.generators.count, EXPLORERS: config.explorers.count}.items():
        for number in range(count):
            actor = watchable(TailEngine).options(**options).remote(
                config, times, WORKLOAD, seed=SEED, scale=scale, together=cell.delivery == "task"
            )  # fmt: skip
            workers.append((role, RayEngine(f"{role}-{number}", actor)))
    workers.append((VERIFIERS, RayVerifier("verifiers-0", watchable(InstantVerifier).options(**options).remote())))
    rank = watchable(InstantRank).options(num_cpus=0).remote()
    return workers, RayLearner([rank], None, bucket_bytes=1 << 20)


async def loop_run(cell: Cell, times: Service, span: Span, folder: Path, scale: float) -> tuple[Path, dict[str, float]]:
    """One run of the real loop. Returns (its run directory, parts of a core that the driver and that all processes used)."""
    from long_tails import cell_settings

    loaded = cell_settings(
        cell, "run.checkpoint_every=0", "observe.trees_per_step=0", "observe.journal=true", "evaluation.before=false"
    )
    config = loaded.config
    run_dir = RunDir.open(folder / "run", config=config, config_yaml=loaded.yaml)
    workers, learner = hired(cell, config, times, scale)

    async def nobody(role: str) -> Worker:
        raise AssertionError(f"a worker of {role} was lost")

    model, clock = PolicyFiles(path="", end_token_ids=()), RunClock()
    deployment = Deployment(config, model, run_dir, clock=clock)
    until = Until(Paced(learner, config, times, scale), span.last)
    deployment.workers = Workers(config=config, learner=until, payloads=RayPayloads(), start=nobody, workers=workers)
    datasets = Datasets(train=tuple(prompts(1 << 14)), heldout=(), dropped=0)
    session = Session(
        config, model, datasets, run_dir, resume_from=None, clock=clock, started_at=clock(), spell=lambda tokens: []
    )
    with recording(config, run_dir, clock) as recorder:
        until.controller = controller = await session.controller(deployment, recorder, None, 0)
        cpu, started = time.process_time(), time.perf_counter()
        await controller.run()
        driver = (time.process_time() - cpu) / (time.perf_counter() - started)
    return run_dir.path, {"driver": driver, "all": until.cores}


def played(cell: Cell, times: Service, span: Span, *, scale: float) -> dict[str, Any]:
    """The cell over Ray, in seconds of the model, as ``long_tails.kept`` has it. Raises ``RuntimeError``: the CPU was the limit."""
    from long_tails import kept, simulated

    with tempfile.TemporaryDirectory() as folder, quiet(), cluster(cell.config):
        run, cpu = asyncio.run(loop_run(cell, times, span, Path(folder), scale))
        _, report = read_recording(run, warmup=span.warmup)
    if cpu["driver"] > MOST_CPU or cpu["all"] > MOST_CPU * (os.cpu_count() or 1):
        raise RuntimeError(
            f"{cell.name}: {cpu['driver']:.2f} cores of the driver, {cpu['all']:.2f} of all: use a smaller --scale"
        )
    twin = kept(cell, times, span, simulated(cell, times, span))
    return kept(cell, times, span, report, scale) | {"cores": cpu, "scale": scale, "simulated": twin}
