"""A toy task whose solutions need a rarely taken turn at a few known tokens: arithmetic in steps, some of them forks.

Pure and seeded: the same arguments give the same problems and the same text. Knows nothing of tokens, models or files.

*Example* ::

    Start with 7.        1) 7+5=12
    1) +5                2) 12-3=9       a bar: the left term
    2) -3|+2             3) 9+6=15       a slash: the right term
    3) +4/+6             \\boxed{15}

At a fork a bar asks for the left term and a slash for the right one. The warm start takes the left one by habit: at a slash
it turns right with ``toy.turn_rate`` only, at a bar still more seldom. So it knows the arithmetic and hardly the rule, and a
problem with n slashes is solved with about ``turn_rate ** n``. Every problem has one at least. After a wrong turn the
arithmetic continues soundly, to another answer: a solution is right if and only if all its turns are.

Uncertain tokens that decide nothing are there as well, as in any prose: after a label a space may stand (``toy.style_rate``).
Positions that decide and positions that are merely uncertain are known apart, so one can measure which ones anchors hit.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.task import LARGEST, OPERATORS, Term

OPERANDS = range(1, 10)
ATTEMPTS = 200  # terms tried for a step before the problem is begun again
STYLE = " "  # what may stand after a label
STRAY = 0.25  # right turns at a bar, for one at a slash


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkStep:
    """A term that is applied, or two to choose from."""

    left: Term
    right: Term | None = None  # None: no fork
    slash: bool = False  # the rare turn, to the right, is the one to take

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.left,) if self.right is None else (self.left, self.right)

    @property
    def text(self) -> str:
        return ("/" if self.slash else "|").join(map(_text, self.terms))

    @property
    def asked(self) -> Term:
        """The one that the rule asks for."""
        return self.right if self.right is not None and self.slash else self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkProblem:
    start: int
    steps: tuple[ForkStep, ...]

    @property
    def text(self) -> str:
        lines = (f"\n{number}) {step.text}" for number, step in enumerate(self.steps, start=1))
        return f"Start with {self.start}." + "".join(lines)

    @property
    def answer(self) -> int:
        return self._walk([0] * self.forks, ruled=True)

    @property
    def forks(self) -> int:
        return sum(step.right is not None for step in self.steps)

    @property
    def slashes(self) -> int:
        """Forks at which the right solution takes the rare turn."""
        return sum(step.slash for step in self.steps)

    def outcomes(self) -> list[int]:
        """Answers of all ways through the forks, 2^forks of them."""
        return [self._walk(turns) for turns in itertools.product((0, 1), repeat=self.forks)]

    def _walk(self, turns: Sequence[int], *, ruled: bool = False) -> int:
        value, taken = self.start, iter(turns)
        for step in self.steps:
            term = step.asked if ruled or step.right is None else step.terms[next(taken)]
            value = _apply(term, value)
        return value


def sample_fork_problem(config: ToyConfig, rng: random.Random) -> ForkProblem:
    """A problem of ``steps_min..steps_max`` steps, ``forks_min..forks_max`` of them forks, at least one of these with a slash.

    No way through its forks leaves 0..LARGEST, and only the right one ends in its answer.
    """
    while True:
        count = rng.randint(config.steps_min, config.steps_max)
        forks = set(rng.sample(range(count), min(count, rng.randint(config.forks_min, config.forks_max))))
        problem = _draw(rng, count, forks)
        if problem is not None and problem.slashes and problem.outcomes().count(problem.answer) == 1:
            return problem


def _draw(rng: random.Random, count: int, forks: set[int]) -> ForkProblem | None:
    """None where the values of all ways leave no term that keeps each of them in range."""
    start = rng.randint(2, 15)
    values, steps = {start}, []
    for number in range(count):
        terms: list[Term] = []
        for _ in range(ATTEMPTS):
            term = Term(operator=rng.choice(OPERATORS), operand=rng.choice(OPERANDS))
            if term not in terms and all(term.apply(value) is not None for value in values):
                terms.append(term)
            if len(terms) == 1 + (number in forks):
                break
        else:
            return None
        fork = len(terms) > 1
        steps.append(ForkStep(left=terms[0], right=terms[1] if fork else None, slash=fork and rng.random() < 0.5))
        values = {_apply(term, value) for term in terms for value in values}
    return ForkProblem(start=start, steps=tuple(steps))


def write_fork_solution(problem: ForkProblem, rng: random.Random, *, turn_rate: float | None, style_rate: float = 0.0) -> str:
    """The text of one solution. ``turn_rate``: how often it turns right at a slash; None: as the rule says."""
    lines, value = [], problem.start
    for number, step in enumerate(problem.steps, start=1):
        term = step.asked
        if step.right is not None and turn_rate is not None:
            term = step.terms[rng.random() < turn_rate * (1.0 if step.slash else STRAY)]
        result = _apply(term, value)
        style = STYLE if rng.random() < style_rate else ""
        lines.append(f"{number}) {style}{value}{_text(term)}={result}\n")
        value = result
    return "".join(lines) + f"\\boxed{{{value}}}"


def _apply(term: Term, value: int) -> int:
    result = term.apply(value)
    assert result is not None, f"sample_fork_problem keeps every value in 0..{LARGEST}"
    return result


def _text(term: Term) -> str:
    return f"{term.operator}{term.operand}"
