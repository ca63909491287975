"""Names that other libraries give to settings: hints and docs/coming_from.md say the same, and what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fr3e_async.config.foreign import ABSENT, SAME, instead, ours
from fr3e_async.settings.help import knobs

PAGE = (Path(__file__).parent.parent / "docs" / "coming_from.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith(("| `", "| none"))]
NAME = re.compile(r"`([\w.]+)`")
LEAVES = {path.rpartition(".")[2] for path in knobs()}


def test_hints_name_settings_that_are_there() -> None:
    assert set(SAME) - set(knobs()) == set()
    assert len(SAME) > 50
    mentioned = set(re.findall(r"\b[a-z]+\.[a-z_]+\b", " ".join(ABSENT)))
    assert mentioned == {"learner.warmup_steps"}
    assert mentioned <= set(knobs())
    assert not {word for names in ABSENT.values() for word in names.split()} & {
        word for its in SAME.values() for word in its.split()
    }


def test_no_hint_hides_a_setting_of_ours() -> None:
    assert {word for names in SAME.values() for word in names.split()} & LEAVES == set()
    assert [path for path in knobs() if "." in path and ours(path)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_page_and_the_hints_agree(row: list[str]) -> None:
    settings = set(NAME.findall(row[0]))
    assert settings <= set(knobs())
    for cell in row[1:]:
        names = [name.rpartition(".")[2] for name in NAME.findall(cell)]
        fits = [bool(settings & set(ours(name))) or name in LEAVES or bool(instead(name)) for name in names]
        assert any(fits) if "/" in cell else all(fits), (names, fits)  # a quotient has other names in it, too


def test_every_name_that_is_known_stands_on_the_page() -> None:
    named = set(NAME.findall(PAGE))
    assert {word for names in SAME.values() for word in names.split()} - named == {"batch_size"}  # nobody's, but often typed


def test_a_name_with_two_meanings_has_both() -> None:
    assert ours("clip_ratio") == ["loss.clip_low", "loss.clip_high"]
    assert ours("train_batch_size") == ["flow.groups_per_step", "learner.minibatches"]  # verl's, OpenRLHF's
    assert ours("learning_rate") == ["learner.lr"]
    assert ours("lr") == []
    assert instead("critic_learning_rate").startswith("there is no critic")
