"""Files of JSON lines and plain numbers, read with suspicion: what stands in them was written by a run that may have been killed.

Does not know what the rows mean.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 1, object) of each line; none if there is no file. A last line that was cut off counts as not written.

    Raises ``StorageError``: the file cannot be read, or another line is not a JSON object.
    """
    if not path.is_file():
        return
    with reading(path), open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            row = _parsed(line)
            if row is not None:
                yield number, row
            elif line.endswith("\n"):
                raise StorageError(f"{path}:{number} is damaged: it is no JSON object")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """A file that is one JSON object; None if there is no file. Raises ``StorageError``."""
    if not path.is_file():
        return None
    with reading(path):
        row = _parsed(path.read_text(encoding="utf-8", errors="replace"))
    if row is None:
        raise StorageError(f"{path} is damaged: it is no JSON object")
    return row


def number(value: Any, digits: int | None = None) -> float | None:
    """Return a finite number, rounded to ``digits`` significant digits; None for anything else, so that the page never sees a NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if digits is None or isinstance(value, int) else float(f"{value:.{digits}g}")


def text(value: Any) -> str:
    """A text as it is, nothing for None, anything else in JSON. Half surrogate pairs, which no file can hold, are replaced."""
    said = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return said if said.isascii() else said.encode("utf-8", "replace").decode("utf-8")


_OLD_WORDS = {"right": "correct", "judged_again": "scored_again", "given_up": "failed", "failed_given_up": "failed", "all_right": "all_correct", "rejected_all_right": "rejected_all_correct"}  # fmt: skip


def today(value: Any) -> str:
    """Return a text; translate an outcome or rejection of an older version into today's word."""
    return _OLD_WORDS.get(said := text(value), said)


def metric_of_today(name: str) -> str:
    """*Example*: ``verify/right``, of an older version, is ``verify/correct``."""
    group, _, word = name.partition("/")
    if group == "prompt":
        return name.replace("all_right", "all_correct")
    return f"{group}/{today(word)}" if group in ("verify", "groups", "states") else name


def plain(value: Any) -> Any:
    """The same JSON value with NaN, infinities and half surrogate pairs taken out."""
    if isinstance(value, dict):
        return {text(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    return number(value) if isinstance(value, int | float) else text(value)


def items(value: Any) -> list[Any]:
    """Return a list as it is; [] for anything else."""
    return value if isinstance(value, list) else []


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in a list and skip its other items; empty where ``value`` is no list."""
    return [item for item in items(value) if isinstance(item, dict)]


def mapping(value: Any) -> dict[str, Any]:
    """Return an object as it is; {} for anything else."""
    return value if isinstance(value, dict) else {}
