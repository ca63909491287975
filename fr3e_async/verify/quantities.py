r"""Numbers written out, with their units: the exact value, how far two may differ that are rounded, and what two units have in common.

A number written out ("finished") is an integer, a decimal, a fraction of two integers, a mixed number, a recurring decimal, scientific
notation, or number words, with a sign and perhaps a scale word (3 million). ``17\cdot 23``, ``2^{10}`` and ``\sqrt{4}`` are not: they leave
the computing to the reader. All arithmetic is exact.

A unit is what follows a value in ``\text{}`` or in whole known words, never a bare letter. Units that pint knows are converted exactly.
Words that name what was counted (``lexicon.COUNTED``) may be missing on one side. Any other word is part of the answer. Knows nothing of sympy.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from fr3e_async.verify.lexicon import COUNTED, CURRENCIES, FUNCTIONS, NUMBERS, PERCENT, SCALES, UNITS, UPRIGHT_UNITS
from fr3e_async.verify.rulings import Policies, attempt
from fr3e_async.verify.tokens import Tokens, enclosed, is_word

_INTEGER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:\ \d{3})+|\d+)"
_NUMBER = re.compile(
    rf"""(?P<decimal>{_INTEGER}(?:\.\d+)?|\.\d+)(?:\\(?:times|cdot)10\^\{{(?P<power>[-+]?\d+)\}}|[eE](?P<e>[-+]?\d+))?
    |10\^\{{(?P<ten>[-+]?\d+)\}}  |(?P<fixed>\d+\.\d*)\\(?:overline|dot)\{{(?P<period>\d{{1,20}})\}}
    |(?P<whole>\d+)?\\frac\{{(?P<top>[-+]?{_INTEGER})\}}\{{(?P<bottom>[-+]?{_INTEGER})\}}
    |(?:(?P<units>\d+)\ )?(?P<over>[-+]?{_INTEGER})/(?P<under>[-+]?{_INTEGER})""",
    re.VERBOSE | re.ASCII,
)
_NAMES = NUMBERS | {f"{ten}{dash}{unit}": NUMBERS[ten] + NUMBERS[unit]
                    for ten in list(NUMBERS)[20:] for dash in ("", "-") for unit in list(NUMBERS)[1:10]}  # fmt: skip
_MAX_EXPONENT = 400  # beyond any answer; keeps the arithmetic short
_MAX_DIGITS = 4000
_FLOAT_DIGITS = 15  # significant digits that a float surely keeps
ROUNDED_DIGITS = 3  # significant digits from which one decimal may stand for a longer one


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number and how precisely it is written. *Example*: "0.50" is 1/2 with 2 places and 2 digits."""

    value: Fraction
    places: int | None = None  # of the last digit, after the decimal point (negative: before it); None: exact
    digits: int = 0  # significant digits written, of one that is not exact
    integer: bool = False  # written with digits only (or with a point and zeros)


def written_number(tokens: Tokens) -> Number | None:
    """The number that ``tokens`` write out, None if they are anything else (or absurdly long)."""
    while (inner := enclosed(tokens, "(", ")")) is not None:
        tokens = inner
    if not tokens or sum(map(len, tokens)) > _MAX_DIGITS:
        return None
    signed = tokens[0] in ("-", "+") and tokens[1:2] not in (("-",), ("+",), ("(",))
    if signed or (is_word(tokens[-1]) and tokens[-1][1:].lower() in SCALES):
        number = written_number(tokens[1:] if signed else tokens[:-1])
        scale = (-1 if tokens[0] == "-" else 1) if signed else SCALES[tokens[-1][1:].lower()]
        exact = not signed and number is not None and number.integer
        return number and replace(number, value=number.value * scale, places=None if exact else number.places)
    name = _NAMES.get("".join(token[1:] if is_word(token) else token for token in tokens).lower())
    if name is not None:
        return _decimal(str(name), "")
    apart = any(a[-1].isdigit() and b[0].isdigit() for a, b in pairwise(tokens))  # {1}{3} is not 13
    if apart or (found := _NUMBER.fullmatch("".join(tokens))) is None:
        return None
    part = found.groupdict("")
    if part["decimal"] or part["ten"]:
        return _decimal(part["decimal"] or "1", part["power"] or part["e"] or part["ten"])
    if part["period"]:  # 0.1\overline{6}
        decimals = part["fixed"].partition(".")[2]
        tail = Fraction(int(part["period"]), (10 ** len(part["period"]) - 1) * 10 ** len(decimals))
        return Number(value=Fraction(part["fixed"].rstrip(".")) + tail)
    sides = ("whole", "units"), ("top", "over"), ("bottom", "under")
    whole, top, bottom = (int((part[a] or part[b] or "0").replace(",", "").replace(" ", "")) for a, b in sides)
    return Number(value=whole + Fraction(top, bottom)) if bottom and (not whole or (top >= 0 and bottom > 0)) else None


def _decimal(digits: str, exponent: str) -> Number | None:
    r"""``1,234.5``, and ``1.5\times 10^{3}`` or ``1.5e3`` by its exponent."""
    whole, _, decimals = digits.replace(",", "").replace(" ", "").partition(".")
    if len(exponent) > 5 or abs(power := int(exponent or 0)) > _MAX_EXPONENT:
        return None
    value = Fraction(int(whole + decimals), 10 ** len(decimals)) * Fraction(10) ** power
    significant = len((whole + decimals).lstrip("0"))
    return Number(value=value, places=len(decimals) - power, digits=significant, integer=not exponent and not decimals.strip("0"))


def compare_numbers(said: Number, meant: Number, policies: Policies) -> tuple[str, str]:
    """(outcome, reason). Exactly equal is correct; so is what rounding explains, from enough digits on.

    * A reference of at least three digits that is the answer, rounded, or an exact answer, cut off: correct (6.46 and 84/13, 0.666 and 2/3).
    * An answer of at least ``decimal_digits`` digits that is the reference, rounded: correct (0.3333 and 1/3). Three are enough for a
      reference that is a decimal, and so rounded itself (2.65 and 2.653).
    * A reference with as many digits as a float has, and an answer that is the same to 15 digits: correct (0.3 and 0.30000000000000004).

    Integer references are exact: 41.9999 is not 42. All of these but equality are policies.
    """
    if said.value == meant.value:
        return "correct", "number"
    gap = abs(said.value - meant.value)
    our_error, their_error = (Fraction(1, 2) / Fraction(10) ** (number.places or 0) for number in (said, meant))
    if said.digits <= _FLOAT_DIGITS < meant.digits <= 17 and meant.places and gap <= abs(meant.value) / 10**_FLOAT_DIGITS:
        return "correct", "policy: a float"
    if meant.integer:
        return "wrong", "number"
    cut = said.places is None and (said.value - meant.value) * meant.value > 0 and gap < 2 * their_error
    if meant.places is not None and (said.places is None or said.places > meant.places) and (gap <= their_error or cut):
        return ("correct", "policy: rounded") if meant.digits >= ROUNDED_DIGITS else ("wrong", "number")
    if said.places is not None and (meant.places is None or said.places < meant.places) and gap <= our_error:
        least = policies.decimal_digits if meant.places is None else min(ROUNDED_DIGITS, policies.decimal_digits)
        if said.digits >= least and not (said.integer and meant.places is None):
            return "correct", "policy: rounded"
    return "wrong", "number"


# ---- Units ----

PERCENT_SIGN, DEGREES = "%", "degree"
_UNIT_NAME = re.compile(r"[^\W\d_]+")
_PINT = CURRENCIES | {
    "sec": "second", "secs": "second", "hrs": "hour", "hr": "hour", "mins": "minute", "cu": "cubic", "sq": "square", "mph": "mile/hour",
    "kph": "kilometer/hour", "kmph": "kilometer/hour", "lbs": "lb", "feet": "foot", "inches": "inch", "米": "meter",
    "厘米": "centimeter", "千米": "kilometer", "平方厘米": "centimeter**2", "平方米": "meter**2", "千克": "kilogram", "克": "gram", "小时": "hour", "分钟": "minute", "秒": "second",
}  # fmt: skip
_JOINTS = ("/", r"\cdot", ".")
_ERAS = {"bce": "BC", "ce": "AD", "bc": "BC", "ad": "AD"}
_MONEY = "dollar = [dollar]|cent = dollar / 100|euro = [euro]|yen = [yen]|yuan = [yuan]|rupee = [rupee]".split("|")


class Quantity(NamedTuple):
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
        known = unit in UNITS or (unit == bare.replace(" ", "") and without_a_word_for_it(bare))
        if known and written_number(tokens[:at]) is not None:
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
    known = UNITS | COUNTED | CURRENCIES.keys()
    return all(word in UPRIGHT_UNITS or {word, word.lower()} & known for word in _UNIT_NAME.findall(unit))


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
    return attempt(None, _registry().parse_units, _UNIT_NAME.sub(_pint_name, unit))


def _pint_name(found: re.Match[str]) -> str:
    name = found.group()
    return _PINT.get(name.lower(), name.lower() if len(name) > 3 and name.isascii() else name)
