r"""One answer against one reference: correct only on a positive proof. Runs in a killable process.

Each rule is one function. It gives a decision where it applies, and None where it does not; the first that applies decides. Its docstring
states what it proves, and its examples are its tests (``answer ~ reference`` is correct, ``!~`` is wrong). What no rule proves is wrong
("unproven: ..."), never unknown: unknown is for limits, and for references that are sentences. Reasons that begin with "policy" are
correct by a policy (``docs/verifier.md``), not by proof. Knows nothing of limits, responses and rewards; returns plain strings, so that a
worker needs neither numpy nor our types.
"""

from typing import Any

from fr3e_async.verify import claim_rules as claims
from fr3e_async.verify import rulings
from fr3e_async.verify import value_rules as values
from fr3e_async.verify.rulings import CORRECT, UNKNOWN, WRONG, Decision, Policies, by
from fr3e_async.verify.tokens import tokenise

__all__ = ["CORRECT", "RULES", "UNKNOWN", "WRONG", "judge"]

_VALUES = (values.same_text, claims.base, values.numbers, values.unfinished, values.decimals, values.counting, values.algebra)
_CLAIMS = (
    values.same_text, values.decimal_comma, values.words, claims.congruence, claims.condition, claims.basis_vectors, claims.collection,
    claims.ratio, claims.base, claims.domain, claims.relation, claims.roughly, claims.equation, values.amount, claims.arrow, *_VALUES,
)  # fmt: skip
_WHOLE = (values.same_text, values.choice, values.lead, claims.domain, *_CLAIMS)
RULES = tuple(dict.fromkeys(_WHOLE))
rulings.RULES |= {"values": _VALUES, "claims": _CLAIMS, "whole": _WHOLE}


def judge(answer: str, reference: str, **options: Any) -> Decision:
    """(outcome, reason) of an answer. Both texts come without their box. The keywords are those of ``Policies``."""
    policies = Policies(**options)
    if answer == reference:
        return CORRECT, "same text"
    try:
        said, meant = tokenise(answer), tokenise(reference)
        return by("whole", said, meant, policies) if meant else (UNKNOWN, "the reference is empty")
    except MemoryError:  # the limit of the process: ``jobs`` says so
        raise
    except RecursionError:
        return WRONG, "unproven: nested too deeply"
    except Exception as error:  # a fault of ours, or of sympy's, is nobody's wrong answer
        return UNKNOWN, f"crashed: {type(error).__name__}"
