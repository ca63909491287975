r"""What a rule says, and how rules use each other: by level, so that a list can ask for its items whatever rules there are.

``judge`` knows the rules and sets them here; rules know only this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from fr3e_async.verify.policies import Policies
from fr3e_async.verify.tokens import Tokens, render

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
SENTENCE = "the reference is a sentence"
MAX_ITEMS = 64
SENTENCE_WORDS = 4  # from here on, words can say one thing in many ways

Ruling = tuple[str, str]
Rule = Callable[[Tokens, Tokens, Policies], Ruling | None]
Level = Literal["values", "claims", "whole"]
RULES: dict[Level, tuple[Rule, ...]] = {}
trace: list[str] | None = None  # where ``judge.explain`` wants to hear of each rule that decides


def by(level: Level, said: Tokens, meant: Tokens, policies: Policies) -> Ruling:
    """The ruling of the first rule of a level that applies."""
    if not said or not meant:
        return WRONG, "nothing is said"
    for rule in RULES[level]:
        ruling = rule(said, meant, policies)
        if ruling is not None:
            if trace is not None:
                trace.append(f"{rule.__name__}: {render(said)} | {render(meant)}: {ruling[0]} ({ruling[1]})")
            return ruling
    return WRONG, "unproven"


def every(rulings: list[Ruling]) -> Ruling:
    """Wrong before unknown before right by policy before right by proof."""
    order = (RIGHT, UNKNOWN, WRONG)
    return max(rulings, key=lambda ruling: (order.index(ruling[0]), ruling[1].startswith("policy")))


def in_order(ours: Sequence[Tokens], theirs: Sequence[Tokens], policies: Policies) -> Ruling:
    if len(ours) != len(theirs):
        return WRONG, "number of items"
    return every([by("claims", first, second, policies) for first, second in zip(ours, theirs, strict=True)])


def in_any_order(ours: list[Tokens], theirs: list[Tokens], policies: Policies) -> Ruling:
    """A partner of its own for each item. Equality is transitive, so the first partner that fits will do."""
    if len(ours) != len(theirs):
        return WRONG, "number of items"
    if max(len(ours), len(theirs)) > MAX_ITEMS:
        return WRONG, "too many items"
    left, rulings = list(ours), []
    for item in theirs:
        for candidate in sorted(left, key=lambda other, item=item: other != item):  # type: ignore[misc]
            ruling = by("claims", candidate, item, policies)
            if ruling[0] == RIGHT:
                left.remove(candidate)
                rulings.append(ruling)
                break
        else:
            return WRONG, "another item"
    return every(rulings) if rulings else (RIGHT, "same items")
