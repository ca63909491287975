"""Read and screen problems with reference answers, from files, the hub or the toy task, before any model is touched.

Knows which settings name which set; knows nothing of tokenizers and tokens.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fr3e_async.config import Config, DataConfig
from fr3e_async.config.data import SOURCES, SourceConfig
from fr3e_async.data.row import BadRows, DataRow
from fr3e_async.data.screening import Note, screen
from fr3e_async.data.sources import may_be_fetched, read_path, read_source
from fr3e_async.data.toy.task import toy_task

PROTECTED = "data.protected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What ``data.train`` and ``data.heldout`` hold. ``heldout`` is empty when there is no evaluation.

    *Example*: ``Rows(train=(row, …), heldout=(), notes=(("note", "3 training problems are near copies …"),))``.
    """

    train: tuple[DataRow, ...]
    heldout: tuple[DataRow, ...]
    notes: tuple[Note, ...] = ()  # messages for the user: what was found and left out


def read_rows(config: Config, benchmarks: Sequence[DataRow] = (), announce: Callable[[str], None] = lambda _: None) -> Rows:
    """Read and screen both problem sets. ``DataError`` names file and row, also of a problem that is in both.

    ``benchmarks``: problems of ``evaluation.suite``, which training must not see either. ``announce`` is called with a line for each
    source that may be fetched over the network, which may take minutes.
    """
    data, notes = config.data, list[Note]()
    for setting, source in _named_places(data):
        if may_be_fetched(source):
            announce(f"{setting}: reading {source.path}, which is fetched from the Hugging Face hub if it is not cached")
    toy = dict(zip(("train", "heldout"), toy_problems(config), strict=True)) if "toy" in (data.train, data.heldout) else {}
    train, heldout = (
        toy[name] if getattr(data, name) == "toy" else _read_set(name, data, notes) for name in ("train", "heldout")
    )
    if data.train == "toy" == data.heldout and not data.protected and not benchmarks:  # made as distinct problems
        return Rows(train=tuple(train), heldout=tuple(heldout))
    protected = [*_read_all(data.protected, PROTECTED, data, notes), *benchmarks]
    kept, found = screen(train, heldout, protected, data)
    return Rows(train=kept, heldout=tuple(heldout), notes=(*notes, *found))


def read_heldout(config: Config, announce: Callable[[str], None] = lambda _: None) -> list[DataRow]:
    """Read the held-out problems alone, which needs no training set; empty when there are none. ``DataError`` as ``read_rows``.

    ``announce`` is called with a line for what was left out.
    """
    notes = list[Note]()
    if config.data.heldout == "toy":
        return toy_problems(config)[1]
    rows = _read_set("heldout", config.data, notes)
    for _, text in notes:
        announce(text)
    return rows


def _named_places(data: DataConfig) -> list[tuple[str, SourceConfig]]:
    """Return (setting, source) for everything that will be read, except the toy task."""
    paths = [("data.train", data.train), ("data.heldout", data.heldout)]
    named = [(name, SourceConfig(path=path)) for name, path in paths if path not in ("", "toy", SOURCES)]
    lists = [("protected", data.protected, True)]
    lists += [("train_sources", data.train_sources, data.train == SOURCES)]
    lists += [("heldout_sources", data.heldout_sources, data.heldout == SOURCES)]
    listed = [
        (f"data.{name}[{index}].path", source) for name, sources, used in lists if used for index, source in enumerate(sources)
    ]
    return named + listed


def _read_set(name: str, data: DataConfig, notes: list[Note]) -> list[DataRow]:
    """Read the rows of ``data.<name>``: from its list of sources, from its one path, or none."""
    path, bad = getattr(data, name), BadRows(drop=data.on_bad_row == "drop")
    if path == SOURCES:
        return list(_read_all(getattr(data, f"{name}_sources"), f"data.{name}_sources", data, notes))
    rows = list(read_path(path, data, bad=bad)) if path else []
    _tell_bad(bad, f"data.{name}", path, notes)
    return rows


def _tell_bad(bad: BadRows, entry: str, name: str, notes: list[Note]) -> None:
    if bad.count:
        rows = "1 row" if bad.count == 1 else f"{bad.count:,} rows"
        first = "" if bad.count == 1 else "the first: "
        told = f"{entry}: {rows} of {name} cannot be used ({first}{bad.first})"
        notes.append(("data_dropped", f"{told}: left out (data.on_bad_row=drop)"))


def _read_all(sources: Sequence[SourceConfig], setting: str, data: DataConfig, notes: list[Note]) -> Iterator[DataRow]:
    """All sources of a list, one after the other; ids begin with the source's name, so that they are unique among all."""
    for index, source in enumerate(sources):
        entry, dropped, bad = f"{setting}[{index}]", Counter[str](), BadRows(drop=data.on_bad_row == "drop")
        further = () if setting == PROTECTED else data.columns  # nobody rewards what nobody samples
        for row in read_source(source, setting=entry, further=further, dropped=dropped, bad=bad):
            yield replace(row, uid=f"{source.label}/{row.uid}")
        _tell_bad(bad, entry, source.label, notes)
        for reason, count in dropped.items():
            problems = "1 problem" if count == 1 else f"{count:,} problems"
            notes.append(("data_dropped", f"{entry}: {problems} of {source.label} left out: {reason}"))


def toy_problems(config: Config) -> tuple[list[DataRow], list[DataRow]]:
    """Make the toy task of this configuration and seed as (training, held-out) rows."""
    train, heldout = (
        [
            DataRow(uid=f"{name}/{index}", problem=problem.text, answer=str(problem.answer), source=f"{name}:{index}")
            for index, problem in enumerate(problems)
        ]
        for name, problems in zip(("toy-train", "toy-heldout"), toy_task(config.toy, config.run.seed), strict=True)
    )
    return train, heldout
