"""The law of imports: one order of the rooms, purity by folder, and each heavy library only where it lives. By AST, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fr3e_async"

# Rooms (top-level modules and packages of fr3e_async) from the lowest to the highest. A room imports from rooms below it, without exception.
ORDER = (
    "__init__", "errors", "clock", "signals", "outcomes", "types", "config", "algorithm", "files", "settings", "data", "weights", "verify", "rollout", "learner",
    "evaluation", "machine", "store", "observe", "control", "actors", "simulate", "plan", "wiring", "report", "notebook", "run", "cli", "entries",
)  # fmt: skip
ENTRIES = {"main", "evaluate", "audit", "replay", "export", "help"}
LEVEL = {room: level for level, room in enumerate(ORDER)}
SUPPORT = {"testing"}  # fakes for tests; nothing else may import them

# Heavy library → rooms that may import it.
HOMES = {
    "click": {"cli"},
    "ray": {"wiring", "actors"},
    "vllm": {"rollout"},
    "deepspeed": {"learner"},
    "omegaconf": {"settings"},
    "pydantic": {"config", "settings"},
    "math_verify": {"verify"},
    "wandb": {"observe"},
    "mlflow": {"observe"},
}
# What a pure room must not know: libraries that do things, and the sources of clock, chance, files and logs.
IMPURE = {
    *HOMES.keys() - {"pydantic"}, "time", "logging", "random", "asyncio", "threading", "subprocess", "socket", "datetime",
    "os", "io", "sys", "shutil", "tempfile", "multiprocessing", "signal", "uuid", "secrets", "psutil", "urllib", "http",
}  # fmt: skip
PURE = {"machine", "algorithm", "config", "outcomes", "types", "errors"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """What ``python -m`` starts is of one room, above all others: five lines that call ``cli``."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "entries" if path.name == "__main__.py" or name in ENTRIES else name


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


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    """Other rooms that a file imports from."""
    for module, line in imported(path):
        parts = module.split(".")
        if parts[0] == "fr3e_async" and len(parts) > 1 and parts[1] not in ("__version__", room_of(path)):
            yield parts[1], line


def violations(path: Path) -> list[str]:
    room, name = room_of(path), str(path.relative_to(ROOT))
    found = []
    for other, line in rooms_imported(path):
        if room in SUPPORT:
            continue
        if other in SUPPORT:
            found.append(f"{name}:{line}: {room} imports {other}, which is for tests")
        elif LEVEL[other] > LEVEL[room]:
            found.append(f"{name}:{line}: {room} imports {other}, which lies above it")
    for module, line in imported(path):
        library = module.partition(".")[0]
        if library in HOMES and room not in HOMES[library] | SUPPORT:
            found.append(f"{name}:{line}: {library} may be imported in {sorted(HOMES[library])} only")
        if room in PURE and library in IMPURE:
            found.append(f"{name}:{line}: a pure room imports {library}")
    return found


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room_of(path) for path in sources()} - SUPPORT == set(ORDER)


def test_the_law_of_imports() -> None:
    assert [line for path in sources() for line in violations(path)] == []


@pytest.mark.parametrize(
    ("place", "line", "part"),
    [
        ("algorithm/x.py", "from fr3e_async.machine.ledger import Ledger", "lies above it"),
        ("algorithm/x.py", "from ..machine import ledger", "lies above it"),
        ("config/run.py", "from fr3e_async import settings", "lies above it"),
        ("data/x.py", "from fr3e_async.store.run_dir import RunDir", "lies above it"),
        ("rollout/x.py", "from fr3e_async.learner.spec import LearnerSpec", "lies above it"),
        ("control/x.py", "def f():\n    import ray.util", "ray may be imported in"),
        ("machine/x.py", "import time", "a pure room imports time"),
        ("algorithm/x.py", "def f():\n    import os", "a pure room imports os"),
        ("learner/x.py", "from vllm import LLM", "vllm may be imported in ['rollout']"),
        ("actors/x.py", "from fr3e_async.testing import fakes", "which is for tests"),
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
