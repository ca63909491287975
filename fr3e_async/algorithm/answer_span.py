r"""Find the boxed answer of a text, and the token that completes it. Pure text; ids are never re-encoded.

Two users share it: the judge (``verify.answers``), and the choice of anchors, which must not come after the
answer. What counts is said after the last ``</think>`` and outside of a ``<think>`` that is never closed, be it opened by
the response or by the prompt before it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE_ARGUMENT = re.compile(r"\\[a-zA-Z]+|[-+]?[0-9][0-9.,]*|\S")


TAIL = 32  # tokens at the end of a prompt, enough for white space and the text that opens a thought


class Thoughts(NamedTuple):
    """How a thought is marked. *Example*: ``Thoughts("[THINK]", "[/THINK]").after("[INST]2+3?[/INST][THINK]")`` is open."""

    begin: str = "<think>"  # empty: there are none
    end: str = "</think>"
    opened: bool = False  # the response begins inside one

    def after(self, prompt: str) -> Self:
        """The same marks for a response to this prompt: ``opened`` if the prompt ends with ``begin``, as some templates do."""
        return self._replace(opened=bool(self.begin) and prompt.rstrip().endswith(self.begin))


THINK = Thoughts()


class Box(NamedTuple):
    content: str  # stripped
    start: int  # of the command
    end: int  # first character after it


def thoughts_by(marks: Sequence[str]) -> Thoughts:
    """Read the setting ``data.thoughts``: two texts, or none."""
    begin, end = marks or ("", "")
    return Thoughts(begin, end)


def answer_end(pieces: Sequence[str], thoughts: Thoughts = THINK) -> int | None:
    r"""Index of the first token after the box that counts, or None if the text has no answer.

    ``pieces[i]`` is the text of token i. Example: ``["so ", "\\boxed{", "4", "}", "<end>"]`` gives 4.
    """
    text = "".join(pieces)
    start, end = spoken(text, thoughts)
    box = last_box(text[start:end], end - start)
    if box is None:
        return None
    length = 0
    for index, piece in enumerate(pieces):
        length += len(piece)
        if length >= start + box.end:
            return index + 1
    return None


def stop_end(text: str, stops: Sequence[str]) -> int | None:
    """Return the end of the first stop text in a response, where the response ends too; None if it has none."""
    return min((text.index(stop) + len(stop) for stop in stops if stop in text), default=None)


def spoken(text: str, thoughts: Thoughts = THINK) -> tuple[int, int]:
    """(start, end) of what counts in a response: after the last ``</think>``, before a ``<think>`` that is still open."""
    if not thoughts.begin:
        return 0, len(text)
    thought = text.rfind(thoughts.end)
    if thought < 0 and thoughts.opened:
        return len(text), len(text)
    start = thought + len(thoughts.end) if thought >= 0 else 0
    again = text.find(thoughts.begin, start)
    return start, again if again >= 0 else len(text)


def last_box(text: str, end: int) -> Box | None:
    """The last box of ``text[:end]``; None if there is none or the last one is empty or not closed."""
    start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
    match = _BOX.match(text, start) if start >= 0 else None
    if match is None:
        return None
    if not text.startswith("{", match.end()):
        bare = _BARE_ARGUMENT.match(text, match.end())
        return Box(bare.group(), start, bare.end()) if bare else None
    return _braced(text, start, match.end())


def _braced(text: str, start: int, brace: int) -> Box | None:
    depth = 0
    for found in re.finditer(r"\\.|[{}]", text[brace:], re.DOTALL):  # an escaped brace is a set's, not a group's
        if found.group() == "{":
            depth += 1
        elif found.group() == "}":
            depth -= 1
            if depth == 0:
                inside = text[brace + 1 : brace + found.start()].strip()
                return Box(inside, start, brace + found.end()) if inside else None
    return None
