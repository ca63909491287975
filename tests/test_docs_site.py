"""The site: what scripts/site_hooks.py makes of the table of contents, the package and the pages; and the build itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from make_support import copy_of_the_repository, started

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import site_hooks as hooks  # noqa: E402

CONTENTS = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
SITE = ROOT / "build" / "site-env"


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
    """In a copy; an environment that `make site` has made in the repository is used, and else one is installed."""
    copy = copy_of_the_repository(tmp_path / "copy")
    if SITE.is_dir():
        (copy / "build").mkdir()
        (copy / "build" / "site-env").symlink_to(SITE)
    done = started("site", folder=copy, PYTHON=sys.executable)
    if "Could not find a version" in done.stderr:
        pytest.skip("MkDocs is not installed, and no package registry answers")
    assert done.returncode == 0, done.stderr
    assert "site/index.html" in done.stdout
    values = (copy / "site" / "api" / "algorithm.html").read_text(encoding="utf-8")
    assert 'id="fr3e_async.algorithm.values.alpha"' in values
    fetched = [path.name for path in (copy / "site").rglob("*.html") if 'src="http' in path.read_text(encoding="utf-8")]
    assert fetched == []
