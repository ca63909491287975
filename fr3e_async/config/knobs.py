"""Define a setting: a type with its bounds, a default, a meaning and a unit; and the sentences that refuse a value.

Pydantic checks types and bounds; its complaints become one sentence each, which begins with the setting's dotted path.
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass, rebuild_dataclass
from pydantic.fields import FieldInfo

from fr3e_async.errors import ConfigError

Share = Annotated[float, Field(gt=0, le=1)]  # part of a whole; nothing is no part
Part = Annotated[float, Field(gt=0, lt=1)]
PartOr0 = Annotated[float, Field(ge=0, lt=1)]
UNITS = {"s": "s", "gib": "GiB", "mib": "MiB"}  # of settings whose last word says it: start_timeout_s

RENAMED = {  # words of a setting that were renamed; the old one works until 0.2
    "weights.transfer": {"native": "collective"},
    "algorithm.trunk": {"one_right_one_wrong": "one_correct_one_wrong"},
    "verifiers.unfinished": {"right": "correct"},
}

T = TypeVar("T")

_WORDS = {str: ("text", "texts"), int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}
_OUT_OF_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}  # pydantic's names


def knob(default: Any, meaning: str, unit: str = "") -> Any:
    """A field of a settings class with its ``--help`` text. A list or dict default is copied for each instance."""
    metadata = {"description": meaning, "json_schema_extra": {"unit": unit} if unit else None}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, meaning: str) -> Any:
    """A field that holds a settings class."""
    return field(default_factory=cls, metadata={"description": meaning})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(path: str = "") -> Callable[[type[T]], type[T]]:
    """Make a class of knobs a frozen dataclass that checks types and bounds. ``ConfigError`` names the setting, after ``path``."""

    def make(cls: type[T]) -> type[T]:
        cls._no_switch = field_validator("*", mode="before")(classmethod(_no_switch))  # type: ignore[attr-defined]
        made: Any = dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid", defer_build=True))
        build = made.__init__

        @functools.wraps(build)
        def init(self: T, **values: Any) -> None:
            if rebuild_dataclass(made):  # at the first use, since actors never need it; it puts pydantic's __init__ back
                made.__init__ = init
            try:
                build(self, **values)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                raise ConfigError(_refusal(made, path, problem["loc"], problem["type"], problem["input"])) from None

        made.__init__ = init
        return cast(type[T], made)

    return make


def _no_switch(cls: type, value: Any, info: ValidationInfo) -> Any:
    """Refuse ``true`` for a number: pydantic would take it for 1."""
    items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    if any(isinstance(item, bool) for item in items):
        kind = fields_of(cls)[str(info.field_name)].annotation
        if kind in (int, float, list[float], dict[str, float]):
            raise ValueError
    return value


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless the condition holds. The message starts with the setting's path."""
    if not condition:
        raise ConfigError(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean learner.lr?)``, or nothing if no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


class Knob(NamedTuple):
    """One setting. *Example*: ``Knob("flow.max_staleness", int, 1, "…", "versions", "at least 0")``."""

    path: str  # dotted
    type: Any  # the annotation without its bounds
    default: Any
    meaning: str
    unit: str  # empty for a plain number or text
    bounds: str  # in words; empty: none

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a ``Literal``, else nothing."""
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
        """The settings class whose instances the list holds (``data.train_sources``), or None."""
        return get_args(self.type)[0] if self.is_list and is_dataclass(get_args(self.type)[0]) else None


def fields_of(cls: Any) -> dict[str, FieldInfo]:
    """Name → field of a settings class."""
    return dict(cls.__pydantic_fields__)


def knobs_of(cls: type, prefix: str = "") -> Iterator[Knob]:
    """Every knob of a settings class and of its sections, in order; ``prefix`` stands before each path."""
    for name, item in fields_of(cls).items():
        if is_dataclass(kind := item.annotation):
            yield from knobs_of(kind, f"{prefix}{name}.")
        else:
            extra = item.json_schema_extra
            unit = str(extra["unit"]) if isinstance(extra, dict) else UNITS.get(name.rpartition("_")[2], "")
            default = item.get_default(call_default_factory=True)
            yield Knob(prefix + name, kind, default, item.description or "", unit, _bounds(item))


def _bounds(item: FieldInfo) -> str:
    """A field's bounds in words. *Example*: ``"in (0, 1]"``, ``"positive"``, ``"at least 0"``, or empty."""
    found = {name: getattr(rule, name) for rule in item.metadata for name in ("gt", "ge", "lt", "le") if hasattr(rule, name)}
    if not found:
        return ""
    low, high = found.get("gt", found.get("ge")), found.get("lt", found.get("le"))
    if high is None:
        return "positive" if found == {"gt": 0} else f"at least {low:g}"
    return f"in {'(' if 'gt' in found else '['}{low:g}, {high:g}{')' if 'lt' in found else ']'}"


def expected(kind: Any) -> str:
    """Describe the values of this type in words. *Example*: ``"one of truncate, mask, off"``."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(args)
    if get_origin(kind) is list:
        return "a list of " + (_WORDS[args[0]][1] if args[0] in _WORDS else expected(args[0]).replace("a mapping", "mappings"))
    if get_origin(kind) is dict:
        return "a mapping" if args[1] is Any else f"a mapping of names to {_WORDS[args[1]][1]}"
    if is_dataclass(kind):
        return f"a mapping with {', '.join(list(fields_of(kind))[:3])}, …"
    return "true or false" if kind is bool else _WORDS[kind][0]


def _refusal(kind: Any, path: str, loc: tuple[int | str, ...], problem: str, value: Any) -> str:
    """Pydantic's complaint as a sentence. *Example*: ``run.steps must be positive, got 0``.

    ``kind``: the settings class at ``path``; ``loc``: the way from there to the ``value`` that has the ``problem``.
    """
    bounds = ""
    for part in loc:
        if part == "[key]":
            kind = str
        elif not is_dataclass(kind):
            path, kind = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}", get_args(kind)[-1]
        elif (known := fields_of(kind)) and part not in known:
            return f"unknown setting {path}.{part}{did_you_mean(str(part), known)}".replace(" .", " ")
        else:
            path, kind, bounds = f"{path}.{part}".lstrip("."), known[str(part)].annotation, _bounds(known[str(part)])
    if problem in _OUT_OF_BOUNDS:
        return f"{path} must be {bounds}, got {value}"
    hint = did_you_mean(str(value), get_args(kind)) if get_origin(kind) is Literal else ""
    return f"{path} must be {expected(kind)}, got {value!r}{hint}{'; put it in quotes' if kind is str else ''}"
