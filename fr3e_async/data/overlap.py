"""Whether two problems are the same one: by their text without what is only notation, and by the runs of words they share.

Pure: texts in, findings out. What to do with a finding is ``rows``'.

Same text
    Compared after Unicode compatibility folding, without case, white space at the ends and what only sets mathematics
    (``$ \\( \\) \\[ \\] \\left \\right \\, \\; \\! ~ \\displaystyle``). Operators and signs count: 2+3 is not 2-3.
Shared runs
    A problem's words are its runs of letters and digits; its runs are the n consecutive words from each place (13 as in
    GPT-3's and later contamination reports). One shared run alone says little, since contests repeat their last sentence
    ("can be written as m/n where m and n are relatively prime …"), so what counts is the part of the shorter problem's runs
    that both have.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fr3e_async.data.row import Row

_TYPOGRAPHY = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|\\[()\[\],;!:]|\$|~")
_PIECE = re.compile(r"\\?[^\W\d_]+|\d+|[^\w\s]|_")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Two rows that are the same problem or share much text. *Example*: ``Twin(row=…, other=…, same=True, share=1.0)``."""

    row: Row
    other: Row
    same: bool  # the same text but for notation
    share: float  # 1 if it is the same; else the part of the shorter one's runs of words that both have


def normal(text: str) -> str:
    """The text by which two problems are compared. *Example*: ``normal("Find $x$:  \\\\left( 2 \\\\right)")`` is ``"find x : ( 2 )"``."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_PIECE.findall(_TYPOGRAPHY.sub(" ", folded)))


def runs(text: str, length: int) -> set[int]:
    """Hashes of the runs of ``length`` words; empty for a shorter text. They hold within one process only."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return {hash(tuple(words[start : start + length])) for start in range(len(words) - length + 1)}


def duplicates(rows: Sequence[Row]) -> Iterator[Twin]:
    """A twin for each row whose text an earlier row has; ``other`` is the first with that text."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(normal(row.problem), row)
        if other is not row:
            yield Twin(row=row, other=other, same=True, share=1.0)


class Protected:
    """An index of problems that training must not see. O(their text) in memory; a look-up is O(the problem's text)."""

    def __init__(self, rows: Iterable[Row], *, run_length: int, min_share: float) -> None:
        """``run_length`` in words; ``min_share`` in (0, 1]. ``run_length`` 0: only the same text is found."""
        self._run_length, self._min_share = run_length, min_share
        self._texts: dict[str, Row] = {}
        self._rows: list[Row] = []
        self._sizes: list[int] = []
        self._holders: dict[int, list[int]] = {}  # hash of a run → indices of the rows that have it
        for row in rows:
            self._texts.setdefault(normal(row.problem), row)
            if run_length:
                self._add_runs(row)

    def find(self, row: Row) -> Twin | None:
        """The protected problem with the same text; else the one that shares the largest part of the shorter one's runs,
        from ``min_share`` on; else None."""
        other = self._texts.get(normal(row.problem))
        if other is not None:
            return Twin(row=row, other=other, same=True, share=1.0)
        return self._near(row) if self._holders else None

    def _near(self, row: Row) -> Twin | None:
        own = runs(row.problem, self._run_length)
        hits = Counter(index for run in own for index in self._holders.get(run, ()))
        if not hits:
            return None
        share, index = max((count / min(len(own), self._sizes[index]), -index) for index, count in hits.items())
        return Twin(row=row, other=self._rows[-index], same=False, share=share) if share >= self._min_share else None

    def _add_runs(self, row: Row) -> None:
        own = runs(row.problem, self._run_length)
        if own:
            for run in own:
                self._holders.setdefault(run, []).append(len(self._rows))
            self._rows.append(row)
            self._sizes.append(len(own))
