r"""Text as tokens in one way of writing: what LaTeX, Unicode, HTML and plain ASCII write in many. Pure text.

    tokenise("$\\dfrac12\\,\\mathrm{cm}$.")   # ("\\frac", "{", "1", "}", "{", "2", "}", "'cm")

Only the harmless is changed, by closed lists: spacing, sizes, fonts, colours, delimiters of mathematics, Markdown's stars, closing
punctuation, synonyms of one sign (``\leq``, ``≤``, ``<=``), braces that TeX lets one leave out. No letter, digit, word, operator, prime,
power or sign is dropped. A word starts with ``'``: what stands in ``\text{}``, or is spelt out and known. Other letters stand alone, one
variable each. Knows nothing of numbers, units and sympy.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from fr3e_async.verify.signs import (
    ARGUMENTS,
    CLOSING,
    FONTS,
    GREEK,
    NOTHING,
    OPENING,
    ORDINALS,
    PREFIXES,
    SIGN,
    SPACES,
    SYNONYMS,
    TEXT,
    UPRIGHT_UNITS,
    WITH_OTHER_ARGUMENTS,
)  # fmt: skip
from fr3e_async.verify.words import ASCII_COMMANDS, KNOWN_WORDS, UNITS

Tokens = tuple[str, ...]

_LEX = re.compile(
    r"\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}|\\[a-zA-Z]+\*?|\\.|\d+\.\d+|\d+|\.\d+|[A-Za-z]+|[^\W\d_a-zA-Z]+|\s+|<=|>=|!=|\*\*|__|.",
    re.DOTALL,
)
_LOST = {"\f": "\\f", "\b": "\\b", "\v": "\\v", "\a": "\\a"}  # "\frac" read as if it were a string of JSON or C
_LOST_T_OR_R = re.compile(r"\t(?=ext|imes|heta|an\b|frac|o\b)|\r(?=ight|ho\b|angle)")
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_TAGS = re.compile(r"<(su[bp])>(.*?)</\1>", re.DOTALL)
_PLAIN = str.maketrans(_SUPERSCRIPTS, "0123456789+-n")
SPACE = " "


@lru_cache(maxsize=4096)  # the reference of all rollouts of a prompt is the same
def tokenise(text: str) -> Tokens:
    r"""``text`` in one way of writing, without what stands around an answer and is no part of it."""
    try:
        return trimmed(_braced(_spelt(_lexed(_clean(text)))))
    except RecursionError:  # nested too deeply to be anybody's answer: equal to itself alone
        return ("\0" + text,)


def _clean(text: str) -> str:
    for lost, kept in _LOST.items():
        text = re.sub(f"{lost}(?=[a-z])", lambda _, kept=kept: kept, text)  # type: ignore[misc]
    text = _LOST_T_OR_R.sub(lambda found: "\\" + ("t" if found.group() == "\t" else "r"), text)
    text = _TAGS.sub(lambda found: ("^" if found[1] == "sup" else "_") + "{" + found[2] + "}", text)
    text = _RAISED.sub(lambda found: "^{" + found.group().translate(_PLAIN) + "}", text)
    text = _VULGAR.sub(lambda found: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", found.group()).split("⁄")), text)
    text = unicodedata.normalize("NFKC", text.translate(SIGN)).translate(SIGN)
    return text if r"\begin" in text else text.replace(r"\\", "\\")


def _lexed(text: str) -> list[str]:
    """Tokens with spaces; fonts, sizes and colours are gone, what stood in text is words."""
    return _plain(_LEX.findall(text))


def _plain(raw: list[str]) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(raw):
        piece = raw[at]
        at += 1
        if piece in WITH_OTHER_ARGUMENTS:
            for _ in range(WITH_OTHER_ARGUMENTS[piece]):
                at = _after_argument(raw, at)
        elif piece in TEXT:
            end = _after_argument(raw, at)
            out += _upright(raw[at:end])
            at = end
        elif piece == "**" and _is_power(raw, at):
            out.append("^")
        elif piece in NOTHING or piece in FONTS:
            if piece in (r"\left", r"\right") and raw[at : at + 1] == ["."]:
                at += 1
        elif piece == r"\!":
            while at < len(raw) and raw[at].isspace():  # 32,\! 349 is one number
                at += 1
        elif piece.isspace() or piece in SPACES:
            out.append(SPACE)
        elif piece[:3] in (r"\le", r"\ge") and len(piece) == 4 and piece[3] in "xyzk":  # \lex
            out += [piece[:3], piece[3]]
        else:
            adjoint = piece == "*" and (out[-1:] == ["^"] or out[-2:] == ["^", "{"])  # an adjoint, no product
            out.append(piece if adjoint else SYNONYMS.get(piece, piece))
    return out


def _is_power(raw: list[str], at: int) -> bool:
    """Does ``**`` before ``at`` raise, rather than set something in bold? Bold has a space, a sign or nothing on its outer side."""
    before, after = raw[at - 2 : at - 1] if at > 1 else [], raw[at : at + 1]
    if not before or not after or before[0].isspace() is not after[0].isspace():
        return False
    last = next((piece for piece in reversed(raw[: at - 1]) if not piece.isspace()), "=")
    return last[-1].isalnum() or last in (")", "}", "]")


def _after_argument(raw: list[str], at: int) -> int:
    """Where the argument of a command that starts at ``at`` ends: a group in braces, or one token."""
    while at < len(raw) and raw[at].isspace():
        at += 1
    return closing(raw, at) + 1 if raw[at : at + 1] == ["{"] else min(at + 1, len(raw))


def _upright(raw: list[str]) -> list[str]:
    r"""What stands in ``\text{}``: letters of a run are a word, but for a variable, a choice or a function that is set upright."""
    inside = _plain(raw)
    if dotted := _abbreviation(inside):
        return [SPACE, "'" + dotted, SPACE]
    letters = [piece for piece in inside if piece[:1].isalpha()]
    if all(len(piece) == 1 and piece.isascii() for piece in letters):
        return [SPACE, *("'" + p if p in UPRIGHT_UNITS else p for p in inside), SPACE]
    out: list[str] = [SPACE]
    for piece in inside:
        known = piece.lower() in ASCII_COMMANDS and piece not in UNITS and len(letters) == 1
        out.append(piece if not piece[:1].isalpha() or known else "'" + piece)
    return [*out, SPACE]


def _abbreviation(inside: list[str]) -> str:
    """``p.m.`` as one word; "" for anything else."""
    kept = [piece for piece in inside if piece not in (SPACE, "{", "}")]
    letters, dots = kept[::2], kept[1::2]
    whole = len(letters) > 1 and all(len(p) == 1 and p.isalpha() for p in letters) and set(dots) == {"."}
    return "".join(letters) if whole else ""


def _spelt(tokens: list[str]) -> list[str]:
    """Runs of letters as words, commands or single letters; spaces are dropped, but for one that keeps two numbers apart."""
    prose = not any(_says_mathematics(token) for token in tokens)
    out: list[str] = []
    for token in tokens:
        if token == SPACE:
            if out and out[-1] != SPACE:
                out.append(SPACE)
        elif token[0].isalpha() and (len(token) > 1 or ord(token) > 127):
            out += _run(token, prose)
        else:
            out.append(token)
    kept = [token for i, token in enumerate(out) if token != SPACE or _keeps_apart(out, i)]
    return [
        "'min" if t == r"\min" and kept[i + 1 : i + 2] not in (["("], ["{"], ["_"], [r"\{"]) else t
        for i, t in enumerate(kept)
        if not (t == "^" and kept[i + 1 : i + 2] == ["°"]) and not (t == "." and kept[i + 1 : i + 2][:1] in (["]"], [")"]))
    ]


def _keeps_apart(tokens: list[str], at: int) -> bool:
    """Is the space between two numbers, or between the comma of a list of numbers and the next one?"""
    if not 0 < at < len(tokens) - 1 or not is_digits(tokens[at + 1]):
        return False
    listed = tokens[at - 1] == "," and at > 1 and is_digits(tokens[at - 2]) and len(tokens[at + 1].partition(".")[0]) == 3
    return is_digits(tokens[at - 1]) or listed


def _says_mathematics(token: str) -> bool:
    return (
        token[:1].isdigit()
        or token in ("=", "+", "^", "_", "<", ">", "/", "|", "!")
        or (token[:1] == "\\" and token[1:].isalpha())
    )


def _run(run: str, prose: bool) -> list[str]:
    lower = run.lower()
    if not run.isascii():
        return [GREEK[letter] for letter in run] if len(run) < 3 and set(run) <= set(GREEK) else ["'" + run]
    if lower in ASCII_COMMANDS:
        return [ASCII_COMMANDS[lower]]
    if lower in KNOWN_WORDS or (prose and not run.isupper()):
        return ["'" + run]
    prefix = next((name for name in PREFIXES if run.startswith(name) and len(run) <= len(name) + 1), "")
    if prefix:
        return [ASCII_COMMANDS[prefix], *run[len(prefix) :]]
    return list(run)


def _braced(tokens: list[str]) -> list[str]:
    r"""Arguments of commands, exponents and subscripts in braces, other braces gone; ``(n \choose k)`` as a binomial."""
    tokens = _circles(tokens)
    out: list[str] = []
    at = opened = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token in ("^", "_"):
            argument, at = _argument(tokens, at, whole=True)
            raised = argument and (argument == ["°"] or set(argument) == {"'"} or (token == "^" and argument[0] in ORDINALS))
            out += argument if raised else [token, "{", *argument, "}"] if argument else [token]
        elif token in ARGUMENTS:
            out.append(token)
            at = _with_arguments(tokens, at, token, out)
        elif token == r"\usqrt":
            argument, at = _argument(tokens, at, whole=True)
            out += [r"\sqrt", "{", *argument, "}"]
        elif token == "{" or (token == "}" and opened) or (token == SPACE and out[-1:] == ["}"]):
            opened += (token == "{") - (token == "}")
        else:
            out.append(token)
    return out


def _circles(tokens: list[str]) -> list[str]:
    r"""``^\circ`` and ``^{\circ}`` as the degree sign; a circle elsewhere composes functions."""
    out: list[str] = []
    for at, token in enumerate(tokens):
        raised = out[-1:] == ["^"] or out[-2:] == ["^", "{"]
        out.append("°" if token == r"\circ" and (raised or at == len(tokens) - 1) else token)
        if out[-2:] == ["^", "°"]:
            out[-2:] = ["°"]
    return out


def _with_arguments(tokens: list[str], at: int, command: str, out: list[str]) -> int:
    for _ in range(ARGUMENTS[command]):
        if command == r"\sqrt" and tokens[at : at + 1] == ["["] and "]" in tokens[at:]:
            end = tokens.index("]", at)
            out += tokens[at : end + 1]
            at = end + 1
        argument, at = _argument(tokens, at, whole=False)
        if not argument and command == r"\sqrt" and tokens[at : at + 1] == ["{"]:  # \sqrt{}{3}
            argument, at = _argument(tokens, at, whole=False)
        out += ["{", *argument, "}"]
    return at


def _argument(tokens: list[str], at: int, *, whole: bool) -> tuple[list[str], int]:
    """What a command that stands before ``at`` applies to, and where that ends. ``whole``: all digits of a number, not the first one."""
    while tokens[at : at + 1] == [SPACE]:
        at += 1
    if at >= len(tokens):
        return [], at
    first = tokens[at]
    if first == "{" or (first == "(" and (whole or tokens[at - 1] == r"\sqrt")):
        end = closing(tokens, at)
        return [*_braced(tokens[at + 1 : end]), *tokens[at : at + (end == len(tokens))]], end + 1  # what is never closed stays
    if whole and first in ("-", "+") and at + 1 < len(tokens) and tokens[at - 1] == "^":
        argument, end = _argument(tokens, at + 1, whole=True)
        return [first, *argument], end
    if is_digits(first) and not whole and len(first) > 1:
        tokens[at] = first[1:]
        return [first[0]], at
    if first in ARGUMENTS or first == r"\usqrt":
        if first == r"\usqrt":
            argument, end = _argument(tokens, at + 1, whole=True)
            return [r"\sqrt", "{", *argument, "}"], end
        inner = [first]
        return inner, _with_arguments(tokens, at + 1, first, inner)
    return [first], at + 1


def is_digits(token: str) -> bool:
    return token.replace(".", "", 1).isdigit() and token.isascii()


def closing(tokens: list[str] | Tokens, at: int) -> int:
    """Where the bracket at ``at`` is closed, by whatever closing bracket (intervals mix them); the length if it never is."""
    depth = 0
    for place in range(at, len(tokens)):
        if tokens[place] in OPENING or tokens[place].startswith(r"\begin"):
            depth += 1
        elif tokens[place] in CLOSING or tokens[place].startswith(r"\end"):
            depth -= 1
            if depth == 0:
                return place
    return len(tokens)


def balanced(tokens: Tokens) -> bool:
    """Does every closing bracket have an opening one before it, and the other way round?"""
    depth = 0
    for token in tokens:
        depth += (token in OPENING) - (token in CLOSING)
        if depth < 0:
            return False
    return depth == 0


def trimmed(tokens: list[str] | Tokens) -> Tokens:
    """Without closing punctuation, a leading ``=`` or colon, and dots that nothing follows."""
    start, end = 0, len(tokens)
    while start < end and tokens[end - 1] in (".", ",", ";", ":", SPACE, "\\", r"\\", "^"):
        end -= 1
    while start < end and tokens[start] in ("=", ":", ",", ";", SPACE):
        start += 1
    return tuple(tokens[start:end])


def split(tokens: Tokens, separators: frozenset[str]) -> list[Tokens]:
    """``tokens`` cut at the separators that stand outside of all brackets."""
    parts: list[Tokens] = []
    depth = start = 0
    for at, token in enumerate(tokens):
        if depth == 0 and token in separators:
            parts.append(_without_space(tokens[start:at]))
            start = at + 1
        elif token in OPENING or token.startswith(r"\begin"):
            depth += 1
        elif token in CLOSING or token.startswith(r"\end"):
            depth = max(0, depth - 1)
    return [*parts, _without_space(tokens[start:])]


def _without_space(tokens: Tokens) -> Tokens:
    return tokens[1:] if tokens[:1] == (SPACE,) else tokens


def enclosed(tokens: Tokens, opening: str, close: str) -> Tokens | None:
    """What stands between two brackets that enclose all of it; None if they do not."""
    if len(tokens) >= 2 and tokens[0] == opening and tokens[-1] == close and closing(tokens, 0) == len(tokens) - 1:
        return tokens[1:-1]
    return None


def words_of(tokens: Tokens) -> list[str]:
    return [token[1:] for token in tokens if is_word(token)]


def is_word(token: str) -> bool:
    return len(token) > 1 and token[0] == "'"


def render(tokens: Tokens) -> str:
    """As LaTeX, for a parser."""
    out: list[str] = []
    for token in tokens:
        if out and out[-1][:1] == "\\" and out[-1][1:].isalpha() and token[:1].isalpha():
            out.append(" ")
        out.append(
            rf"\text{{{token[1:]}}}" if is_word(token) else r"^{\circ}" if token == "°" else r"\%" if token == "%" else token
        )
    return "".join(out)
