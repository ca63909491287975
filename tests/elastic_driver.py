"""The main job with engines that are fakes, for tests of the cluster itself: everything else is real, the learner included.

    FR3E_TEST_DELAYS=FILE python tests/elastic_driver.py config=toy reward=elastic_driver:reward key=value ...

FILE says how many seconds a call to an engine takes at that moment, and a verdict, whatever they have to do: so a test makes load
rise and fall. The cluster must have been started with the same variable. Rollouts are a few tokens.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fr3e_async.actors.engine import EngineActor
from fr3e_async.algorithm.anchors import anchor_positions, with_anchors
from fr3e_async.control.ports import Delivery
from fr3e_async.rollout.port import BusyMeter, EngineStats
from fr3e_async.types import Anchor, Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId
from fr3e_async.weights.manifest import WeightAck, WeightBundle

DELAYS = "FR3E_TEST_DELAYS"
LENGTH = 8  # tokens of a rollout


def delays() -> tuple[float, float]:
    """Seconds of (a call to an engine, a verdict)."""
    engine, verdict = Path(os.environ[DELAYS]).read_text().split()
    return float(engine), float(verdict)


def reward(response: str, gold: str, prompt: str) -> float:
    """By chance, and the same for the same text."""
    time.sleep(delays()[1])
    return float(zlib.crc32(response.encode()) % 2)


class FakeEngineActor(EngineActor):
    """An engine without a model. Its rollouts follow from their ids."""

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.version, self.calls, self.busy = 0, 0, BusyMeter()

    async def sample(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, trunk: bool) -> Any:
        contexts = [prompt.token_ids for prompt in prompts]
        anchors = tuple(anchor for id in ids for anchor in self._anchors(id)) if trunk else None
        for part in await self._make(ids, contexts, [len(context) for context in contexts], anchors):
            yield part

    async def branch(self, payload: RolloutBatch, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw) -> Any:
        row = payload.row_of(trunk)
        prompt, spine = payload.context(row), payload.completion(row).tokens
        place = anchor_positions(payload)
        contexts = [np.concatenate([prompt, spine[: place[id.node]]]) for id in ids]
        for part in await self._make(ids, contexts, [len(prompt)] * len(ids), None):
            yield part

    def _anchors(self, trunk: RolloutId) -> tuple[Anchor, ...]:
        """Numbered for algorithm.anchors=2."""
        first = 2 * trunk.branch
        return tuple(
            Anchor(node=first + j, parent=first + j - 1 if j > 1 else 0, trunk=trunk.branch, position=2 * j, score=1.0)
            for j in (1, 2)
        )

    async def _make(self, ids: Sequence[RolloutId], contexts: Any, lengths: Sequence[int], anchors: Any) -> Any:
        began = time.monotonic()
        self.busy.enter(began)
        try:
            while time.monotonic() - began < delays()[0]:
                await asyncio.sleep(0.02)
            self.calls += 1
        finally:
            self.busy.leave(time.monotonic())
        batch = RolloutBatch.build(
            ids=list(ids), contexts=list(contexts), prompt_lens=list(lengths), context_of=list(range(len(ids))),
            completions=[self._completion(id) for id in ids],
        )  # fmt: skip
        return Delivery.of(batch, anchors), batch if anchors is None else with_anchors(batch, anchors)

    def _completion(self, id: RolloutId) -> Completion:
        chance = np.random.default_rng(zlib.crc32(str(id).encode()))
        return Completion(
            tokens=chance.integers(3, 12, LENGTH, dtype=np.int32), logprobs=np.full(LENGTH, -2.0, dtype=np.float32),
            entropies=np.full(LENGTH, 0.5, dtype=np.float32), entropy_errors=np.zeros(LENGTH, dtype=np.float32),
            versions=np.full(LENGTH, self.version, dtype=np.int32), finish=Finish.STOP,
        )  # fmt: skip

    async def load_weights(self, bundle: WeightBundle) -> WeightAck:
        self.version = bundle.version
        return WeightAck(
            version=bundle.version, checksum=bundle.checksum, verified_tensors=1, loaded_tensors=1, copied_bytes=0,
            skipped_bytes=0, copy_s=0.0, load_s=0.0, verify_s=0.0, pause_s=0.0,
        )  # fmt: skip

    async def stats(self) -> EngineStats:
        return EngineStats(
            version=self.version, running=0, tokens_generated=0, prompt_tokens=0, cached_prompt_tokens=0, pause_s=0.0,
            at=(now := time.monotonic()), busy=self.busy.take(now), kv_used=0.0, waiting=0, preempted=0,
        )  # fmt: skip

    def pulse(self) -> int:
        return self.calls


if __name__ == "__main__":
    from elastic_driver import FakeEngineActor as Fake  # by this name other processes find it, too

    from fr3e_async import wiring
    from fr3e_async.cli.main import run

    wiring.Deployment.engine_actor = Fake
    sys.exit(run(["train", *sys.argv[1:], "learner.stop_above_mismatch=0"]))  # its numbers are made up
