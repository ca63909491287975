"""Which references the judge can read as more than text. Runs in a killable process; no answer is looked at."""

from typing import Literal

from fr3e_async.verify import symbolic
from fr3e_async.verify.claim_rules import digits_and_base, parts_of
from fr3e_async.verify.quantities import quantity, written_number
from fr3e_async.verify.structure import chain, interval_of, named, shape_of, without_domain
from fr3e_async.verify.tokens import Tokens, tokenise
from fr3e_async.verify.value_rules import is_prose


def reference_kind(reference: str) -> Literal["integer", "mathematics", "word", "text"]:
    """What answers to this reference are compared by: digits, mathematics, one word or a few, or text, where only the same words are correct.

    "text" is what a dataset should be warned of.
    """
    tokens = tokenise(reference)
    number = written_number(tokens)
    if number is not None and number.integer:
        return "integer"
    if not tokens or is_prose(tokens):
        return "word" if len(tokens) == 1 else "text"
    try:
        readable = all(_readable(chain(named(item)[1])[-1]) for item in shape_of(without_domain(tokens)[0]).items)
    except (RecursionError, MemoryError):
        return "text"
    return "mathematics" if readable else "text"


def _readable(tokens: Tokens) -> bool:
    shape = shape_of(tokens)
    if shape.kind != "one":
        return all(map(_readable, shape.items))
    core = quantity(interval_of(tokens) or tokens).core
    found = written_number(core) or digits_and_base(core) or parts_of(core) or {r"\equiv", r"\cup"} & {*tokens}
    return bool(found) or symbolic.reading(core) is not None
