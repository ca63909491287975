r"""Rules about one value: units, percent, numbers, what is left to compute, algebra. Each is as ``judge`` says."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from fr3e_async.verify import symbolic
from fr3e_async.verify.numbers import Number, compare_numbers, written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import (
    RIGHT,
    WRONG,
    Ruling,
    by,
)
from fr3e_async.verify.tokens import Tokens, is_word
from fr3e_async.verify.units import DEGREES, PERCENT_SIGN, Quantity, factor_between, is_measure, quantity, without_a_word_for_it


def amount(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Units agree, by pint, or are missing on one side; then the values are equal.

    >>> 12\text{ cm} ~ 12    1200\text{ cm} ~ 12\text{ m}    450\text{ cents} ~ \$4.50    9.8\ \mathrm{m\,s^{-2}} ~ 9.8\ \mathrm{m/s^2}
    >>> 12\text{ cm} !~ 12\text{ m}    5\text{ m}^2 !~ 5\text{ m}    3\text{ million} !~ 3    42x^2 !~ 42    5\text{ km south} !~ 5\text{ km north}
    """
    ours, theirs = quantity(said), quantity(meant)
    ours, theirs = quantity(said, bare=theirs.unit), quantity(meant, bare=ours.unit)
    if not ours.unit and not theirs.unit and ours.core == said and theirs.core == meant:
        return None
    if PERCENT_SIGN in (ours.unit, theirs.unit) and ours.unit != theirs.unit:
        return _percentages(ours, theirs, policies)
    if ours.unit == theirs.unit or policies.units == "ignored":
        return by("values", ours.core, theirs.core, policies)
    if not ours.unit or not theirs.unit:
        return _unit_on_one_side(ours, theirs, policies)
    factor = factor_between(ours.unit, theirs.unit)
    if factor is None:
        same = ours.unit.lower().removesuffix("s") == theirs.unit.lower().removesuffix("s")
        return by("values", ours.core, theirs.core, policies) if same else (WRONG, "units differ")
    if factor == 1:
        return by("values", ours.core, theirs.core, policies)
    number, reference = written_number(ours.core), written_number(theirs.core)
    same = number is not None and reference is not None and number.value * factor == reference.value
    return (RIGHT, "units converted") if same else (WRONG, "units differ")


def _unit_on_one_side(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    unit = ours.unit or theirs.unit
    if unit == DEGREES and r"\pi" in (theirs.core if ours.unit else ours.core):
        turned = [(r"\frac", "{", "(", *q.core, ")", r"\pi", "}", "{", "180", "}") if q.unit else q.core for q in (ours, theirs)]
        return symbolic.equal(*turned)
    if not without_a_word_for_it(unit):
        return WRONG, "unproven: words that are no unit"
    outcome, reason = by("values", ours.core, theirs.core, policies)
    return outcome, "policy: unit not named" if outcome == RIGHT else reason


def _percentages(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    r"""One side has a percent sign and the other none.

    50\% is 0.5, but an integer reference above 1 is no proportion (4200\% is not 42). With ``percent="optional"`` an answer may leave out
    the reference's sign: 42 is 42\%, except below 1. It may not add one: that would say another number.
    """
    other = theirs if ours.unit == PERCENT_SIGN else ours
    if other.unit and (is_measure(other.unit) or not without_a_word_for_it(other.unit)):
        return WRONG, "units differ"
    said, meant = written_number(ours.core), written_number(theirs.core)
    if said is None or meant is None:
        if policies.percent != "optional" or theirs.unit != PERCENT_SIGN:
            return WRONG, "percent"
        outcome, reason = by("values", ours.core, theirs.core, policies)
        return outcome, "policy: percent sign" if outcome == RIGHT else reason
    if theirs.unit == PERCENT_SIGN:
        proportion = compare_numbers(said, _hundredth(meant), policies)
    else:
        proportion = (
            compare_numbers(_hundredth(said), meant, policies)
            if not meant.integer or abs(meant.value) <= 1
            else (WRONG, "percent")
        )
    if proportion[0] == RIGHT:
        return proportion
    if (
        policies.percent == "optional"
        and theirs.unit == PERCENT_SIGN
        and abs(meant.value) > 1
        and compare_numbers(said, meant, policies)[0] == RIGHT
    ):
        return RIGHT, "policy: percent sign"
    return WRONG, "percent"


def _hundredth(number: Number) -> Number:
    places = None if number.places is None else number.places + 2
    return replace(number, value=number.value / 100, places=places, integer=False)


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


def unfinished(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""An answer that leaves computing to the reader, where the reference does without (policy ``unfinished``).

    >>> \frac{1+\sqrt5}{2} ~ 1.618    4^{50} ~ 2^{100}    17\cdot 23 !~ 391    \sqrt{4} !~ 2    \sum_{k=1}^n k !~ \frac{n(n+1)}{2}
    """
    theirs = written_number(meant)
    signs = set(said)
    if policies.unfinished == "right" or (theirs is not None and _has_variables(said) and not signs & _UNEVALUATED):
        return None
    if theirs is not None and written_number(said) is None:
        rounded = not theirs.integer and theirs.places is not None
        if not rounded or not signs & _CLOSED or signs & _UNEVALUATED_CONSTANT:
            computes = signs & (
                _CLOSED | _UNEVALUATED_CONSTANT | {"+", "-", "/", "^", r"\cdot", r"\times", r"\frac", r"\div", "("}
            )
            return RECKONING if computes - ({"-"} if said[0] == "-" and "-" not in said[1:] else set()) else None
        return None
    left = (signs - set(meant)) & _UNEVALUATED
    if _DERIVATIVE in "".join(said) and _DERIVATIVE not in "".join(meant):
        return RECKONING
    if not _has_variables(meant) and not set(meant) & _UNEVALUATED_CONSTANT:
        left |= signs & _UNEVALUATED_CONSTANT
    return RECKONING if left else None


def _has_variables(tokens: Tokens) -> bool:
    return any(len(t) == 1 and t.isalpha() and t not in "ei" for t in tokens)


def decimals(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""A decimal for a closed form, from ``decimal_digits`` digits on; a closed form for a decimal that it rounds to.

    >>> 3.142 ~ \pi    0.3010 ~ \lg 2    \frac{1+\sqrt5}{2} ~ 1.618    \sqrt5 ~ 2.23606797749979    3.14 !~ \pi    \frac{22}{7} !~ \pi    1.2677\times10^{30} !~ 2^{100}
    """
    ours, theirs = written_number(said), written_number(meant)
    if (ours is None) == (theirs is None):
        return None
    exact = symbolic.decimal_value(meant if theirs is None else said)
    if exact is None:
        return None
    if theirs is None and ours is not None:
        if ours.places is None or exact.denominator == 1 or exact == ours.value:
            return None  # equal exactly or not at all
        return compare_numbers(ours, Number(value=exact), policies)
    assert theirs is not None
    if theirs.integer or theirs.places is None:
        return None
    if policies.unfinished == "wrong" and abs(exact - theirs.value) <= abs(exact) / Fraction(10**30):
        return RECKONING
    return compare_numbers(Number(value=exact), theirs, policies)


def counting(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``C_5^2`` and ``C(5,2)`` are binomials, ``A_5^2`` and ``P_5^2`` count arrangements.

    >>> 10 ~ C_5^2    \binom{5}{2} ~ C_5^2    20 ~ A_5^2    10 ~ C(5,2)    11 !~ C_5^2
    """
    ours, theirs = _counted(said), _counted(meant)
    return None if (ours, theirs) == (said, meant) else symbolic.equal(ours, theirs)


def _counted(tokens: Tokens) -> Tokens:
    out: list[str] = []
    at = 0
    while at < len(tokens):
        piece = tokens[at : at + 9]
        script = (
            len(piece) == 9 and piece[0] in ("C", "A", "P") and {piece[1], piece[5]} == {"_", "^"} and piece[2] == piece[6] == "{"
        )
        if script and piece[4] == piece[8] == "}" and piece[3].isdigit() and piece[7].isdigit():
            n, k = (piece[3], piece[7]) if piece[1] == "_" else (piece[7], piece[3])
            at += 9
        elif (
            tokens[at] == "C"
            and tokens[at + 1 : at + 2] == ("(",)
            and tokens[at + 3 : at + 4] == (",",)
            and tokens[at + 5 : at + 6] == (")",)
        ):
            n, k = tokens[at + 2], tokens[at + 4]
            piece, at = ("C",), at + 6
        else:
            out.append(tokens[at])
            at += 1
            continue
        over = [r"\binom", "{", n, "}", "{", k, "}"]
        out += over if piece[0] == "C" else [*over, "(", k, "!", ")"]
    return tuple(out)


def algebra(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Both are read as a whole, and are equal by ``symbolic``.

    >>> (1-x)(1+x) ~ 1-x^2    2\pi r ~ 2*pi*r    3x^2 !~ 3    6xyz !~ 6abc    \frac{1}{2024!} !~ \frac{1}{2023!}    f(x) !~ f'(x)
    """
    return symbolic.equal(said, meant)
