r"""Numbers written out: which tokens are one, its exact value, and how far two may differ that are rounded. Exact arithmetic only.

A number written out ("finished") is an integer, a decimal, a fraction of two integers, a mixed number, a recurring decimal, scientific
notation, or number words, with a sign and perhaps a scale word (3 million). ``17\cdot 23``, ``2^{10}`` and ``\sqrt{4}`` are not: they leave
the computing to the reader. Knows nothing of units and of sympy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from fr3e_async.verify.policies import Policies
from fr3e_async.verify.tokens import SPACE, Tokens, enclosed, is_digits, is_word
from fr3e_async.verify.words import NUMBERS, SCALES

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
    scientific: bool = False

    @property
    def half_place(self) -> Fraction:
        """The largest error of a value that was rounded to this number."""
        return Fraction(1, 2) / Fraction(10) ** (self.places or 0)


def written_number(tokens: Tokens) -> Number | None:
    """The number that ``tokens`` write out, None if they are anything else (or absurdly long)."""
    while (inner := enclosed(tokens, "(", ")")) is not None:
        tokens = inner
    if not tokens or sum(map(len, tokens)) > _MAX_DIGITS:
        return None
    if tokens[0] in ("-", "+"):
        number = _unsigned(tokens[1:])
        return number and replace(number, value=-number.value if tokens[0] == "-" else number.value)
    return _unsigned(tokens)


def _unsigned(tokens: Tokens) -> Number | None:
    if len(tokens) > 1 and is_word(tokens[-1]) and (scale := SCALES.get(tokens[-1][1:].lower())):
        number = written_number(tokens[:-1])
        return number and replace(number, value=number.value * scale, places=None if number.integer else number.places)
    return _plain(tokens) or _scientific(tokens) or _fraction(tokens) or _recurring(tokens) or _worded(tokens)


def _plain(tokens: Tokens) -> Number | None:
    """Digits, perhaps grouped by commas or spaces in threes: ``1,234,567.8``."""
    if not tokens or not is_digits(tokens[0]):
        return None
    groups, separators = tokens[::2], set(tokens[1::2])
    if len(tokens) > 1:
        *middle, last = groups[1:] if len(groups) > 1 else [""]
        whole = separators in ({","}, {SPACE}) and len(tokens) % 2 == 1
        if not whole or not (tokens[0].isdigit() and len(tokens[0]) <= 3 and tokens[0][0] != "0"):
            return None
        if not all(len(group) == 3 and group.isdigit() for group in (*middle, last.partition(".")[0])):
            return None
    return _decimal("".join(groups))


def _decimal(text: str) -> Number | None:
    whole, _, decimals = text.partition(".")
    if not (whole + decimals).isdigit():
        return None
    value = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
    significant = len((whole + decimals).lstrip("0"))
    return Number(value=value, places=len(decimals), digits=significant, integer=not decimals.strip("0"))


def _scientific(tokens: Tokens) -> Number | None:
    r"""``1.5\times 10^{3}``, ``10^{-3}`` and ``1.5e3``."""
    exponent = _exponent_of_ten(tokens)
    mantissa, rest = _decimal("1"), tokens
    if exponent is None:
        head = next((at for at, token in enumerate(tokens) if token in (r"\times", r"\cdot", "e", "E")), 0)
        mantissa, rest = (_plain(tokens[:head]) if head else None), tokens[head + 1 :]
        if mantissa is None:
            return None
        exponent = _integer(rest) if tokens[head] in ("e", "E") else _exponent_of_ten(rest)
    if exponent is None or mantissa is None or mantissa.places is None or abs(exponent) > _MAX_EXPONENT:
        return None
    value = mantissa.value * Fraction(10) ** exponent
    return Number(value=value, places=mantissa.places - exponent, digits=mantissa.digits, scientific=True)


def _exponent_of_ten(tokens: Tokens) -> int | None:
    return _integer(tokens[3:-1]) if tokens[:3] == ("10", "^", "{") and tokens[-1] == "}" else None


def _integer(tokens: Tokens) -> int | None:
    sign, digits = (tokens[0], tokens[1:]) if tokens[:1] in (("-",), ("+",)) else ("", tokens)
    if len(digits) != 1 or not digits[0].isdigit() or len(digits[0]) > 4300:
        return None
    return -int(digits[0]) if sign == "-" else int(digits[0])


def _fraction(tokens: Tokens) -> Number | None:
    r"""``\frac{3}{4}``, ``3/4``, ``1\frac{3}{4}`` and ``1 3/4``."""
    whole, rest = 0, tokens
    if len(tokens) > 3 and tokens[0].isdigit() and tokens[1] in (SPACE, r"\frac"):
        whole, rest = int(tokens[0]), tokens[2:] if tokens[1] == SPACE else tokens[1:]
        if tokens[1] == SPACE and "/" not in rest:
            return None
    if rest[:2] == (r"\frac", "{") and rest[-1] == "}" and rest.count("}") == 2:
        middle = rest.index("}")
        top, bottom = _grouped(rest[2:middle]), _grouped(rest[middle + 2 : -1])
    elif rest.count("/") == 1:
        middle = rest.index("/")
        top, bottom = _grouped(rest[:middle]), _grouped(rest[middle + 1 :])
    else:
        return None
    if top is None or not bottom or (rest is not tokens and (top < 0 or bottom < 0)):
        return None
    return Number(value=whole + Fraction(top, bottom))


def _grouped(tokens: Tokens) -> int | None:
    number = _plain(tokens)
    return int(number.value) if number is not None and number.places == 0 else _integer(tokens)


def _recurring(tokens: Tokens) -> Number | None:
    r"""``0.1\overline{6}``."""
    if len(tokens) < 5 or tokens[-4] not in (r"\overline", r"\dot") or not tokens[-2].isdigit() or len(tokens[-2]) > 20:
        return None
    before = tokens[:-4]
    fixed = before[0] if len(before) == 1 else before[0] + "." if before[1:] == (".",) else ""
    whole, point, decimals = fixed.partition(".")
    if not point or not whole.isdigit() or not (decimals or "0").isdigit():
        return None
    period = tokens[-2]
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))
    return Number(value=Fraction(int(whole + decimals), 10 ** len(decimals)) + tail)


def _worded(tokens: Tokens) -> Number | None:
    """ "seven", "twenty one"."""
    if not 1 <= len(tokens) <= 3 or not all(is_word(token) or token == "-" for token in tokens):
        return None
    values = [NUMBERS.get(token[1:].lower(), -1) for token in tokens if is_word(token)]
    if min(values) < 0 or (len(values) == 2 and not (values[0] >= 20 and 0 < values[1] < 10)) or len(values) > 2:
        return None
    return Number(value=Fraction(sum(values)), places=0, digits=len(str(sum(values))), integer=True)


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
    if meant.digits > _FLOAT_DIGITS and meant.places and gap <= abs(meant.value) / 10**_FLOAT_DIGITS:
        return "right", "policy: a float"
    if meant.integer:
        return "wrong", "number"
    if meant.places is not None and (said.places is None or said.places > meant.places) and gap <= meant.half_place:
        return ("right", "policy: rounded") if meant.digits >= ROUNDED_DIGITS else ("wrong", "number")
    if said.places is not None and (meant.places is None or said.places < meant.places) and gap <= said.half_place:
        least = policies.decimal_digits if meant.places is None else min(ROUNDED_DIGITS, policies.decimal_digits)
        if said.digits >= least and not (said.integer and meant.places is None):
            return "right", "policy: rounded"
    return "wrong", "number"
