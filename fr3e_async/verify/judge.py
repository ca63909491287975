r"""One answer against one gold: what kind of claim each is, which policy applies, and whether they are equal. Runs in a killable process.

From the outside in: same text; golds that are prose; choice letters; lists, sets and tuples, item by item; then single values: units and
percent, numbers written out (exactly, see ``numbers``), answers that leave the computing to the reader, and at last ``symbolic``
(math-verify). ``docs/verifier.md`` describes each rule. Knows nothing of limits, responses and rewards; returns plain strings, so that
a worker needs neither numpy nor our types.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from fr3e_async.verify import notation, prose, symbolic
from fr3e_async.verify.amounts import compare_amounts
from fr3e_async.verify.numbers import compare_numbers, same_with_decimal_comma, written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.shapes import Shape, chain, interval_of, is_relation, named, shape_of, without_builder
from fr3e_async.verify.symbolic import parse_boxed, parse_gold
from fr3e_async.verify.units import quantity

__all__ = ["MEMORY_LIMIT", "RIGHT", "UNKNOWN", "WRONG", "gold_kind", "judge", "parse_boxed", "parse_gold"]

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
MEMORY_LIMIT = "memory limit"
TEXT_GOLD = "gold is not mathematics"
_MAX_ITEMS = 64

_OPERATION = re.compile(r"[-+*<>]|\\cdot")
_MODULUS = re.compile(r"\\(?:pmod|bmod|mod|pod)\s*\{?\s*([^{}\s,;)]+)")
_SET = re.compile(r"\\(?:emptyset|cup|setminus|mathbb)|-")
_LETTER = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")

Ruling = tuple[str, str]


def judge(
    answer: str,
    gold: str,
    *,
    unfinished: Literal["wrong", "right"] = "wrong",
    units: Literal["checked", "ignored"] = "checked",
    percent: Literal["optional", "exact"] = "optional",
    decimal_digits: int = 4,
) -> Ruling:
    """(outcome, reason) of an answer. Both texts come without their box. The keywords are those of ``Policies``.

    Unknown where it cannot be told: the gold is prose or cannot be read and the texts differ, the gold is rounded and the answer is
    rounded more coarsely, or the comparison broke off.
    """
    policies = Policies(unfinished=unfinished, units=units, percent=percent, decimal_digits=decimal_digits)
    if answer == gold:
        return RIGHT, "same text"
    try:
        return _whole(answer, gold, policies)
    except MemoryError:
        return UNKNOWN, MEMORY_LIMIT
    except RecursionError:
        return UNKNOWN, "nested too deeply"


def gold_kind(gold: str) -> Literal["integer", "mathematics", "word", "text"]:
    """What answers to this gold are compared by: digits, mathematics, one word, or text, where only the same words are known to be right.

    "text" is what a dataset should be warned of. A single word (Yes, even) is not: another word is wrong.
    """
    tidy = notation.tidy(gold)
    number = written_number(tidy)
    if number is not None and number.integer:
        return "integer"
    if not tidy or prose.is_prose(tidy):
        return "word" if len(prose.words_of(tidy)) == 1 else "text"
    try:
        readable = all(symbolic.is_mathematics(interval_of(item) or chain(named(item)[1])[-1]) for item in shape_of(tidy).items)
    except (*symbolic.ODDITIES, RecursionError, MemoryError):
        return "text"
    return "mathematics" if readable else "text"


@lru_cache(maxsize=1024)  # shared by all rollouts of a prompt
def _tidy_gold(gold: str) -> str:
    return notation.tidy(gold)


def _whole(answer: str, gold: str, policies: Policies) -> Ruling:
    said, meant = notation.tidy(answer), _tidy_gold(gold)
    if notation.squeezed(said) == notation.squeezed(meant) and meant:
        return RIGHT, "same text"
    if not meant:
        return UNKNOWN, TEXT_GOLD
    if same_with_decimal_comma(said, meant):
        return RIGHT, "decimal comma"
    if prose.is_choice(meant):
        letter = prose.chosen(said)
        if letter is not None:
            return (RIGHT if letter == prose.choice_of(meant) else WRONG), "choice"
    if prose.is_prose(meant):
        return prose.compare(said, meant)
    moduli = [set(_MODULUS.findall(text)) for text in (said, meant)]
    if all(moduli) and moduli[0] != moduli[1]:  # math-verify does not look at them
        return WRONG, "modulus"
    return _claims(said, meant, policies)


def _claims(said: str, meant: str, policies: Policies) -> Ruling:
    """Claims of any shape: the same number of items, each of them equal to one of the other side."""
    if r"\setminus" in said or r"\setminus" in meant:
        return symbolic.equal(without_builder(said), without_builder(meant))
    ours, theirs = _as_interval(_unnamed(shape_of(said)), _unnamed(shape_of(meant)))
    if ours.kind == theirs.kind == "one":
        return _value(ours.items[0] if ours.items else said, theirs.items[0] if theirs.items else meant, policies)
    if {ours.kind, theirs.kind} == {"set", "bracket"}:
        return WRONG, "a set is not a tuple"
    if {ours.kind, theirs.kind} == {"one", "set"} or {ours.kind, theirs.kind} == {"one", "bracket"}:
        return _mixed(ours, theirs, said, meant)
    if len(ours.items) > _MAX_ITEMS or len(theirs.items) > _MAX_ITEMS:
        return WRONG if len(ours.items) != len(theirs.items) else UNKNOWN, "too many items"
    if "bracket" in (ours.kind, theirs.kind):
        return _in_order(ours, theirs, policies)
    return _in_any_order(ours, theirs, policies)


def _unnamed(shape: Shape) -> Shape:
    """``(x, y) = (1, 2)`` as (1, 2): one claim under a name, whose value has items of its own."""
    if shape.kind == "one" and shape.items:
        name, value = named(shape.items[0])
        inner = shape_of(value)
        if name and inner.kind != "one":
            return inner
    return shape


def _as_interval(ours: Shape, theirs: Shape) -> tuple[Shape, Shape]:
    r"""Where one side is an inequality and the other is not, the inequality as an interval. Both as inequalities stay as they are."""
    ours_has, theirs_has = any(map(is_relation, ours.items)), any(map(is_relation, theirs.items))
    if ours_has == theirs_has:
        return ours, theirs
    shape = ours if ours_has else theirs
    items = [interval_of(item) or item for item in shape.items]
    changed = shape_of(items[0]) if len(items) == 1 else Shape(kind="list", items=tuple(items))
    return (changed, theirs) if ours_has else (ours, changed)


def _mixed(ours: Shape, theirs: Shape, said: str, meant: str) -> Ruling:
    """One side is a single claim, the other stands in brackets: not the same if the claim is a number, else math-verify's to say."""
    single, other = (ours, theirs) if ours.kind == "one" else (theirs, ours)
    text = single.items[0] if single.items else ""
    if other.kind == "set" and not _SET.search(text):
        return WRONG, "a set is not a number"
    if other.kind == "bracket" and written_number(quantity(text, letters=True).core):
        return WRONG, "number of items"
    return symbolic.equal(said, meant)


def _in_order(ours: Shape, theirs: Shape, policies: Policies) -> Ruling:
    if len(ours.items) != len(theirs.items):
        return WRONG, "number of items"
    if all(named(item)[0] for item in (*ours.items, *theirs.items)):  # [x = 1, y = 2]
        return _in_any_order(ours, theirs, policies)
    if ours.kind == theirs.kind == "bracket" and len(ours.items) == 2 and ours.brackets != theirs.brackets:
        return WRONG, "brackets"
    return _all([_claims(first, second, policies) for first, second in zip(ours.items, theirs.items, strict=True)])


def _in_any_order(ours: Shape, theirs: Shape, policies: Policies) -> Ruling:
    """Every item of each side has an equal on the other; by name where both sides name their items alike.

    Without names an item may be said twice; one claim, and names, must be matched in number too.
    """
    names = [named(item)[0] for item in ours.items], [named(item)[0] for item in theirs.items]
    as_names = [all(side) and len(set(side)) == len(side) > 1 for side in names]
    if all(as_names) and set(names[0]) == set(names[1]):
        by_name = dict(zip(names[0], ours.items, strict=True))
        return _all([_claims(by_name[name], item, policies) for name, item in zip(names[1], theirs.items, strict=True)])
    if len(ours.items) != len(theirs.items) and (any(as_names) or "one" in (ours.kind, theirs.kind)):
        return WRONG, "number of items"
    rulings: dict[tuple[str, str], Ruling] = {}

    def best(pairs: list[tuple[str, str]]) -> Ruling:
        found: Ruling = WRONG, "another item"
        for pair in sorted(pairs, key=lambda pair: pair[0] != pair[1]):  # the likeliest first
            if pair not in rulings:
                rulings[pair] = _claims(*pair, policies)
            if rulings[pair][0] == RIGHT:
                return rulings[pair]
            found = rulings[pair] if rulings[pair][0] == UNKNOWN else found
        return found

    matched: list[Ruling] = []
    for pairs in ([[(said, meant) for meant in theirs.items] for said in ours.items]
                  + [[(said, meant) for said in ours.items] for meant in theirs.items]):  # fmt: skip
        matched.append(best(pairs))
        if matched[-1][0] == WRONG:
            break
    return _all(matched)


def _all(rulings: list[Ruling]) -> Ruling:
    """The worst of several: wrong before unknown before right."""
    return max(rulings, key=lambda ruling: (RIGHT, UNKNOWN, WRONG).index(ruling[0]))


def _value(said: str, meant: str, policies: Policies) -> Ruling:
    """One claim against one: names, chains and relations taken off or handed on."""
    if shape_of(said).kind != "one" or shape_of(meant).kind != "one":
        return symbolic.equal(said, meant)
    (our_name, ours), (their_name, theirs) = named(said), named(meant)
    if is_relation(ours) and written_number(quantity(theirs, letters=True).core):
        return WRONG, "a relation is not a number"
    if is_relation(ours) or is_relation(theirs):
        return symbolic.equal(said, meant)
    if our_name and their_name and our_name != their_name:
        head = re.compile(r"(.+)\((\w)\)")
        function, bound = head.fullmatch(our_name), head.fullmatch(their_name)
        if function is None or bound is None:
            return symbolic.equal(said, meant)
        ours = re.sub(rf"(?<![a-zA-Z\\]){function[2]}(?![a-zA-Z])", bound[2], ours)
    their_parts, our_parts = chain(theirs), chain(ours)
    if len(their_parts) > 1 and not their_name:
        return _equation(said, meant, our_parts, their_parts, policies)
    if len(our_parts) > 1:
        contradiction = _contradiction(our_parts, policies)
        if contradiction:
            return WRONG, contradiction
    if shape_of(our_parts[-1]).kind != "one" or shape_of(their_parts[-1]).kind != "one":
        return _claims(our_parts[-1], their_parts[-1], policies)
    return compare_amounts(our_parts[-1], their_parts[-1], policies)


def _equation(said: str, meant: str, our_parts: list[str], their_parts: list[str], policies: Policies) -> Ruling:
    """The gold is an equation in its own right, or a chain that ends in the value."""
    if len(our_parts) > 1 and notation.squeezed(our_parts[0]) == notation.squeezed(their_parts[0]):
        return compare_amounts(our_parts[-1], their_parts[-1], policies)
    ruling = symbolic.equal(said, meant)
    if ruling[0] == RIGHT or len(our_parts) > 1:
        return ruling
    if symbolic.solves(said, meant):
        return RIGHT, "solves the equation"
    if symbolic.is_identity(their_parts[0], their_parts[-1]):
        return compare_amounts(our_parts[-1], their_parts[-1], policies)
    if _OPERATION.search(their_parts[0]) is None or _LETTER.search(their_parts[0]) is None:  # \frac{AB}{CD} = 2, or 2 + 2 = 4
        return compare_amounts(our_parts[-1], their_parts[-1], policies)
    return ruling


def _contradiction(parts: list[str], policies: Policies) -> str:
    """Why a chain of equals cannot be true: two of its parts are numbers that no rounding makes equal. "" if it can."""
    quantities = [quantity(part, letters=True) for part in parts]
    numbers = [(number, q.unit) for q in quantities if (number := written_number(q.core))]
    for (first, unit), (second, other) in pairwise(numbers):
        outcomes = {compare_numbers(first, second, policies)[0], compare_numbers(second, first, policies)[0]}
        if unit == other and outcomes == {WRONG}:
            return "the equalities contradict each other"
    return ""
