"""JSON in files: append-only files of an object a line, texts of typed structs, and files with a checksum of what they say.

Knows nothing of what the objects mean, but for their ``step``.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading, storage_errors

Read = TypeVar("Read")
_TAIL_BYTES = 1 << 20  # of a file, in which its last row is looked for


def _number(value: Any) -> float:
    """NumPy's float64 is a float, and msgspec takes none but Python's own."""
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_ENCODER = msgspec.json.Encoder(enc_hook=_number)


def to_json(value: Any) -> bytes:
    """The JSON text of a struct, or of plain values with structs in them."""
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:  # a lone surrogate, which the name of a file or a problem may bring along; msgspec writes none
        return json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=_number)).encode()


def from_json(text: bytes, decoder: msgspec.json.Decoder[Read]) -> Read:
    """Decode the output of ``to_json``. Raises ``msgspec.DecodeError``, with the path of the field if it is of another shape."""
    try:
        return decoder.decode(text)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        try:
            value = json.loads(text) if b"\\ud" in text else None
        except ValueError:
            value = None
        if value is None:
            raise msgspec.DecodeError(str(error)) if isinstance(error, UnicodeDecodeError) else error from None
        return msgspec.convert(value, decoder.type, str_keys=True)


class JsonlWriter:
    """Appends rows; each is handed to the system before ``write`` returns, so that a killed run loses none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the writer

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row as one line. Raises ``StorageError`` on a full disk, ``ValueError`` for a NaN."""
        with storage_errors(self._path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def append(self, line: str) -> int:
        """Append a row that is a line of JSON already; return the size of the file in bytes. Raises ``StorageError``."""
        with storage_errors(self._path):
            self._file.write(line + "\n")
            self._file.flush()
            return self._file.tell()

    def close(self) -> None:
        """Sync everything to disk and close the file; a second call does nothing."""
        if not self._file.closed:
            with storage_errors(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()


def cut_after(path: Path, last: int, *, key: str = "step") -> int:
    """Drop the rows whose ``key`` is beyond ``last``, and a last line that was cut off; how many lines went. Rows without it stay.

    For a resumed run, which will write those again. A missing file is an empty one. Raises ``StorageError``.
    """
    return keep_rows(path, lambda row: row.get(key, last) <= last)


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Drop unwanted rows and lines that are no row; return how many lines were dropped, 0 without a file.

    Raises ``StorageError``.
    """
    return _keep(path, lambda _, line: (row := _row(line)) is not None and wanted(row))


def keep_first(path: Path, count: int) -> int:
    """Drop all but the first ``count`` rows; return how many lines were dropped, 0 without a file. Raises ``StorageError``."""
    return _keep(path, lambda number, _: number < count)


def last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row; {} if there is none, or no file. Raises ``StorageError``."""
    if not path.is_file():
        return {}
    with storage_errors(path), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        rows = (_row(line) for line in reversed(file.readlines()))
        return next((row for row in rows if row is not None), {})


def _keep(path: Path, stays: Callable[[int, bytes], bool]) -> int:
    """``stays``: called with a line's number from 0 and the line, perhaps twice.

    A line ends at a newline and nowhere else: texts hold U+2028, U+2029 and U+0085 as they are. One line is in memory at a time.
    """
    if not path.is_file():
        return 0
    with storage_errors(path), open(path, "rb") as file:
        gone = sum(not stays(number, line) for number, line in enumerate(file))
        if gone:
            file.seek(0)
            temporary = path.with_name(f".{path.name}.tmp")
            with open(temporary, "wb") as made:
                made.writelines(line for number, line in enumerate(file) if stays(number, line))
            os.replace(temporary, path)
    return gone


def _row(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it was cut off or is not a JSON object in UTF-8."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# ---- JSON files that carry the checksum of what they say, so that damage shows before anything is believed ----
# Nothing else.


def checked_json(content: Any) -> str:
    """The text of a file that holds ``content`` and its checksum."""
    body = json.dumps(content, sort_keys=True)
    return f'{{"crc32": {zlib.crc32(body.encode())},\n"content": {body}}}\n'


def read_checked_json(path: Path) -> Any:
    """Read and verify the output of ``checked_json``. Raises ``StorageError``: not there, cut off, or changed since."""
    with reading(path):
        whole = json.loads(path.read_text(encoding="utf-8"))
        content, expected = whole["content"], whole["crc32"]
    if zlib.crc32(json.dumps(content, sort_keys=True).encode()) != expected:
        raise StorageError(f"{path} is damaged: it does not have the checksum it was written with")
    return content
