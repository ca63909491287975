"""The journal of a session: every event of the control machine with what it decided, one JSON line each; and reading it back.

    {"format": 2, "config": {…}, "state": …}                      the header: with it the machine begins
    {"t": 1763…, "e": ["Delivered", …], "c": ["assign 7 explorer-0 Branch 12", …]}

With it a run is replayed (``replay``) and service times are measured (``simulate``). Decisions are written in short; the
machine makes them again, in full, from the events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from fr3e_async.config import Config
from fr3e_async.errors import RunFailed, StorageError
from fr3e_async.files.durable import storage_errors
from fr3e_async.machine.codec import decode, encode, nameless
from fr3e_async.machine.events import Event
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import (
    Assign,
    Command,
    Dismiss,
    Hire,
    Live,
    Move,
    Release,
    Rescore,
    Retire,
    Send,
    SetPoolTarget,
    Train,
    Wait,
    Withdraw,
)

FORMAT = 2
KEPT_NAMES = {"Utilization": "Busy"}  # events that have another name in the files, which are older


def event_name(kind: type) -> str:
    """The name of an event in a journal."""
    return KEPT_NAMES.get(kind.__name__, kind.__name__)


EVENTS: dict[str, type] = {event_name(kind): kind for kind in get_args(Event)}


class Journal:
    """Writes ``<folder>/<session>.jsonl``. Lines are handed to the system by ``flush``, which costs more than writing one."""

    def __init__(self, folder: Path, *, session: int, config: Config, state: LedgerState | None) -> None:
        self.path = folder / f"{session:04d}.jsonl"
        with storage_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the journal
            header = {"format": FORMAT, "config": asdict(config), "state": None if state is None else encode(state)}
            self._file.write(json.dumps(header) + "\n")
            self._file.flush()

    def write(self, event: Event, commands: Sequence[Command], now: float) -> None:
        self._write(event, [brief(command) for command in commands], now)

    def refused(self, event: Event, error: RunFailed, now: float) -> None:
        """The machine could not go on: the last line of a run that failed in its own books."""
        self._write(event, [refusal(error)], now)

    def _write(self, event: Event, decisions: list[str], now: float) -> None:
        line = {"t": round(now, 6), "e": [event_name(type(event)), *encode(event)], "c": decisions}
        with storage_errors(self.path):
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        with storage_errors(self.path):
            self._file.flush()

    def close(self) -> None:
        """Idempotent."""
        if not self._file.closed:
            self.flush()
            self._file.close()


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a journal. ``time``: seconds since the epoch."""

    time: float
    event: Event
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Header:
    config: dict[str, Any]
    state: LedgerState | None


def read_journal(path: Path) -> tuple[Header, Iterator[Entry]]:
    """A session's journal; a last line that was cut off by a kill is passed over. Raises ``StorageError``."""
    lines = _lines(path)
    header = next(lines, None)
    if header is None or header.get("format") != FORMAT:
        raise StorageError(f"{path}: no journal of format {FORMAT}")
    state = None if header["state"] is None else decode(LedgerState, header["state"], nameless)
    return Header(header["config"], state), (_entry(line) for line in lines)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    return
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise StorageError(f"{path}, line {number}: not JSON ({error})") from error
    except OSError as error:
        raise StorageError(f"{path} is not readable ({error.strerror})") from error


def _entry(line: dict[str, Any]) -> Entry:
    kind, *fields = line["e"]
    return Entry(line["t"], decode(EVENTS[kind], fields, nameless), tuple(line["c"]))


def brief(command: Command) -> str:
    """A decision in one line: what it is, for whom, how much."""
    match command:
        case Assign():
            return f"assign {command.task} {command.worker} {work_in_short(command)}"
        case Rescore():
            return f"rescore {command.task} {command.group} {len(command.trunks)}"
        case Train():
            return f"train {command.version} {len(command.items)} {' '.join(command.groups)}"
        case Retire():
            return f"retire {command.group} {command.fate}"
        case Withdraw():
            return f"withdraw {command.worker} {' '.join(map(str, command.tasks))}".rstrip()
        case Hire():
            return f"hire {command.ticket} {command.role} {command.delay_s:g}"
        case Dismiss():
            return f"dismiss {command.ticket}"
        case Release():
            return f"release {command.worker}{' lost' if command.lost else ''}"
        case Move():
            return f"move {command.worker} {command.role}"
        case SetPoolTarget():
            return f"want {command.actors} {command.role}"
        case Send():
            return f"send {command.version} {'alone ' if command.alone else ''}{' '.join(command.workers)}".rstrip()
        case Live():
            return f"live {command.version}"
        case Wait():
            return f"wait {command.seconds:g} {command.key}"


def refusal(error: RunFailed) -> str:
    return f"refused: {str(error).splitlines()[0]}"


def work_in_short(command: Assign) -> str:
    """Kind of work and how many rollouts; "Asked" for what the loop asked for."""
    return "Asked" if command.work is None else f"{type(command.work).__name__} {len(command.work.ids)}"
