"""Rows: problems with reference answers, from files, the hub or the toy task, read and screened before any model is touched.

Knows which settings name which set; knows nothing of tokenizers and tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fr3e_async.config import Config, DataConfig
from fr3e_async.config.data import SOURCES, SourceConfig
from fr3e_async.data.row import Row
from fr3e_async.data.screening import Note, screen
from fr3e_async.data.sources import is_missing, may_be_fetched, read_path, read_source
from fr3e_async.data.toy.families import ToyProblem, toy_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What ``data.train`` and ``data.heldout`` hold. ``heldout`` is empty when there is no evaluation."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]
    notes: tuple[Note, ...] = ()  # what was found and left out, for a person


def read_rows(config: Config, benchmarks: Sequence[Row] = (), announce: Callable[[str], None] = lambda _: None) -> Rows:
    """Read and screen both problem sets. ``DataError`` names file and row, also of a problem that is in both.

    ``benchmarks``: problems of ``evaluation.suite``, which training must not see either. ``announce`` hears of what is fetched
    over the network, which may take minutes.
    """
    data = config.data
    for setting, source in _named_places(data):
        if may_be_fetched(source):
            announce(f"{setting}: reading {source.path}, which is fetched from the Hugging Face hub if it is not cached")
    toy_train, toy_heldout = toy_problems(config) if "toy" in (data.train, data.heldout) else ([], [])
    notes: list[Note] = []
    train = toy_train if data.train == "toy" else list(_named(data.train, data.train_sources, "data.train_sources", data, notes))
    heldout = toy_heldout if data.heldout == "toy" else []
    if data.heldout not in ("", "toy"):
        heldout = list(_named(data.heldout, data.heldout_sources, "data.heldout_sources", data, notes))
    if data.train == "toy" == data.heldout and not data.protected and not benchmarks:  # made as distinct problems
        return Rows(train=tuple(train), heldout=tuple(heldout))
    protected = [*_read_all(data.protected, "data.protected", notes), *benchmarks]
    kept, found = screen(train, heldout, protected, data)
    return Rows(train=kept, heldout=tuple(heldout), notes=(*notes, *found))


def read_heldout(config: Config) -> list[Row]:
    """The held-out problems alone, which needs no training set. ``DataError`` as above; empty when there are none."""
    data, notes = config.data, list[Note]()
    if data.heldout == "toy":
        return toy_problems(config)[1]
    return list(_named(data.heldout, data.heldout_sources, "data.heldout_sources", data, notes)) if data.heldout else []


def missing_files(data: DataConfig) -> list[str]:
    """``setting=path`` of each file or folder that the settings name and that is not here. Nothing is opened."""
    return [f"{name}={source.path}" for name, source in _named_places(data) if is_missing(source)]


def _named_places(data: DataConfig) -> list[tuple[str, SourceConfig]]:
    """(setting, source) of all that will be read, but for the toy task."""
    paths = [("data.train", data.train), ("data.heldout", data.heldout)]
    named = [(name, SourceConfig(path=path)) for name, path in paths if path not in ("", "toy", SOURCES)]
    lists = [("protected", data.protected, True)]
    lists += [("train_sources", data.train_sources, data.train == SOURCES)]
    lists += [("heldout_sources", data.heldout_sources, data.heldout == SOURCES)]
    listed = [
        (f"data.{name}[{index}].path", source) for name, sources, used in lists if used for index, source in enumerate(sources)
    ]
    return named + listed


def _named(word: str, sources: Sequence[SourceConfig], setting: str, data: DataConfig, notes: list[Note]) -> Iterator[Row]:
    return _read_all(sources, setting, notes) if word == SOURCES else read_path(word, data)


def _read_all(sources: Sequence[SourceConfig], setting: str, notes: list[Note]) -> Iterator[Row]:
    """All sources of a list, one after the other; ids begin with the source's name, so that they are unique among all."""
    for index, source in enumerate(sources):
        place, dropped = f"{setting}[{index}]", Counter[str]()
        for row in read_source(source, setting=place, dropped=dropped):
            yield replace(row, uid=f"{source.label}/{row.uid}")
        for reason, count in dropped.items():
            problems = "1 problem" if count == 1 else f"{count:,} problems"
            notes.append(("data_dropped", f"{place}: {problems} of {source.label} left out: {reason}"))


def toy_problems(config: Config) -> tuple[list[Row], list[Row]]:
    """The toy task of this configuration and seed as (training, held-out) rows."""
    train, heldout = toy_task(config.toy, config.run.seed)
    return _toy_rows("toy-train", train), _toy_rows("toy-heldout", heldout)


def _toy_rows(name: str, problems: list[ToyProblem]) -> list[Row]:
    return [
        Row(uid=f"{name}/{index}", problem=problem.text, answer=str(problem.answer), source=f"{name}:{index}")
        for index, problem in enumerate(problems)
    ]
