"""The families of ``benchmarks/families.py``: learner and export for all of them, a few with a real engine; the page's table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import families
import pytest
from family_models import FAMILIES

ROOT = Path(__file__).parent.parent
CASES = [(name, tied) for name, family in FAMILIES.items() for tied in family.tied]
# With what others do not have: caps and windows; scaled logits; angles by factors; a config that is not the folder's.
SERVED = [("Gemma 2", True), ("Granite", False), ("Phi-3, LongRoPE", False), ("Qwen2, YaRN by hf_overrides", False)]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tied"), CASES)
def test_a_family_is_trained_as_trees_and_exported(name: str, tied: bool) -> None:
    row = families.try_family(name, tied=tied, engine=False)
    assert families.sound(row), row
    assert row["reload"] == 0


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("name", "tied"), SERVED)
def test_an_engine_serves_what_the_learner_made_of_it(name: str, tied: bool) -> None:
    row = families.try_family(name, tied=tied)
    assert families.sound(row), row
    assert len(row["engine"]) == 3


def test_the_page_has_a_row_of_every_family_as_it_was_measured() -> None:
    rows = families.read_rows(ROOT / "docs" / "results" / "families.jsonl")
    assert [(row["family"], row["head"]) for row in rows] == [(name, "tied" if tied else "untied") for name, tied in CASES]
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert families.table(rows) in page


def test_a_row_is_right_only_if_all_of_it_was_measured_and_is_near() -> None:
    row = {"family": "F", "head": "tied", "gradient": 1e-6, "engine": [[1e-6, 1e-5]] * 3, "refused": "", "failed": ""}
    assert families.verdict(row) == "right"
    assert families.verdict(row | {"engine": []}) == "right in the learner; no engine was asked"
    wrong = row | {"engine": [[1e-6, 1e-6], [1e-6, 1e-6], [1e-6, 0.1]], "alone": [[1e-6], [0.2], [0.3]]}
    assert families.verdict(wrong) == "**wrong**; vLLM alone, with its own reload, is wrong at v2, v3"
    assert families.verdict(row | {"gradient": None}) == "**wrong**"
    assert families.verdict(row | {"refused": "no"}) == "refused: no"
