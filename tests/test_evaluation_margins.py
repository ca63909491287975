"""Margins of benchmarks: which amounts lie near enough to a gold, under the judge's rules for units; and in the verifier, uncut."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from builders import prompt
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.actors.proxies import RayVerifier
from fr3e_async.actors.verifier import Problem, VerifierActor
from fr3e_async.algorithm.answer_span import THINK
from fr3e_async.config import VerifierPoolConfig
from fr3e_async.outcomes import Outcome
from fr3e_async.types import Finish, Verdict
from fr3e_async.verify.answers import MAX_CHARS, answer_class
from fr3e_async.verify.margins import WITHIN, numbers_of, within
from fr3e_async.verify.pool import VerifierPool
from fr3e_async.verify.responses import Reader
from fr3e_async.verify.rulings import Policies

TENTH, PERCENTS = Fraction(1, 10), Fraction(4, 100)
METRES = r"12 \text{ m}"


@pytest.mark.parametrize(
    ("answer", "gold", "margins", "expected"),
    [
        ("1.04", "1.0", (PERCENTS,), True),
        ("1.041", "1.0", (PERCENTS,), False),
        ("-1.05", "-1.047", (Fraction("0.04188"),), True),
        (r"\frac{1}{3}", "0.333, 0.25", (Fraction("0.0133"), Fraction("0.01")), False),
        ("(0.33, 0.26)", "0.333, 0.25", (Fraction("0.0133"), Fraction("0.01")), True),
        ("0.26, 0.33", "0.333, 0.25", (Fraction("0.0133"), Fraction("0.01")), True),  # by size
        ("0.28, 0.33", "0.333, 0.25", (Fraction("0.0133"), Fraction("0.01")), False),
        ("x", "1.0", (PERCENTS,), False),
        (None, "1.0", (PERCENTS,), False),
        ("1.0", "1.0", (), False),  # the judge's business
        ("12.05", METRES, (TENTH,), True),
        (r"12.05\text{ m}", METRES, (TENTH,), True),
        ("12.05 m", METRES, (TENTH,), True),
        ("1205 cm", METRES, (TENTH,), True),
        ("1215 cm", METRES, (TENTH,), False),
        ("12 cm", METRES, (TENTH,), False),
        ("12.05 km", METRES, (TENTH,), False),
        (r"12.05\text{ s}", METRES, (TENTH,), False),
        (r"12\%", METRES, (TENTH,), False),
        (r"12.05\text{ m}", "12", (TENTH,), True),  # a unit that the gold does not have
        ("12.05 m", "12", (TENTH,), False),  # a letter that the gold does not have
        (r"12.05\text{ apples}", "12", (TENTH,), True),
        ("100 cm, 2.05 m", "1 m, 2 m", (TENTH,), True),
        ("205 cm, 1.0 m", "1 m, 2 m", (TENTH,), True),  # 1 m is the smaller one
        ("1 cm, 2 m", "1 m, 2 m", (TENTH,), False),
        (r"4.3\%", "4.2 %", (TENTH,), True),
        ("4.3", "4.2 %", (TENTH,), True),
        ("0.043", "4.2 %", (TENTH,), True),
        (r"43\%", "0.42", (Fraction(1, 50),), True),
        (r"101\%", "1", (Fraction(1, 50),), True),
        (r"4200\%", "42", (TENTH,), False),  # as the judge: a whole gold above 1 is no proportion
    ],
)
def test_an_answer_within_its_margin(answer: str | None, gold: str, margins: tuple[Fraction, ...], expected: bool) -> None:
    assert within(answer, gold, margins) is expected


def test_the_switches_of_the_judge_are_those_of_margins() -> None:
    assert within("12.05 cm", METRES, [TENTH], Policies(units="ignored"))
    assert not within("4.3", "4.2 %", [TENTH], Policies(percent="exact"))
    assert within("0.043", "4.2 %", [TENTH], Policies(percent="exact"))


def test_numbers_of_a_text() -> None:
    assert numbers_of("1, 2.5") == [1, Fraction(5, 2)]
    assert numbers_of("x + 1") is None


@given(st.integers(-(10**6), 10**6), st.integers(0, 2000), st.sampled_from([1, -1]), st.integers(0, 1000))
def test_the_margin_is_exact(gold: int, off: int, sign: int, margin: int) -> None:
    """In thousandths."""
    answer = f"{(gold + sign * off) / 1000:.3f}"
    assert within(answer, f"{gold / 1000:.3f}", [Fraction(margin, 1000)]) is (off <= margin and margin >= 0)


def test_odd_texts_take_no_time() -> None:
    started = time.process_time()
    for piece in ("1,", "(", r"\{", r"\{x\mid ", r"\frac{", r"\text{a ", "1 m ", "-", "9", r"\pm ", "1 and "):
        assert within((piece * 2000)[:2000], "1.5", [PERCENTS]) is False
    assert time.process_time() - started < 10, "of CPU time: seconds if they were tried in every way"


# --- in the verifier ---------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of characters."""

    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}

    def decode(self, tokens: list[int], **_: object) -> str:
        return "".join(map(chr, tokens))


class Batch:
    """As much of a ``RolloutBatch`` as a verifier reads."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.finish = texts, [Finish.STOP] * len(texts)

    def response(self, row: int) -> np.ndarray:
        return np.array([ord(letter) for letter in self.texts[row]], dtype=np.int32)

    def context(self, row: int) -> np.ndarray:
        return np.array([], dtype=np.int32)

    def prompt_len(self, row: int) -> int:
        return 0


def judged(answer: str, gold: str, *margins: Fraction, outcome: Outcome = Outcome.WRONG, **settings: Any) -> tuple[Outcome, str]:
    """What a verifier actor makes of a verdict, without Ray around it; and how votes know the answer."""
    config, batch = VerifierPoolConfig(workers=1, **settings), Batch(rf"so \boxed{{{answer}}}.")
    actor = VerifierActor.__new__(VerifierActor)
    actor.config, actor.scored = config, 0
    actor.reader = Reader(Letters(), ends=(), thoughts=THINK)  # type: ignore[arg-type]
    actor.pool = VerifierPool(config)
    (math,) = actor.pool.functions
    math.prepared = lambda _: Verdict(outcome=outcome)  # type: ignore[method-assign]
    (verdict,) = asyncio.run(actor.judge(batch, [0], [Problem(gold, margins=margins)]))  # type: ignore[arg-type]
    (found,) = asyncio.run(actor.answers(batch, [0]))  # type: ignore[arg-type]
    assert (verdict.reason == WITHIN) is (verdict.outcome is not outcome)
    return verdict.outcome, found.answer or ""


GOLDS = ", ".join(f"{n}.125" for n in range(30))
NEAR = ", ".join(f"{n}.13" for n in range(30))


def test_a_list_that_is_longer_than_its_class_is_compared_whole() -> None:
    outcome, known_as = judged(NEAR, GOLDS, Fraction(1, 100))
    assert outcome is Outcome.CORRECT
    assert len(known_as) <= MAX_CHARS < len(NEAR)
    assert known_as == answer_class(NEAR)
    assert judged(NEAR + ", 7", GOLDS, Fraction(1, 100))[0] is not Outcome.CORRECT
    assert judged(NEAR, GOLDS, Fraction(1, 1000))[0] is not Outcome.CORRECT


def test_a_margin_is_for_the_gold_s_unit_in_the_verifier_too() -> None:
    assert judged("12.05 m", METRES, TENTH)[0] is Outcome.CORRECT
    assert judged("12.05 km", METRES, TENTH)[0] is Outcome.WRONG
    assert judged("12.05 km", METRES, TENTH, units="ignored")[0] is Outcome.CORRECT
    assert judged("12.05 m", METRES)[0] is not Outcome.CORRECT


def test_what_is_too_long_to_be_judged_has_no_margin() -> None:
    assert judged(NEAR, GOLDS, Fraction(1, 100), max_answer_chars=100)[0] is Outcome.WRONG


def test_a_margin_overrules_no_verdict_but_wrong_and_unknown() -> None:
    for outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNKNOWN):
        assert judged("1.01", "1.02", TENTH, outcome=outcome)[0] is Outcome.CORRECT
        assert judged("1.5", "1.02", TENTH, outcome=outcome)[0] is outcome


def test_margins_go_to_the_actor_with_their_problems() -> None:
    sent: list[Any] = []

    class Remote:
        @property
        def judge(self) -> Remote:
            return self

        async def remote(self, *arguments: Any) -> list[Verdict]:
            sent.append(arguments[-1])
            return []

    port, plain = RayVerifier("v", Remote()), prompt("a")
    asyncio.run(port.judge(None, [0, 1], [plain, replace(plain, margins=(TENTH,))]))  # type: ignore[arg-type]
    assert [problem.margins for problem in sent[0]] == [(), (TENTH,)]


def test_a_users_reward_knows_no_margins() -> None:
    with VerifierPool(VerifierPoolConfig(workers=1), "operator:ne") as pool:
        (function,) = pool.functions
        function.prepared = lambda _: Verdict(outcome=Outcome.WRONG)  # type: ignore[method-assign]
        assert pool.judge(r"\boxed{1.01}", "1.02", margins=[TENTH]).outcome is Outcome.WRONG
