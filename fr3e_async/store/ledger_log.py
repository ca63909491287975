"""``ledger.jsonl``: what became of every prompt group over all sessions, a record a line, only appended to.

    begin  ─► admitted … train ─► trained ─► live … settled … cut … ─► end        what a session writes
    begin at a cut  ─►  whatever stands between the two is void

``records_of`` filters them from the events that the journal has, with what the machine decided; begin, cut and end are the session's
own. Whether the records are true is the audit's question (``ledger_audit``).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import fsync_path, reading, storage_errors
from fr3e_async.files.jsonl import JsonlWriter, from_json, to_json
from fr3e_async.machine.events import Admitted, Event, Trained
from fr3e_async.machine.messages import Command, Live, Retire, Train

Count = Annotated[int, msgspec.Meta(ge=0)]
Version = Count  # of the weights: 0 is the model that the run began with


def what(kind: type | str) -> str:
    """The word that names a kind of record in the file: "begin" of ``BeginRecord``."""
    return (kind if isinstance(kind, str) else kind.__name__).removesuffix("Record").lower()


class LedgerRecord(msgspec.Struct, frozen=True, kw_only=True, tag=what, tag_field="what", forbid_unknown_fields=True):
    """A line of the file. *Example*: ``{"what":"train","version":8,"groups":["gsm8k/17@0","gsm8k/4@0"],"oldest":6}``."""


class BeginRecord(LedgerRecord, frozen=True, kw_only=True):
    """A session starts: fresh, or from a checkpoint's cut. Everything after that cut is void."""

    session: Count
    version: Version
    admitted: Count  # groups, over the whole run
    settled: Count
    open: tuple[str, ...]  # neither settled nor void, in admission order
    time_s: float  # seconds since the epoch


class AdmittedRecord(LedgerRecord, frozen=True, kw_only=True):
    """A group enters while all engines in service have at least version ``live``."""

    group: str
    live: Version


class TrainRecord(LedgerRecord, frozen=True, kw_only=True):
    """A batch is given to the learner, to make ``version``."""

    version: Version
    groups: tuple[str, ...]
    oldest: Version  # lowest among its tokens


class TrainedRecord(LedgerRecord, frozen=True, kw_only=True):
    """``version`` is made, and the groups of its batch are settled."""

    version: Version


class LiveRecord(LedgerRecord, frozen=True, kw_only=True):
    """All engines in service serve ``version`` from this line on."""

    version: Version


class SettledRecord(LedgerRecord, frozen=True, kw_only=True):
    """A group leaves the ledger without being trained, with its outcome."""

    group: str
    outcome: str  # "rejected_…" or "failed"


class CutRecord(LedgerRecord, frozen=True, kw_only=True):
    """Where a run may resume from, if the checkpoint that is being written becomes whole."""

    version: Version
    admitted: Count
    settled: Count
    open: tuple[str, ...]  # in admission order; those with the learner are among them


class EndRecord(LedgerRecord, frozen=True, kw_only=True):
    """The session has ended in order, for ``reason``."""

    version: Version
    reason: str


AnyRecord = BeginRecord | AdmittedRecord | TrainRecord | TrainedRecord | LiveRecord | SettledRecord | CutRecord | EndRecord


def records_of(event: Event | None, commands: Iterable[Command], *, live: int) -> Iterator[LedgerRecord]:
    """Yield the records of an event and of the commands that it led to, in order. ``live``: the version that every engine serves.

    ``event`` is None for what the machine decides when a session begins.
    """
    if isinstance(event, Admitted):
        yield AdmittedRecord(group=event.group, live=live)
    elif isinstance(event, Trained):
        yield TrainedRecord(version=event.version)
    for command in commands:
        match command:
            case Retire() if command.outcome != "trained":
                yield SettledRecord(group=command.group, outcome=command.outcome)
            case Train():
                yield TrainRecord(version=command.version, groups=command.groups, oldest=command.oldest)
            case Live():
                yield LiveRecord(version=command.version)


class LedgerLog:
    """Appends records; each is handed to the system before the call returns. All calls raise ``StorageError``."""

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._path, self._writer = path, JsonlWriter(path)

    def write(self, record: LedgerRecord) -> None:
        """A cut is durable when this returns: a checkpoint that survives a power cut must find its cut here."""
        self._writer.append(to_json(record).decode())
        if isinstance(record, CutRecord):
            with storage_errors(self._path):
                fsync_path(self._path)

    def close(self) -> None:
        """Sync everything to disk and close the file; a second call does nothing."""
        self._writer.close()


_DECODER = msgspec.json.Decoder(AnyRecord)


def read_ledger_log(path: Path) -> list[tuple[int, LedgerRecord]]:
    """(line from 1 on, record) of a run, in order.

    A killed session may have left half a line. It is taken for not written at the end of the file and before a ``begin``,
    even if that was cut short as well. Raises ``StorageError``: no such file, or damage anywhere else.
    """
    records: list[tuple[int, LedgerRecord]] = []
    torn = 0  # line number of what may be left of a killed session
    with reading(path), open(path, "rb") as file:
        for line, text in enumerate(file, 1):
            record = _record(text, line, path)
            if record is None:
                torn = torn or line
                continue
            if torn and not isinstance(record, BeginRecord):
                raise StorageError(f"{path}:{torn} is damaged: it is no JSON object, and no session begins after it")
            torn = 0
            records.append((line, record))
    return records


def _record(text: bytes, line: int, path: Path) -> LedgerRecord | None:
    """Decode a line of the file; None if it is no JSON object. Raises ``StorageError`` if it is an unknown record."""
    try:
        return from_json(text, _DECODER)
    except msgspec.ValidationError as error:
        if not text.lstrip().startswith(b"{"):
            return None
        raise StorageError(f"{path}:{line} is damaged: it is no record of a ledger ({error})") from error
    except msgspec.DecodeError:
        return None


def _end_last_line(path: Path) -> None:
    """End a line that a killed session left unfinished, so that this session's first record starts on a new line."""
    if path.is_file() and path.stat().st_size:
        with storage_errors(path), open(path, "rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
