r"""Numbers written out: which text is one, its exact value, and how far two may differ that are rounded. Exact arithmetic only.

A number written out ("finished") is an integer, a decimal, a fraction of two integers, a mixed number, a recurring decimal or
scientific notation, with a sign. ``17\cdot 23``, ``2^{10}`` and ``\sqrt{4}`` are not: they leave the computing to the reader.
Knows nothing of units and of sympy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from fr3e_async.verify.policies import Policies

_MAX_EXPONENT = 400  # beyond any answer; keeps the arithmetic short
_MAX_CHARS = 2000

_GROUPED = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])|[0-9]+"
_DECIMAL = rf"(?:{_GROUPED})(?:\.[0-9]*)?|\.[0-9]+"
_SIGN = r"(?P<sign>[+-]?)\s*"
_INTEGER = r"[+-]?\s*[0-9]+"
_PLAIN = re.compile(rf"{_SIGN}(?P<number>{_DECIMAL})")
_SCIENTIFIC = re.compile(
    rf"{_SIGN}(?:(?P<number>{_DECIMAL})\s*(?:\\times|\\cdot|\*|\\ast)\s*)?10\s*\^\s*(?:\{{\s*(?P<braced>{_INTEGER})\s*\}}|\((?P<round>{_INTEGER})\)|(?P<bare>[0-9]))"
    rf"|(?P<esign>[+-]?)(?P<enumber>[0-9]+(?:\.[0-9]*)?)[eE](?P<eexponent>[+-]?[0-9]{{1,4}})"
)
_FRACTION = re.compile(
    rf"{_SIGN}(?:(?P<whole>[0-9]+)\s*)?\\frac\s*\{{\s*(?P<top>{_INTEGER})\s*\}}\s*\{{\s*(?P<bottom>{_INTEGER})\s*\}}"
)
_FLAT = re.compile(rf"{_SIGN}(?:(?P<whole>[0-9]+) )?(?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+)")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_RECURRING = re.compile(rf"{_SIGN}(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\(?:overline|dot|bar)\s*\{{(?P<period>[0-9]{{1,20}})\}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number and how precisely it is written. *Example*: "0.50" is 1/2 with 2 places and 2 digits."""

    value: Fraction
    places: int | None = None  # of the last digit, after the decimal point (negative: before it); None: exact
    digits: int = 0  # significant digits written, of one that is not exact
    integer: bool = False  # written with digits only (or with a point and zeros)
    scientific: bool = False

    @property
    def half_place(self) -> Fraction:
        """The largest error of a value that was rounded to this number."""
        return Fraction(1, 2) / Fraction(10) ** (self.places or 0)


def written_number(text: str) -> Number | None:
    """The number that tidy ``text`` writes out, None if it is anything else (or absurdly long)."""
    text = text.strip()
    if not text or len(text) > _MAX_CHARS:
        return None
    while text[0] == "(" and text[-1] == ")" and "(" not in text[1:] and len(text) > 2:
        text = text[1:-1].strip()
    return _plain(text) or _scientific(text) or _fraction(text) or _recurring(text)


def _signed(sign: str | None, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def _plain(text: str) -> Number | None:
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    digits = re.sub("[ ,]", "", found["number"])
    whole, _, decimals = digits.partition(".")
    value = _signed(found["sign"], _exact(whole, decimals))
    significant = len((whole + decimals).lstrip("0"))
    return Number(value=value, places=len(decimals), digits=significant, integer=not decimals.strip("0"))


def _exact(whole: str, decimals: str) -> Fraction:
    """Without the interpreter's limit on the digits of an integer."""
    number = Fraction(0)
    for start in range(0, len(whole + decimals), 4000):
        piece = (whole + decimals)[start : start + 4000]
        number = number * 10 ** len(piece) + int(piece)
    return number / 10 ** len(decimals)


def _scientific(text: str) -> Number | None:
    found = _SCIENTIFIC.fullmatch(text)
    if found is None:
        return None
    exponent = int((found["braced"] or found["round"] or found["bare"] or found["eexponent"]).replace(" ", ""))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    mantissa = _plain(found["number"] or found["enumber"] or "1")
    if mantissa is None or mantissa.places is None:
        return None
    value = _signed(found["sign"] or found["esign"], mantissa.value * Fraction(10) ** exponent)
    return Number(value=value, places=mantissa.places - exponent, digits=mantissa.digits, scientific=True)


def _fraction(text: str) -> Number | None:
    found = _FRACTION.fullmatch(text) if "\\frac" in text else _FLAT.fullmatch(text)
    if found is None:
        return None
    top, bottom = (int(found[name].replace(" ", "")) for name in ("top", "bottom"))
    if bottom == 0 or (found["whole"] and (top < 0 or bottom < 0)):
        return None
    return Number(value=_signed(found["sign"], int(found["whole"] or 0) + Fraction(top, bottom)))


def _recurring(text: str) -> Number | None:
    found = _RECURRING.fullmatch(text)
    if found is None:
        return None
    fixed, period = found["fixed"], found["period"]
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return Number(value=_signed(found["sign"], _exact(found["whole"] or "0", fixed) + tail))


ROUNDED_DIGITS = 3  # significant digits from which one decimal may stand for a longer one


def compare_numbers(said: Number, meant: Number, policies: Policies) -> tuple[str, str]:
    """(outcome, reason). Exactly equal is right; so is what rounding explains, from enough digits on.

    * A gold of at least three digits that is the answer, rounded: right (6.46 and 84/13).
    * An answer of at least ``decimal_digits`` digits that is the gold, rounded: right (0.3333 and 1/3). Three are enough for a
      gold that is a decimal, and so rounded itself (2.65 and 2.653).
    * Coarser than that, where the gold itself is rounded: unknown, for the pair does not tell how exactly was asked for.
    * One unit of the last place beside a rounded gold: unknown, for either may have been cut off or computed with rounded numbers.
    Integer golds are exact: 41.9999 is not 42.
    """
    if said.value == meant.value:
        return "right", "number"
    if meant.integer:
        return "wrong", "number"
    gap = abs(said.value - meant.value)
    if meant.places is not None and (said.places is None or said.places > meant.places) and gap <= meant.half_place:
        if meant.digits >= ROUNDED_DIGITS:
            return "right", "rounded"
        return ("unknown", "precision") if meant.scientific else ("wrong", "number")
    if meant.places is not None and meant.digits >= ROUNDED_DIGITS and gap <= 2 * meant.half_place:
        return "unknown", "precision"
    if said.places is not None and (meant.places is None or said.places < meant.places) and gap <= said.half_place:
        if said.digits >= (policies.decimal_digits if meant.places is None else min(ROUNDED_DIGITS, policies.decimal_digits)):
            return "right", "rounded"
        if meant.places is not None and said.digits >= 2:
            return "unknown", "precision"
    return "wrong", "number"


def same_with_decimal_comma(one: str, other: str) -> bool:
    """Is one text the other with a comma for the decimal point? 1,22 beside 1.22; a list would not have the same digits by chance."""
    for comma, point in ((one, other), (other, one)):
        if _DECIMAL_COMMA.fullmatch(comma) and "." in point:
            first, second = written_number(comma.replace(",", ".")), written_number(point)
            if first is not None and second is not None and first.value == second.value:
                return True
    return False
