"""No test reads what is private: an attribute whose name begins with one underscore belongs to its object alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Of other libraries, which have no public name for it.
FOREIGN = {"os._exit", "layer._parameters", "psutil.virtual_memory()._replace", "ray._private"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def violations(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every private name that a file takes from another object or module of the package."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if private(name) and ast.unparse(node) not in FOREIGN:
                yield node.lineno, ast.unparse(node)
            case ast.ImportFrom(module=str(module)) if module.startswith("fr3e_async"):
                yield from ((node.lineno, alias.name) for alias in node.names if private(alias.name))
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[_, ast.Constant(value=str(name)), *_]) if private(name):
                yield node.lineno, ast.unparse(node)


def test_no_test_reads_a_private_attribute() -> None:
    found = [f"{path.name}:{line}: {text}" for path in sorted(TESTS.glob("*.py")) for line, text in violations(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("world.controller._table", 1), ("super()._call()", 1), ("self._own = other.public", 0), ("self.part._own", 1),
        ("monkeypatch.setattr(module, '_LIMIT', 1)", 1), ("from fr3e_async.x import _f", 1), ("x.__class__", 0), ("os._exit(1)", 0),
    ],
)  # fmt: skip
def test_the_law_sees(source: str, count: int) -> None:
    assert len(list(violations(source))) == count
