"""What the control loop needs of the world: Protocols that Ray proxies, in-process objects and fakes all fit.

``Payload`` is an opaque handle (with Ray an object reference): the loop passes it on and never looks inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.observe.events import EventFields, EventKind
from fr3e_async.observe.heartbeat import Heartbeat
from fr3e_async.rollout.port import EngineStats
from fr3e_async.types import Advantage, Anchor, Answer, Draw, Prompt, RolloutBatch, RolloutId, RolloutSummary, StepReport, Verdict
from fr3e_async.weights.manifest import WeightAck, WeightBundle, WeightManifest

Payload = Any  # an opaque handle; see the module's docstring


class WorkerLost(Exception):
    """The actor behind a port is gone or refuses to answer. Its tasks are given to others, and it is replaced."""

    def __init__(self, why: str, *, node: bool = False) -> None:
        """``node``: its node is gone or cannot be reached, which is not the actor's fault."""
        super().__init__(why)
        self.node = node


class TaskLost(Exception):
    """The task will not come back: its worker died, its lease ran out, or what it needs is gone. It is issued again."""

    def __init__(self, why: str, *, dead: str = "", gone: bool = False, node: bool = False) -> None:
        """``dead``: the worker that is gone, if it is; ``node``: with its node. ``gone``: a payload is."""
        super().__init__(why)
        self.dead, self.gone, self.node = dead, gone, node


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What is read of rollouts that have ended: one note a row, and the anchors of its trunks if they were chosen there."""

    notes: tuple[RolloutSummary, ...]
    anchors: tuple[Anchor, ...] | None = None

    @classmethod
    def of(cls, batch: RolloutBatch, anchors: tuple[Anchor, ...] | None = None) -> Delivery:
        """Of all rows of a batch."""
        return cls(notes=tuple(batch.note(row) for row in range(len(batch))), anchors=anchors)


class EngineWorker(Protocol):
    """A generator or an explorer: both serve both calls, so that idle ones can take the other's work."""

    name: str
    node: str  # that it runs on; empty: nobody knows

    def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        """One rollout for each id from the prompt beside it, delivered when it has ended; with ``trunk`` anchors are chosen on each.

        Leaving the iteration cancels what is still being drawn.
        """

    def branch(
        self, payload: Payload, trunk: RolloutId, anchors: Sequence[Anchor], ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        """Continuations of these anchors of a trunk that lies in the payload, delivered as ``sample`` does; ``id.node`` names the anchor."""

    async def sample_together(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw) -> tuple[Delivery, Payload]:
        """The same when the last one has ended, as one payload in the order of the ids: for evaluations and the door."""

    async def load_weights(self, weights: WeightBundle) -> WeightAck: ...

    async def tokenizer(self) -> str:
        """What tells its tokenizer from others: ``rollout.door.tokenizer_digest``."""

    async def stats(self) -> EngineStats: ...

    async def pulse(self) -> int:
        """Grows whenever the actor gets on with its work. It answers also while the actor's main thread is stuck."""

    async def stacks(self) -> str:
        """What every thread of the actor is doing. It answers also while the actor's main thread is stuck."""

    async def close(self) -> None: ...


class VerifierWorker(Protocol):
    name: str
    node: str

    async def judge(self, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        """A verdict for each row's response to the prompt beside it."""

    async def answers(self, payload: Payload, rows: Sequence[int], kept: Sequence[int]) -> list[Answer]:
        """The final answer of each row's response, and the text of those in ``kept``. For evaluations."""

    async def pulse(self) -> int: ...

    async def stacks(self) -> str: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRow:
    """A row to train with its payload's handle: what ``messages.TrainItem`` becomes when it leaves the loop."""

    payload: Payload
    row: int
    advantage: Advantage
    load: RowCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """A base whose anchors the learner is to choose."""

    payload: Payload
    id: RolloutId
    length: int  # tokens, context included


class LearnerPort(Protocol):
    """The learner group as one object; its ranks act together."""

    nodes: Sequence[str]  # that its ranks run on

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport: ...

    async def rescore(self, trunks: Sequence[Trunk]) -> list[tuple[Anchor, ...]]:
        """The anchors of each trunk, by the entropies of the weights as they are now."""

    async def distributions(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """[rows, V] log-probs of the token after each row of ids, nats, under the weights as they are now."""

    async def export(self, version: int) -> WeightBundle:
        """The weights in a form that outlives the next update, and the learner."""

    async def save(self, folder: Path) -> None: ...

    async def save_model(self, folder: Path) -> None: ...

    def waits(self) -> bool:
        """It is asked to continue and must not before engines have taken its weights."""

    async def pulse(self) -> int: ...

    async def stacks(self, limit_s: float) -> list[str]:
        """Of each rank; a rank that does not answer within ``limit_s`` is said to."""

    async def close(self) -> None: ...


class PayloadStore(Protocol):
    """Rollout batches by handle. All calls block, and may be made from any thread."""

    def get(self, payload: Payload) -> RolloutBatch:
        """Raises ``TaskLost`` if it is gone."""

    def put(self, batch: RolloutBatch) -> Payload: ...

    def fetch(self, payloads: Sequence[Payload], *, timeout_s: float) -> None:
        """Have copies of these on this node, as far as possible: theirs may go away."""

    def probe(self) -> bool:
        """Put something large and get it back: returns if the store works."""


class DirectTransfer(Protocol):
    """A learner that hands weights over by itself, to all engines at once (weights.transfer=collective)."""

    async def hand_over(self, engines: Sequence[Any], manifest: WeightManifest) -> list[WeightAck | str]:
        """For each engine its acknowledgement, or why there is none."""

    async def stored(self) -> WeightBundle:
        """The weights as they are now, for an engine that comes alone."""


class Reporter(Protocol):
    """Where a run's numbers go. Called from the loop; must not block for long."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def group(self, record: Mapping[str, Any]) -> None:
        """A group has settled: its row for groups.jsonl."""

    def note(self, text: str, kind: EventKind = "note", **fields: Unpack[EventFields]) -> None:
        """An event that a person should see: a lost actor, a checkpoint, an evaluation."""

    def evaluations(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """All evaluations of the run so far, for evaluations.jsonl; the newest is the last."""

    def problems(self, name: str, rows: Sequence[Mapping[str, Any]], *, keep_mib: int) -> None:
        """An evaluation's results by problem. ``keep_mib``: for all of them together."""

    def waits(self, text: str) -> None:
        """What the run waits for now, for who looks at it; "" once it continues."""

    def samples(self, name: str, rows: Sequence[Sequence[str]], *, version: int) -> None:
        """Some responses of an evaluation, for a person: problem, gold, response, verdict and reward of each."""

    def beat(self, vitals: Heartbeat) -> None:
        """What the loop knows now; the first one of a session before any work."""


class Checkpoints(Protocol):
    """Whole-system checkpoints: a temporary folder that becomes visible only when it is complete."""

    def begin(self, step: int) -> Path: ...

    def commit(self, folder: Path, step: int) -> Path: ...
