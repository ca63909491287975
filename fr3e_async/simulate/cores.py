"""Processor sharing: processes of one machine that are at work at the same moment share its cores evenly."""

from __future__ import annotations

from typing import Protocol


class Process(Protocol):
    def set_speed(self, speed: float) -> None:
        """From now on it does so many seconds of its work in one second."""


class Cores:
    """With k threads at work on c cores each runs at min(1, c / k). ``count=0``: everyone has a device of his own."""

    def __init__(self, count: float) -> None:
        self._count = count
        self._threads: dict[Process, int] = {}  # of those at work
        self._total = 0
        self._speed = 1.0

    def occupy(self, process: Process, threads: int) -> None:
        """It has so many threads at work from now on; 0: it rests."""
        if not self._count:
            return
        before = self._threads.pop(process, 0)
        if threads:
            self._threads[process] = threads
        self._total += threads - before
        speed = min(1.0, self._count / self._total) if self._total else 1.0
        if speed != self._speed:
            self._speed = speed
            for other in self._threads:
                other.set_speed(speed)
        elif threads and not before:
            process.set_speed(speed)
