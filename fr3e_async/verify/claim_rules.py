r"""Rules about one claim: ratios, bases, relations, equations, where it holds. Each is as ``judge`` says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from fr3e_async.verify import symbolic
from fr3e_async.verify.numbers import compare_numbers, written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import (
    RIGHT,
    WRONG,
    Ruling,
    by,
)
from fr3e_async.verify.structure import (
    chain,
    interval_of,
    is_name,
    is_relation,
    named,
    shape_of,
    without_domain,
)  # fmt: skip
from fr3e_async.verify.tokens import Tokens, enclosed, is_word, split
from fr3e_async.verify.units import quantity
from fr3e_async.verify.words import BASES


def ratio(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``a:b:c``: proportional is equal. Where the second part has two digits it may be a time, which is equal digit by digit.

    >>> 2:4:6 ~ 1:2:3    \frac34 ~ 3:4    12{:}00 ~ 12:00    3:30\text{ p.m.} ~ 3:30    1:3:2 !~ 1:2:3    8:30 !~ 4:15    8:15\text{ p.m.} !~ 8:15\text{ a.m.}
    """
    theirs, ours = parts_of(meant), parts_of(said)
    if theirs is None or (ours is None and len(theirs[0]) > 2):
        return None if theirs is None else (WRONG, "not a ratio")
    if ours is None:
        top, bottom = theirs[0]
        return by("values", said, (r"\frac", "{", *top, "}", "{", *bottom, "}"), replace(policies, unfinished="right"))
    if ours[1] and theirs[1] and ours[1] != theirs[1]:
        return WRONG, "another half of the day"
    if len(ours[0]) != len(theirs[0]):
        return WRONG, "number of parts"
    if _is_clock(theirs[0]):
        same = [part[0].lstrip("0") for part in ours[0]] == [part[0].lstrip("0") for part in theirs[0]] and _is_clock(ours[0])
        return (RIGHT, "time" if ours[1] == theirs[1] else "policy: half of the day") if same else (WRONG, "another time")
    if ours[1] or theirs[1]:
        return WRONG, "unproven: not a time"
    products = [
        symbolic.equal(("(", *a, ")", r"\cdot", "(", *y, ")"), ("(", *x, ")", r"\cdot", "(", *b, ")"))
        for (a, b), (x, y) in zip(pairwise(ours[0]), pairwise(theirs[0]), strict=True)
    ]
    return (RIGHT, "ratio") if all(outcome == RIGHT for outcome, _ in products) else (WRONG, "another ratio")


def parts_of(tokens: Tokens) -> tuple[list[Tokens], str] | None:
    """(parts, am or pm) of ``a:b``."""
    half = tokens[-1][1:].lower() if tokens[-1:] and is_word(tokens[-1]) and tokens[-1][1:].lower() in ("am", "pm") else ""
    parts = split(tokens[:-1] if half else tokens, frozenset([":"]))
    if "=" in tokens:
        return None
    return (parts, half) if len(parts) > 1 and all(parts) and not any(is_word(t) for part in parts for t in part) else None


def _is_clock(parts: list[Tokens]) -> bool:
    return (
        all(len(part) == 1 and part[0].isdigit() for part in parts)
        and len(parts[0][0]) <= 2
        and all(len(p[0]) == 2 for p in parts[1:])
    )


def base(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Digits with a base: the same digits and the same base.

    >>> 4210_{\text{five}} ~ 4210_{5}    (4210)_5 ~ 4210_5    101\text{ (base 2)} ~ 101_2    0x2F ~ 2F_{16}    111_2 !~ 110_2    1010_2 !~ 1010_3
    """
    theirs, ours = digits_and_base(meant), digits_and_base(said)
    if theirs is None:
        return None
    if ours is None:
        plain = written_number(said)
        same = plain is not None and "".join(said) == theirs[0]
        return (RIGHT, "policy: base not named") if same else (WRONG, "another number")
    return (RIGHT, "number in a base") if ours == theirs else (WRONG, "another number")


def digits_and_base(tokens: Tokens) -> tuple[str, int] | None:
    if tokens[:2] == ("0", "x"):
        return "".join(tokens[2:]).upper().lstrip("0"), 16
    if "_" in tokens and tokens[-1] == "}":
        at = tokens.index("_")
        head, foot = tokens[:at], tuple(token for token in tokens[at + 2 : -1] if token not in "()")
    elif "'base" in tokens:
        at = tokens.index("'base")
        head, foot = tokens[:at], tuple(token for token in tokens[at + 1 :] if token not in "()")
        head = head[:-1] if head[-1:] == ("(",) else head
    else:
        return None
    head = enclosed(head, "(", ")") or head
    digits = "".join(head)
    number = foot[0][1:] if len(foot) == 1 and is_word(foot[0]) else "".join(foot)
    value = BASES.get(number.lower(), int(number) if number.isdigit() and len(number) < 3 else 0)
    fits = digits.isalnum() and digits.isascii() and value > 1 and any(c.isdigit() for c in digits)
    return (digits.upper().lstrip("0"), value) if fits and all(int(c, 36) < value for c in digits) else None


def domain(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``, k \in \mathbb{Z}`` and ``where k is an integer`` at the end may be missing; a parameter may have another letter on the other side.

    >>> n\pi, n\in\mathbb{Z} ~ k\pi, k\in\mathbb{Z}    x=k\pi ~ x=k\pi,\ k\in\mathbb{Z}    2k\pi, k\in\mathbb{Z} !~ k\pi, k\in \mathbb{Z}
    """
    ours, had = without_domain(said)
    theirs, has = without_domain(meant)
    renamed = _with_their_parameter(ours, theirs) if (had or has or r"\pi" in meant) else ours
    if not had and not has and renamed == ours:
        return None
    outcome, reason = by("claims", renamed, theirs, policies)
    return outcome, "policy: domain" if outcome == RIGHT else reason


_PARAMETERS = frozenset("kmnltjs")


def _with_their_parameter(said: Tokens, meant: Tokens) -> Tokens:
    """With the reference's letter for the parameter, where each side has one integer parameter of its own."""
    ours, theirs = ({t for t in side if len(t) == 1 and t.isalpha()} for side in (said, meant))
    if len(ours - theirs) != 1 or len(theirs - ours) != 1 or not (ours ^ theirs) <= _PARAMETERS:
        return said
    (old,), (new,) = ours - theirs, theirs - ours
    return tuple(new if token == old else token for token in said)


def relation(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Inequalities, and equations in several variables: one is the other times a constant.

    >>> -x > -1 ~ x < 1    \geq 42 !~ 42    y=2x ~ y-2x=0    2x-3y=3 ~ y=\frac{2}{3}x-1    x^{2}+70=0 !~ x^{2}+50=0
    """
    ours, theirs = is_relation(said), is_relation(meant)
    if not ours and not theirs:
        return None
    if not _has_names(said) or not _has_names(meant):
        return WRONG, "a relation is not a value"
    ruling = symbolic.equal(said, meant)
    as_intervals = [interval_of(side) or side for side in (said, meant)]
    return ruling if ruling[0] == RIGHT or as_intervals == [said, meant] else symbolic.equal(*as_intervals)


def _has_names(tokens: Tokens) -> bool:
    sets = shape_of(tokens).kind == "bracket" or any(t in tokens for t in (r"\mathbb", r"\infty", r"\cup", r"\emptyset"))
    return sets or any(len(token) == 1 and token.isalpha() for token in tokens)


def equation(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``name = value`` is its value, ``a = b = c`` what it ends in, unless its parts contradict each other.

    >>> x=5 ~ 5    y=2x+3 ~ 2x+3    f(x)=x ~ f(z)=z    10^3 = 1000 ~ 1000    \frac6x ~ xy=6    2x-y=3 ~ y=2x-3
    >>> 1=2=3=42 !~ 42    x=5=7 !~ 7    y=2x !~ y=3x    1 !~ 2x+z=1    x=2 !~ y=2
    """
    if "=" not in said and "=" not in meant:
        return None
    (our_name, ours), (their_name, theirs) = named(said), named(meant)
    if our_name and their_name and our_name != their_name:
        renamed = _same_function(our_name, their_name, ours)
        if renamed is None:
            return symbolic.equal(said, meant)
        ours = renamed
    their_parts, our_parts = chain(theirs), chain(ours)
    if len(our_parts) > 1 and (contradiction := _contradiction(our_parts, policies)):
        return WRONG, contradiction
    if len(their_parts) > 1 and not their_name:
        return _whole_equation(said, meant, our_parts, their_parts, policies)
    if their_name and not our_name and len(our_parts) > 1:
        ruling = symbolic.equal(said, meant)
        if ruling[0] == RIGHT or any(len(t) == 1 and t.isalpha() for t in our_parts[0]):
            return ruling
    return by("claims", our_parts[-1], their_parts[-1], policies)


def _same_function(ours: str, theirs: str, value: Tokens) -> Tokens | None:
    """Our value with their bound variable, where both names are one function of one variable each: f(x) and f(z)."""
    (head, _, bound), (other, _, wanted) = ours.partition(" ( "), theirs.partition(" ( ")
    bound, wanted = bound.removesuffix(" )"), wanted.removesuffix(" )")
    if head != other or len(bound) != 1 or len(wanted) != 1 or wanted in value:
        return None
    return tuple(wanted if token == bound else token for token in value)


def _whole_equation(
    said: Tokens, meant: Tokens, our_parts: list[Tokens], their_parts: list[Tokens], policies: Policies
) -> Ruling:
    """The reference is an equation in its own right, or a computation that ends in the value."""
    if len(our_parts) > 1 and our_parts[0] == their_parts[0]:
        return by("claims", our_parts[-1], their_parts[-1], policies)
    ruling = symbolic.equal(said, meant)
    if ruling[0] == RIGHT or len(our_parts) > 1:
        return ruling
    if symbolic.solves(said, meant):
        return RIGHT, "solves the equation"
    return by("claims", our_parts[-1], their_parts[-1], policies) if _computes(their_parts[0], their_parts[-1]) else ruling


def _computes(left: Tokens, right: Tokens) -> bool:
    r"""Is ``left = right`` a computation rather than an equation: numbers alone, or lengths and other names of two letters and more?"""
    letters = [t for t in left if len(t) == 1 and t.isalpha()]
    return not letters or (all(t.isupper() for t in letters) and len(letters) > 1) or symbolic.equal(left, right)[0] == RIGHT


def _contradiction(parts: list[Tokens], policies: Policies) -> str:
    """Why a chain of equals cannot be true: two of its parts are numbers that no rounding makes equal. "" if it can."""
    quantities = [quantity(part) for part in parts]
    numbers = [(number, q.unit) for q in quantities if (number := written_number(q.core))]
    for (first, unit), (second, other) in pairwise(numbers):
        outcomes = {compare_numbers(first, second, policies)[0], compare_numbers(second, first, policies)[0]}
        if unit == other and outcomes == {WRONG}:
            return "the equalities contradict each other"
    return ""


def roughly(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""What is exact of ``a \approx b`` counts; an answer that is nothing but roughly is not an integer.

    >>> \frac{1+\sqrt{97}}{8} \approx 1.36 ~ \frac{1+\sqrt{97}}{8}    x\approx 11 ~ 11    \approx 42 !~ 42
    """
    if r"\approx" not in said and r"\approx" not in meant:
        return None
    number = written_number(quantity(meant).core)
    if said[:1] == (r"\approx",) and number is not None and number.integer:
        return WRONG, "approximate"
    ours, theirs = _exactly(said), _exactly(meant)
    return None if (ours, theirs) == (said, meant) else by("claims", ours, theirs, policies)


def _exactly(tokens: Tokens) -> Tokens:
    r"""What counts of ``a \approx b``: a, or b where a is a name or missing."""
    parts = split(tokens, frozenset([r"\approx"]))
    if len(parts) != 2:
        return tokens
    return parts[1] if not parts[0] or is_name(parts[0]) else parts[0]


def arrow(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""A bold or plain letter for a vector with an arrow, or a segment with a bar over two letters.

    >>> AB ~ \overline{AB}    \mathbf{v} ~ \vec{v}    z !~ \bar{z}
    """
    for marked, plain in ((meant, said), (said, meant)):
        letters = marked[2:-1]
        if (
            marked[:2] in ((r"\vec", "{"), (r"\overline", "{"))
            and letters == plain
            and letters
            and all(t.isalpha() for t in letters)
            and (marked[0] == r"\vec" or (len(letters) == 2 and all(t.isupper() for t in letters)))
        ):
            return RIGHT, "policy: arrow or bar"
    return None
