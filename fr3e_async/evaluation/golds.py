"""The gold of a benchmark's row, as each benchmark writes it, and how far an answer may lie beside it. Pure text.

Knows columns by name; knows nothing of files, engines and verdicts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from fr3e_async.algorithm.answer_span import last_box
from fr3e_async.data.row import final_answer
from fr3e_async.evaluation.benchmarks import GoldKind
from fr3e_async.verify.notation import tidy
from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.shapes import shape_of
from fr3e_async.verify.units import quantity

THEOREMQA_TOLERANCE = Fraction(4, 100)  # of the gold; that of its authors' own evaluation, for floats
_OPTION = re.compile(r"\(?\s*([a-jA-J])\s*\)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """*Example*: ``Gold(text="0.25, 0.5", margins=(0.01, 0.02))``; without margins the judge alone decides."""

    text: str
    margins: tuple[float, ...] = ()  # how far each number may be off; one for all of them, or one each


def read_gold(kind: GoldKind, value: Any, row: Mapping[str, Any]) -> Gold | None:
    """The gold in the value of the answer's column; None if there is none. ``row``: units, types and errors beside it."""
    match kind:
        case "olympiadbench":
            return _olympiadbench(value, row)
        case "theoremqa":
            return _theoremqa(value, row)
    text = final_answer(_text(value)) if kind == "gsm8k" else _unboxed(_text(value))
    return Gold(text=text) if text else None


def _text(value: Any) -> str:
    """A string or number as text, also as the only entry of a list; "" for anything else."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return ""
    return str(value).strip()


def _unboxed(text: str) -> str:
    """The content of the last box of a solution; a text without one is the answer itself."""
    box = last_box(text, len(text)) if "\\boxed" in text or "\\fbox" in text else None
    return box.content.strip() if box is not None else text


def _olympiadbench(value: Any, row: Mapping[str, Any]) -> Gold | None:
    """``final_answer`` is a list; several entries are one answer of several parts. ``error`` is an absolute margin, or one for each."""
    parts = [_text(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else [_text(value)]
    text = ", ".join(part for part in parts if part)
    unit = _text(row.get("unit"))
    if not text:
        return None
    margins = tuple(float(part) for part in re.split(r"[,\s]+", _text(row.get("error"))) if _is_number(part))
    said = quantity(tidy(text), letters=True)
    if unit and len(parts) == 1 and not said.unit and written_number(said.core) is not None:
        text = f"{text.strip('$ ')} {unit.strip('$ ')}"  # so that an answer in another unit is wrong
    return Gold(text=text, margins=margins)


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


def _theoremqa(value: Any, row: Mapping[str, Any]) -> Gold | None:
    """Answers are True or False, (a) to (f), numbers, or lists of numbers in any order; floats within 4 %."""
    text = str(value).strip() if isinstance(value, bool) else _text(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) != 1:
        text = ", ".join(map(_text, value))
    kind = next((_text(row[name]) for name in ("Answer_type", "answer_type") if name in row), "")
    if not text:
        return None
    if kind == "option" and (option := _OPTION.fullmatch(text)) is not None:
        return Gold(text=f"({option[1].upper()})")
    if kind.startswith("list"):
        text = text.strip("[]() ")
    if "float" not in kind:
        return Gold(text=text)
    numbers = numbers_of(text) or []
    return Gold(text=text, margins=tuple(float(abs(number) * THEOREMQA_TOLERANCE) for number in numbers))


# --- margins -----------------------------------------------------------------------------------------------------------


def numbers_of(text: str) -> list[Fraction] | None:
    """The numbers that a text lists, units left out; None if any part of it is something else."""
    neat = tidy(text)
    shape = shape_of(neat)
    parts = [written_number(quantity(item, letters=True).core) for item in (shape.items or (neat,))]
    numbers = [part.value for part in parts if part is not None]
    return numbers if parts and len(numbers) == len(parts) else None


def within(answer: str | None, gold: str, margins: Sequence[float]) -> bool:
    """Whether an answer lists the gold's numbers, each within its margin, in the same order or by size."""
    if answer is None or not margins:
        return False
    said, meant = numbers_of(answer), numbers_of(gold)
    if said is None or meant is None or len(said) != len(meant) or len(margins) not in (1, len(meant)):
        return False
    allowed = [Fraction(margin) * (1 + Fraction(1, 10**9)) for margin in margins] * (len(meant) if len(margins) == 1 else 1)
    by_size = sorted(range(len(meant)), key=meant.__getitem__)
    straight = zip(said, meant, allowed, strict=True)
    ordered = zip(sorted(said), (meant[i] for i in by_size), (allowed[i] for i in by_size), strict=True)
    return any(all(abs(ours - theirs) <= most for ours, theirs, most in pairs) for pairs in (straight, ordered))
