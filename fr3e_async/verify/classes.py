r"""Which answers are the same answer, for counting votes: one text for all ways to write it that need no mathematics to see through.

``\dfrac12`` and ``\frac{1}{2}`` are one class, ``0.5`` is another. No gold is looked at, so that a vote knows no more than the
answers do. Knows nothing of verdicts.
"""

from __future__ import annotations

import hashlib

from fr3e_async.verify import answers
from fr3e_async.verify.tokens import render, tokenise

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
