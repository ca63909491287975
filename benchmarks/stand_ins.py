"""Ports that stand for others in benchmarks of the whole system: no learner, an engine with another rule, learners that are directed.

mypy holds each of them against its Protocol, here or where it is handed on: a port that grows is found before a benchmark is run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import cpu_s
from numpy.typing import NDArray

from fr3e_async.algorithm.anchors import AnchorRule, anchors_of_rows, with_anchors
from fr3e_async.control.controller import Controller
from fr3e_async.control.ports import Delivery, EngineWorker, LearnerPort, Payload, PayloadStore, TrainRow, Trunks
from fr3e_async.control.process import run_in_daemon_thread
from fr3e_async.types import Anchor, Draw, Prompt, RolloutId, StepReport
from fr3e_async.weights.manifest import WeightBundle


class NoLearner(LearnerPort):
    """Every batch is trained at once, and the weights stay as they are under each new version."""

    nodes: Sequence[str] = ()

    def __init__(self, weights: WeightBundle) -> None:
        self._weights, self._steps = weights, 0

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        self._steps += 1
        return StepReport(version=version, tokens=0, optimiser_steps=0, metrics={}, time_s=0.0)

    async def rescore(self, trunks: Sequence[Trunks]) -> list[tuple[tuple[Anchor, ...], Payload]]:
        raise NotImplementedError("there is no model here: anchors are chosen in the engines")

    async def distributions(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        raise NotImplementedError("there is no model here: engines are not compared with it")

    async def export(self, version: int) -> WeightBundle:
        return replace(self._weights, manifest=replace(self._weights.manifest, version=version), sent_bytes=0)

    async def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    async def save_model(self, folder: Path) -> None:
        await self.save(folder)

    def waits(self) -> bool:
        return False

    async def pulse(self) -> int:
        return self._steps

    async def stacks(self, limit_s: float) -> list[str]:
        return []

    async def close(self) -> None:
        pass


class Ruled:
    """An engine whose anchors are picked here, by another rule than the one it was started with."""

    def __init__(self, inner: EngineWorker, *, rule: AnchorRule, seed: int, payloads: PayloadStore) -> None:
        self.inner, self._rule, self._seed, self._payloads = inner, rule, seed, payloads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        async for delivery, payload in self.inner.sample(prompts, ids, draw, trunk=trunk):
            if trunk:
                anchors, payload = await run_in_daemon_thread(partial(self._anchored, payload))
                delivery = replace(delivery, anchors=anchors)
            yield delivery, payload

    def _anchored(self, payload: Payload) -> tuple[tuple[Anchor, ...], Payload]:
        """As the engine's own process does it; the payload that comes back has the anchors in it."""
        batch = self._payloads.get(payload)
        anchors = anchors_of_rows(self._rule, batch, range(len(batch)), seed=self._seed)
        return anchors, self._payloads.put(with_anchors(batch, anchors))


class Directed:
    """A learner that something is done about. The stage tells it of its run's controller."""

    controller: Controller

    def __init__(self, inner: LearnerPort) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Until(Directed):
    """Stops the run after some batches. Until then more groups are admitted: none of its rates is that of a run that ends.

    CPU time is that between the ends of batch ``FIRST`` and the last one.
    """

    FIRST = 2

    def __init__(self, inner: LearnerPort, batches: int) -> None:
        super().__init__(inner)
        self._batches = batches
        self.batch_cpu_s = self.cores = 0.0

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        report = await self.inner.train(rows, version=version)
        if version == self.FIRST:
            self._from = (time.monotonic(), cpu_s())
        if version == self._batches:
            self.controller.stop(f"{version} batches")
            if version > self.FIRST:
                seconds, spent = time.monotonic() - self._from[0], cpu_s() - self._from[1]
                self.batch_cpu_s, self.cores = spent / (version - self.FIRST), spent / seconds
        return report


class RunAhead(Directed):
    """A learner that begins a batch only when the engines have made all that ``flow.max_staleness`` lets them make.

    So every batch is as old as the bound allows: batch v is of version max(0, v - 1 - bound).
    """

    LOOK_S = 0.01

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        while not self.nothing_to_make(version - 1):
            await asyncio.sleep(self.LOOK_S)
        return await self.inner.train(rows, version=version)

    def nothing_to_make(self, newest: int) -> bool:
        machine = self.controller.machine
        dispatcher = machine.dispatcher
        return machine.ledger.live >= newest and not any(
            dispatcher.queued(role) or dispatcher.in_flight(role) for role in dispatcher.roles
        )
