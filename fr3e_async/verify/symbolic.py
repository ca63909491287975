r"""Are two expressions equal? By math-verify, and where it says no, by value. The only importer of math_verify; runs in a killable process.

math-verify's own time-outs are off: they use SIGALRM, which does not interrupt big-integer arithmetic and fails off the
main thread. Limits are the business of ``worker`` and ``pool``. Units, lists and what a finished answer is are ``judge``'s.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from mpmath.libmp import NoConvergence
from sympy.core.function import AppliedUndef
from sympy.polys.polyerrors import BasePolynomialError

# math-verify warns once that its time-outs are off, which is what we want.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_NORMALISE = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False)
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0, normalization_config=_NORMALISE), ExprExtractionConfig())
# What sympy and math-verify raise on odd pairs.
ODDITIES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, SyntaxError, TypeError, ValueError,
    BasePolynomialError, NoConvergence,
)  # fmt: skip
_POINTS = tuple(Fraction(n, 100) for n in (37, 186, -85, 71, 13, -329, 92, 322))
# Points tell too little of steps, and of what stands for any function; sums and integrals are dear to evaluate.
_UNSAMPLED = (sympy.floor, sympy.ceiling, sympy.sign, sympy.Mod, AppliedUndef, sympy.Sum, sympy.Product, sympy.Integral)
_DOTS = re.compile(r"\\(?:[lcv]?dots|dots[bcmi])(?![a-zA-Z])")  # math-verify drops them; as a symbol, sums may stand in any order
# math-verify reads "\\cot t \\cdot x" as the cotangent of a product.
_LOOSE_ARGUMENT = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log)) +([a-zA-Z])(?= *\\(?:cdot|times))")
_ENOUGH_POINTS = 3
_DIGITS = 20


def parse_boxed(text: str) -> list[Any]:
    r"""math-verify's readings of ``text``: sympy objects first, then the text itself; empty if it cannot read it at all.

    Always through a ``\boxed{}``: bare, math-verify looks for the likeliest fragment, and ``2\pi`` becomes 2.
    """
    text = _LOOSE_ARGUMENT.sub(r"\1(\2)", _DOTS.sub(r" \\Xi ", text))
    return parse(f"\\boxed{{{text}}}", extraction_config=_TARGETS, parsing_timeout=None, raise_on_error=True)


@lru_cache(maxsize=1024)  # all rollouts of a prompt share its gold, and parsing is the dearer half
def parse_gold(gold: str) -> list[Any]:
    return parse_boxed(gold)


def is_mathematics(text: str) -> bool:
    """Does math-verify read anything but text in it?"""
    return any(not isinstance(reading, str) for reading in parse_gold(text))


def equal(said: str, meant: str) -> tuple[str, str]:
    """(outcome, reason): right, wrong, or unknown if the gold is not mathematics or the comparison broke off."""
    try:
        golds, answers = parse_gold(meant), parse_boxed(said)
    except ODDITIES as error:
        return "unknown", f"parsing failed: {type(error).__name__}"
    if not answers:
        return "wrong", "answer not readable"
    failure = ""
    for gold in golds:
        for answer in answers:
            try:
                if verify(gold, answer, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True):
                    if _differ_as_equations(gold, answer):
                        return "wrong", "another equation"
                    return "right", "math-verify"
            except ODDITIES as error:  # try the other readings
                failure = f"comparison failed: {type(error).__name__}"
    first, second = expression(answers), expression(golds)
    if equal_by_value(first, second) or (r"\sqrt{-" in said + meant and _equal_as_complex(first, second)):
        return "right", "same value"
    if failure:
        return "unknown", failure
    if all(isinstance(gold, str) for gold in golds):
        return "unknown", "gold is not mathematics"
    return "wrong", "math-verify"


def _differ_as_equations(gold: Any, answer: Any) -> bool:
    """Two equations in one unknown with different complex roots. math-verify solves over the reals, where x² = -2 and x² = -3 agree."""
    if not isinstance(gold, sympy.Equality) or not isinstance(answer, sympy.Equality):
        return False
    if len(gold.free_symbols) != 1 or gold.free_symbols != answer.free_symbols:
        return False
    (symbol,) = gold.free_symbols
    first, second = ((side.lhs - side.rhs).as_poly(symbol) for side in (gold, answer))
    if first is None or second is None or first.is_zero or second.is_zero:
        return False
    return bool(first.sqf_part().monic() != second.sqf_part().monic())


def expression(readings: Iterable[Any]) -> Any:
    """The first reading that is an ordinary expression, else None."""
    return next((reading for reading in readings if isinstance(reading, sympy.Expr)), None)


def equal_by_value(said: Any, meant: Any) -> bool:
    """Do two expressions in the same symbols have the same real value at several points where both have one?"""
    if said is None or meant is None or not meant.free_symbols or said.free_symbols != meant.free_symbols:
        return False
    if any(side.has(*_UNSAMPLED) for side in (said, meant)):
        return False
    symbols = sorted(meant.free_symbols, key=str)
    agreed = 0
    for shift in range(len(_POINTS)):
        point = {symbol: sympy.Rational(_POINTS[(shift + i) % len(_POINTS)] + i) for i, symbol in enumerate(symbols)}
        first, second = _real_value(said.subs(point)), _real_value(meant.subs(point))
        if first is None or second is None:
            continue
        if abs(first - second) > 1e-12 * max(1, abs(second)):
            return False
        agreed += 1
    return agreed >= _ENOUGH_POINTS


def _equal_as_complex(said: Any, meant: Any) -> bool:
    """Are they the same number where i is the imaginary unit, as the root of a negative number shows that it is?"""
    if said is None or meant is None:
        return False
    unit = {symbol: sympy.I for symbol in said.free_symbols | meant.free_symbols if str(symbol) == "i"}
    return bool(sympy.simplify(said.subs(unit) - meant.subs(unit)) == 0)


def _real_value(expr: Any) -> Any:
    try:
        value = expr.evalf(_DIGITS)
    except ODDITIES:
        return None
    return value if value.is_Float or value.is_Integer or value.is_Rational else None


def decimal_value(text: str) -> Fraction | None:
    """The value of a closed form without variables, to about 20 digits; None if it has none."""
    try:
        readings = parse_boxed(text)
    except ODDITIES:
        return None
    expr = expression(readings)
    if expr is None or expr.free_symbols:
        return None
    value = _real_value(expr)
    return None if value is None or not value.is_finite else Fraction(str(value))


@lru_cache(maxsize=1024)
def is_identity(left: str, right: str) -> bool:
    """Do both sides of a gold's equation have the same value whatever their variables are?"""
    try:
        first, second = expression(parse_boxed(left)), expression(parse_boxed(right))
        if first is None or second is None:
            return False
        return equal_by_value(first, second) or bool(sympy.simplify(first - second) == 0)
    except ODDITIES:
        return False


def solves(said: str, equation: str) -> bool:
    r"""Is ``said`` the value of the one symbol of ``equation`` that it does not mention? ``6/x`` solves ``xy = 6``."""
    try:
        answer = expression(parse_boxed(said))
        relation = next((reading for reading in parse_gold(equation) if isinstance(reading, sympy.Equality)), None)
        if (
            answer is None
            or relation is None
            or not isinstance(relation.lhs, sympy.Expr)
            or not isinstance(relation.rhs, sympy.Expr)
        ):
            return False
        missing = relation.free_symbols - answer.free_symbols
        if len(missing) != 1 or not answer.free_symbols < relation.free_symbols:
            return False
        (symbol,) = missing
        left, right = relation.lhs.subs(symbol, answer), relation.rhs.subs(symbol, answer)
        return bool(sympy.simplify(left - right) == 0)
    except ODDITIES:
        return False
