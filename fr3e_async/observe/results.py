"""What evaluations leave in a run directory: ``evaluations.jsonl``, and results by problem in a folder of bounded size.

Rows are plain mappings; knows nothing of what their numbers mean.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fr3e_async.observe.storage import storage_errors, write_atomically

ROWS = "evaluations.jsonl"
FOLDER = "evaluations"


def write_evaluations(run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All evaluations of the run so far, in order; the file is replaced as a whole. Raises ``StorageError``."""
    with storage_errors(run):
        write_atomically(run / ROWS, lines(rows))


def write_problems(run: Path, name: str, rows: Sequence[Mapping[str, Any]], *, keep_mib: int) -> None:
    """Results by problem, as ``evaluations/<name>.jsonl``; the oldest files go until all together are within the bound.

    The newest one stays if it alone is larger. Raises ``StorageError``.
    """
    folder = run / FOLDER
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}.jsonl"
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(path, lines(rows))
        files = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in folder.glob("*.jsonl") if file != path)
        if files and files[-1][0] >= path.stat().st_mtime_ns:  # the wall clock was set back, and the next one needs the order
            os.utime(path, ns=(files[-1][0] + 1,) * 2)
        size = path.stat().st_size + sum(size for _, size, _ in files)
        for _, freed, file in files:
            if size <= keep_mib << 20:
                break
            file.unlink()
            size -= freed


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """One JSON object a line. Raises ``ValueError`` if a number is not finite."""
    return "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
