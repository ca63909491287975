"""Each rule of the judge by the examples in its docstring: ``answer ~ reference`` is right, ``answer !~ reference`` is not."""

from __future__ import annotations

import re

import pytest

from fr3e_async.verify import judge


def examples() -> list[object]:
    """Parameters (rule, answer, reference, right)."""
    found = []
    for rule in judge.RULES:
        for line in (rule.__doc__ or "").splitlines():
            if line.strip().startswith(">>> "):
                for number, item in enumerate(re.split(r"\s{4,}", line.strip()[4:])):
                    answer, sign, reference = re.fullmatch(r"(.+) (!?~) (.+)", item).groups()  # type: ignore[union-attr]
                    found.append(pytest.param(answer, reference, sign == "~", id=f"{rule.__name__}-{number}-{item[:40]}"))
    return found


@pytest.mark.parametrize(("answer", "reference", "right"), examples())
def test_the_examples_of_a_rule(answer: str, reference: str, right: bool) -> None:
    outcome, reason = judge.judge(answer, reference)
    assert (outcome == judge.RIGHT) is right, reason


def test_every_rule_has_examples_of_both_kinds() -> None:
    without = [
        rule.__name__
        for rule in judge.RULES
        if not re.search(r">>>.* ~ ", rule.__doc__ or "") or " !~ " not in (rule.__doc__ or "")
    ]
    assert without == []
