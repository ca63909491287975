r"""One answer against one gold, by math-verify. The only importer of math_verify; runs inside a killable process.

math-verify's own time-outs are off: they use SIGALRM, which does not interrupt big-integer arithmetic and fails off the
main thread. Limits are the business of ``worker`` and ``pool``. Returns plain strings, so that this module, which every
worker loads, needs neither numpy nor our types.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
MEMORY_LIMIT = "memory limit"

# math-verify warns once that its time-outs are off, which is what we want.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def parse_boxed(text: str) -> list[Any]:
    r"""math-verify's readings of ``text``: sympy objects first, then the text itself; empty if it cannot read it at all.

    Always through a ``\boxed{}``: bare, math-verify looks for the likeliest fragment, and ``2\pi`` becomes 2.
    """
    return parse(f"\\boxed{{{text}}}", extraction_config=_TARGETS, parsing_timeout=None, raise_on_error=True)


@lru_cache(maxsize=1024)  # all rollouts of a prompt share its gold, and parsing is the dearer half
def parse_gold(gold: str) -> list[Any]:
    return parse_boxed(gold)


def judge(answer: str, gold: str) -> tuple[str, str]:
    """(outcome, reason) of an answer. Both texts come without their box and without surrounding dollar signs.

    Unknown where it cannot be told: the gold cannot be read as mathematics and the texts differ, or the comparison broke off.
    """
    if answer == gold:
        return RIGHT, "same text"
    try:
        return _compare(answer, gold)
    except MemoryError:
        return UNKNOWN, MEMORY_LIMIT
    except RecursionError:
        return UNKNOWN, "nested too deeply"


def _compare(answer: str, gold: str) -> tuple[str, str]:
    golds, answers = parse_gold(gold), parse_boxed(answer)
    if not answers:
        return WRONG, "answer not readable"
    failure = ""
    for meant in golds:
        for said in answers:
            try:
                if verify(meant, said, timeout_seconds=None, raise_on_error=True):
                    return RIGHT, "math-verify"
            except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
                failure = f"comparison failed: {type(error).__name__}"  # what sympy raises on odd pairs; try the other readings
    if failure:
        return UNKNOWN, failure
    if all(isinstance(meant, str) for meant in golds):
        return UNKNOWN, "gold is not mathematics"
    return WRONG, "math-verify"
