"""The control plane's messages and state hold ids, lengths and scores: no array, no bytes, and no list of numbers by token."""

import typing
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.machine.events import Event
from fr3e_async.machine.group import Group
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import Command, TrainItem, Work
from fr3e_async.types import Anchor, RolloutBatch, RolloutSummary

COUNTED = {"Score.rows", "Rescore.lengths", "Withdraw.tasks"}  # one number for each rollout of a task, or task of a worker
SCALARS = (int, float, str, bool, NoneType)


def fields(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, localns={"Group": Group, "ClassVar": typing.ClassVar})


def held(kind: Any, path: str, seen: set[Any]) -> Iterator[str]:
    """Paths of what a type can hold that could be tokens: arrays, bytes, anything, and sequences of plain numbers."""
    args = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, UnionType):
        for arg in args:
            yield from held(arg, path, seen)
    elif kind is Any or kind in (bytes, bytearray, memoryview, np.ndarray) or origin is np.ndarray:
        yield path
    elif origin is not None:
        plain = [arg for arg in args if arg in (int, float)]
        if plain and (args[-1] is Ellipsis or origin in (list, set, frozenset)):
            yield path
        for arg in args:
            if arg is not Ellipsis:
                yield from held(arg, path, seen)
    elif isinstance(kind, type) and kind not in SCALARS and kind not in seen:
        seen.add(kind)
        if issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields"):
            for name, its in fields(kind).items():
                yield from held(its, f"{kind.__name__}.{name}", seen)


@pytest.mark.parametrize("kind", [Event, Command, Work, LedgerState, Group], ids=["events", "commands", "work", "state", "group"])
def test_no_message_and_no_state_has_room_for_tokens(kind: Any) -> None:
    assert set(held(kind, "", set())) <= COUNTED


@pytest.mark.parametrize("kind", [NDArray[np.int32], tuple[int, ...], list[float], bytes, Any, dict[str, tuple[float, ...]]])
def test_the_walk_would_find_tokens(kind: Any) -> None:
    assert list(held(kind, "here", set())) == ["here"]


def test_the_walk_goes_into_what_messages_are_made_of() -> None:
    seen: set[Any] = set()
    list(held(Event, "", seen))
    list(held(Command, "", seen))
    assert {Anchor, RolloutSummary, TrainItem, RowCost, Group} <= seen


def test_an_anchor_is_known_by_its_position_in_the_tree_alone() -> None:
    assert list(fields(Anchor)) == ["node", "parent", "trunk", "position", "score", "certain"]
    assert "anchors" not in {name for kind in typing.get_args(Work) for name in fields(kind)}, (
        "explorers read them from the object"
    )
    assert "anchors" in fields(RolloutBatch)
