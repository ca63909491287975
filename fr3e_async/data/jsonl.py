"""Read JSONL files: one object a line. Every fault names file and line.

Knows lines and JSON; what the columns of a row mean is ``row``'s.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from fr3e_async.data.row import REFUSE, BadRows, SourceRecord
from fr3e_async.errors import DataError

KINDS = (  # said where the first line of a file is none of JSONL: the file is of another kind, as a rule
    "read as they are: JSONL (.jsonl, .ndjson or .json, an object on each line) and Parquet (.parquet); others (.csv, .gz, a JSON "
    "array) as a source of kind hub, with the folder as path and the file's name as files"
)

POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS left in place of the data
MAX_LINE_BYTES = 16 << 20  # no problem is as long; a file without line ends must not fill the memory


def jsonl_records(path: Path, *, setting: str, name: str, bad: BadRows = REFUSE) -> Iterator[SourceRecord]:
    """Read the objects of a file, one at a time and in order; blank lines are passed over. ``setting`` names the path in messages.

    ``name``: what the file is called in ids. ``DataError`` (with file and line) for a file that cannot be read and a line longer
    than ``MAX_LINE_BYTES``; a line that is not a JSON object in UTF-8 goes to ``bad``.
    """
    first = True
    for source, line, text in _lines(path, setting):
        try:
            values = _object(text, source)
        except DataError as fault:
            other = first and not isinstance(fault.__cause__, DataError)  # a line of another kind, not one with a number too long
            bad.add(DataError(f"{fault}; {KINDS}") if other else fault)
            values = None
        first = False
        if values is not None:
            yield SourceRecord(source=source, default_id=f"{name}:{line}", values=values, columns=list(values))


def _lines(path: Path, setting: str) -> Iterator[tuple[str, int, bytes]]:
    """(source, line number, bytes) of each line that is not blank; lines count from 1."""
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
                if number == 1 and line.startswith(POINTER):
                    raise pointer(path, setting)
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield f"{path}:{number}", number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); see {setting}") from error


def _object(line: bytes, source: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_int=_whole, parse_float=_decimal)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{source}: a JSON object was expected, got {type(value).__name__}")
    return value


def _whole(text: str) -> int:
    """A whole number of JSON; Python reads no more digits than would take long."""
    most = sys.get_int_max_str_digits()
    if most and len(text.lstrip("-")) > most:
        raise DataError(f"a number of {len(text.lstrip('-')):,} digits, more than the {most:,} that are read; put it in quotes")
    return int(text)


def _decimal(text: str) -> float | Decimal:
    """A number of JSON as a float, or as it stands where a float would lose digits of it."""
    try:
        exact = Decimal(text)
    except InvalidOperation as error:
        raise DataError(f"a number that is too large to be read, {text[:40]}; put it in quotes") from error
    return value if Decimal(repr(value := float(text))) == exact else exact


def pointer(path: Path, setting: str) -> DataError:
    """Make the error for a file that begins with ``POINTER``."""
    return DataError(f"{path}: a pointer of Git LFS, not the data; fetch it with `git lfs pull`; see {setting}")
