"""Read JSONL and Parquet files and Hugging Face datasets as records, one at a time. Every fault names file and line or row.

The only module that knows pyarrow and datasets; both are slow to import, so a function that needs one imports it. What a column
means is ``row``'s.
"""

import glob
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from fr3e_async.config.data import SourceConfig
from fr3e_async.data.row import REFUSE, BadRows, Columns, SourceRecord
from fr3e_async.errors import DataError

BATCH_ROWS = 256  # of a Parquet file in memory at once


def parquet_records(path: Path, columns: Columns, *, setting: str, name: str, bad: BadRows = REFUSE) -> Iterator[SourceRecord]:
    """Read the rows of a file, a few at a time, the needed columns only. ``setting`` names the path in messages.

    ``name``: what the file is called in ids. ``DataError`` for a file that is not there or no Parquet, and for one that lacks the
    column of the problems or answers; a row that cannot be decoded goes to ``bad``.
    """
    import pyarrow.parquet

    _refuse_pointers([os.fspath(path)], setting)
    with _named(f"{path}: cannot be read as Parquet", setting):
        file = pyarrow.parquet.ParquetFile(os.fspath(path))
    with file:
        names = list(file.schema_arrow.names)
        wanted = _wanted(columns, names, str(path))
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=wanted)
        rows = _batch_rows(_guarded(batches, path, setting), path, setting, bad)
        yield from _numbered(rows, names, str(path), name)


def saved_records(source: SourceConfig, columns: Columns, *, setting: str) -> Iterator[SourceRecord]:
    """Read the rows of a folder that ``save_to_disk`` wrote; they stay on the disk until they are looked at."""
    import datasets

    folder = os.path.expanduser(source.path)
    _refuse_pointers(_below(folder, "*.arrow"), setting)
    with _named(f"{source.path}: cannot be loaded from the disk", setting):
        loaded = datasets.load_from_disk(folder)
    if isinstance(loaded, dict):
        if source.split not in loaded:
            raise DataError(
                f"{source.path}: there is no split {source.split!r}, only {', '.join(map(repr, loaded))}; see {setting}"
            )
        loaded = loaded[source.split]
    yield from _dataset_records(loaded, columns, source.path, source, setting)


def hub_records(source: SourceConfig, columns: Columns, *, setting: str) -> Iterator[SourceRecord]:
    """Read the rows of a dataset of the Hugging Face hub or of a folder of data files, by ``load_dataset``.

    It is fetched once into the library's cache and read from there, so a second start needs no network. ``DataError`` in one
    line for what the library says: no network, no such dataset, configuration, split, file or revision.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs is in the exception, too, and a fault is one line
    folder = os.path.expanduser(source.path)
    local = os.path.isdir(folder)
    if local:
        _refuse_pointers(_below(folder, source.files or "*"), setting)
    options: dict[str, Any] = {
        "path": folder if local else source.path,
        "name": source.config or None,
        "data_files": source.files or None,
        "revision": source.revision or None,
    }
    what = f"{source.path}{f' at {source.revision}' if source.revision else ''}, split {source.split}"
    hint = "" if local else "; without a network name a local copy, as a file or a folder"
    with _named(f"{what}: cannot be loaded as a Hugging Face dataset", setting, hint):
        builder = datasets.load_dataset_builder(**options)
        if hasattr(builder.config, "converters"):  # of CSV, where 007 would become 7, and an answer NA or None nothing
            options["converters"] = {name.partition(".")[0]: str for name in columns.needed()}
            options |= {"keep_default_na": False, "na_values": [""]}
        loaded = datasets.load_dataset(**options, split=source.split)
    yield from _dataset_records(loaded, columns, f"{source.path}[{source.split}]", source, setting)


def _below(folder: str, pattern: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(folder), "**", pattern), recursive=True)


def _refuse_pointers(paths: Iterable[str], setting: str) -> None:
    """``DataError`` for a file that Git LFS has not fetched: libraries would say that it is damaged. Unreadable ones are theirs."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                found = file.read(len(POINTER)) == POINTER
        except OSError:
            continue
        if found:
            raise pointer(Path(path), setting)


def _dataset_records(loaded: Any, columns: Columns, location: str, source: SourceConfig, setting: str) -> Iterator[SourceRecord]:
    names = list(loaded.column_names)
    wanted = _wanted(columns, names, location)
    chosen = loaded.select_columns(wanted)
    rows = map(_plain_rows(chosen.features.arrow_schema), _guarded(chosen, Path(source.path), setting))
    yield from _numbered(rows, names, location, f"{source.label}.{source.split}")


def _batch_rows(batches: Iterable[Any], path: Path, setting: str, bad: BadRows) -> Iterator[Mapping[str, Any] | None]:
    """The rows of Arrow batches; None for one that cannot be made into values (bytes that are no UTF-8), which goes to ``bad``."""
    before = 0
    for batch in batches:
        plain = _plain_rows(batch.schema)
        try:
            rows = batch.to_pylist()
        except Exception:
            rows = None  # one bad row fails the whole batch: find it
        for index in range(batch.num_rows):
            try:
                with _named(f"{path}:{before + index + 1}: cannot be read", setting):
                    row = rows[index] if rows is not None else batch.slice(index, 1).to_pylist()[0]
            except DataError as fault:
                bad.add(fault)
                yield None
            else:
                yield plain(row)
        before += batch.num_rows


def _plain_rows(schema: Any) -> Callable[[Any], dict[str, Any]]:
    """A function that turns rows of an Arrow schema, as pyarrow and datasets give them, into plain values."""
    parts = {field.name: _plain(field.type) for field in schema}
    return lambda row: {name: parts[name](value) for name, value in row.items()}


def _plain(kind: Any) -> Callable[[Any], Any]:
    """Return the converter for values of one type: a short float is the number that was written (0.1, not 0.10000000149), a map a mapping."""
    from pyarrow import types

    if types.is_float32(kind) or types.is_float16(kind):
        short = np.float32 if types.is_float32(kind) else np.float16
        return _unless_none(lambda value: float(str(short(value))))
    if types.is_struct(kind):
        return _unless_none(_plain_rows(kind))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _unless_none(lambda values, entry=_plain(kind.value_type): [entry(value) for value in values])
    if types.is_map(kind):
        return _unless_none(lambda pairs, item=_plain(kind.item_type): {key: item(value) for key, value in pairs})
    return lambda value: value


def _unless_none(make: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else make(value)


def _numbered(
    rows: Iterable[Mapping[str, Any] | None], names: Sequence[str], location: str, short: str
) -> Iterator[SourceRecord]:
    """Number the rows from 1, like lines; a None row takes a number but yields no record."""
    for number, values in enumerate(rows, 1):
        if values is not None:
            yield SourceRecord(source=f"{location}:{number}", default_id=f"{short}:{number}", values=values, columns=names)


def _wanted(columns: Columns, names: Sequence[str], location: str) -> list[str]:
    """Return the file columns that contain the needed ones (``extra`` for ``extra.level``), in the file's order."""
    found = {name: name if name in names else name.partition(".")[0] for name in columns.needed()}
    for role, name in (("problem", columns.problem), ("answer", columns.answer)):
        if name and found[name] not in names:
            has = ", ".join(sorted(map(repr, names))) or "no columns"
            raise DataError(f"{location}: there is no column {name!r} ({columns.setting}.{role}_field); it has {has}")
    return [name for name in names if name in found.values()]


def _guarded(rows: Iterable[Any], path: Path, setting: str) -> Iterator[Any]:
    """Pass rows or batches on; turn what a library raises meanwhile into a ``DataError`` that names the file."""
    iterator = iter(rows)
    while True:
        with _named(f"{path}: cannot be read further", setting):
            try:
                row = next(iterator)
            except StopIteration:
                return
        yield row


@contextmanager
def _named(what: str, setting: str, hint: str = "") -> Iterator[None]:
    """Turn whatever pyarrow, datasets, the network and damaged content raise inside into one line."""
    try:
        yield
    except Exception as error:
        said = textwrap.shorten(_said(error), width=240, placeholder=" …")
        raise DataError(f"{what} ({said}){hint}; see {setting}") from error


def _said(error: BaseException) -> str:
    """Return the messages of the error and of its first cause: "An error occurred while generating the dataset" alone says nothing."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    words = [str(each) or type(each).__name__ for each in (error, first)]
    return words[0] if words[1] in words[0] else ": ".join(words)


KINDS = (  # said where the first line of a file is none of JSONL: the file is of another kind, as a rule
    "read as they are: JSONL (.jsonl, .ndjson or .json, an object on each line) and Parquet (.parquet); others (.csv, .gz, a JSON "
    "array) as a source of kind hub, with the folder as path and the file's name as files"
)

POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS left in place of the data
MAX_LINE_BYTES = 16 << 20  # no problem is this long; a file without line breaks must not fill the memory


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
    """Parse a JSON integer; Python limits the digits, since very long ones parse slowly."""
    most = sys.get_int_max_str_digits()
    if most and len(text.lstrip("-")) > most:
        raise DataError(f"a number of {len(text.lstrip('-')):,} digits, more than the {most:,} that are read; put it in quotes")
    return int(text)


def _decimal(text: str) -> float | Decimal:
    """Parse a JSON number as a float, or keep it as written where a float would lose digits."""
    try:
        exact = Decimal(text)
    except InvalidOperation as error:
        raise DataError(f"a number that is too large to be read, {text[:40]}; put it in quotes") from error
    return value if Decimal(repr(value := float(text))) == exact else exact


def pointer(path: Path, setting: str) -> DataError:
    """Make the error for a file that begins with ``POINTER``."""
    return DataError(f"{path}: a pointer of Git LFS, not the data; fetch it with `git lfs pull`; see {setting}")
