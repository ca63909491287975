"""The toy task: left-to-right arithmetic in several steps, and solutions that sometimes take a wrong way.

Pure and seeded: the same arguments give the same problems and the same text. Knows nothing of tokens, models or files.

*Example* ::

    Start with 7.        1) 7+5=12
    1) +5                2) 12*2=24
    2) *2                3) 24-4=20
    3) -4                \\boxed{20}

A slip is a wrong decision at one token and sound arithmetic after it: the operator is swapped (``1) 7-5=2``) or the step
is left out (``2)`` where ``1)`` should stand). So the tokens where a solution can go wrong are few and uncertain, and all
the others are certain: the profile that entropy anchors look for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fr3e_async.config import ToyConfig

LARGEST = 20  # every value that occurs, on right and wrong ways, is in 0..LARGEST: few enough facts for a small model
OPERATORS = "+-*"
SKIP_PART = 0.35  # part of the slips that leave a term out; the others swap its operator
# Slips are not equally likely everywhere, so that prompts differ in difficulty. Mean about 1 over the problems made here.
SLIP_WEIGHT = {"+": 0.6, "-": 1.0, "*": 1.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    operator: str  # one of OPERATORS
    operand: int

    def apply(self, value: int) -> int | None:
        """The value after this term, or None if it leaves 0..LARGEST."""
        result = {"+": value + self.operand, "-": value - self.operand, "*": value * self.operand}[self.operator]
        return result if 0 <= result <= LARGEST else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsProblem:
    start: int
    terms: tuple[Term, ...]

    @property
    def text(self) -> str:
        steps = (f"\n{number}) {term.operator}{term.operand}" for number, term in enumerate(self.terms, start=1))
        return f"Start with {self.start}." + "".join(steps)

    @property
    def answer(self) -> int:
        value = self.start
        for term in self.terms:
            result = term.apply(value)
            assert result is not None, "sample_problem keeps every value in range"
            value = result
        return value


def sample_problem(config: ToyConfig, rng: random.Random) -> StepsProblem:
    """A problem of ``steps_min..steps_max`` terms."""
    steps = rng.randint(config.steps_min, config.steps_max)
    while True:
        value = start = rng.randint(2, 15)
        operands = [rng.randint(2, 7) for _ in range(steps)]
        terms = []
        for operand in operands:
            options = [(term, result) for term, result in _options(value, operand) if result > 0]
            if not options:
                break
            term, value = rng.choice(options)
            terms.append(term)
        else:
            return StepsProblem(start=start, terms=tuple(terms))


def _options(value: int, operand: int) -> list[tuple[Term, int]]:
    terms = [Term(operator=operator, operand=operand) for operator in OPERATORS]
    return [(term, result) for term in terms if (result := term.apply(value)) is not None]


def write_solution(problem: StepsProblem, rng: random.Random, slip_rate: float) -> str:
    """The text of one solution; each step goes a wrong way with probability ``slip_rate`` x SLIP_WEIGHT. 0: always right."""
    lines, value = [], problem.start
    for number, right in enumerate(problem.terms, start=1):
        term: Term | None = right
        if rng.random() < slip_rate * SLIP_WEIGHT[right.operator]:
            term = _slip(right, value, rng)
        result = None if term is None else term.apply(value)
        if term is None or result is None:  # left out, or no longer possible after an earlier slip
            continue
        lines.append(f"{number}) {value}{term.operator}{term.operand}={result}\n")
        value = result
    return "".join(lines) + f"\\boxed{{{value}}}"


def _slip(right: Term, value: int, rng: random.Random) -> Term | None:
    swapped = [term for term, _ in _options(value, right.operand) if term.operator != right.operator]
    return rng.choice(swapped) if swapped and rng.random() >= SKIP_PART else None
