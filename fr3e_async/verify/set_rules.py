r"""Rules about claims that hold several: congruences, sets by a condition, lists, tuples, matrices. Each is as ``judge`` says."""

from __future__ import annotations

from fr3e_async.verify import symbolic
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import RIGHT, WRONG, Ruling, by_policy, in_any_order, in_order
from fr3e_async.verify.structure import Shape, is_relation, named, named_list, pieces_of, shape_of
from fr3e_async.verify.tokens import Tokens, enclosed, variable


def condition(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``\{x \mid 2 < x < 3\}`` is its condition, an inequality in one name its interval, ``x \in I`` is I.

    >>> (2,3) ~ \{x | 2 < x < 3\}    x<-2 \text{ or } x>3 ~ (-\infty,-2)\cup(3,\infty)    k > -5 !~ (-\infty,-5)    [0,2] !~ [0,1)\cup(1,2]
    """
    ours, theirs = pieces_of(said), pieces_of(meant)
    if ours is None or theirs is None or _other_names(said, meant) or (ours == [said] and theirs == [meant]):
        return None  # no condition and no union on either side
    if len(ours) == len(theirs) == 1 and shape_of(ours[0]).kind != "bracket":
        return None if r"\setminus" not in (*ours[0], *theirs[0]) else symbolic.equal(ours[0], theirs[0])
    names = [{t for t in side if variable(t)} - {"R"} for side in (said, meant) if is_relation(side) and side[0] != r"\{"]
    if len(names) == 2 and names[0] != names[1]:
        return WRONG, "other variables"
    ruling = in_any_order(ours, theirs, policies)
    if ruling[0] == RIGHT:
        return ruling
    simple = symbolic.equal(*(sum([(r"\cup", *piece) for piece in side], ())[1:] for side in (ours, theirs)))
    return simple if simple[0] == RIGHT else ruling


def collection(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Lists, sets, tuples, intervals, matrices: as many items on both sides, each right by itself; in any order where none is said.

    >>> \{2,1\} ~ \{1,2\}    2,1 ~ 1,2    (x,y)=(1,2) ~ (1,2)    y=2, x=1 ~ x=1, y=2    a=1,b=2,c=3 ~ (1,2,3)    3,-3 ~ \pm 3
    >>> (2,1) !~ (1,2)    (y,x)=(1,2) !~ (x,y)=(1,2)    \{1,2\} !~ (1,2)    (1,2] !~ [1,2]    1,2 !~ 1,2,3    1,1,2 !~ 1,2,2    x=1,y=1; x=2,y=2 !~ x=1,y=2; x=2,y=1
    >>> \begin{bmatrix}1&2\end{bmatrix} ~ \begin{pmatrix}1&2\end{pmatrix}    \langle -2,5\rangle ~ \begin{pmatrix} -2 \\ 5 \end{pmatrix}
    >>> (5,-2) !~ \begin{pmatrix} -2 \\ 5 \end{pmatrix}    \begin{pmatrix}3\\1\end{pmatrix} !~ \begin{pmatrix}3x^2\\1\end{pmatrix}
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
        return None if _CLAIMS_OF_SEVERAL & {*said, *meant} else (WRONG, "number of items")
    inside = [enclosed(t, "[", "]") or enclosed(t, "(", ")") or enclosed(t, r"\{", r"\}") or t for t in (said, meant)]
    first, second = (dict(named_list(side)) for side in inside)
    if len(first) > 1 and set(first) == set(second):
        return in_order([first[name] for name in second], list(second.values()), policies)
    if kinds == {"bracket", "list"}:
        values = [[value for _, value in pairs] if len(pairs := named_list(side)) > 1 else [] for side in (said, meant)]
        return by_policy("brackets not written", in_order(values[0] or ours.items, values[1] or theirs.items, policies))
    if kinds == {"bracket"}:
        agree = _brackets_agree(ours, theirs)
        return in_order(ours.items, theirs.items, policies) if agree else (WRONG, "brackets")
    return in_any_order(ours.items, theirs.items, policies)


# Signs by which one claim can be the same as several: a set as an expression of sets, an inequality as an interval.
_CLAIMS_OF_SEVERAL = frozenset(r"\cup \setminus \mathbb \cap \ne | ⟨ \vec < > \le \ge \in".split())


def _brackets_agree(ours: Shape, theirs: Shape) -> bool:
    """Round ones are no square ones in pairs, which may be intervals; a vector written as a matrix is a tuple."""
    pairs = {"()" if shape.brackets == "⟨⟩" else shape.brackets for shape in (ours, theirs)}
    sizes = [brackets.split("×") for brackets in pairs if "×" in brackets]
    if len(pairs) == 2 and len(sizes) == 1:
        return "1" in sizes[0]
    return len(pairs) == 1 or (pairs == {"()", "[]"} and len(ours.items) != 2)


def _other_names(said: Tokens, meant: Tokens) -> bool:
    ours, theirs = named(said)[0], named(meant)[0]
    return bool(ours and theirs) and ours != theirs


def _unnamed(shape: Shape) -> Shape:
    """``(x, y) = (1, 2)`` as (1, 2), ``S = \\{1\\}`` as its set: one claim under a name, whose value has items of its own."""
    name, first = named(shape.items[0]) if shape.items else ("", ())
    inner = shape_of(first)
    if shape.kind == "one" and name and inner.kind != "one":
        return inner
    if shape.kind == "list" and name.startswith("(") and inner.kind == "bracket":  # (a,b)=(1,2),(2,1)
        return Shape(kind="list", items=(first, *shape.items[1:]))
    return shape


def basis_vectors(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``3i - j`` is the vector (3, -1), where the other side is a tuple.

    >>> \langle 3,-1\rangle ~ 3\mathbf{i}-\mathbf{j}    2\hat{i}+3\hat{j} ~ (2,3)    \langle -1,3\rangle !~ 3\mathbf{i}-\mathbf{j}
    """
    for combination, other in ((said, meant), (meant, said)):
        shape, joined = shape_of(other), "\0".join(combination)
        for letter in "ijk":
            joined = joined.replace(f"\\hat\0{{\0{letter}\0}}", letter)
        plain = tuple(joined.split("\0"))
        if shape.kind == "bracket" and len(shape.items) in (2, 3) and set("i") <= {t for t in plain if variable(t)} <= set("ijk"):
            spelt = sum([("+", "(", *item, ")", letter) for item, letter in zip(shape.items, "ijk", strict=False)], ())[1:]
            return symbolic.equal(plain, spelt)
    return None
