"""Where the final answer of a token sequence is complete. Works on token texts, so that ids are never re-encoded."""

from __future__ import annotations

from collections.abc import Sequence

BOX = "\\boxed{"


def answer_end(pieces: Sequence[str]) -> int | None:
    """Index of the first token after the last complete ``\\boxed{...}`` (the one that is judged), or None if no box closes.

    ``pieces[i]`` is the text of token i. Example: ``["so ", "\\boxed{", "4", "}", "<end>"]`` gives 4.
    Tokens from there on cannot change what is judged, so they are no anchors.
    """
    close = _last_close("".join(pieces))
    if close is None:
        return None
    length = 0
    for index, piece in enumerate(pieces):
        length += len(piece)
        if length > close:
            return index + 1
    return None


def _last_close(text: str) -> int | None:
    """Index of the brace that closes the last complete box of ``text``."""
    last, start = None, text.find(BOX)
    while start >= 0:
        close = _closing_brace(text, start + len(BOX))
        last = last if close is None else close
        start = text.find(BOX, start + 1)
    return last


def _closing_brace(text: str, begin: int) -> int | None:
    depth = 1
    for index in range(begin, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return None
