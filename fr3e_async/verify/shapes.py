r"""What a text claims: one value, a list, a set, a tuple or interval, under which names. Cut by brackets and words, nothing is computed.

An answer may hold several claims (``x=1, y=2``; ``3\text{ or }4``); which of them equal which of a gold's is ``judge``'s business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fr3e_async.verify.notation import closing, split, squeezed

AND = "\x1f"  # stands for a word between two items
_CONNECTIVE = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_ASIDE = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:for|where|with)\b|(?<![A-Za-z\\])(?:for|where)\s)(?!\s*which).*$", re.DOTALL)
_LABEL = r"(?:the )?(?:final )?(?:solutions?|answers?|results?|values?|minimum|maximum)(?: set)?(?: is| are)?"
_LEAD = re.compile(rf"\\text\s*\{{\s*(?:only|{_LABEL})\s*:?\s*\}}\s*[=:]?\s*|{_LABEL}\s*:\s*|only\s", re.IGNORECASE)
_NAME = re.compile(
    r"\\text\s*\{[^{}]*\}|"
    r"(?:\\(?:angle|Delta)\s*)?(?:[A-Z]{1,4}|[a-zA-Z]|\\[a-zA-Z]+)'*"  # x, AB, \theta, S, f'
    r"(?:\s*[_^]\s*(?:\{[^{}]*\}|[a-zA-Z0-9]|\\[a-zA-Z]+))*'*"  # x_1, f^{-1}, m_{\max}
    r"(?P<arguments>\s*\([^()]*\))?"  # f(x), P(A)
)
_NOT_NAMES = re.compile(r"\\(?:frac|sqrt|int|sum|prod|lim|sin|cos|tan|log|ln|pi|infty|infin|binom|begin|exp)(?![a-zA-Z])")
_ORDER = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))")
_RELATION = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|\\in(?![a-zA-Z])|\\equiv|\\ni(?![a-zA-Z]))")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_SWAPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}

Kind = Literal["one", "list", "set", "bracket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    r"""How the claims of a text are held together. *Example*: ``(1,2]`` is a "bracket" of ("1", "2") with brackets "(]"."""

    kind: Kind
    items: tuple[str, ...]
    brackets: str = ""


def shape_of(text: str) -> Shape:
    """The outermost shape of tidy ``text``."""
    text = without_asides(text)
    if text.startswith(r"\{") and _closes(text, r"\}"):
        inside = text[2:-2].strip()
        condition = re.split(r"\\mid(?![a-zA-Z])|\||(?<!:):(?!=)", inside, maxsplit=1)
        if len(condition) == 2 and _RELATION.search(condition[1]) and is_name(condition[0].split(r"\in")[0].strip()):
            return shape_of(condition[1].strip())
        return Shape(kind="set", items=tuple(_expanded(split(inside, ",;"))))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and closing(text, 0) == len(text) - 1:
        items = split(text[1:-1], ",;")
        if len(items) > 1:
            return Shape(kind="bracket", items=tuple(items), brackets=text[0] + text[-1])
    groups = [piece for piece in split(text, [";"]) if piece]
    if len(groups) > 1 and any(len(split(group, [","])) > 1 for group in groups):  # p=5, q=2; p=7, q=2
        return Shape(kind="list", items=tuple(groups))
    items = list_items(text)
    return Shape(kind="list" if len(items) > 1 else "one", items=tuple(items))


def _closes(text: str, bracket: str) -> bool:
    return text.endswith(bracket) and closing(text, 0) == len(text) - len(bracket)


def list_items(text: str) -> list[str]:
    r"""The items of a list without brackets: cut at commas, semicolons, "and", "or", ``\cup``, and at ``\pm``."""
    marked = _TEXT.sub(lambda found: _cut_words(found[1]), text)
    if not _grouped_thousands(marked):
        marked = AND.join(split(marked, [",", ";"]))
    marked = _outside_brackets_words(marked)
    parts = [part for piece in split(marked, [AND, r"\cup", r"\lor", r"\vee"]) if (part := piece.strip())]
    return _expanded(parts or [text])


def _cut_words(inside: str) -> str:
    r"""``\text{ goats and }`` as the remark "goats" and a mark for the word."""
    pieces = [piece.strip() for piece in _CONNECTIVE.split(re.sub(r"[,;]", " and ", inside))]
    return AND.join(
        (f" {piece}" if re.fullmatch(r"[-\d.]+", piece) else rf"\text{{ {piece}}}") if piece else " " for piece in pieces
    )


def _outside_brackets_words(text: str) -> str:
    """Bare ``and``/``or`` between items marked too."""
    return re.sub(r"(?<=[\d)\]}\s])(?:and|or)(?=[\s(\[\d\\-])", AND, text) if "\\text" not in text else text


def _grouped_thousands(text: str) -> bool:
    return re.fullmatch(r"[^,]*?(?<![0-9])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])[^,]*", text) is not None


def _expanded(items: list[str]) -> list[str]:
    r"""``1 \pm x`` as ``1 + x`` and ``1 - x``; items in brackets stay as they are."""
    out: list[str] = []
    for item in items:
        if _PLUS_MINUS.search(item) and not item.startswith(("(", "[", r"\{")):
            for plus, minus in (("+", "-"), ("-", "+")):
                out.append(re.sub(r"\\mp(?![a-zA-Z])", minus, _PLUS_MINUS.sub(plus, item)))
        elif item:
            out.append(item)
    return out


def without_asides(text: str) -> str:
    r"""Without a leading "only" or label ("Solution is:") and a trailing ``\text{ for all integers } n``."""
    lead = _LEAD.match(text)
    text = text[lead.end() :] if lead and text[lead.end() :].strip() else text
    return _ASIDE.sub("", text).strip() or text


def is_name(text: str) -> bool:
    r"""Could ``text`` be the left side of a definition: ``x``, ``f(x)``, ``S_n``, ``AB``, ``(p,q)``, ``\angle ABC``?"""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        return all(is_name(part) for part in split(text[1:-1], ","))
    return _NAME.fullmatch(text) is not None and _NOT_NAMES.match(text) is None


def named(item: str) -> tuple[str, str]:
    """(name, value) of ``name = value`` or ``name: value``; the name is "" if there is none. Of a chain, the value is all behind it."""
    name, *values = split(item, ["="])
    if values and is_name(name):
        return squeezed(name), "=".join(values).strip()
    return "", item


def chain(value: str) -> list[str]:
    """The parts of ``a = b = c``; one part if there is no equals sign."""
    return [part for part in split(value, ["="]) if part] or [value]


def is_relation(text: str) -> bool:
    return _RELATION.search(text) is not None


def interval_of(text: str) -> str | None:
    r"""The interval that an inequality in one name or ``x \in I`` stands for, None for any other text. ``x < 2`` is ``(-\infty,2)``."""
    member, found, where = text.partition(r"\in ")
    if found and is_name(member):
        return where.strip()
    pieces = [piece.strip() for piece in _ORDER.split(text)]
    if len(pieces) == 3:
        left, sign, right = pieces
        if not is_name(left):
            left, sign, right = right, _SWAPPED[sign], left
        if not is_name(left) or is_name(right):
            return None
        if sign in ("<", r"\le"):
            return rf"(-\infty,{right}" + (")" if sign == "<" else "]")
        return ("(" if sign == ">" else "[") + rf"{right},\infty)"
    if len(pieces) == 5 and is_name(pieces[2]):
        low, first, _, second, high = pieces
        if first in (">", r"\ge"):
            low, first, second, high = high, _SWAPPED[second], _SWAPPED[first], low
        if second in (">", r"\ge") or first not in ("<", r"\le"):
            return None
        return ("(" if first == "<" else "[") + f"{low},{high}" + (")" if second == "<" else "]")
    return None


def without_builder(text: str) -> str:
    r"""``\{x \mid x < 2\} \setminus \{1\}`` as ``(-\infty,2) \setminus \{1\}``; inequalities become intervals, the rest stays."""
    whole, *removed = split(text, [r"\setminus"])
    shape = shape_of(whole)
    if shape.kind == "one" and shape.items and (interval := interval_of(shape.items[0])):
        whole = interval
    return r" \setminus ".join([whole, *removed])
