"""The toy tasks by name (``toy.task``): how problems are drawn, and how the warm start writes their solutions. Pure and seeded."""

from __future__ import annotations

import random

from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.forks import sample_fork_problem, write_fork_solution
from fr3e_async.data.toy.task import ToyProblem, sample_problem, write_solution
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
