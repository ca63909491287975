r"""Laws of the judge over many texts: nothing that changes the meaning is right, whoever is on which side, wherever there are spaces.

The oracle is independent of the judge: plain ASCII arithmetic, evaluated with fractions at several points.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.verify.judge import CORRECT, UNKNOWN, judge

POINTS = [
    {"x": Fraction(3, 7), "y": Fraction(-5, 2)},
    {"x": Fraction(11), "y": Fraction(2, 3)},
    {"x": Fraction(-1, 4), "y": Fraction(9)},
]
ALPHABET = ["x", "y", "2", "3", "+", "-", "*", "/", "(", ")", "^2"]


def right(answer: str, gold: str, **options: object) -> bool:
    return judge(answer, gold, **options)[0] == CORRECT  # type: ignore[arg-type]


def expression(source: random.Random, depth: int = 3) -> list[str]:
    """Tokens of a sum, product, quotient or power in x and y."""
    if depth == 0 or source.random() < 0.2:
        return [source.choice(["x", "y", "2", "3", "5", "12"])]
    first, second = expression(source, depth - 1), expression(source, depth - 1)
    match source.choice("+-*/^"):
        case "^":
            return ["(", *first, ")", "^2"]
        case "/" | "*" as sign:
            return ["(", *first, ")", sign, "(", *second, ")"]
        case sign:
            return [*first, sign, *second]


def values(tokens: list[str]) -> list[Fraction | None] | None:
    """Of an expression, at each point: None where it has none. None for what is no expression. Juxtaposed factors are multiplied."""
    spelt = re.sub(r"(?<=[\dxy)])\s*(?=[xy(])", "*", "".join(tokens)).replace("^2", "**2")
    spelt = re.sub(
        r"\d+", lambda found: f"F({found.group()})" if spelt[found.start() - 2 : found.start()] != "**" else found.group(), spelt
    )
    try:
        code = compile(spelt, "", "eval")
    except SyntaxError:
        return None
    found: list[Fraction | None] = []
    for point in POINTS:
        try:
            found.append(eval(code, {"F": Fraction, **point}))
        except ZeroDivisionError:
            found.append(None)
    return found


def mutated(source: random.Random, tokens: list[str]) -> list[str]:
    """With one token dropped, added or changed."""
    at = source.randrange(len(tokens))
    match source.randrange(3):
        case 0:
            return tokens[:at] + tokens[at + 1 :]
        case 1:
            return [*tokens[:at], source.choice(ALPHABET), *tokens[at:]]
    return [*tokens[:at], source.choice(ALPHABET), *tokens[at + 1 :]]


@pytest.mark.parametrize("seed", range(4))
def test_an_expression_with_another_token_is_right_only_if_it_has_the_same_values(seed: int) -> None:
    source, judged = random.Random(seed), 0
    for _ in range(60):
        tokens = expression(source)
        other = mutated(source, tokens)
        if right("".join(other), "".join(tokens)) and other != tokens:
            judged += 1
            assert values(other) == values(tokens) is not None, (other, tokens)
    assert judged < 30


@pytest.mark.parametrize(
    "reference",
    [
        ["x", r"\equiv", "3", r"\pmod{7}"], ["f", "'", "(", "x", ")"], [r"\{", "1", ",", "2", r"\}"], ["(", "1", ",", "2", "]"],
        ["3", r"\text{ million}"], ["1", ":", "2", ":", "3"], ["A", "^{-1}"], ["A", "^T"], ["x", r"\le", "2"], ["6", "x", "y", "z"],
        ["1", "-", "x", "^2"], [r"\frac{1}", "{2023!}"], ["x", "=", "1", ",", "y", "=", "2"], ["3", "x", "^2"], ["n", "!"],
        ["y", "=", "2", "x", "+", "1"], [r"\sin", "x"], ["2", "^{10}", "x"], [r"\ln", "(", "x", ")"], ["12", "_5", "x"], [r"\text{A}", r"\text{ or }", "x"],
        ["1", r"\times", "10", "^{-8}"], [r"\sqrt{", "2", "}", "x"], ["-", "5"], [r"(-\infty,", "3", ")", r"\cup", "(", "4", ",", "5", ")"],
        [r"\begin{pmatrix}", "1", "&", "2", r"\\", "3", "&", "4", r"\end{pmatrix}"], ["|", "x", "|"], [r"\text{even }", "n"],
    ],
    ids=lambda tokens: "".join(tokens),
)  # fmt: skip
def test_no_token_of_an_answer_can_be_dropped_or_doubled(reference: list[str]) -> None:
    whole = " ".join(reference)
    assert right(whole, whole)
    for at in range(len(reference)):
        less = [*reference[:at], *reference[at + 1 :]]
        if reference[at + 1 : at + 2] != ["="]:  # a value without its name is the value
            assert not right(" ".join(less), whole), less
        assert not right(" ".join([*reference[: at + 1], "n", *reference[at + 1 :]]), whole)


NUMBER = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


def tex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return f"{value}" if value.denominator == 1 else rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@given(st.integers(-(10**60), 10**60), st.integers(1, 10**60), st.integers(2, 10**6), st.integers(-3, 3))
def test_numbers_are_compared_to_the_last_digit(top: int, bottom: int, times: int, off: int) -> None:
    assert right(f"{top * times + off}/{bottom * times}", rf"\frac{{{top}}}{{{bottom}}}", unfinished="correct") is (off == 0)
    assert right(str(top + off), str(top)) is (off == 0)
    assert right(f"{top + off}.0", f"{top}") is (off == 0)


@given(
    st.lists(NUMBER, min_size=1, max_size=4), st.lists(NUMBER, min_size=1, max_size=4), st.sampled_from(["()", "[]", r"\{\}", ""])
)
@settings(max_examples=60)
def test_it_does_not_matter_who_says_what(ours: list[Fraction], theirs: list[Fraction], brackets: str) -> None:
    half = len(brackets) // 2
    first, second = (brackets[:half] + ",".join(map(tex, side)) + brackets[half:] for side in (ours, theirs))
    assert right(first, second, unfinished="correct") is right(second, first, unfinished="correct")
    assert right(first, first)
    if brackets in ("()", "[]") and len(ours) > 1:
        assert right(first, second) is (ours == theirs)
    if brackets == r"\{\}":
        assert right(first, second) is (sorted(ours) == sorted(theirs))


PAIRS = [
    (r"x = \frac{1}{2}", "0.5"), (r"\{ 2 , 1 \}", r"\{1,2\}"), (r"( 1 , 2 ]", r"1 < x \le 2"), (r"12 \text{ cm}", "0.12 \\text{ m}"),
    (r"x ^ 2 - 1", "( x - 1 ) ( x + 1 )"), (r"3 x ^ 2", "3"), (r"2 : 4", "1 : 2"), (r"x \equiv 6 \pmod 7", r"x \equiv 3 \pmod 7"),
    (r"\sqrt { 8 }", r"2 \sqrt 2"), (r"- 5", "5"), (r"n \pi , n \in \mathbb { Z }", r"k \pi , k \in \mathbb{Z}"), (r"\text{Yes and no}", "Yes"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), PAIRS)
def test_spaces_make_no_difference(answer: str, gold: str) -> None:
    verdict = judge(answer, gold)
    for space in (r"\,", "~", "  ", r"\; "):
        assert r"\text" in answer or judge(answer.replace(" ", space), gold) == verdict
    tight = re.sub(r"(\\[a-zA-Z]+) (?=[a-zA-Z])| ", lambda found: found[0] if found[1] else "", answer)
    assert r"\text" in answer or judge(tight, gold) == verdict


def test_every_process_says_the_same() -> None:
    program = "import json, sys\nfrom fr3e_async.verify.judge import judge\nprint(json.dumps([judge(*pair) for pair in json.load(sys.stdin)]))"
    said = [
        subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(PAIRS), capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1]
    assert json.loads(said[0]) == [list(judge(*pair)) for pair in PAIRS]


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "{" * 5000, r"\frac" * 3000, "^" * 999, r"\sqrt{" * 900 + "2" + "}" * 900, r"\begin{pmatrix}" * 200, "'" * 999, "\0\ud800", r"\text{" * 500,
     "9" * 5000, "1e" + "9" * 400, "1,2;" * 900, r"\pm 1" * 9, ":" * 500, "=" * 500, "x=" * 400 + "1", r"\text{a} " * 400, "0x" + "f" * 3000, "1_" + "9" * 99],
    ids=range(19),
)  # fmt: skip
def test_odd_texts_raise_nothing_and_are_not_right(text: str) -> None:
    for reference in ("7", "x+1", r"\{1,2\}", r"3\text{ m}"):
        assert not right(text, reference)
        assert judge(reference, text)[0] != CORRECT or text in reference


def test_unknown_is_no_way_out() -> None:
    for text in ("", "?", "lorem ipsum dolor sit amet", r"\foo", "x'''", "([)]", "a b c d e f", r"\text{I cannot tell}", "\0"):
        assert judge(text, r"\frac{x}{2}")[0] != UNKNOWN, text
