r"""What tokens claim: one value, a list, a set, a tuple or an interval, under which names; where a claim holds. Nothing is computed.

An answer may hold several claims (``x=1, y=2``; ``3\text{ or }4``); which of them equal which of a reference's is ``judge``'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fr3e_async.verify.tokens import Tokens, closing, enclosed, is_word, split, trimmed
from fr3e_async.verify.words import CONNECTIVES

_COMMAS = frozenset([",", ";"])
_ORDER = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_RELATIONS = frozenset([*_ORDER, r"\ne", r"\in", r"\equiv"])
_DOMAINS = frozenset(["Z", "N", "R", "Q", "C"])
_DOMAIN_WORDS = frozenset(
    "where for with any all every each is are a an the some arbitrary fixed given positive negative nonnegative non negative real rational natural "
    "integer integers constant constants number numbers numeric and be being to in parameter parameters which can".split()
)
_AND = "\x1f"  # stands for a word between two items
_MATRICES = ("pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array", "cases")

Kind = Literal["one", "list", "set", "bracket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    r"""How the claims of a text are held together. *Example*: ``(1,2]`` is a "bracket" of ("1",), ("2",) with brackets "(]"."""

    kind: Kind
    items: tuple[Tokens, ...]
    brackets: str = ""


def shape_of(tokens: Tokens) -> Shape:
    """The outermost shape."""
    inside = enclosed(tokens, r"\{", r"\}")
    if inside is not None:
        return Shape(kind="set", items=tuple(_expanded([item for item in split(inside, _COMMAS) if item])))
    if tokens[:1] and tokens[0] in "([⟨" and tokens[-1] in ")]⟩" and closing(tokens, 0) == len(tokens) - 1:
        items = split(tokens[1:-1], _COMMAS)
        if len(items) > 1 and all(items):
            return Shape(kind="bracket", items=tuple(items), brackets=tokens[0] + tokens[-1])
    groups = [piece for piece in split(tokens, frozenset([";"])) if piece]
    if len(groups) > 1 and any(len(split(group, frozenset([","]))) > 1 for group in groups):  # p=5, q=2; p=7, q=2
        return Shape(kind="list", items=tuple(groups))
    either = [piece for piece in split(_marked(tokens), frozenset([_AND])) if trimmed(piece)]
    if len(either) > 1 and all(len(named_list(piece)) > 1 for piece in either):  # x=1,y=2 or x=2,y=1
        return Shape(kind="list", items=tuple(trimmed(piece) for piece in either))
    if (repeated := _periodic(tokens)) is not None:
        return Shape(kind="list", items=repeated)
    items = list_items(tokens)
    return Shape(kind="list" if len(items) > 1 else "one", items=tuple(items))


def _periodic(tokens: Tokens) -> tuple[Tokens, ...] | None:
    """``a=1, b=2, a=2, b=1`` as its groups, each of which gives every name a value."""
    parts = split(tokens, _COMMAS)
    names = [named(part)[0] for part in parts]
    size = len(set(names))
    if not all(names) or size < 2 or len(names) == size or names != names[:size] * (len(names) // size):
        return None
    groups = [parts[start : start + size] for start in range(0, len(parts), size)]
    return tuple(tuple(token for i, part in enumerate(group) for token in ((",",) if i else ()) + part) for group in groups)


def _marked(tokens: Tokens) -> Tokens:
    """With one sign for every word, and every operator, that stands between two claims."""
    return tuple(_AND if token == r"\vee" or (is_word(token) and token[1:].lower() in CONNECTIVES) else token for token in tokens)


def list_items(tokens: Tokens) -> list[Tokens]:
    r"""The items of a list without brackets: cut at commas, semicolons, "and", "or", and at ``\pm``."""
    out: list[Tokens] = []
    for piece in split(_marked(tokens), frozenset([_AND, ";"])):
        out += [piece] if _grouped_thousands(piece) else split(piece, frozenset([","]))
    return _expanded([part for piece in out if (part := trimmed(piece))] or [tokens])


def named_list(tokens: Tokens) -> list[tuple[str, Tokens]]:
    """``x=1, y=2`` as its pairs; empty unless every item has a name of its own."""
    pairs = [named(item) for item in split(tokens, _COMMAS) if item]
    names = [name for name, _ in pairs]
    return pairs if all(names) and len(set(names)) == len(names) else []


def _grouped_thousands(tokens: Tokens) -> bool:
    """Is every comma in a number like 1,234,567?"""
    commas = [at for at, token in enumerate(tokens) if token == ","]
    return bool(commas) and all(
        0 < at < len(tokens) - 1
        and tokens[at - 1].isdigit()
        and (len(tokens[at - 1]) == 3 if at - 2 in commas else len(tokens[at - 1]) <= 3 and tokens[at - 1][0] != "0")
        and len(tokens[at + 1].partition(".")[0]) == 3
        and tokens[at + 1].replace(".", "", 1).isdigit()
        for at in commas
    )


def _expanded(items: list[Tokens]) -> list[Tokens]:
    r"""``1 \pm x`` as ``1 + x`` and ``1 - x``; items in brackets stay as they are."""
    out: list[Tokens] = []
    for item in items:
        if r"\pm" in item and item[0] not in ("(", "[", r"\{"):
            for signs in ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"}):
                out.append(tuple(signs.get(token, token) for token in item))
        else:
            out.append(item)
    return [item[1:] if item[:1] == ("+",) else item for item in out]


# ---- names ----


def is_name(tokens: Tokens) -> bool:
    r"""Could ``tokens`` be the left side of a definition: ``x``, ``f(x)``, ``S_n``, ``AB``, ``(p,q)``, ``\angle ABC``, words?"""
    inside = enclosed(tokens, "(", ")")
    parts = split(tokens if inside is None else inside, frozenset([":"] if inside is None else [","]))
    if inside is not None or len(parts) > 1:
        return all(is_name(part) for part in parts)
    if tokens[:1] in ((r"\angle",), (r"\Delta",), (r"\triangle",)):
        tokens = tokens[1:]
    if tokens and all(is_word(token) for token in tokens):
        return True
    at = 0
    while at < len(tokens) and at < 4 and tokens[at].isalpha() and (tokens[at].isupper() or at == 0):
        at += 1
    if at == 0 and tokens[:1] and tokens[0][0] == "\\" and tokens[0][1:] in _GREEK:
        at = 1
    return at > 0 and _only_marks(tokens[at:])


_GREEK = frozenset(
    "alpha beta gamma delta epsilon theta lambda mu omega phi rho sigma tau psi eta xi zeta kappa chi Omega Phi".split()
)


def _only_marks(tokens: Tokens) -> bool:
    """Primes, subscripts, exponents of an inverse, one pair of brackets with arguments."""
    at = 0
    while at < len(tokens):
        if tokens[at] == "'":
            at += 1
        elif tokens[at] in ("_", "^") and tokens[at + 1 : at + 2] == ("{",):
            end = closing(tokens, at + 1)
            if tokens[at] == "^" and "-" not in tokens[at:end] and "(" not in tokens[at:end]:
                return False
            at = end + 1
        else:
            return tokens[at] == "(" and closing(tokens, at) == len(tokens) - 1
    return True


def named(item: Tokens) -> tuple[str, Tokens]:
    """(name, value) of ``name = value`` or ``name: value``; the name is "" if there is none. Of a chain, the value is all behind it."""
    name, *values = split(item, frozenset(["="]))
    if values and is_name(name) and all(values):
        return " ".join(name), item[len(name) + 1 :]
    name, *values = split(item, frozenset([":"]))
    if len(values) == 1 and values[0] and name and all(is_word(token) for token in name):
        return " ".join(name), values[0]
    return "", item


def chain(value: Tokens) -> list[Tokens]:
    """The parts of ``a = b = c``; one part if there is no equals sign."""
    return [part[1:] if part[0] == "+" and len(part) > 1 else part for part in split(value, frozenset(["="])) if part] or [value]


# ---- where a claim holds ----


def without_domain(tokens: Tokens) -> tuple[Tokens, bool]:
    r"""A claim without ``, k \in \mathbb{Z}`` or ``where k is a positive integer`` at its end, and whether one was there.

    Only by exact form: one variable in a number set, or words of a closed list with variables.
    """
    for at in range(1, len(tokens)):
        if tokens[at] in (",", "(", r"\forall") or (is_word(tokens[at]) and tokens[at][1:].lower() in ("where", "for", "with")):
            tail = tokens[at:]
            if tail[0] == "(" and tail[-1] == ")":
                tail = tail[1:-1]
            tail = tuple(token for token in tail if token not in (",", r"\forall"))
            if _is_domain(tail) and {t for t in tail if _is_variable(t)} <= {*tokens[:at], "R", "Z", "N", "Q", "C"}:
                return trimmed(tokens[:at]), True
    return tokens, False


def _is_domain(tail: Tokens) -> bool:
    if r"\in" in tail:
        at = tail.index(r"\in")
        letters, where = tail[:at], tail[at + 1 :]
        sets = where[:3] == (r"\mathbb", "{", where[2] if len(where) > 2 else "") and where[2:3] and where[2] in _DOMAINS
        plain = len(where) == 1 and where[0] in _DOMAINS
        marks = set(where[4:]) <= {"^", "_", "{", "}", "+", "*", r"\cdot", "0"} if sets else True
        return (
            bool((sets and marks) or plain)
            and all(_is_variable(token) or _is_domain_word(token) for token in letters)
            and len(letters) > 0
        )
    return bool(tail) and any(is_word(t) for t in tail) and all(_is_variable(token) or _is_domain_word(token) for token in tail)


def _is_variable(token: str) -> bool:
    return len(token) == 1 and token.isalpha()


def _is_domain_word(token: str) -> bool:
    return is_word(token) and all(part in _DOMAIN_WORDS for part in token[1:].lower().split("-"))


# ---- relations and intervals ----


def is_relation(tokens: Tokens) -> bool:
    return any(token in _RELATIONS for token in tokens)


def interval_of(tokens: Tokens) -> Tokens | None:
    r"""The interval that an inequality in one name or ``x \in I`` stands for, None for anything else. ``x < 2`` is ``(-\infty,2)``."""
    if r"\in" in tokens and is_name(tokens[: tokens.index(r"\in")]):
        return tokens[tokens.index(r"\in") + 1 :]
    signs = [token for token in tokens if token in _ORDER]
    pieces = split(tokens, frozenset(_ORDER))
    if len(pieces) != len(signs) + 1 or not all(pieces) or any(token in (r"\ne", "=") for token in tokens):
        return None
    if len(signs) == 1:
        (left, right), (sign,) = pieces, signs
        if not is_name(left):
            left, sign, right = right, _ORDER[sign], left
        if not is_name(left) or is_name(right):
            return None
        if sign in ("<", r"\le"):
            return ("(", "-", r"\infty", ",", *right, ")" if sign == "<" else "]")
        return ("(" if sign == ">" else "[", *right, ",", r"\infty", ")")
    if len(signs) == 2 and is_name(pieces[1]):
        (low, _, high), (first, second) = pieces, signs
        if first in (">", r"\ge"):
            low, first, second, high = high, _ORDER[second], _ORDER[first], low
        if second in (">", r"\ge") or first not in ("<", r"\le"):
            return None
        return ("(" if first == "<" else "[", *low, ",", *high, ")" if second == "<" else "]")
    return None


def builder(tokens: Tokens) -> Tokens | None:
    r"""The condition of ``\{x \mid 2 < x < 3\}``; None for anything else."""
    inside = enclosed(tokens, r"\{", r"\}")
    if inside is None:
        return None
    for separator in ("|", ":"):
        head, *condition = split(inside, frozenset([separator]))
        if len(condition) == 1 and is_name(head[: head.index(r"\in")] if r"\in" in head else head) and is_relation(condition[0]):
            return condition[0]
    return None


# ---- matrices ----


def matrix_of(tokens: Tokens) -> list[list[Tokens]] | None:
    r"""The rows of cells of ``\begin{pmatrix}``; of ``[\begin{array}{cc}`` too. None for anything else, determinants among it."""
    if len(tokens) > 2 and tokens[0] in "([" and tokens[1].startswith(r"\begin") and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    if len(tokens) < 2 or not tokens[0].startswith(r"\begin") or closing(tokens, 0) != len(tokens) - 1:
        return None
    name = tokens[0].partition("{")[2].strip("}* ")
    if name not in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array"):
        return None
    inside = tokens[1:-1]
    if name == "array":
        while inside and inside[0] in ("c", "l", "r", "|"):
            inside = inside[1:]
    rows = [row for row in split(inside, frozenset([r"\\"])) if row]
    return [split(row, frozenset(["&"])) for row in rows]
