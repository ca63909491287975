"""An append-only file of one JSON object a line. Knows nothing of what the objects mean, but for their ``step``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fr3e_async.observe.storage import storage_errors


class JsonlWriter:
    """Appends rows; each is handed to the system before ``write`` returns, so that a killed run loses none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the writer

    def write(self, row: Mapping[str, Any]) -> None:
        """Raises ``StorageError`` on a full disk, ``ValueError`` for a NaN."""
        with storage_errors(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def append(self, line: str) -> int:
        """A row that is a line of JSON already; the bytes of the file now. Raises ``StorageError``."""
        with storage_errors(self._path):
            self._file.write(line + "\n")
            self._file.flush()
            return self._file.tell()

    def close(self) -> None:
        """Make everything durable. Idempotent."""
        if not self._file.closed:
            with storage_errors(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()


def cut_after(path: Path, step: int) -> int:
    """Drop the rows of later steps, and a last line that was cut off; how many lines went. Rows without a step stay.

    For a resumed run, which will write those steps again. A missing file is an empty one.
    """
    return _keep(path, lambda lines: [line for line in lines if _stays(line, step)])


def keep_first(path: Path, count: int) -> int:
    """Drop all but the first ``count`` rows; how many lines went. A missing file is an empty one."""
    return _keep(path, lambda lines: lines[:count])


def _keep(path: Path, choose: Callable[[list[str]], list[str]]) -> int:
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = choose(lines)
    if len(kept) < len(lines):
        with storage_errors(path):
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, path)
    return len(lines) - len(kept)


def _stays(line: str, step: int) -> bool:
    if not line.endswith("\n"):
        return False
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return row.get("step", step) <= step
