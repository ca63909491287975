"""Learner checkpoints: one folder that any number of ranks, any ZeRO stage and either precision can resume from.

    learner.json               what wrote it, names and shapes, step counts, schedule, and where every number lies
    rank-00000.000.safetensors masters and optimiser state, cut as the ranks that wrote them were; see ``checkpoint_pieces``
    base/                      config and tokenizer of the model, so that the weights can be exported from here alone

No pickles. Knows nothing of ``latest`` or what else a run saves. A folder is whole or not there: it is filled under a
temporary name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from fr3e_async.errors import ConfigError, StorageError, UserError
from fr3e_async.files.durable import fsync_path, fsync_tree, leads_outside, storage_errors
from fr3e_async.files.jsonl import checked_json, read_checked_json
from fr3e_async.learner.checkpoint_pieces import BUFFER, MASTER, REFERENCE, Pieces, SavedPiece, WeightRun, write_pieces
from fr3e_async.learner.spec import Pulse

FORMAT = 1
MANIFEST = "learner.json"
BASE = "base"
RANDOM = "random"  # role of the ranks' random states, whose "weight" is the rank and device
SHARD = re.compile(r"[^/\\]+\.safetensors")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of ``learner.json``.

    Example: ``Manifest(version=12, ranks=2, zero_stage=2, dtype="bfloat16", model="Qwen/Qwen2.5-7B", shapes={"lm_head.weight":
    [152064, 3584], …}, pieces=(SavedPiece("master", "lm_head.weight", 0, 268435456, "rank-00000.000.safetensors", 2774185153),
    …))``.
    """

    version: int  # of the weights
    ranks: int
    zero_stage: int
    dtype: str  # of training; masters are float32 whatever it was
    model: str = ""  # path or hub id, and revision, that the run began with
    revision: str = ""
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of every weight, by its Hugging Face name
    buffers: dict[str, list[int]] = field(default_factory=dict)  # shapes of what the model keeps beside its weights
    state: dict[str, Any] = field(default_factory=dict)  # see ``TrainingState.describe``
    pieces: tuple[SavedPiece, ...] = ()
    files: dict[str, int] = field(default_factory=dict)  # bytes, by name

    @property
    def roles(self) -> list[str]:
        """Names of the tensors that the optimiser kept of each weight; none before the first update."""
        return sorted({piece.part for piece in self.pieces} - {MASTER, BUFFER, REFERENCE, RANDOM})

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(checked_json({**asdict(self), "format": FORMAT}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ``StorageError`` if the folder holds no learner checkpoint that this version reads."""
        if not (folder / MANIFEST).is_file():
            raise StorageError(f"{folder} holds no learner checkpoint ({MANIFEST} is missing)")
        content = read_checked_json(folder / MANIFEST)
        found = content.pop("format", None)
        if found != FORMAT:
            raise StorageError(f"{folder}: learner checkpoint of format {found}, this version reads {FORMAT}")
        try:
            manifest = cls(**{**content, "pieces": tuple(SavedPiece(*row) for row in content["pieces"])})
            strange = [
                name for name in (*manifest.files, *(piece.file for piece in manifest.pieces)) if not SHARD.fullmatch(name)
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{folder / MANIFEST} is no manifest of a learner checkpoint ({error})") from error
        if strange:  # a checksum keeps damage out, not malice: nothing outside of the folder is opened
            raise StorageError(f"{folder / MANIFEST} names {strange[0]!r}, which is no *.safetensors file of its folder")
        return manifest

    def require_model(self, shapes: dict[str, list[int]]) -> None:
        """Raise ``ConfigError`` naming the first weight in which a model differs from the one that was trained."""
        for name in sorted(self.shapes.keys() | shapes.keys()):
            ours, theirs = shapes.get(name), self.shapes.get(name)
            if ours != theirs:
                raise ConfigError(
                    f"model.path: the checkpoint is of another model: {name} has shape {theirs or '(none)'} in it "
                    f"and {ours or '(none)'} in the model"
                )


class SavedState(Protocol):
    """What ``save`` and ``load`` need of ``checkpoint_state.TrainingState``."""

    @property
    def shapes(self) -> dict[str, list[int]]: ...
    @property
    def buffers(self) -> dict[str, torch.Tensor]: ...
    def runs(self, rank: int, world: int) -> Iterator[WeightRun]: ...
    def describe(self) -> dict[str, Any]: ...
    def restore(self, described: dict[str, Any], read: Any) -> None: ...


def save(
    folder: Path, state: SavedState, manifest: Manifest, *, rank: int, base: Path, overrides: Mapping[str, Any] | None = None,
    pulse: Pulse | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint; it stands durable under its name when this returns. All ranks.

    ``manifest``: what wrote it; the rest is filled in. ``base``: folder of the model that the run began with. ``overrides``: see
    ``copy_base``. ``pulse``: beats with each piece.

    Raises ``StorageError`` on every rank if one of them could not write.
    """
    filled, described = folder.with_name(folder.name + ".tmp"), state.describe()
    with together(folder):
        if rank == 0:
            clear(filled)
            filled.mkdir(parents=True)
            copy_base(base, filled / BASE, overrides)
    with together(folder):
        fixed = state.buffers if rank == 0 else {}
        beside = (WeightRun(BUFFER, name, 0, buffer.flatten()) for name, buffer in fixed.items())
        runs = chain(state.runs(rank, manifest.ranks), beside, _random_runs(rank))
        written = write_pieces(filled, f"rank-{rank:05d}", (pulse or Pulse()).over(runs))
        fsync_path(filled)  # the names, on this rank's machine
        sizes = {name: (filled / name).stat().st_size for name in {piece.file for piece in written}}
    shares = _gathered((written, sizes))
    with together(folder):
        if rank == 0:
            pieces = tuple(piece for part, _ in shares for piece in part)
            files = {name: size for _, part in shares for name, size in sorted(part.items())}
            buffers = {name: list(buffer.shape) for name, buffer in state.buffers.items()}
            replace(manifest, shapes=state.shapes, buffers=buffers, state=described, pieces=pieces, files=files).write(filled)
            fsync_tree(filled)
            put(filled, folder)


def load(folder: Path, state: SavedState, *, rank: int, world: int, seed: int) -> Manifest:
    """Restore the state of a checkpoint, whatever group wrote it; returns its manifest. All ranks.

    Random states come back if as many ranks wrote it; otherwise each rank draws a new one from ``seed`` and the version.

    Raises:
        StorageError: there is none, it is damaged, or of another format.
        ConfigError: it is of another model, or its optimiser is another.
    """
    manifest = Manifest.read(folder)
    manifest.require_model(state.shapes)
    with Pieces(folder, manifest.pieces) as pieces:

        def read(role: str, name: str, start: int, stop: int) -> torch.Tensor | None:
            return pieces.read(role, name, start, stop) if pieces.has(role, name) else None

        state.restore({**manifest.state, "roles": manifest.roles}, read)
        _set_random(pieces, rank=rank, same=world == manifest.ranks, seed=seed, version=manifest.version)
    return manifest


def damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint, or "". Reads every byte once (1 to 2 GB/s from memory)."""
    try:
        manifest = Manifest.read(folder)
        for name, size in manifest.files.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                return f"{name} is missing" if found is None else f"{name} has {found} bytes instead of {size}"
        Pieces(folder, manifest.pieces).check()
    except StorageError as error:
        return str(error)
    return ""


def copy_base(source: Path, target: Path, overrides: Mapping[str, Any] | None = None) -> None:
    """Copy the small files of a model folder: config, tokenizer, chat template, code; no weights. Raises ``OSError``.

    ``overrides``: values of its config.json that were others in training.

    Links that lead out of the folder are left out: ``notes.txt`` of a stranger's model may be a link to a person's key.
    """
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if (
            path.is_file()
            and not path.name.endswith(WEIGHT_SUFFIXES)
            and path.suffix in (".json", ".txt", ".model", ".jinja", ".py")
            and not leads_outside(path, source)
        ):
            shutil.copyfile(path, target / path.name)
    if overrides:
        _override(target / "config.json", overrides)


def _override(file: Path, overrides: Mapping[str, Any]) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | dict(overrides)
    for former in ("rope_scaling", "rope_theta") if "rope_parameters" in overrides else ():  # what older files have in its place
        config.pop(former, None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def clear(folder: Path) -> None:
    """Remove a folder that an attempt which was cut short may have left. Raises ``OSError``."""
    if folder.exists():
        shutil.rmtree(folder)


def put(filled: Path, folder: Path) -> None:
    """Rename a filled folder to its final name, replacing one that may exist. Raises ``OSError``."""
    former = folder.with_name(folder.name + ".old.tmp")
    clear(former)
    if folder.exists():
        os.replace(folder, former)
    os.replace(filled, folder)
    fsync_path(folder.parent)
    clear(former)


def _gathered(value: Any) -> list[Any]:
    """Gather every rank's value, by rank. All ranks."""
    values = [value]
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def together(folder: Path) -> Iterator[None]:
    """Run a block on all ranks, and leave it when all are through. Raises ``StorageError`` on all if one could not write."""
    problem, cause = "one of the ranks failed", None
    try:
        with storage_errors(folder):
            yield
        problem = ""
    except (UserError, SafetensorError) as error:  # safetensors wraps the system's own errors
        problem, cause = str(error), error
    finally:  # also after a defect of ours, which continues afterwards: the others must not wait for this rank
        problems = _gathered(problem)
    found = next(filter(None, problems), "")
    if found:
        raise StorageError(found) from cause


def _random_runs(rank: int) -> Iterator[WeightRun]:
    yield WeightRun(RANDOM, f"{rank}.cpu", 0, torch.get_rng_state())
    if torch.cuda.is_available():
        yield WeightRun(RANDOM, f"{rank}.cuda", 0, torch.cuda.get_rng_state())


def _set_random(pieces: Pieces, *, rank: int, same: bool, seed: int, version: int) -> None:
    if not same:
        digest = hashlib.sha256(f"{seed}/{version}/{rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return
    torch.set_rng_state(pieces.whole(RANDOM, f"{rank}.cpu"))
    if torch.cuda.is_available() and pieces.has(RANDOM, f"{rank}.cuda"):
        torch.cuda.set_rng_state(pieces.whole(RANDOM, f"{rank}.cuda"))
