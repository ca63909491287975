"""Runs and trees as one HTML file that needs nothing but itself.

    <meta CSP>   no network, no script but those two, by their hash         <style>   all of the page's CSS
    <script>     uPlot; then assets/*.js in the order of SCRIPTS            #data, #index, .part   gzip in base64

All data stands in the page as gzip in base64, so no text of a prompt or a model is ever read as HTML; the scripts put it on the
screen as text only. The Content-Security-Policy is the second wall. Does not know what the data means.
"""

import ast
import base64
import functools
import hashlib
import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fr3e_async import __version__
from fr3e_async.files.durable import storage_errors
from fr3e_async.observe.events import MEANINGS
from fr3e_async.observe.metrics import METRICS
from fr3e_async.outcomes import GroupOutcome, Outcome
from fr3e_async.report.runs import defaults, distinct, read_run
from fr3e_async.report.trees import Packer, packed, read_trees
from fr3e_async.store.summary import Summary

PACKAGE = Path(__file__).parent.parent
ASSETS = PACKAGE / "report" / "assets"
STYLES = ("uPlot.min.css", "base.css", "charts.css", "trees.css")
LIBRARY = "uPlot.iife.min.js"
SCRIPTS = (
    "util.js", "data.js", "theme.js", "plot.js", "metrics.js", "curves.js", "timeline.js", "bars.js", "headline.js", "tables.js",
    "tokens.js", "treelist.js", "treeview.js", "keys.js", "main.js",
)  # fmt: skip


def write_page(paths: Sequence[Path], out: Path, *, trees: int) -> dict[str, int]:
    """Write the page of these run directories; ``trees``: the most that it shows of each. Returns counts of what is in it.

    Raises ``StorageError``: a folder is no run, a file of it is damaged, or ``out`` cannot be written. Then ``out`` is as before.
    """
    runs = [read_run(path) for path in paths]
    for run, name in zip(runs, distinct([run["name"] for run in runs], paths), strict=True):
        run["name"] = name
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    packer = Packer()
    with storage_errors(out, "--out"):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                for piece in pieces(runs, paths, packer, trees=trees):
                    file.write(piece)
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    return {"runs": len(runs), "steps": sum(len(run["axes"]["step"]) for run in runs), "trees": len(packer)}


def pieces(runs: Sequence[dict[str, Any]], paths: Sequence[Path], packer: Packer, *, trees: int) -> Iterator[str]:
    """The page from its first character to its last, so that its trees need not be held in memory."""
    style = "".join(asset(name) for name in STYLES)
    scripts = [asset(LIBRARY), bundle()]
    head = asset("page.html").replace("{{policy}}", policy(style, scripts)).replace("{{style}}", style)
    head = head.replace("{{title}}", html.escape(" · ".join(run["name"] for run in runs)[:200]))
    yield head
    for number, path in enumerate(paths):
        for tree in read_trees(path, limit=trees):
            if part := packer.add(number, tree):
                yield data_block(part, kind="part")
    if part := packer.flush():
        yield data_block(part, kind="part")
    yield data_block(packed(packer.columns), id="index")
    yield data_block(packed({"version": __version__, "runs": runs, **declarations(runs)}), id="data")
    yield "".join(f"<script>{script}</script>\n" for script in scripts) + "</body>\n</html>\n"


def declarations(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the names mean: metrics with the functions that make them, their code, summary keys, kinds of events, defaults."""
    undeclared = {name for run in runs for name in run["metrics"]} - METRICS.keys()
    metrics = {name: {"unit": m.unit, "meaning": m.meaning, "code": m.made_by} for name, m in METRICS.items()}
    metrics |= {name: {"unit": "", "meaning": "not declared in this version", "code": ()} for name in sorted(undeclared)}
    summary = {name: dict(field.metadata) for name, field in Summary.__dataclass_fields__.items()}
    outcomes = {"rollouts": list(Outcome), "groups": list(GroupOutcome)}
    code = {location: locate(location) for metric in METRICS.values() for location in metric.made_by}
    return {
        "metrics": metrics,
        "code": code,
        "summary": summary,
        "events": MEANINGS,
        "defaults": defaults(),
        "outcomes": outcomes,
    }


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def bundle() -> str:
    """Join the page's scripts into one function: a file can use those before it, and none becomes a global of the page."""
    return '(() => {\n"use strict";\n' + "\n".join(asset(name) for name in SCRIPTS) + "\n})();\n"


def policy(style: str, scripts: Sequence[str]) -> str:
    """No network, no frames, no forms; only this style and these scripts."""
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def data_block(part: str, *, id: str = "", kind: str = "") -> str:
    """Base64 in an element that a browser neither shows nor runs."""
    return f'<script type="text/plain" id="{id}" class="{kind}">{part}</script>\n'


# ---- the code that makes a metric, read by its syntax and not imported: a page can be made where torch is not installed ----


@functools.cache
def locate(location: str) -> dict[str, Any]:
    """A function or class of the package, with its first line, from 1, and its text. Raises ``LookupError`` if it is not there.

    *Example*: ``machine/tally.py:Tally.take`` → ``{"file": "machine/tally.py", "name": "Tally.take", "line": 51, "source": "def take…"}``.
    """
    file, _, name = location.partition(":")
    if not (PACKAGE / file).is_file():
        raise LookupError(f"{location}: there is no such file in the package")
    text, node = _parsed(file)
    for part in name.split("."):
        node = _inside(node, part, location)
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])  # type: ignore[attr-defined]
    last = node.end_lineno  # type: ignore[attr-defined]
    return {"file": file, "name": name, "line": first, "source": "\n".join(text.split("\n")[first - 1 : last])}


@functools.cache
def _parsed(file: str) -> tuple[str, ast.AST]:
    text = (PACKAGE / file).read_text(encoding="utf-8")
    return text, ast.parse(text)


def _inside(node: ast.AST, name: str, location: str) -> ast.AST:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [child for child in ast.iter_child_nodes(node) if isinstance(child, kinds) and child.name == name]
    if not found:
        raise LookupError(f"{location}: there is no {name} in it")
    return found[0]
