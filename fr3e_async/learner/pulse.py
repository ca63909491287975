"""A count of what a rank has done, for those who must know whether it still gets on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Pulse:
    """Micro-batches, optimiser steps, gathered weights and pieces written. Read from any thread; changed by one."""

    def __init__(self) -> None:
        self.count = 0

    def beat(self) -> None:
        self.count += 1

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each one that has been dealt with is a beat."""
        for item in items:
            yield item
            self.beat()
