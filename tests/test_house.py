"""The size of the package's parts, and one name for each class."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parent.parent / "fr3e_async"
MOST_FILES = 250
MOST_LINES = 350  # of a file
MOST_LINES_OF_A_FUNCTION = 60
MEDIAN_LINES_OF_A_FUNCTION = 6
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def test_a_class_has_a_name_of_its_own() -> None:
    """Names that begin with an underscore are a file's own business."""
    homes: dict[str, list[str]] = defaultdict(list)
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
    assert len(homes) > 300


def test_the_package_has_few_files() -> None:
    assert 0 < len(TREES) <= MOST_FILES


def test_no_file_and_no_function_is_long() -> None:
    long = [
        f"{file}: {n} lines"
        for file in TREES
        if (n := len((PACKAGE / file).read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]
    lengths = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lengths.append(lines := node.end_lineno - node.lineno + 1)
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{file}: {node.name} has {lines} lines")
    assert long == []
    assert median(lengths) <= MEDIAN_LINES_OF_A_FUNCTION
