"""Count, drop or refuse training problems that occur twice or also occur in evaluation.

Knows rows and the policies of ``data``; how two problems are compared is ``overlap``'s.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from fr3e_async.config import DataConfig
from fr3e_async.data.overlap import Protected, Twin, duplicates
from fr3e_async.data.row import DataRow
from fr3e_async.errors import DataError

Note = tuple[Literal["note", "data_dropped"], str]  # kind of event, and one line for a person

Texts = Callable[[list[Twin], DataConfig, str], tuple[str, str]]

SHOWN = 3  # rows named in a message


def screen(
    train: Sequence[DataRow], heldout: Sequence[DataRow], protected: Sequence[DataRow], config: DataConfig
) -> tuple[tuple[DataRow, ...], tuple[Note, ...]]:
    """Return the training rows that stay, in order, and notes on what ``on_duplicate``, ``on_contamination`` and ``on_near_copy`` found.

    ``DataError`` names the first pair where a policy says error, and says so if nothing is left.
    """
    same_as_earlier = list(duplicates(train))
    left, notes = _judged(list(train), same_as_earlier, config.on_duplicate, "data.on_duplicate", _duplicate_texts, config, "")
    near = config.near_copy_words if config.on_near_copy != "off" else 0
    index = Protected((*heldout, *protected), run_length=near, min_share=config.near_copy_share)
    twins = [twin for row in left if (twin := index.find(row)) is not None]
    kinds = {id(row): "protected" for row in protected}
    for same, policy, setting, texts in (
        (True, config.on_contamination, "data.on_contamination", _contamination_texts),
        (False, config.on_near_copy, "data.on_near_copy", _near_copy_texts),
    ):
        own = [twin for twin in twins if twin.same is same]
        left, found = _judged(left, own, policy, setting, texts, config, kinds.get(id(own[0].other), "held-out") if own else "")
        notes += found
    if train and not left:
        raise DataError(f"data.train: none of {len(train)} problems is left: {'; '.join(text for _, text in notes)}")
    return tuple(left), tuple(notes)


def _judged(
    rows: list[DataRow], twins: list[Twin], policy: str, setting: str, texts: Texts, config: DataConfig, kind: str
) -> tuple[list[DataRow], list[Note]]:
    """The rows that stay by a policy, and its note. ``kind``: of the first twin's problem, held-out or protected."""
    if not twins:
        return rows, []
    refusal, told = texts(twins, config, kind)
    if policy == "error":
        raise DataError(refusal)
    if policy == "flag":
        return rows, [("note", f"{told}; see {setting}")]
    gone = {id(twin.row) for twin in twins}
    return [row for row in rows if id(row) not in gone], [("data_dropped", f"{told}: left out ({setting}=drop)")]


def _duplicate_texts(twins: list[Twin], config: DataConfig, kind: str) -> tuple[str, str]:
    """Phrase the finding twice: for policy "error" and for the others. So do the two functions below."""
    first, other_answer = twins[0], sum(twin.row.answer != twin.other.answer for twin in twins)
    disagree = f", {other_answer:,} with another answer" if other_answer else ""
    return (
        f"{first.row.source}: this problem is the same as {first.other.source}{_more(twins)}; see data.on_duplicate, data.train",
        f"{_problems(twins, 'the same as an earlier one', 'the same as earlier ones')}{disagree}: {_places(twins)}",
    )


def _contamination_texts(twins: list[Twin], config: DataConfig, kind: str) -> tuple[str, str]:
    first, where = twins[0], "in data.heldout or data.protected, too"
    settings = "data.train, data.protected" if kind == "protected" else "data.train, data.heldout"
    return (
        f"{first.other.source}: this {kind} problem is also a training problem ({first.row.source}){_more(twins)}; "
        f"see {settings}, or leave such out of training with data.on_contamination=drop",
        f"{_problems(twins, where, where)}: {_places(twins)}",
    )


def _near_copy_texts(twins: list[Twin], config: DataConfig, kind: str) -> tuple[str, str]:
    first, words = twins[0], config.near_copy_words
    share = f"shares {first.share:.0%} of its runs of {words} words with"
    return (
        f"{first.row.source}: this training problem {'holds, or is held whole in,' if first.whole else share} "
        f"the {kind} problem {first.other.source}{_more(twins)}; see data.on_near_copy, data.near_copy_share",
        f"{_problems(twins, 'a near copy', 'near copies')} of what data.heldout or data.protected holds (from "
        f"{config.near_copy_share:.0%} of the runs of {words} words on, or the whole of a shorter one): {_places(twins)}",
    )


def _problems(twins: list[Twin], one: str, many: str) -> str:
    return f"1 training problem is {one}" if len(twins) == 1 else f"{len(twins):,} training problems are {many}"


def _places(twins: list[Twin]) -> str:
    shown = ", ".join(f"{twin.row.source} (as {twin.other.source})" for twin in twins[:SHOWN])
    return shown + (f" and {len(twins) - SHOWN:,} more" if len(twins) > SHOWN else "")


def _more(twins: list[Twin]) -> str:
    return f", and {len(twins) - 1:,} more" if len(twins) > 1 else ""
