"""Tensors in pieces: runs of numbers of named weights in safetensors files, each with a checksum, read back by any cut.

Knows nothing of ranks, DeepSpeed or what the numbers mean. A run is a span of a flattened weight; whoever writes may cut
the weights as it likes, and whoever reads may ask for any other span.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import fsync_path, writing_tensors

MASTER = "master"  # the part of the weights themselves, in the precision that the optimiser updates
REFERENCE = "reference"  # the part of a second set of weights, that of the reference policy
BUFFER = "buffer"  # the part of what a model keeps beside its weights and does not train
SHARD_BYTES = 1 << 30
CHECK_THREADS = 4


class WeightRun(NamedTuple):
    """``values`` [n] stand at ``start`` … ``start + n`` of the flattened weight ``name``, in the role ``part``."""

    part: str
    name: str
    start: int
    values: Tensor


class SavedPiece(NamedTuple):
    """Where a run was written; a row of the manifest.

    Example: ``SavedPiece("exp_avg", "lm_head.weight", 0, 4096, "rank-00001.000.safetensors", 912345678)``.
    """

    part: str
    name: str
    start: int
    numel: int
    file: str
    crc32: int  # of the run's bytes

    @property
    def key(self) -> str:
        """Its name inside the file."""
        return f"{self.part}/{self.name}/{self.start}"


def write_pieces(folder: Path, stem: str, runs: Iterable[WeightRun], *, limit: int = SHARD_BYTES) -> list[SavedPiece]:
    """Write ``stem.000.safetensors``, … of at most ``limit`` bytes each, durable when this returns. Memory: one file.

    Raises ``OSError``.
    """
    pieces: list[SavedPiece] = []
    held: dict[str, Tensor] = {}
    size = files = 0

    def flush() -> None:
        nonlocal size, files
        if held:
            path = folder / _file(stem, files)
            write_tensors(path, held)
            held.clear()
            size, files = 0, files + 1

    for run in _cut(runs, limit):
        values = run.values.detach().to("cpu", copy=True)  # views of one buffer would be refused, as sharing memory
        if size + values.nbytes > limit:
            flush()
        piece = SavedPiece(
            part=run.part, name=run.name, start=run.start, numel=values.numel(), file=_file(stem, files), crc32=_crc32(values)
        )  # fmt: skip
        pieces.append(piece)
        held[piece.key] = values
        size += values.nbytes
    flush()
    return pieces


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, durable when this returns. Raises ``OSError``, with the number that the system gave."""
    with writing_tensors(path):
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    fsync_path(path)


class Pieces:
    """The pieces of a folder, by role and weight. A context manager that keeps the files open."""

    def __init__(self, folder: Path, pieces: Iterable[SavedPiece]) -> None:
        self.folder = folder
        self._by_weight: dict[tuple[str, str], list[SavedPiece]] = {}
        for piece in sorted(pieces, key=lambda piece: piece.start):
            self._by_weight.setdefault((piece.part, piece.name), []).append(piece)
        self._files: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._open.close()

    def has(self, part: str, name: str) -> bool:
        return (part, name) in self._by_weight

    def read(self, part: str, name: str, start: int, stop: int) -> Tensor:
        """Numbers ``start`` … ``stop`` of a flattened weight, [stop - start], as they were stored. Every piece used is checked.

        Raises ``StorageError``: a span is not there, or a piece is damaged.
        """
        parts, at = [], start
        for piece in self._by_weight.get((part, name), ()):
            if piece.start <= at < min(stop, piece.start + piece.numel):
                parts.append(self._values(piece)[at - piece.start : stop - piece.start])
                at += parts[-1].numel()
        if at < stop:
            raise StorageError(f"{self.folder}: {part} of {name} is not whole (numbers {at} to {stop} are missing)")
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def whole(self, part: str, name: str) -> Tensor:
        """All numbers that were written for a weight in this role, [n]. Raises ``StorageError``."""
        pieces = self._by_weight.get((part, name), ())
        return self.read(part, name, 0, sum(piece.numel for piece in pieces))

    def _values(self, piece: SavedPiece) -> Tensor:
        """Read one piece, and check it. Raises ``StorageError``."""
        try:
            if piece.file not in self._files:
                self._files[piece.file] = self._open.enter_context(safe_open(self.folder / piece.file, framework="pt"))
            values: Tensor = self._files[piece.file].get_tensor(piece.key)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{self.folder / piece.file} cannot be read: {error}") from error
        if values.numel() != piece.numel or _crc32(values) != piece.crc32:
            raise StorageError(
                f"{self.folder / piece.file} is damaged: {piece.key} does not have the checksum it was written with"
            )
        return values

    def check(self) -> None:
        """Read every piece once. Raises ``StorageError`` for the first that is damaged."""
        by_file: dict[str, list[SavedPiece]] = {}
        for pieces in self._by_weight.values():
            for piece in pieces:
                by_file.setdefault(piece.file, []).append(piece)

        def check_file(pieces: list[SavedPiece]) -> None:
            with Pieces(self.folder, pieces) as own:
                for piece in pieces:
                    own._values(piece)

        with ThreadPoolExecutor(CHECK_THREADS) as pool:
            list(pool.map(check_file, by_file.values()))


def _cut(runs: Iterable[WeightRun], limit: int) -> Iterator[WeightRun]:
    """Cut each run of weights into runs of at most ``limit`` bytes."""
    for part, name, start, values in runs:
        step = max(1, limit // values.element_size())
        for at in range(0, values.numel(), step):
            yield WeightRun(part, name, start + at, values[at : at + step])


def _file(stem: str, index: int) -> str:
    return f"{stem}.{index:03d}.safetensors"


def _crc32(values: Tensor) -> int:
    return zlib.crc32(values.view(torch.uint8).numpy().data)
