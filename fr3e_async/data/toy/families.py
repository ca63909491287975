"""The toy tasks by name (``toy.task``): how problems are drawn, and how the warm start writes their solutions. Pure and seeded.

``forks`` is arithmetic in steps whose solutions need a rarely taken turn at a few known tokens.

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

import random

from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.task import OPERATORS, Term, ToyProblem, ToyStep, sample_problem, write_solution
from fr3e_async.errors import ConfigError


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
