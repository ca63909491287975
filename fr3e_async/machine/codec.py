"""Messages and books as JSON and back, by their type annotations: for the journal and for checkpoints. Pure.

A dataclass becomes a list of its fields in order (short lines: a journal holds millions of them), a mapping a list of pairs,
an enum its value. A prompt becomes its id, because its text lies in the dataset; whoever decodes says where to find it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from enum import Enum
from typing import Any

import numpy as np

from fr3e_async.types import Prompt

Json = Any
PromptOf = Callable[[str], Prompt]
PLAIN = (str, int, float, bool, type(None))


def encode(value: Any) -> Json:
    """``TypeError`` for what has no form here."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Prompt):
        return value.uid
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [encode(getattr(value, name)) for name in _fields(type(value))]
    if isinstance(value, Mapping):
        return [[encode(key), encode(item)] for key, item in value.items()]
    if isinstance(value, Set):
        return sorted(encode(item) for item in value)
    if isinstance(value, Sequence):
        return [encode(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode(kind: Any, data: Json, prompt_of: PromptOf) -> Any:
    """The value of type ``kind`` that ``encode`` made ``data`` of."""
    return _decoder(kind)(data, prompt_of)


def nameless(uid: str) -> Prompt:
    """A prompt of which only the id is known: the control plane looks at nothing else."""
    return Prompt(uid=uid, text="", gold="", token_ids=np.zeros(1, dtype=np.int32))


@functools.cache
def _fields(cls: type) -> tuple[str, ...]:
    """Fields that are kept: those that are not marked ``metadata={"kept": False}``."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("kept", True))


@functools.cache
def _decoder(kind: Any) -> Callable[[Json, PromptOf], Any]:
    """Built once for each type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Prompt:
        return lambda data, prompt_of: prompt_of(data)
    if origin in (types.UnionType, typing.Union):
        return _optional(kind, args)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda data, _: kind(data)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    if origin is tuple:
        return _tuple(args)
    if origin in (list, set, frozenset):
        item, make = _decoder(args[0]), origin
        return lambda data, prompt_of: make(item(x, prompt_of) for x in data)
    if origin in (dict, Mapping):
        key, item = _decoder(args[0]), _decoder(args[1])
        return lambda data, prompt_of: {key(k, prompt_of): item(v, prompt_of) for k, v in data}
    if kind in PLAIN:  # as it was: a whole number that stands where a float may is no float afterwards
        return lambda data, _: data
    raise TypeError(f"{kind} has no JSON form")


def _optional(kind: Any, args: tuple[Any, ...]) -> Callable[[Json, PromptOf], Any]:
    present = [arg for arg in args if arg is not type(None)]
    if len(present) != 1 or len(args) != 2:
        raise TypeError(f"{kind}: only T | None has a JSON form")
    inner = _decoder(present[0])
    return lambda data, prompt_of: None if data is None else inner(data, prompt_of)


def _named_tuple(kind: Any) -> Callable[[Json, PromptOf], Any]:
    hints = typing.get_type_hints(kind)
    items = [_decoder(hints[name]) for name in kind._fields]
    return lambda data, prompt_of: kind(*(item(x, prompt_of) for item, x in zip(items, data, strict=True)))


def _dataclass(kind: Any) -> Callable[[Json, PromptOf], Any]:
    hints = typing.get_type_hints(kind)
    items = [(name, _decoder(hints[name])) for name in _fields(kind)]

    def build(data: Json, prompt_of: PromptOf) -> Any:
        return kind(**{name: item(x, prompt_of) for (name, item), x in zip(items, data, strict=True)})

    return build


def _tuple(args: tuple[Any, ...]) -> Callable[[Json, PromptOf], Any]:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _decoder(args[0])
        return lambda data, prompt_of: tuple(item(x, prompt_of) for x in data)
    items = [_decoder(arg) for arg in args]
    return lambda data, prompt_of: tuple(item(x, prompt_of) for item, x in zip(items, data, strict=True))
