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
    """Index of the brace that closes the last complete box of ``text``; one pass, however many boxes are left open."""
    last: int | None = None
    boxes: list[bool] = []  # for every open brace: does a box begin with it?
    for index, character in enumerate(text):
        if character == "{":
            boxes.append(text.endswith(BOX, 0, index + 1))
        elif character == "}" and boxes and boxes.pop():
            last = index
    return last
