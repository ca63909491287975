"""What counts as the answer of a response, and the comparison of plain integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.outcomes import Outcome
from fr3e_async.verify import answers


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{ 42 }", "42"),
        (r"\boxed{41}. Wait, it is \boxed{42}", "42"),
        (r"\boxed{41} or \boxed{42}", "41, 42"),
        (r"$\boxed{41}$ and $\boxed{42}$", "41, 42"),
        (r"\(x = \boxed{1}\), \(y = \boxed{2}\)", "1, 2"),
        (r"**\boxed{42}**" "\n\n" r"$\boxed{42}$", "42"),
        (r"\boxed{600}, \boxed{400}", "600, 400"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {42}", "42"),
        (r"$\boxed 42$", "42"),
        (r"$\boxed\pi$", r"\pi"),
        (r"<think>maybe \boxed{41}</think> \boxed{42}", "42"),
        (r"maybe \boxed{41}</think> \boxed{42}", "42"),
        (r"\boxed{42} <think>\boxed{43}", "42"),
    ],
)
def test_the_answer_is_the_last_box_after_the_thinking(response: str, expected: str) -> None:
    assert answers.final_answer(response) == expected


@pytest.mark.parametrize(
    "response",
    [
        "",
        "42",
        r"\boxed{}",
        r"\boxed{ }",
        r"\boxed{42",
        r"\boxed{41} \boxed{4",
        r"<think>\boxed{42}",
        r"\boxed",
        r"\boxedfoo{42}",
    ],
)
def test_no_closed_box_is_no_answer(response: str) -> None:
    assert answers.final_answer(response) is None


def test_a_hundred_thousand_boxes_take_no_time() -> None:
    assert answers.final_answer("\\boxed{" * 15_000) is None
    assert answers.final_answer(" ".join(f"\\boxed{{{number}}}" for number in range(15_000))) == ", ".join(
        map(str, range(15_000 - 16, 15_000))
    )


@pytest.mark.parametrize(
    ("prediction", "kind", "expected"),
    [
        (r"so \boxed{42}.", "full", "42"),
        (r"<think>\boxed{42}</think> no box", "full", None),
        ("The answer is 42.", "full", "42"),
        ("Step 1\nFinal answer: 42", "full", "42"),
        ("Final answer: 41. I hope it is correct. The answer is 42", "full", "41"),
        ("some <<6*7=42>>42 ducks\nA: 42", "full", "42"),
        ("work\n#### 1,200", "full", "1,200"),
        (r"The answer is $\frac{5}{6}$", "full", r"\frac{5}{6}"),
        ("The volume of $ABC$ is 120.", "full", None),
        ("Final Answer: The volume of $ABC$ is 120.", "full", "120"),
        ("First try [30], second try [45].", "full", "45"),
        (r"$\sqrt{4} = 2$", "full", r"$\sqrt{4} = 2$"),
        ("答案是42。", "full", "42"),
        ("41 42 43 44", "full", "41 42 43 44"),
        ("I cannot tell, perhaps 42", "full", None),
        ("I cannot tell, perhaps 42", "raw", "42"),
        (r"Here is a matrix: $ (1,2) $ of 3 parts", "raw", "3"),
        ("AZYUK2A", "raw", "AZYUK2A"),
        (" 12 + x ", "raw", "12 + x"),
        (r" x^2 ", "bare", "x^2"),
        (r"\boxed{x^2}", "bare", "x^2"),
        ("", "bare", None),
    ],
)
def test_the_answer_of_a_row_of_a_file(prediction: str, kind: answers.Kind, expected: str | None) -> None:
    assert answers.answer_of(prediction, kind) == expected


def test_only_the_gold_of_a_raw_row_is_looked_for() -> None:
    assert answers.reference_of(r"so $n = \boxed{1,-2}.$", "raw") == "1,-2"
    assert answers.reference_of("the answer is 3", "bare") == "the answer is 3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", "42"), (" $42$ ", "42"), ("$$-7$$", "-7"), ("+7", "7"), ("007", "7"), ("0", "0"), ("-0", "0"), ("-0.0", "0"),
        ("1,234,567", "1234567"), ("1{,}234", "1234"), ("\\$1,200.00", "1200"), ("1\\,200", "1200"), ("42.", "42"), ("−5", "-5"), ("1 234 567", "1234567"), ("32,\\! 349", "32349"), ("- 5", "-5"),
        ("9" * 9000, "9" * 9000),
    ],
)  # fmt: skip
def test_plain_integers_are_understood(text: str, expected: str) -> None:
    assert answers.plain_integer(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1,2",
        "1,2345",
        "32, 349",
        "4 2",
        "1 2 3",
        "12,34,567",
        "4.2",
        "42%",
        "42\\%",
        "12 cm",
        "17\\cdot 23",
        "2^{10}",
        "\\frac{4}{2}",
        "４２",
        "1e3",
        "--1",
    ],
)
def test_anything_else_is_left_to_math_verify(text: str) -> None:
    assert answers.plain_integer(text) is None


@given(st.integers(), st.sampled_from(["{}", "${}$", " {}.0 ", "{}.000", "\\${}"]))
def test_every_integer_equals_itself_however_it_is_written(number: int, style: str) -> None:
    assert answers.plain_integer(style.format(number)) == str(number)
    assert answers.plain_integer(style.format(f"{number:,}")) == str(number)


@given(st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_two_integers_are_right_only_if_equal(said: int, meant: int) -> None:
    verdict = answers.quick_verdict(str(said), str(meant), max_chars=100)
    assert verdict is not None
    assert (verdict.outcome is Outcome.CORRECT) == (said == meant)


def test_a_missing_answer_is_wrong_and_one_too_long_is_unknown() -> None:
    missing = answers.quick_verdict(None, "5", max_chars=10)
    long = answers.quick_verdict("5" * 11, "5", max_chars=10)
    assert missing is not None
    assert (missing.outcome, missing.reason) == (Outcome.WRONG, answers.NO_ANSWER)
    assert long is not None
    assert (long.outcome, long.reason) == (Outcome.UNKNOWN, answers.TOO_LONG)
    assert answers.quick_verdict(r"\frac12", "5", max_chars=10) is None
