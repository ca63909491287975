"""Whole checkpoints without DeepSpeed: a state of plain tensors, as a learner of one rank would save it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from fr3e_async.control.progress import Cut, Progress, save_cut
from fr3e_async.files.jsonl import to_json
from fr3e_async.learner import checkpoint
from fr3e_async.learner.checkpoint_pieces import MASTER, WeightRun
from fr3e_async.machine.budget import Account
from fr3e_async.machine.ledger_state import LedgerCut, LedgerState
from fr3e_async.store.checkpoints import CheckpointStore
from fr3e_async.types import RolloutBatch

TAG = Path("learner") / "state"


class PlainState:
    """``checkpoint.State`` over a dict of tensors, with one moment each."""

    def __init__(self, weights: dict[str, torch.Tensor], *, buffers: dict[str, torch.Tensor] | None = None) -> None:
        self.weights, self.buffers = weights, buffers or {}
        self.restored: dict[str, Any] = {}

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: list(weight.shape) for name, weight in self.weights.items()}

    def runs(self, rank: int, world: int) -> Iterator[WeightRun]:
        for name, weight in list(self.weights.items())[rank::world]:
            yield WeightRun(MASTER, name, 0, weight.flatten())
            yield WeightRun("exp_avg", name, 0, weight.flatten() / 2)

    def describe(self) -> dict[str, Any]:
        return {"groups": [], "schedule": {}, "counters": {"global_steps": 5}}

    def restore(self, described: Any, read: Any) -> None:
        self.restored = {**described}
        self.weights = {name: read(MASTER, name, 0, w.numel()).view(w.shape) for name, w in self.weights.items()}


def small_base(folder: Path) -> Path:
    """A model folder of nothing but a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "model.safetensors").write_bytes(b"not copied")
    return folder


def save_learner(
    folder: Path, state: PlainState, *, version: int = 1, base: Path, model: str = "base", dtype: str = "float32", ranks: int = 1
) -> None:  # fmt: skip
    manifest = checkpoint.Manifest(version=version, ranks=ranks, zero_stage=0, dtype=dtype, model=model)
    checkpoint.save(folder, state, manifest, rank=0, base=base)


def save_whole(
    store: CheckpointStore, step: int, *, base: Path, stream: dict[str, Any] | None = None, state: PlainState | None = None, progress: Progress | None = None, trees: Iterable[tuple[int, RolloutBatch]] = ()
) -> Path:  # fmt: skip
    """A checkpoint of control, open trees and learner, committed."""
    folder = store.begin(step)
    ledger = LedgerState(version=step, admitted=0, outcomes={}, budget=Account())
    progress = progress or Progress()
    cut = Cut(version=step, groups=0, ledger=LedgerCut(ledger, to_json), stream=stream or {}, progress=progress.to_dict(1.0))
    save_cut(cut, folder, trees)
    state = state or PlainState({"w": torch.full((40,), float(step)), "v": torch.arange(6.0).view(2, 3)})
    save_learner(folder / TAG, state, version=step, base=base)
    return store.commit(folder, step)
