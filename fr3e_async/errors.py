"""Errors that the user can fix, each with the program's exit code; and helpers for printed text.

Every other exception is a bug and keeps its traceback.
"""

import re
from collections.abc import Container, Sequence

# Control characters but for newline and tab, what turns the direction of writing, half surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape the characters of ``text`` that move a cursor, change a terminal or cannot be written: ``\\x1b[2J``.

    Messages quote data files, model folders and what a model said; none of these may write to a terminal.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """Bad input. ``main`` prints it as one line and exits with code 2; nothing has been started or written."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(UserError):
    """A setting is unknown, mistyped or contradicts another. The message names the setting's dotted path."""


class DataError(UserError):
    """A data row or file cannot be used. The message names the file and the line."""


class ModelError(UserError):
    """The model folder lacks something that a run needs (tokenizer, end token, weights)."""


class StorageError(UserError):
    """The run directory cannot be written: full, read-only, or of another run."""


class StartRefused(UserError):
    """The first actors' answers show that training cannot work with these settings. The program ends them and keeps nothing."""


class RunFailed(Exception):
    """A run that had started could not continue. ``main`` prints the diagnosis and exits with code 1."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class LearnerLost(RunFailed):
    """A rank of the learner group is gone; the group must be restarted from a checkpoint."""


# ---- Why a worker died: its log's first error, or what its numbers show ----
# Part of the text that events and messages carry. Pure.

MARK = "; the likeliest cause: "


def with_cause(why: str, cause: str) -> str:
    """``why`` with a cause, unless it names one already."""
    return f"{why}{MARK}{cause}" if cause and MARK not in why else why


def cause_of(why: str) -> str:
    """The cause in a text of ``with_cause`` without its numbers (processes, addresses, places), for a comparison; or ""."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", why.partition(MARK)[2])


def aligned(rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """Lines of a table with columns of equal width. ``left``: the columns that begin at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return ["  ".join(line).rstrip() for line in lines]
