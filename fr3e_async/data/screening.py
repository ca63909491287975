"""What is done with training problems that occur twice or that evaluation asks: counted, left out, or the run is refused.

Knows rows and the policies of ``data``; how two problems are compared is ``overlap``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fr3e_async.config import DataConfig
from fr3e_async.data.overlap import Protected, Twin, duplicates
from fr3e_async.data.row import DataRow
from fr3e_async.errors import DataError

Note = tuple[Literal["note", "data_dropped"], str]  # kind of event, and one line for a person

SHOWN = 3  # places named in a message


def screen(
    train: Sequence[DataRow], heldout: Sequence[DataRow], protected: Sequence[DataRow], config: DataConfig
) -> tuple[tuple[DataRow, ...], tuple[Note, ...]]:
    """The training rows to continue with, in order, and what was found, by ``on_duplicate``, ``on_contamination`` and ``on_near_copy``.

    ``DataError`` names the first pair where a policy says error, and says so if nothing is left.
    """
    left, notes = _without_duplicates(list(train), config)
    near = config.near_copy_words if config.on_near_copy != "off" else 0
    index = Protected((*heldout, *protected), run_length=near, min_share=config.near_copy_share)
    twins = [twin for row in left if (twin := index.find(row)) is not None]
    kinds = {id(row): "protected" for row in protected}
    for judge, own in (
        (_without_same, [twin for twin in twins if twin.same]),
        (_without_near, [twin for twin in twins if not twin.same]),
    ):
        if own:
            left, found = judge(left, own, config, kinds.get(id(own[0].other), "held-out"))
            notes += found
    if train and not left:
        raise DataError(f"data.train: none of {len(train)} problems is left: {'; '.join(text for _, text in notes)}")
    return tuple(left), tuple(notes)


def _without_duplicates(rows: list[DataRow], config: DataConfig) -> tuple[list[DataRow], list[Note]]:
    twins = list(duplicates(rows))
    if not twins:
        return rows, []
    if config.on_duplicate == "error":
        raise DataError(
            f"{twins[0].row.source}: this problem is the same as {twins[0].other.source}{_more(twins)}; "
            "see data.on_duplicate, data.train"
        )
    other_answer = sum(twin.row.answer != twin.other.answer for twin in twins)
    disagree = f", {other_answer:,} with another answer" if other_answer else ""
    told = f"{_problems(twins, 'the same as an earlier one', 'the same as earlier ones')}{disagree}: {_places(twins)}"
    return _judged(rows, twins, told, config.on_duplicate, "data.on_duplicate")


def _without_same(rows: list[DataRow], twins: list[Twin], config: DataConfig, kind: str) -> tuple[list[DataRow], list[Note]]:
    """``kind``: of the first twin's problem, held-out or protected."""
    if config.on_contamination == "error":
        settings = "data.train, data.protected" if kind == "protected" else "data.train, data.heldout"
        raise DataError(
            f"{twins[0].other.source}: this {kind} problem is also a training problem ({twins[0].row.source}){_more(twins)}; "
            f"see {settings}, or leave such out of training with data.on_contamination=drop"
        )
    where = "in data.heldout or data.protected, too"
    return _judged(
        rows, twins, f"{_problems(twins, where, where)}: {_places(twins)}", config.on_contamination, "data.on_contamination"
    )  # fmt: skip


def _without_near(rows: list[DataRow], twins: list[Twin], config: DataConfig, kind: str) -> tuple[list[DataRow], list[Note]]:
    if config.on_near_copy == "error":
        share = f"shares {twins[0].share:.0%} of its runs of {config.near_copy_words} words with"
        raise DataError(
            f"{twins[0].row.source}: this training problem {'holds, or is held whole in,' if twins[0].whole else share} "
            f"the {kind} problem {twins[0].other.source}{_more(twins)}; see data.on_near_copy, data.near_copy_share"
        )
    told = (
        f"{_problems(twins, 'a near copy', 'near copies')} of what data.heldout or data.protected holds (from "
        f"{config.near_copy_share:.0%} of the runs of {config.near_copy_words} words on, or the whole of a shorter one): "
        f"{_places(twins)}"
    )
    return _judged(rows, twins, told, config.on_near_copy, "data.on_near_copy")


def _judged(rows: list[DataRow], twins: list[Twin], told: str, policy: str, setting: str) -> tuple[list[DataRow], list[Note]]:
    """The rows that stay by a policy that is flag or drop, and the note."""
    if policy == "flag":
        return rows, [("note", f"{told}; see {setting}")]
    gone = {id(twin.row) for twin in twins}
    return [row for row in rows if id(row) not in gone], [("data_dropped", f"{told}: left out ({setting}=drop)")]


def _problems(twins: list[Twin], one: str, many: str) -> str:
    return f"1 training problem is {one}" if len(twins) == 1 else f"{len(twins):,} training problems are {many}"


def _places(twins: list[Twin]) -> str:
    shown = ", ".join(f"{twin.row.source} (as {twin.other.source})" for twin in twins[:SHOWN])
    return shown + (f" and {len(twins) - SHOWN:,} more" if len(twins) > SHOWN else "")


def _more(twins: list[Twin]) -> str:
    return f", and {len(twins) - 1:,} more" if len(twins) > 1 else ""
