"""Every knob as one row, read off the dataclasses of ``config``, and the two texts made of them: ``--help`` and the manual's tables.

Knows nothing of files being loaded or of values that a user gave; it only says what may be set.
``refresh`` rewrites the tables between the marker lines of a Markdown file (``fr3e config --refresh FILE``).
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fr3e_async.algorithm.strategies import REGISTRY
from fr3e_async.config import Config

WIDTH = 100  # columns of --help
PATH_COLUMNS = 38  # the longest dotted path and two blanks fit
BEGIN = "<!-- begin of the generated tables: python -m fr3e_async.help docs/configuration.md -->"
END = "<!-- end of the generated tables -->"

REGISTRIES = {"algorithm.strategy": tuple(REGISTRY)}  # settings whose words are not in their type

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting. Example: ``Knob(path="flow.max_staleness", type=int, default=1, meaning="…", unit="versions")``."""

    path: str  # dotted
    type: Any  # the annotation, resolved
    default: Any
    meaning: str
    unit: str  # empty for a plain number or text

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a ``Literal`` or a registry, else nothing."""
        if self.path in REGISTRIES:
            return REGISTRIES[self.path]
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_text(self) -> bool:
        """True for free text and for a choice of words."""
        return self.type is str or bool(self.choices)

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is list

    @property
    def is_mapping(self) -> bool:
        return get_origin(self.type) is dict

    @property
    def entry(self) -> type | None:
        """The dataclass whose instances the list holds (``data.train_sources``), or None."""
        args = get_args(self.type)
        return args[0] if self.is_list and dataclasses.is_dataclass(args[0]) else None

    @property
    def expected(self) -> str:
        """What a value must be, in words. Example: ``"one of truncate, mask, off"``."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        origin, args = get_origin(self.type), get_args(self.type)
        if self.entry is not None:
            names = [item.name for item in dataclasses.fields(self.entry)]
            return f"a list of mappings with {', '.join(names[:3])}, …"
        if origin is list:
            return f"a list of {_WORDS[args[0]]}s"
        if origin is dict:
            return "a mapping" + ("" if args[1] is Any else f" of names to {_WORDS[args[1]]}s")
        return _WORDS[self.type] if self.type is bool else f"a {_WORDS[self.type]}" if self.type is not str else "text"

    @property
    def default_text(self) -> str:
        """The default as one writes it on the command line."""
        return as_text(self.default)


def as_text(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value == "":
        return "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def changed(config: Config, origins: Mapping[str, str]) -> list[tuple[Knob, Any, str]]:
    """(knob, value, where it was said) of every setting that is not at its default."""
    rows = ((knob, functools.reduce(getattr, knob.path.split("."), config)) for knob in knobs().values())
    return [(knob, value, origins.get(knob.path, "")) for knob, value in rows if value != knob.default]


@functools.cache
def entry_knobs(path: str) -> dict[str, Knob]:
    """Name → knob of what may stand in an entry of the list at ``path``; empty for any other setting."""
    entry = knobs()[path].entry
    rows = _walk(entry, f"{path}[].") if entry is not None else ()
    return {row.path.rpartition(".")[2]: row for row in rows}


@functools.cache
def sections() -> dict[str, str]:
    """Section name → meaning, in the order of ``Config``. Settings outside of any section are not in it."""
    return {f.name: f.metadata["help"] for f in dataclasses.fields(Config) if _is_section(f.name)}


@functools.cache
def knobs() -> dict[str, Knob]:
    """Dotted path → knob, in the order of ``Config``."""
    return {knob.path: knob for knob in _walk(Config, "")}


def _is_section(name: str) -> bool:
    return dataclasses.is_dataclass(get_type_hints(Config)[name])


def _walk(cls: type, prefix: str) -> Iterator[Knob]:
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        path, kind = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast(type, kind), path + ".")
            continue
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        yield Knob(path=path, type=kind, default=default, meaning=item.metadata["help"], unit=item.metadata["unit"])


def _by_section() -> Iterator[tuple[str, str, list[Knob]]]:
    """(section, meaning, knobs); the settings outside of any section come first under an empty name.

    What an entry of a list may hold stands once, after the first such list: ``data.train_sources[].path``.
    """
    for name, meaning in {"": "settings of no section", **sections()}.items():
        rows, told = [], set[type | None]({None})
        for row in (k for k in knobs().values() if k.path.rpartition(".")[0].partition(".")[0] == name):
            rows += [row, *(entry_knobs(row.path).values() if row.entry not in told else ())]
            told.add(row.entry)
        yield name, meaning, rows


def render_help() -> str:
    """Every knob with its meaning, allowed values, unit and default, in 100 columns, by section."""
    return "\n".join(f"{_block(*section)}\n" for section in _by_section())


def render_topic(word: str) -> str:
    """The same of one section, of one setting, or of those with this last word; empty if there is none."""
    word = word.strip(".")
    parts = []
    for name, meaning, rows in _by_section():
        chosen = rows if name == word else [row for row in rows if word in (row.path, row.path.rpartition(".")[2])]
        parts += [_block(name, meaning, chosen)] if chosen and word else []
    return "\n\n".join(parts)


def _block(name: str, meaning: str, rows: Sequence[Knob]) -> str:
    lines = [f"{name}: {meaning}" if name else f"{meaning}:"]
    for row in rows:
        facts = [row.expected, *([row.unit] if row.unit else []), f"default {row.default_text}"]
        lines += textwrap.wrap(
            f"{row.meaning} [{'; '.join(facts)}]",
            width=WIDTH,
            initial_indent=f"  {row.path}".ljust(PATH_COLUMNS),
            subsequent_indent=" " * PATH_COLUMNS,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def render_tables() -> str:
    """The same rows as Markdown, one table for each section."""
    lines: list[str] = []
    for name, meaning, rows in _by_section():
        lines += [f"### `{name}`: {meaning}" if name else f"### {meaning.capitalize()}", ""]
        lines += ["| setting | default | unit | meaning | value |", "| --- | --- | --- | --- | --- |"]
        for row in rows:
            cells = (f"`{row.path}`", f"`{row.default_text}`", row.unit, row.meaning, row.expected)
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def with_fresh_tables(text: str) -> str:
    """``text`` with what stands between the marker lines made again. ValueError if a marker is missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text must hold the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n\n{render_tables()}\n{END}{tail}"


def refresh(target: Path) -> None:
    """Rewrite the tables of a Markdown file. Raises ``ValueError`` if a marker is missing."""
    target.write_text(with_fresh_tables(target.read_text(encoding="utf-8")), encoding="utf-8")
