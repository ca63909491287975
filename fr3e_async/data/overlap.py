"""Find problems that are the same, by their text without notation, or nearly the same, by the runs of words they share.

Pure: texts in, findings out. ``screening`` decides what to do with a finding.

Same text
    Compared after Unicode compatibility folding, without case, white space, characters that are not seen, a full stop or question
    mark at the end, and what only sets mathematics (``$ \\( \\) \\left \\right \\, \\quad \\displaystyle``; ``\\dfrac`` is ``\\frac``,
    ``\\mathrm{a}`` is ``\\text{a}``, ``x^{2}`` is ``x^2``). Operators and signs count: 2+3 is not 2-3.
Shared runs
    A problem's words are its runs of letters and digits, and each character of a script without spaces; its runs are the n
    consecutive words from each position (13 as in GPT-3's and later contamination reports). One shared run alone says little, since
    contests repeat their last sentence ("can be written as m/n where m and n are relatively prime …"), so what counts is the part
    of the shorter problem's runs that both have.
Whole of a short problem
    A problem of fewer words than n has no such run. It is near to one that holds the whole of it, word for word and sign for
    sign, from ``MIN_PIECES`` pieces on: below that, one asks half of a textbook ("Find $f(x)$").
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fr3e_async.data.row import DataRow

MIN_PIECES = 8  # least length of a short problem to search for in others; a piece is a word, number, macro or sign

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TYPOGRAPHY = re.compile(
    r"(\\\\)|\\(?:(?:left|right|bigg?[lr]?|displaystyle|textstyle|q?quad|limits)(?![a-z])|[()\[\],;:!\s])|\$|~"
)
_STYLE = re.compile(r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname\*?|boldsymbol)(?![a-z])")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
_DIGIT_FRACTION = re.compile(r"\\frac(\d)(\d)")  # \frac12
_PIECE = re.compile(rf"[{_UNSPACED}]|\\?(?:(?![{_UNSPACED}])[^\W\d_])+|\d+|\\[\\{{}}|]|[^\w\s\\]|_")
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+")
_ENDS = frozenset(".?:;,。")  # not "!", which is a factorial
_LOOKALIKES = str.maketrans(dict.fromkeys("−‐‑‒–—", "-") | dict.fromkeys("‘’′", "'") | dict.fromkeys("“”", '"'))


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Two rows that are the same problem or share much text. *Example*: ``Twin(row=…, other=…, same=True, share=1.0)``."""

    row: DataRow
    other: DataRow
    same: bool  # the same text but for notation
    share: float  # 1 if it is the same; else the part of the shorter one's runs of words that both have
    whole: bool = False  # one of both is short, and the other holds the whole of it


def normal(text: str) -> str:
    """The text by which two problems are compared. *Example*: ``normal("Find $x$:  \\\\left( 2 \\\\right).")`` is ``"find x : ( 2 )"``."""
    plain = _TYPOGRAPHY.sub(r" \1 ", _folded(text))  # a double backslash stays: it ends a row of a matrix
    plain = _DIGIT_FRACTION.sub(r"\\frac{\1}{\2}", _FRACTION.sub(r"\\frac", _STYLE.sub(" ", plain)))
    pieces = _without_lone_braces(_PIECE.findall(plain))
    while len(pieces) > 1 and pieces[-1] in _ENDS:
        pieces.pop()
    return " ".join(pieces)


def runs(text: str, length: int) -> set[int]:
    """Hash each run of ``length`` words; empty for a shorter text. The hashes are valid within one process only."""
    words = _WORD.findall(_folded(text))
    return {hash(tuple(words[start : start + length])) for start in range(len(words) - length + 1)}


def duplicates(rows: Sequence[DataRow]) -> Iterator[Twin]:
    """Return a twin for each row that repeats an earlier row's text; ``other`` is the first row with that text."""
    first: dict[str, DataRow] = {}
    for row in rows:
        other = first.setdefault(normal(row.problem), row)
        if other is not row:
            yield Twin(row=row, other=other, same=True, share=1.0)


class Protected:
    """An index of problems that training must not see. O(their text) in memory; a look-up is O(the problem's text), and for a
    short problem O(the texts that share its first ``MIN_PIECES`` pieces) besides."""

    def __init__(self, rows: Iterable[DataRow], *, run_length: int, min_share: float) -> None:
        """``run_length`` in words; ``min_share`` in (0, 1]. ``run_length`` 0: only the same text is found."""
        self._run_length, self._min_share = run_length, min_share
        self._texts: dict[str, int] = {}  # normal text → index of the first row that has it
        self._rows: list[DataRow] = []
        self._sizes: list[int] = []  # runs of each row
        self._holders: dict[int, list[int]] = {}  # hash of a run → indices of the rows that have it
        self._short: dict[int, list[str]] = {}  # hash of the first pieces of a short problem → normal texts
        self._places: dict[int, list[str]] = {}  # hash of MIN_PIECES pieces in a row → normal texts
        for row in rows:
            self._add(row)

    def find(self, row: DataRow) -> Twin | None:
        """The protected problem with the same text; else one that holds the whole of the other where one of both is short; else
        the one that shares the largest part of the shorter one's runs, from ``min_share`` on; else None. Of equals the first."""
        text = normal(row.problem)
        index = self._texts.get(text)
        if index is not None:
            return Twin(row=row, other=self._rows[index], same=True, share=1.0)
        if not self._run_length:
            return None
        own = runs(row.problem, self._run_length)
        holder = self._whole(text, short=not own)
        if holder is not None:
            return Twin(row=row, other=self._rows[holder], same=False, share=1.0, whole=True)
        share, index = self._near(own)
        return Twin(row=row, other=self._rows[-index], same=False, share=share) if share >= self._min_share else None

    def _near(self, own: set[int]) -> tuple[float, int]:
        """Return (share, -index) of the row that shares most of the shorter one's runs; (0, 0) if none does."""
        hits = Counter(index for run in own for index in self._holders.get(run, ()))
        return max(((count / min(len(own), self._sizes[index]), -index) for index, count in hits.items()), default=(0.0, 0))

    def _whole(self, text: str, *, short: bool) -> int | None:
        """Index of the first row that contains the short text whole, or is short and contained whole in the text."""
        starts = _starts(text)
        held = (other for start in starts for other in self._short.get(start, ()) if _holds(text, other))
        holders = (other for start in starts[:1] for other in self._places.get(start, ()) if _holds(other, text)) if short else ()
        return min((self._texts[other] for other in (*held, *holders)), default=None)

    def _add(self, row: DataRow) -> None:
        text = normal(row.problem)
        if text in self._texts:
            return
        self._texts[text] = len(self._rows)
        own = runs(row.problem, self._run_length) if self._run_length else set()
        self._rows.append(row)
        self._sizes.append(len(own))
        for run in own:
            self._holders.setdefault(run, []).append(self._texts[text])
        if self._run_length:
            starts = _starts(text)
            if not own and starts:
                self._short.setdefault(starts[0], []).append(text)
            for start in set(starts):
                self._places.setdefault(start, []).append(text)


def _folded(text: str) -> str:
    """Without case, compatibility forms and invisible characters (soft hyphens, zero-width spaces, variation selectors)."""
    if not text.isascii():
        text = "".join(c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_LOOKALIKES)
    return text.casefold()


def _without_lone_braces(pieces: Iterable[str]) -> list[str]:
    """The pieces without braces that hold one piece in the end: ``x^{2}`` is ``x^2``. O(pieces), however deep they are nested."""
    kept: list[str] = []
    opened: list[int] = []  # indices of open braces in kept
    for piece in pieces:
        if piece == "}" and opened:
            start = opened.pop()
            if len(kept) == start + 2:
                del kept[start]
                continue
        elif piece == "{":
            opened.append(len(kept))
        kept.append(piece)
    return kept


def _starts(text: str) -> list[int]:
    """Hashes of the runs of ``MIN_PIECES`` pieces of a normal text, in order."""
    pieces = text.split(" ")
    return [hash(tuple(pieces[start : start + MIN_PIECES])) for start in range(len(pieces) - MIN_PIECES + 1)]


def _holds(text: str, part: str) -> bool:
    """Whether one normal text contains the pieces of the other consecutively."""
    return f" {part} " in f" {text} "
