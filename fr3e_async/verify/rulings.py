r"""The type of a decision, and how rules call each other: by level, so that a rule for lists can judge items without knowing other rules.

``judge`` knows the rules and sets them here; rules know only this module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fr3e_async.verify.tokens import Tokens, render

CORRECT, WRONG, UNKNOWN = "correct", "wrong", "unknown"
MAX_ITEMS = 64
SENTENCE_WORDS = 4  # from here on, words can say one thing in many ways


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    r"""The judge's switches.

    Example: ``Policies(units="ignored")`` takes ``12\text{ cm}`` for ``12\text{ m}``.
    """

    unfinished: Literal["wrong", "correct"] = "wrong"  # an answer that leaves the computing to the reader: 17·23 for 391
    units: Literal["checked", "ignored"] = "checked"  # a unit missing on one side is fine either way
    percent: Literal["optional", "exact"] = "optional"  # may the sign % be missing on one side?
    decimal_digits: int = 4  # significant digits from which a decimal stands for an exact value


Decision = tuple[str, str]
Rule = Callable[[Tokens, Tokens, Policies], Decision | None]
RULES: dict[str, tuple[Rule, ...]] = {}  # "values", "claims" and "whole"
trace: list[str] | None = None  # where ``--explain`` wants to hear of each rule that decides


def attempt(otherwise: Any, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of work by sympy or pint, which raise whatever they like on odd texts: then ``otherwise``, and nothing is proven."""
    try:
        return work(*arguments, **options)
    except MemoryError:  # the limit of the process
        raise
    except Exception:
        return otherwise


def by(level: str, said: Tokens, meant: Tokens, policies: Policies) -> Decision:
    """The decision of the first rule of a level that applies."""
    if not said or not meant:
        return WRONG, "nothing is said"
    for rule in RULES[level]:
        decision = rule(said, meant, policies)
        if decision is not None:
            if trace is not None:
                trace.append(f"{rule.__name__}: {render(said)} | {render(meant)}: {decision[0]} ({decision[1]})")
            return decision
    return WRONG, "unproven"


def by_policy(name: str, decision: Decision) -> Decision:
    """Name the policy as the reason of a decision that is correct; return any other decision unchanged."""
    return (CORRECT, f"policy: {name}") if decision[0] == CORRECT else decision


def in_order(ours: Sequence[Tokens], theirs: Sequence[Tokens], policies: Policies) -> Decision:
    """The worst of several: wrong, then unknown, then correct by policy, then correct by proof."""
    if len(ours) != len(theirs):
        return WRONG, "number of items"
    decisions = [by("claims", first, second, policies) for first, second in zip(ours, theirs, strict=True)]
    return max(decisions, key=lambda decision: ((CORRECT, UNKNOWN, WRONG).index(decision[0]), decision[1].startswith("policy")))


def in_any_order(ours: Sequence[Tokens], theirs: Sequence[Tokens], policies: Policies) -> Decision:
    """A partner of its own for each item. Equality is transitive, so the first partner that fits will do."""
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return WRONG, "number of items"
    left, partners = list(ours), []
    for item in theirs:
        left.sort(key=lambda other, item=item: other != item)  # type: ignore[misc]
        partner = next((other for other in left if by("claims", other, item, policies)[0] == CORRECT), None)
        if partner is None:
            return WRONG, "another item"
        left.remove(partner)
        partners.append(partner)
    return in_order(partners, theirs, policies)
