"""The site: what scripts/site_hooks.py makes of the table of contents, the package and the pages; and the strict build, where MkDocs is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import site_hooks as hooks  # noqa: E402

CONTENTS = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
SITE_PYTHON = ROOT / "build" / "site-env" / "bin" / "python"


def test_the_contents_name_every_chapter_once() -> None:
    named = [path for part in hooks.parts(CONTENTS) for _, path in part.chapters]
    chapters = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} | {"adr/README.md"}
    assert len(named) == len(set(named))
    assert set(named) == chapters


def test_chapters_are_numbered_in_reading_order() -> None:
    numbers = [int(line.partition(".")[0]) for line in CONTENTS.splitlines() if hooks.CHAPTER.match(line)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_parts_by_hand() -> None:
    text = "# Book\n\n1. [No part](x.md): not in one.\n\n## One\n\n1. [A b](a.md): first.\n2. [C](c/d.md): second.\n\n## None\n\nText.\n"
    assert hooks.parts(text) == [hooks.Part(title="One", chapters=(("A b", "a.md"), ("C", "c/d.md")))]


def test_every_module_with_a_docstring_has_a_place() -> None:
    units = hooks.units()
    assert {"algorithm", "control", "learner", "main", "types"} <= set(units)
    assert "fr3e_async.algorithm.strategies.fr3e" in units["algorithm"]
    assert units["control"][0] == "fr3e_async.control"
    assert not any(module.endswith("__main__") for modules in units.values() for module in modules)
    assert hooks.summary_of("fr3e_async.algorithm").startswith("The method, pure:")
    assert "::: fr3e_async.algorithm.values" in hooks.api_page("algorithm", units["algorithm"])


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("[v](../fr3e_async/algorithm/values.py)", "a.md", "[v](api/algorithm.md#fr3e_async.algorithm.values)"),
        ("[v](../../fr3e_async/verify/__init__.py)", "adr/1.md", "[v](../api/verify.md#fr3e_async.verify)"),
        ("[c](../CHANGELOG.md)", "a.md", "[c](repository/CHANGELOG.md.txt)"),
        ("[b](b.md#x) [h](#y) [w](https://x.org)", "a.md", "[b](b.md#x) [h](#y) [w](https://x.org)"),
        ("![p](images/p.png)", "a.md", "![p](images/p.png)"),
        ("```\n[c](../CHANGELOG.md)\n```", "a.md", "```\n[c](../CHANGELOG.md)\n```"),
    ],
)
def test_links_out_of_the_book(text: str, page: str, expected: str) -> None:
    assert hooks.rewritten(text, page) == expected


def test_files_that_pages_link_to_are_copied() -> None:
    pages = {"a.md": "[c](../CHANGELOG.md) [v](../fr3e_async/main.py) [b](b.md)", "adr/1.md": "[r](../../README.md)"}
    assert hooks.copied(pages) == {"CHANGELOG.md", "README.md"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    python = str(SITE_PYTHON) if SITE_PYTHON.exists() else sys.executable
    if python == sys.executable and importlib.util.find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed; make site installs it")
    command = [python, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    values = (tmp_path / "site" / "api" / "algorithm.html").read_text(encoding="utf-8")
    assert 'id="fr3e_async.algorithm.values.alpha"' in values
    fetched = [path.name for path in (tmp_path / "site").rglob("*.html") if 'src="http' in path.read_text(encoding="utf-8")]
    assert fetched == []
