r"""Numbers written out: which tokens are one, its exact value, and how far two may differ that are rounded. Exact arithmetic only.

A number written out ("finished") is an integer, a decimal, a fraction of two integers, a mixed number, a recurring decimal, scientific
notation, or number words, with a sign and perhaps a scale word (3 million). ``17\cdot 23``, ``2^{10}`` and ``\sqrt{4}`` are not: they leave
the computing to the reader. Knows nothing of units and of sympy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from fr3e_async.verify.policies import Policies
from fr3e_async.verify.tokens import Tokens, enclosed, is_word
from fr3e_async.verify.words import NUMBERS, SCALES

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
    """(outcome, reason). Exactly equal is right; so is what rounding explains, from enough digits on.

    * A reference of at least three digits that is the answer, rounded: right (6.46 and 84/13).
    * An answer of at least ``decimal_digits`` digits that is the reference, rounded: right (0.3333 and 1/3). Three are enough for a
      reference that is a decimal, and so rounded itself (2.65 and 2.653).
    * A reference with as many digits as a float has, and an answer that is the same to 15 digits: right (0.3 and 0.30000000000000004).

    Integer references are exact: 41.9999 is not 42. All of these but equality are policies.
    """
    if said.value == meant.value:
        return "right", "number"
    gap = abs(said.value - meant.value)
    our_error, their_error = (Fraction(1, 2) / Fraction(10) ** (number.places or 0) for number in (said, meant))
    if said.digits <= _FLOAT_DIGITS < meant.digits <= 17 and meant.places and gap <= abs(meant.value) / 10**_FLOAT_DIGITS:
        return "right", "policy: a float"
    if meant.integer:
        return "wrong", "number"
    if meant.places is not None and (said.places is None or said.places > meant.places) and gap <= their_error:
        return ("right", "policy: rounded") if meant.digits >= ROUNDED_DIGITS else ("wrong", "number")
    if said.places is not None and (meant.places is None or said.places < meant.places) and gap <= our_error:
        least = policies.decimal_digits if meant.places is None else min(ROUNDED_DIGITS, policies.decimal_digits)
        if said.digits >= least and not (said.integer and meant.places is None):
            return "right", "policy: rounded"
    return "wrong", "number"
