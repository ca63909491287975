"""The journal of a session: every event of the control machine with what it decided, one JSON line each; and reading it back.

    {"journal":"0.1.0","config":{…},"state":null}                              with it the machine begins
    {"t":1763000000.25,"e":{"type":"Trained","version":7},"c":["retire gsm8k/17@0 trained","train 8 96 …"]}

With it a run is replayed (``replay``) and service times are measured (``simulate``). Decisions are written in short; the
machine makes them again, in full, from the events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from fr3e_async import __version__
from fr3e_async.config import Config
from fr3e_async.errors import RunFailed, StorageError
from fr3e_async.files.durable import reading, storage_errors
from fr3e_async.files.jsonl import from_json, to_json
from fr3e_async.machine import messages
from fr3e_async.machine.events import Event
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import Command

_FORMER, _SCORED = b'"type":"Judged"', b'"type":"Scored"'  # the event's name in journals of older versions, and now


class Header(msgspec.Struct, frozen=True):
    """What the machine of a session began with. ``config``: all settings; ``state``: of the checkpoint that it resumed from."""

    journal: str  # version of the package that wrote it
    config: dict[str, Any]
    state: LedgerState | None


class Entry(msgspec.Struct, frozen=True, rename={"time": "t", "event": "e", "commands": "c"}):
    """One event of a journal, and what the machine decided. ``time``: seconds since the epoch."""

    time: float
    event: Event
    commands: tuple[str, ...]


class Journal:
    """Writes ``<folder>/<session>.jsonl``. Lines are handed to the system by ``flush``, which costs more than writing one."""

    def __init__(self, folder: Path, *, session: int, config: Config, state: LedgerState | None) -> None:
        self.path = folder / f"{session:04d}.jsonl"
        with storage_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "wb")  # noqa: SIM115 - open as long as the journal
        self._write(Header(__version__, asdict(config), state))
        self.flush()

    def write(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """Append an event and its commands. ``now``: seconds since the epoch, kept to the microsecond."""
        self._write(Entry(round(now, 6), event, tuple(map(brief, commands))))

    def refused(self, event: Event, error: RunFailed, now: float) -> None:
        """Append the event that the machine refused: the last line of a run whose accounting failed."""
        self._write(Entry(round(now, 6), event, (refusal(error),)))

    def _write(self, line: Header | Entry) -> None:
        with storage_errors(self.path):
            self._file.write(to_json(line) + b"\n")

    def flush(self) -> None:
        with storage_errors(self.path):
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file; a second call does nothing."""
        if not self._file.closed:
            self.flush()
            self._file.close()


def read_journal(path: Path) -> tuple[Header, Iterator[Entry]]:
    """A session's journal; a last line that was cut off by a kill is passed over. Raises ``StorageError``."""
    lines = _lines(path)
    try:
        header = from_json(next(lines, (1, b""))[1], msgspec.json.Decoder(Header))
    except msgspec.DecodeError as error:
        raise StorageError(f"{path}: no journal that this version can read ({error})") from error
    return header, _entries(path, lines)


def _entries(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    for number, line in lines:
        try:
            yield from_json(line.replace(_FORMER, _SCORED, 1), decoder)
        except msgspec.DecodeError as error:
            raise StorageError(f"{path}, line {number}: no event of a journal ({error})") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line); a last line without its newline is left out."""
    with reading(path), open(path, "rb") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.endswith(b"\n"))


def brief(command: Command) -> str:
    """Summarise a command in one line: its kind, its target, its size."""
    match command:
        case messages.Assign():
            work = "Asked" if command.work is None else f"{type(command.work).__name__} {len(command.work.ids)}"
            return f"assign {command.task} {command.worker} {work}"
        case messages.Rescore():
            return f"rescore {command.task} {command.group} {len(command.trunks)}"
        case messages.Train():
            return f"train {command.version} {len(command.items)} {' '.join(command.groups)}"
        case messages.Retire():
            return f"retire {command.group} {command.outcome}"
        case messages.Withdraw():
            return f"withdraw {command.worker} {' '.join(map(str, command.tasks))}".rstrip()
        case messages.Hire():
            return f"hire {command.ticket} {command.role} {command.delay_s:g}"
        case messages.Dismiss():
            return f"dismiss {command.ticket}"
        case messages.Release():
            return f"release {command.worker}{' lost' if command.lost else ''}"
        case messages.Move():
            return f"move {command.worker} {command.role}"
        case messages.SetPoolTarget():
            return f"want {command.actors} {command.role}"
        case messages.Send():
            return f"send {command.version} {'alone ' if command.alone else ''}{' '.join(command.workers)}".rstrip()
        case messages.Live():
            return f"live {command.version}"
        case messages.Wait():
            return f"wait {command.seconds:g} {command.key}"


def refusal(error: RunFailed) -> str:
    return f"refused: {str(error).splitlines()[0]}"
