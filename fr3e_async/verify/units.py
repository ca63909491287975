r"""Quantities: a number with its unit taken off, and what two units have to do with each other, by pint.

A unit is what follows a value in ``\text{}`` or in whole known words, never a bare letter. Units that pint knows are converted exactly;
words that name what was counted (``words.COUNTED``) may be missing on one side; any other word is part of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.tokens import Tokens, is_word
from fr3e_async.verify.words import COUNTED, CURRENCIES, PERCENT, SCALES, UNITS

PERCENT_SIGN, DEGREES = "%", "degree"
_MEASURED = frozenset(["m", "g", "s", "h", "L", "l", "N", "J", "W", "V", "K", "C", "F", "T", "H"])  # alone, only upright
_PINT = {
    "sec": "second", "secs": "second", "hrs": "hour", "hr": "hour", "mins": "minute", "cu": "cubic", "sq": "square", "mph": "mile/hour",
    "kph": "kilometer/hour", "kmph": "kilometer/hour", "lbs": "lb", "feet": "foot", "inches": "inch", "°": "degree", "米": "meter",
    "厘米": "centimeter", "千米": "kilometer", "千克": "kilogram", "克": "gram", "小时": "hour", "分钟": "minute", "秒": "second",
}  # fmt: skip
_ERAS = {"bce": "BC", "ce": "AD", "bc": "BC", "ad": "AD"}
_MONEY = (
    "dollar = [dollar]", "cent = dollar / 100", "euro = [euro]", "sterling = [sterling]", "yen = [yen]", "yuan = [yuan]", "rupee = [rupee]",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    r"""What tokens say apart from their unit. *Example*: ``12\text{ cm}`` is (("12",), "cm")."""

    core: Tokens
    unit: str = ""


def quantity(tokens: Tokens, *, bare: str = "") -> Quantity:
    """``tokens`` with the unit that they end in, or the currency that they begin with, taken off.

    ``bare``: a unit that need not be upright behind a number, since the other side has it.
    """
    if written_number(tokens) is not None:
        return Quantity(tokens)
    at = next((at for at in range(1, len(tokens)) if bare and _plain(tokens[at:]) == bare.replace(" ", "")), 0)
    if at and written_number(tokens[:at]) is not None:
        return Quantity(tokens[:at], bare)
    if len(tokens) > 1 and tokens[-1] == PERCENT_SIGN:
        return Quantity(tokens[:-1], PERCENT_SIGN)
    if len(tokens) > 1 and tokens[-1] == "°":
        return Quantity(tokens[:-1], DEGREES)
    if len(tokens) > 1 and is_word(tokens[0]) and tokens[0][1:].lower() in CURRENCIES:
        inner = quantity(tokens[1:])
        return Quantity(inner.core, inner.unit or tokens[0][1:].lower())
    if len(tokens) > 1 and tokens[0] == "'第":
        tokens = tokens[1:]
    start = _unit_start(tokens)
    if start in (0, len(tokens)):
        return Quantity(tokens)
    unit = _spoken(tokens[start:])
    return Quantity(tokens[:start], PERCENT_SIGN if unit in PERCENT else unit)


def _plain(tokens: Tokens) -> str:
    return "".join(token for token in tokens if token not in "{}")


def _unit_start(tokens: Tokens) -> int:
    """Where the unit at the end begins: words with their powers, and slashes and products between them. The length if there is none."""
    at, start = len(tokens), len(tokens)
    while at > 0:
        token = tokens[at - 1]
        if is_word(token) and token[1:].lower() not in SCALES:
            at = start = at - 1
        elif token == "}" and (opened := _power_start(tokens, at)) is not None:
            at = opened
        elif (
            token in ("/", r"\cdot", ".")
            and start < len(tokens)
            and at - 1 > 0
            and (is_word(tokens[at - 2]) or tokens[at - 2] == "}")
        ):
            at -= 1
        elif token == "/" and start < len(tokens) and at == start:
            at = start = at - 1
        else:
            break
    return start


def _power_start(tokens: Tokens, end: int) -> int | None:
    """Where ``^{-2}`` that ends at ``end`` begins, if it raises a word."""
    for length in (4, 5):
        piece = tokens[end - length : end]
        if len(piece) == length and piece[:2] == ("^", "{") and piece[-2].isdigit() and is_word(tokens[end - length - 1]):
            return end - length
    return None


def _spoken(tokens: Tokens) -> str:
    """A unit as text, ``cm^2`` or ``stuffed goats``."""
    text = " ".join(_ERAS.get(token[1:].lower(), token[1:]) if is_word(token) else token for token in tokens)
    for spaced in (" ^ { ", " ^ {"):
        text = text.replace(spaced, "^")
    return text.replace("- ", "-").replace(" }", "").replace(r"\cdot", "*").strip(" .")


def without_a_word_for_it(unit: str) -> bool:
    """May ``unit`` be missing on one side? Nothing but units and names of what was counted may."""
    words = [
        word for word in unit.replace("^", " ").replace("/", " ").replace("*", " ").split() if not word.lstrip("-").isdigit()
    ]
    return all(
        word in _MEASURED or word in UNITS or word.lower() in UNITS or word.lower() in COUNTED or word.lower() in CURRENCIES
        for word in words
    )


def factor_between(unit: str, other: str) -> Fraction | None:
    """By what a value in ``unit`` is multiplied to be one in ``other``, exactly; None if they measure different things, or pint knows one not."""
    ours, theirs = _parsed(unit), _parsed(other)
    if ours is None or theirs is None or ours.dimensionality != theirs.dimensionality:
        return None
    return Fraction((1 * ours).to(theirs).magnitude)


def base_factor(unit: str) -> Fraction:
    """By what a value in ``unit`` is multiplied to be one in base units; 1 where pint does not know it."""
    parsed = _parsed(unit)
    return Fraction(1) if parsed is None else Fraction((1 * parsed).to_base_units().magnitude)


def is_measure(unit: str) -> bool:
    """Does pint know the unit?"""
    return _parsed(unit) is not None


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(non_int_type=Fraction)
    for definition in _MONEY:
        registry.define(definition)
    return registry


@lru_cache(maxsize=512)
def _parsed(unit: str) -> Any:
    """pint's unit, None if it has none of that name."""
    if not unit or len(unit) > 80 or unit == PERCENT_SIGN:
        return None
    words = _pint_name(unit)
    try:
        return _registry().parse_units(words)
    except MemoryError:
        raise
    except Exception:  # pint raises what its tokenizer, parser and registry raise
        return None


def _pint_name(unit: str) -> str:
    """``square kilometers per hour`` as ``kilometers**2 / hour``."""
    words = unit.replace("/", " / ").replace("*", " * ").split()
    out: list[str] = []
    power = ""
    for word in words:
        name, raised, exponent = word.partition("^")
        if name.lower() in ("square", "sq", "cubic", "cu"):
            power = "**2" if name.lower() in ("square", "sq") else "**3"
            continue
        if name in ("per", "/", "*"):
            out.append("/" if name == "per" else name)
            continue
        lower = name.lower()
        name = (
            {"pound": "sterling", **CURRENCIES}.get(lower, _PINT.get(lower, name))
            if lower not in ("pound", "pounds")
            else "pound"
        )
        name = lower if len(name) > 3 and name.isascii() and name == word.partition("^")[0] else name
        out.append(f"{'* ' if out and out[-1] not in ('/', '*') else ''}{name}{f'**({exponent})' if raised else power}")
        power = ""
    return " ".join(out)
