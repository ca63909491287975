r"""Rules about claims that hold several: congruences, sets by a condition, lists, tuples, matrices. Each is as ``judge`` says."""

from __future__ import annotations

from fr3e_async.verify import symbolic
from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import (
    MAX_ITEMS,
    RIGHT,
    WRONG,
    Ruling,
    by,
    every,
    in_any_order,
    in_order,
)  # fmt: skip
from fr3e_async.verify.structure import (
    Shape,
    builder,
    interval_of,
    is_name,
    is_relation,
    matrix_of,
    named,
    named_list,
    shape_of,
    without_domain,
)  # fmt: skip
from fr3e_async.verify.tokens import Tokens, enclosed, split


def congruence(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``x \equiv r \pmod m``: the same modulus and the same residues. A reference with a modulus may be answered by ``r`` alone.

    >>> x\equiv 3\pmod{7} ~ x \equiv 3 \pmod 7    10 \pmod 7 ~ 3 \pmod 7    3 ~ x\equiv3\pmod7    x=7k+3 ~ x\equiv 3\pmod 7
    >>> x\equiv 6\pmod 7 !~ x\equiv 3 \pmod 7    x\equiv 5\pmod 5 !~ x\equiv 5\pmod 7
    """
    theirs, ours = _residues(meant), _residues(said)
    if theirs is None:
        if ours is not None and written_number(meant) is not None:  # 5 \pmod 7 for 5: the residue with its modulus named
            reduced = [written_number(residue) for residue in ours[0]]
            number, modulus = reduced[0], written_number(ours[1])
            if len(reduced) == 1 and number and modulus and 0 <= number.value < modulus.value:
                return by("claims", ours[0][0], meant, policies)
            return WRONG, "a modulus"
        return None
    if ours is None:
        ours = _progression(said) or (tuple(shape_of(named(without_domain(said)[0])[1]).items), theirs[1])
        outcome, reason = _same_residues(ours, theirs, policies)
        return (outcome, "policy: modulus not named" if outcome == RIGHT else reason)
    return _same_residues(ours, theirs, policies)


Residues = tuple[tuple[Tokens, ...], Tokens]


def _residues(tokens: Tokens) -> Residues | None:
    """(residues, modulus) of tokens that end in ``\\pmod m``, with or without ``x \\equiv`` before."""
    if r"\pmod" not in tokens:
        return None
    at = tokens.index(r"\pmod")
    before, modulus = tokens[:at], tokens[at + 1 :]
    if before[-1:] == ("(",) and modulus[-1:] == (")",):
        before, modulus = before[:-1], modulus[:-1]
    modulus = enclosed(modulus, "(", ")") or modulus
    if r"\equiv" in before:
        name, before = before[: before.index(r"\equiv")], before[before.index(r"\equiv") + 1 :]
        if not is_name(name):
            return None
    if "=" in tokens or not before or not modulus or any(t in before for t in (r"\equiv", r"\pmod")):
        return None
    return tuple(shape_of(before).items), modulus


def _progression(tokens: Tokens) -> Residues | None:
    """(residues, modulus) of ``x = 7k + 3``."""
    value = named(without_domain(tokens)[0])[1]
    names = {str(x) for x in getattr(symbolic.reading(value), 'free_symbols', ())}
    if len(names) != 1 or not names <= set("knmtlqsj"):
        return None
    (name,) = names
    parts = split(value, frozenset(["+"]))
    moduli = [part[:-1] for part in parts if part[-1:] == (name,) and len(part) == 2]
    rest = [part for part in parts if part[-1:] != (name,)]
    return ((rest[0],), moduli[0]) if len(moduli) == len(rest) == 1 and rest[0] else None


def _same_residues(ours: Residues, theirs: Residues, policies: Policies) -> Ruling:
    if by("values", ours[1], theirs[1], policies)[0] != RIGHT:
        return WRONG, "another modulus"
    modulus = written_number(theirs[1])
    values = [[written_number(item) for item in side] for side in (ours[0], theirs[0])]
    if modulus and modulus.value and all(number is not None for side in values for number in side):
        reduced = [sorted(number.value % modulus.value for number in side if number) for side in values]
        return (RIGHT, "residues") if reduced[0] == reduced[1] else (WRONG, "other residues")
    return in_any_order(list(ours[0]), list(theirs[0]), policies)


def condition(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``\{x \mid 2 < x < 3\}`` is its condition, an inequality in one name its interval, ``x \in I`` is I.

    >>> (2,3) ~ \{x | 2 < x < 3\}    x<-2 \text{ or } x>3 ~ (-\infty,-2)\cup(3,\infty)    k > -5 !~ (-\infty,-5)    [0,2] !~ [0,1)\cup(1,2]
    """
    first, second = _without_builders(said), _without_builders(meant)
    if (first, second) != (said, meant):
        return symbolic.equal(first, second)
    ours, theirs = _as_pieces(said), _as_pieces(meant)
    if (
        ours is None
        or theirs is None
        or _other_names(said, meant)
        or (len(ours) == len(theirs) == 1 and shape_of(ours[0]).kind != "bracket")
    ):
        return None
    if said == ours[0] and meant == theirs[0]:
        return None  # no condition and no union on either side
    names = [_bound(side) for side in (said, meant)]
    if all(names) and names[0] != names[1]:
        return WRONG, "other variables"
    ruling = in_any_order(ours, theirs, policies)
    if ruling[0] == RIGHT:
        return ruling
    simple = symbolic.equal(_union(ours), _union(theirs))
    return simple if simple[0] == RIGHT else ruling


def _bound(tokens: Tokens) -> set[Tokens]:
    r"""The names that an inequality or ``x \in I`` speaks of; none of a set, whose letter is nobody's business."""
    if builder(tokens) is not None or not is_relation(tokens):
        return set()
    heads = [item[: item.index(r"\in")] if r"\in" in item else item for item in shape_of(tokens).items]
    return {part for head in heads for part in split(head, frozenset(["<", ">", r"\le", r"\ge"])) if is_name(part)}


def _without_builders(tokens: Tokens) -> Tokens:
    r"""``\{x \mid x < 2\} \setminus \{1\}`` as ``(-\infty,2) \setminus \{1\}``; anything else as it is. A minus between sets is that sign."""
    minus = {
        at
        for at, token in enumerate(tokens)
        if token == "-" and tokens[at - 1 : at] == (r"\}",) and tokens[at + 1 : at + 2] == (r"\{",)
    }
    whole, *removed = split(tuple(r"\setminus" if at in minus else t for at, t in enumerate(tokens)), frozenset([r"\setminus"]))
    found = interval_of(builder(whole) or ()) if removed else None
    out = whole if found is None else found
    for part in removed:
        out += (r"\setminus", *part)
    return out if removed and found is not None else tokens


def _as_pieces(tokens: Tokens) -> list[Tokens] | None:
    """A set of real numbers as pieces of a union, inequalities as intervals; None if it is anything else."""
    found = builder(tokens)
    tokens = found if found is not None else tokens
    if tokens[:4] == (r"\mathbb", "{", "R", "}") and tokens[4:] in (
        ("^", "{", "+", "}"),
        ("_", "{", "+", "}"),
        ("^", "+"),
        ("_", "+"),
    ):
        tokens = ("(", "0", ",", r"\infty", ")")
    if r"\in" in tokens and is_name(tokens[: tokens.index(r"\in")]):
        tokens = tokens[tokens.index(r"\in") + 1 :]
    shape = shape_of(tokens)
    if shape.kind == "list" and not all(is_relation(item) for item in shape.items):
        return None
    items = list(shape.items) if shape.kind == "list" else [tokens]
    pieces: list[Tokens] = []
    for item in items:
        for part in split(item, frozenset([r"\cup"])):
            part = named(part)[1] if not is_relation(part) and shape_of(named(part)[1]).kind == "bracket" else part
            interval = interval_of(part) or part
            if not (interval[:1] and interval[0] in ("(", "[", r"\{") and interval[-1] in (")", "]", r"\}")):
                return None
            pieces.append(interval)
    return [tuple(t for i, t in enumerate(piece) if not (t == "+" and piece[i + 1 : i + 2] == (r"\infty",))) for piece in pieces]


def _union(pieces: list[Tokens]) -> Tokens:
    out: Tokens = ()
    for piece in pieces:
        out += ((r"\cup",) if out else ()) + piece
    return out


def collection(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Lists, sets, tuples, intervals: as many items on both sides, each right by itself; in any order where none is said.

    >>> \{2,1\} ~ \{1,2\}    2,1 ~ 1,2    (x,y)=(1,2) ~ (1,2)    y=2, x=1 ~ x=1, y=2    a=1,b=2,c=3 ~ (1,2,3)    3,-3 ~ \pm 3
    >>> (2,1) !~ (1,2)    (y,x)=(1,2) !~ (x,y)=(1,2)    \{1,2\} !~ (1,2)    (1,2] !~ [1,2]    1,2 !~ 1,2,3    1,1,2 !~ 1,2,2    x=1,y=1; x=2,y=2 !~ x=1,y=2; x=2,y=1
    """
    ours, theirs = _unnamed(shape_of(said)), _unnamed(shape_of(meant))
    kinds = {ours.kind, theirs.kind}
    if kinds == {"one"}:
        return None
    if shape_of(said).kind == shape_of(meant).kind == "one" and _other_names(said, meant):
        return WRONG, "another name"
    if kinds == {"set", "bracket"}:
        return WRONG, "a set is not a tuple"
    if "one" in kinds:
        return None if _may_be_read_otherwise(said, meant) else (WRONG, "number of items")
    if max(len(ours.items), len(theirs.items)) > MAX_ITEMS:
        return WRONG, "too many items"
    if (by_name := _by_name(said, meant, policies)) is not None:
        return by_name
    if theirs.kind == "list" and ours.kind == "bracket" and len(theirs.items) > 1 and named_list(meant):
        return in_order(ours.items, tuple(value for _, value in named_list(meant)), policies)
    if theirs.kind == "bracket" and ours.kind == "list":
        values = tuple(value for _, value in named_list(said))
        outcome, reason = in_order(values or ours.items, theirs.items, policies)
        return outcome, "policy: brackets not written" if outcome == RIGHT else reason
    if "bracket" in kinds:
        pairs = [_pairing(side.brackets) for side in (ours, theirs)]
        if ours.kind == theirs.kind and pairs[0] != pairs[1] and (len(ours.items) == 2 or not set(pairs) <= {"()", "[]"}):
            return WRONG, "brackets"
        return in_order(ours.items, theirs.items, policies)
    return in_any_order(list(ours.items), list(theirs.items), policies)


def _other_names(said: Tokens, meant: Tokens) -> bool:
    ours, theirs = named(said)[0], named(meant)[0]
    return bool(ours and theirs) and ours != theirs


def _pairing(brackets: str) -> str:
    return "()" if brackets == "⟨⟩" else brackets


def _may_be_read_otherwise(said: Tokens, meant: Tokens) -> bool:
    """Can one claim be the same as several? A matrix as a tuple can, a set as an expression of sets, an inequality as an interval."""
    signs = {r"\cup", r"\setminus", r"\mathbb", r"\cap", r"\ne", "|", "⟨", r"\vec", "<", ">", r"\le", r"\ge", r"\in"}
    return matrix_of(said) is not None or matrix_of(meant) is not None or bool(signs & {*said, *meant})


def _unnamed(shape: Shape) -> Shape:
    """``(x, y) = (1, 2)`` as (1, 2), ``S = \\{1\\}`` as its set: one claim under a name, whose value has items of its own."""
    if shape.kind == "list" and all(shape_of(item).kind in ("one", "bracket") for item in shape.items):
        name, first = named(shape.items[0])
        if name.startswith("(") and shape_of(first).kind == "bracket":  # (a,b)=(1,2),(2,1)
            return Shape(kind="list", items=(first, *shape.items[1:]))
    if shape.kind == "one" and shape.items:
        name, value = named(shape.items[0])
        inner = shape_of(value)
        if name and inner.kind != "one":
            return inner
    return shape


def _by_name(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    inside = [
        enclosed(side, "[", "]") or enclosed(side, "(", ")") or enclosed(side, r"\{", r"\}") or side for side in (said, meant)
    ]
    ours, theirs = (dict(named_list(side)) for side in inside)
    if len(ours) < 2 or set(ours) != set(theirs):
        return None
    return every([by("claims", ours[name], value, policies) for name, value in theirs.items()])


def matrix(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Matrices entry by entry; one row or column is the tuple of its entries.

    >>> \begin{bmatrix}1&2\end{bmatrix} ~ \begin{pmatrix}1&2\end{pmatrix}    \langle -2,5\rangle ~ \begin{pmatrix} -2 \\ 5 \end{pmatrix}
    >>> (5,-2) !~ \begin{pmatrix} -2 \\ 5 \end{pmatrix}    \begin{pmatrix}3\\1\end{pmatrix} !~ \begin{pmatrix}3x^2\\1\end{pmatrix}
    """
    ours, theirs = matrix_of(named(said)[1]), matrix_of(named(meant)[1])
    if ours is None and theirs is None:
        return None
    if _other_names(said, meant):
        return WRONG, "another name"
    if ours is not None and theirs is not None:
        if [len(row) for row in ours] != [len(row) for row in theirs]:
            return WRONG, "another size"
        pairs = [pair for rows in zip(ours, theirs, strict=True) for pair in zip(*rows, strict=True)]
        return every([by("claims", *pair, policies) for pair in pairs])
    rows, other = (ours, meant) if ours is not None else (theirs, said)
    cells = tuple(cell for row in rows or [] for cell in row)
    shape = _unnamed(shape_of(other))
    if shape.kind != "bracket" or (len(rows or []) != 1 and any(len(row) != 1 for row in rows or [])):
        return WRONG, "not a vector"
    return in_order(cells, shape.items, policies) if ours is not None else in_order(shape.items, cells, policies)


def basis_vectors(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``3i - j`` is the vector (3, -1), where the other side is a tuple.

    >>> \langle 3,-1\rangle ~ 3\mathbf{i}-\mathbf{j}    2\hat{i}+3\hat{j} ~ (2,3)    \langle -1,3\rangle !~ 3\mathbf{i}-\mathbf{j}
    """
    for combination, other, swapped in ((meant, said, False), (said, meant, True)):
        shape = shape_of(other)
        joined = "\0".join(combination)
        for letter in "ijk":
            joined = joined.replace(f"\\hat\0{{\0{letter}\0}}", letter)
        combination = tuple(joined.split("\0"))
        letters = {t for t in combination if len(t) == 1 and t.isalpha()}
        if shape.kind != "bracket" or not letters or not letters <= set("ijk") or len(shape.items) not in (2, 3):
            continue
        basis = "ijk"[: len(shape.items)]
        spelt: Tokens = ()
        for item, letter in zip(shape.items, basis, strict=True):
            spelt += ("+", "(", *item, ")", letter)
        return symbolic.equal(spelt[1:], combination) if not swapped else symbolic.equal(combination, spelt[1:])
    return None
