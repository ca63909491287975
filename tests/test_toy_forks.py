"""The task of forks: problems by hand, answers by an independent evaluation, known decisions, and how seldom chance solves it."""

from __future__ import annotations

import random
import re

import pytest
from compare_stats import decision_positions
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.config import ToyConfig
from fr3e_async.data.toy.task import LARGEST, Term, ToyProblem, ToyStep, sample_fork_problem, toy_task, write_fork_solution
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.errors import ConfigError

CONFIG = ToyConfig(task="forks", steps_min=4, steps_max=5, train_problems=300, heldout_problems=100)
TOKENIZER = build_tokenizer()


def term(text: str) -> Term:
    return Term(operator=text[0], operand=int(text[1]))


def example() -> ToyProblem:
    steps = (
        ToyStep(left=term("+5")),
        ToyStep(left=term("-3"), right=term("+2")),
        ToyStep(left=term("+4"), right=term("+6"), slash=True),
    )
    return ToyProblem(start=7, steps=steps)


def pieces(text: str) -> list[str]:
    return [TOKENIZER.decode([token]) for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]]


def read(text: str) -> int:
    """The answer by the problem's text alone: a bar asks for the left term, a slash for the right one."""
    first, *lines = text.splitlines()
    value = int(re.fullmatch(r"Start with (\d+)\.", first)[1])
    for line in lines:
        left, mark, right = re.fullmatch(r"\d+\) ([-+*]\d)(?:([|/])([-+*]\d))?", line).groups()
        value = eval(f"{value}{right if mark == '/' else left}")
    return value


def test_a_problem_by_hand():
    problem = example()
    assert problem.text == "Start with 7.\n1) +5\n2) -3|+2\n3) +4/+6"
    assert problem.answer == 7 + 5 - 3 + 6 == 15
    assert problem.outcomes() == [13, 15, 18, 20], "left left, left right, right left, right right"
    assert (problem.forks, problem.slashes) == (2, 1)
    right = "1) 7+5=12\n2) 12-3=9\n3) 9+6=15\n\\boxed{15}"
    assert write_fork_solution(problem, random.Random(0), turn_rate=None) == right
    assert pieces(right)[7] == "-3"
    assert pieces(right)[12] == "+6"
    assert decision_positions(problem.text, pieces(right)) == [7, 12]


def test_spaces_that_decide_nothing_move_the_decisions():
    problem = example()
    styled = write_fork_solution(problem, random.Random(0), turn_rate=None, style_rate=1.0)
    assert styled == "1)  7+5=12\n2)  12-3=9\n3)  9+6=15\n\\boxed{15}"
    assert [pieces(styled)[place] for place in decision_positions(problem.text, pieces(styled))] == ["-3", "+6"]


def test_a_response_that_ends_early_has_fewer_decisions():
    whole = pieces("1) 7+5=12\n2) 12-3=9\n")
    assert decision_positions(example().text, whole[:7]) == []
    assert decision_positions(example().text, whole) == [7]
    assert decision_positions(example().text, ["\\boxed{", "15", "}"]) == []


@given(st.integers(0, 10_000))
def test_the_right_way_alone_ends_in_the_answer(seed: int):
    problem = sample_fork_problem(CONFIG, random.Random(seed))
    assert problem.answer == read(problem.text)
    assert problem.outcomes().count(problem.answer) == 1
    assert all(0 <= value <= LARGEST for value in problem.outcomes())
    assert 1 <= problem.slashes <= problem.forks
    assert CONFIG.forks_min <= problem.forks <= CONFIG.forks_max
    written = write_fork_solution(problem, random.Random(seed), turn_rate=0.5, style_rate=0.3)
    assert len(decision_positions(problem.text, pieces(written))) == problem.forks
    assert int(re.search(r"\{(\d+)\}$", written)[1]) in problem.outcomes()


def test_the_warm_start_solves_one_in_ten():
    """The base accuracy that the task is made for: 5 to 20 %, and most of four tries all wrong."""
    rng = random.Random(1)
    config = ToyConfig(task="forks", steps_min=4, steps_max=5)
    right = [
        sum(
            write_fork_solution(problem, rng, turn_rate=config.turn_rate).endswith(f"{{{problem.answer}}}") for _ in range(4)
        )
        for problem in (sample_fork_problem(config, rng) for _ in range(500))
    ]  # fmt: skip
    assert 0.05 < sum(right) / 2000 < 0.2
    assert right.count(0) > 250


def test_one_seed_one_task_and_another_than_the_steps():
    train, heldout = toy_task(CONFIG, seed=0)
    assert (len(train), len(heldout)) == (300, 100)
    assert not {problem.text for problem in train} & {problem.text for problem in heldout}
    assert toy_task(CONFIG, seed=0) == (train, heldout)
    assert toy_task(CONFIG, seed=1) != (train, heldout)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"forks_min": 0}, "toy.forks_min"),
        ({"forks_min": 3, "forks_max": 2}, "toy.forks_min"),
        ({"steps_min": 2, "forks_max": 3}, "toy.forks_max"),
        ({"turn_rate": 0.0}, "toy.turn_rate"),
        ({"style_rate": 1.0}, "toy.style_rate"),
    ],
)
def test_settings_that_make_no_task_are_refused(settings: dict, named: str):
    with pytest.raises(ConfigError, match=re.escape(named)):
        ToyConfig(task="forks", **settings)
