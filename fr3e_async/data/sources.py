"""Sets of problems as rows, whatever they are kept in, one row at a time; and the filters of a source.

    read_source(SourceConfig(path="gsm8k.jsonl", problem_field="question"), setting="data.train_sources[0]")

Knows paths and kinds; what mixtures, duplicates and prompts are is said elsewhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fr3e_async.config.data import DataConfig, SourceConfig
from fr3e_async.data.jsonl import PATHS, columns_of, jsonl_records
from fr3e_async.data.row import Columns, Record, Row, rows_of
from fr3e_async.data.tables import hub_records, parquet_records, saved_records
from fr3e_async.errors import DataError

Kind = Literal["jsonl", "parquet", "saved", "hub"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
FILE_ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".gz", ".csv")  # a missing file is no hub id
DATA_ENDINGS = (".parquet", ".jsonl", ".arrow", ".csv")  # that make a folder one for load_dataset
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # what save_to_disk leaves in its folder
NUMBER = re.compile(r"-?\d+(\.\d+)?")
OTHER_LEVEL = "outside of levels"
LONG_ANSWER = "answer longer than max_answer"


def read_source(source: SourceConfig, *, setting: str, dropped: Counter[str] | None = None) -> Iterator[Row]:
    """The rows of a source that its filters keep, in order, each with ``source_name``; nothing else is held but the ids.

    ``setting`` is the dotted path of the source for messages (``data.train_sources[0]``). ``dropped`` counts what the filters
    left out, by reason. ``DataError`` in one line, with file and row where there is one: nothing to read, a row that lacks
    something, an id that occurs twice, no row at all, or none that is kept.
    """
    source.check(setting)
    columns = Columns(
        problem=source.problem_field, answer=source.answer_field, uid=source.id_field, level=source.level_field, setting=setting
    )  # fmt: skip
    found = records(source, columns, setting=f"{setting}.path")
    counts: Counter[str] = Counter()
    read = 0
    for row in rows_of(found, columns, source_name=source.label):
        read += 1
        reason = _left_out(row, source, setting)
        if not reason:
            yield row
            continue
        counts[reason] += 1
    if dropped is not None:
        dropped.update(counts)
    if not read:
        raise DataError(f"{source.path}: the file is empty, it holds no problems; see {setting}.path")
    if counts.total() == read:
        why = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise DataError(f"{source.path}: none of {read} problems is kept ({why}); see {setting}")


def read_path(path: str, config: DataConfig) -> Iterator[Row]:
    """The rows of data.train or data.heldout: any kind of source, by the columns of ``data``. ``DataError`` as above."""
    columns = columns_of(config)
    rows = rows_of(records(SourceConfig(path=path), columns, setting=PATHS), columns)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{path}: the file is empty, it holds no problems; see {PATHS}")


def kind_of(source: SourceConfig) -> Kind:
    """What a path is, without opening it: ``source.kind``, or by the files that are there and the path's ending."""
    if source.kind != "auto":
        return source.kind
    path = os.path.expanduser(source.path)
    if os.path.isdir(path):
        if any(os.path.isfile(os.path.join(path, name)) for name in SAVED):
            return "saved"
        return "hub" if _holds_data(path) else "jsonl"  # which says that it is a folder
    if not os.path.exists(path) and HUB_ID.fullmatch(source.path) and not source.path.endswith(FILE_ENDINGS):
        return "hub"
    return "parquet" if path.endswith(".parquet") else "jsonl"


def is_missing(source: SourceConfig) -> bool:
    """Whether it surely cannot be read from here: a file or folder that is not there. Of a hub id nobody knows."""
    path = os.path.expanduser(source.path)
    return not os.path.exists(path) and not (_is_pattern(path) and glob.glob(path)) and kind_of(source) != "hub"


def may_be_fetched(source: SourceConfig) -> bool:
    """Whether reading it may need the network: an id of the hub."""
    return kind_of(source) == "hub" and not os.path.isdir(os.path.expanduser(source.path))


def level_number(level: str) -> float | None:
    """The first number in a text (``"Level 5"`` → 5.0), or None."""
    found = NUMBER.search(level)
    return float(found[0]) if found else None


def _holds_data(folder: str) -> bool:
    """Whether load_dataset would find data of its own kinds in it, and not the JSON of a model, say."""
    patterns = [os.path.join(glob.escape(folder), below, f"*{ending}") for below in ("", "*") for ending in DATA_ENDINGS]
    return any(next(glob.iglob(pattern), None) for pattern in patterns)


def records(source: SourceConfig, columns: Columns, *, setting: str) -> Iterator[Record]:
    """What lies in a source, with the columns that are needed, before anything is known of problems and answers. ``DataError``."""
    kind = kind_of(source)
    if kind == "hub":
        return hub_records(source, columns, setting=setting)
    given = next((name for name in ("config", "files", "revision") if getattr(source, name)), "")
    if given:
        place = setting.removesuffix(".path")
        raise DataError(f"{place}.{given}: only a source of kind hub has one, and {source.path} is of kind {kind}")
    if kind == "saved":
        return saved_records(source, columns, setting=setting)
    return _file_records(source, kind, columns, setting)


def _file_records(source: SourceConfig, kind: Kind, columns: Columns, setting: str) -> Iterator[Record]:
    for path in _files(os.path.expanduser(source.path)):
        if kind == "parquet":
            yield from parquet_records(path, columns, setting=setting)
        else:
            yield from jsonl_records(path, setting=setting)


def _files(path: str) -> list[Path]:
    """The files of a pattern in the order of their names; a path that is no pattern, or fits nothing, as it is."""
    found = sorted(glob.glob(path)) if _is_pattern(path) and not os.path.exists(path) else []
    return [Path(name) for name in found or [path]]


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path)


def _left_out(row: Row, source: SourceConfig, setting: str) -> str:
    """Why a row is not kept, or ""."""
    if source.levels:
        if not row.level:
            raise DataError(
                f"{row.source}: no difficulty in column {source.level_field!r} ({setting}.level_field), and {setting}.levels is given"
            )
        level = level_number(row.level)
        if level is None or not source.levels[0] <= level <= source.levels[1]:
            return OTHER_LEVEL
    if source.max_answer and len(row.answer) > source.max_answer:
        return LONG_ANSWER
    return ""
