"""What MkDocs does beyond its own for the site (mkdocs.yml): the book's order, the pages of the API, links out of ``docs/``.

    docs/README.md       the table of contents, read as such: the only list of chapters there is
    fr3e_async/**/*.py   one page a unit, api/<unit>.md, of ``::: module`` lines that mkdocstrings fills from docstrings, unrun
    ../fr3e_async/x.py   in a page: the module's place in the API; any other file of the repository: a copy below repository/

The first half knows text and paths only and is tested without MkDocs; MkDocs is imported where a page is handed to it.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fr3e_async"
CONTENTS = "README.md"
CHAPTER = re.compile(r"^\d+\. \[([^\]]+)\]\(([^)#]+\.md)\)", re.MULTILINE)
PART = re.compile(r"^## (.+)$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
NOT_SHOWN = ("__main__",)  # commands: their module's docstring is the command's help


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the book. ``chapters``: (title, path below docs/) in reading order."""

    title: str
    chapters: tuple[tuple[str, str], ...]


def parts(contents: str) -> list[Part]:
    """Parts and chapters of the table of contents: ``## Part``, then ``1. [title](file.md): …`` lines."""
    headings = [*PART.finditer(contents)]
    ends = [match.start() for match in headings[1:]] + [len(contents)]
    found = []
    for heading, end in zip(headings, ends, strict=True):
        chapters = tuple((title, path) for title, path in CHAPTER.findall(contents[heading.end() : end]))
        if chapters:
            found.append(Part(title=heading[1], chapters=chapters))
    return found


def units(package: Path = PACKAGE) -> dict[str, list[str]]:
    """By top-level module or package of ``fr3e_async``: the dotted names of its modules that have a docstring, itself first."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        inner = path.relative_to(package).with_suffix("").parts
        names = inner[:-1] if inner[-1] == "__init__" else inner
        if not names or names[-1] in NOT_SHOWN or ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
            continue
        found.setdefault(names[0], []).append(".".join(("fr3e_async", *names)))
    return {unit: sorted(modules) for unit, modules in sorted(found.items())}


def api_page(unit: str, modules: Sequence[str]) -> str:
    """Markdown of a unit's page."""
    blocks = [f"::: {module}\n    options:\n      heading_level: 2" for module in modules]
    return "\n\n".join([f"# fr3e_async.{unit}", *blocks]) + "\n"


def api_index(found: Mapping[str, Sequence[str]], summaries: Mapping[str, str]) -> str:
    """Markdown of the list of all modules with the first sentence of each."""
    lines = [
        "# API reference",
        "",
        "Made from the docstrings of the package. What a module knows, and what not, is in its first lines.",
        "",
    ]
    for unit, modules in found.items():
        lines += [f"## {unit}", "", "| module | what it is |", "| --- | --- |"]
        lines += [f"| [{module}]({unit}.md#{module}) | {summaries[module]} |" for module in modules]
        lines.append("")
    return "\n".join(lines)


def summary_of(module: str, root: Path = ROOT) -> str:
    """First paragraph of a module's docstring on one line, fit for a table."""
    plain = root.joinpath(*module.split("."))
    path = plain.with_suffix(".py") if plain.with_suffix(".py").is_file() else plain / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def outside(target: str, page: str) -> str | None:
    """Path in the repository of a link's file in a page (path below docs/) if it lies outside of docs/, else None."""
    if re.match(r"[a-z]+:", target) or target.startswith("#"):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target.partition("#")[0]))
    return None if path == "docs" or path.startswith("docs/") else path


def module_of(path: str) -> str | None:
    """Dotted name of a file of the package, or None."""
    if not (path.startswith("fr3e_async/") and path.endswith(".py")):
        return None
    names = path.removesuffix(".py").split("/")
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def copy_of(path: str) -> str:
    """Where the site has a file of the repository: as text, so that it is no page."""
    return f"repository/{path}.txt"


def rewritten(text: str, page: str) -> str:
    """The text with links out of docs/ led to the API or to copies; fenced blocks stay."""

    def led(match: re.Match[str]) -> str:
        label, target = match.groups()
        path = outside(target, page)
        if path is None:
            return match[0]
        up = "../" * page.count("/")
        if module := module_of(path):
            return f"[{label}]({up}api/{module.split('.')[1]}.md#{module})"
        return f"[{label}]({up}{copy_of(path)})"

    pieces = FENCE.split(text)
    return "".join(piece if piece.lstrip().startswith("```") else LINK.sub(led, piece) for piece in pieces)


def copied(pages: Mapping[str, str]) -> set[str]:
    """Files of the repository that pages (path below docs/ → text) link to and that are no modules."""
    targets = ((target, page) for page, text in pages.items() for _, target in LINK.findall(FENCE.sub("", text)))
    paths = {path for target, page in targets if (path := outside(target, page))}
    return {path for path in paths if module_of(path) is None}


# ---- what MkDocs calls ----


def on_config(config: Any) -> Any:
    """The navigation: the book's parts, then the API."""
    book = parts((Path(config.docs_dir) / CONTENTS).read_text(encoding="utf-8"))
    nav: list[Any] = [{"Contents": CONTENTS}]
    nav += [{part.title: [{title: path} for title, path in part.chapters]} for part in book]
    nav.append({"API": [{"All modules": "api/index.md"}, *({unit: f"api/{unit}.md"} for unit in units())]})
    config.nav = nav
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the copies."""
    from mkdocs.structure.files import File

    def add(uri: str, content: str) -> None:
        files.append(File.generated(config, uri, content=content))

    found = units()
    add("api/index.md", api_index(found, {module: summary_of(module) for modules in found.values() for module in modules}))
    for unit, modules in found.items():
        add(f"api/{unit}.md", api_page(unit, modules))
    docs = Path(config.docs_dir)
    pages = {str(path.relative_to(docs)): path.read_text(encoding="utf-8") for path in docs.rglob("*.md")}
    for path in sorted(copied(pages)):
        add(copy_of(path), (ROOT / path).read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return rewritten(markdown, page.file.src_uri)
