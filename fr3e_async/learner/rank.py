"""One data-parallel rank of the learner group: set up, train, export, save, load.

A plain object. Knows nothing of Ray: whoever holds the ranks calls the same method on all of them at the same time, for
each of ``setup``, ``train``, ``entropies``, ``export``, ``save``, ``load`` and ``save_hf`` is a meeting of the whole group. A
rank that raises leaves its peers to their own errors or time-outs: the group is the unit of restart.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fr3e_async.config import LearnerConfig
from fr3e_async.errors import ModelError, StorageError
from fr3e_async.learner import checkpoint
from fr3e_async.learner.critic import Critic
from fr3e_async.learner.dump import MODEL, FailedStep, write_share, write_step
from fr3e_async.learner.export import model_folder, on_disk, write_model
from fr3e_async.learner.metrics import Ages, step_metrics, token_ages
from fr3e_async.learner.packing import unscored
from fr3e_async.learner.policy import distributions, entropies
from fr3e_async.learner.spec import LearnerSpec, Pulse, free_address, rank_environment
from fr3e_async.learner.update import BatchUpdate, UnsoundStep, all_reduced
from fr3e_async.types import StepReport, TrainSample
from fr3e_async.weights.bundle import BUCKET_BYTES, stream
from fr3e_async.weights.checksum import checksum_of_tensor
from fr3e_async.weights.manifest import WeightBucket, WeightManifest

if TYPE_CHECKING:
    from fr3e_async.learner.engine import TrainingEngine
    from fr3e_async.rollout.port import TransferMeeting


class LearnerRank:
    """See the module's docstring. Nothing heavy happens before ``setup``."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.rank, self.world = 0, 1
        self.version = 0  # of the weights as they are
        self.pulse = Pulse()
        self.engine: TrainingEngine | None = None  # from ``setup`` on
        self.critic: Critic | None = None  # from ``setup`` on, with ``spec.critic``
        self._sender: Any = None  # of vLLM's weight transfer
        self._broken = ""  # why the weights must not be used any more

    def address(self, host: str = "127.0.0.1") -> tuple[str, int]:
        """Choose where the group meets: ``host`` (this machine, as the other ranks know it) and a port that is free now."""
        return free_address(host)

    def setup(self, rank: int, world: int, host: str, port: int) -> dict[str, Any]:
        """Join the group, load the model, start DeepSpeed. Returns facts for the log.

        Raises:
            ModelError: the model is no causal language model.
        """
        started = time.perf_counter()
        os.environ.update(rank_environment(self.spec))
        # Imported here because they read the environment as they load.
        from fr3e_async.learner import engine
        from fr3e_async.learner.policy import load_policy
        from fr3e_async.learner.suitability import check_model

        imported = time.perf_counter()
        learner = self.spec.learner
        self.rank, self.world = rank, world
        self._device = engine.join_group(learner, rank=rank, world=world, host=host, port=port)
        torch.manual_seed(self.spec.seed)
        joined = time.perf_counter()
        with engine.sharded_as_loaded(learner):
            model = load_policy(self.spec).to(self._device)  # where its numbers are those that train
        loaded = time.perf_counter()
        self.engine = engine.TrainingEngine(self.spec, model, self.pulse)  # from here on ZeRO-3 fetches the weights of a pass
        check_model(model, packing=learner.packing, kernel=learner.tree_attention, longest=self.spec.longest)
        if self.spec.critic is not None:
            self.critic = self._open_critic()
        self._update = BatchUpdate(
            self.engine, learner=learner, loss=self.spec.loss, world=world, device=self._device, critic=self.critic
        )  # fmt: skip
        return {
            "rank": rank,
            "host": socket.gethostname(),
            "parameters": self.engine.parameter_count,
            "zero_stage": self.engine.stage,
            "time_import_s": imported - started,
            "time_join_s": joined - imported,
            "time_load_s": loaded - joined,
            "time_start_s": time.perf_counter() - loaded,
        }

    def _open_critic(self) -> Critic:
        """Start the critic's training engine. Its model needs no check: it is the policy's but for the head."""
        from fr3e_async.learner.engine import TrainingEngine
        from fr3e_async.learner.policy import load_policy
        from fr3e_async.learner.suitability import set_attention

        config, learner = self.spec.critic, self.spec.learner
        assert config is not None
        own = replace(self.spec, learner=replace(learner, lr=config.lr, grad_clip=config.grad_clip))
        model = load_policy(own, critic=True).to(self._device)
        set_attention(model, learner.packing)
        return Critic(TrainingEngine(own, model, self.pulse), config, world=self.world, device=self._device)

    def train(self, samples: Sequence[TrainSample], *, version: int) -> StepReport:
        """Update on this rank's share of a batch; its weights are ``version`` afterwards. The report is global.

        Ages in the report are relative to ``version - 1``, the weights that the update starts from.

        Raises:
            FloatingPointError: a loss or gradient norm is not finite; names the optimiser step and the cause.
            TokenAgeError: a token is older than ``spec.max_staleness``, or of a version that does not exist yet.
        """
        engine = self._require_sound()
        started = time.perf_counter()
        ages = self._global_ages(token_ages(samples, learner_version=version - 1, bound=self.spec.max_staleness))
        try:
            result = self._update.run(samples, version=version - 1)
        except FloatingPointError as error:
            self._broken = str(error)
            dumped = self._dump(error.step, engine) if isinstance(error, UnsoundStep) else ""
            raise FloatingPointError(f"{error}{dumped}") from error
        self.version = version
        if self.spec.loss.reference_coef and (every := self.spec.loss.reference_reset) and version % every == 0:
            engine.state.hold_reference(version)
        return StepReport(
            version=version,
            tokens=ages.tokens,
            optimiser_steps=len(result.grad_norms),
            metrics=step_metrics(result, ages),
            time_s=time.perf_counter() - started,
        )

    def _dump(self, step: FailedStep, engine: TrainingEngine) -> str:
        """Write a failed step for ``fr3e replay_step``; returns what to tell about it, on all ranks the same."""
        if not self.spec.dump_folder:
            return ""
        folder = Path(self.spec.dump_folder) / f"step-{step.optimiser_step:06d}"
        try:
            with checkpoint.together(folder):
                write_share(folder, step.share, rank=self.rank)
            self._write_hf(folder / MODEL, engine)
            with checkpoint.together(folder):
                if self.rank == 0:
                    write_step(folder, step, self.spec, ranks=self.world)
        except StorageError as error:
            return f"; its dump could not be written: {error}"
        trust = " --trust-remote-code" if self.spec.trust_remote_code else ""
        return f"; `fr3e replay_step {folder}{trust}` repeats it"

    def entropies(self, rows: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> list[NDArray[np.float32]]:
        """Exact entropies [L], nats, of each (context, completion [L]) of this rank's share, under the weights as they are.

        A meeting of the whole group: a rank without rows takes part.
        """
        engine = self._require_sound()
        samples = [unscored(context, tokens) for context, tokens in rows]
        return entropies(engine, samples, learner=self.spec.learner, device=self._device)

    def distributions(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.float32] | None:
        """[rows, V] log-probs, nats, of the token after each row under the weights as they are; None on every rank but 0.

        All ranks, with the same rows.
        """
        engine = self._require_sound()
        found = distributions(engine, engine.model, rows, learner=self.spec.learner, device=self._device)
        return found if self.rank == 0 else None

    def export(
        self, version: int | None, *, held: WeightManifest | None = None, bucket_bytes: int = BUCKET_BYTES
    ) -> Iterator[WeightBucket | WeightManifest]:
        """Yield all weights as ``weights.bundle.stream`` does, by checkpoint names, in training precision; nothing but on rank 0.

        The arrays are views of the weights, or of what ZeRO-3 has gathered: use each before you ask for the next. All ranks must
        run to the end. ``version``: what the manifest says, the rank's own if None. ``held``: buckets that are as in it are
        left out.
        """
        dtype = self.spec.learner.dtype
        buckets = sent_weights(self._require_sound(), bucket_bytes // (4 if dtype == "float32" else 2))
        if self.rank == 0:
            yield from stream(buckets, version=self.version if version is None else version, dtype=dtype, held=held)
        else:
            _take_part(buckets)

    def describe(self, version: int | None) -> WeightManifest | None:
        """Make the manifest of what ``send`` will send, checksums computed where the weights are; None but on rank 0. All ranks."""
        engine = self._require_sound()
        if self.rank != 0:
            _take_part(engine.weights())
            return None
        told = [
            (name, tuple(weight.shape), checksum_of_tensor(weight)) for name, weight in chain.from_iterable(sent_weights(engine))
        ]
        names, shapes, checksums = zip(*told, strict=True)
        return WeightManifest(
            version=self.version if version is None else version,
            dtype=self.spec.learner.dtype,
            names=names,
            shapes=shapes,
            checksums=checksums,
            buckets=(len(told),),
        )

    def open_transfer(self, meeting: TransferMeeting, manifest: WeightManifest) -> None:
        """Join the engines in a group for direct transfer of weights, and leave the former one. All ranks; rank 0 waits."""
        from fr3e_async.rollout.transfer import open_sender

        engine = self._require_sound()
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None
        self._sender = open_sender(
            meeting, rank=self.rank, manifest=manifest, weights=lambda: chain.from_iterable(sent_weights(engine))
        )  # fmt: skip

    def send(self) -> None:
        """Broadcast all weights to the engines, which must be in ``receive_weights``. All ranks."""
        self._require_sound()
        if self._sender is None:
            raise RuntimeError("learner rank: open_transfer() has not been called")
        self._sender.send_weights()

    def save(self, folder: str | Path, tag: str) -> None:
        """Write weights, optimiser, schedule, version and random state as ``folder/tag``, which is whole or not there.

        A critic's stand beside it, as ``folder/tag-critic``.

        Raises:
            StorageError: one of the ranks could not write; the former content of ``folder/tag`` stands.
        """
        base = model_folder(self.spec.path, revision=self.spec.revision)
        for name, engine, _ in self._parts(tag):
            manifest = checkpoint.Manifest(
                version=self.version,
                ranks=self.world,
                zero_stage=engine.stage,
                dtype=self.spec.learner.dtype,
                model=self.spec.path,
                revision=self.spec.revision,
            )
            checkpoint.save(
                Path(folder) / name, engine.state, manifest, rank=self.rank, base=base, overrides=self.spec.overrides,
                pulse=self.pulse,
            )  # fmt: skip

    def load(self, folder: str | Path, tag: str) -> None:
        """Resume from ``folder/tag``, whatever number of ranks, ZeRO stage and precision it was written with.

        Raises:
            StorageError: there is no checkpoint, or it is damaged.
            ConfigError: it is of another model or another optimiser.
        """
        for name, engine, lr in self._parts(tag):
            manifest = checkpoint.load(
                Path(folder) / name, engine.state, rank=self.rank, world=self.world, seed=self.spec.seed
            )  # fmt: skip
            self.version = manifest.version
            engine.set_lr(lr)

    def _parts(self, tag: str) -> Iterator[tuple[str, TrainingEngine, LearnerConfig]]:
        """Yield what a checkpoint is of: folder, engine and the settings of its learning rate."""
        yield tag, self._require_sound(), self.spec.learner
        if self.critic is not None and self.spec.critic is not None:
            yield f"{tag}-critic", self.critic.engine, replace(self.spec.learner, lr=self.spec.critic.lr)

    def begin(self) -> None:
        """Begin a run, with ``spec.optimizer_from`` if there is one. Raises as ``load``."""
        if self.spec.optimizer_from:
            folder = Path(self.spec.optimizer_from)
            self.load(folder.parent, folder.name)
            self.version = 0
            for _, engine, lr in self._parts(""):
                engine.begin(lr)

    def save_hf(self, folder: str | Path) -> None:
        """Rank 0 writes safetensors, config and tokenizer, which transformers and vLLM load. Memory: one file of weights.

        Raises:
            StorageError: on every rank, if rank 0 could not write.
        """
        self._write_hf(Path(folder), self._require_sound())

    def _write_hf(self, folder: Path, engine: TrainingEngine) -> None:
        weights = engine.weights()
        with checkpoint.together(folder):
            try:
                if self.rank == 0:
                    write_model(
                        folder,
                        self.pulse.over(weights),
                        dtype=self.spec.learner.dtype,
                        base=model_folder(self.spec.path, revision=self.spec.revision),
                        overrides=self.spec.overrides,
                        model=engine.model.causal_lm,
                        buffers=engine.state.buffers,
                    )
            finally:  # a rank that cannot write still has its part in the gathering that the others are in
                _take_part(weights)

    def close(self) -> None:
        """Leave the group. The object is of no use afterwards."""
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None
        self.engine = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _global_ages(self, mine: Ages) -> Ages:
        sums = all_reduced(torch.tensor([mine.tokens, mine.total], device=self._device))
        oldest = all_reduced(torch.tensor(mine.oldest, device=self._device), dist.ReduceOp.MAX)
        return Ages(tokens=int(sums[0]), total=int(sums[1]), oldest=int(oldest))

    def _require_sound(self) -> TrainingEngine:
        if self.engine is None:
            raise RuntimeError("learner rank: setup() has not been called")
        if self._broken:
            raise RuntimeError(f"learner rank: the last update failed and its state must not be used: {self._broken}")
        return self.engine


def sent_weights(engine: TrainingEngine, *numbers: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Yield buckets of all that a checkpoint holds, by the names that engines load: trained weights, then the model's buffers.

    Raises ``ModelError`` for a buffer that the weights' type cannot hold: an engine would round it, and the learner would not.
    """
    model = engine.model.causal_lm
    for bucket in engine.weight_buckets(*numbers):
        yield list(on_disk(model, dict(bucket)).items())
    for name, buffer in engine.state.buffers.items():
        if not torch.equal(buffer.to(model.dtype).to(buffer.dtype), buffer):
            raise ModelError(f"learner.dtype: {name} of this model cannot be sent as {model.dtype}; set learner.dtype=float32")
    if engine.state.buffers:
        yield list(on_disk(model, dict(engine.state.buffers)).items())


def _take_part(weights: Iterator[Any]) -> None:
    """Run a generator to its end for its collectives alone: a rank that wants no weights must still help to gather them."""
    for _ in weights:
        pass
