r"""Rules about claims: ratios, bases, congruences, relations, equations, sets by a condition, lists, tuples, matrices. Each is as ``judge`` says."""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from fr3e_async.verify import structure, symbolic
from fr3e_async.verify.lexicon import NUMBERS
from fr3e_async.verify.quantities import compare_numbers, quantity, written_number
from fr3e_async.verify.rulings import CORRECT, WRONG, Decision, Policies, by, by_policy, in_any_order, in_order
from fr3e_async.verify.structure import is_name, is_relation, named, named_list, shape_of
from fr3e_async.verify.tokens import Tokens, enclosed, is_word, render, split, tokenise, variable

_PROGRESSION = re.compile(r"(?:(\d+)\+)?(\d+)[kmnltqsj](?:\+(\d+))?")
_HATS = re.compile(r"\\hat\{([ijk])\}")
_CLOCK = re.compile(r"0?(\d{1,2}):(\d\d)(?::(\d\d))?")
_DIGITS = re.compile(
    r"\(?(?P<digits>'?[0-9A-Za-z]+)\)?(?:_\{\(?(?P<foot>\d{1,2}|'[a-z]+)\)?\}|\(?'base(?P<base>\d{1,2}|'[a-z]+)\)?)|0(?P<mark>[xbo])(?P<hex>[0-9A-Fa-f]+)"
)


def ratio(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``a:b:c``: proportional is equal. Where the second part has two digits it may be a time, which is equal digit by digit.

    >>> 2:4:6 ~ 1:2:3    \frac34 ~ 3:4    3:4 ~ \frac34    12{:}00 ~ 12:00    3:30\text{ p.m.} ~ 3:30    1:3:2 !~ 1:2:3    8:30 !~ 4:15    2\text{ to }3 ~ 2:3    2\text{ to }4 !~ 1\text{ to }2    8:15\text{ p.m.} !~ 8:15\text{ a.m.}
    """
    theirs, ours = parts_of(meant), parts_of(said)
    if ("'to" in said and "'to" in meant) or (theirs is None and (ours is None or r"\frac" not in meant)):
        return None
    times = [_CLOCK.fullmatch(":".join(map("".join, side[0]))) if side else None for side in (ours, theirs)]
    if ours and theirs and (times[1] or ours[1] or theirs[1]):
        same = times[0] and times[1] and times[0].groups() == times[1].groups() and len({ours[1], theirs[1]} - {""}) < 2
        return (CORRECT, "time" if ours[1] == theirs[1] else "policy: half of the day") if same else (WRONG, "another time")
    parts = [side[0] if side else [text, ("1",)] for side, text in ((ours, said), (theirs, meant))]
    quotients = [[(r"\frac", "{", *a, "}", "{", *b, "}") for a, b in pairwise(side)] for side in parts]
    return in_order(quotients[0], quotients[1], replace(policies, unfinished="correct"))


def parts_of(tokens: Tokens) -> tuple[list[Tokens], str] | None:
    """Split a ratio or time ``a:b`` into (parts, its am or pm, else ""); None where it is neither."""
    half = tokens[-1].lower() if tokens[-1:] and tokens[-1].lower() in ("'am", "'pm") else ""
    parts = split(tokens[:-1] if half else tokens, (":", "'to"))
    whole = len(parts) > 1 and all(parts) and "=" not in tokens and not any(is_word(t) for part in parts for t in part)
    return (parts, half) if whole else None


def base(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Digits with a base: the same digits and the same base.

    >>> 4210_{\text{five}} ~ 4210_{5}    (4210)_5 ~ 4210_5    101\text{ (base 2)} ~ 101_2    0x2F ~ 2F_{16}    0b101 ~ 101_2    \mathrm{FF}_{16} ~ FF_{16}    111_2 !~ 110_2    1010_2 !~ 1010_3
    """
    theirs = digits_and_base(meant)
    if theirs is None:
        return None
    if "".join(said) == theirs[0]:
        return CORRECT, "policy: base not named"
    return (CORRECT, "number in a base") if digits_and_base(said) == theirs else (WRONG, "another number")


def digits_and_base(tokens: Tokens) -> tuple[str, int] | None:
    found = _DIGITS.fullmatch("".join(tokens))
    if found is None:
        return None
    digits = (found["hex"] or found["digits"].strip("'")).upper()
    name = found["foot"] or found["base"] or {"x": "16", "b": "2", "o": "8"}[found["mark"]]
    value = NUMBERS.get(name[1:], 0) if name[0] == "'" else int(name)
    numeral = digits.isdigit() or (value > 10 and not digits.isalpha()) or (value == 16 and len(digits) > 1)
    return (digits.lstrip("0"), value) if 1 < value < 37 and numeral and all(int(digit, 36) < value for digit in digits) else None


def congruence(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``x \equiv r \pmod m``: the same modulus and the same residues. One side may leave the modulus out, and give the residues as they are.

    >>> x\equiv 3\pmod{7} ~ x \equiv 3 \pmod 7    10 \pmod 7 ~ 3 \pmod 7    3 ~ x\equiv3\pmod7    x=7k+3 ~ x\equiv 3\pmod 7
    >>> x\equiv 6\pmod 7 !~ x\equiv 3 \pmod 7    x\equiv 5\pmod 5 !~ x\equiv 5\pmod 7    3\pmod 7 !~ 10    7\pmod 7 !~ 7    y\equiv 3\pmod 7 !~ x\equiv 3\pmod 7
    """
    if r"\pmod" not in said and r"\pmod" not in meant:
        return None
    if len({split(side, ("=", r"\equiv"))[0] for side in (said, meant) if {"=", r"\equiv"} & {*side}}) > 1:
        return WRONG, "another name"
    ours, theirs = _residues(said), _residues(meant)
    if ours is None or theirs is None:
        return None
    if ours[1] and theirs[1]:
        same = ours[1] == theirs[1] and sorted(r % ours[1] for r in ours[0]) == sorted(r % theirs[1] for r in theirs[0])
        return (CORRECT, "residues") if same else (WRONG, "other residues")
    same = sorted(ours[0]) == sorted(theirs[0]) and (not ours[1] or all(0 <= residue < ours[1] for residue in ours[0]))
    return (CORRECT, "policy: modulus not named") if same else (WRONG, "other residues")


def _residues(tokens: Tokens) -> tuple[list[Fraction], Fraction] | None:
    r"""(residues, modulus) of ``x \equiv r \pmod m`` and ``x = 7k + 3``; modulus 0 of numbers without one."""
    at = tokens.index(r"\pmod") if r"\pmod" in tokens else len(tokens)
    before, modulus = tokens[:at], tokens[at + 1 :]
    if before[-1:] == ("(",) and modulus[-1:] == (")",):
        before, modulus = before[:-1], modulus[:-1]
    name, *after = split(before, [r"\equiv"])
    before = after[0] if len(after) == 1 and modulus and is_name(name) else named(structure.without_domain(before)[0])[1]
    if found := _PROGRESSION.fullmatch("".join(before)):
        return [Fraction(found[1] or found[3] or 0)], Fraction(found[2])
    residues, base = [written_number(item) for item in structure.list_items(before)], written_number(modulus)
    if None in residues or (modulus and not (base and base.value)):
        return None
    return [number.value for number in residues if number], base.value if base else Fraction(0)


def domain(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``, k \in \mathbb{Z}`` and ``where k is an integer`` at the end may be missing; a parameter may have another letter on the other side.

    >>> n\pi, n\in\mathbb{Z} ~ k\pi, k\in\mathbb{Z}    x=k\pi ~ x=k\pi,\ k\in\mathbb{Z}    2k\pi, k\in\mathbb{Z} !~ k\pi, k\in \mathbb{Z}    cx^2 ~ Cx^2    rx^2 !~ Rx^2
    """
    (ours, had), (theirs, has) = structure.without_domain(said), structure.without_domain(meant)
    old, new = ({*filter(variable, side)} - {*filter(variable, other)} for side, other in ((ours, theirs), (theirs, ours)))
    renamed = ours
    constant = old | new == {"c", "C"} and {*"xyzt"} & {*meant}  # of integration, and other free ones
    if len(old) == len(new) == 1 and (constant or ((had or has or r"\pi" in meant) and old | new <= _PARAMETERS)):
        renamed = tuple(min(new) if token in old else token for token in ours)
    if not had and not has and renamed == ours:
        return None
    return by_policy("domain", by("claims", renamed, theirs, policies))


_PARAMETERS = frozenset("kmnltjs")


def relation(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Inequalities, and equations in several variables: one is the other times a constant.

    >>> -x > -1 ~ x < 1    \geq 42 !~ 42    y=2x ~ y-2x=0    2x-3y=3 ~ y=\frac{2}{3}x-1    x^{2}+70=0 !~ x^{2}+50=0
    """
    if not is_relation(said) and not is_relation(meant):
        return None
    decision = symbolic.equal(said, meant)
    return (
        decision if decision[0] == CORRECT else symbolic.equal(*(structure.interval_of(side) or side for side in (said, meant)))
    )


def equation(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``name = value`` is its value, ``a = b = c`` what it ends in, unless its parts contradict each other.

    >>> x=5 ~ 5    y=2x+3 ~ 2x+3    f(x)=x ~ f(z)=z    10^3 = 1000 ~ 1000    \frac6x ~ xy=6    2x-y=3 ~ y=2x-3
    >>> 1=2=3=42 !~ 42    x=5=7 !~ 7    y=2x !~ y=3x    1 !~ 2x+z=1    x=2 !~ y=2    1=1 !~ 1    \sum_{k=0}^{n} F_{n-k}F_k ~ \sum_{k=0}^{n} F_kF_{n-k}
    """
    if len(split(said, "=")) == len(split(meant, "=")) == 1:  # none, or those of a sum's bounds
        return None
    (our_name, ours), (their_name, theirs) = named(said), named(meant)
    if our_name and their_name and our_name != their_name:
        if (renamed := _same_function(our_name, their_name, ours)) is None:
            return symbolic.equal(said, meant)
        ours = renamed
    their_parts, our_parts = structure.chain(theirs), structure.chain(ours)
    if _contradict(our_parts, policies) or (not our_name and len(set(our_parts)) < len(our_parts)):  # 1=1
        return WRONG, "the equalities contradict each other, or say nothing"
    whole = len(their_parts) > 1 and not their_name and our_parts[:-1][:1] != their_parts[:1]  # an equation in its own right
    ends, decision = True, (WRONG, "unproven")
    if whole or (their_name and not our_name and len(our_parts) > 1):
        decision = symbolic.equal(said, meant)
        if whole and len(our_parts) == 1 and symbolic.solves(said, meant):
            return CORRECT, "solves the equation"
        computed = len(our_parts) == 1 and _computes(their_parts[0], their_parts[-1])
        ends = computed if whole else not any(map(variable, our_parts[0]))
    return by("claims", our_parts[-1], their_parts[-1], policies) if ends and decision[0] != CORRECT else decision


def _same_function(ours: str, theirs: str, value: Tokens) -> Tokens | None:
    """Our value with their bound variable, where both names are one function of one variable each: f(x) and f(z)."""
    (head, _, bound), (other, _, wanted) = (name.removesuffix(" )").partition(" ( ") for name in (ours, theirs))
    same = head == other and len(bound) == len(wanted) == 1 and wanted not in value
    return tuple(wanted if token == bound else token for token in value) if same else None


def _computes(left: Tokens, right: Tokens) -> bool:
    r"""Is ``left = right`` a computation rather than an equation: numbers alone, or lengths and other names of two letters and more?"""
    letters = "".join(filter(variable, left))
    return not letters or (letters.isupper() and len(letters) > 1) or symbolic.equal(left, right)[0] == CORRECT


def _contradict(parts: list[Tokens], policies: Policies) -> bool:
    """Are two parts of a chain of equals numbers that no rounding makes equal?"""
    numbers = [(written_number(q.core), q.unit) for q in map(quantity, parts)]
    pairs = [(a, b) for (a, unit), (b, other) in pairwise(pair for pair in numbers if pair[0]) if a and b and unit == other]
    return any(CORRECT not in (compare_numbers(a, b, policies)[0], compare_numbers(b, a, policies)[0]) for a, b in pairs)


def roughly(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""What is exact of ``a \approx b`` counts; an answer that is nothing but roughly is not an integer.

    >>> \frac{1+\sqrt{97}}{8} \approx 1.36 ~ \frac{1+\sqrt{97}}{8}    x\approx 11 ~ 11    \approx 42 !~ 42    7\approx 8 !~ 7    \sqrt{2}\approx 5 !~ \sqrt{2}
    """
    values = [symbolic.decimal_value(quantity(part).core) for part in split(said, [r"\approx"]) if r"\approx" in said]
    if any(a and b and abs(a - b) > max(abs(a), abs(b)) / 10 for a, b in pairwise(values)):
        return WRONG, "the values are not close"
    number = written_number(quantity(meant).core)
    if said[:1] == (r"\approx",) and number is not None and number.integer:
        return WRONG, "approximate"
    ours, theirs = _exactly(said), _exactly(meant)
    return None if (ours, theirs) == (said, meant) else by("claims", ours, theirs, policies)


def _exactly(tokens: Tokens) -> Tokens:
    r"""What counts of ``a \approx b``: a, or b where a is a name or missing."""
    first, *others = split(tokens, [r"\approx"])
    return tokens if len(others) != 1 else others[0] if not first or is_name(first) else first


def arrow(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""A bold or plain letter for a vector with an arrow, or a segment with a bar over two letters.

    >>> AB ~ \overline{AB}    \mathbf{v} ~ \vec{v}    z !~ \bar{z}
    """
    plain, marked = sorted(("".join(said), "".join(meant)), key=len)
    segment = marked == rf"\overline{{{plain}}}" and len(plain) == 2 and plain.isupper()
    return (CORRECT, "policy: arrow or bar") if plain.isalpha() and (segment or marked == rf"\vec{{{plain}}}") else None


def condition(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``\{x \mid 2 < x < 3\}`` is its condition, an inequality in one name its interval, ``x \in I`` is I.

    >>> (2,3) ~ \{x | 2 < x < 3\}    x<-2 \text{ or } x>3 ~ (-\infty,-2)\cup(3,\infty)    k > -5 !~ (-\infty,-5)    q'>1 !~ q>1    [0,2] !~ [0,1)\cup(1,2]
    >>> x>1 \text{ or } x<3 !~ x>1 \text{ and } x<3    x>1 \text{ and } x<3 ~ (1,3)    x>1 \text{ and } x<3 !~ \mathbb{R}    ]0,1[ ~ (0,1)    -1\le x\le1, x\ne0 ~ [-1,0)\cup(0,1]
    """
    ours, theirs = structure.pieces_of(said), structure.pieces_of(meant)
    if ours is None or theirs is None or _other_names(said, meant) or (ours == [said] and theirs == [meant]):
        return None  # no condition and no union on either side
    names = [structure.bound_names(side) for side in (said, meant) if is_relation(side) and side[0] != r"\{"]
    if (len(names) == 2 and names[0] != names[1]) or {*said, *meant} >= {"'and", "'or"}:
        return WRONG, "other variables or another connective"
    decision = in_any_order(ours, theirs, policies)
    unions = [sum([(r"\cup", *piece) for piece in side], ())[1:] for side in (ours, theirs)]
    return decision if decision[0] == CORRECT else symbolic.equal(*unions)


def collection(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""Lists, sets, tuples, intervals, matrices: as many items on both sides, each correct by itself; in any order where none is said.

    >>> \{2,1\} ~ \{1,2\}    2,1 ~ 1,2    (x,y)=(1,2) ~ (1,2)    y=2, x=1 ~ x=1, y=2    a=1,b=2,c=3 ~ (1,2,3)    3,-3 ~ \pm 3
    >>> (2,1) !~ (1,2)    (y,x)=(1,2) !~ (x,y)=(1,2)    \{1,2\} !~ (1,2)    (1,2] !~ [1,2]    1,2 !~ 1,2,3    1,1,2 !~ 1,2,2    x=1,y=1; x=2,y=2 !~ x=1,y=2; x=2,y=1
    >>> (1,2) !~ x=1\text{ or }x=2    x=1,y=2 !~ x=1,2    (1,-2) ~ \vec{a}=(1,-2)    (1,2)^T ~ \begin{pmatrix}1\\2\end{pmatrix}    (1,2)^T !~ \begin{pmatrix}1&2\end{pmatrix}
    >>> \begin{bmatrix}1&2\end{bmatrix} ~ \begin{pmatrix}1&2\end{pmatrix}    \langle -2,5\rangle ~ \begin{pmatrix} -2 \\ 5 \end{pmatrix}
    >>> (5,-2) !~ \begin{pmatrix} -2 \\ 5 \end{pmatrix}    \begin{pmatrix}3\\1\end{pmatrix} !~ \begin{pmatrix}3x^2\\1\end{pmatrix}
    """
    ours, theirs = _unnamed(shape_of(said)), _unnamed(shape_of(meant))
    kinds = {ours.kind, theirs.kind}
    if kinds == {"one"}:
        return None
    if shape_of(said).kind == shape_of(meant).kind == "one" and _other_names(said, meant):
        return WRONG, "another name"
    if kinds == {"set", "bracket"} or (kinds == {"list", "bracket"} and {"'or", r"\vee"} & {*said, *meant}):
        return WRONG, "a set is not a tuple"
    if "one" in kinds:
        return None if _CLAIMS_OF_SEVERAL & {*said, *meant} else (WRONG, "number of items")
    inside = [enclosed(t, "[", "]") or enclosed(t, "(", ")") or enclosed(t, r"\{", r"\}") or t for t in (said, meant)]
    first, second = (dict(named_list(side)) for side in inside)
    if len(first) > 1 and set(first) == set(second):
        return in_order([first[name] for name in second], list(second.values()), policies)
    if kinds == {"bracket", "list"}:
        values = [[value for _, value in pairs] if len(pairs := named_list(side)) > 1 else [] for side in (said, meant)]
        return by_policy("brackets not written", in_order(values[0] or ours.items, values[1] or theirs.items, policies))
    if kinds == {"bracket"}:
        return in_order(ours.items, theirs.items, policies) if _brackets_agree(ours, theirs) else (WRONG, "brackets")
    heads = [{named(item)[0] for item in side.items} - {""} for side in (ours, theirs)]
    if kinds == {"list"} and all(heads) and heads[0] != heads[1] and "(" not in " ".join(heads[0] | heads[1]):
        return WRONG, "another name"
    return in_any_order(ours.items, theirs.items, policies)


# Signs by which one claim can be the same as several: a set as an expression of sets, an inequality as an interval.
_CLAIMS_OF_SEVERAL = frozenset(r"\cup \setminus \mathbb \cap \ne | ⟨ \vec < > \le \ge \in".split())


def _brackets_agree(ours: structure.Shape, theirs: structure.Shape) -> bool:
    """Round ones are no square ones in pairs, which may be intervals; a vector written as a matrix is a tuple."""
    pairs = {"()" if shape.brackets == "⟨⟩" else shape.brackets for shape in (ours, theirs)}
    sizes = [brackets.split("×") for brackets in pairs if "×" in brackets]
    vectors = len(pairs) == 2 and len(sizes) == 1 and "1" in sizes[0]
    return vectors or len(pairs) == 1 or (pairs == {"()", "[]"} and len(ours.items) != 2)


def _other_names(said: Tokens, meant: Tokens) -> bool:
    return len({named(said)[0], named(meant)[0]} - {""}) > 1


def _unnamed(shape: structure.Shape) -> structure.Shape:
    """``(x, y) = (1, 2)`` as (1, 2), ``S = \\{1\\}`` as its set: one claim under a name, whose value has items of its own."""
    name, first = named(shape.items[0]) if shape.items else ("", ())
    inner = shape_of(first)
    if shape.kind == "one" and name and inner.kind != "one":
        return inner
    if shape.kind == "list" and name.startswith("(") and inner.kind == "bracket":  # (a,b)=(1,2),(2,1)
        return structure.Shape(kind="list", items=(first, *shape.items[1:]))
    return shape


def basis_vectors(said: Tokens, meant: Tokens, policies: Policies) -> Decision | None:
    r"""``3i - j`` is the vector (3, -1), where the other side is a tuple.

    >>> \langle 3,-1\rangle ~ 3\mathbf{i}-\mathbf{j}    2\hat{i}+3\hat{j} ~ (2,3)    \langle -1,3\rangle !~ 3\mathbf{i}-\mathbf{j}
    """
    for combination, other in ((said, meant), (meant, said)):
        shape, plain = shape_of(other), tokenise(_HATS.sub(r" \1", render(combination)))
        if shape.kind == "bracket" and len(shape.items) in (2, 3) and set("i") <= {t for t in plain if variable(t)} <= set("ijk"):
            spelt = sum([("+", "(", *item, ")", letter) for item, letter in zip(shape.items, "ijk", strict=False)], ())[1:]
            return symbolic.equal(plain, spelt)
    return None
