"""Why a worker died: its log's first error, or what its numbers show. Part of the text that events and messages carry. Pure."""

from __future__ import annotations

import re

MARK = "; the likeliest cause: "


def with_cause(why: str, cause: str) -> str:
    """``why`` with a cause, unless it names one already."""
    return f"{why}{MARK}{cause}" if cause and MARK not in why else why


def cause_of(why: str) -> str:
    """The cause in a text of ``with_cause`` without its numbers (processes, addresses, places), for a comparison; or ""."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", why.partition(MARK)[2])
