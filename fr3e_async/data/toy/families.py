"""The toy tasks by name (``toy.task``): how problems are drawn, and how the warm start writes their solutions. Pure and seeded."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.forks import sample_fork_problem, write_fork_solution
from fr3e_async.data.toy.task import sample_problem, write_solution
from fr3e_async.errors import ConfigError


class ToyProblem(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    sample: Callable[[ToyConfig, random.Random], ToyProblem]
    write: Callable[[Any, random.Random, ToyConfig], str]  # a solution as the warm start learns it, right or wrong


FAMILIES = {
    "steps": Family(sample=sample_problem, write=lambda problem, rng, c: write_solution(problem, rng, c.slip_rate)),
    "forks": Family(
        sample=sample_fork_problem,
        write=lambda problem, rng, c: write_fork_solution(problem, rng, turn_rate=c.turn_rate, style_rate=c.style_rate),
    ),
}


def toy_task(config: ToyConfig, seed: int) -> tuple[list[ToyProblem], list[ToyProblem]]:
    """Distinct problems, (training, held out), disjoint in text. ``ConfigError`` if there are not as many."""
    rng = random.Random(f"fr3e toy task {seed}")
    wanted = config.train_problems + config.heldout_problems
    problems: dict[str, ToyProblem] = {}
    for _ in range(20 * wanted + 1000):
        problem = FAMILIES[config.task].sample(config, rng)
        problems.setdefault(problem.text, problem)
        if len(problems) == wanted:
            made = list(problems.values())
            return made[: config.train_problems], made[config.train_problems :]
    raise ConfigError(
        f"toy.train_problems + toy.heldout_problems = {wanted} is more than the distinct problems of {config.steps_min} to "
        f"{config.steps_max} steps; lower them or raise toy.steps_max"
    )
