r"""Quantities: a number with its unit taken off, and whether two units agree. A table of units and a little algebra of powers.

Only units in the table are ever compared; whatever else follows a number (apples, "th", "square units") is a remark, which may
be missing or differ. Knows nothing of sympy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from fr3e_async.verify.numbers import written_number

_METRIC = {
    "": 0,
    "k": 3,
    "kilo": 3,
    "c": -2,
    "centi": -2,
    "m": -3,
    "milli": -3,
    "d": -1,
    "deci": -1,
    "M": 6,
    "mega": 6,
    "n": -9,
    "nano": -9,
    "G": 9,
}
_PREFIXED = {  # symbol or name -> (dimension, factor)
    "m": ("length", 1), "meter": ("length", 1), "metre": ("length", 1), "g": ("mass", 1), "gram": ("mass", 1), "W": ("power", 1),
    "watt": ("power", 1), "N": ("force", 1), "newton": ("force", 1), "J": ("energy", 1), "joule": ("energy", 1), "Hz": ("1/time", 1),
    "hertz": ("1/time", 1), "V": ("voltage", 1), "volt": ("voltage", 1), "L": ("volume", 1), "l": ("volume", 1), "liter": ("volume", 1),
    "litre": ("volume", 1), "Pa": ("pressure", 1), "pascal": ("pressure", 1), "eV": ("eV", 1),
}  # fmt: skip
_PLAIN: dict[str, tuple[str, Fraction]] = {
    "inch": ("length", Fraction(254, 10000)), "in": ("length", Fraction(254, 10000)), "inche": ("length", Fraction(254, 10000)),
    "foot": ("length", Fraction(3048, 10000)), "feet": ("length", Fraction(3048, 10000)), "ft": ("length", Fraction(3048, 10000)),
    "yard": ("length", Fraction(9144, 10000)), "yd": ("length", Fraction(9144, 10000)), "mile": ("length", Fraction(1609344, 1000)),
    "mi": ("length", Fraction(1609344, 1000)), "pound": ("weight", Fraction(16)), "lb": ("weight", Fraction(16)),
    "ounce": ("weight", Fraction(1)), "oz": ("weight", Fraction(1)), "ton": ("ton", Fraction(1)), "tonne": ("ton", Fraction(1)),
    "second": ("time", Fraction(1)), "sec": ("time", Fraction(1)), "s": ("time", Fraction(1)), "minute": ("time", Fraction(60)),
    "min": ("time", Fraction(60)), "hour": ("time", Fraction(3600)), "hr": ("time", Fraction(3600)), "h": ("time", Fraction(3600)),
    "ms": ("time", Fraction(1, 1000)), "day": ("time", Fraction(86400)), "week": ("time", Fraction(604800)), "month": ("month", Fraction(1)),
    "year": ("month", Fraction(12)), "dollar": ("dollar", Fraction(1)), "cent": ("dollar", Fraction(1, 100)), "euro": ("euro", Fraction(1)),
    "yuan": ("yuan", Fraction(1)), "rupee": ("rupee", Fraction(1)), "degree": ("angle", Fraction(1)), "radian": ("radian", Fraction(1)),
    "rad": ("radian", Fraction(1)), "mph": ("length/time", Fraction(1609344, 3600000)), "米": ("length", Fraction(1)),
}  # fmt: skip
TABLE: dict[str, tuple[str, Fraction]] = {
    **{
        prefix + symbol: (dimension, Fraction(factor) * Fraction(10) ** power)
        for symbol, (dimension, factor) in _PREFIXED.items()
        for prefix, power in _METRIC.items()
        if (len(symbol) > 2) == (len(prefix) > 1) or not prefix
    },
    **_PLAIN,
}
PERCENT, DEGREES = "%", "degree"

_WORDS = r"[A-Za-z\u4e00-\u9fff](?:[A-Za-z\u4e00-\u9fff./' -]*[A-Za-z\u4e00-\u9fff.])?"
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
_CHUNK = rf"\\text\s*\{{[^{{}}0-9]*\}}{_POWER}"
_UNIT = re.compile(
    rf"(?P<core>.*?[0-9a-zA-Z)}}\]!])\s*(?P<unit>\\%|\^\s*\\circ(?![a-zA-Z])(?:\s*C|\s*F)?|(?:\s*/?\s*{_CHUNK})+|\^\s*\{{\s*\\text\s*\{{\s*[a-z]+\s*\}}\s*\}})\s*"
)
_WORD_UNIT = re.compile(rf"(?P<core>[^A-Za-z]*?[0-9)}}]|.*\\frac\{{-?\d+\}}\{{\d+\}}\)?)(?P<gap>\s*)-?(?P<unit>{_WORDS}{_POWER})")
_ORDINAL = re.compile(r"\s*(?:st|nd|rd|th)\b")
_FACTOR = re.compile(rf"(?P<name>[A-Za-z米]+)(?P<power>{_POWER})")


@dataclass(frozen=True, slots=True)
class Quantity:
    r"""What a text says apart from its unit. *Example*: ``12\text{ cm}`` is ("12", "cm")."""

    core: str
    unit: str = ""


def quantity(text: str, *, letters: bool = False) -> Quantity:
    """Tidy ``text`` with its unit, if it ends in one, taken off. The unit is "%", "degree" or what was written.

    ``letters``: one letter behind a number is a unit too (12 m), which it is only where no variable can be meant.
    """
    found = _UNIT.fullmatch(text)
    if found is not None and "\\text" not in found["core"]:
        unit = found["unit"]
        if unit == r"\%":
            return Quantity(found["core"], PERCENT)
        if unit.startswith("^"):
            return Quantity(found["core"], DEGREES if re.fullmatch(r"\^\s*\\circ", unit) else "")
        return Quantity(found["core"], _spoken(unit))
    found = _WORD_UNIT.fullmatch(text)
    if found is not None and written_number(found["core"]) is not None:
        unit = found["unit"]
        known = unit in TABLE and (len(unit) > 1 or letters or "." in found["core"])
        if known or len(unit) > 2 or _ORDINAL.fullmatch(unit):
            return Quantity(found["core"], _spoken(unit))
    return Quantity(text)


def _spoken(unit: str) -> str:
    r"""A unit without its TeX. ``\text{ inches}^2`` is ``inches^2``; an ordinal's ending is nothing."""
    unit = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", unit)
    unit = re.sub(r"\s+", " ", unit.replace("{", "").replace("}", "")).strip(" .-")
    return _ORDINAL.sub("", unit).strip()


def measure(unit: str) -> tuple[str, Fraction] | None:
    """(dimension, factor to its base unit), None if the unit is not in the table. ``measure("cm^2")`` is ("length^2", 1/10000)."""
    unit = re.sub(r"\bper\b", "/", re.sub(r"\s*\^\s*", "^", unit))
    unit = re.sub(r"\bsquare (\w+)", r"\1^2", re.sub(r"\bcubic (\w+)", r"\1^3", unit))
    factor, powers = Fraction(1), dict[str, int]()
    for position, part in enumerate(unit.split("/")):
        for word in part.split():
            known = _known(word)
            if known is None:
                return None
            dimension, base, power = known
            power = -power if position else power
            factor *= base**power
            powers[dimension] = powers.get(dimension, 0) + power
    name = " ".join(f"{dimension}^{power}" for dimension, power in sorted(powers.items()) if power)
    return (name, factor) if name else None


def _known(word: str) -> tuple[str, Fraction, int] | None:
    found = _FACTOR.fullmatch(word)
    if found is None:
        return None
    name = found["name"]
    for spelling in (name, name.lower(), name.lower().removesuffix("s"), name.lower().removesuffix("es")):
        if spelling in TABLE:
            dimension, factor = TABLE[spelling]
            return dimension, factor, int(found["power"].replace("^", "") or 1)
    return None
