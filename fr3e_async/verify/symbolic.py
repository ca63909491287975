r"""Are two expressions equal? By math-verify on the whole of both texts, and never against what exact numbers say. Runs in a killable process.

math-verify's parser passes over what it does not know (primes, moduli, daggers). So a text counts as read only if each of its tokens is
of a closed list, ``SOUND``, and each of its letters is in what was read. Equality needs a proof (sympy's simplification to 0, or
math-verify's word) and survives every check by numbers, which are relative and only ever refute. The only importer of math_verify.
math-verify's own time-outs are off: they use SIGALRM, which does not interrupt big-integer arithmetic; limits are ``worker``'s and ``pool``'s.
"""

import logging
import re
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from sympy.core.function import AppliedUndef

from fr3e_async.verify.lexicon import FUNCTIONS, GREEK
from fr3e_async.verify.rulings import attempt
from fr3e_async.verify.tokens import Tokens, balanced, is_digits, render, tokenise, variable

# math-verify warns once that its time-outs are off, which is what we want.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_AS_IS = NormalizationConfig(basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none", equations=False)
# Capitals are other variables, and (2)(4) is 8: both are otherwise in math-verify's own way of calling its parser.
_CONVERT = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False, interpret_contains_as_eq=False)
SOUND = frozenset(
    [*r"+-/^_!|,()[]{}=<>", *GREEK, *FUNCTIONS]
    + r"\frac \sqrt \binom \cdot \times \div \pi \infty \le \ge \ne \cup \cap \setminus \in \mathbb \emptyset \{ \} \sum \prod \int \lim "
    r"\lfloor \rfloor \lceil \rceil \Xi \rightarrow ° \hbar".split()
)
_LOOSE = frozenset("\\" + name for name in "sin cos tan cot sec csc ln log".split())
_WANTED_LETTERS = frozenset("edi")  # constants, and the d of an integral: letters that need not be variables of the reading
_DOTS = re.compile(r"([A-Za-z])_\{([^{}]*)\}((?:\+\1_\{[^{}]*\})*)\+\\dots((?:\+\1_\{[^{}]*\})*)\+\1_\{([^{}]*)\}")
# [x], which is a floor too; n!!; a power of a function, which may be its inverse; ABA and inverses: of matrices, whose order counts
_VAGUE = re.compile(
    r"^\[[^],]*\]$|!!|(?<![\\a-z])[fgh]\^\{[^{}]*\}\(|([A-Z])(?!\1)[A-Z]+\1|(?=.*[A-Z]\^\{-1\}).*([A-Z]).*(?!\2)[A-Z]"
)
_POINTS = tuple(Fraction(n, 100) for n in (37, 186, -85, 71, 13, -329, 92, 322))
# Points tell too little of steps, and of what stands for any function; sums and integrals are dear to evaluate.
_UNSAMPLED = (
    sympy.floor, sympy.ceiling, sympy.sign, sympy.Mod, AppliedUndef, sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit,
)  # fmt: skip
_ENOUGH_POINTS = 3
_DIGITS = 160  # \pi + 2^{-400} is not \pi
_TINY = sympy.Float("1e-150", _DIGITS)  # relative


@lru_cache(maxsize=2048)  # the reference of all rollouts of a prompt is the same, and parsing is the dearer half
def reading(tokens: Tokens) -> Any:
    """The sympy object that the whole of ``tokens`` says; None if any part of it is not surely understood."""
    if r"\dots" in tokens:
        tokens = tokenise(_DOTS.sub(_summed, render(tokens)))
    spelt = _explicit(tokens)
    numbers = {t for t in spelt if is_digits(t) and t == (t.lstrip("0") or "0")}  # the end of 1,000 is no number
    sound = all(t in SOUND or t in numbers or (variable(t) and t.isascii()) for t in spelt)
    if not sound or not tokens or not balanced(tokens) or tokens.count("|") % 2 or _VAGUE.search("".join(tokens)):
        return None
    if any((a.isalnum() and is_digits(b)) or (b == "_" and (is_digits(a) or a == ")")) for a, b in pairwise(tokens)):
        return None  # x2 may be x_2, x^2 or 2x; 1\phantom{0}7 is no product; 12_5 has a base
    text = render(spelt).replace(r"\lg", r"\log_{10}")
    read = attempt(None, latex2sympy, text, normalization_config=_AS_IS, conversion_config=_CONVERT)
    return read if _says_every_letter(read, tokens) else None


def _summed(found: re.Match[str]) -> str:
    r"""``a_k + a_{k-1} + \dots + a_0`` as a symbol that names the letter, the lowest and the highest index; as it is if no step of 1 leads on."""
    letter, first, before, after, last = found.groups()
    texts = [re.findall(r"_\{([^{}]*)\}", part) for part in (f"_{{{first}}}{before}", f"{after}_{{{last}}}")]
    rows = [[reading(tokenise(text)) for text in row] for row in texts]
    steps = {None if None in (a, b) else b - a for row in rows for a, b in pairwise(row)}
    low, high = (last, first) if steps == {-1} else (first, last)
    return rf"\Xi_{{{letter},{low},{high}}}" if steps <= {1} or steps == {-1} else found[0]


def _explicit(tokens: Tokens) -> Tokens:
    r"""Rewrite what math-verify's parser would misread, without changing the value.

    Products get their sign: (2)(4) is not a mixed number, G\frac{a}{b} not a function. Degrees become radians, decimals exact fractions,
    and a colon beside a bracket a division: (a-b):\frac{1}{2}.
    """
    out: list[str] = []
    for token, before, after in zip(tokens, ("", *tokens), (*tokens[1:], ""), strict=False):
        if token == ":" and before in (")", "}") and after in ("(", r"\frac"):
            token = r"\div"
        number = is_digits(before) or before == ")"
        if (number and (token == "(" or is_digits(token))) or (token == r"\frac" and (before.isalpha() or is_digits(before))):
            out.append(r"\cdot")
        if token in (r"\cdot", r"\times") and len(out) > 1 and out[-2] in _LOOSE and before.isalpha():
            out[-1:] = ["(", before, ")"]  # \cot t \cdot x would be the cotangent of a product
        if is_digits(token) and ("." in token or after == "°"):
            whole, _, decimals = token.partition(".")
            angle, scale = ([r"\pi"], 180) if after == "°" else ([], 1)
            out += [r"\frac", "{", (whole + decimals).lstrip("0") or "0", *angle, "}", "{", str(scale * 10 ** len(decimals)), "}"]
        elif token != "°" or not is_digits(before):
            out.append(token)
    return tuple(out)


def _says_every_letter(read: Any, tokens: Tokens) -> bool:
    if not hasattr(read, "atoms"):
        return False
    names = "".join(map(str, [*read.atoms(sympy.Symbol), *(f.func for f in read.atoms(AppliedUndef))]))
    said = {t for at, t in enumerate(tokens) if len(t) == 1 and t.isalpha() and tokens[at - 2 : at - 1] != (r"\mathbb",)}
    return all(letter in names for letter in said - _WANTED_LETTERS)


def equal(said: Tokens, meant: Tokens) -> tuple[str, str]:
    """(outcome, reason): correct with its proof, else wrong."""
    theirs = reading(meant)
    ours = None if theirs is None else reading(said)
    if ours is None:
        return "wrong", "unproven: " + ("the reference is matched as text" if theirs is None else "not read as mathematics")
    decision: tuple[str, str] = attempt(("wrong", "unproven: beyond sympy"), _compared, ours, theirs)
    return decision


def _compared(ours: Any, theirs: Any) -> tuple[str, str]:
    for kind, compare in ((sympy.Expr, expressions_equal), (sympy.Rel, _relations_equal)):
        if isinstance(ours, kind) and isinstance(theirs, kind):
            return compare(ours, theirs)
    if isinstance(ours, sympy.Expr) or isinstance(theirs, sympy.Expr) or _is_rough(ours) or _is_rough(theirs):
        return "wrong", "unproven: another kind"
    exact = {"allow_set_relation_comp": True, "float_rounding": 30, "numeric_precision": _DIGITS}
    return ("correct", "math-verify") if _verified(ours, theirs, **exact) else ("wrong", "unproven: math-verify")


def _verified(ours: Any, theirs: Any, **options: Any) -> bool:
    return bool(verify(theirs, ours, timeout_seconds=None, raise_on_error=True, **options))


def _is_rough(read: Any) -> bool:
    """Does it hold a number that rounding to 6 places would change? math-verify compares parts of sets by rounded value."""
    return any(number.is_finite and number != 0 and not 1e-4 <= abs(number) <= 1e9 for number in read.atoms(sympy.Number))


def expressions_equal(ours: Any, theirs: Any) -> tuple[str, str]:
    """Two expressions: refuted by numbers, or proven by simplification or math-verify."""
    if ours == theirs:
        return "correct", "same expression"
    ours, theirs = (side.subs({symbol: sympy.I for symbol in side.free_symbols if str(symbol) == "i"}) for side in (ours, theirs))
    if ours.free_symbols != theirs.free_symbols:
        return "wrong", "other variables"
    symbols, difference = ours.free_symbols, ours - theirs
    if not symbols and any(side.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo) for side in (ours, theirs)):
        return "wrong", "another number"
    sampled = not any(side.has(*_UNSAMPLED) for side in (ours, theirs))
    agreed = _agreeing_points(ours, theirs, sorted(symbols, key=str)) if sampled else 0
    if agreed is None:
        return "wrong", "another value"
    if symbols and ours.is_rational_function() and theirs.is_rational_function():
        return ("correct", "identity") if sympy.cancel(sympy.together(difference)) == 0 else ("wrong", "another function")
    if difference == 0 or (not symbols and ours.doit() == theirs.doit()):
        return "correct", "identity"
    if proof := "math-verify" if _verified(ours, theirs) else "identity" if sympy.simplify(difference) == 0 else "":
        return "correct", proof
    return ("correct", "policy: equal at points") if symbols and agreed >= _ENOUGH_POINTS else ("wrong", "unproven")


def _value(expr: Any) -> Any:
    return expr.evalf(_DIGITS, maxn=400)


def _agreeing_points(ours: Any, theirs: Any, symbols: list[Any]) -> int | None:
    """At how many points both sides have a real value and the same one; None if they differ at one. Relative, so small terms count."""
    agreed = 0
    for shift in range(len(_POINTS) if symbols else 1):
        point = {symbol: sympy.Rational(_POINTS[(shift + i) % len(_POINTS)] + i) for i, symbol in enumerate(symbols)}
        first, second = (_value(side.subs(point)) for side in (ours, theirs))
        if symbols and not all(value.is_Float or value.is_Rational for value in (first, second)):
            continue
        if abs(first - second) > _TINY * max(abs(first), abs(second)):
            return None
        agreed += 1
    return agreed


def _relations_equal(ours: Any, theirs: Any) -> tuple[str, str]:
    """Equations and inequalities: one is the other times a constant, which is positive where there is an order."""
    ours, theirs = (side.reversed if isinstance(side, sympy.Gt | sympy.Ge) else side for side in (ours, theirs))
    expressions = all(isinstance(part, sympy.Expr) for part in (*ours.args, *theirs.args))
    if type(ours) is not type(theirs) or not expressions or ours.free_symbols != theirs.free_symbols or not ours.free_symbols:
        return "wrong", "another relation"
    first, second = ours.lhs - ours.rhs, theirs.lhs - theirs.rhs
    ratio = sympy.simplify(first / second)
    ordered = not isinstance(ours, sympy.Equality | sympy.Unequality)
    if ratio.free_symbols or not ratio.is_finite or ratio == 0 or (ordered and not ratio.is_positive):
        return "wrong", "another relation"
    return expressions_equal(first, second * ratio)


def decimal_value(tokens: Tokens) -> Fraction | None:
    """The value of a closed form without variables, to about 160 digits; None if it has none, or none that is real."""
    expr = reading(tokens)
    if not isinstance(expr, sympy.Expr) or expr.free_symbols or expr.has(*_UNSAMPLED):
        return None
    value = attempt(sympy.nan, _value, expr)
    return Fraction(str(value)) if value.is_finite and (value.is_Float or value.is_Rational) else None


def solves(said: Tokens, meant: Tokens) -> bool:
    r"""Is ``said`` the value of the one symbol of the equation ``meant`` that it does not mention? ``6/x`` solves ``xy = 6``."""
    answer, relation = reading(said), reading(meant)
    if not isinstance(answer, sympy.Expr) or not isinstance(relation, sympy.Equality):
        return False
    missing, difference = relation.free_symbols - answer.free_symbols, relation.lhs - relation.rhs
    if len(missing) != 1 or not answer.free_symbols or not answer.free_symbols < relation.free_symbols:
        return False
    left = attempt(None, lambda: sympy.simplify(difference.subs(*missing, answer)))
    return bool(left == 0 and attempt(0, sympy.degree, difference, *missing) == 1)
