r"""One answer against one reference: right only on a positive proof. Runs in a killable process.

Each rule is one function. It gives a ruling where it applies, and None where it does not; the first that applies decides. Its docstring
states what it proves, and its examples are its tests (``answer ~ reference`` is right, ``!~`` is wrong). What no rule proves is wrong
("unproven: ..."), never unknown: unknown is for limits, and for references that are sentences. Reasons that begin with "policy" are
right by a policy (``docs/verifier.md``), not by proof. Knows nothing of limits, responses and rewards; returns plain strings, so that a
worker needs neither numpy nor our types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from fr3e_async.verify import symbolic
from fr3e_async.verify.numbers import Number, compare_numbers, written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.structure import (
    Shape,
    builder,
    chain,
    interval_of,
    is_name,
    is_relation,
    matrix_of,
    named,
    named_list,
    shape_of,
    without_domain,
)
from fr3e_async.verify.tokens import SPACE, Tokens, enclosed, is_digits, is_word, split, tokenise, trimmed, words_of
from fr3e_async.verify.units import DEGREES, PERCENT_SIGN, Quantity, factor_between, is_measure, quantity, without_a_word_for_it
from fr3e_async.verify.words import BASES, CONNECTIVES, LEADS, PHRASES, STANCES

__all__ = ["MEMORY_LIMIT", "RIGHT", "UNKNOWN", "WRONG", "gold_kind", "judge"]

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
MEMORY_LIMIT = "memory limit"
SENTENCE = "the reference is a sentence"
_MAX_ITEMS = 64
_SENTENCE_WORDS = 4  # from here on, words can say one thing in many ways

Ruling = tuple[str, str]
Rule = Callable[[Tokens, Tokens, Policies], Ruling | None]


def judge(
    answer: str,
    gold: str,
    *,
    unfinished: Literal["wrong", "right"] = "wrong",
    units: Literal["checked", "ignored"] = "checked",
    percent: Literal["optional", "exact"] = "optional",
    decimal_digits: int = 4,
) -> Ruling:
    """(outcome, reason) of an answer. Both texts come without their box. The keywords are those of ``Policies``."""
    policies = Policies(unfinished=unfinished, units=units, percent=percent, decimal_digits=decimal_digits)
    if answer == gold:
        return RIGHT, "same text"
    try:
        said, meant = tokenise(answer), tokenise(gold)
        if not meant:
            return UNKNOWN, "the reference is empty"
        return _by(WHOLE, said, meant, policies)
    except MemoryError:
        return UNKNOWN, MEMORY_LIMIT
    except RecursionError:
        return WRONG, "unproven: nested too deeply"
    except Exception as error:  # a fault of ours, or of sympy's, is nobody's wrong answer
        return UNKNOWN, f"crashed: {type(error).__name__}"


def gold_kind(gold: str) -> Literal["integer", "mathematics", "word", "text"]:
    """What answers to this reference are compared by: digits, mathematics, one word or a few, or text, where only the same words are right.

    "text" is what a dataset should be warned of.
    """
    tokens = tokenise(gold)
    number = written_number(tokens)
    if number is not None and number.integer:
        return "integer"
    if not tokens or _is_prose(tokens):
        return "word" if len(tokens) == 1 else "text"
    try:
        readable = all(_readable(chain(named(item)[1])[-1]) for item in shape_of(without_domain(tokens)[0]).items)
    except (*symbolic.ODDITIES, RecursionError, MemoryError):
        return "text"
    return "mathematics" if readable else "text"


def _readable(tokens: Tokens) -> bool:
    shape = shape_of(tokens)
    if shape.kind != "one":
        return all(map(_readable, shape.items))
    core = quantity(interval_of(tokens) or tokens).core
    return (
        written_number(core) is not None
        or matrix_of(core) is not None
        or symbolic.is_mathematics(core)
        or r"\equiv" in tokens
        or r"\cup" in tokens
    )


def _by(rules: tuple[Rule, ...], said: Tokens, meant: Tokens, policies: Policies) -> Ruling:
    if not said or not meant:
        return WRONG, "nothing is said"
    for rule in rules:
        ruling = rule(said, meant, policies)
        if ruling is not None:
            return ruling
    return WRONG, "unproven"


def _all(rulings: list[Ruling]) -> Ruling:
    """Wrong before unknown before right by policy before right by proof."""
    order = (RIGHT, UNKNOWN, WRONG)
    return max(rulings, key=lambda ruling: (order.index(ruling[0]), ruling[1].startswith("policy")))


# ---- text ----


def same_text(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The same tokens are the same answer.

    >>> \dfrac12 ~ \frac{1}{2}    ½ ~ \frac12    x^{\prime} ~ x'    f'(x) !~ f(x)    A^{-1} !~ A^T
    """
    return (RIGHT, "same text") if said == meant else None


def decimal_comma(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Digits with a comma where the other side has the same digits with a point.

    >>> 1,22 ~ 1.22    1,22 !~ 1.23
    """
    for comma, point in ((said, meant), (meant, said)):
        if len(comma) == 3 and comma[1] == "," and len(point) == 1 and "." in point[0] and f"{comma[0]}.{comma[2]}" == point[0]:
            return RIGHT, "policy: decimal comma"
    return None


def choice(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is one letter A to J, alone or in brackets; the answer names that letter, and no other.

    >>> (b) ~ B    (B) 12 ~ B    \text{Option A} ~ A    \text{A or B} !~ A    \text{(C) is wrong, so (D)} !~ C    C = D !~ x
    """
    letter = _letter(_letters(meant))
    if letter is None:
        return None
    rest = tuple(token for token in _letters(said) if not (is_word(token) and token[1:].lower() in _CHOOSING))
    rest = rest[1:] if rest[:1] in ((":",), ("'选",)) else rest
    bracketed = rest[:1] == ("(",)
    head, tail = (rest[:3], rest[3:]) if bracketed else (rest[:1], rest[1:])
    chosen = _letter(tuple(token.upper() if len(token) == 1 else token for token in head)) if bracketed else _letter(head)
    if tail[:1] in ((".",), (")",), (":",)):
        tail = tail[1:]
    elif tail and not bracketed:
        return WRONG, "another choice"
    if chosen is None or (tail and written_number(quantity(tail).core) is None):
        return WRONG, "another choice"
    return (RIGHT, "choice") if chosen == letter else (WRONG, "another choice")


_CHOOSING = frozenset(["option", "choice", "answer", "the", "is"])


def _letters(tokens: Tokens) -> Tokens:
    """With the capitals A to J of ``\\text{A and B}`` and of ``BC`` as letters of their own."""
    spelt = [[*t[1:]] if is_word(t) and set(t[1:]) <= set("ABCDEFGHIJ") else [t] for t in tokens]
    return tuple(letter for piece in spelt for letter in piece)


def _letter(tokens: Tokens) -> str | None:
    inside = enclosed(tokens, "(", ")") or tokens
    return inside[0] if len(inside) == 1 and len(inside[0]) == 1 and inside[0] in "ABCDEFGHIJ" else None


def several_choices(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is several different letters A to J; the answer has the same letters, in any order.

    >>> A, B, D ~ ABD    \text{A, B, and D} ~ ABD    CA ~ AC    AB !~ ABD
    """
    letters = [token for token in _letters(meant) if token not in (",", ";")]
    if len(letters) < 2 or len(set(letters)) < len(letters) or any(len(t) != 1 or t not in "ABCDEFGHIJ" for t in letters):
        return None
    ours = [t for t in _letters(said) if t not in (",", ";") and not (is_word(t) and t[1:].lower() == "and")]
    if all(len(t) == 1 and t in "ABCDEFGHIJ" for t in ours):
        return (RIGHT, "choices") if sorted(ours) == sorted(letters) else (WRONG, "other choices")
    return None


def words(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""The reference is words. The same words, without articles and with small letters, are right; so are phrases of one row of ``PHRASES``.

    >>> \text{Even} ~ even    \text{yes, it is} ~ Yes    \text{DNE} ~ \text{does not exist}    \infty ~ \text{infinitely many}
    >>> \text{odd} !~ \text{even}    \text{Yes and no} !~ Yes    \text{Alice or Bob} !~ \text{Alice}
    """
    ours, theirs = _phrase(said), _phrase(meant)
    if ours and ours == theirs:
        return RIGHT, "same words"
    if not _is_prose(meant):
        return None
    spoken, expected = _spoken(said), _spoken(meant)
    if spoken == expected and spoken:
        return RIGHT, "same words"
    stance = STANCES.get(expected[0]) if len(expected) == 1 else None
    if stance is not None and spoken and all(is_word(t) or t == "," for t in said):
        agrees = STANCES.get(spoken[0]) == stance and set(spoken[1:]) <= _AFFIRMING
        return (RIGHT, "yes or no") if agrees else (WRONG, "another word")
    if len(expected) >= _SENTENCE_WORDS:
        return UNKNOWN, SENTENCE
    return WRONG, "other words"


_ARTICLES = frozenset(["a", "an", "the"])
_AFFIRMING = frozenset("it is they are does do indeed always".split())


def _is_prose(tokens: Tokens) -> bool:
    """Words, and nothing that computes; or a sentence around mathematics."""
    count = len(words_of(tokens))
    if written_number(tokens) is not None or not count:
        return False
    return all(
        is_word(token) or token in (",", ".", ";", ":", "-", "'", "?", "!") or (len(token) == 1 and token.isalpha())
        for token in tokens
    ) or (
        count > _SENTENCE_WORDS
        and shape_of(tokens).kind == "one"
        and written_number(quantity(tokens).core) is None
        and "=" not in tokens
    )


def _spoken(tokens: Tokens) -> list[str]:
    """Words in small letters without articles, nor those of ``LEADS`` at the head; whatever else is there but punctuation stays."""
    said = [token[1:].lower() if is_word(token) else token for token in tokens if token not in (",", ".", ";", ":", SPACE)]
    while len(said) > 1 and said[0] in LEADS:
        said = said[1:]
    return [word for word in said if word not in _ARTICLES] or said


def _phrase(tokens: Tokens) -> str:
    """The first of the row of ``PHRASES`` that the tokens are in; a sign for one of them counts too."""
    sign = {
        (r"\infty",): "infinity",
        (r"\emptyset",): "no solution",
        (r"\{", r"\}"): "no solution",
        (r"\mathbb", "{", "R", "}"): "all real numbers",
    }
    interval = tokens == ("(", "-", r"\infty", ",", r"\infty", ")") or tokens == ("(", "-", r"\infty", ",", "+", r"\infty", ")")
    text = sign.get(
        tokens, "all real numbers" if interval else " ".join(words_of(tokens)).lower() if all(map(is_word, tokens)) else ""
    )
    return next((row[0] for row in PHRASES if text in row), "")


# ---- claims of any shape ----


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
                return _by(CLAIMS, ours[0][0], meant, policies)
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
    names = symbolic.symbols_of(value)
    if len(names) != 1 or not names <= set("knmtlqsj"):
        return None
    (name,) = names
    parts = split(value, frozenset(["+"]))
    moduli = [part[:-1] for part in parts if part[-1:] == (name,) and len(part) == 2]
    rest = [part for part in parts if part[-1:] != (name,)]
    return ((rest[0],), moduli[0]) if len(moduli) == len(rest) == 1 and rest[0] else None


def _same_residues(ours: Residues, theirs: Residues, policies: Policies) -> Ruling:
    if _by(VALUES, ours[1], theirs[1], policies)[0] != RIGHT:
        return WRONG, "another modulus"
    modulus = written_number(theirs[1])
    values = [[written_number(item) for item in side] for side in (ours[0], theirs[0])]
    if modulus and modulus.value and all(number is not None for side in values for number in side):
        reduced = [sorted(number.value % modulus.value for number in side if number) for side in values]
        return (RIGHT, "residues") if reduced[0] == reduced[1] else (WRONG, "other residues")
    return _in_any_order(list(ours[0]), list(theirs[0]), policies)


def condition(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``\{x \mid 2 < x < 3\}`` is its condition, an inequality in one name its interval, ``x \in I`` is I.

    >>> (2,3) ~ \{x | 2 < x < 3\}    x<-2 \text{ or } x>3 ~ (-\infty,-2)\cup(3,\infty)    k > -5 !~ (-\infty,-5)    [0,2] !~ [0,1)\cup(1,2]
    """
    first, second = _without_builders(said), _without_builders(meant)
    if (first, second) != (said, meant):
        return symbolic.equal(first, second)
    ours, theirs = _as_pieces(said), _as_pieces(meant)
    if ours is None or theirs is None or (len(ours) == len(theirs) == 1 and shape_of(ours[0]).kind != "bracket"):
        return None
    if said == ours[0] and meant == theirs[0]:
        return None  # no condition and no union on either side
    names = [_bound(side) for side in (said, meant)]
    if all(names) and names[0] != names[1]:
        return WRONG, "other variables"
    ruling = _in_any_order(ours, theirs, policies)
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
    >>> (2,1) !~ (1,2)    \{1,2\} !~ (1,2)    (1,2] !~ [1,2]    1,2 !~ 1,2,3    1,1,2 !~ 1,2,2    x=1,y=1; x=2,y=2 !~ x=1,y=2; x=2,y=1
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
        if "list" in kinds and ours.kind == "one" and (pieces := _as_list(said)) is not None:
            ours = pieces
        else:
            return None if _may_be_read_otherwise(said, meant) else (WRONG, "number of items")
    if max(len(ours.items), len(theirs.items)) > _MAX_ITEMS:
        return WRONG, "too many items"
    if (by_name := _by_name(said, meant, policies)) is not None:
        return by_name
    if theirs.kind == "list" and ours.kind == "bracket" and len(theirs.items) > 1 and named_list(meant):
        return _in_order(ours.items, tuple(value for _, value in named_list(meant)), policies)
    if theirs.kind == "bracket" and ours.kind == "list":
        values = tuple(value for _, value in named_list(said))
        outcome, reason = _in_order(values or ours.items, theirs.items, policies)
        return outcome, "policy: brackets not written" if outcome == RIGHT else reason
    if "bracket" in kinds:
        pairs = [_pairing(side.brackets) for side in (ours, theirs)]
        if ours.kind == theirs.kind and pairs[0] != pairs[1] and (len(ours.items) == 2 or not set(pairs) <= {"()", "[]"}):
            return WRONG, "brackets"
        return _in_order(ours.items, theirs.items, policies)
    return _in_any_order(list(ours.items), list(theirs.items), policies)


def _other_names(said: Tokens, meant: Tokens) -> bool:
    ours, theirs = named(said)[0], named(meant)[0]
    return bool(ours and theirs) and ours != theirs


def _pairing(brackets: str) -> str:
    return "()" if brackets == "⟨⟩" else brackets


def _as_list(tokens: Tokens) -> Shape | None:
    return None


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
    return _all([_by(CLAIMS, ours[name], value, policies) for name, value in theirs.items()])


def _in_order(ours: tuple[Tokens, ...], theirs: tuple[Tokens, ...], policies: Policies) -> Ruling:
    if len(ours) != len(theirs):
        return WRONG, "number of items"
    return _all([_by(CLAIMS, first, second, policies) for first, second in zip(ours, theirs, strict=True)])


def _in_any_order(ours: list[Tokens], theirs: list[Tokens], policies: Policies) -> Ruling:
    """A partner of its own for each item. Equality is transitive, so the first partner that fits will do."""
    if len(ours) != len(theirs):
        return WRONG, "number of items"
    if max(len(ours), len(theirs)) > _MAX_ITEMS:
        return WRONG, "too many items"
    left, rulings = list(ours), []
    for item in theirs:
        for candidate in sorted(left, key=lambda other, item=item: other != item):  # type: ignore[misc]
            ruling = _by(CLAIMS, candidate, item, policies)
            if ruling[0] == RIGHT:
                left.remove(candidate)
                rulings.append(ruling)
                break
        else:
            return WRONG, "another item"
    return _all(rulings) if rulings else (RIGHT, "same items")


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
        return _all([_by(CLAIMS, *pair, policies) for pair in pairs])
    rows, other = (ours, meant) if ours is not None else (theirs, said)
    cells = tuple(cell for row in rows or [] for cell in row)
    shape = _unnamed(shape_of(other))
    if shape.kind != "bracket" or (len(rows or []) != 1 and any(len(row) != 1 for row in rows or [])):
        return WRONG, "not a vector"
    return _in_order(cells, shape.items, policies) if ours is not None else _in_order(shape.items, cells, policies)


def basis_vectors(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``3i - j`` is the vector (3, -1), where the other side is a tuple.

    >>> \langle 3,-1\rangle ~ 3\mathbf{i}-\mathbf{j}    \langle -1,3\rangle !~ 3\mathbf{i}-\mathbf{j}
    """
    for combination, other, swapped in ((meant, said, False), (said, meant, True)):
        shape = shape_of(other)
        letters = {t for t in combination if len(t) == 1 and t.isalpha()}
        if shape.kind != "bracket" or not letters or not letters <= set("ijk") or len(shape.items) not in (2, 3):
            continue
        basis = "ijk"[: len(shape.items)]
        spelt: Tokens = ()
        for item, letter in zip(shape.items, basis, strict=True):
            spelt += ("+", "(", *item, ")", letter)
        return symbolic.equal(spelt[1:], combination) if not swapped else symbolic.equal(combination, spelt[1:])
    return None


# ---- single claims ----


def ratio(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""``a:b:c``: proportional is equal. Where the second part has two digits it may be a time, which is equal digit by digit.

    >>> 2:4:6 ~ 1:2:3    \frac34 ~ 3:4    12{:}00 ~ 12:00    3:30\text{ p.m.} ~ 3:30    1:3:2 !~ 1:2:3    8:30 !~ 4:15    8:15\text{ p.m.} !~ 8:15\text{ a.m.}
    """
    theirs, ours = _parts(meant), _parts(said)
    if theirs is None or (ours is None and len(theirs[0]) > 2):
        return None if theirs is None else (WRONG, "not a ratio")
    if ours is None:
        top, bottom = theirs[0]
        return _by(VALUES, said, (r"\frac", "{", *top, "}", "{", *bottom, "}"), replace(policies, unfinished="right"))
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


def _parts(tokens: Tokens) -> tuple[list[Tokens], str] | None:
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
    theirs, ours = _digits_and_base(meant), _digits_and_base(said)
    if theirs is None:
        return None
    if ours is None:
        plain = written_number(said)
        same = plain is not None and "".join(said) == theirs[0]
        return (RIGHT, "policy: base not named") if same else (WRONG, "another number")
    return (RIGHT, "number in a base") if ours == theirs else (WRONG, "another number")


def _digits_and_base(tokens: Tokens) -> tuple[str, int] | None:
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
    outcome, reason = _by(CLAIMS, renamed, theirs, policies)
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
    return _by(CLAIMS, our_parts[-1], their_parts[-1], policies)


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
        return _by(CLAIMS, our_parts[-1], their_parts[-1], policies)
    ruling = symbolic.equal(said, meant)
    if ruling[0] == RIGHT or len(our_parts) > 1:
        return ruling
    if symbolic.solves(said, meant):
        return RIGHT, "solves the equation"
    return _by(CLAIMS, our_parts[-1], their_parts[-1], policies) if _computes(their_parts[0], their_parts[-1]) else ruling


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


# ---- amounts ----


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
        return _by(VALUES, ours.core, theirs.core, policies)
    if not ours.unit or not theirs.unit:
        return _unit_on_one_side(ours, theirs, policies)
    factor = factor_between(ours.unit, theirs.unit)
    if factor is None:
        same = ours.unit.lower().removesuffix("s") == theirs.unit.lower().removesuffix("s")
        return _by(VALUES, ours.core, theirs.core, policies) if same else (WRONG, "units differ")
    if factor == 1:
        return _by(VALUES, ours.core, theirs.core, policies)
    number, reference = written_number(ours.core), written_number(theirs.core)
    same = number is not None and reference is not None and number.value * factor == reference.value
    return (RIGHT, "units converted") if same else (WRONG, "units differ")


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
    return None if (ours, theirs) == (said, meant) else _by(CLAIMS, ours, theirs, policies)


def lead(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
    r"""Words such as "the answer is" before mathematics say nothing.

    >>> \text{Solution is: } 5 ~ 5    \text{only } x=0 ~ 0    \text{not } 4 !~ 4
    """
    ours, theirs = _without_lead(said), _without_lead(meant)
    return None if (ours, theirs) == (said, meant) else _by(CLAIMS, ours, theirs, policies)


def _without_lead(tokens: Tokens) -> Tokens:
    at = next((at for at, token in enumerate(tokens) if not (is_word(token) and token[1:].lower() in LEADS)), len(tokens))
    return trimmed(tokens[at:]) if 0 < at < len(tokens) and not is_word(tokens[at]) else tokens


def _exactly(tokens: Tokens) -> Tokens:
    r"""What counts of ``a \approx b``: a, or b where a is a name or missing."""
    parts = split(tokens, frozenset([r"\approx"]))
    if len(parts) != 2:
        return tokens
    return parts[1] if not parts[0] or is_name(parts[0]) else parts[0]


def _unit_on_one_side(ours: Quantity, theirs: Quantity, policies: Policies) -> Ruling:
    unit = ours.unit or theirs.unit
    if unit == DEGREES and r"\pi" in (theirs.core if ours.unit else ours.core):
        turned = [(r"\frac", "{", "(", *q.core, ")", r"\pi", "}", "{", "180", "}") if q.unit else q.core for q in (ours, theirs)]
        return symbolic.equal(*turned)
    if not without_a_word_for_it(unit):
        return WRONG, "unproven: words that are no unit"
    outcome, reason = _by(VALUES, ours.core, theirs.core, policies)
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
        outcome, reason = _by(VALUES, ours.core, theirs.core, policies)
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
    if policies.unfinished == "right":
        return None
    signs = set(said)
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
    constant = not any(len(t) == 1 and t.isalpha() and t not in "ei" for t in meant)
    if constant and not set(meant) & _UNEVALUATED_CONSTANT:
        left |= signs & _UNEVALUATED_CONSTANT
    return RECKONING if left else None


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


def _arrow(said: Tokens, meant: Tokens, policies: Policies) -> Ruling | None:
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


VALUES: tuple[Rule, ...] = (same_text, base, numbers, unfinished, decimals, counting, algebra)
CLAIMS: tuple[Rule, ...] = (
    same_text, decimal_comma, words, congruence, condition, matrix, basis_vectors, collection, ratio, base, domain, relation,
    roughly, equation, amount,
    _arrow, *VALUES,
)  # fmt: skip
WHOLE: tuple[Rule, ...] = (same_text, choice, several_choices, lead, domain, *CLAIMS)
RULES = tuple(dict.fromkeys(WHOLE))
__all__ += ["CONNECTIVES", "SPACE", "is_digits", "trimmed"]
