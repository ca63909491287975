"""A learner rank as a Ray actor: fetches its rows from the object store and forwards to a ``LearnerRank``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from fr3e_async.actors.watch import Watched
from fr3e_async.algorithm.anchors import AnchorRule, anchors_of_rows, with_anchors, with_entropies
from fr3e_async.algorithm.batching import train_sample
from fr3e_async.files.process_logs import redirect_output
from fr3e_async.files.scratch import actor_scratch
from fr3e_async.learner.spec import LearnerSpec
from fr3e_async.rollout.port import TransferMeeting
from fr3e_async.types import Advantage, RolloutBatch, RolloutId, StepReport
from fr3e_async.weights.manifest import WeightBucket, WeightManifest

CHECKPOINT_TAG = "state"  # one tag a folder: versions are told apart by the folders that hold whole checkpoints


class Pick(NamedTuple):
    """One row of one of the payloads that came with the call."""

    payload: int
    row: int
    advantage: Advantage
    minibatch: int


class LearnerActor(Watched):
    """One data-parallel rank. The group is the unit of restart: a rank that dies takes the others with it."""

    def __init__(self, spec: LearnerSpec, rule: AnchorRule | None, log_path: str) -> None:
        redirect_output(log_path)
        actor_scratch()
        self._rule, self._seed = rule, spec.seed
        from fr3e_async.learner.rank import LearnerRank

        self._rank = LearnerRank(spec)

    def address(self) -> tuple[str, int]:
        """Return this node's address and a free port, where the ranks meet."""
        return self._rank.address(ray.util.get_node_ip_address())

    def start(self, rank: int, world: int, host: str, port: int, resume_from: str) -> None:
        self._rank.setup(rank, world, host, port)
        if resume_from:
            self._rank.load(Path(resume_from), CHECKPOINT_TAG)
        else:
            self._rank.begin()

    def train(self, payloads: Sequence[ray.ObjectRef], picks: Sequence[Pick], version: int) -> StepReport:
        batches = ray.get(list(payloads))
        samples = [train_sample(batches[p.payload], p.row, advantage=p.advantage, minibatch=p.minibatch) for p in picks]
        return self._rank.train(samples, version=version)

    def rescore(self, payloads: Sequence[ray.ObjectRef], trunks: Sequence[Sequence[RolloutId]]) -> list[Any]:
        """Choose the anchors of these trunks of each payload by the entropies of the weights as they are.

        Returns the anchors of each payload, None, and then each payload again, now with those entropies and anchors.
        """
        assert self._rule is not None
        batches: list[RolloutBatch] = ray.get(list(payloads))
        rows = [[batch.row_of(id) for id in ids] for batch, ids in zip(batches, trunks, strict=True)]
        asked = [(batch, row) for batch, its in zip(batches, rows, strict=True) for row in its]
        measured = iter(self._rank.entropies([(batch.context(row), batch.completion(row).tokens) for batch, row in asked]))
        exact = [with_entropies(batch, {row: next(measured) for row in its}) for batch, its in zip(batches, rows, strict=True)]
        chosen = [anchors_of_rows(self._rule, batch, its, seed=self._seed) for batch, its in zip(exact, rows, strict=True)]
        return [chosen, None, *map(with_anchors, exact, chosen)]

    def distributions(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32] | None:
        return self._rank.distributions(rows)

    def describe(self, version: int | None) -> WeightManifest | None:
        return self._rank.describe(version)

    def open_transfer(self, meeting: TransferMeeting, manifest: WeightManifest) -> None:
        self._rank.open_transfer(meeting, manifest)

    def send(self) -> None:
        self._rank.send()

    def export(
        self, version: int | None, held: WeightManifest | None, bucket_bytes: int
    ) -> Iterator[WeightBucket | WeightManifest]:
        """Called with ``num_returns="streaming"``: the caller owns each bucket as soon as it is made, and keeps it when we die."""
        yield from self._rank.export(version, held=held, bucket_bytes=bucket_bytes)

    def save(self, folder: str) -> None:
        self._rank.save(Path(folder), CHECKPOINT_TAG)

    def save_model(self, folder: str) -> None:
        self._rank.save_hf(Path(folder))

    def pulse(self) -> int:
        return self._rank.pulse.count
