"""A tracker's thread: rows go into a bounded queue and are written when the tracker gets to them.

The run puts and never waits; what does not fit is counted and left out. Whatever a tracker raises ends with the row it was about.
Knows nothing of any particular tracker.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

from fr3e_async.files.durable import write_atomically

CAPACITY = 1000  # rows that may wait: many minutes of a run, and some megabytes
CHARS = 300  # of an error that is told

Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Numbers of one step. ``time_s``: seconds since the epoch."""

    step: int
    time_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Texts of one step: a table whose first row is its head."""

    step: int
    name: str
    rows: Sequence[Sequence[str]]


class Tracker(Protocol):
    """An open run of a tracker. Only its feed's thread calls it; a call may block and may raise any exception."""

    remark: str  # what a person should know of how it opened; empty if it is as it was asked for

    def write(self, row: Row) -> None: ...

    def show(self, samples: Samples) -> None: ...

    def back_to(self, step: int) -> None:
        """Go back to ``step``: the run resumes there, and rows of later steps come again."""

    def close(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        """End the tracker's run; no call follows. ``summary``: the result's numbers, empty for a run that has none. ``reason``: why it ended, in words."""


class _Item(NamedTuple):
    call: Callable[[Tracker], None]
    is_row: bool = False
    is_last: bool = False


class Feed:
    """The calls of one tracker, one after another. All methods are for the thread that made it."""

    def __init__(self, title: str, make: Callable[[], Tracker], *, capacity: int = CAPACITY) -> None:
        """``title``: for messages. ``make``: opens the tracker's run, inside of the thread."""
        self._title, self._make = title, make
        self._queue: queue.Queue[_Item] = queue.Queue(maxsize=capacity)
        self._given = 0  # rows
        self._full = False  # a row did not fit
        self._told: set[str] = set()  # what a person has read by now
        # Of the feed's thread, which alone writes them:
        self._written = 0  # rows
        self._broken = ""  # why it cannot be written at all
        self._remark = ""  # the tracker's own
        self._error = ""  # the first one after that
        self.thread = threading.Thread(target=self._serve, name=f"tracker {title}", daemon=True)
        self.thread.start()

    def write(self, row: Row | Samples) -> None:
        """Queue a row for the tracker's thread. Returns at once, even while the tracker is slow or broken."""
        self._given += 1
        if not self._broken:
            call = (lambda tracker: tracker.write(row)) if isinstance(row, Row) else (lambda tracker: tracker.show(row))
            self._full |= not self._offered(_Item(call, is_row=True))

    def back_to(self, step: int) -> None:
        if not self._broken:
            self._offered(_Item(lambda tracker: tracker.back_to(step)))

    def news(self) -> list[str]:
        """What a person should read now, each once: that it does not work, that rows are being lost."""
        told = {"remark": f"{self._title} {self._remark}"} if self._remark else {}
        if self._broken:
            told["broken"] = f"{self._title} is off: {self._broken}; the run continues without it"
        elif self._error or self._full:
            why = self._error or f"it is slow, {self._queue.maxsize} rows wait already"
            told["lost"] = f"{self._title} does not take everything: {why}; the run continues"
        new = [text for kind, text in told.items() if kind not in self._told]
        self._told |= told.keys()
        return new

    def end(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        """Ask for the end and return at once, so that several trackers come to theirs side by side. Call it once, as the last."""
        last = _Item(lambda tracker: tracker.close(ending, summary, reason=reason), is_last=True)
        while not self._offered(last):
            with suppress(queue.Empty):
                self._queue.get_nowait()  # a row gives way: the run is to be closed rather than complete

    def join(self, deadline: float, *, setting: str) -> list[str]:
        """Wait for the end until then (``time.monotonic``), and leave the thread behind after that. What a person should read."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        told = self.news()
        if self.thread.is_alive():
            told.append(f"{self._title} was not done in time ({setting}) and is left behind")
        if lost := self._given - self._written:
            told.append(f"{self._title}: {lost} of {self._given} rows were not written")
        return told

    def _offered(self, item: _Item) -> bool:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    # ---- the feed's thread ----

    def _serve(self) -> None:
        try:
            tracker = self._make()
        except Exception as error:  # network, disk, account, a library's own kinds: nothing that a run does depends on it
            self._broken = _told(error)
            return
        self._remark = tracker.remark
        while True:
            item = self._queue.get()
            try:
                item.call(tracker)
                self._written += item.is_row
            except Exception as error:  # as above; the next row may be luckier
                self._error = self._error or _told(error)
            if item.is_last:
                return


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:CHARS]}"


# ---- What trackers are given, as flat numbers and texts: settings, evaluations, the result ----

_NO_METRIC = ("label", "version")  # of an evaluation: words, and the step itself


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted path → value as text; settings of settings that are mappings or lists are JSON.

    *Example*: ``{"run": {"seed": 0, "dir": ""}}`` → ``{"run.seed": "0", "run.dir": '""'}``
    """
    flat: dict[str, str] = {}
    for section, value in settings.items():
        inside = value if isinstance(value, Mapping) else None
        for path, item in ((f"{section}.{name}", item) for name, item in inside.items()) if inside else ((section, value),):
            flat[path] = item if isinstance(item, str) and item else json.dumps(item, sort_keys=True)
    return flat


def measured_values(record: Mapping[str, Any]) -> dict[str, float]:
    """An entry of the summary's ``evaluations`` as metrics ``eval/…``, or ``eval/<benchmark>/…`` where it names one.

    *Example*: ``{"label": "after", "version": 8, "accuracy": 0.5, "maj": {"value": 0.6, "low": 0.4}}`` →
    ``{"eval/accuracy": 0.5, "eval/maj": 0.6, "eval/maj/low": 0.4}``
    """
    named = record.get("benchmark")
    prefix = f"eval/{named}" if isinstance(named, str) and named else "eval"
    return dict(_numbers({name: value for name, value in record.items() if name not in _NO_METRIC}, prefix))


def summary_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``summary.json``, less its list of evaluations, as ``summary/…``."""
    return dict(_numbers({name: value for name, value in summary.items() if name != "evaluations"}, "summary"))


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        path = prefix if name == "value" else f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from _numbers(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


# ---- Which of a tracker's runs belongs to this run directory ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A line of ``RUN/trackers/<tracker>.json``, so that a resume continues in the tracker's run. *Example*: ``{"id": "k3x9", "take": 2, "rows": 40}``."""

    id: str  # the tracker's own name of the run
    take: int = 1  # times that the run began, was resumed or went back: it tells rows that came twice apart
    rows: int = 0  # given to the tracker by now, over all takes

    def again(self) -> Self:
        return replace(self, take=self.take + 1)

    def write(self, path: Path) -> Self:
        """Write the identity to ``path`` as JSON, atomically, and return it. Raises ``OSError``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self)) + "\n")
        return self


def read_identity(path: Path) -> Identity | None:
    """None: there is none yet. Raises ``OSError``, ``ValueError`` or ``TypeError`` for what nobody here has written."""
    return Identity(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
