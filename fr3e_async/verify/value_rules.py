r"""Rules about one value: units, percent, numbers, what is left to compute, algebra. Each is as ``judge`` says."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from fr3e_async.verify import symbolic
from fr3e_async.verify.numbers import Number, compare_numbers, written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import RIGHT, WRONG, Ruling, by, by_policy
from fr3e_async.verify.tokens import Tokens, is_word, render, tokenise, variable
from fr3e_async.verify.units import DEGREES, PERCENT_SIGN, Quantity, factor_between, is_measure, quantity, without_a_word_for_it


def amount(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Units agree, by pint, or are missing on one side; then the values are equal.

    >>> 12\text{ cm} ~ 12    1200\text{ cm} ~ 12\text{ m}    450\text{ cents} ~ \$4.50    9.8\ \mathrm{m\,s^{-2}} ~ 9.8\ \mathrm{m/s^2}
    >>> 12\text{ cm} !~ 12\text{ m}    5\text{ m}^2 !~ 5\text{ m}    3\text{ million} !~ 3    42x^2 !~ 42    5\text{ km south} !~ 5\text{ km north}
    """
    ours, theirs = quantity(said), quantity(meant)
    ours, theirs = quantity(said, bare=theirs.unit), quantity(meant, bare=ours.unit)
    if ours.core == said and theirs.core == meant:
        return None
    if PERCENT_SIGN in (ours.unit, theirs.unit) and ours.unit != theirs.unit:
        return _percentages(ours, theirs, policies)
    if ours.unit == theirs.unit or policies.units == "ignored":
        return by("values", ours.core, theirs.core, policies)
    if not ours.unit or not theirs.unit:
        return _unit_on_one_side(ours, theirs, policies)
    factor = factor_between(ours.unit, theirs.unit)
    if factor == 1 or (factor is None and ours.unit.lower().removesuffix("s") == theirs.unit.lower().removesuffix("s")):
        return by("values", ours.core, theirs.core, policies)
    number, reference = written_number(ours.core), written_number(theirs.core)
    equal = factor and number and reference and number.value * factor == reference.value
    return (RIGHT, "units converted") if equal else (WRONG, "units differ")


def _unit_on_one_side(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    unit = ours.unit or theirs.unit
    if unit == DEGREES and r"\pi" in (theirs.core if ours.unit else ours.core):
        turned = [(r"\frac", "{", "(", *q.core, ")", r"\pi", "}", "{", "180", "}") if q.unit else q.core for q in (ours, theirs)]
        return symbolic.equal(*turned)
    if not without_a_word_for_it(unit):
        return WRONG, "unproven: words that are no unit"
    return by_policy("unit not named", by("values", ours.core, theirs.core, policies))


def _percentages(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    r"""One side has a percent sign and the other none.

    50\% is 0.5, but an integer reference above 1 is no proportion (4200\% is not 42). With ``percent="optional"`` an answer may leave out
    the reference's sign: 42 is 42\%, except below 1. It may not add one: that would say another number.
    """
    signed, other = (theirs, ours) if theirs.unit == PERCENT_SIGN else (ours, theirs)
    if other.unit and (is_measure(other.unit) or not without_a_word_for_it(other.unit)):
        return WRONG, "units differ"
    said, meant = written_number(ours.core), written_number(theirs.core)
    if said and meant:
        hundredth = [_hundredth(number) if q is signed else number for number, q in ((said, ours), (meant, theirs))]
        proportion = signed is theirs or not meant.integer or abs(meant.value) <= 1
        if proportion and (ruling := compare_numbers(*hundredth, policies))[0] == RIGHT:
            return ruling
    if policies.percent == "exact" or signed is ours or (meant and abs(meant.value) <= 1):
        return WRONG, "percent"
    return by_policy("percent sign", by("values", ours.core, theirs.core, policies))


def _hundredth(number: Number) -> Number:
    return replace(number, value=number.value / 100, places=None if number.places is None else number.places + 2, integer=False)


def numbers(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Both are written out: equal exactly, or by what rounding explains (``compare_numbers``).

    >>> 1.5\times 10^{3} ~ 1500    3\frac{1}{2} ~ 3.5    \frac24 ~ 0.5    7.03125 ~ 7.03    41.9999 !~ 42    10^{-8} !~ 0    \frac{34}{2} !~ 17
    """
    ours, theirs = written_number(said), written_number(meant)
    if ours is None or theirs is None:
        return None
    fraction = ours.places is None and ours.value == theirs.value and theirs.integer and not any("." in token for token in said)
    if policies.unfinished == "wrong" and fraction and not any(map(is_word, said)):
        return RECKONING
    return compare_numbers(ours, theirs, policies)


RECKONING = WRONG, "leaves the computing to the reader"
_CLOSED = frozenset([r"\sqrt", r"\pi", r"\ln", r"\log", r"\exp", "e", r"\lg"])
_UNEVALUATED = frozenset([r"\int", r"\sum", r"\prod", r"\lim", r"\partial"])
_DERIVATIVE = r"\frac{d}{d"
# Operators that an answer in variables may well end with, but a constant should not.
_UNEVALUATED_CONSTANT = _UNEVALUATED | frozenset(
    r"\binom \gcd \lcm \max \min \pmod \lfloor \lceil ! \sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan".split()
)
_COMPUTES = _CLOSED | _UNEVALUATED_CONSTANT | {"+", "/", "^", r"\cdot", r"\times", r"\frac", r"\div", "("}


def unfinished(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""An answer that leaves computing to the reader, where the reference does without (policy ``unfinished``).

    >>> \frac{1+\sqrt5}{2} ~ 1.618    4^{50} ~ 2^{100}    17\cdot 23 !~ 391    \sqrt{4} !~ 2    \sum_{k=1}^n k !~ \frac{n(n+1)}{2}
    """
    theirs, signs = written_number(meant), set(said)
    if policies.unfinished == "right" or (theirs and _has_variables(said) and not signs & _UNEVALUATED):
        return None
    if theirs and written_number(said) is None:
        closed = signs & _CLOSED and not signs & _UNEVALUATED_CONSTANT and not theirs.integer and theirs.places is not None
        return RECKONING if not closed and (signs & _COMPUTES or "-" in said[1:]) else None
    left = (signs - set(meant)) & _UNEVALUATED
    if not _has_variables(meant) and not set(meant) & _UNEVALUATED_CONSTANT:
        left |= signs & _UNEVALUATED_CONSTANT
    return RECKONING if left or (_DERIVATIVE in "".join(said) and _DERIVATIVE not in "".join(meant)) else None


def _has_variables(tokens: Tokens) -> bool:
    return any(variable(token) and token not in "ei" for token in tokens)


def decimals(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""A decimal for a closed form, from ``decimal_digits`` digits on; a closed form for a decimal that it rounds to.

    >>> 3.142 ~ \pi    0.3010 ~ \lg 2    \frac{1+\sqrt5}{2} ~ 1.618    \sqrt5 ~ 2.23606797749979    3.14 !~ \pi    \frac{22}{7} !~ \pi    1.2677\times10^{30} !~ 2^{100}
    """
    ours, theirs = written_number(said), written_number(meant)
    exact = symbolic.decimal_value(meant if theirs is None else said) if (ours is None) is not (theirs is None) else None
    written = ours or theirs
    if exact is None or written is None or written.places is None:
        return None
    if written is ours:  # equal exactly or not at all
        return None if exact.denominator == 1 or exact == ours.value else compare_numbers(ours, Number(value=exact), policies)
    if policies.unfinished == "wrong" and not written.integer and abs(exact - written.value) <= abs(exact) / Fraction(10**30):
        return RECKONING
    return None if written.integer else compare_numbers(Number(value=exact), written, policies)


_COUNTS = re.compile(r"([CAP])(?:_\{(\d+)\}\^\{(\d+)\}|\^\{(\d+)\}_\{(\d+)\})|C\((\d+),(\d+)\)")


def counting(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``C_5^2`` and ``C(5,2)`` are binomials, ``A_5^2`` and ``P_5^2`` count arrangements.

    >>> 10 ~ C_5^2    \binom{5}{2} ~ C_5^2    20 ~ A_5^2    10 ~ C(5,2)    11 !~ C_5^2
    """
    texts = [render(side) for side in (said, meant)]
    return (
        symbolic.equal(*(tokenise(_COUNTS.sub(_binomial, text)) for text in texts)) if any(map(_COUNTS.search, texts)) else None
    )


def _binomial(found: re.Match[str]) -> str:
    n, k = found[2] or found[5] or found[6], found[3] or found[4] or found[7]
    return rf"\binom{{{n}}}{{{k}}}" + (f"({k}!)" if found[1] in ("A", "P") else "")


def algebra(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Both are read as a whole, and are equal by ``symbolic``.

    >>> (1-x)(1+x) ~ 1-x^2    2\pi r ~ 2*pi*r    3x^2 !~ 3    6xyz !~ 6abc    \frac{1}{2024!} !~ \frac{1}{2023!}    f(x) !~ f'(x)
    """
    return symbolic.equal(said, meant)
