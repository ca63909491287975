"""One data-parallel rank of the learner group: set up, train, export, save, load.

A plain object. Knows nothing of Ray: whoever holds the ranks calls the same method on all of them at the same time, for
each of ``setup``, ``train``, ``entropies``, ``export``, ``save``, ``load`` and ``save_hf`` is a meeting of the whole group. A rank that
raises leaves its peers to their own errors or time-outs: the group is the unit of restart.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fr3e_async.learner.checkpoint import Manifest
from fr3e_async.learner.metrics import Ages, check_staleness, step_metrics, token_ages
from fr3e_async.learner.scoring import entropies, unscored
from fr3e_async.learner.spec import LearnerSpec, free_address, rank_environment
from fr3e_async.learner.update import BatchUpdate, all_reduced
from fr3e_async.types import StepReport, TrainSample, WeightBundle
from fr3e_async.weights.bundle import pack_tensors

if TYPE_CHECKING:
    from fr3e_async.learner.engine import TrainingEngine


class LearnerRank:
    """See the module's docstring. Nothing heavy happens before ``setup``."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.rank, self.world = 0, 1
        self.version = 0  # of the weights as they are
        self._engine: TrainingEngine | None = None
        self._broken = ""  # why the weights must not be used any more

    def address(self, host: str = "127.0.0.1") -> tuple[str, int]:
        """Where the group can meet: ``host`` (this machine, as the other ranks know it) and a port that is free now."""
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

        imported = time.perf_counter()
        learner = self.spec.learner
        self.rank, self.world = rank, world
        self._device = engine.join_group(learner, rank=rank, world=world, host=host, port=port)
        torch.manual_seed(self.spec.seed)
        joined = time.perf_counter()
        model = load_policy(self.spec)
        loaded = time.perf_counter()
        self._engine = engine.TrainingEngine(self.spec, model)
        self._update = BatchUpdate(
            self._engine, learner=learner, loss=self.spec.loss, world=world, device=self._device
        )  # fmt: skip
        return {
            "rank": rank,
            "host": socket.gethostname(),
            "parameters": self._engine.parameter_count,
            "zero_stage": self._engine.stage,
            "time_import_s": imported - started,
            "time_join_s": joined - imported,
            "time_load_s": loaded - joined,
            "time_start_s": time.perf_counter() - loaded,
        }

    def train(self, samples: Sequence[TrainSample], *, version: int) -> StepReport:
        """Update on this rank's share of a batch; its weights are ``version`` afterwards. The report is global.

        Ages in the report are relative to ``version - 1``, the weights that the update starts from.

        Raises:
            FloatingPointError: a loss or gradient norm is not finite; names the optimiser step and the cause.
            StalenessError: a token is older than ``spec.max_staleness``, or of a version that does not exist yet.
        """
        self._require_sound()
        started = time.perf_counter()
        if self.spec.max_staleness is not None:
            check_staleness(samples, learner_version=version - 1, bound=self.spec.max_staleness)
        ages = self._global_ages(token_ages(samples, learner_version=version - 1))
        try:
            result = self._update.run(samples)
        except FloatingPointError as error:
            self._broken = str(error)
            raise
        self.version = version
        return StepReport(
            version=version,
            tokens=ages.tokens,
            optimiser_steps=len(result.grad_norms),
            metrics=step_metrics(result, ages),
            time_s=time.perf_counter() - started,
        )

    def entropies(self, rows: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> list[NDArray[np.float32]]:
        """Exact entropies [L], nats, of each (context, completion [L]) of this rank's share, under the weights as they are.

        A meeting of the whole group: a rank without rows takes part.
        """
        engine = self._require_sound()
        samples = [unscored(context, tokens) for context, tokens in rows]
        return entropies(engine, samples, budget=self.spec.learner.micro_batch_tokens, device=self._device)

    def export(self, version: int) -> WeightBundle | None:
        """All weights, by their Hugging Face names, in training precision; None on every rank but 0."""
        engine = self._require_sound()
        if self.rank == 0:
            return pack_tensors(engine.weights(), version=version, dtype=self.spec.learner.dtype)
        _take_part(engine.weights())
        return None

    def save(self, folder: str | Path, tag: str) -> None:
        """Write model, optimiser, schedule, version and random state under ``folder/tag``."""
        engine = self._require_sound()
        client_state = {"version": self.version, "rng": torch.get_rng_state()}
        engine.save(Path(folder), tag, client_state)
        if self.rank == 0:
            Manifest(
                version=self.version, ranks=self.world, zero_stage=engine.stage, dtype=self.spec.learner.dtype
            ).write(Path(folder) / tag)  # fmt: skip
        if self.world > 1:
            dist.barrier()

    def load(self, folder: str | Path, tag: str) -> dict[str, Any]:
        """Continue from ``folder/tag``. Returns the state saved with it: ``version`` and ``rng``.

        The files are pickles that an earlier part of this run wrote: never load a checkpoint from elsewhere.

        Raises:
            StorageError: there is no checkpoint.
            ConfigError: it was written with other ``learner`` settings.
        """
        engine = self._require_sound()
        manifest = Manifest.read(Path(folder) / tag)
        manifest.require_fits(ranks=self.world, zero_stage=engine.stage, dtype=self.spec.learner.dtype)
        state = engine.load(Path(folder), tag)
        self.version = int(state["version"])
        torch.set_rng_state(state["rng"])
        return state

    def save_hf(self, folder: str | Path) -> None:
        """Rank 0 writes safetensors, config and tokenizer, which transformers and vLLM load."""
        from fr3e_async.learner.policy import save_pretrained

        engine = self._require_sound()
        if self.rank == 0:
            save_pretrained(engine.model, self.spec, {name: w.cpu().clone() for name, w in engine.weights()}, Path(folder))
        else:
            _take_part(engine.weights())
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group. The object is of no use afterwards."""
        self._engine = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _global_ages(self, mine: Ages) -> Ages:
        sums = all_reduced(torch.tensor([mine.tokens, mine.total], device=self._device))
        oldest = all_reduced(torch.tensor(mine.oldest, device=self._device), dist.ReduceOp.MAX)
        return Ages(tokens=int(sums[0]), total=int(sums[1]), oldest=int(oldest))

    def _require_sound(self) -> TrainingEngine:
        if self._engine is None:
            raise RuntimeError("learner rank: setup() has not been called")
        if self._broken:
            raise RuntimeError(f"learner rank: the last update failed and its state must not be used: {self._broken}")
        return self._engine


def _take_part(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Run the gathering collectives of a rank that wants no weights itself."""
    for _ in weights:
        pass
