r"""Which part of a response is its answer, and the comparison of plain integers. Pure text.

The answer is the content of the last ``\boxed{}`` after the last ``</think>``. Earlier boxes are ignored: math-verify
would join them into a set, so that listing many numbers or thinking aloud would change the verdict.
Knows nothing of mathematics beyond whole numbers; that is ``judge``.
"""

from __future__ import annotations

import re

from fr3e_async.types import Outcome, Verdict

NO_ANSWER = "no answer"
INTEGER = "integer"
TOO_LONG = "answer too long"

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE_ARGUMENT = re.compile(r"\\[a-zA-Z]+|[-+]?[0-9][0-9.,]*|\S")
_PLAIN_INTEGER = re.compile(r"(?P<sign>[+-]?)(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.0*)?")
_DOLLARS = re.compile(r"\\?\$")
_SPACING = re.compile(r"\\[,!;: ]|~|\s")


def final_answer(response: str) -> str | None:
    r"""The content of the response's last box, or None without one.

    A box that is never closed is no answer (the response was cut off in it), and neither is one inside a
    ``<think>`` that is never closed. Example: ``final_answer(r"<think>\boxed{1}</think> so \boxed{\frac12}.")`` is ``\frac12``.
    """
    spoken = response.rpartition("</think>")[2].partition("<think>")[0]
    start = max(spoken.rfind("\\boxed"), spoken.rfind("\\fbox"))
    match = _BOX.match(spoken, start) if start >= 0 else None
    if match is None:
        return None
    if not spoken.startswith("{", match.end()):
        bare = _BARE_ARGUMENT.match(spoken, match.end())
        return bare.group() if bare else None
    return _braced(spoken, match.end())


def _braced(text: str, start: int) -> str | None:
    """The text between the brace at ``start`` and its partner, stripped; None if it has no partner or nothing inside."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # an escaped brace is a set's, not a group's
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : start + brace.start()].strip() or None
    return None


def strip_dollars(text: str) -> str:
    r"""The text without dollar signs, be they maths delimiters or (``\$``) an amount of money."""
    return _DOLLARS.sub("", text).strip()


def plain_integer(text: str) -> str | None:
    """A whole number in its shortest digits, or None if the text is anything else.

    Understood: ``$``, spaces and LaTeX spacing, thousands commas, a sign, a decimal point followed by zeros only.
    It stays a string, so that a number of a thousand digits costs nothing. ``plain_integer(r"\\$1,200.00")`` is ``"1200"``.
    """
    squeezed = _SPACING.sub("", strip_dollars(text)).replace("−", "-").replace("{,}", ",")
    match = _PLAIN_INTEGER.fullmatch(squeezed)
    if match is None:
        return None
    digits = match["digits"].replace(",", "").lstrip("0") or "0"
    return "-" + digits if match["sign"] == "-" and digits != "0" else digits


def quick_verdict(answer: str | None, gold: str, *, max_chars: int, exact_integers: bool = True) -> Verdict | None:
    """The verdict where no mathematics is needed, else None.

    A response without an answer is *wrong*: the prompt asks for a box, so a missing one is a failure that training should
    remove; as "unknown" it would be left out, and endless rambling would cost nothing. An answer above ``max_chars``
    characters is *unknown*, because nobody looked at it.
    """
    if answer is None:
        return Verdict(outcome=Outcome.WRONG, reason=NO_ANSWER)
    if max(len(answer), len(gold)) > max_chars:
        return Verdict(outcome=Outcome.UNKNOWN, reason=TOO_LONG)
    if not exact_integers:
        return None
    said, meant = plain_integer(answer), plain_integer(gold)
    if said is None or meant is None:
        return None
    return Verdict(outcome=Outcome.RIGHT if said == meant else Outcome.WRONG, reason=INTEGER)
