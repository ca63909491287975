"""Every knob as one row, read off the dataclasses of ``config``, and the two texts made of them: ``--help`` and the manual's tables.

Knows nothing of files being loaded or of values that a user gave; it only says what may be set.
``refresh`` rewrites the tables between the marker lines of a Markdown file (``fr3e config --refresh FILE``).
"""

import functools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from fr3e_async.algorithm.strategies import REGISTRY
from fr3e_async.config import Config
from fr3e_async.config.knobs import Knob, expected, fields_of, knobs_of

WIDTH = 100  # columns of --help
PATH_COLUMNS = 38  # the longest dotted path and two blanks fit
BEGIN = "<!-- begin of the generated tables: python -m fr3e_async.help docs/configuration.md -->"
END = "<!-- end of the generated tables -->"


def as_text(value: Any) -> str:
    """Write a value as on the command line."""
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
    return {row.path.rpartition(".")[2]: row for row in knobs_of(entry, f"{path}[].")} if entry is not None else {}


@functools.cache
def sections() -> dict[str, str]:
    """Section name → meaning, in the order of ``Config``. Settings outside of any section are not in it."""
    return {name: item.description or "" for name, item in fields_of(Config).items() if is_dataclass(item.annotation)}


@functools.cache
def knobs() -> dict[str, Knob]:
    """Dotted path → knob, in the order of ``Config``."""
    rows = {knob.path: knob for knob in knobs_of(Config)}
    strategies = Literal[tuple(REGISTRY)]  # type: ignore[valid-type]  # a registry's words are not in the setting's type
    rows["algorithm.strategy"] = rows["algorithm.strategy"]._replace(type=strategies)
    return rows


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
    """Help for one section, one setting, or all settings with this last word; "" if there is none."""
    word = word.strip(".")
    parts = []
    for name, meaning, rows in _by_section():
        chosen = rows if name == word else [row for row in rows if word in (row.path, row.path.rpartition(".")[2])]
        parts += [_block(name, meaning, chosen)] if chosen and word else []
    return "\n\n".join(parts)


def _value(row: Knob) -> str:
    """Describe the allowed values. *Example*: ``"a number, in (0, 1]"``."""
    return ", ".join(filter(None, (expected(row.type), row.bounds)))


def _block(name: str, meaning: str, rows: Sequence[Knob]) -> str:
    lines = [f"{name}: {meaning}" if name else f"{meaning}:"]
    for row in rows:
        facts = [_value(row), *([row.unit] if row.unit else []), f"default {as_text(row.default)}"]
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
    """Render the settings as Markdown, one table for each section."""
    lines: list[str] = []
    for name, meaning, rows in _by_section():
        lines += [f"### `{name}`: {meaning}" if name else f"### {meaning.capitalize()}", ""]
        lines += ["| setting | default | unit | meaning | value |", "| --- | --- | --- | --- | --- |"]
        for row in rows:
            cells = (f"`{row.path}`", f"`{as_text(row.default)}`", row.unit, row.meaning, _value(row))
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


def schema() -> dict[str, Any]:
    """JSON Schema of a file of settings, by which editors complete and check YAML."""
    made = TypeAdapter(Config).json_schema()
    names = {"type": "array", "items": {"type": "string"}}
    base = {"description": "file, or files, that this one is laid over", "anyOf": [{"type": "string"}, names]}
    made["properties"]["base"] = base
    made["patternProperties"] = {r"^\w+\.": {}}  # dotted keys, as run.dir
    made["$defs"]["AlgorithmConfig"]["properties"]["strategy"]["enum"] = list(REGISTRY)
    return made


def refresh(target: Path) -> None:
    """Write the JSON Schema to a .json file, or rewrite the tables of a Markdown file; ``ValueError`` if it lacks a marker."""
    if target.suffix == ".json":
        target.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        target.write_text(with_fresh_tables(target.read_text(encoding="utf-8")), encoding="utf-8")
