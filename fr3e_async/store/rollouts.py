"""Rollout batches in files: safetensors shards that tell whether all of them are there, and as they were written.

    open-00000.safetensors, open-00001.safetensors, …      several batches each; the last one says so
    tensor "<key>/<column>"                                a column of ``RolloutBatch``
    metadata "batches"                                     JSON: ids, columns that are None and a checksum, by key

No pickles. Knows nothing of checkpoints: whoever commits the folder makes it durable.
"""

import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading, storage_errors, writing_tensors
from fr3e_async.types import RolloutBatch, RolloutId

FORMAT = "rollouts 1"
COLUMNS = tuple(field.name for field in fields(RolloutBatch) if field.name not in ("ids", "anchors"))  # groups keep the anchors
# A safetensors header must stay below 100 MB. It has the ids, and an entry of about this size for each tensor.
HEADER_BYTES = 32 << 20
_ENTRY_BYTES = 160

Columns = dict[str, NDArray]


def save_payloads(batches: Iterable[tuple[int, RolloutBatch]], folder: Path, *, shard_bytes: int = 256 << 20) -> int:
    """Write batches by their keys into ``folder``, which is made; the bytes of all files.

    A shard is written once it has ``shard_bytes``, before the next batch is asked for: no more than one is in memory.

    Raises:
        StorageError: the folder cannot be written, for instance because the disk is full.
        ValueError: a key came twice.
    """
    seen: set[int] = set()
    tensors: Columns = {}
    notes: dict[str, Any] = {}
    held = header = shards = written = 0

    def flush(*, last: bool) -> None:
        nonlocal held, header, shards, written
        path = folder / _name(shards)
        metadata = {"format": FORMAT, "shard": str(shards), "last": str(int(last)), "batches": json.dumps(notes)}
        with storage_errors(path):
            _write(path, tensors, metadata)
            written += path.stat().st_size
        tensors.clear()
        notes.clear()
        held, header, shards = 0, 0, shards + 1

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for key, batch in batches:
        if key in seen:
            raise ValueError(f"rollout batch {key} came twice")
        seen.add(key)
        columns = _columns(batch)
        notes[str(key)] = note = _note(batch, columns)
        tensors |= {f"{key}/{name}": column for name, column in columns.items()}
        held += sum(column.nbytes for column in columns.values())
        header += len(json.dumps(note)) + _ENTRY_BYTES * len(columns)
        del batch, columns  # the next one may come while this shard is gone already
        if held + header >= shard_bytes or header >= HEADER_BYTES:
            flush(last=False)
    flush(last=True)  # even if it is empty: a shard that is missing at the end must show
    return written


def load_payloads(folder: Path) -> Iterator[tuple[int, RolloutBatch]]:
    """Read back what ``save_payloads`` wrote, in the order of the shards; one batch is in memory at a time.

    Raises ``StorageError`` at the batch or file that is damaged, missing, or of something else.
    """
    names = sorted(path.name for path in folder.glob("open-*.safetensors"))
    if not names:
        raise StorageError(f"{folder} holds no rollouts ({_name(0)} is missing)")
    seen: set[int] = set()
    last = False
    for shard, name in enumerate(names):
        if name != _name(shard):
            raise StorageError(f"{folder}: {_name(shard)} is missing, but {name} is there")
        if last:
            raise StorageError(f"{folder / name} does not belong here: {names[shard - 1]} is the last of its kind")
        last = yield from _shard(folder / name, shard, seen)
    if not last:
        raise StorageError(f"{folder}: {_name(len(names))} is missing")


def _shard(path: Path, shard: int, seen: set[int]) -> Generator[tuple[int, RolloutBatch], None, bool]:
    """Yield the batches of a file; returns whether it is the last one. ``seen``: keys read so far, which must not repeat."""
    with reading(path, SafetensorError), safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise StorageError(f"{path} holds no rollouts of the format {FORMAT!r}")
        if metadata["shard"] != str(shard):
            raise StorageError(f"{path} was written as {_name(int(metadata['shard']))}")
        for key, note in json.loads(metadata["batches"]).items():
            if int(key) in seen:
                raise StorageError(f"{path}: rollout batch {key} is there a second time")
            seen.add(int(key))
            yield int(key), _batch(file, key, note, path)
        return metadata["last"] == "1"


def _batch(file: Any, key: str, note: Mapping[str, Any], path: Path) -> RolloutBatch:
    columns = {name: file.get_tensor(f"{key}/{name}") for name in COLUMNS if name not in note["none"]}
    if _crc32(note["ids"], columns) != note["crc32"]:
        raise StorageError(f"{path}: rollout batch {key} is damaged: it does not have the checksum it was written with")
    ids = tuple(RolloutId(*id) for id in note["ids"])
    return RolloutBatch(ids=ids, **{name: columns.get(name) for name in COLUMNS})  # type: ignore[arg-type]


def _columns(batch: RolloutBatch) -> Columns:
    """Return the columns that are not None, each contiguous: safetensors copies raw memory."""
    columns = {name: getattr(batch, name) for name in COLUMNS}
    return {name: np.ascontiguousarray(column) for name, column in columns.items() if column is not None}


def _note(batch: RolloutBatch, columns: Columns) -> dict[str, Any]:
    ids = [list(id) for id in batch.ids]
    return {"ids": ids, "none": [name for name in COLUMNS if name not in columns], "crc32": _crc32(ids, columns)}


def _crc32(ids: list[list[Any]], columns: Columns) -> int:
    """Compute the CRC-32 of a batch's ids, types, shapes and numbers."""
    kinds = {name: [column.dtype.str, list(column.shape)] for name, column in columns.items()}
    total = zlib.crc32(json.dumps([ids, kinds]).encode())
    for column in columns.values():
        total = zlib.crc32(column.data if column.size else b"", total)
    return total


def _write(path: Path, tensors: Columns, metadata: Mapping[str, str]) -> None:
    """Write a file. Raises ``OSError`` with the system's errno."""
    with writing_tensors(path):
        save_file(tensors, path, metadata=dict(metadata))


def _name(shard: int) -> str:
    return f"open-{shard:05d}.safetensors"
