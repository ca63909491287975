"""Sanity on public graded answers and on answers made to break a verifier. Needs the shared data folder."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from fr3e_async.config import VerifierPoolConfig
from fr3e_async.types import Outcome, Verdict
from fr3e_async.verify.pool import VerifierPool

SHARED = Path(os.environ.get("FR3E_SHARED") or Path(__file__).parents[2] / "shared")
CASES = SHARED / "data" / "verifier"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not CASES.is_dir(), reason=f"no verifier cases in {CASES}; set FR3E_SHARED to the shared folder"),
]


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text().splitlines()]


def judge(pairs: list[tuple[str, str]], **limits: float) -> list[Verdict]:
    with VerifierPool(VerifierPoolConfig(**limits)) as pool:  # type: ignore[arg-type]
        return asyncio.run(pool.judge_many(pairs))


def test_gsm8k_verdicts_agree_with_exact_match() -> None:
    cases = [row for row in rows("cases.jsonl") if "grade-school-math" in row["source"]]
    assert len(cases) > 2000
    pairs = [("\\boxed{" + row["prediction"].rpartition("A: ")[2] + "}", row["gold"]) for row in cases]
    verdicts = judge(pairs)
    disagree = [
        (pair, verdict)
        for pair, row, verdict in zip(pairs, cases, verdicts, strict=True)
        if (verdict.outcome is Outcome.RIGHT) != row["correct"]
    ]
    assert disagree == []


def test_graded_model_outputs_agree_nearly_always() -> None:
    cases = [row for row in rows("cases.jsonl") if "Qwen2.5-Math" in row["source"]]
    verdicts = judge([(row["prediction"], row["gold"]) for row in cases])
    agree = sum((verdict.outcome is Outcome.RIGHT) == row["correct"] for row, verdict in zip(cases, verdicts, strict=True))
    assert agree / len(cases) >= 0.99


def test_adversarial_answers_come_back_in_time_and_bombs_are_never_right() -> None:
    cases = rows("adversarial.jsonl")
    bombs = [row for row in cases if row["category"] == "bomb" and row["gold"] == "1"]
    chosen = random.Random(0).sample(bombs, 8) + random.Random(1).sample([row for row in cases if row not in bombs], 30)
    started = time.monotonic()
    verdicts = judge([(row["prediction"], row["gold"]) for row in chosen], cpu_limit_s=0.5, wall_limit_s=20)
    assert time.monotonic() - started < 60
    assert len(verdicts) == len(chosen)
    assert all(verdict.outcome is not Outcome.RIGHT for verdict in verdicts[:8])
    assert any(verdict.outcome is Outcome.UNKNOWN for verdict in verdicts[:8])
