r"""Are two expressions equal? By math-verify on the whole of both texts, and never against what exact numbers say. Runs in a killable process.

math-verify's parser passes over what it does not know (primes, moduli, daggers). So a text counts as read only if each of its tokens is
of a closed list, ``SOUND``, and each of its letters is in what was read. Equality needs a proof (sympy's simplification to 0, or
math-verify's word) and survives every check by numbers, which are relative and only ever refute. The only importer of math_verify.
math-verify's own time-outs are off: they use SIGALRM, which does not interrupt big-integer arithmetic; limits are ``worker``'s and ``pool``'s.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from mpmath.libmp import NoConvergence
from sympy.core.function import AppliedUndef
from sympy.polys.polyerrors import BasePolynomialError

from fr3e_async.verify.tokens import Tokens, balanced, is_digits, render

# math-verify warns once that its time-outs are off, which is what we want.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_NORMALISE = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none", equations=False
)
# Capitals are other variables, and (2)(4) is 8: both are otherwise in math-verify's own way of calling its parser.
_CONVERT = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False, interpret_contains_as_eq=False)
# What sympy and math-verify raise on odd pairs.
ODDITIES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, SyntaxError, TypeError, ValueError,
    BasePolynomialError, NoConvergence,
)  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon theta lambda mu omega phi rho sigma tau psi eta xi zeta kappa chi Omega Phi Delta Gamma Lambda Sigma"
_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min"
SOUND = frozenset(
    [*r"+-/^_!|,()[]{}=<>", *("\\" + name for name in f"{_GREEK} {_FUNCTIONS}".split())]
    + r"\frac \sqrt \binom \cdot \times \div \pi \infty \le \ge \ne \cup \cap \setminus \in \mathbb \emptyset \{ \} \sum \prod \int \lim "
    r"\lfloor \rfloor \lceil \rceil \rightarrow ° \hbar".split()
)
_LOOSE = frozenset("\\" + name for name in "sin cos tan cot sec csc ln log".split())
_WANTED_LETTERS = frozenset("edi")  # constants, and the d of an integral: letters that need not be variables of the reading
_POINTS = tuple(Fraction(n, 100) for n in (37, 186, -85, 71, 13, -329, 92, 322))
# Points tell too little of steps, and of what stands for any function; sums and integrals are dear to evaluate.
_UNSAMPLED = (
    sympy.floor, sympy.ceiling, sympy.sign, sympy.Mod, AppliedUndef, sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit,
)  # fmt: skip
_ENOUGH_POINTS = 3
_DIGITS = 40
_TINY = sympy.Float("1e-30", _DIGITS)  # relative


@lru_cache(maxsize=2048)  # the reference of all rollouts of a prompt is the same, and parsing is the dearer half
def reading(tokens: Tokens) -> Any:
    """The sympy object that the whole of ``tokens`` says; None if any part of it is not surely understood."""
    if not tokens or not balanced(tokens) or tokens.count("|") % 2 or not all(map(_is_sound, tokens)):
        return None
    if any((a.isalpha() and is_digits(b)) or (b == "_" and (is_digits(a) or a == ")")) for a, b in pairwise(tokens)):
        return None  # x2 may be x_2, x^2 or 2x; 12_5 has a base
    if any(len(t) > 1 and t[0] == "0" and t.isdigit() for t in tokens):  # the end of 1,000 is no number
        return None
    text = render(_explicit(tokens)).replace(r"\lg", r"\log_{10}")
    try:
        read = latex2sympy(text, normalization_config=_NORMALISE, conversion_config=_CONVERT)
    except MemoryError:
        raise
    except Exception:  # kinds of the grammar's own among them
        return None
    return read if _says_every_letter(read, tokens) else None


def _explicit(tokens: Tokens) -> Tokens:
    r"""With signs for products that the parser takes for mixed numbers, (2)(4), or functions, G\frac{a}{b}; degrees as radians."""
    out: list[str] = []
    for token in tokens:
        before = out[-1] if out else ""
        number = is_digits(before) or before == ")"
        if (number and (token == "(" or is_digits(token))) or (token == r"\frac" and (before.isalpha() or is_digits(before))):
            out.append(r"\cdot")
        if token in (r"\cdot", r"\times") and len(out) > 1 and out[-2] in _LOOSE and before.isalpha():
            out[-1:] = ["(", before, ")"]  # \cot t \cdot x would be the cotangent of a product
        if token == "°" and is_digits(before):
            out[-1:] = [r"\frac", "{", before, r"\pi", "}", "{", "180", "}"]
        else:
            out.append(token)
    return tuple(out)


def _is_sound(token: str) -> bool:
    return token in SOUND or is_digits(token) or (len(token) == 1 and token.isascii() and token.isalpha())


def _says_every_letter(read: Any, tokens: Tokens) -> bool:
    atoms = getattr(read, "atoms", None)
    if atoms is None:
        return False
    names = "".join(str(symbol) for symbol in atoms(sympy.Symbol)) + "".join(str(f.func) for f in atoms(AppliedUndef))
    said = {
        token
        for at, token in enumerate(tokens)
        if len(token) == 1 and token.isalpha() and tokens[at - 2 : at - 1] != (r"\mathbb",)
    }
    return all(letter in names for letter in said - _WANTED_LETTERS)


def equal(said: Tokens, meant: Tokens) -> tuple[str, str]:
    """(outcome, reason): right with its proof, else wrong."""
    theirs = reading(meant)
    if theirs is None:
        return "wrong", "unproven: the reference is matched as text"
    ours = reading(said)
    if ours is None:
        return "wrong", "unproven: not read as mathematics"
    try:
        return _compared(ours, theirs)
    except (*ODDITIES, RecursionError) as error:
        return "wrong", f"unproven: {type(error).__name__}"


def _compared(ours: Any, theirs: Any) -> tuple[str, str]:
    if isinstance(ours, sympy.Expr) and isinstance(theirs, sympy.Expr):
        return expressions_equal(ours, theirs)
    if isinstance(ours, sympy.Rel) and isinstance(theirs, sympy.Rel):
        return _relations_equal(ours, theirs)
    if _is_rough(ours) or _is_rough(theirs) or isinstance(ours, sympy.Expr) or isinstance(theirs, sympy.Expr):
        return "wrong", "unproven: another kind"
    same = verify(
        theirs,
        ours,
        timeout_seconds=None,
        raise_on_error=True,
        allow_set_relation_comp=True,
        float_rounding=30,
        numeric_precision=40,
    )
    return ("right", "math-verify") if same else ("wrong", "unproven: math-verify")


def _is_rough(read: Any) -> bool:
    """Does it hold a number that rounding to 6 places would change? math-verify compares parts of sets by rounded value."""
    return any(
        abs(number) < 1e-4 or abs(number) > 1e9 or number.is_Float
        for number in read.atoms(sympy.Number)
        if number.is_finite and number != 0
    )


def expressions_equal(ours: Any, theirs: Any) -> tuple[str, str]:
    """Two expressions: refuted by numbers, or proven by simplification or math-verify."""
    if ours == theirs:
        return "right", "same expression"
    if ours.is_Rational and theirs.is_Rational:
        return "wrong", "another number"
    if ours.free_symbols != theirs.free_symbols:
        if not (ours.free_symbols ^ theirs.free_symbols) <= _imaginary(ours, theirs):
            return "wrong", "other variables"
        ours, theirs = (side.subs(dict.fromkeys(_imaginary(ours, theirs), sympy.I)) for side in (ours, theirs))
    difference = ours - theirs
    if not difference.free_symbols:
        return _constants_equal(ours, theirs, difference)
    agreed = _agreeing_points(ours, theirs)
    if agreed is None:
        return "wrong", "another value"
    if difference.is_polynomial() or (ours.is_rational_function() and theirs.is_rational_function()):
        return ("right", "identity") if sympy.cancel(sympy.together(difference)) == 0 else ("wrong", "another function")
    if _verified(ours, theirs):
        return "right", "math-verify"
    if sympy.simplify(difference) == 0:
        return "right", "identity"
    if agreed >= _ENOUGH_POINTS and not any(side.has(*_UNSAMPLED) for side in (ours, theirs)):
        return "right", "policy: equal at points"
    return "wrong", "unproven"


def _imaginary(*sides: Any) -> set[Any]:
    return {symbol for side in sides for symbol in side.free_symbols if str(symbol) == "i"}


def _verified(ours: Any, theirs: Any) -> bool:
    return bool(verify(theirs, ours, timeout_seconds=None, raise_on_error=True))


def _constants_equal(ours: Any, theirs: Any, difference: Any) -> tuple[str, str]:
    """Two numbers in closed form. Their difference to 40 digits, relative to the larger of them, refutes."""
    if any(side.has(sympy.zoo, sympy.nan) for side in (ours, theirs)):
        return "wrong", "not a number"
    if any(side.has(sympy.oo, -sympy.oo) for side in (ours, theirs)):
        return "wrong", "another number"
    if not any(side.has(*_UNSAMPLED) for side in (ours, theirs)):
        size = max(abs(_value(ours)), abs(_value(theirs)))
        if abs(_value(difference)) > _TINY * size:
            return "wrong", "another value"
    if difference == 0 or ours.doit() == theirs.doit():
        return "right", "identity"
    if _verified(ours, theirs):
        return "right", "math-verify"
    return ("right", "identity") if sympy.simplify(difference) == 0 else ("wrong", "unproven")


def _value(expr: Any) -> Any:
    return expr.evalf(_DIGITS, maxn=400)


def _agreeing_points(ours: Any, theirs: Any) -> int | None:
    """At how many points both sides have a real value and the same one; None if they differ at one. Relative, so small terms count."""
    if any(side.has(*_UNSAMPLED) for side in (ours, theirs)):
        return 0
    symbols = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    agreed = 0
    for shift in range(len(_POINTS)):
        point = {symbol: sympy.Rational(_POINTS[(shift + i) % len(_POINTS)] + i) for i, symbol in enumerate(symbols)}
        first, second = (_value(side.subs(point)) for side in (ours, theirs))
        if not (first.is_Float or first.is_Rational) or not (second.is_Float or second.is_Rational):
            continue
        if abs(first - second) > _TINY * max(abs(first), abs(second)):
            return None
        agreed += 1
    return agreed


def _relations_equal(ours: Any, theirs: Any) -> tuple[str, str]:
    """Equations and inequalities: one is the other times a constant, which is positive where there is an order."""
    kinds = {sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan}
    first, second = (kinds.get(type(side), type(side)) for side in (ours, theirs))
    if first is not second or not all(isinstance(part, sympy.Expr) for side in (ours, theirs) for part in (side.lhs, side.rhs)):
        return "wrong", "another relation"
    if ours.free_symbols != theirs.free_symbols:
        return "wrong", "other variables"
    if ours.lhs == theirs.lhs and first is second is sympy.Equality and ours.lhs.is_Symbol:
        return expressions_equal(ours.rhs, theirs.rhs)
    ordered = [side.rhs - side.lhs if type(side) in kinds else side.lhs - side.rhs for side in (ours, theirs)]
    if ordered[1] == 0 or ordered[0] == 0:
        return "wrong", "says nothing"
    ratio = sympy.simplify(ordered[0] / ordered[1])
    if ratio.free_symbols or not ratio.is_finite or ratio == 0 or (first in kinds.values() and not ratio.is_positive):
        return "wrong", "another relation"
    expected = ordered[1] * ratio
    return expressions_equal(ordered[0], expected) if ordered[0] != expected else ("right", "same relation")


def decimal_value(tokens: Tokens) -> Fraction | None:
    """The value of a closed form without variables, to about 40 digits; None if it has none, or none that is real."""
    expr = reading(tokens)
    try:
        if not isinstance(expr, sympy.Expr) or expr.free_symbols or expr.has(*_UNSAMPLED):
            return None
        value = _value(expr)
        return Fraction(str(value)) if value.is_finite and (value.is_Float or value.is_Rational) else None
    except ODDITIES:
        return None


def solves(said: Tokens, meant: Tokens) -> bool:
    r"""Is ``said`` the value of the one symbol of the equation ``meant`` that it does not mention? ``6/x`` solves ``xy = 6``."""
    answer, relation = reading(said), reading(meant)
    try:
        if not isinstance(answer, sympy.Expr) or not isinstance(relation, sympy.Equality):
            return False
        missing = relation.free_symbols - answer.free_symbols
        if len(missing) != 1 or not answer.free_symbols or not answer.free_symbols < relation.free_symbols:
            return False
        (symbol,) = missing
        left, right = relation.lhs.subs(symbol, answer), relation.rhs.subs(symbol, answer)
        return bool(sympy.simplify(left - right) == 0) and bool(sympy.degree(relation.lhs - relation.rhs, symbol) == 1)
    except ODDITIES:
        return False


def is_mathematics(tokens: Tokens) -> bool:
    """Is the whole of it read?"""
    return reading(tokens) is not None


def symbols_of(tokens: Tokens) -> frozenset[str]:
    """Names of the variables that are read in it."""
    read = reading(tokens)
    return frozenset(str(symbol) for symbol in islice(getattr(read, "free_symbols", ()), 64))
