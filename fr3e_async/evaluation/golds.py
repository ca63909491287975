"""The gold of a benchmark's row, as each benchmark writes it, and how far an answer may lie beside it. Pure text.

Knows columns by name; knows nothing of files, engines and verdicts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fr3e_async.algorithm.answer_span import last_box
from fr3e_async.data.row import final_answer, text_of
from fr3e_async.evaluation.benchmarks import GoldKind
from fr3e_async.verify.margins import numbers_of
from fr3e_async.verify.quantities import quantity, written_number
from fr3e_async.verify.tokens import tokenise

THEOREMQA_TOLERANCE = Fraction(4, 100)  # of the reference answer; that of its authors' own evaluation, for floats
_OPTION = re.compile(r"\(?\s*([a-jA-J])\s*\)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """*Example*: ``Gold(text="0.25, 0.5", margins=(Fraction(1, 100), Fraction(1, 50)))``; without margins the judge alone decides."""

    text: str
    margins: tuple[Fraction, ...] = ()  # how far each number may be off; one for all of them, or one each


def read_gold(kind: GoldKind, value: Any, row: Mapping[str, Any]) -> Gold | None:
    """The gold in the value of the answer's column; None if there is none. ``row``: units, types and errors beside it."""
    match kind:
        case "olympiadbench":
            return _olympiadbench(value, row)
        case "theoremqa":
            return _theoremqa(value, row)
    text = final_answer(text_of(value)) if kind == "gsm8k" else _unboxed(text_of(value))
    return Gold(text=text) if text else None


def _unboxed(text: str) -> str:
    """The content of the last box of a solution; a text without one is the answer itself."""
    box = last_box(text, len(text)) if "\\boxed" in text or "\\fbox" in text else None
    return box.content.strip() if box is not None else text


def _olympiadbench(value: Any, row: Mapping[str, Any]) -> Gold | None:
    """``final_answer`` is a list; several entries are one answer of several parts. ``error`` is an absolute margin, or one for each."""
    parts = [text_of(part) for part in (value if _is_list(value) else [value])]
    text = ", ".join(part for part in parts if part)
    unit = text_of(row.get("unit")).strip("$ ")
    if not text:
        return None
    margins = tuple(margin for part in re.split(r"[,\s]+", text_of(row.get("error"))) if (margin := _margin(part)))
    said = quantity(tokenise(text))
    if unit and len(parts) == 1 and not said.unit and written_number(said.core) is not None:
        unit = rf"\text{{ {unit}}}" if len(unit) == 1 and unit.isalpha() else unit  # 12 m might be 12 times m
        text = f"{text.strip('$ ')} {unit}"  # so that an answer in another unit is wrong
    return Gold(text=text, margins=margins)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _margin(text: str) -> Fraction | None:
    """The text as a positive number, or None."""
    try:
        number = float(text)  # which is short, whatever was written
    except ValueError:
        return None
    return Fraction(str(number)) if 0 < number < math.inf else None


def _theoremqa(value: Any, row: Mapping[str, Any]) -> Gold | None:
    """Answers are True or False, (a) to (j), numbers, or lists of numbers in any order; floats within 4 %."""
    text = str(value) if isinstance(value, bool) else text_of(value)
    if _is_list(value) and len(value) != 1:
        text = ", ".join(map(text_of, value))
    kind = next((text_of(row[name]) for name in ("Answer_type", "answer_type") if name in row), "")
    if not text:
        return None
    if kind == "option" and (option := _OPTION.fullmatch(text)) is not None:
        return Gold(text=f"({option[1].upper()})")
    if kind.startswith("list"):
        text = text.strip("[]() ")
    if "float" not in kind:
        return Gold(text=text)
    numbers = numbers_of(text) or []
    return Gold(text=text, margins=tuple(abs(number) * THEOREMQA_TOLERANCE for number in numbers))
