r"""Answers that may be off by a margin of their benchmark: numbers, compared with the judge's rules for units.

    within("1205 cm", "12 m", [Fraction(1, 10)])  # True: 12.05 m

Applies to the whole answer, before it is cut down to a class. Knows texts and numbers; whose margins they are is a benchmark's.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from msgspec.structs import replace

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Verdict
from fr3e_async.verify.lexicon import UPRIGHT_UNITS
from fr3e_async.verify.pool import policies_of
from fr3e_async.verify.quantities import PERCENT_SIGN, factor_between, parsed_unit, quantity, written_number
from fr3e_async.verify.rulings import Policies
from fr3e_async.verify.structure import shape_of
from fr3e_async.verify.tokens import tokenise

WITHIN = "within its margin"


@dataclass(frozen=True, slots=True)
class _Amount:
    """A number with its unit, exact. *Example*: ``12.5\\text{ cm}`` is (25/2, "cm")."""

    value: Fraction
    unit: str  # as ``units.quantity`` says it

    @property
    def size(self) -> Fraction:
        """The amount in the base unit of its dimension, for sorting."""
        parsed = parsed_unit(self.unit)  # None where pint does not know it
        return self.value * (1 if parsed is None else Fraction((1 * parsed).to_base_units().magnitude))


def with_margins(
    verdict: Verdict, answer: str | None, reference: str, margins: Sequence[Fraction], config: VerifierPoolConfig
) -> Verdict:
    """The verdict, or correct where the answer is off by no more than it may be. Without margins the judge alone decides."""
    if not margins or verdict.outcome is Outcome.CORRECT:
        return verdict
    if len(answer or "") > config.max_answer_chars or not within(answer, reference, margins, policies_of(config)):
        return verdict
    return replace(verdict, outcome=Outcome.CORRECT, reason=WITHIN)


def within(answer: str | None, reference: str, margins: Sequence[Fraction], policies: Policies = Policies()) -> bool:
    """Whether an answer lists the reference answer's numbers, each within its margin, in the same order or by size.

    ``margins``: in the reference answer's units, one for all or one each. An amount in another unit of the same dimension is
    converted; one of another dimension lies outside, and a unit that is missing or unknown on one side is fine.
    """
    if answer is None or not margins:
        return False
    meant = _amounts(reference)
    said = meant and _amounts(answer, {amount.unit for amount in meant})
    if said is None or meant is None or len(said) != len(meant) or len(margins) not in (1, len(meant)):
        return False
    references = list(zip(meant, [*margins] * (len(meant) if len(margins) == 1 else 1), strict=True))

    def fits(ours: Sequence[_Amount], theirs: Sequence[tuple[_Amount, Fraction]]) -> bool:
        return all(_is_near(one, other, most, policies) for one, (other, most) in zip(ours, theirs, strict=True))

    by_size = sorted(said, key=lambda one: one.size), sorted(references, key=lambda pair: pair[0].size)
    return fits(said, references) or fits(*by_size)


def numbers_of(text: str) -> list[Fraction] | None:
    """The numbers that a text lists, units left out; None if any part of it is something else."""
    amounts = _amounts(text)
    return None if amounts is None else [amount.value for amount in amounts]


def _amounts(text: str, letters: Collection[str] = UPRIGHT_UNITS) -> list[_Amount] | None:
    """Read the amounts that a text lists; None if a part of it is no amount. ``letters``: units of one letter that may be in italics."""
    tokens = tokenise(text)
    amounts = []
    for item in shape_of(tokens).items or (tokens,):
        parts = quantity(item, bare=item[-1] if item and item[-1] in letters else "")
        number = written_number(parts.core)
        if number is None:
            return None
        amounts.append(_Amount(number.value, parts.unit))
    return amounts


def _is_near(said: _Amount, meant: _Amount, most: Fraction, policies: Policies) -> bool:
    return any(abs(value - meant.value) <= most for value in _readings(said, meant, policies))


def _readings(said: _Amount, meant: _Amount, policies: Policies) -> list[Fraction]:
    """What the answer may mean in the reference answer's unit; nothing where the units differ."""
    measures = parsed_unit(said.unit) is not None, parsed_unit(meant.unit) is not None
    if PERCENT_SIGN in (said.unit, meant.unit) and said.unit != meant.unit:
        return [] if any(measures) else _percentages(said, meant, policies)
    if policies.units == "ignored" or not all(measures):
        return [said.value]
    factor = factor_between(said.unit, meant.unit)
    return [] if factor is None else [said.value * factor]


def _percentages(said: _Amount, meant: _Amount, policies: Policies) -> list[Fraction]:
    """Compare where one side has a percent sign and the other none, by the rule ``amount``."""
    signed = meant if meant.unit == PERCENT_SIGN else said
    found = [said.value] if policies.percent == "optional" and abs(signed.value) > 1 else []
    if meant.unit == PERCENT_SIGN:
        found.append(said.value * 100)
    elif meant.value.denominator > 1 or abs(meant.value) <= 1:
        found.append(said.value / 100)
    return found
