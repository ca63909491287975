"""The documentation against the code: links, settings, tests and files that it names exist; its tables are what the code says.

The tables themselves are tested in ``test_monitoring.py`` and ``test_configs.py``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from fr3e_async.observe.metrics import METRICS
from fr3e_async.settings.help import knobs, sections

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\n]+)\)")  # with blanks: MkDocs takes them too, and finds no such file
CODE_SPAN = re.compile(r"`([^`\n]+)`")
TEST_NAME = re.compile(r"(test_\w+\.py)::(\w+)")
SYMBOL = re.compile(r"`((?:\w+/)*\w+\.py)::([\w.]+)`")  # below fr3e_async/: machine/ledger.py::Ledger.admissible
FILE_SUFFIXES = ("json", "jsonl", "lock", "log", "md", "py", "sh", "safetensors", "tmp", "yaml")


def without_fences(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """The fragment that names a heading in a link."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def dead_links(text: str, folder: Path) -> list[str]:
    """Relative links of a page in ``folder`` that lead to no file, or to no heading of it."""
    dead = []
    for target in LINK.findall(without_fences(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = unquote(target).partition("#")
        file = folder / path
        if not file.exists() or (path and fragment and fragment not in map(slug, headings(file))):
            dead.append(target)
    return dead


def headings(file: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", without_fences(file.read_text(encoding="utf-8")), flags=re.MULTILINE)


def settings_named(text: str) -> Iterator[str]:
    """Dotted settings that a text names in a code span (`flow.max_staleness`), or sets anywhere (flow.max_staleness=0)."""
    for span in CODE_SPAN.findall(without_fences(text)):
        for word in span.split():
            name = word.partition("=")[0].rstrip(",;:")
            if re.fullmatch(r"[a-z]+\.[\w.]+", name) and not name.endswith(tuple(f".{suffix}" for suffix in FILE_SUFFIXES)):
                yield name
    yield from re.findall(r"(?<![\w./-])([a-z]+\.[\w.]+)=", text)


def unknown_settings(text: str) -> list[str]:
    """Settings of known sections that neither exist nor are declared by the text. A name below a free-form mapping exists."""
    unknown, declared = [], re.findall(r"^    (\w+): .* = knob\(", text, flags=re.MULTILINE)
    for name in settings_named(text):
        parts = name.split(".")
        knob = knobs().get(".".join(parts[:2]))
        known = knob is not None and (len(parts) == 2 or knob.is_mapping)
        if parts[0] in sections() and not known and parts[1] not in declared:
            unknown.append(name)
    return unknown


def missing_tests(text: str) -> list[str]:
    """Tests that a text names as file::name and that are not there."""
    return [f"{file}::{name}" for file, name in TEST_NAME.findall(text) if name not in names_of(ROOT / "tests" / file)]


def names_of(file: Path) -> set[str]:
    """Functions, classes and variables of a module."""
    if not file.is_file():
        return set()
    body = ast.parse(file.read_text(encoding="utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return defined | {target.id for target in targets if isinstance(target, ast.Name)}


def missing_symbols(text: str) -> list[str]:
    """Names ``file.py::symbol`` or ``file.py::Class.member`` in code spans that the package does not define."""
    return [f"{file}::{name}" for file, name in SYMBOL.findall(text) if not defines(ROOT / "fr3e_async" / file, name)]


def defines(file: Path, name: str) -> bool:
    owner, _, member = name.partition(".")
    if not member:
        return owner in names_of(file)
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    classes = (node for node in body if isinstance(node, ast.ClassDef) and node.name == owner)
    return any(member == getattr(node, "name", None) for cls in classes for node in cls.body)


def missing_sources(text: str) -> list[str]:
    """Paths in code spans that name a file of the repository or of the package, and are not there."""
    paths = re.findall(r"`((?:\w[\w.-]*/)+[\w.-]+\.(?:py|md|yaml|sh|lock))`", text)
    return [path for path in paths if not (ROOT / path).exists() and not (ROOT / "fr3e_async" / path).exists()]


def unknown_metrics(text: str) -> list[str]:
    """Names in code spans that look like a metric of a known group and are not declared; ``idle/*`` stands for a group."""
    groups = {name.partition("/")[0] for name in METRICS}
    named = re.findall(r"`([a-z]+)/([\w*]+)`", text)
    return [f"{g}/{n}" for g, n in named if g in groups and "*" not in n and f"{g}/{n}" not in METRICS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert dead_links(text, page.parent) == []
    assert unknown_settings(text) == []
    assert missing_tests(text) == []
    assert missing_sources(text) == []
    assert unknown_metrics(text) == []


def test_the_checks_find_what_is_wrong() -> None:
    assert dead_links("[a](outputs.md) [b](nowhere.md) [c](https://x.org/y)", ROOT / "docs") == ["nowhere.md"]
    assert dead_links("[a](outputs.md#exit-codes) [b](outputs.md#no-such)", ROOT / "docs") == ["outputs.md#no-such"]
    assert unknown_settings("`flow.max_staleness` `flow.max_stale`, `run.json`, `torch.load`") == ["flow.max_stale"]
    assert unknown_settings("set flow.max_stale=1 engine.options.seed=2 run.dir=/x") == ["flow.max_stale"]
    assert missing_tests("`test_docs.py::test_absent`, `test_docs.py::PAGES`, `test_none.py::test_x`") == [
        "test_docs.py::test_absent",
        "test_none.py::test_x",
    ]
    assert missing_sources("`machine/ledger.py`, `tests/test_docs.py`, `control/absent.py`") == ["control/absent.py"]
    assert unknown_metrics("`train/loss`, `train/lost`, `idle/*`, `model/x`") == ["train/lost"]


def where_to_look() -> list[str]:
    """Rows of the table that leads from questions to code."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Where to look\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


def test_every_question_leads_to_code_that_exists() -> None:
    rows = where_to_look()
    assert len(rows) >= 16
    assert [row for row in rows if not SYMBOL.search(row)] == []
    assert missing_symbols("\n".join(rows)) == []
    written = re.findall(r"`([^`]*::[^`]*)`", "\n".join(rows))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert missing_symbols(readme) == []
    assert len(SYMBOL.findall(readme)) >= 6
    assert written == ["::".join(found) for found in SYMBOL.findall("\n".join(rows))]  # none is spelled so that nobody looks


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("machine/ledger.py::Ledger", True),
        ("machine/ledger.py::Ledger.admissible", True),
        ("algorithm/strategies/__init__.py::REGISTRY", True),  # a variable with a type
        ("machine/ledger.py::admissible", False),  # a method, without its class
        ("machine/ledger.py::Ledger.absent", False),
        ("machine/ledger.py::Absent.admissible", False),
        ("machine/ledger.py::GroupOutcome", False),  # imported, not defined there
        ("machine/absent.py::Ledger", False),
        ("machine/absent.py::Ledger.admissible", False),
    ],
)
def test_a_symbol_that_is_not_there_is_found(name: str, exists: bool) -> None:
    assert missing_symbols(f"| why? | `{name}` |") == ([] if exists else [name])


def test_the_pages_name_settings_and_tests_at_all() -> None:
    """Else the checks above could pass because they find nothing."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(set(settings_named(text)) & set(knobs())) > 60
    assert len(set(TEST_NAME.findall(text))) > 30


def test_the_index_lists_every_decision() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert LINK.findall((folder / "README.md").read_text(encoding="utf-8")) == pages
    for number, name in enumerate(pages, start=1):
        text = (folder / name).read_text(encoding="utf-8")
        assert name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences"))


def test_the_picture_of_the_tree_mask_is_the_mask_that_trains(tmp_path: Path) -> None:
    drawn = tmp_path / "mask.svg"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "draw_tree_mask.py"), str(drawn)], check=True)
    assert drawn.read_text() == (ROOT / "docs" / "images" / "tree_mask.svg").read_text()


DESIGN = (
    "Generator actors (vLLM) stream base trajectories; explorer actors pick up entropy anchors from the shared object store and "
    "launch branch rollouts; verifier actors (math-verify) score them; a DeepSpeed learner group consumes complete, non-degenerate "
    "groups off-policy with importance-corrected Clip-Higher updates and broadcasts weights"
)


def test_every_clause_of_the_design_has_its_tests() -> None:
    """That the tests exist is held for every page, above."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## The design in one sentence\n")[1].split("\n## ")[0]
    _, _, *rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert " ".join(row[0].strip() for row in rows) == DESIGN
    assert all(TEST_NAME.findall(row[2]) for row in rows)
