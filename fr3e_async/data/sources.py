"""Read sets of problems as rows, one at a time, from files, folders or the hub; apply the filters of a source.

    read_source(SourceConfig(path="gsm8k.jsonl", problem_field="question"), setting="data.train_sources[0]")

Knows paths and kinds; knows nothing of mixtures, duplicates and prompts.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

from fr3e_async.config.data import DataConfig, SourceConfig
from fr3e_async.data.row import REFUSE, BadRows, Columns, DataRow, SourceRecord, rows_of
from fr3e_async.data.tables import hub_records, jsonl_records, parquet_records, saved_records
from fr3e_async.errors import DataError

PATHS = "data.train, data.heldout"  # the settings that name a file by itself
Kind = Literal["jsonl", "parquet", "saved", "hub"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
FILE_ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".gz", ".csv")  # a missing file is no hub id
DATA_ENDINGS = (".parquet", ".jsonl", ".arrow", ".csv")  # a folder with such a file goes to load_dataset
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
    bad: BadRows = REFUSE,
) -> Iterator[DataRow]:
    """Read the rows of a source that its filters keep, in order, each with ``source_name``; only the ids are kept in memory.

    ``setting``: dotted path of the source for messages (``data.train_sources[0]``). ``further``: data.columns. ``dropped`` counts
    what the filters leave out, by reason; ``bad`` takes the rows that cannot be used. ``DataError`` in one line, with file and row
    where there is one: nothing to read, an id that occurs twice, no row at all, or none that is kept.
    """
    source.check(setting)
    columns = Columns(
        problem=source.problem_field, answer=source.answer_field, uid=source.id_field, level=source.level_field, setting=setting,
        further=further,
    )  # fmt: skip
    counts: Counter[str] = Counter()
    yield from _kept(source, columns, setting=f"{setting}.path", source_name=source.label, counts=counts, bad=bad)
    if dropped is not None:
        dropped.update(counts)


def read_path(path: str, config: DataConfig, *, bad: BadRows = REFUSE) -> Iterator[DataRow]:
    """Read data.train or data.heldout: any kind of source, by the columns of ``data``. ``DataError`` as ``read_source``."""
    columns = Columns(
        problem=config.problem_field, answer=config.answer_field, uid=config.id_field, level="level", setting="data",
        further=config.columns,
    )  # fmt: skip
    yield from _kept(SourceConfig(path=path), columns, setting=PATHS, source_name="", counts=Counter(), bad=bad)


def _kept(
    source: SourceConfig, columns: Columns, *, setting: str, source_name: str, counts: Counter[str], bad: BadRows
) -> Iterator[DataRow]:
    """Yield the rows that pass the filters. ``setting`` names the path in messages; ``counts`` counts dropped rows by reason."""
    read = 0
    for row in rows_of(records(source, columns, setting=setting, bad=bad), columns, source_name=source_name, bad=bad):
        try:
            reason = _left_out(row, source, columns.setting)
        except DataError as fault:
            bad.add(fault)
            continue
        read += 1
        if reason:
            counts[reason] += 1
        else:
            yield row
    if not read and not bad.count:
        raise DataError(f"{source.path}: the file is empty, it holds no problems; see {setting}")
    if counts.total() == read:
        why = [f"{count} {reason}" for reason, count in counts.items()]
        why += [f"{bad.count} cannot be used, the first: {bad.first}"] if bad.count else []
        entry = setting.removesuffix(".path")
        raise DataError(f"{source.path}: none of {read + bad.count} problems is kept ({', '.join(why)}); see {entry}")


def kind_of(source: SourceConfig) -> Kind:
    """Find out what a path is without opening it: ``source.kind``, or by the files that are there and the path's ending."""
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
    """Whether reading the source may need the network: it is an id of the hub."""
    return kind_of(source) == "hub" and not os.path.isdir(os.path.expanduser(source.path))


def level_number(level: str) -> float | None:
    """Find the first number in a text (``"Level 5"`` → 5.0), or None."""
    found = NUMBER.search(level)
    return float(found[0]) if found else None


def _holds_data(folder: str) -> bool:
    """Whether load_dataset would find data of its own kinds in it, and not the JSON of a model, say."""
    patterns = [os.path.join(glob.escape(folder), below, f"*{ending}") for below in ("", "*") for ending in DATA_ENDINGS]
    return any(next(glob.iglob(pattern), None) for pattern in patterns)


def records(source: SourceConfig, columns: Columns, *, setting: str, bad: BadRows = REFUSE) -> Iterator[SourceRecord]:
    """Read a source's records with the needed columns, before they are interpreted as problems and answers. ``DataError``.

    ``setting`` names the path in messages. ``bad`` takes the lines and rows of files that hold nothing to read.
    """
    kind = kind_of(source)
    if kind == "hub":
        yield from hub_records(source, columns, setting=setting)
        return
    if given := next((name for name in ("config", "files", "revision") if getattr(source, name)), ""):
        entry = setting.removesuffix(".path")
        raise DataError(f"{entry}.{given}: only a source of kind hub has one, and {source.path} is of kind {kind}")
    if kind == "saved":
        yield from saved_records(source, columns, setting=setting)
        return
    for path, name in _named_files(os.path.expanduser(source.path)):
        if kind == "parquet":
            yield from parquet_records(path, columns, setting=setting, name=name, bad=bad)
        else:
            yield from jsonl_records(path, setting=setting, name=name, bad=bad)


def _named_files(pattern: str) -> list[tuple[Path, str]]:
    """(file, what it is called in ids) of a pattern, in the order of their names; a path that is no pattern, or fits nothing, as it is.

    They are called by their own names; where two have the same, all by their paths from the pattern's fixed part on.
    *Example*: ``a/train.jsonl`` and ``b/train.jsonl`` for ``data/*/train.jsonl``.
    """
    found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not os.path.exists(pattern) else []
    files = [Path(name) for name in found or [pattern]]
    if len({path.name for path in files}) == len(files):
        return [(path, path.name) for path in files]
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    return [(path, path.relative_to(fixed).as_posix()) for path in files]


def _left_out(row: DataRow, source: SourceConfig, setting: str) -> str:
    """Return the reason to drop a row, "" to keep it."""
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
