r"""Text as tokens in one way of writing: what LaTeX, Unicode, HTML and plain ASCII write in many. Pure text.

    tokenise("$\\dfrac12\\,\\mathrm{cm}$.")   # ("\\frac", "{", "1", "}", "{", "2", "}", "'cm")

Only the harmless is changed, by closed lists: spacing, sizes, fonts, colours, delimiters of mathematics, Markdown's stars, closing
punctuation, synonyms of one sign (``\leq``, ``≤``, ``<=``), braces that TeX lets one leave out. No letter, digit, word, operator, prime,
power or sign is dropped. A word starts with ``'``: what stands in ``\text{}``, or is spelt out and known. Other letters stand alone, one
variable each. Knows nothing of numbers, units and sympy.
"""

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from itertools import accumulate, dropwhile

from fr3e_async.verify import lexicon

Tokens = tuple[str, ...]

_LEX = re.compile(
    r"\\(?:begin|end)\s*\{[a-zA-Z]+\*?\}|\\[lg]e(?=[xyzk](?![a-zA-Z]))|\\[a-zA-Z]+\*?|\\.|\d+\.\d+|\d+|\.\d+|[A-Za-z]+|[^\W\d_a-zA-Z]+|\s+"
    r"|<=|>=|!=|\*\*|__|.",
    re.DOTALL,
)
# "\frac" read as if it were a string of JSON or C
_LOST = re.compile("[\f\b\v\a](?=[a-z])|\t(?=ext|imes|heta|an\\b|frac|o\\b)|\r(?=ight|ho\\b|angle)")
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_TAGS = re.compile(r"<(su[bp])>(.*?)</\1>", re.DOTALL)
_PLAIN = str.maketrans(_SUPERSCRIPTS, "0123456789+-n")
_INVISIBLE = re.compile(r"\\!\s*|\\(?:left|right)\s*\.(?!\d)")  # 32,\! 349 is one number
_POWER = re.compile(r"(?<=[\w)}\]])(?: +\*\* +|\*\*)(?=\S)")  # ** raises; bold has a space, a sign or nothing on its outer side
_ADJOINT = re.compile(r"\^\s*(\{?)\s*\*")  # no product
_LEFT_OPEN = re.compile(r"((?:^|\\cup|\\in|=)[\s$]*(?:\\left\s*)?)\]")  # ]0,1[ is (0,1)
_RIGHT_OPEN = re.compile(r"\[(?=[\s$.]*(?:$|\\cup))")
_DEGREES = re.compile(r"\^\s*\{\s*\\(?:circ|degree)\s*\}|\^\s*\\(?:circ|degree)(?![a-zA-Z])|\\circ(?=[\s$.}]*$)")
SPACE = " "


@lru_cache(maxsize=4096)  # the reference of all rollouts of a prompt is the same
def tokenise(text: str) -> Tokens:
    r"""``text`` in one way of writing, without what stands around an answer and is no part of it."""
    try:
        return trimmed(_braced(_spelt(_plain(_LEX.findall(_clean(text))))))
    except RecursionError:  # nested too deeply to be anybody's answer: equal to itself alone
        return ("\0" + text,)


def _clean(text: str) -> str:
    text = _LOST.sub(lambda found: "\\" + "fbvatr"["\f\b\v\a\t\r".index(found.group())], text)
    text = _TAGS.sub(lambda found: ("^" if found[1] == "sup" else "_") + "{" + found[2] + "}", text)
    text = _RAISED.sub(lambda found: "^{" + found.group().translate(_PLAIN) + "}", text)
    text = _VULGAR.sub(lambda found: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", found.group()).split("⁄")), text)
    text = unicodedata.normalize("NFKC", text.translate(lexicon.SIGN)).translate(lexicon.SIGN)
    text = _LEFT_OPEN.sub(r"\1(", _RIGHT_OPEN.sub(")", text))
    text = text if r"\begin" in text else text.replace(r"\\", "\\")
    return _DEGREES.sub("°", _ADJOINT.sub(r"^\1\\star ", _POWER.sub("^", _INVISIBLE.sub("", text))))


def _plain(raw: list[str]) -> list[str]:
    """Tokens with spaces; fonts, sizes and colours are gone, what stood in text is words."""
    out: list[str] = []
    at = 0
    while at < len(raw):
        piece = raw[at]
        at += 1
        for _ in range(lexicon.WITH_OTHER_ARGUMENTS.get(piece, 0)):
            at = _after_argument(raw, at)
        if piece in lexicon.TEXT:
            end = _after_argument(raw, at)
            out += [SPACE, *_upright(_plain(raw[at:end])), SPACE]
            at = end
        elif piece.isspace():
            out.append(SPACE)
        elif piece not in lexicon.WITH_OTHER_ARGUMENTS:
            out += [new] if (new := lexicon.SYNONYMS.get(piece, piece)) else []
    return out


def _after_argument(raw: list[str], at: int) -> int:
    """Where the argument of a command that starts at ``at`` ends: a group in braces, or one token."""
    while at < len(raw) and raw[at].isspace():
        at += 1
    return closing(raw, at) + 1 if raw[at : at + 1] == ["{"] else min(at + 1, len(raw))


def _upright(inside: list[str]) -> list[str]:
    r"""What stands in ``\text{}``: letters of a run are a word, but for a variable, a choice or a function that is set upright."""
    letters = [piece for piece in inside if piece[:1].isalpha()]
    single = all(len(piece) == 1 for piece in letters)
    if single and len(letters) > 1 and "." in inside and set(inside) <= {*letters, ".", SPACE, "{", "}"}:  # p.m.
        return ["'" + "".join(letters)]
    if single and all(map(str.isascii, letters)):
        return ["'" + piece if piece in lexicon.UPRIGHT_UNITS else piece for piece in inside]
    function = len(letters) == 1 and letters[0].lower() in lexicon.ASCII_COMMANDS and letters[0] not in lexicon.UNITS
    return [piece if not piece[:1].isalpha() or function else "'" + piece for piece in inside]


def _spelt(tokens: list[str]) -> list[str]:
    """Runs of letters as words, commands or single letters; spaces are dropped, but for one that keeps two numbers apart."""
    prose = not any(t[:1].isdigit() or t in "=+^_<>/|!" or (t[0] == "\\" and t[1:].isalpha()) for t in tokens)
    out: list[str] = []
    for token in tokens:
        if token[0].isalpha() and (len(token) > 1 or ord(token) > 127):
            out += _run(token, prose)
        elif token != SPACE or out[-1:] != [SPACE]:
            out.append(token)
    kept = [token for at, token in enumerate(out) if token != SPACE or _keeps_apart(out, at)]
    return [
        "'min" if token == r"\min" and after not in ("(", "{", "_", r"\{") else token
        for token, after in zip(kept, [*kept[1:], ""], strict=False)
        if (token, after) not in ((".", "]"), (".", ")"))
    ]


def _keeps_apart(tokens: list[str], at: int) -> bool:
    """Is the space between two numbers, or between the comma of a list of numbers and the next one?"""
    if not 0 < at < len(tokens) - 1 or not is_digits(tokens[at + 1]):
        return False
    listed = tokens[at - 1] == "," and at > 1 and is_digits(tokens[at - 2]) and len(tokens[at + 1].partition(".")[0]) == 3
    return is_digits(tokens[at - 1]) or listed


def _run(run: str, prose: bool) -> list[str]:
    lower = run.lower()
    if lower in lexicon.ASCII_COMMANDS:
        return [lexicon.ASCII_COMMANDS[lower]]
    known = lower in lexicon.KNOWN_WORDS and not (len(run) == 2 and run.isupper() and lower in lexicon.UNITS)  # CM is a segment
    if not run.isascii() or known or (prose and not run.isupper()):
        return ["'" + run]
    prefix = next((name for name in lexicon.PREFIXES if run.startswith(name) and len(run) <= len(name) + 1), "")
    return [lexicon.ASCII_COMMANDS[prefix], *run[len(prefix) :]] if prefix else list(run)


def _braced(tokens: list[str]) -> list[str]:
    r"""Put arguments of commands, exponents and subscripts in braces, and remove all other braces. *Example*: x^2 is x^{2}."""
    out: list[str] = []
    at = opened = 0
    while at < len(tokens):
        token = tokens[at]
        if token in lexicon.ARGUMENTS:
            at = _command(tokens, at, out)
            continue
        if token == "{" or (token == "}" and opened):
            opened += 1 if token == "{" else -1
        elif token != SPACE or out[-1:] != ["}"]:
            out.append(token)
        at += 1
    return out


def _command(tokens: list[str], at: int, out: list[str]) -> int:
    """Appends the command at ``at`` with its arguments in braces, and says where they end."""
    command, at = tokens[at], at + 1
    out.append(r"\sqrt" if command == r"\usqrt" else command)
    for _ in range(lexicon.ARGUMENTS[command]):
        if command == r"\sqrt" and tokens[at : at + 1] == ["["] and "]" in tokens[at:]:
            end = tokens.index("]", at)
            out += tokens[at : end + 1]
            at = end + 1
        argument, at = _argument(tokens, at, command)
        if command == r"\sqrt" and not argument:  # \sqrt{}{3}
            argument, at = _argument(tokens, at, command)
        argument = ["T"] if argument == ["'T"] else argument  # transposed
        script = command in ("^", "_")
        if script and (set(argument) in ({"°"}, {"'"}) or {*argument[:1]} & lexicon.ORDINALS):
            out[-1:] = argument
        elif argument or not script:
            out += ["{", *argument, "}"]
    return at


def _argument(tokens: list[str], at: int, command: str) -> tuple[list[str], int]:
    """What ``command`` that stands before ``at`` applies to, and where that ends."""
    at += tokens[at : at + 1] == [SPACE]  # \frac 1 2
    first, whole = "".join(tokens[at : at + 1]), command in lexicon.WHOLE
    if not first:
        return [], at
    if first == "{" or (first == "(" and (whole or command == r"\sqrt")):
        end = closing(tokens, at)
        return [*_braced(tokens[at + 1 : end]), *tokens[at : at + (end == len(tokens))]], end + 1  # what is never closed stays
    if first in ("-", "+") and command == "^" and at + 1 < len(tokens):
        argument, end = _argument(tokens, at + 1, command)
        return [first, *argument], end
    if first in lexicon.ARGUMENTS:
        inner: list[str] = []
        return inner, _command(tokens, at, inner)
    if is_digits(first) and not whole and len(first) > 1:
        tokens[at] = first[1:]
        return [first[0]], at
    return [first], at + 1


def is_digits(token: str) -> bool:
    return token.replace(".", "", 1).isdigit() and token.isascii()


def closing(tokens: list[str] | Tokens, at: int) -> int:
    """Where the bracket at ``at`` is closed, by whatever closing bracket (intervals mix them); the length if it never is."""
    depth = 0
    for index in range(at, len(tokens)):
        depth += _step(tokens[index])
        if depth == 0:
            return index
    return len(tokens)


def _step(token: str) -> int:
    """1 for what opens a group, -1 for what closes one."""
    return (token in lexicon.OPENING or token.startswith(r"\begin")) - (token in lexicon.CLOSING or token.startswith(r"\end"))


def balanced(tokens: Tokens) -> bool:
    """Does every closing bracket have an opening one before it, and the other way round?"""
    depths = list(accumulate(map(_step, tokens), initial=0))
    return min(depths) == depths[-1] == 0


def trimmed(tokens: list[str] | Tokens) -> Tokens:
    """Without closing punctuation, a leading ``=`` or colon, and dots that nothing follows."""
    kept = list(dropwhile(lambda token: token in ("=", ":", ",", ";", SPACE), tokens))
    while kept and kept[-1] in (".", ",", ";", ":", SPACE, "\\", r"\\", "^"):
        kept.pop()
    return tuple(kept)


def split(tokens: Tokens, separators: Collection[str]) -> list[Tokens]:
    """``tokens`` cut at the separators that stand outside of all brackets."""
    parts: list[Tokens] = []
    depth = start = 0
    for at, token in enumerate(tokens):
        if depth == 0 and token in separators:
            parts.append(tokens[start:at])
            start = at + 1
        depth = max(0, depth + _step(token))
    return [part[part[:1] == (SPACE,) :] for part in (*parts, tokens[start:])]


def enclosed(tokens: Tokens, opening: str, close: str) -> Tokens | None:
    """What stands between two brackets that enclose all of it; None if they do not."""
    whole = len(tokens) >= 2 and tokens[0] == opening and tokens[-1] == close and closing(tokens, 0) == len(tokens) - 1
    return tokens[1:-1] if whole else None


def is_word(token: str) -> bool:
    return len(token) > 1 and token[0] == "'"


def variable(token: str) -> bool:
    return len(token) == 1 and token.isalpha()


def render(tokens: Tokens) -> str:
    """Join tokens into LaTeX that a parser reads; words become ``\\text{…}``."""
    out = ""
    for token, before in zip(tokens, ("", *tokens), strict=False):
        out += " " if before[:1] == "\\" and before[1:].isalpha() and token[:1].isalpha() else ""
        out += rf"\text{{{token[1:]}}}" if is_word(token) else {"°": r"^{\circ}", "%": r"\%"}.get(token, token)
    return out
