r"""Quantities: a number with its unit taken off, and what two units have to do with each other, by pint.

A unit is what follows a value in ``\text{}`` or in whole known words, never a bare letter. Units that pint knows are converted exactly;
words that name what was counted (``words.COUNTED``) may be missing on one side; any other word is part of the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.signs import FUNCTIONS, UPRIGHT_UNITS
from fr3e_async.verify.tokens import Tokens, is_word
from fr3e_async.verify.words import COUNTED, CURRENCIES, PERCENT, SCALES, UNITS

PERCENT_SIGN, DEGREES = "%", "degree"
_NAME = re.compile(r"[^\W\d_]+")
_PINT = CURRENCIES | {
    "sec": "second", "secs": "second", "hrs": "hour", "hr": "hour", "mins": "minute", "cu": "cubic", "sq": "square", "mph": "mile/hour",
    "kph": "kilometer/hour", "kmph": "kilometer/hour", "lbs": "lb", "feet": "foot", "inches": "inch", "米": "meter",
    "厘米": "centimeter", "千米": "kilometer", "平方厘米": "centimeter**2", "平方米": "meter**2", "千克": "kilogram", "克": "gram", "小时": "hour", "分钟": "minute", "秒": "second",
}  # fmt: skip
_JOINTS = ("/", r"\cdot", ".")
_DROPPED = UNITS | COUNTED | {*CURRENCIES}
_ERAS = {"bce": "BC", "ce": "AD", "bc": "BC", "ad": "AD"}
_MONEY = "dollar = [dollar]|cent = dollar / 100|euro = [euro]|yen = [yen]|yuan = [yuan]|rupee = [rupee]".split("|")


@dataclass(frozen=True, slots=True)
class Quantity:
    r"""What tokens say apart from their unit. *Example*: ``12\text{ cm}`` is (("12",), "cm")."""

    core: Tokens
    unit: str = ""


def quantity(tokens: Tokens, *, bare: str = "") -> Quantity:
    """``tokens`` with the unit that they end in, or the currency that they begin with, taken off.

    ``bare``: a unit that need not be upright behind a number, since the other side has it.
    """
    if len(tokens) < 2 or written_number(tokens) is not None or (tokens[-1] == "°" and tokens[0] in FUNCTIONS):  # of an angle
        return Quantity(tokens)
    for at in range(1, len(tokens) if bare else 0):
        unit = "".join(t for t in tokens[at:] if t not in "{}")
        if (unit in UNITS or unit == bare.replace(" ", "")) and written_number(tokens[:at]) is not None:
            return Quantity(tokens[:at], unit if unit in UNITS else bare)
    tokens = (*tokens[:-1], "'" + tokens[-1]) if tokens[-2] == "°" and tokens[-1] in ("C", "F") else tokens
    if tokens[-1] in ("%", "°"):
        return Quantity(tokens[:-1], PERCENT_SIGN if tokens[-1] == "%" else DEGREES)
    if is_word(tokens[0]) and tokens[0][1:].lower() in CURRENCIES:
        inner = quantity(tokens[1:])
        return Quantity(inner.core, inner.unit or tokens[0][1:].lower())
    tokens = tokens[tokens[0] == "'第" :]
    start = _unit_start(tokens)
    start -= start < len(tokens) and tokens[start - 1] == "°"
    if start in (0, len(tokens)):
        return Quantity(tokens)
    unit = " ".join(_ERAS.get(token[1:].lower(), token[1:]) if is_word(token) else token for token in tokens[start:])
    for written, meant in ((" ^ { ", "^"), ("- ", "-"), (" }", ""), (r"\cdot", "*")):
        unit = unit.replace(written, meant)
    return Quantity(tokens[:start], PERCENT_SIGN if unit in PERCENT else unit)


def _unit_start(tokens: Tokens) -> int:
    """Where the unit at the end begins: words with their powers, and slashes and products between them. The length if there is none."""
    at = len(tokens)
    while at > 0:
        power = next((at - n for n in (4, 5) if tokens[at - n : at - n + 2] == ("^", "{") and tokens[at - 2].isdigit()), 0)
        word = is_word(tokens[at - 1]) and tokens[at - 1][1:].lower() not in SCALES
        if tokens[at - 1] == "}" and power and is_word(tokens[power - 1]):
            at = power
        elif word or (tokens[at - 1] in _JOINTS and at < len(tokens)):
            at -= 1
        else:
            break
    while tokens[at : at + 1] and tokens[at] in _JOINTS[1:]:
        at += 1
    return at


def without_a_word_for_it(unit: str) -> bool:
    """May ``unit`` be missing on one side? Nothing but units and names of what was counted may."""
    return all(word in UPRIGHT_UNITS or word in UNITS or word.lower() in _DROPPED for word in _NAME.findall(unit))


def factor_between(unit: str, other: str) -> Fraction | None:
    """By what a value in ``unit`` is multiplied to be one in ``other``, exactly; None if they measure different things, or pint knows one not."""
    ours, theirs = parsed_unit(unit), parsed_unit(other)
    if ours is None or theirs is None or ours.dimensionality != theirs.dimensionality:
        return None
    return Fraction((1 * ours).to(theirs).magnitude)


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(non_int_type=Fraction)
    registry.load_definitions(_MONEY)
    return registry


@lru_cache(maxsize=512)
def parsed_unit(unit: str) -> Any:
    """pint's unit, None if it has none of that name."""
    if not unit or len(unit) > 80 or unit == PERCENT_SIGN:
        return None
    try:
        return _registry().parse_units(_NAME.sub(_pint_name, unit))
    except MemoryError:
        raise
    except Exception:  # pint raises what its tokenizer, parser and registry raise
        return None


def _pint_name(found: re.Match[str]) -> str:
    name = found.group()
    return _PINT.get(name.lower(), name.lower() if len(name) > 3 and name.isascii() else name)
