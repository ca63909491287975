"""``load_run``: a run directory as rows, by the code of the manual."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_support import write_run

from fr3e_async.errors import StorageError
from fr3e_async.notebook import load_run


def test_rows_are_those_of_the_files(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", steps=6, trees=8))
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert run.metrics[5]["reward/accuracy"] == pytest.approx(0.7)
    assert len(run.groups) == 24
    assert run.groups[2] == json.loads((tmp_path / "run" / "groups.jsonl").read_text().splitlines()[2])
    assert run.groups[2]["outcome"] == "rejected_all_correct"
    assert len(run.trees) == 8
    assert {"group", "prompt", "states", "rollouts"} <= run.trees[0].keys()


def test_the_code_of_the_manual_makes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    write_run(tmp_path / "runs" / "first", steps=6, trees=8)
    monkeypatch.chdir(tmp_path)
    page = (repository / "docs" / "outputs.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "load_run" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["metrics"]["reward/accuracy"].tolist() == pytest.approx([0.45, 0.5, 0.55, 0.6, 0.65, 0.7])
    assert names["groups"]["tokens.generated"].sum() == 24 * 250
    trees = names["run"].trees
    assert len(names["rollouts"]) == sum(len(tree["rollouts"]) for tree in trees)
    assert set(names["rollouts"]["group"]) == {tree["group"] for tree in trees}


def test_a_run_that_was_killed_has_what_it_wrote(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3, trees=0)
    (folder / "trees.jsonl").unlink()
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text[:-20])
    run = load_run(str(folder))
    assert ([row["step"] for row in run.metrics], run.trees) == ([1, 2], [])
    (folder / "groups.jsonl").write_text('{"group": \n{}\n')
    with pytest.raises(StorageError, match=r"groups\.jsonl:1 is damaged"):
        _ = run.groups


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no run directory"):
        load_run(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(StorageError, match="is no folder"):
        load_run(tmp_path)
