"""What the control loop needs of the world: Protocols that Ray proxies, in-process objects and fakes all fit.

``Payload`` is an opaque handle (with Ray an object reference): the loop passes it on and never looks inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
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
    """The actor behind a port is gone or refuses to answer. The machine reissues its tasks and replaces it."""

    def __init__(self, why: str, *, node: bool = False) -> None:
        """``node``: the actor's node is gone or cannot be reached, so the actor is not at fault."""
        super().__init__(why)
        self.node = node


class TaskLost(Exception):
    """The task will not come back: its worker died, its lease ran out, or its input is gone. The machine issues it again."""

    def __init__(self, why: str, *, dead: str = "", gone: bool = False, node: bool = False) -> None:
        """``dead``: name of the worker if it died; ``node``: its node died too. ``gone``: a payload of the task is lost."""
        super().__init__(why)
        self.dead, self.gone, self.node = dead, gone, node


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the loop reads of finished rollouts: one summary a row, and the trunks' anchors if the engine chose them."""

    notes: tuple[RolloutSummary, ...]
    anchors: tuple[Anchor, ...] | None = None

    @classmethod
    def of(cls, batch: RolloutBatch, anchors: tuple[Anchor, ...] | None = None) -> Delivery:
        """Summarise every row of a batch, in its order."""
        return cls(notes=tuple(batch.note(row) for row in range(len(batch))), anchors=anchors)


class EngineWorker(Protocol):
    """A generator or an explorer: both serve both calls, so that idle ones can take the other's work."""

    name: str
    node: str  # the node that it runs on; empty: unknown

    def sample(
        self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw, *, trunk: bool
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        """Sample one rollout per id from the prompt at its index, delivering each as it ends. ``trunk``: choose anchors on each.

        Leaving the iteration cancels what is still being drawn.
        """

    def branch(
        self, payload: Payload, trunk: RolloutId, ids: Sequence[RolloutId], draw: Draw
    ) -> AsyncIterator[tuple[Delivery, Payload]]:
        """Continue a trunk from the anchors that the payload holds (``id.node`` names the anchor). Delivers as ``sample``."""

    async def sample_together(self, prompts: Sequence[Prompt], ids: Sequence[RolloutId], draw: Draw) -> tuple[Delivery, Payload]:
        """Sample as ``sample`` does, but deliver all rollouts at the end as one payload in the order of ``ids``.

        Evaluations and the door use it.
        """

    async def load_weights(self, weights: WeightBundle) -> WeightAck: ...

    async def tokenizer(self) -> str:
        """Return a digest of the engine's tokenizer, to compare with the learner's (``rollout.door.tokenizer_digest``)."""

    async def stats(self) -> EngineStats: ...

    async def pulse(self) -> int:
        """Return a count that grows as the actor makes progress. Answers even while the actor's main thread is stuck."""

    async def stacks(self) -> str:
        """Return the stack of every thread of the actor. Answers even while the actor's main thread is stuck."""

    async def close(self) -> None: ...


class VerifierWorker(Protocol):
    name: str
    node: str

    async def judge(self, payload: Payload, rows: Sequence[int], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Score the response in each row against the prompt at the same index; returns verdicts in that order."""

    async def answers(self, payload: Payload, rows: Sequence[int], kept: Sequence[int]) -> list[Answer]:
        """Extract the final answer of each row's response, and the text of the rows in ``kept``. Evaluations use it."""

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
class Trunks:
    """Base rollouts in one payload whose anchors the learner chooses."""

    payload: Payload
    ids: tuple[RolloutId, ...]
    length: int  # tokens of all, contexts included


class LearnerPort(Protocol):
    """The learner group as one object; its ranks act together."""

    nodes: Sequence[str]  # the nodes that its ranks run on

    async def train(self, rows: Sequence[TrainRow], *, version: int) -> StepReport: ...

    async def rescore(self, trunks: Sequence[Trunks]) -> list[tuple[tuple[Anchor, ...], Payload]]:
        """Choose the trunks' anchors by the token entropies under the learner's current weights.

        Returns for each payload the anchors, and the payload that holds them too.
        """

    async def distributions(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """[rows, V] log-probs of the token after each row of ids, nats, under the weights as they are now."""

    async def export(self, version: int) -> WeightBundle:
        """Copy the weights out, so that the next update or the learner's end does not change them."""

    async def save(self, folder: Path) -> None: ...

    async def save_model(self, folder: Path) -> None: ...

    def waits(self) -> bool:
        """Say whether training is held until the engines have received the exported weights."""

    async def pulse(self) -> int: ...

    async def stacks(self, limit_s: float) -> list[str]:
        """Return the thread stacks of each rank, or a line that names a rank silent for ``limit_s`` seconds."""

    async def close(self) -> None: ...


class PayloadStore(Protocol):
    """Rollout batches by handle. All calls block, and may be made from any thread."""

    def get(self, payload: Payload) -> RolloutBatch:
        """Fetch the batch behind a handle. Raises ``TaskLost`` if the batch is gone, with its node for example."""

    def put(self, batch: RolloutBatch) -> Payload: ...

    def fetch(self, payloads: Sequence[Payload], *, timeout_s: float) -> None:
        """Copy these payloads to this node, as many as ``timeout_s`` allows, because their own node may go away."""

    def probe(self) -> bool:
        """Put a large object and read it back. Returns whether the store works."""


class DirectTransfer(Protocol):
    """A learner that hands weights over by itself, to all engines at once (weights.transfer=collective)."""

    async def hand_over(self, engines: Sequence[Any], manifest: WeightManifest) -> list[WeightAck | str]:
        """Send the weights to all engines. Returns, in their order, each one's acknowledgement or why there is none."""

    async def stored(self) -> WeightBundle:
        """Export the current weights through the object store, for an engine that joins outside a hand-over."""


class Reporter(Protocol):
    """Where a run's numbers go. Called from the loop; must not block for long."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def group(self, record: Mapping[str, Any]) -> None:
        """Write a settled group's row to groups.jsonl."""

    def note(self, text: str, kind: EventKind = "note", **fields: Unpack[EventFields]) -> None:
        """Report an event that a person should see: a lost actor, a checkpoint, an evaluation."""

    def evaluations(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite evaluations.jsonl with all evaluations of the run so far, the newest last."""

    def problems(self, name: str, rows: Sequence[Mapping[str, Any]], *, keep_mib: int) -> None:
        """Write an evaluation's results by problem. ``keep_mib``: MiB that the files of all evaluations may take."""

    def waits(self, text: str) -> None:
        """Show what the run waits for now; "" once it continues."""

    def samples(self, name: str, rows: Sequence[Sequence[str]], *, version: int) -> None:
        """Show some responses of an evaluation. Each row: problem, reference answer, response, verdict, reward."""

    def beat(self, heartbeat: Heartbeat) -> None:
        """Publish the loop's state. The session's first call comes before any work."""


class Checkpoints(Protocol):
    """Whole-system checkpoints: a temporary folder that becomes visible only when it is complete."""

    def begin(self, step: int) -> Path: ...

    def commit(self, folder: Path, step: int, *, spare: Collection[int] = ()) -> Path: ...

    def keep_best(self, step: int) -> None: ...

    @property
    def models(self) -> Path:
        """Where model folders of single versions go."""
