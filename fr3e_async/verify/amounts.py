r"""One amount against one: approximation, unit and percent settled first, then numbers written out, then expressions.

The policies against false positives live here. Gets single values, without names, lists and relations; those are ``judge``'s.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from fr3e_async.verify import symbolic, units
from fr3e_async.verify.numbers import Number, compare_numbers, written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.shapes import is_name
from fr3e_async.verify.units import DEGREES, PERCENT, Quantity, quantity

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
Ruling = tuple[str, str]
RECKONING = WRONG, "leaves the computing to the reader"

_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|doteq|sim)(?![a-zA-Z])")
_OPERATION = re.compile(r"[-+*/^!|]|\\(?:frac|sqrt|times|cdot|div|pm|mp|begin|over)(?![a-zA-Z])")
_UNEVALUATED = re.compile(r"\\(?:i*int|oint|sum|prod|lim|limsup|liminf)(?![a-zA-Z])|\\frac\s*\{\s*(?:d|\\partial)\b")
# Operators that an answer in variables may well end with (n!, \binom{n}{2}, \max(a, b)), but a constant should not.
_UNEVALUATED_CONSTANT = re.compile(
    r"\\(?:binom|tbinom|dbinom|gcd|lcm|max|min|det|bmod|pmod|mod|pod|lfloor|lceil|(?:arc)?(?:sin|cos|tan|cot|sec|csc))(?![a-zA-Z])|!|\b(?:gcd|lcm|max|min|mod)\b"
)
_CLOSED_FORM = re.compile(r"\\(?:sqrt|pi|ln|log|exp)(?![a-zA-Z])|(?<![a-zA-Z\\])e(?![a-zA-Z])")
_VARIABLE = re.compile(r"(?<![a-zA-Z\\])[a-df-hj-zA-Z](?![a-zA-Z])")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_PARAMETERS = frozenset("kmnlt")
_MODULUS = re.compile(r"(?P<residue>[0-9]{1,18})\s*\(?\s*\\(?:pmod|bmod|mod)\s*\{?\s*(?P<modulus>[0-9]{1,18})\s*\}?\s*\)?")
_BY_ZERO = re.compile(r"\\frac\s*\{[^{}]*\}\s*\{\s*0\s*\}|/\s*0(?![.\d])")
_BASE = re.compile(
    r"(?P<digits>-?[0-9A-Fa-f]+)\s*_\s*\{?\s*(?:\\text\s*\{)?\s*(?P<base>\d+|two|three|five|eight|ten)\s*\}?\s*\}?"
)


def compare_amounts(said: str, meant: str, policies: Policies) -> Ruling:
    """(outcome, reason) for two single values in tidy notation."""
    said, only_roughly = _exact_side(_residue(said))
    meant, _ = _exact_side(meant)
    ours, theirs = _quantities(said, meant)
    gold = written_number(theirs.core)
    if only_roughly and gold is not None and gold.integer:
        return WRONG, "approximate"
    if PERCENT in (ours.unit, theirs.unit) and ours.unit != theirs.unit:
        if policies.units != "ignored" and units.measure(ours.unit if theirs.unit == PERCENT else theirs.unit):
            return WRONG, "units differ"
        return _percentages(ours, theirs, policies)
    if policies.units == "ignored":
        return compare_cores(ours.core, theirs.core, policies)
    return _with_units(ours, theirs, policies)


def _exact_side(text: str) -> tuple[str, bool]:
    r"""What counts of ``a \approx b``, and whether that is all: a, or b where a is a name or missing."""
    parts = [part.strip() for part in _APPROXIMATELY.split(text)]
    if len(parts) == 1:
        return text, False
    if not parts[0] or is_name(parts[0]):
        return parts[1], not parts[0]
    return parts[0], False


def _residue(text: str) -> str:
    r"""``5 \pmod{7}`` as 5: a residue with its modulus named. ``2^{10} \mod 7`` stays, and so does ``12 \pmod{7}``."""
    found = _MODULUS.fullmatch(text)
    reduced = found is not None and int(found["residue"]) < int(found["modulus"])
    return found["residue"] if found is not None and reduced else text


def _quantities(said: str, meant: str) -> tuple[Quantity, Quantity]:
    """Both with their units taken off. A lone letter is a unit only beside a number or another unit."""
    theirs = quantity(meant)
    ours = quantity(said, letters=written_number(theirs.core) is not None)
    if ours.unit and not theirs.unit and written_number(ours.core) is not None:
        lettered = quantity(meant, letters=True)
        theirs = lettered if units.measure(lettered.unit) else theirs
    return ours, theirs


def _with_units(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    """Units of the table must agree, up to a factor; a missing or unknown one is fine."""
    for one, other in ((ours, theirs), (theirs, ours)):
        if one.unit == DEGREES and not other.unit and r"\pi" in other.core:
            return symbolic.equal(
                *(rf"\frac{{({side.core})\pi}}{{180}}" if side is one else side.core for side in (ours, theirs))
            )
    first, second = units.measure(ours.unit), units.measure(theirs.unit)
    if first is None or second is None or first == second:
        return compare_cores(ours.core, theirs.core, policies)
    said, meant = written_number(ours.core), written_number(theirs.core)
    if first[0] != second[0] or said is None or meant is None:
        return WRONG, "units differ"
    factor = first[1] / second[1]
    same = said.value * factor == meant.value
    return (RIGHT, "number") if same else (WRONG, "units differ")


def _percentages(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    r"""One side has a percent sign and the other none.

    50\% is 0.5, but an integer gold above 1 is no proportion (4200\% is not 42). With ``percent="optional"`` 42\% is also 42
    with its sign missing, except below 1 (0.5\% is not 0.5).
    """
    said, meant = written_number(ours.core), written_number(theirs.core)
    if said is None or meant is None:
        return compare_cores(ours.core, theirs.core, policies) if policies.percent == "optional" else (WRONG, "percent")
    signed = meant if theirs.unit == PERCENT else said
    rulings: list[Ruling] = [(WRONG, "percent")]
    if policies.percent == "optional" and abs(signed.value) > 1:
        rulings.append(compare_numbers(said, meant, policies))
    if theirs.unit == PERCENT:
        rulings.append(compare_numbers(said, _hundredth(meant), policies))
    elif not (meant.integer and abs(meant.value) > 1):
        rulings.append(compare_numbers(_hundredth(said), meant, policies))
    return min(rulings, key=lambda ruling: (RIGHT, UNKNOWN, WRONG).index(ruling[0]))


def _hundredth(number: Number) -> Number:
    places = None if number.places is None else number.places + 2
    return replace(number, value=number.value / 100, places=places, integer=False)


def compare_cores(said: str, meant: str, policies: Policies) -> Ruling:
    """Two values without units: exactly where both are written out, else by math-verify, after a look at what is left to compute."""
    our_base, said = _base(said)
    their_base, meant = _base(meant)
    if our_base and their_base and our_base != their_base:
        return WRONG, "number base"
    ours, theirs = written_number(said), written_number(meant)
    if theirs is not None:
        return _against_number(said, ours, theirs, meant, policies)
    if ours is not None and not ours.integer and ours.places is not None and not _VARIABLE.search(_COMMAND.sub(" ", meant)):
        exact = symbolic.decimal_value(meant)
        if exact is not None:
            return compare_numbers(ours, Number(value=exact), policies)
    if _BY_ZERO.search(said) and not _BY_ZERO.search(meant):
        return WRONG, "division by zero"
    if policies.unfinished == "wrong" and _unevaluated(said, meant):
        return RECKONING
    return symbolic.equal(_with_their_parameter(said, meant), meant)


def _with_their_parameter(said: str, meant: str) -> str:
    r"""Families of angles: ``\pi/6 + n\pi`` with the gold's k for n, where each side has one integer parameter of its own."""
    if r"\pi" not in said or r"\pi" not in meant:
        return said
    ours, theirs = (set(_VARIABLE.findall(_COMMAND.sub(" ", text))) for text in (said, meant))
    if len(ours - theirs) != 1 or len(theirs - ours) != 1 or not (ours ^ theirs) <= _PARAMETERS:
        return said
    (old,), (new,) = ours - theirs, theirs - ours
    return re.sub(rf"(?<![a-zA-Z\\]){old}(?![a-zA-Z])", new, said)


def _base(text: str) -> tuple[str, str]:
    found = _BASE.fullmatch(text)
    return (found["base"], found["digits"]) if found else ("", text)


def _against_number(said: str, ours: Number | None, theirs: Number, meant: str, policies: Policies) -> Ruling:
    """The gold is written out. So must the answer be, unless it is the closed form of a decimal that was rounded."""
    strict = policies.unfinished == "wrong"
    if ours is not None:
        fraction = ours.places is None and "." not in said
        if strict and theirs.integer and fraction and ours.value == theirs.value:
            return RECKONING
        return compare_numbers(ours, theirs, policies)
    operation = (
        _OPERATION.search(said, 1 if said[:1] in ("+", "-") else 0)
        or _CLOSED_FORM.search(said)
        or _UNEVALUATED.search(said)
        or _UNEVALUATED_CONSTANT.search(said)
    )
    if strict and operation:
        rounded = not theirs.integer and theirs.places is not None
        if not rounded or not _CLOSED_FORM.search(said) or _UNEVALUATED.search(said) or _UNEVALUATED_CONSTANT.search(said):
            return RECKONING
        return _closed_form(said, theirs, policies)
    return symbolic.equal(said, meant)


def _closed_form(said: str, theirs: Number, policies: Policies) -> Ruling:
    r"""``\frac{1+\sqrt5}{2}`` for 1.618. One that is exactly the decimal is a sum left undone: ``\sqrt{0.25}``."""
    value = symbolic.decimal_value(said)
    if value is None:
        return WRONG, "number"
    if abs(value - theirs.value) < Fraction(1, 10**18):
        return RECKONING
    return compare_numbers(Number(value=value), theirs, policies)


def _unevaluated(said: str, meant: str) -> bool:
    """Does the answer contain an operator to be carried out that the gold does without?"""
    left = set(_UNEVALUATED.findall(said)) - set(_UNEVALUATED.findall(meant))
    if not _VARIABLE.search(_COMMAND.sub(" ", meant)):
        left |= set(_UNEVALUATED_CONSTANT.findall(said)) if not _UNEVALUATED_CONSTANT.search(meant) else set()
    return bool(left)
