"""Which of a tracker's runs belongs to this run directory: ``RUN/trackers/<tracker>.json``, so that a resume goes on in it.

``take`` counts the times that a run began, went on or went back: rows that came twice are told apart by it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fr3e_async.observe.storage import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    id: str  # the tracker's own name of the run
    take: int = 1  # from 1
    rows: int = 0  # given to the tracker by now, over all takes

    def again(self) -> Identity:
        return replace(self, take=self.take + 1)


class IdentityFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Identity | None:
        """None: there is none yet. Raises ``OSError``, ``ValueError`` or ``TypeError`` for what nobody here has written."""
        return Identity(**json.loads(self._path.read_text(encoding="utf-8"))) if self._path.is_file() else None

    def write(self, identity: Identity) -> None:
        """Raises ``OSError``."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(asdict(identity)) + "\n")
