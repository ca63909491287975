"""The law of imports: one direction between the packages, and each heavy library only where it lives. By AST, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fr3e_async"

# Unit (top-level module or package of fr3e_async) → its layer. A unit imports from its own layer or a lower one, never upwards.
LAYERS = [
    {"main", "evaluate"},
    {"preparing", "session", "resuming", "branching", "ending", "evaluate_job"},
    {"wiring"},
    {
        "loader",
        "help",
        "hints",
        "plan",
        "memory",
        "simulate",
        "export",
        "audit",
        "replay",
        "report",
    },  # the front end: helpers of main, other commands
    {"actors", "control"},
    {"rollout", "learner", "verify", "weights", "evaluation", "observe", "data", "scratch"},
    {"algorithm"},
    {"config", "types", "errors", "clock", "signals", "__init__"},
]
LEVEL = {unit: level for level, units in enumerate(reversed(LAYERS)) for unit in units}
SUPPORT = {"testing"}  # fakes for tests; nothing else may import them

# Heavy library → units that may import it.
HOMES = {
    "ray": {"main", "wiring", "actors"},
    "vllm": {"rollout"},
    "deepspeed": {"learner"},
    "omegaconf": {"loader"},
    "math_verify": {"verify"},
    "wandb": {"observe"},
    "mlflow": {"observe"},
}
# What a pure unit must not know: libraries that do things, and the sources of clock, chance, files and logs.
IMPURE = {*HOMES, "time", "logging", "random", "asyncio", "threading", "subprocess", "socket", "datetime"}
PURE_UNITS = {"algorithm", "config", "types", "errors"}
PURE_FILES = {
    "errors.py",
    "machine/ledger.py",
    "machine/group.py",
    "machine/messages.py",
    "machine/budget.py",
    "machine/order.py",
    "machine/tally.py",
    "machine/codec.py",
    "machine/dispatch.py",
    "machine/fleet.py",
    "machine/machine.py",
    "store/ledger_audit.py",
}


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted module, line) of every import in a file, also those inside of functions and under TYPE_CHECKING."""
    package = ("fr3e_async", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join(filter(None, [*base, node.module]))
            if module == "fr3e_async":
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def units_imported(path: Path) -> Iterator[tuple[str, int]]:
    for module, line in imported(path):
        parts = module.split(".")
        if parts[0] == "fr3e_async" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], line


def violations(path: Path) -> list[str]:
    unit, name = unit_of(path), str(path.relative_to(ROOT))
    found = []
    for other, line in units_imported(path):
        if unit in SUPPORT:
            continue
        if other in SUPPORT:
            found.append(f"{name}:{line}: {unit} imports {other}, which is for tests")
        elif LEVEL[other] > LEVEL[unit]:
            found.append(f"{name}:{line}: {unit} imports {other}, which lies above it")
    for module, line in imported(path):
        library = module.partition(".")[0]
        if library in HOMES and unit not in HOMES[library] | SUPPORT:
            found.append(f"{name}:{line}: {library} may be imported in {sorted(HOMES[library])} only")
        pure = unit in PURE_UNITS or str(path.relative_to(PACKAGE)) in PURE_FILES
        if pure and library in IMPURE:
            found.append(f"{name}:{line}: a pure module imports {library}")
    return found


def test_every_unit_has_a_layer() -> None:
    assert {unit_of(path) for path in sources()} - set(LEVEL) - SUPPORT == set()


def test_the_law_of_imports() -> None:
    assert [line for path in sources() for line in violations(path)] == []


def test_no_two_units_import_each_other() -> None:
    edges: dict[str, set[str]] = {}
    for path in sources():
        edges.setdefault(unit_of(path), set()).update(other for other, _ in units_imported(path))
    mutual = {(a, b) for a, others in edges.items() for b in others if a < b and a in edges.get(b, set())}
    assert mutual == set()


@pytest.mark.parametrize(
    ("place", "line", "part"),
    [
        ("algorithm/x.py", "from fr3e_async.machine.ledger import Ledger", "lies above it"),
        ("algorithm/x.py", "from ..control import ledger", "lies above it"),
        ("config/run.py", "from fr3e_async import loader", "lies above it"),
        ("control/x.py", "def f():\n    import ray.util", "ray may be imported in"),
        ("machine/ledger.py", "import time", "a pure module imports time"),
        ("learner/x.py", "from vllm import LLM", "vllm may be imported in ['rollout']"),
        ("actors/x.py", "from fr3e_async.testing.fakes import fakes", "which is for tests"),
    ],
)
def test_the_law_catches(place: str, line: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "fr3e_async")
    path = tmp_path / "fr3e_async" / place
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(found := violations(path)) == 1
    assert part in found[0]


def test_what_is_allowed_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "fr3e_async")
    path = tmp_path / "fr3e_async" / "actors" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import ray\nimport time\nfrom fr3e_async.control.ports import Delivery\nfrom fr3e_async import __version__\n"
    )
    assert violations(path) == []
