r"""One answer against one reference: right only on a positive proof. Runs in a killable process.

Each rule is one function. It gives a ruling where it applies, and None where it does not; the first that applies decides. Its docstring
states what it proves, and its examples are its tests (``answer ~ reference`` is right, ``!~`` is wrong). What no rule proves is wrong
("unproven: ..."), never unknown: unknown is for limits, and for references that are sentences. Reasons that begin with "policy" are
right by a policy (``docs/verifier.md``), not by proof. Knows nothing of limits, responses and rewards; returns plain strings, so that a
worker needs neither numpy nor our types.
"""

from __future__ import annotations

from typing import Any, Literal

from fr3e_async.verify import rulings, symbolic
from fr3e_async.verify.claim_rules import arrow, base, digits_and_base, domain, equation, parts_of, ratio, relation, roughly
from fr3e_async.verify.numbers import written_number
from fr3e_async.verify.policies import Policies
from fr3e_async.verify.rulings import RIGHT, UNKNOWN, WRONG, Rule, Ruling, by
from fr3e_async.verify.set_rules import basis_vectors, collection, condition, congruence
from fr3e_async.verify.structure import chain, interval_of, named, shape_of, without_domain
from fr3e_async.verify.text_rules import choice, decimal_comma, is_prose, lead, same_text, words
from fr3e_async.verify.tokens import Tokens, render, tokenise
from fr3e_async.verify.units import quantity
from fr3e_async.verify.value_rules import algebra, amount, counting, decimals, numbers, unfinished

__all__ = ["MEMORY_LIMIT", "RIGHT", "RULES", "UNKNOWN", "WRONG", "explain", "gold_kind", "judge"]

MEMORY_LIMIT = "memory limit"

_VALUES: tuple[Rule, ...] = (same_text, base, numbers, unfinished, decimals, counting, algebra)
_CLAIMS: tuple[Rule, ...] = (
    same_text, decimal_comma, words, congruence, condition, basis_vectors, collection, ratio, base, domain, relation,
    roughly, equation, amount, arrow, *_VALUES,
)  # fmt: skip
_WHOLE: tuple[Rule, ...] = (same_text, choice, lead, domain, *_CLAIMS)
RULES = tuple(dict.fromkeys(_WHOLE))
rulings.RULES |= {"values": _VALUES, "claims": _CLAIMS, "whole": _WHOLE}


def judge(answer: str, gold: str, **options: Any) -> Ruling:
    """(outcome, reason) of an answer. Both texts come without their box. The keywords are those of ``Policies``."""
    policies = Policies(**options)
    if answer == gold:
        return RIGHT, "same text"
    try:
        said, meant = tokenise(answer), tokenise(gold)
        return by("whole", said, meant, policies) if meant else (UNKNOWN, "the reference is empty")
    except MemoryError:
        return UNKNOWN, MEMORY_LIMIT
    except RecursionError:
        return WRONG, "unproven: nested too deeply"
    except Exception as error:  # a fault of ours, or of sympy's, is nobody's wrong answer
        return UNKNOWN, f"crashed: {type(error).__name__}"


def explain(answer: str, gold: str, **options: Any) -> list[str]:
    """Lines for a person: both texts as they are compared, each rule that decided, the innermost first, and the proof of the last one."""
    rulings.trace = []
    try:
        outcome, reason = judge(answer, gold, **options)
        told = rulings.trace
    finally:
        rulings.trace = None
    name = told[-1].partition(":")[0] if told else ""
    proofs = [(rule.__doc__ or "").partition(">>>")[0] for rule in RULES if rule.__name__ == name]
    return [
        f"answer:    {render(tokenise(answer))}",
        f"reference: {render(tokenise(gold))}",
        *told,
        f"{outcome}: {reason}",
        *(" ".join(proof.split()) for proof in proofs),
    ]


def gold_kind(gold: str) -> Literal["integer", "mathematics", "word", "text"]:
    """What answers to this reference are compared by: digits, mathematics, one word or a few, or text, where only the same words are right.

    "text" is what a dataset should be warned of.
    """
    tokens = tokenise(gold)
    number = written_number(tokens)
    if number is not None and number.integer:
        return "integer"
    if not tokens or is_prose(tokens):
        return "word" if len(tokens) == 1 else "text"
    try:
        readable = all(_readable(chain(named(item)[1])[-1]) for item in shape_of(without_domain(tokens)[0]).items)
    except (*symbolic.ODDITIES, RecursionError, MemoryError):
        return "text"
    return "mathematics" if readable else "text"


def _readable(tokens: Tokens) -> bool:
    shape = shape_of(tokens)
    if shape.kind != "one":
        return all(map(_readable, shape.items))
    core = quantity(interval_of(tokens) or tokens).core
    found = written_number(core) or digits_and_base(core) or parts_of(core) or {r"\equiv", r"\cup"} & {*tokens}
    return bool(found) or symbolic.reading(core) is not None
