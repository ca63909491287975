"""The run's page as a file: it needs nothing but itself, holds hostile texts packed only, and the command that writes it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_support import HOSTILE, Blocks, page_of, unpacked, write_rows, write_run

from fr3e_async.cli.main import run as fr3e
from fr3e_async.errors import StorageError
from fr3e_async.observe.metrics import METRICS
from fr3e_async.outcomes import GroupOutcome, Outcome, Rejection
from fr3e_async.report.page import ASSETS, LIBRARY, SCRIPTS, STYLES, write_page

WIDTH = 160  # characters of a line of the scripts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain", steps=3, trees=5)


# ---- the page ----


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    page = page_of(run)
    blocks = Blocks(page)
    meta = next(attrs["content"] or "" for tag, attrs in blocks.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in meta
    assert "unsafe" not in meta
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert page_hash(script) in meta
    assert all(attrs["src" if tag == "script" else "href"].startswith(("data:", "#")) for tag, attrs in linked(blocks))


def linked(blocks: Blocks) -> Iterator[tuple[str, Any]]:
    return ((tag, attrs) for tag, attrs in blocks.tags if "src" in attrs or "href" in attrs)


def page_hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_hostile_texts_stand_nowhere_in_the_page_as_text(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "evil", steps=2, trees=2, say=lambda said: said + HOSTILE))
    for part in ("window.harm", "<img", "onerror", "<svg"):
        assert part not in page.replace("onerror", "", 0) or (part == "onerror" and "onerror=" not in page)
    blocks = Blocks(page)
    assert {tag for tag, _ in blocks.tags} <= {
        "html", "head", "meta", "title", "link", "style", "body", "a", "header", "div", "strong", "button", "nav", "main",
        "noscript", "p", "dialog", "script",
    }  # fmt: skip
    assert HOSTILE in unpacked(blocks.data["part"][0])[0]["prompt"]  # it is there, packed


def test_a_folder_with_a_hostile_name_is_escaped(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "<img src=x onerror=alert(1)>", steps=1, trees=1))
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_folders_whose_names_are_not_utf8_are_named_as_far_as_they_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9", b"/caf\xe8", b"/tea")]
    for folder in folders:
        write_run(Path(folder), steps=1, trees=1)
    assert fr3e(["report", *folders, "--out", str(tmp_path / "page.html")]) == 0
    data = unpacked(Blocks((tmp_path / "page.html").read_text(encoding="utf-8")).data["data"][0])
    assert [run["name"] for run in data["runs"]] == ["caf? (1)", "caf? (2)", "tea (3)"]
    assert capsys.readouterr().err == ""
    assert fr3e(["report", folders[0] + "/none"]) == 2


def test_names_inside_a_run_may_hold_what_no_file_can(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1, trees=1)
    write_rows(folder / "metrics.jsonl", [{"step": 1, "time_s": 1.0, "new/\ud800": 3.0}])
    (folder / "config.yaml").write_text('"a\\ud800": 1')
    write_rows(
        folder / "journal" / "0000.jsonl",
        [{"t": 1.0, "e": {"type": "WorkerUp", "role": "generators", "worker": "g\ud800"}, "c": []}],
    )
    data = unpacked(Blocks(page_of(folder)).data["data"][0])["runs"][0]
    assert list(data["metrics"]) == ["new/?"]
    assert data["config"] == {"a?": 1}
    assert [lane["actor"] for lane in data["timeline"]["lanes"]] == ["learner", "g?"]


def test_the_data_block_has_every_declaration(run: Path) -> None:
    data = unpacked(Blocks(page_of(run)).data["data"][0])
    assert set(METRICS) <= set(data["metrics"])
    assert data["metrics"]["reward/accuracy"]["unit"] == "fraction"
    for metric in METRICS:
        for place in data["metrics"][metric]["code"]:
            assert data["code"][place]["source"]
    assert {"steps", "accuracy_after"} <= set(data["summary"])


def test_a_metric_that_is_not_declared_is_shown_as_such(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "later", steps=1, trees=0)
    write_rows(folder / "metrics.jsonl", [{"step": 1, "time_s": 1.0, "new/metric": 3.0}])
    data = unpacked(Blocks(page_of(folder)).data["data"][0])
    assert data["metrics"]["new/metric"] == {"unit": "", "meaning": "not declared in this version", "code": []}


# ---- the assets ----


def test_the_page_and_the_package_share_the_words_of_outcomes(run: Path) -> None:
    """The page has them from its data; its marks and colours are for these words and no others."""
    assert unpacked(Blocks(page_of(run)).data["data"][0])["outcomes"] == {"rollouts": list(Outcome), "groups": list(GroupOutcome)}
    source = (ASSETS / "bars.js").read_text()
    for name, words in (("MARKS", Outcome), ("GROUP_FILL", GroupOutcome)):
        (table,) = re.findall(rf"const {name} = \{{(.*?)\}};", source, flags=re.DOTALL)
        assert re.findall(r"(\w+):", table) == list(words)
    rejections = {outcome.word for outcome in GroupOutcome} - {"trained", "failed"}
    assert rejections == set(Rejection) - {"not_trained"}, "a group is rejected for what a state is dropped for"
    assert {f"groups/{outcome.word}" for outcome in GroupOutcome} == {name for name in METRICS if name.startswith("groups/")}
    assert {f"verify/{outcome}" for outcome in Outcome} <= METRICS.keys()


def test_the_library_is_the_one_that_its_note_says() -> None:
    note = (ASSETS / "VERSION").read_text()
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", note, flags=re.MULTILINE)
    assert {name for _, name in sums} == {LIBRARY, "uPlot.min.css", "LICENSE.uPlot"}
    for expected, name in sums:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == expected, name
    version = re.search(r"uPlot ([\d.]+), MIT", note)
    assert version is not None
    assert f"(v{version[1]})" in (ASSETS / LIBRARY).read_text()


def test_every_asset_is_used_and_none_makes_html_of_text() -> None:
    ours = {path.name for path in ASSETS.iterdir()} - {LIBRARY, "uPlot.min.css", "LICENSE.uPlot", "VERSION", "page.html"}
    assert ours == {*SCRIPTS, *STYLES} - {"uPlot.min.css"}
    for name in SCRIPTS:
        source = (ASSETS / name).read_text()
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "fetch(",
            "XMLHttpRequest",
            "import(",
        ):
            assert way not in source, f"{name}: {way}"
        assert len(source.split("\n")) <= 350
        assert [line for line in source.split("\n") if len(line) > WIDTH] == [], name


# ---- the command ----


def test_the_command_writes_into_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(tmp_path / name, steps=2, trees=3, seed=index) for index, name in enumerate("ab")]
    assert fr3e(["report", *map(str, folders)]) == 0
    assert (folders[0] / "report.html").is_file()
    assert "2 runs, 4 steps, 6 trees" in capsys.readouterr().out
    out = tmp_path / "page.html"
    assert fr3e(["report", str(folders[0]), "--out", str(out), "--trees", "1"]) == 0
    assert "1 trees" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN"),
        (["{tmp}/none"], "is no folder"),
        (["{tmp}"], "is no run directory"),
        (["{run}", "--trees", "-1"], "'--trees': -1 is not in the range"),
        (["{run}", "--trees", "x"], "--trees"),
        (["{run}", "--out", "{tmp}/none/page.html"], "--out: cannot write to"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fr3e(["report", *(part.format(tmp=tmp_path, run=run) for part in arguments)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1, trees=1)
    out = tmp_path / "page.html"
    out.write_text("old")
    (folder / "trees.jsonl").write_text("{}\n")
    with pytest.raises(StorageError, match=r"trees\.jsonl:1 is damaged: it names no group"):
        write_page([folder], out, trees=10)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
