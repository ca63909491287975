r"""Which part of a text is its answer, and the comparison of plain integers. Pure text.

The answer of a response is the content of its last ``\boxed{}`` after the last ``</think>``. Boxes joined only by "or", "and" or a comma
are one answer of several parts, so that ``\boxed{41} or \boxed{42}`` is not 42. Earlier boxes are ignored: math-verify would join
them into a set, so that listing many numbers or thinking aloud would change the verdict.
Knows nothing of mathematics beyond whole numbers; that is ``judge``.
"""

import hashlib
import re
from typing import Literal

from fr3e_async.algorithm.answer_span import THINK, Thoughts, last_box, spoken
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Verdict
from fr3e_async.verify import answers
from fr3e_async.verify.tokens import render, tokenise

NO_ANSWER = "no answer"
INTEGER = "integer"
TOO_LONG = "answer too long"

_JOINED = re.compile(
    r"(?:[\s$,;.*]|\\[()\[\],;:! ]|\\q?quad(?![a-zA-Z])|\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z]))*"
    r"(?:(?<=[\s$,;(])[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"  # and y =
)
_MAX_JOINED = 16  # boxes read backwards; nobody's answer has more parts
_PLAIN_INTEGER = re.compile(
    r"(?P<sign>[+-]?)(?P<digits>[0-9]{1,3}(?:(?P<comma>[ ,])[0-9]{3}(?:(?P=comma)[0-9]{3})*)?|[0-9]+)(?:\.0*)?"
)
_DOLLARS = re.compile(r"(?<!\\)\$")
_SPACING = re.compile(r"\\[,;: ]|~|\s+")

Kind = Literal["full", "bare", "raw"]
# Where a response that was not asked for a box states its answer; the first that occurs counts, at its last occurrence.
_STATED = (
    re.compile(r"final answer(?:\s+is)?\s*:?\s*(?:the final answer is)?\s*(?P<answer>[^\n]+)", re.IGNORECASE),
    re.compile(r"####\s*(?P<answer>[^\n]+)"),
    re.compile(r"^A:\s*(?P<answer>[^\n]+)", re.MULTILINE),
    re.compile(r"(?:answer|result)(?:\s+is\s*:?|\s*:)\s*(?P<answer>[^\n]+)", re.IGNORECASE),
    re.compile(r"答案(?:是|为)?[:：]?\s*(?P<answer>[^\n。]+)"),
)
_MATHS = re.compile(r"\$\$(?P<a>.+?)\$\$|\$(?P<b>[^$]+)\$|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\]", re.DOTALL)
_BRACKETED = re.compile(r"(?<![\w\\^{])\[(?P<answer>[^\[\],]+)\]")
_LAST_NUMBER = re.compile(r"(?<![A-Za-z\d.])[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_WORD = re.compile(r"[A-Za-z]{3,}|[\u0590-\u0fff\u3040-\u9fff]{2,}")
_STOP = re.compile(r"(?<=[^.\d])\.\s.*|(?<=\d)\.(?:\s.*)?$|\s*I hope it is correct.*|<\|.*", re.DOTALL)
_PERCENT_BEHIND = re.compile(r"\\boxed\{[\d.]+\}\$?\s*percent\b[\s.]*$")
_MAX_STATED_CHARS = 20_000  # an answer stands at the end


def final_answer(response: str, thoughts: Thoughts = THINK) -> str | None:
    r"""The content of the response's last box, or of the boxes that it is joined to; None without one.

    A box that is never closed is no answer (the response was cut off in it), and neither is one inside a
    thought that is never closed. Examples: ``<think>\boxed{1}</think> so \boxed{\frac12}.`` has the answer ``\frac12``, and
    ``\boxed{1} or \boxed{2}`` has ``1, 2``.
    """
    start, end = spoken(response, thoughts)
    text = response[start:end]
    box = last_box(text, len(text))
    if box is None:
        return None
    parts: list[str] = []
    while len(parts) < _MAX_JOINED:
        if box.content not in parts:
            parts.insert(0, box.content)
        before = last_box(text, box.start)
        if before is None or not _JOINED.fullmatch(text, before.end, box.start):
            break
        box = before
    return ", ".join(parts)


def answer_of(prediction: str, kind: Kind = "full") -> str | None:
    r"""The answer in a row of a file of predictions; more forgiving than ``final_answer``, as such files were not made for us.

    * ``full``, a response: its box; without any box what it states as its answer ("The answer is", "#### ", "A: ", ...), else a
      text in square brackets or a formula at its end. None if it says none of these.
    * ``bare``, an answer alone: its box if it has one, else all of it.
    * ``raw``, text with mathematics somewhere, as math-verify takes it: like ``full``, else the last formula or number, else all of it.
    """
    if "\\boxed" in prediction or "\\fbox" in prediction:
        boxed = final_answer(prediction)
        if boxed is not None or kind == "full":
            return boxed
    if kind == "bare":
        return prediction.strip() or None
    stated = _stated(prediction.rpartition("</think>")[2][-_MAX_STATED_CHARS:].strip())
    if stated is not None or kind == "full":
        return stated
    return _last_formula_or_number(prediction) or prediction.strip() or None


def reference_of(reference: str, kind: Kind = "full") -> str:
    """Return the reference answer of a row: all of its text, or what ``answer_of`` finds in a ``raw`` one.

    A percent sign is added where the word stands behind the box: "… is $\\boxed{20}$ percent".
    """
    found = answer_of(reference, kind) if kind == "raw" else None
    return found + r"\%" * bool(_PERCENT_BEHIND.search(reference)) if found else reference


def _stated(text: str) -> str | None:
    if not _WORD.search(re.sub(r"\\[a-zA-Z]+|\band\b", "", _MATHS.sub("", text))):  # formulas and nothing else
        return re.sub(r"^\[([^\[\],]*)\]$", r"\1", text) or None
    for pattern in _STATED:
        found = [match["answer"] for match in pattern.finditer(text)]
        if found:
            return _cut(found[-1])
    bracketed = [match["answer"] for match in _BRACKETED.finditer(text)]
    return bracketed[-1].strip() if bracketed else None


def _cut(stated: str) -> str | None:
    """Return the answer from the text after "the answer is": its formula or number, else the words up to the end of the sentence."""
    sentence = _STOP.sub("", stated).strip(" .:*")
    *before, last = re.split(r"\b(?:is|are)\b|是|为", sentence)
    if before:
        return _last_formula_or_number(last) or _clause(last)
    formulas = _formulas(sentence)
    return formulas[-1][1] if formulas else _clause(sentence)


def _clause(sentence: str) -> str | None:
    """The first clause, or the last number of one that is a sentence: "Jane started 3 hours ago"."""
    clause = re.split(r"[,，。] *(?=[^\d\s])", sentence)[0].strip()
    numbers = _LAST_NUMBER.findall(clause)
    if numbers and "\\" not in clause and len(_WORD.findall(clause)) > 2:
        return numbers[-1]
    return clause or None


def _formulas(text: str) -> list[tuple[int, str]]:
    """(where it starts, what it is) of each formula between dollars or in TeX's brackets."""
    return [(match.start(), next(filter(None, match.groups())).strip()) for match in _MATHS.finditer(text)]


def _last_formula_or_number(text: str) -> str | None:
    formulas = _formulas(text)
    numbers = [
        (match.start(), match.group())
        for match in _LAST_NUMBER.finditer(_MATHS.sub(lambda found: " " * len(found.group()), text))
    ]
    return max(formulas + numbers)[1] if formulas or numbers else None


def strip_dollars(text: str) -> str:
    r"""The text without the dollar signs that delimit mathematics; ``\$``, an amount of money, stays."""
    return _DOLLARS.sub("", text).strip()


def plain_integer(text: str) -> str | None:
    """A whole number in its shortest digits, or None if the text is anything else.

    Understood: ``$``, LaTeX spacing, thousands set off by commas or spaces, a sign, a decimal point followed by zeros only. "32, 349" and
    "4 2" are lists. It stays a string, so that a number of a thousand digits costs nothing. ``plain_integer(r"\\$1,200.00")`` is ``"1200"``.
    """
    spaced = _SPACING.sub(" ", re.sub(r"\\! ?", "", strip_dollars(text).replace(r"\$", ""))).strip()
    spaced = re.sub(r"\{,\} ?|,(?=$)", ",", re.sub(r"^([+−-]) ", r"\1", spaced)).replace("−", "-")
    match = _PLAIN_INTEGER.fullmatch(spaced)
    if match is None:
        return None
    digits = match["digits"].replace(",", "").replace(" ", "").lstrip("0") or "0"
    return "-" + digits if match["sign"] == "-" and digits != "0" else digits


def quick_verdict(answer: str | None, reference: str, *, max_chars: int, exact_integers: bool = True) -> Verdict | None:
    """The verdict where no mathematics is needed, else None.

    A response without an answer is *wrong*: the prompt asks for a box, so a missing one is a failure that training should
    remove; as "unknown" it would be left out, and endless rambling would cost nothing. An answer above ``max_chars``
    characters is *unknown*, because nobody looked at it.
    """
    if answer is None:
        return Verdict(outcome=Outcome.WRONG, reason=NO_ANSWER)
    if max(len(answer), len(reference)) > max_chars:
        return Verdict(outcome=Outcome.UNKNOWN, reason=TOO_LONG)
    if not exact_integers:
        return None
    said, meant = plain_integer(answer), plain_integer(reference)
    if said is None or meant is None:
        return None
    return Verdict(outcome=Outcome.CORRECT if said == meant else Outcome.WRONG, reason=INTEGER)


# ---- Which answers are the same answer, for counting votes: one text for all ways to write it that need no mathematics to see through ----
# ``\dfrac12`` and ``\frac{1}{2}`` are one class, ``0.5`` is another. The reference answer is not looked at: a vote must not know it.
# Knows nothing of verdicts.

MAX_CHARS = 120  # a longer text is cut, with a digest of all of it in place of the rest
_TIDIED_CHARS = 2000  # beyond this a text is nobody's answer, and is compared as it stands


def answer_class(answer: str) -> str:
    """The text of an answer's class. *Example*: ``answer_class("$1{,}200.0$")`` is ``"1200"``."""
    bare = answers.strip_dollars(answer)
    number = answers.plain_integer(bare)
    if number is None:
        number = render(tokenise(bare)) if len(bare) <= _TIDIED_CHARS else bare
    if len(number) <= MAX_CHARS:
        return number
    digest = hashlib.sha256(number.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{number[: MAX_CHARS - 14]}…#{digest}"
