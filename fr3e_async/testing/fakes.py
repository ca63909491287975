"""Fakes for tests of the control plane, importable by Ray workers: the same ports, no engine, learner or verifier.

What a rollout is (its length, and how easily it is correct) is a function of the seed and its id alone, so that runs are
comparable whatever happened to them on the way. It is correct with a chance that rises with the version that made it by
``gain``, so that a run of fakes also shows whether the loop learns from what it made; with ``gain=0`` the id decides.
Faults happen at counted calls.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum, auto
from pathlib import Path

import numpy as np

from fr3e_async.algorithm.anchors import anchor_positions, with_anchors
from fr3e_async.clock import Clock, steady
from fr3e_async.control.ports import Delivery, Payload, TaskLost, TrainRow, Trunks, WorkerLost
from fr3e_async.errors import LearnerLost
from fr3e_async.outcomes import Outcome
from fr3e_async.rollout.port import EngineStats
from fr3e_async.types import Anchor, Answer, Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId, StepReport, Verdict
from fr3e_async.verify.margins import within
from fr3e_async.weights.manifest import WeightAck, WeightBundle, WeightManifest

CORRECT, WRONG = 1, 2  # the last token of a fake response says whether it is correct
FAKE_ANCHORS = 2  # algorithm.anchors of a config for these fakes


class ActorFault(Enum):
    """What happens to an actor at a call."""

    DIE = auto()  # the actor is gone: this call, those that run and all later ones raise
    HANG = auto()  # this call never returns; the actor does its other work
    BLOCK = auto()  # its main thread is stuck: nothing returns any more but ``pulse``, which stands still, and ``stacks``
    SILENT = auto()  # its process has stopped: nothing returns any more


Faults = Mapping[tuple[str, int], ActorFault]  # by call and its number, from 1 on: {("sample", 3): Fault.DIE}


def always(call: str, fault: ActorFault, *, first: int = 1) -> Faults:
    """At every call from the ``first`` one on."""
    return {(call, number): fault for number in range(first, first + 10_000)}


class FakeActor:
    """What all fakes of actors have in common: a name, a pulse, stacks, a state, and calls that are counted."""

    gone: type[Exception] = WorkerLost

    def __init__(self, name: str, *, delay_s: float = 0.0, faults: Faults | None = None) -> None:
        """``delay_s``: of a call, in parts at each of which the pulse moves; 0: some turns of the event loop."""
        self.name, self.delay_s, self.faults = name, delay_s, dict(faults or {})
        self.node = ""
        self.calls: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self._state: ActorFault | None = None  # DIE, BLOCK or SILENT
        self._pulse = 0
        self._dead = asyncio.Event()

    def suffer(self, fault: ActorFault) -> None:
        """Put the actor into this fault from now on; ``DIE`` also fails the calls that are waiting."""
        self._state = fault
        if fault is ActorFault.DIE:
            self._dead.set()

    async def pulse(self) -> int:
        if self._state is not ActorFault.BLOCK:
            await self._answers()
        return self._pulse

    async def stacks(self) -> str:
        if self._state is not ActorFault.BLOCK:
            await self._answers()
        where = ", ".join(sorted(call for call, count in self.running.items() if count))
        return f"thread MainThread:\n  {self.name} in {where or 'nothing'}"

    async def close(self) -> None:
        self.suffer(ActorFault.DIE)

    async def call(self, name: str, *, parts: int = 4) -> None:
        """The time that a call takes, with what may happen in it."""
        async with self.entered(name):
            await self.work(parts)

    @asynccontextmanager
    async def entered(self, name: str) -> AsyncIterator[None]:
        """Count a call, and meet the fault that was injected for it."""
        self.calls[name] += 1
        self.running[name] += 1
        try:
            fault = self.faults.get((name, self.calls[name]))
            if fault is ActorFault.HANG:
                await self._never()
            elif fault is not None:
                self.suffer(fault)
            await self._answers()
            yield
        finally:
            self.running[name] -= 1

    async def work(self, parts: int, *, of: int = 1) -> None:
        """Let one of ``of`` equal shares of a call's time pass."""
        for _ in range(parts):
            await asyncio.sleep(self.delay_s / of / parts)
            await self._answers()
            self._pulse += 1

    async def _answers(self) -> None:
        if self._state is not None:
            await self._never()

    async def _never(self) -> None:
        """Wait until the actor dies, then raise the error of a lost actor."""
        await self._dead.wait()
        raise self.gone(f"{self.name} died (injected)")


def fake_anchors(trunk: int) -> tuple[Anchor, ...]:
    """Anchors at tokens 1 and 2 of any trunk: fake responses are at least 4 tokens long."""
    first = trunk * FAKE_ANCHORS
    return tuple(
        Anchor(node=first + j, parent=first + j - 1 if j > 1 else 0, trunk=trunk, position=j, score=1.0)
        for j in range(1, FAKE_ANCHORS + 1)
    )


class FakeEngineWorker(FakeActor):
    """Port ``EngineWorker``. Responses are 4 to 8 tokens long; those of an odd length end when half of a call's time has passed."""

    def __init__(
        self, name: str, *, seed: int = 0, delay_s: float = 0.001, correct: float = 0.3, gain: float = 0.05,
        faults: Faults | None = None, clock: Clock = steady,
    ) -> None:  # fmt: skip
        """Rollouts are correct with a chance of ``correct`` + ``gain`` · version, at most 0.9."""
        super().__init__(name, delay_s=delay_s, faults=faults)
        self._seed, self.correct, self._gain, self.clock = seed, correct, gain, clock
        self.version = 0
        self.loaded: list[int] = []
        self.made: list[RolloutId] = []
        self.rescored = False  # leave the choice of anchors to the learner
        self.kv_used, self.waiting, self.preempted = 0.0, 0, 0  # what ``stats`` says
        self.busy: list[tuple[float, float]] = []
        self._tokens = 0

    async def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        prefixes = [(p.token_ids, len(p.token_ids)) for p in prompts]
        async for batch in self._drawn("sample", dict(zip(ids, prefixes, strict=True))):
            anchors = tuple(a for id in batch.ids for a in fake_anchors(id.branch)) if trunk and not self.rescored else None
            yield Delivery.of(batch, anchors), batch if anchors is None else with_anchors(batch, anchors)

    async def branch(
        self, payload: Payload, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        row = payload.row_of(trunk)
        prompt, spine = payload.context(row), payload.completion(row).tokens
        positions = anchor_positions(payload)
        prefixes = {id: (np.concatenate([prompt, spine[: positions[id.node]]]), len(prompt)) for id in ids}
        async for batch in self._drawn("branch", prefixes):
            yield Delivery.of(batch), batch

    async def sample_together(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw) -> tuple[Delivery, Payload]:
        prefixes = [(p.token_ids, len(p.token_ids)) for p in prompts]
        (batch,) = [one async for one in self._drawn("sample", dict(zip(ids, prefixes, strict=True)), together=True)]
        return Delivery.of(batch), batch

    async def _drawn(
        self, call: str, prefixes: Mapping[RolloutId, tuple[np.ndarray, int]], *, together: bool = False
    ) -> AsyncIterator[RolloutBatch]:
        """``prefixes``: by id what is continued, and how much of it is the prompt."""
        started, lengths = self.clock(), {id: self._rng(id).randint(4, 8) for id in prefixes}
        portions = [[id for id in prefixes if lengths[id] % 2], [id for id in prefixes if not lengths[id] % 2]]
        portions = [list(prefixes)] if together else [portion for portion in portions if portion]
        parts = 1 + sum(lengths.values()) % 5
        async with self.entered(call):
            for ids in portions:
                await self.work(parts, of=len(portions))
                self.made += ids
                self.busy.append((started, self.clock()))
                started = self.clock()
                yield RolloutBatch.build(
                    ids=ids,
                    contexts=[prefixes[id][0] for id in ids],
                    prompt_lens=[prefixes[id][1] for id in ids],
                    context_of=range(len(ids)),
                    completions=[self._completion(id) for id in ids],
                )

    def _rng(self, id: RolloutId) -> random.Random:
        return random.Random(f"{self._seed} {id}")

    def _completion(self, id: RolloutId) -> Completion:
        rng = self._rng(id)
        length = rng.randint(4, 8)
        correct = rng.random() < min(self.correct + self._gain * self.version, 0.9)
        self._tokens += length
        tokens = np.full(length, 7, dtype=np.int32)
        tokens[-1] = CORRECT if correct else WRONG
        return Completion(
            tokens=tokens,
            logprobs=np.full(length, -1.0, dtype=np.float32),
            entropies=np.full(length, 0.5, dtype=np.float32),
            entropy_errors=np.zeros(length, dtype=np.float32),
            versions=np.full(length, self.version, dtype=np.int32),
            finish=Finish.STOP,
        )

    async def load_weights(self, weights: WeightBundle) -> WeightAck:
        await self.call("load_weights", parts=1)
        self.version = weights.version
        self.loaded.append(weights.version)
        return WeightAck(
            version=weights.version, checksum=weights.checksum, verified_tensors=1, loaded_tensors=1, copied_bytes=4,
            skipped_bytes=0, copy_s=0.001, load_s=0.001, verify_s=0.0, pause_s=0.001,
        )  # fmt: skip

    async def tokenizer(self) -> str:
        return ""

    async def stats(self) -> EngineStats:
        """Moves no pulse: to be asked is no progress."""
        await self.call("stats", parts=0)
        busy, self.busy = tuple(self.busy), []
        return EngineStats(
            version=self.version, running=self.running.total() - 1, tokens_generated=self._tokens, prompt_tokens=0,
            cached_prompt_tokens=0, pause_s=0.0, at=self.clock(), busy=busy, kv_used=self.kv_used, waiting=self.waiting, preempted=self.preempted,
        )  # fmt: skip


class FakeVerifier(FakeActor):
    """Port ``VerifierWorker``: reads the answer off the last token."""

    async def judge(self, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        await self.call("judge", parts=1)
        last = [payload.completion(row).tokens[-1] for row in rows]
        correct = [
            t == CORRECT or (p.margins and within(str(t), p.reference, p.margins)) for t, p in zip(last, prompts, strict=True)
        ]
        return [Verdict(outcome=Outcome.CORRECT if its else Outcome.WRONG) for its in correct]

    async def answers(self, payload: Payload, rows: Sequence[int], kept: Sequence[int]) -> list[Answer]:
        await self._answers()
        last = [str(payload.completion(row).tokens[-1]) for row in rows]
        return [Answer(text, f"so {text}" if row in kept else None) for row, text in zip(rows, last, strict=True)]


class FakeLearner(FakeActor):
    """A ``LearnerPort`` without a model: it records the batches that it gets and takes the version that it is told."""

    gone = LearnerLost

    def __init__(self, *, delay_s: float = 0.002, version: int = 0, faults: Faults | None = None) -> None:
        """``version``: of the checkpoint that it resumes from."""
        super().__init__("learner", delay_s=delay_s, faults=faults)
        self.version = version
        self.trained: list[list[TrainRow]] = []
        self.rescored = 0  # trunks
        self.flat = 1.0  # its numbers as a multiple of those of the engines
        self.saved: list[Path] = []
        self.nodes: list[str] = []

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport:
        await self.call("train")
        ages = [version - 1 - int(r.payload.completion(r.row).versions.min()) for r in rows]
        self.version = version
        self.trained.append(list(rows))
        metrics = {
            "lag/versions_max": float(max(ages)),
            "lag/versions_mean": float(np.mean(ages)),
            "train/loss": 0.0,
        }
        return StepReport(version=version, tokens=len(rows), optimiser_steps=1, metrics=metrics, time_s=self.delay_s)

    async def rescore(self, trunks: Sequence[Trunks]) -> list[tuple[tuple[Anchor, ...], Payload]]:
        await self.call("rescore")
        self.rescored += sum(len(its.ids) for its in trunks)
        chosen = [tuple(anchor for id in its.ids for anchor in fake_anchors(id.branch)) for its in trunks]
        return [(anchors, with_anchors(its.payload, anchors)) for its, anchors in zip(trunks, chosen, strict=True)]

    async def distributions(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """About as the fake engines have it: token 7, with which their responses begin, has the log-prob −1."""
        await self.call("distributions")
        likely = np.asarray([np.log1p(-np.exp(-1.0)), *[-np.inf] * 6, -1.0], dtype=np.float32)
        return np.tile(likely, (len(rows), 1)) * self.flat

    async def export(self, version: int) -> WeightBundle:
        await self.call("export")
        manifest = WeightManifest(
            version=version, dtype="float32", names=("w",), shapes=((1,),), checksums=(version,), buckets=(1,)
        )  # fmt: skip
        return WeightBundle(manifest=manifest, buckets=((np.ones(1, np.float32),),), sent_bytes=4)

    async def save(self, folder: Path) -> None:
        await self.call("save")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(str(self.version))
        self.saved.append(folder)

    def waits(self) -> bool:
        return False

    async def save_model(self, folder: Path) -> None:
        await self.call("save_model")
        folder.mkdir(parents=True, exist_ok=True)

    async def stacks(self, limit_s: float) -> list[str]:  # type: ignore[override]
        try:
            return [await asyncio.wait_for(super().stacks(), limit_s)]
        except TimeoutError:
            return [f"does not answer within {limit_s:g} s"]


class FakePayloads:
    """Port ``PayloadStore``: the handle of a batch is the batch itself."""

    def __init__(self) -> None:
        self.open = threading.Event()  # cleared: nothing comes back until it is set
        self.open.set()
        self.lost = False  # what is asked for is gone
        self.fetched = -1  # payloads that were to be brought here; -1: nobody asked

    def get(self, payload: Payload) -> RolloutBatch:
        self.open.wait()
        if self.lost:
            raise TaskLost("a payload is gone (injected)")
        return payload

    def put(self, batch: RolloutBatch) -> Payload:
        return batch

    def fetch(self, payloads: Sequence[Payload], *, timeout_s: float) -> None:
        self.fetched = len(payloads)

    def probe(self) -> bool:
        return self.open.wait()
