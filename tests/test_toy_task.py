"""The toy task: answers by an independent evaluation, disjoint sets, one seed one task, slips that are real wrong ways."""

from __future__ import annotations

import random
import re

import pytest

from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.task import LARGEST, Term, ToyProblem, ToyStep, sample_problem, toy_task, write_solution
from fr3e_async.errors import ConfigError

CONFIG = ToyConfig()


def evaluate(text: str) -> int:
    """The answer by reading the problem's text alone."""
    first, *steps = text.splitlines()
    value = int(re.fullmatch(r"Start with (\d+)\.", first)[1])
    for number, line in enumerate(steps, start=1):
        operation = re.fullmatch(rf"{number}\) ([-+*]\d+)", line)[1]
        value = eval(f"{value}{operation}")
    return value


def problem_of(start: int, *terms: str) -> ToyProblem:
    return ToyProblem(start=start, steps=tuple(ToyStep(left=Term(operator=text[0], operand=int(text[1]))) for text in terms))


def boxed(solution: str) -> int:
    return int(re.search(r"\\boxed\{(\d+)\}$", solution)[1])


def test_a_problem_by_hand():
    problem = problem_of(7, "+5", "*2", "-4")
    assert problem.text == "Start with 7.\n1) +5\n2) *2\n3) -4"
    assert write_solution(problem, random.Random(0), 0.0).startswith("1) 7+5=12\n")


def test_thousands_of_distinct_problems_in_disjoint_sets():
    train, heldout = toy_task(CONFIG, seed=0)
    assert (len(train), len(heldout)) == (CONFIG.train_problems, CONFIG.heldout_problems)
    texts = {problem.text for problem in train}
    assert len(texts) == len(train)
    assert len({problem.text for problem in heldout}) == len(heldout)
    assert not texts & {problem.text for problem in heldout}


def test_answers_agree_with_an_independent_evaluation_and_are_not_guessable():
    train, _ = toy_task(CONFIG, seed=3)
    answers = [problem.answer for problem in train]
    assert answers == [evaluate(problem.text) for problem in train]
    assert max(answers.count(answer) for answer in set(answers)) < 0.15 * len(answers)


def test_one_seed_one_task():
    assert toy_task(CONFIG, seed=5) == toy_task(CONFIG, seed=5)
    assert toy_task(CONFIG, seed=5) != toy_task(CONFIG, seed=6)


def test_too_many_problems_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"toy\.train_problems \+ toy\.heldout_problems = 4100"):
        toy_task(ToyConfig(train_problems=4000, heldout_problems=100, steps_min=1, steps_max=1), seed=0)


def test_without_slips_every_solution_is_correct():
    rng = random.Random(1)
    for _ in range(300):
        problem = sample_problem(CONFIG, rng)
        assert boxed(write_solution(problem, rng, 0.0)) == evaluate(problem.text)


def test_slips_make_wrong_ways_but_every_line_is_sound_arithmetic():
    rng = random.Random(2)
    right = 0
    for _ in range(2000):
        problem = sample_problem(CONFIG, rng)
        solution = write_solution(problem, rng, CONFIG.slip_rate)
        value, last = problem.start, 0
        for number, left, operation, result in re.findall(r"(\d)\) (\d+)([-+*]\d+)=(\d+)\n", solution):
            assert int(left) == value
            assert int(number) > last
            value, last = eval(f"{left}{operation}"), int(number)
            assert value == int(result)
            assert 0 <= value <= LARGEST
        assert boxed(solution) == value
        right += value == problem.answer
    assert 0.30 < right / 2000 < 0.50


def test_both_kinds_of_slip_occur():
    problem = problem_of(9, "-3", "-2", "+4")
    solutions = {write_solution(problem, random.Random(seed), 0.4) for seed in range(300)}
    assert any(solution.startswith("1) 9+3=12") for solution in solutions), "swapped operator"
    assert any(solution.startswith("2) 9") for solution in solutions), "left-out step"
