"""Fakes for tests of the control plane, importable by Ray workers: the same ports, no engine, learner or verifier.

The fake world has a policy of one number: the chance that an answer is right. It rises with every trained version, so
that a run of fakes also shows whether the loop learns from what it made.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fr3e_async.control.ports import Delivery, Payload, TrainRow, Trunk, WorkerLost
from fr3e_async.rollout.port import EngineStats
from fr3e_async.types import (
    Anchor,
    Completion,
    Draw,
    Finish,
    Outcome,
    Prompt,
    RolloutBatch,
    RolloutId,
    StepReport,
    Verdict,
    WeightAck,
    WeightBundle,
    WeightManifest,
)

RIGHT, WRONG = 1, 2  # the last token of a fake response says whether it is right


@dataclass(slots=True)
class Faults:
    """What goes wrong, and when: counted calls, so that a test knows exactly which one fails."""

    die_at: set[int] = field(default_factory=set)  # calls at which a worker is lost
    hang_at: set[int] = field(default_factory=set)  # calls that never return
    calls: int = 0

    async def strike(self, name: str) -> None:
        self.calls += 1
        if self.calls in self.die_at:
            raise WorkerLost(f"{name} died (injected)")
        if self.calls in self.hang_at:
            await asyncio.Event().wait()


FAKE_ANCHORS = 2  # algorithm.anchors of a config for these fakes


def fake_anchors(trunk: int) -> tuple[Anchor, ...]:
    """Anchors at tokens 1 and 2 of any trunk: fake responses are at least 4 tokens long."""
    first = trunk * FAKE_ANCHORS
    return tuple(
        Anchor(node=first + j, parent=first + j - 1 if j > 1 else 0, trunk=trunk, position=j, score=1.0)
        for j in range(1, FAKE_ANCHORS + 1)
    )


class FakeEngineWorker:
    """Port ``EngineWorker``. Responses are 4 to 8 tokens long; right with a chance that grows with the version."""

    def __init__(self, name: str, *, seed: int = 0, delay_s: float = 0.001, faults: Faults | None = None) -> None:
        self.name, self._delay, self.faults = name, delay_s, faults or Faults()
        self._rng = random.Random(f"{name}/{seed}")
        self.version = 0
        self.loaded: list[int] = []
        self.refuse_weights = False
        self.rescored = False  # leave the choice of anchors to the learner
        self._busy: list[tuple[float, float]] = []
        self._tokens = 0

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> tuple[Delivery, Payload]:
        contexts = [p.token_ids for p in prompts]
        anchors = tuple(a for id in ids for a in fake_anchors(id.branch)) if trunk and not self.rescored else None
        return await self._make(ids, contexts, [len(c) for c in contexts], anchors)

    async def branch(
        self, payload: Payload, trunk: RolloutId, anchors: Sequence[Anchor], ids: Sequence[RolloutId], draw: Draw
    ) -> tuple[Delivery, Payload]:
        row = payload.row_of(trunk)
        prompt, spine = payload.context(row), payload.completion(row).tokens
        positions = {a.node: a.position for a in anchors}
        contexts = [np.concatenate([prompt, spine[: positions[id.node]]]) for id in ids]
        return await self._make(ids, contexts, [len(prompt)] * len(ids), None)

    async def _make(
        self,
        ids: Sequence[RolloutId],
        contexts: Sequence[np.ndarray],
        prompt_lens: Sequence[int],
        anchors: tuple[Anchor, ...] | None,
    ) -> tuple[Delivery, Payload]:
        started = time.time()
        await self.faults.strike(self.name)
        await asyncio.sleep(self._delay * self._rng.random() * 2)
        batch = RolloutBatch.build(
            ids=list(ids),
            contexts=list(contexts),
            prompt_lens=list(prompt_lens),
            context_of=list(range(len(ids))),
            completions=[self._completion() for _ in ids],
        )
        self._busy.append((started, time.time()))
        notes = tuple(batch.note(row) for row in range(len(batch)))
        return Delivery(notes=notes, anchors=anchors), batch

    def _completion(self) -> Completion:
        length = self._rng.randint(4, 8)
        self._tokens += length
        right = self._rng.random() < min(0.3 + 0.05 * self.version, 0.9)
        tokens = np.full(length, 7, dtype=np.int32)
        tokens[-1] = RIGHT if right else WRONG
        return Completion(
            tokens=tokens,
            logprobs=np.full(length, -1.0, dtype=np.float32),
            entropies=np.full(length, 0.5, dtype=np.float32),
            entropy_errors=np.zeros(length, dtype=np.float32),
            versions=np.full(length, self.version, dtype=np.int32),
            finish=Finish.STOP,
        )

    async def load_weights(self, weights: WeightBundle) -> WeightAck:
        if self.refuse_weights:
            await asyncio.Event().wait()
        self.version = weights.version
        self.loaded.append(weights.version)
        return WeightAck(
            version=weights.version, checksum=weights.checksum, verified_tensors=1, loaded_tensors=1, copied_bytes=4,
            skipped_bytes=0, copy_s=0.001, load_s=0.001, verify_s=0.0, pause_s=0.001,
        )  # fmt: skip

    async def stats(self) -> EngineStats:
        busy, self._busy = tuple(self._busy), []
        return EngineStats(
            version=self.version,
            running=0,
            tokens_generated=self._tokens,
            prompt_tokens=0,
            cached_prompt_tokens=0,
            pause_s=0.0,
            busy=busy,
        )

    async def close(self) -> None:
        pass


class FakeVerifier:
    """Port ``VerifierWorker``: reads the answer off the last token."""

    def __init__(self, name: str, *, faults: Faults | None = None) -> None:
        self.name, self.faults = name, faults or Faults()

    async def judge(self, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        await self.faults.strike(self.name)
        last = [payload.completion(row).tokens[-1] for row in rows]
        return [Verdict(outcome=Outcome.RIGHT if t == RIGHT else Outcome.WRONG) for t in last]

    async def close(self) -> None:
        pass


class FakeLearner:
    """Port ``LearnerPort``: remembers what it was given."""

    def __init__(self, *, delay_s: float = 0.002) -> None:
        self._delay = delay_s
        self.version = 0
        self.trained: list[list[TrainRow]] = []
        self.rescored = 0  # trunks
        self.saved: list[Path] = []

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        await asyncio.sleep(self._delay)
        ages = [version - 1 - int(r.payload.completion(r.row).versions.min()) for r in rows]
        self.version = version
        self.trained.append(list(rows))
        metrics: Mapping[str, float] = {
            "lag/versions_max": float(max(ages)),
            "lag/versions_mean": float(np.mean(ages)),
            "train/loss": 0.0,
        }
        return StepReport(version=version, tokens=len(rows), optimiser_steps=1, metrics=dict(metrics), time_s=self._delay)

    async def rescore(self, trunks: Sequence[Trunk]) -> list[tuple[Anchor, ...]]:
        await asyncio.sleep(self._delay)
        self.rescored += len(trunks)
        return [fake_anchors(trunk.id.branch) for trunk in trunks]

    async def export(self, version: int) -> WeightBundle:
        manifest = WeightManifest(
            version=version, dtype="float32", names=("w",), shapes=((1,),), checksums=(version,), buckets=(1,)
        )  # fmt: skip
        return WeightBundle(manifest=manifest, buckets=((np.ones(1, np.float32),),), sent_bytes=4)

    async def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(str(self.version))
        self.saved.append(folder)

    async def save_model(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        pass
