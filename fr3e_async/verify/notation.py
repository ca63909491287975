r"""One way of writing for what LaTeX, Unicode and HTML write in many, and the cutting of such text at its top level. Pure text.

``tidy`` changes how something is written, never what it says: sizes, colours and spacing go, ``½`` becomes ``\frac{1}{2}``, fonts
become ``\text{}`` or nothing. Knows nothing of numbers, units or sympy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_LOST_BACKSLASH = {"\f": "\\f", "\b": "\\b", "\v": "\\v", "\a": "\\a"}  # "\frac" read as if it were a string of JSON or C
_LOST_T_OR_R = re.compile(r"\t(?=ext|imes|heta|an\b|frac|o\b)|\r(?=ight|ho\b|angle)")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "−": "-", "–": "-", "√": r"\sqrt ", "∈": r"\in ", "∀": r"\forall ",
    "±": r"\pm ", "°": r"^\circ ", "≈": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "θ": r"\theta ", "α": r"\alpha ",
    "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ", "ω": r"\omega ", "φ": r"\phi ", "ρ": r"\rho ", "σ": r"\sigma ",
    "Δ": r"\Delta ", "、": ",", "。": ".", "或": r"\text{ or }", "和": r"\text{ and }", "’": "'", "′": "'", "“": "", "”": "", "⁄": "/",
}  # fmt: skip
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), new)
    for pattern, new in (
        (r"<sup>(.*?)</sup>", r"^{\1}"),
        (r"<sub>(.*?)</sub>", r"_{\1}"),
        (r"(?<!\\)\\[()\[\]]", " "),  # \( \) \[ \]
        (r"\\(?:left|right|big[lrm]?|Big[lrm]?|bigg[lrm]?|Bigg[lrm]?|middle)(?![a-zA-Z])\.?", ""),
        (
            r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|mathstrut|hfill|strut|quad|qquad|enspace|thinspace)(?![a-zA-Z])",
            " ",
        ),
        (r"(?<!\\)\\[,;:! ]|~|\u200b", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\leqslant(?![a-zA-Z])|\\leq(?![a-zA-Z])|<=", r"\\le "),
        (r"\\geqslant(?![a-zA-Z])|\\geq(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\([lg]e)([xyzk])(?![a-zA-Z])", r"\\\1 \2"),
        (r"\\(?:cupdot|bigcup)(?![a-zA-Z])", r"\\cup "),
        (r"\\(?:degree|textdegree|textcirc)(?![a-zA-Z])", r"\\circ "),
        (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset "),
        (r"\\sqrt\s*\{\s*\}\s*\{", r"\\sqrt{"),
        (r"\^\s*\{\s*\\circ\s*\}", r"^\\circ "),
        (r"(?<!\^)\\circ(?=\s*$)", r"^\\circ "),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\(?:textcolor|color)\s*\{[a-zA-Z]*\}", ""),
        (
            r"\\(?:mathrm|mathbf|mathit|mathsf|mathtt|textbf|textit|textrm|textsf|mbox|hbox|boldsymbol|operatorname\*?|bm|underline|emph)\s*\{",
            r"\\text{",
        ),
        (r"\\(?:boxed|fbox)\s*\{", "{"),
        (r"[\[(]\s*\\begin\{array\}\s*\{[^{}]*\}(.*?)\\end\{array\}\s*[\])]", r"\\begin{pmatrix}\1\\end{pmatrix}"),
        (r"\\infin(?![a-zA-Z])", r"\\infty"),
        (r"\{,\}", ","),
        (r"(?<=\}) *(?:-|\\setminus|\\backslash) *(?=\\\{)", r" \\setminus "),
        (r"(?:(?<=\d)|(?<=\d\s)|(?<=\}))(?:\s|\\)*(?:percent|pct)\b", r"\\%"),
        (r"(?<!\\)%", r"\\%"),
        (r"\.(?=\s*[\])}])", ""),
        (r"(?<=\d)\s*(or|and)\s*(?=[-\d])", r"\\text{ \1 }"),
    )
)
_PLAIN_TEXT = re.compile(r"\\text\s*\{\s*([^{}]*?)\s*\}")
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "log",
        "ln",
        "lg",
        "exp",
        "gcd",
        "lcm",
        "max",
        "min",
        "det",
        "deg",
        "mod",
    ]
)
_BARE = re.compile(r"[-+]?[\d.,]+|[A-Za-z]'?|\([A-Za-z]\)|")
_UNITS = frozenset(
    ["m", "g", "s", "h", "L", "l", "N", "J", "W", "V", "K", "C", "min", "deg"]
)  # upright behind a number they are units, not variables
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_TOKEN = re.compile(r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)


def tidy(text: str) -> str:
    r"""``text`` in one way of writing. Example: ``tidy("$\\dfrac12\\,\\mathrm{cm}$.")`` is ``\frac{1}{2} \text{cm}``."""
    for lost, kept in _LOST_BACKSLASH.items():
        text = re.sub(f"{lost}(?=[a-z])", kept.replace("\\", r"\\"), text)
    text = _LOST_T_OR_R.sub(lambda found: "\\" + ("t" if found.group() == "\t" else "r"), text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: "^{" + found.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"(\d*)([¼-¾⅐-⅞])", _vulgar, text)
    text = _SYMBOL.sub(lambda found: _SYMBOLS[found.group()], text)
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r",\\! ?", ",", re.sub(r"\\?\$", " ", text))  # 32,\! 349 is one number
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = _PLAIN_TEXT.sub(_unwrapped, text)
    return _trimmed(_with_braces(text))


def _vulgar(found: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", found[2]).partition("⁄")
    return f"{found[1]}\\frac{{{top}}}{{{bottom}}}"


def _unwrapped(found: re.Match[str]) -> str:
    inside = found[1]
    before = found.string[: found.start()].rstrip()[-1:]
    if inside in _UNITS and (before.isdigit() or before in ("}", ")")):
        return found.group()
    if inside in _FUNCTIONS:
        return f"\\{inside} "
    if _BARE.fullmatch(inside):
        return f" {inside} " if inside else " "
    return found.group()


def _trimmed(text: str) -> str:
    """Without what stands around an answer and is no part of it: punctuation, a stray backslash, empty exponents."""
    text = re.sub(r"\s+", " ", text).strip()
    before = None
    while before != text:
        before = text
        text = re.sub(r"(?:[.,;:]|\\\\|(?<!\\)\\|\^)\s*$", "", text).strip()
        text = re.sub(r"^[:=,;]\s*", "", text)
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1].strip()
    return text


def _with_braces(text: str) -> str:
    r"""``\frac12``, ``\frac{1}2``, ``\sqrt3`` and ``\sqrt 3`` with the braces that TeX lets one leave out."""
    pieces: list[str] = []
    at = 0
    for found in re.finditer(r"\\(frac|sqrt)(?![a-zA-Z])\s*", text):
        if found.start() < at:
            continue
        arguments, end = _arguments(text, found.end(), count=2 if found[1] == "frac" else 1)
        pieces += [text[at : found.start()], f"\\{found[1]}"]
        pieces += arguments
        at = end
    return "".join(pieces) + text[at:]


def _arguments(text: str, at: int, *, count: int) -> tuple[list[str], int]:
    """Up to ``count`` arguments of a command that start at ``at``, in braces, and where they end."""
    found: list[str] = []
    while len(found) < count and at < len(text):
        while at < len(text) and text[at] == " ":
            at += 1
        if text[at : at + 1] == "{":
            end = closing(text, at)
            if end is None:
                break
            found.append("{" + _with_braces(text[at + 1 : end]) + "}")
            at = end + 1
            continue
        if text[at : at + 1] == "[" and count == 1 and (end := closing(text, at)) is not None:  # the degree of a root
            inner, after = _arguments(text, end + 1, count=1)
            return [text[at : end + 1], *inner], after
        single = re.match(r"\\[a-zA-Z]+|[0-9a-zA-Z]", text[at:])
        if single is None:
            break
        found.append("{" + single.group() + "}")
        at += single.end()
    return found, at


def closing(text: str, at: int) -> int | None:
    r"""Where the bracket at ``at`` is closed, by whatever closing bracket (intervals mix them); None if it is not."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        piece = token.group()
        if piece in _OPENING or piece == r"\{" or piece.startswith(r"\begin"):
            depth += 1
        elif piece in _CLOSING or piece == r"\}" or piece.startswith(r"\end"):
            depth -= 1
            if depth == 0:
                return token.start()
    return None


def split(text: str, separators: Iterable[str]) -> list[str]:
    r"""``text`` cut at the separators (single tokens such as ``,`` or ``\cup``) that stand outside of all brackets; stripped."""
    wanted = frozenset(separators)
    parts: list[str] = []
    depth = start = 0
    for token in _TOKEN.finditer(text):
        piece = token.group()
        if depth == 0 and piece in wanted:
            parts.append(text[start : token.start()].strip())
            start = token.end()
        elif piece in _OPENING or piece == r"\{" or piece.startswith(r"\begin"):
            depth += 1
        elif piece in _CLOSING or piece == r"\}" or piece.startswith(r"\end"):
            depth = max(0, depth - 1)
    return [*parts, text[start:].strip()]


def squeezed(text: str) -> str:
    """The text without spaces and needless braces, for comparing how two things are written."""
    text = re.sub(r"(?<=\d)\s+(?=\d)", "\x1e", text)  # 4 2 is not 42
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", re.sub(r"[ \t\n\r]+", "", text))
