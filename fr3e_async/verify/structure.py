r"""What tokens claim: one value, a list, a set, a tuple or an interval, under which names; where a claim holds. Nothing is computed.

An answer may hold several claims (``x=1, y=2``; ``3\text{ or }4``); which of them equal which of a reference's is ``judge``'s business.
"""

import re
from typing import Literal, NamedTuple

from fr3e_async.verify.lexicon import CONNECTIVES, DOMAIN_WORDS, GREEK
from fr3e_async.verify.quantities import written_number
from fr3e_async.verify.tokens import Tokens, closing, enclosed, is_word, split, trimmed, variable

_COMMAS = frozenset([",", ";"])
_ORDER = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_RELATIONS = frozenset([*_ORDER, r"\ne", r"\in", r"\equiv"])
_AND = "\x1f"  # stands for a word between two items
_GROUPED = re.compile(r"(?:[^,]*?(?<![\d.])[1-9]\d{0,2}(?:,\d{3})+(?!\d))+[^,]*")  # every comma is in a number like 1,234,567
_NAME = re.compile(
    r"(?:\\angle|\\Delta|\\triangle)?(?:\\vec\{[A-Za-z]{1,2}\}|[A-Za-z][A-Z]{0,3}|" + "|".join(map(re.escape, GREEK)) + ")"
    r"(?:'|_\{[^{}]*\}|\^\{[^{}]*[-(][^{}]*\})*(?:\((?:[^()]|\([^()]*\))*\))?"
)


class Shape(NamedTuple):
    r"""How the claims of a text are held together. *Example*: ``(1,2]`` is a "bracket" of ("1",), ("2",) with brackets "(]".

    A matrix is a "bracket" of its entries, with its size ("2×3") for brackets.
    """

    kind: Literal["one", "list", "set", "bracket"]
    items: tuple[Tokens, ...]
    brackets: str = ""


def shape_of(tokens: Tokens) -> Shape:
    """Return the outermost shape: a set, a matrix, a tuple or interval, with its items as tokens."""
    inside = enclosed(tokens, r"\{", r"\}")
    if inside is not None:
        return Shape(kind="set", items=tuple(_expanded([item for item in split(inside, _COMMAS) if item])))
    if (rows := matrix_of(tokens)) is not None:
        return Shape(kind="bracket", items=tuple(cell for row in rows for cell in row), brackets=f"{len(rows)}×{len(rows[0])}")
    if tokens[:1] and tokens[0] in "([⟨" and tokens[-1] in ")]⟩" and closing(tokens, 0) == len(tokens) - 1:
        items = split(tokens[1:-1], _COMMAS)
        if len(items) > 1 and all(items):
            return Shape(kind="bracket", items=tuple(items), brackets=tokens[0] + tokens[-1])
    if tokens[-4:] == ("^", "{", "T", "}") and (inner := shape_of(tokens[:-4])).kind == "bracket":
        height, _, width = inner.brackets.partition("×")
        if "1" in (height, width) or not width:  # a vector
            return Shape(kind="bracket", items=inner.items, brackets=f"{width}×{height}" if width else f"{len(inner.items)}×1")
    groups = [piece for piece in split(tokens, ";") if piece]  # p=5, q=2; p=7, q=2
    either = [trimmed(piece) for piece in split(_marked(tokens), _AND) if trimmed(piece)]  # x=1,y=2 or x=2,y=1
    if len(groups) < 2 or all(len(split(group, ",")) < 2 for group in groups):
        groups = either if len(either) > 1 and all(len(named_list(piece)) > 1 for piece in either) else _periodic(tokens)
    items = groups or list_items(tokens)
    return Shape(kind="list" if len(items) > 1 else "one", items=tuple(items))


def _periodic(tokens: Tokens) -> list[Tokens]:
    """``a=1, b=2, a=2, b=1`` as its groups, each of which gives every name a value."""
    parts = split(tokens, _COMMAS)
    names = [named(part)[0] for part in parts]
    size = len(set(names))
    if not all(names) or size < 2 or len(names) == size or names != names[:size] * (len(names) // size):
        return []
    return [sum([(",", *part) for part in parts[start : start + size]], ())[1:] for start in range(0, len(parts), size)]


def _marked(tokens: Tokens) -> Tokens:
    """With one sign for every word, and every operator, that stands between two claims."""
    return tuple(_AND if token == r"\vee" or (is_word(token) and token[1:].lower() in CONNECTIVES) else token for token in tokens)


def list_items(tokens: Tokens) -> list[Tokens]:
    r"""The items of a list without brackets: cut at commas, semicolons, "and", "or", and at ``\pm``."""
    out: list[Tokens] = []
    for piece in split(_marked(tokens), (_AND, ";")):
        out += [piece] if _GROUPED.fullmatch("".join(piece)) else split(piece, ",")
    return _expanded([part for piece in out if (part := trimmed(piece))] or [tokens])


def named_list(tokens: Tokens) -> list[tuple[str, Tokens]]:
    """``x=1, y=2`` as its pairs; empty unless every item has a name of its own."""
    pairs = [named(item) for item in split(tokens, _COMMAS) if item]
    names = [name for name, _ in pairs]
    return pairs if all(names) and len(set(names)) == len(names) else []


def _expanded(items: list[Tokens]) -> list[Tokens]:
    r"""``1 \pm x`` as ``1 + x`` and ``1 - x``; items in brackets stay as they are."""
    out: list[Tokens] = []
    for item in items:
        turns = ("+-", "-+") if r"\pm" in item and item[0] not in ("(", "[", r"\{") else ("",)
        signs = [dict(zip((r"\pm", r"\mp"), turn, strict=False)) for turn in turns]
        out += [tuple(sign.get(token, token) for token in item) for sign in signs]
    return [item[item[:1] == ("+",) :] for item in out]


def is_name(tokens: Tokens) -> bool:
    r"""Could ``tokens`` be the left side of a definition: ``x``, ``f(x)``, ``S_n``, ``AB``, ``(p,q)``, ``\angle ABC``, words?"""
    inside = enclosed(tokens, "(", ")")
    parts = split(tokens, ":") if inside is None else split(inside, ",")
    if inside is not None or len(parts) > 1:
        return all(map(is_name, parts))
    return bool(tokens) and (all(map(is_word, tokens)) or _NAME.fullmatch("".join(tokens)) is not None)


def named(item: Tokens) -> tuple[str, Tokens]:
    """(name, value) of ``name = value`` or ``name: value``; the name is "" if there is none. Of a chain, the value is all behind it."""
    for sign in ("=", ":"):
        name, *values = split(item, sign)
        if values and all(values) and (is_name(name) if sign == "=" else len(values) == 1 and name and all(map(is_word, name))):
            return " ".join(name), item[len(name) + 1 :]
    return "", item


def chain(value: Tokens) -> list[Tokens]:
    """The parts of ``a = b = c``; one part if there is no equals sign."""
    return [part[part[0] == "+" and len(part) > 1 :] for part in split(value, "=") if part] or [value]


def without_domain(tokens: Tokens) -> tuple[Tokens, bool]:
    r"""A claim without ``, k \in \mathbb{Z}`` or ``where k is a positive integer`` at its end, and whether one was there.

    Only by exact form: one variable in a number set, or words of a closed list with variables.
    """
    for at in range(1, len(tokens)):
        if tokens[at] in (",", "(", r"\forall", "'where", "'for", "'with"):
            tail = tuple(token for token in tokens[at:] if token not in (",", r"\forall", "(", ")"))
            where = tail.index(r"\in") if r"\in" in tail else len(tail)
            letters, words = {t for t in tail[:where] if variable(t)}, [t for t in tail[:where] if not variable(t)]
            said = letters <= {*tokens[:at]} and all(is_word(t) and set(t[1:].lower().split("-")) <= DOMAIN_WORDS for t in words)
            if said and (_DOMAIN.fullmatch("".join(tail[where:])) if tail[where:] else words) and tail[:where]:
                return trimmed(tokens[:at]), True
    return tokens, False


_DOMAIN = re.compile(r"\\in(?:[ZNRQC]|\\mathbb\{[ZNRQC]\}(?:[\^_+*{}0]|\\cdot|\\star)*)")


def is_relation(tokens: Tokens) -> bool:
    return any(token in _RELATIONS for token in tokens)


def interval_of(tokens: Tokens) -> Tokens | None:
    r"""The interval that an inequality in one name or ``x \in I`` stands for, None for anything else. ``x < 2`` is ``(-\infty,2)``."""
    if r"\in" in tokens and is_name(tokens[: tokens.index(r"\in")]):
        return tokens[tokens.index(r"\in") + 1 :]
    signs = [token for token in tokens if token in _ORDER]
    pieces = split(tokens, _ORDER)
    if len(pieces) != len(signs) + 1 or not all(pieces) or r"\ne" in tokens or "=" in tokens or len(pieces) not in (2, 3):
        return None
    if signs[0] in (">", r"\ge"):
        pieces, signs = pieces[::-1], [_ORDER[sign] for sign in signs[::-1]]
    if len(pieces) == 2 and is_name(pieces[0]) is not is_name(pieces[1]):
        left = is_name(pieces[0])
        pieces, signs = ([("-", r"\infty"), *pieces], ["<", *signs]) if left else ([*pieces, (r"\infty",)], [*signs, "<"])
    if len(pieces) != 3 or not is_name(pieces[1]) or not set(signs) <= {"<", r"\le"}:
        return None
    return ("(" if signs[0] == "<" else "[", *pieces[0], ",", *pieces[2], ")" if signs[1] == "<" else "]")


def _both(tokens: Tokens) -> Tokens | None:
    r"""``x > 1`` and ``x < 3`` as (1,3), ``0 < x < 2, x \ne 1`` as (0,2) without 1; None for anything else."""
    first, *others = split(tokens, (",", "'and", r"\wedge"))
    if len(others) != 1 or bound_names(first) != bound_names(others[0]) or (first := interval_of(first) or ()) == ():
        return None
    name, *values = split(others[0], [r"\ne"])
    if len(values) == 1 and is_name(name):
        return (*first, r"\setminus", r"\{", *values[0], r"\}")
    low, high = sorted((first, interval_of(others[0]) or ()), key=lambda side: side[1:3] == ("-", r"\infty"))
    ends = written_number(low[1:-3]), written_number(high[4:-1])
    half = low[-3:-1] == (",", r"\infty") and high[1:4] == ("-", r"\infty", ",") and "," not in tokens
    return (*low[:-2], *high[4:]) if half and ends[0] and ends[1] and ends[0].value < ends[1].value else None


def bound_names(relation: Tokens) -> set[Tokens]:
    r"""The names that inequalities or ``x \in I`` speak of."""
    heads = [split(item, [r"\in"])[0] for item in shape_of(relation).items]
    return {part for head in heads for part in split(head, (*_ORDER, r"\ne")) if is_name(part)}


def builder(tokens: Tokens) -> Tokens | None:
    r"""The condition of ``\{x \mid 2 < x < 3\}``; None for anything else."""
    inside = enclosed(tokens, r"\{", r"\}") or ()
    head = split(inside, ("|", ":"))[0]
    condition = inside[len(head) + 1 :]
    return condition if is_name(split(head, (r"\in",))[0]) and is_relation(condition) else None


def pieces_of(tokens: Tokens) -> list[Tokens] | None:
    """A set of real numbers as pieces of a union, inequalities as intervals; None if it is anything else."""
    triples = zip(("", *tokens), tokens, (*tokens[1:], ""), strict=False)
    tokens = tuple(r"\setminus" if triple == (r"\}", "-", r"\{") else triple[1] for triple in triples)
    tokens = builder(tokens) or tokens
    if "".join(tokens) in (r"\mathbb{R}^{+}", r"\mathbb{R}_{+}"):
        tokens = ("(", "0", ",", r"\infty", ")")
    tokens = _both(tokens) or interval_of(tokens) or tokens
    shape = shape_of(tokens)
    if shape.kind == "list" and not all(map(is_relation, shape.items)):
        return None
    pieces: list[Tokens] = []
    for part in (part for item in (shape.items if shape.kind == "list" else [tokens]) for part in split(item, [r"\cup"])):
        value = named(part)[1]
        first, *removed = split(value if not is_relation(part) and shape_of(value).kind == "bracket" else part, [r"\setminus"])
        interval = interval_of(builder(first) or first) or first
        interval += sum([(r"\setminus", *other) for other in removed], ())
        if interval[:1] not in (("(",), ("[",), (r"\{",)) or interval[-1] not in (")", "]", r"\}"):
            return None
        pieces.append(tuple(t for t, after in zip(interval, (*interval[1:], ""), strict=True) if (t, after) != ("+", r"\infty")))
    return pieces


def matrix_of(tokens: Tokens) -> list[list[Tokens]] | None:
    r"""The rows of cells of ``\begin{pmatrix}``; of ``[\begin{array}{cc}`` too. None for anything else, determinants among it."""
    if len(tokens) > 2 and tokens[0] in "([" and tokens[1].startswith(r"\begin") and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    if len(tokens) < 2 or not tokens[0].startswith(r"\begin") or closing(tokens, 0) != len(tokens) - 1:
        return None
    name, inside = tokens[0].partition("{")[2].strip("}* "), tokens[1:-1]
    while name == "array" and inside[:1] in (("c",), ("l",), ("r",), ("|",)):
        inside = inside[1:]
    rows = [split(row, "&") for row in split(inside, [r"\\"]) if row]
    whole = name in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array") and len({len(row) for row in rows}) == 1
    return rows if whole else None
