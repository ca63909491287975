"""The books of a run, ``ledger.jsonl``: the story of every prompt group over all sessions, a record a line, only appended to.

    begin  ─► admitted … train ─► trained ─► live … settled … cut … ─► end        what a session writes
    begin at a cut  ─►  whatever stands between the two is void

Knows what the records say and not whether they are true: that is the audit's (``ledger_audit``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import fsync_path, storage_errors
from fr3e_async.files.jsonl import JsonlWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRecord:
    """A line of the file. Versions are of the weights: 0 is the model that the run began with."""

    line: int = field(default=0, compare=False)  # where it was read, from 1 on; 0: nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginRecord(LedgerRecord):
    """A session starts: fresh, or from a checkpoint's cut. Everything after that cut is void."""

    session: int
    version: int
    admitted: int  # groups, over the whole run
    settled: int
    open: tuple[str, ...]  # neither settled nor void, in admission order
    time_s: float  # seconds since the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedRecord(LedgerRecord):
    group: str
    live: int  # version that all engines in service had


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecord(LedgerRecord):
    """A batch is given to the learner, to make ``version``."""

    version: int
    groups: tuple[str, ...]
    oldest: int  # lowest version among its tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRecord(LedgerRecord):
    """``version`` is made, and the groups of its batch are settled."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRecord(LedgerRecord):
    """All engines in service have ``version``."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledRecord(LedgerRecord):
    """A group ends without training."""

    group: str
    fate: str  # "rejected_…" or "failed_…"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRecord(LedgerRecord):
    """Where a run may go on from, if the checkpoint that is being written becomes whole."""

    version: int
    admitted: int
    settled: int
    open: tuple[str, ...]  # in admission order; those with the learner are among them


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRecord(LedgerRecord):
    version: int
    reason: str


def what(kind: type[LedgerRecord]) -> str:
    """The word that names a kind of record in the file: "begin" of ``BeginRecord``."""
    return kind.__name__.removesuffix("Record").lower()


KINDS: dict[str, type[LedgerRecord]] = {
    what(kind): kind
    for kind in (BeginRecord, AdmittedRecord, TrainRecord, TrainedRecord, LiveRecord, SettledRecord, CutRecord, EndRecord)
}
_FITS: dict[Any, Callable[[Any], bool]] = {  # by the annotation of a field, as it is written above
    "int": lambda value: type(value) is int and value >= 0,
    "float": lambda value: type(value) in (int, float),
    "str": lambda value: isinstance(value, str),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
}


class LedgerLog:
    """Appends records; each is handed to the system before the call returns. All calls raise ``StorageError``."""

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._path, self._writer = path, JsonlWriter(path)

    def write(self, record: LedgerRecord) -> None:
        """A cut is durable when this returns: a checkpoint that survives a power cut must find its cut here."""
        self._writer.write(to_row(record))
        if isinstance(record, CutRecord):
            with storage_errors(self._path):
                fsync_path(self._path)

    def close(self) -> None:
        """Make everything durable. Idempotent."""
        self._writer.close()


def to_row(record: LedgerRecord) -> dict[str, Any]:
    """The JSON object of a record."""
    said = {item.name: getattr(record, item.name) for item in fields(record) if item.name != "line"}
    return {"what": what(type(record)), **said}


def read_ledger_log(path: Path) -> list[LedgerRecord]:
    """The records of a run, in order.

    A killed session may have left half a line. It is taken for not written at the end of the file and before a ``begin``,
    even if that was cut short as well. Raises ``StorageError``: no such file, or damage anywhere else.
    """
    records: list[LedgerRecord] = []
    torn = 0  # line number of what may be left of a killed session
    try:
        with open(path, "rb") as file:
            for line, text in enumerate(file, 1):
                row = _object(text)
                if row is None:
                    torn = torn or line
                    continue
                record = _record(row, line, path)
                if torn and not isinstance(record, BeginRecord):
                    raise StorageError(f"{path}:{torn} is damaged: it is no JSON object, and no session begins after it")
                torn = 0
                records.append(record)
    except OSError as error:
        raise StorageError(f"{path} is not readable ({error.strerror})") from error
    return records


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _record(row: dict[str, Any], line: int, path: Path) -> LedgerRecord:
    kind = KINDS.get(str(row.pop("what", None)))
    if kind is None:
        raise StorageError(f"{path}:{line} is damaged: it is no record of a ledger")
    types = {item.name: item.type for item in fields(kind) if item.name != "line"}
    wrong = [name for name in types.keys() | row.keys() if name not in types or not _FITS[types[name]](row.get(name))]
    if wrong:
        raise StorageError(f"{path}:{line} is damaged: {', '.join(sorted(wrong))} of {what(kind)!r} cannot be right")
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return kind(line=line, **said)


def _end_last_line(path: Path) -> None:
    """What a killed session left of its last line must not run into the first one of this session."""
    if path.is_file() and path.stat().st_size:
        with storage_errors(path), open(path, "rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
