"""The public data sets as they are published: counts, golds, levels, twins between sets. Needs the shared data folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fr3e_async.config import Config, DataConfig, EngineConfig, SourceConfig, VerifierPoolConfig
from fr3e_async.data.overlap import Protected, duplicates, runs
from fr3e_async.data.row import DataRow
from fr3e_async.data.rows import read_rows
from fr3e_async.data.sources import OTHER_LEVEL, read_source
from fr3e_async.verify.references import flag_references

SHARED = Path(os.environ.get("FR3E_SHARED") or Path(__file__).parents[2] / "shared") / "data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no data sets in {SHARED}; FR3E_SHARED names the shared folder"),
]


def source(name: str, **fields: Any) -> SourceConfig:
    columns = {"problem_field": "question"} if name.startswith("gsm8k") else {}
    return SourceConfig(**{"path": str(SHARED / f"{name}.jsonl"), "name": name.partition("/")[0], **columns, **fields})


def rows(name: str, dropped: Counter[str] | None = None, **fields: Any) -> list[DataRow]:
    return list(read_source(source(name, **fields), setting="data.train_sources[0]", dropped=dropped))


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("gsm8k/train", 7473, "72", "50"),
        ("gsm8k/test", 1319, "18", "14"),
        ("olympiadbench/test", 675, "2", "11"),
        ("college_math/test", 1260, "$10-4 n$", "There is no possible choice of $k$ which will make these matrices commute."),
        ("theoremqa/test", 747, "11760", "0.0"),
        ("deepmath/train", 4994, "1", "11"),
        ("imo_answerbench/test", 400, "3", "20"),
    ],
)
def test_counts_and_golds(name, count, first, last):
    read = rows(name)
    assert len(read) == count
    assert len({row.uid for row in read}) == count
    assert all(row.answer and row.problem for row in read)
    assert (read[0].answer, read[-1].answer) == (first, last)


def test_golds_of_gsm8k_are_plain_numbers():
    assert all(row.answer.lstrip("-").isdigit() for row in rows("gsm8k/test"))


def test_answers_of_several_parts_stay_one_text():
    read = {row.uid: row.answer for row in rows("olympiadbench/test")}
    assert read["olympiadbench/13"] == "$69$,$84$"
    assert read["olympiadbench/5"] == "$(1,8,19), (2,7,13), (4,5,7)$"


def test_levels_of_deepmath():
    dropped: Counter[str] = Counter()
    read = rows("deepmath/train", dropped, levels=[5, 9])
    assert len(read) + dropped[OTHER_LEVEL] == 4994
    assert dropped[OTHER_LEVEL] == 691
    assert all(5 <= float(row.level) <= 9 for row in read)


def test_no_test_problem_of_gsm8k_is_in_its_training_set_and_two_are_near():
    index = Protected(rows("gsm8k/test"), run_length=13, min_share=0.5)
    twins = [twin for row in rows("gsm8k/train") if (twin := index.find(row)) is not None]
    assert [twin for twin in twins if twin.same] == []
    assert [(twin.row.uid, twin.other.uid) for twin in twins] == [
        ("train.jsonl:1315", "test.jsonl:603"),
        ("train.jsonl:5163", "test.jsonl:603"),
    ]


def with_other_macros(text: str) -> str:
    return re.sub(r"\^(\d)(?!\d)", r"^{\1}", text.replace(r"\frac", r"\dfrac").replace(r"\text", r"\mathrm"))


@pytest.mark.parametrize(
    ("name", "count", "short", "added"),
    [
        ("college_math/test", 1260, 556, 1231),  # the others have fewer than 8 words and signs
        ("theoremqa/test", 747, 39, 747),
        ("olympiadbench/test", 675, 4, 675),
        ("gsm8k/test", 1319, 0, 1319),
    ],
)
def test_copies_of_test_problems_are_found(name, count, short, added):
    """Each problem as a training problem with a full stop more, an unseen character, other macros; and with a sentence more."""
    read = rows(name)
    assert (len(read), sum(not runs(row.problem, 13) for row in read)) == (count, short)
    index = Protected(read, run_length=13, min_share=0.5)
    for change in (
        lambda text: text.rstrip(" .?") + ".",
        lambda text: text[: len(text) // 2] + "\u200b" + text[len(text) // 2 :],
        with_other_macros,
    ):
        twins = [index.find(replace(row, problem=change(row.problem))) for row in read]
        assert sum(twin is not None and twin.same for twin in twins) == count
    twins = [index.find(replace(row, problem=row.problem + " Give your answer in simplest form.")) for row in read]
    assert sum(twin is not None and not twin.same for twin in twins) == added


def test_nothing_of_deepmath_is_taken_for_a_problem_of_the_other_sets():
    """4,994 training problems against 2,682 of three benchmarks, 599 of them short: no finding, so no false one."""
    guard = [row for name in ("olympiadbench", "college_math", "theoremqa") for row in rows(f"{name}/test")]
    index = Protected(guard, run_length=13, min_share=0.5)
    assert len(guard) == 2682
    assert [twin for row in rows("deepmath/train") if (twin := index.find(row)) is not None] == []


def test_a_test_problem_among_the_training_problems_is_found(tmp_path):
    leaked = (SHARED / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[7]
    (tmp_path / "train.jsonl").write_text(leaked.replace("How", "HOW") + "\n" + '{"question": "1+1=?", "answer": "2"}\n')
    training = SourceConfig(path=str(tmp_path / "train.jsonl"), problem_field="question")
    data = DataConfig(
        train="sources", train_sources=[training], heldout="", protected=[source("gsm8k/test")], on_contamination="drop"
    )
    kept = read_rows(Config(data=data, engine=EngineConfig(kv_cache_gib=0.1)))
    assert [row.problem for row in kept.train] == ["1+1=?"]
    assert "train.jsonl:1 (as " in kept.notes[0][1]
    assert "gsm8k/test.jsonl:8)" in kept.notes[0][1]


def test_twins_within_the_sets():
    """College Math asks some of its questions twice, some of these with another gold."""
    twins = list(duplicates(rows("college_math/test")))
    assert len(twins) == 27
    assert sum(twin.row.answer != twin.other.answer for twin in twins) == 17
    assert len(list(duplicates(rows("gsm8k/train")))) == 0
    assert len(list(duplicates(rows("deepmath/train")))) == 10


@pytest.mark.slow
def test_golds_that_are_text_only_are_flagged():
    read = rows("deepmath/train")
    flagged = {
        flag.reference
        for flag in flag_references([row.answer for row in read], VerifierPoolConfig(workers=1, wall_limit_s=240.0))
    }
    assert sum(row.answer in flagged for row in read) == 87  # groups, cardinals, transposes, derivatives: matched as text
