"""Sets of problems as rows, whatever they are kept in, one row at a time; and the filters of a source.

    read_source(SourceConfig(path="gsm8k.jsonl", problem_field="question"), setting="data.train_sources[0]")

Knows paths and kinds; what mixtures, duplicates and prompts are is said elsewhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

from fr3e_async.config.data import DataConfig, SourceConfig
from fr3e_async.data.jsonl import PATHS, columns_of, jsonl_records
from fr3e_async.data.row import BadRows, Columns, DataRow, SourceRecord, rows_of
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


def read_source(
    source: SourceConfig,
    *,
    setting: str,
    further: Sequence[str] = (),
    dropped: Counter[str] | None = None,
    bad: BadRows | None = None,
) -> Iterator[DataRow]:
    """The rows of a source that its filters keep, in order, each with ``source_name``; nothing else is held but the ids.

    ``setting`` is the dotted path of the source for messages (``data.train_sources[0]``), ``further`` data.columns. ``dropped`` counts what the filters
    left out, by reason; ``bad`` those that cannot be used, where they may be passed over. ``DataError`` in one line, with file and
    row where there is one: nothing to read, a row that lacks something, an id that occurs twice, no row at all, or none that is kept.
    """
    bad = BadRows() if bad is None else bad
    source.check(setting)
    columns = Columns(
        problem=source.problem_field, answer=source.answer_field, uid=source.id_field, level=source.level_field, setting=setting,
        further=further,
    )  # fmt: skip
    found = records(source, columns, setting=f"{setting}.path", bad=bad)
    counts: Counter[str] = Counter()
    read = 0
    for row in rows_of(found, columns, source_name=source.label, bad=bad):
        try:
            reason = _left_out(row, source, setting)
        except DataError as fault:
            bad.add(fault)
            continue
        read += 1
        if not reason:
            yield row
            continue
        counts[reason] += 1
    if dropped is not None:
        dropped.update(counts)
    _check_some(source.path, read, counts, bad, setting=setting, path_setting=f"{setting}.path")


def read_path(path: str, config: DataConfig, *, bad: BadRows | None = None) -> Iterator[DataRow]:
    """The rows of data.train or data.heldout: any kind of source, by the columns of ``data``. ``DataError`` as above."""
    columns, bad = columns_of(config), BadRows() if bad is None else bad
    read = 0
    for row in rows_of(records(SourceConfig(path=path), columns, setting=PATHS, bad=bad), columns, bad=bad):
        read += 1
        yield row
    _check_some(path, read, Counter(), bad, setting=PATHS, path_setting=PATHS)


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


def records(source: SourceConfig, columns: Columns, *, setting: str, bad: BadRows | None = None) -> Iterator[SourceRecord]:
    """What lies in a source, with the columns that are needed, before anything is known of problems and answers. ``DataError``.

    ``bad`` is told of lines and rows of files that hold nothing to read; without it they are raised.
    """
    kind = kind_of(source)
    if kind == "hub":
        return hub_records(source, columns, setting=setting)
    given = next((name for name in ("config", "files", "revision") if getattr(source, name)), "")
    if given:
        place = setting.removesuffix(".path")
        raise DataError(f"{place}.{given}: only a source of kind hub has one, and {source.path} is of kind {kind}")
    if kind == "saved":
        return saved_records(source, columns, setting=setting)
    return _file_records(source, kind, columns, setting, bad)


def _file_records(
    source: SourceConfig, kind: Kind, columns: Columns, setting: str, bad: BadRows | None
) -> Iterator[SourceRecord]:
    pattern = os.path.expanduser(source.path)
    files = _files(pattern)
    for path, name in zip(files, _names(files, pattern), strict=True):
        if kind == "parquet":
            yield from parquet_records(path, columns, setting=setting, name=name, bad=bad)
        else:
            yield from jsonl_records(path, setting=setting, name=name, bad=bad)


def _names(files: list[Path], pattern: str) -> list[str]:
    """What the files are called in ids: by their own names; where two have the same, by their paths from the pattern's fixed
    part on. *Example*: ``["a/train.jsonl", "b/train.jsonl"]`` for data/*/train.jsonl."""
    names = [path.name for path in files]
    if len(set(names)) == len(names):
        return names
    parts = Path(pattern).parts
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), parts))
    return [path.relative_to(fixed).as_posix() for path in files]


def _check_some(path: str, read: int, counts: Counter[str], bad: BadRows, *, setting: str, path_setting: str) -> None:
    """``DataError`` if nothing is left of a set: ``read`` rows of which ``counts`` were left out, and bad ones besides."""
    if not read and not bad.count:
        raise DataError(f"{path}: the file is empty, it holds no problems; see {path_setting}")
    if counts.total() == read:
        why = [f"{count} {reason}" for reason, count in counts.items()]
        why += [f"{bad.count} cannot be used, the first: {bad.first}"] if bad.count else []
        raise DataError(f"{path}: none of {read + bad.count} problems is kept ({', '.join(why)}); see {setting}")


def _files(path: str) -> list[Path]:
    """The files of a pattern in the order of their names; a path that is no pattern, or fits nothing, as it is."""
    found = sorted(glob.glob(path)) if _is_pattern(path) and not os.path.exists(path) else []
    return [Path(name) for name in found or [path]]


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path)


def _left_out(row: DataRow, source: SourceConfig, setting: str) -> str:
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
