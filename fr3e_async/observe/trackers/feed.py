"""A tracker's thread: rows go into a bounded queue and are written when the tracker gets to them.

The run puts and never waits; what does not fit is counted and left out. Whatever a tracker raises ends with the row it was about.
Knows nothing of any particular tracker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

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
    """A tracker's run, open. Every call is made by its feed's thread; each may take its time and raise what it likes."""

    remark: str  # what a person should know of how it opened; empty if it is as it was asked for

    def write(self, row: Row) -> None: ...

    def show(self, samples: Samples) -> None: ...

    def back_to(self, step: int) -> None:
        """The run goes on from an earlier step: rows of later ones come again."""

    def close(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        """The last call. ``summary``: the result's numbers, empty for a run that has none. ``reason``: why it ended, in words."""


@dataclass(frozen=True, slots=True)
class _Back:
    step: int


@dataclass(frozen=True, slots=True)
class _End:
    ending: Ending
    summary: Mapping[str, float]
    reason: str


class Feed:
    """The calls of one tracker, one after another. All methods are for the thread that made it."""

    def __init__(self, title: str, make: Callable[[], Tracker], *, capacity: int = CAPACITY) -> None:
        """``title``: for messages. ``make``: opens the tracker's run, inside of the thread."""
        self._title, self._make = title, make
        self._queue: queue.Queue[Row | Samples | _Back | _End] = queue.Queue(maxsize=capacity)
        self._given = 0  # rows
        self._full = False  # a row did not fit
        self._told_remark = self._told_broken = self._told_lost = False
        # Of the feed's thread, which alone writes them:
        self._written = 0  # rows
        self._broken = ""  # why it cannot be written at all
        self._remark = ""  # the tracker's own
        self._error = ""  # the first one after that
        self._thread = threading.Thread(target=self._serve, name=f"tracker {title}", daemon=True)
        self._thread.start()

    def write(self, row: Row | Samples) -> None:
        """Returns at once, whatever the tracker does."""
        self._given += 1
        if not self._broken:
            self._full |= not self._offered(row)

    def back_to(self, step: int) -> None:
        if not self._broken:
            self._offered(_Back(step))

    def news(self) -> list[str]:
        """What a person should read now, each once: that it does not work, that rows are being lost."""
        told = []
        if self._remark and not self._told_remark:
            self._told_remark = True
            told.append(f"{self._title} {self._remark}")
        if self._broken and not self._told_broken:
            self._told_broken = True
            told.append(f"{self._title} is off: {self._broken}; the run goes on without it")
        elif (self._error or self._full) and not self._told_lost and not self._broken:
            self._told_lost = True
            why = self._error or f"it is slow, {self._queue.maxsize} rows wait already"
            told.append(f"{self._title} does not take everything: {why}; the run goes on")
        return told

    def end(self, ending: Ending, summary: Mapping[str, float], *, reason: str) -> None:
        """Ask for the end and return at once, so that several trackers come to theirs side by side. Call it once, as the last."""
        while not self._offered(_End(ending, summary, reason)):
            with suppress(queue.Empty):
                self._queue.get_nowait()  # a row gives way: the run is to be closed rather than complete

    def join(self, deadline: float, *, setting: str) -> list[str]:
        """Wait for the end until then (``time.monotonic``), and leave the thread behind after that. What a person should read."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        told = self.news()
        if self._thread.is_alive():
            told.append(f"{self._title} was not done in time ({setting}) and is left behind")
        if lost := self._given - self._written:
            told.append(f"{self._title}: {lost} of {self._given} rows were not written")
        return told

    def _offered(self, item: Row | Samples | _Back | _End) -> bool:
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
                self._do(tracker, item)
            except Exception as error:  # as above; the next row may be luckier
                self._error = self._error or _told(error)
            if isinstance(item, _End):
                return

    def _do(self, tracker: Tracker, item: Row | Samples | _Back | _End) -> None:
        if isinstance(item, Row | Samples):
            tracker.write(item) if isinstance(item, Row) else tracker.show(item)
            self._written += 1
        elif isinstance(item, _Back):
            tracker.back_to(item.step)
        else:
            tracker.close(item.ending, item.summary, reason=item.reason)


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:CHARS]}"
