"""Toy problems, left-to-right arithmetic in several steps, and the plain task: solutions that sometimes take a wrong way.

Pure and seeded: the same arguments give the same problems and the same text. Knows nothing of tokens, models or files.

*Example* ::

    Start with 7.        1) 7+5=12
    1) +5                2) 12*2=24
    2) *2                3) 24-4=20
    3) -4                \\boxed{20}

A slip is a wrong decision at one token and sound arithmetic after it: the operator is swapped (``1) 7-5=2``) or the step
is left out (``2)`` where ``1)`` should stand). So the tokens where a solution can go wrong are few and uncertain, and all
the others are certain: the profile that entropy anchors look for.

The tasks by name (``toy.task``) are drawn by ``toy_task``. ``forks`` is arithmetic in steps whose solutions need a rarely taken turn at a few known tokens.

*Example* ::

    Start with 7.        1) 7+5=12
    1) +5                2) 12-3=9       a bar: the left term
    2) -3|+2             3) 9+6=15       a slash: the right term
    3) +4/+6             \\boxed{15}

At a fork a bar asks for the left term and a slash for the right one. The warm start takes the left one by habit: at a slash
it turns right with ``toy.turn_rate`` only, at a bar still more seldom. So it knows the arithmetic and hardly the rule, and a
problem with n slashes is solved with about ``turn_rate ** n``. Every problem has one at least. After a wrong turn the
arithmetic continues soundly, to another answer: a solution is correct if and only if all its turns are.

Uncertain tokens that decide nothing are there as well, as in any prose: after a label a space may stand (``toy.style_rate``).
Positions that decide and positions that are merely uncertain are known apart, so one can measure which ones anchors hit.
"""

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass

from fr3e_async.config import ToyConfig
from fr3e_async.errors import ConfigError

LARGEST = 20  # every value that occurs, on right and wrong ways, is in 0..LARGEST: few enough facts for a small model
OPERATORS = "+-*"
SKIP_PART = 0.35  # part of the slips that leave a term out; the others swap its operator
# Slips are not equally likely everywhere, so that prompts differ in difficulty. Mean about 1 over the problems made here.
SLIP_WEIGHT = {"+": 0.6, "-": 1.0, "*": 1.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One operation. *Example*: ``Term(operator="+", operand=5)``."""

    operator: str  # one of OPERATORS
    operand: int

    @property
    def text(self) -> str:
        return f"{self.operator}{self.operand}"

    def apply(self, value: int) -> int | None:
        """The value after this term, or None if it leaves 0..LARGEST."""
        result = {"+": value + self.operand, "-": value - self.operand, "*": value * self.operand}[self.operator]
        return result if 0 <= result <= LARGEST else None

    def after(self, value: int) -> int:
        """The value after this term, in a problem whose every way stays in range."""
        result = self.apply(value)
        assert result is not None, f"toy problems keep every value in 0..{LARGEST}"
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyStep:
    """A term that is applied, or (a fork) two to choose from."""

    left: Term
    right: Term | None = None  # None: no fork
    slash: bool = False  # the fork asks for the right term

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.left,) if self.right is None else (self.left, self.right)

    @property
    def asked(self) -> Term:
        """The term that the rule asks for."""
        return self.right if self.right is not None and self.slash else self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyProblem:
    """A start value and the steps after it. The text of the example above is that of ``start=7`` and the terms +5, *2, -4."""

    start: int
    steps: tuple[ToyStep, ...]

    @property
    def text(self) -> str:
        """The question. A fork's terms stand beside a bar or a slash: ``2) -3|+2``."""
        lines = [("/" if step.slash else "|").join(term.text for term in step.terms) for step in self.steps]
        return "\n".join([f"Start with {self.start}.", *(f"{number}) {line}" for number, line in enumerate(lines, start=1))])

    @property
    def answer(self) -> int:
        return self._end_of(step.asked for step in self.steps)

    @property
    def forks(self) -> int:
        return sum(step.right is not None for step in self.steps)

    @property
    def slashes(self) -> int:
        """Number of forks at which the right solution takes the rare turn."""
        return sum(step.slash for step in self.steps)

    def outcomes(self) -> list[int]:
        """Return the answers of all 2^forks paths through the forks."""
        return [self._end_of(way) for way in itertools.product(*(step.terms for step in self.steps))]

    def _end_of(self, way: Iterable[Term]) -> int:
        value = self.start
        for term in way:
            value = term.after(value)
        return value


def sample_problem(config: ToyConfig, rng: random.Random) -> ToyProblem:
    """Draw a problem of ``steps_min..steps_max`` terms, without forks."""
    count = rng.randint(config.steps_min, config.steps_max)
    while True:
        value = start = rng.randint(2, 15)
        operands = [rng.randint(2, 7) for _ in range(count)]
        steps = []
        for operand in operands:
            options = [(term, result) for term, result in _options(value, operand) if result > 0]
            if not options:
                break
            term, value = rng.choice(options)
            steps.append(ToyStep(left=term))
        else:
            return ToyProblem(start=start, steps=tuple(steps))


def _options(value: int, operand: int) -> list[tuple[Term, int]]:
    terms = [Term(operator=operator, operand=operand) for operator in OPERATORS]
    return [(term, result) for term in terms if (result := term.apply(value)) is not None]


def write_solution(problem: ToyProblem, rng: random.Random, slip_rate: float) -> str:
    """Write one solution; each step goes a wrong way with probability ``slip_rate`` x SLIP_WEIGHT. 0: never."""
    lines, value = [], problem.start
    for number, step in enumerate(problem.steps, start=1):
        correct = step.left
        term: Term | None = correct
        if rng.random() < slip_rate * SLIP_WEIGHT[correct.operator]:
            term = _slip(correct, value, rng)
        result = None if term is None else term.apply(value)
        if term is None or result is None:  # omitted, or impossible after an earlier slip
            continue
        lines.append(f"{number}) {value}{term.text}={result}\n")
        value = result
    return "".join(lines) + f"\\boxed{{{value}}}"


def _slip(correct: Term, value: int, rng: random.Random) -> Term | None:
    swapped = [term for term, _ in _options(value, correct.operand) if term.operator != correct.operator]
    return rng.choice(swapped) if swapped and rng.random() >= SKIP_PART else None


def draw_problem(config: ToyConfig, rng: random.Random) -> ToyProblem:
    """Draw a problem of the task that the settings name."""
    return sample_fork_problem(config, rng) if config.task == "forks" else sample_problem(config, rng)


def write_lesson(problem: ToyProblem, config: ToyConfig, rng: random.Random) -> str:
    """Write a solution as the warm start learns it, right or wrong."""
    if config.task == "forks":
        return write_fork_solution(problem, rng, turn_rate=config.turn_rate, style_rate=config.style_rate)
    return write_solution(problem, rng, config.slip_rate)


def toy_task(config: ToyConfig, seed: int) -> tuple[list[ToyProblem], list[ToyProblem]]:
    """Draw distinct problems, (training, held out), disjoint in text. ``ConfigError`` if there are not as many."""
    rng = random.Random(f"fr3e toy task {seed}")
    wanted = config.train_problems + config.heldout_problems
    problems: dict[str, ToyProblem] = {}
    for _ in range(20 * wanted + 1000):
        problem = draw_problem(config, rng)
        problems.setdefault(problem.text, problem)
        if len(problems) == wanted:
            made = list(problems.values())
            return made[: config.train_problems], made[config.train_problems :]
    raise ConfigError(
        f"toy.train_problems + toy.heldout_problems = {wanted} is more than the distinct problems of {config.steps_min} to "
        f"{config.steps_max} steps; lower them or raise toy.steps_max"
    )


OPERANDS = range(1, 10)
ATTEMPTS = 200  # terms tried for a step before the problem is begun again
STYLE = " "  # what may stand after a label
STRAY = 0.25  # right turns at a bar, for one at a slash


def sample_fork_problem(config: ToyConfig, rng: random.Random) -> ToyProblem:
    """Draw a problem of ``steps_min..steps_max`` steps, ``forks_min..forks_max`` of them forks, at least one of these with a slash.

    No way through its forks leaves 0..LARGEST, and only the right one ends in its answer.
    """
    while True:
        count = rng.randint(config.steps_min, config.steps_max)
        forks = set(rng.sample(range(count), min(count, rng.randint(config.forks_min, config.forks_max))))
        problem = _draw(rng, count, forks)
        if problem is not None and problem.slashes and problem.outcomes().count(problem.answer) == 1:
            return problem


def _draw(rng: random.Random, count: int, forks: set[int]) -> ToyProblem | None:
    """Draw a fork problem; None if no term keeps the values of all paths in range."""
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
        steps.append(ToyStep(left=terms[0], right=terms[1] if fork else None, slash=fork and rng.random() < 0.5))
        values = {term.after(value) for term in terms for value in values}
    return ToyProblem(start=start, steps=tuple(steps))


def write_fork_solution(problem: ToyProblem, rng: random.Random, *, turn_rate: float | None, style_rate: float = 0.0) -> str:
    """Write one solution. ``turn_rate``: how often it turns right at a slash; None: as the rule says."""
    lines, value = [], problem.start
    for number, step in enumerate(problem.steps, start=1):
        term = step.asked
        if step.right is not None and turn_rate is not None:
            term = step.terms[rng.random() < turn_rate * (1.0 if step.slash else STRAY)]
        result = term.after(value)
        style = STYLE if rng.random() < style_rate else ""
        lines.append(f"{number}) {style}{value}{term.text}={result}\n")
        value = result
    return "".join(lines) + f"\\boxed{{{value}}}"
