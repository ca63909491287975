"""The same problem twice, and problems that evaluation asks: what counts as the same, what as a near copy, what each policy does."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fr3e_async.config import DataConfig
from fr3e_async.data.overlap import Protected, duplicates, normal, runs
from fr3e_async.data.row import DataRow
from fr3e_async.data.screening import screen
from fr3e_async.errors import DataError

WORDS = [f"w{number}" for number in range(40)]


def row(problem: str, line: int = 1, answer: str = "1", file: str = "t") -> DataRow:
    return DataRow(uid=f"{file}:{line}", problem=problem, answer=answer, source=f"{file}.jsonl:{line}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $x$ .", "find x."),
        (r"\left( 2 \right)", "(2)"),
        (r"Let \( n \) be\, odd", "Let $n$ be odd"),
        (r"$\displaystyle\frac12$", r"\frac12"),
        ("ﬁnd ½", "find 1⁄2"),
        ("a\n\tb ", " a b"),
        ("What is 2+3?", "what is 2+3"),
        ("so $x=2.$", "so $x=2$ ."),
        ("pro\u00adduct of\u200b 2", "product of 2"),
        (r"\dfrac{1}{2}", r"\tfrac12"),
        (r"\frac{1}{2}", r"\frac12"),
        (r"a\quad b\ c", "a b c"),
        (r"5 \text{ cm}", r"5 \mathrm{cm}"),
        (r"x^{2}_{n}", "x^2_n"),
        (r"{{x}}", "x"),
        ("5 − 3", "5 - 3"),
        (r"\$5 is 3\%", "5 is 3%"),
        ("设 $f(x)$ 为", "设f(x)为"),
    ],
)
def test_notation_does_not_count(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2+3", "2-3"),
        ("x=1", "x=11"),
        (r"\leftarrow", r"\rightarrow"),
        ("a_1", "a1"),
        ("x<y", "x>y"),
        ("f(x)", "f[x]"),
        ("12", "1 2"),
        ("5!", "5"),
        ("x^{2+3}", "x^2+3"),
        (r"\frac{1}{23}", r"\frac{12}{3}"),
        (r"\mathbb{R}", "R"),
        (r"\{0\}", "0"),
        (r"1 \\ 2", "1 2"),
        ("?", "."),
    ],
)
def test_what_changes_the_problem_counts(one, other):
    assert normal(one) != normal(other)


LATEX = st.lists(st.sampled_from([*"\\{}^_ $a12.!\u00ad\u0301", r"\frac", r"\text", r"\quad", r"\left", "设"]), max_size=25)


@settings(max_examples=100)
@given(st.text(max_size=40) | LATEX.map("".join))
def test_normal_is_its_own_normal_form(text):
    assert normal(normal(text)) == normal(text)


def test_runs_are_counted_by_hand():
    assert len(runs("a b c d e", 3)) == 3
    assert len(runs("a b a b a b", 2)) == 2  # "a b", "b a"
    assert runs("a b", 3) == set()
    assert runs("A, b: $c$!", 3) == runs("a b c", 3)  # words are letters and digits


def test_words_of_a_script_without_spaces_are_its_characters():
    assert len(runs("求函数的值", 3)) == 3
    assert runs("求 函数的", 3) == runs("求函数的", 3)
    assert len(runs("값을 구하라", 2)) == 1  # Korean has spaces


def test_deep_braces_take_no_time():
    deep = "{" * 100_000 + "x" + "}" * 100_000
    assert normal(deep) == "x"


def test_duplicates_name_the_first():
    rows = [row("p", 1), row("q", 2), row("P ", 3), row("$p$", 4)]
    assert [(twin.row.uid, twin.other.uid, twin.same) for twin in duplicates(rows)] == [
        ("t:3", "t:1", True),
        ("t:4", "t:1", True),
    ]


def protected(*problems: str, length: int = 3, share: float = 0.5) -> Protected:
    rows = [row(problem, number, file="e") for number, problem in enumerate(problems, 1)]
    return Protected(rows, run_length=length, min_share=share)


def test_a_near_copy_is_a_share_of_the_shorter_problems_runs():
    long = " ".join(WORDS[:12])  # 10 runs of 3
    half = " ".join([*WORDS[:7], *WORDS[20:25]])  # 10 runs, 5 of them shared
    less = " ".join([*WORDS[:6], *WORDS[20:26]])  # 10 runs, 4 shared
    part = " ".join(WORDS[3:7])  # 2 runs, both shared
    index = protected("nothing like it at all", long)
    found = index.find(row(half))
    assert found is not None
    assert (found.other.uid, found.same, found.share) == ("e:2", False, 0.5)
    assert index.find(row(less)) is None
    assert (whole := index.find(row(part))) is not None
    assert whole.share == 1.0
    assert (same := index.find(row(long.upper()))) is not None
    assert same.same


SHORT = "Factor $x^{2}-5x+6$ over the integers."  # 7 words, 12 pieces


@pytest.mark.parametrize(
    "other",
    [
        SHORT + " Give your answer as a product of two brackets, the smaller root first, and check it by multiplying out.",
        r"Algebra. factor $x^2 - 5x + 6$ over \text{the} integers",
    ],
)
def test_a_short_problem_is_near_to_what_holds_the_whole_of_it(other):
    for one, two in ((SHORT, other), (other, SHORT)):
        found = protected("nothing like it", one, length=13).find(row(two))
        assert found is not None
        assert (found.other.uid, found.same, found.share, found.whole) == ("e:2", False, 1.0, True)
    assert protected(SHORT, length=0).find(row(other)) is None


@pytest.mark.parametrize(
    "other",
    [
        "Factor $x^{2}+5x+6$ over the integers. Show your work.",  # another sign
        "Factor $x^{2}-5x+6$ over the reals. Show your work.",
    ],
)
def test_a_short_problem_that_is_changed_is_none(other):
    assert protected(SHORT, length=13).find(row(other)) is None


def test_what_half_a_textbook_asks_is_not_looked_for():
    asked = "Find $f(x)$ now."  # 6 pieces
    assert protected(asked, length=13).find(row(asked + " Explain.")) is None
    assert (same := protected(asked, length=13).find(row(r"find $f\left(x\right)$ now"))) is not None
    assert same.same


def test_short_problems_in_messages():
    train, guard = [row(SHORT + " Show your work."), row("fine", 2)], [row(SHORT, file="p")]
    with pytest.raises(
        DataError, match=r"^t\.jsonl:1: this training problem holds, or is held whole in, the protected problem p\.jsonl:1;"
    ):
        screen(train, [], guard, DataConfig(on_near_copy="error"))
    kept, notes = screen(train, [], guard, DataConfig(on_near_copy="drop"))
    assert [row.uid for row in kept] == ["t:2"]
    assert "or the whole of a shorter one): t.jsonl:1 (as p.jsonl:1): left out" in notes[0][1]


def test_the_nearest_is_named_and_of_equals_the_first():
    index = protected("a b c x y z", "a b c d y z", "a b c d q r")
    assert (found := index.find(row("a b c d"))) is not None  # 2 runs; both in the second and the third
    assert (found.other.uid, found.share) == ("e:2", 1.0)


@pytest.mark.parametrize(("words", "found"), [(37, False), (38, True)])
def test_a_word_changed_in_the_middle_by_hand(words, found):
    """Of w - 12 runs of 13 words 13 are gone: 12 of 25 are left of 37 words, 13 of 26 of 38."""
    text = [f"v{number}" for number in range(words)]
    changed = [*text[: words // 2], "other", *text[words // 2 + 1 :]]
    assert (protected(" ".join(text), length=13).find(row(" ".join(changed))) is not None) == found


def test_without_runs_only_the_same_text_is_found():
    index = protected("a b c d", length=0)
    assert index.find(row("a b c d e")) is None
    assert index.find(row("a b c d")) is not None


@given(
    st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=12), st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=12)
)
def test_shares_are_parts_and_do_not_depend_on_who_is_protected(one, other):
    found = protected(" ".join(one), share=1e-9).find(row(" ".join(other)))
    mirrored = protected(" ".join(other), share=1e-9).find(row(" ".join(one)))
    assert (found is None) == (mirrored is None)
    if found is not None and mirrored is not None:
        assert found.share == mirrored.share
        assert 0 < found.share <= 1
        assert found.same == (one == other)


TRAIN = [row("same", 1), row("Same ", 2, answer="2"), row("asked", 3), row(" ".join(WORDS[:20]), 4), row("fine", 5)]
HELDOUT = [row("asked", 1, file="h")]
PROTECTED = [row(" ".join([*WORDS[1:20], "end"]), 1, file="p")]


def screened(
    heldout: list[DataRow] = HELDOUT, guard: list[DataRow] = PROTECTED, **policies: Any
) -> tuple[list[str], list[tuple[str, str]]]:
    rows, notes = screen(TRAIN, heldout, guard, DataConfig(**policies))
    return [row.uid for row in rows], list(notes)


def test_flags_keep_everything_and_say_so():
    uids, notes = screened(on_contamination="flag")
    assert uids == [row.uid for row in TRAIN]
    assert [kind for kind, _ in notes] == ["note"] * 3
    assert "1 training problem is the same as an earlier one, 1 with another answer: t.jsonl:2 (as t.jsonl:1)" in notes[0][1]
    assert "1 training problem is in data.heldout or data.protected, too: t.jsonl:3 (as h.jsonl:1)" in notes[1][1]
    assert "1 training problem is a near copy of what" in notes[2][1]
    assert "t.jsonl:4 (as p.jsonl:1)" in notes[2][1]


def test_drops_leave_out_the_later_the_asked_and_the_near_copy():
    uids, notes = screened(on_duplicate="drop", on_contamination="drop", on_near_copy="drop")
    assert uids == ["t:1", "t:5"]
    assert [kind for kind, _ in notes] == ["data_dropped"] * 3
    assert all(re.search(r"left out \(data\.on_\w+=drop\)$", text) for _, text in notes)


@pytest.mark.parametrize(
    ("heldout", "guard", "policies", "message"),
    [
        (HELDOUT, [], {}, r"^h\.jsonl:1: this held-out problem is also a training problem \(t\.jsonl:3\); see data\.train, data\.heldout"),
        ([], HELDOUT, {}, r"^h\.jsonl:1: this protected problem .* see data\.train, data\.protected"),
        ([], [], {"on_duplicate": "error"}, r"^t\.jsonl:2: this problem is the same as t\.jsonl:1; see data\.on_duplicate, data\.train$"),
        ([], PROTECTED, {"on_near_copy": "error"}, r"^t\.jsonl:4: .* shares 88% of its runs of 13 words with the protected problem p\.jsonl:1"),
    ],
)  # fmt: skip
def test_errors_name_the_first_pair(heldout, guard, policies, message):
    with pytest.raises(DataError, match=message):
        screened(heldout, guard, **policies)


def test_near_copies_are_not_looked_for_when_off_and_lengths_are_settings():
    assert [kind for kind, _ in screened([], on_near_copy="off")[1]] == ["note"]  # the duplicate alone
    assert len(screened([], near_copy_share=0.9)[1]) == 1
    assert len(screened([], near_copy_words=19)[1]) == 2
    assert len(screened([], near_copy_words=20)[1]) == 1


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"^data\.train: none of 1 problems is left: 1 training problem is in data\.heldout"):
        screen([row("asked")], HELDOUT, [], DataConfig(on_contamination="drop"))


def test_a_set_without_doubts_has_no_notes():
    assert screen([row("a"), row("b", 2)], [row("c", file="h")], [], DataConfig()) == ((row("a"), row("b", 2)), ())
