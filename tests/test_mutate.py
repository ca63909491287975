"""Mutants: what the operators make of small texts, that a draw is the same every time, and a small repository in which some die and some live."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import mutate  # noqa: E402 - from scripts/
from mutating.bench import Bench, CoverageMap, row_of  # noqa: E402
from mutating.named import NAMED, Named  # noqa: E402
from mutating.operators import Mutation, MutationError, draw, mutations  # noqa: E402

CASES = {
    "x = a < b": [("boundary", "x = a <= b"), ("opposite", "x = a >= b")],
    "x = a == b": [("opposite", "x = a != b")],
    "x = 1 < a < 2": [
        ("boundary", "x = 1 <= a < 2"),
        ("opposite", "x = 1 >= a < 2"),
        ("off_by_one", "x = 2 < a < 2"),
        ("off_by_one", "x = 1 < a < 3"),
    ],
    "x = a - b": [("arithmetic", "x = (a + b)")],
    "x = a * (b + c)": [("arithmetic", "x = (a / (b + c))"), ("arithmetic", "x = a * ((b - c))")],
    "x = 'é' + b": [],
    "x = é + b": [("arithmetic", "x = (é - b)")],
    "Kind = One | Two": [],
    "x = one | two": [("arithmetic", "x = (one & two)")],
    "x += a": [("arithmetic", "x -= a")],
    "x = -a": [("sign", "x = (a)")],
    "x = not a": [("sign", "x = (a)")],
    "x = a and b": [("and_or", "x = (a or b)"), ("condition", "x = (b)"), ("condition", "x = (a)")],
    "x = 3": [("off_by_one", "x = 4")],
    "x = True": [("constant", "x = False")],
    "x = 0.5": [("constant", "x = 1.0")],
    "x = 'text'": [],
    "x = a[i:j]": [("off_by_one", "x = a[(i + 1):j]"), ("off_by_one", "x = a[i:(j + 1)]")],
    "x = range(n)": [("off_by_one", "x = range((n + 1))")],
    "close()": [("call", "pass")],
    "x = a if b else c": [("branch", "x = a if not (b) else c")],
    "f(a, b)": [("call", "pass"), ("swap", "f(b, a)")],
    "x = f(*a, b)": [],
    "x = max(a, b)": [],
    "x = f(a=c, b=d)": [("swap", "x = f(a=d, b=c)"), ("keyword", "x = f(b=d)"), ("keyword", "x = f(a=c)")],
    "if a:\n    raise E(1)": [("guard", "if False:\n    raise E(1)")],
    "if a:\n    b = c\nelse:\n    b = d": [("branch", "if not (a):\n    b = c\nelse:\n    b = d")],
    "def f(a: int = 1) -> int:\n    return g(a)": [
        ("off_by_one", "def f(a: int = 2) -> int:\n    return g(a)"),
        ("return", "def f(a: int = 1) -> int:\n    return None"),
    ],
    "@g(1)\nclass A:\n    '''1 < 2'''\n    x: A[1]": [],
    "x = f'{a + 1}'": [],
    "import a\nassert 1 < 2": [],
    "if TYPE_CHECKING:\n    f(1, 2)": [],
}


@pytest.mark.parametrize("text", CASES)
def test_what_the_operators_make(text: str) -> None:
    found = [(mutation.operator, mutation.applied(text)) for mutation in mutations("x.py", text)]
    assert sorted(found) == sorted(CASES[text])


def test_a_mutation_is_known_by_what_it_does_and_not_by_its_line() -> None:
    text = "def f(a, b):\n    x = a < b\n    return a < b\n"
    moved = [mutation.name for mutation in mutations("x.py", "# a comment\n\n" + text)]
    assert [mutation.name for mutation in mutations("x.py", text)] == moved
    assert len(set(moved)) == len(moved) == 4
    assert {mutation.function for mutation in mutations("x.py", text)} == {"f"}


def test_a_mutation_does_not_fit_another_text() -> None:
    (mutation,) = mutations("x.py", "x = a - b")
    with pytest.raises(MutationError, match=r"x\.py: 'a - b' does not stand at byte 4"):
        mutation.applied("y = b - a")


def test_the_lines_of_a_mutation_are_those_of_its_statement_without_what_is_in_it() -> None:
    text = "if f(\n    a < b\n):\n    x = a\n    y = (\n        a - b\n    )\n"
    assert [(mutation.operator, mutation.lines) for mutation in mutations("x.py", text)] == [
        ("branch", (1, 3)), ("boundary", (1, 3)), ("opposite", (1, 3)), ("arithmetic", (5, 7)),
    ]  # fmt: skip


def test_what_runs_with_an_import_is_known() -> None:
    text = "A = 1\nclass B:\n    a: int = 2\n    def f(self, b=3):\n        return 4 + b\n"
    found = {mutation.before: mutation.imported for mutation in mutations("x.py", text) if mutation.operator == "off_by_one"}
    assert found == {"1": True, "2": True, "3": True, "4": False}


def test_a_draw_is_the_same_every_time_and_takes_operators_in_turn() -> None:
    text = "\n".join(f"x{n} = a{n} - b{n}" for n in range(50)) + "\ny = -a\nz = f(a, b)\n"
    all_of = mutations("x.py", text)
    drawn = draw(all_of, seed=1, count=6)
    assert [m.name for m in drawn] == [m.name for m in draw(all_of[::-1], seed=1, count=6)]
    assert [m.name for m in drawn] != [m.name for m in draw(all_of, seed=2, count=6)]
    assert [mutation.operator for mutation in drawn].count("arithmetic") == 4
    fewer = mutations("x.py", text.replace(drawn[0].before, "nothing"))
    assert [m.name for m in draw(fewer, seed=1, count=6)][1:3] == [m.name for m in drawn][1:3]
    assert len(draw(all_of, seed=1, count=1000)) == len(all_of)


def test_named_faults_fit_their_files_and_come_first() -> None:
    texts = mutate.sources()
    found = mutate.chosen(texts, seed=1, count=5)
    assert [mutation.operator for mutation in found].count("named") == len(NAMED)
    for mutation in found:
        compile(mutation.applied(texts[mutation.file]), mutation.file, "exec")
    assert [mutation.function for mutation in found[: len(NAMED)]] == [fault.what for fault in NAMED]


@pytest.mark.parametrize("text", ["a = c\n", "a = b\na = b\n"])
def test_a_named_fault_that_does_not_fit_is_an_error(text: str) -> None:
    fault = Named(what="something", file="x.py", before="a = b", after="a = c")
    with pytest.raises(MutationError, match=r"x\.py: 'a = b' \(something\) stands there [02] times instead of once"):
        fault.mutation(text)


def test_equivalents_are_mutants_of_today_and_have_a_reason() -> None:
    known = {mutation.name for file, text in mutate.sources().items() for mutation in mutations(file, text)}
    for name, row in mutate.read_rows(mutate.FOLDER / "equivalents.jsonl").items():
        assert name in known, f"{row['file']} has no {row['before']!r} -> {row['after']!r} any more"
        assert len(row["why"]) > 20


def test_rows_are_met_again_by_name_or_outcome_and_what_left_the_package_is_gone() -> None:
    texts = mutate.sources()
    a, b, c, *_ = mutations("fr3e_async/machine/sizing.py", texts["fr3e_async/machine/sizing.py"])
    old, dead = mutation_at(1, "fr3e_async/left.py"), mutation_at(2, "fr3e_async/right.py")
    outcomes = ((old, "survived"), (a, "survived"), (b, "killed"), (dead, "killed"), (c, "uncovered"))
    rows = {mutant.name: row_of(mutant, outcome, "") for mutant, outcome in outcomes}
    assert mutate.asked_again(texts, rows, [b.name], {}) == [b]
    assert mutate.asked_again(texts, rows, ["killed"], {}) == [b]
    assert [row["status"] for row in rows.values()] == ["survived", "survived", "killed", "killed", "uncovered"]
    assert mutate.asked_again(texts, rows, [], {c.name: {}}) == [a]
    assert [row["status"] for row in rows.values()] == ["gone", "survived", "killed", "killed", "uncovered"]


def mutation_at(line: int, file: str = "pack/a.py") -> Mutation:
    return Mutation(file=file, function="f", operator="sign", before="-a", after="a", nth=1, start=0, lines=(line, line))


def test_tests_are_chosen_by_their_cost_and_come_file_by_file() -> None:
    covering = CoverageMap()
    covering.add(
        "tests/test_a.py",
        {"tests": {"tests/test_a.py::x": 5, "tests/test_a.py::y": 1}, "lines": {"pack/a.py": {"3": [0, 1]}}},
    )
    covering.add(
        "tests/test_b.py",
        {"tests": {"tests/test_b.py::z": 2, "tests/test_b.py::w": 90}, "lines": {"pack/a.py": {"3": [0], "4": [-1]}}},
    )
    assert covering.of(mutation_at(3), 60) == (["tests/test_b.py::z", "tests/test_a.py::y", "tests/test_a.py::x"], 0)
    assert covering.of(mutation_at(3), 3) == (["tests/test_a.py::y", "tests/test_b.py::z"], 1)
    assert covering.of(mutation_at(4), 60) == (["tests/test_b.py::z"], 1)  # a fixture of many tests
    assert covering.of(mutation_at(1), 1000)[1] == 0
    assert len(covering.of(mutation_at(1), 1000)[0]) == 4  # what an import runs, or another process, or nobody
    assert covering.of(mutation_at(3, "pack/b.py"), 1000)[0] == covering.of(mutation_at(1), 1000)[0]  # those of its folder
    assert covering.of(mutation_at(3, "other/b.py"), 60) == ([], 0)


def test_the_table_counts_each_mutant_once() -> None:
    (one, *_) = mutants = [mutation_at(line, f"pack/{line}.py") for line in range(6)]
    outcomes = ("killed", "timeout", "survived", "survived", "uncovered", "gone")
    rows = [row_of(mutant, outcome, "") for mutant, outcome in zip(mutants, outcomes, strict=True)]
    lines = mutate.table(rows, {mutants[0].name: {}, mutants[2].name: {}}).splitlines()
    assert lines[2:] == ["| sign | 6 | 2 | 1 | 1 | 1 | 2 |", "| all | 6 | 2 | 1 | 1 | 1 | 2 |"]
    assert mutate.shown(rows[0]) == f"{one.name} pack/0.py:0 f [sign] -a  ->  a"


CODE = '''"""Sums."""

LIMIT = 3


def total(values):
    found = 0
    for value in values:
        if value > LIMIT:
            continue
        found += value
    return found


def never():
    return [][0]


def count(n):
    while n > 0:
        n = n - 1
    return n
'''
TESTS = """
from pack.sums import count, total

def test_nothing():
    assert total([]) == 0

def test_small_ones():
    assert total([1, 2, 9]) == 3

def test_a_large_one():
    assert total([9]) == 0

def test_it_ends():
    assert count(2) == 0
"""
MORE = """
from pack.sums import total

def test_one():
    total([1])

def test_two():
    total([2])
"""
LAST = """
from pack.sums import total

def test_the_limit():
    assert total([3]) == 3
"""


def test_a_small_repository(tmp_path: Path) -> None:
    for name, text in {
        "pack/__init__.py": "",
        "pack/sums.py": CODE,
        "tests/test_sums.py": TESTS,
        "tests/test_more.py": MORE,
        "tests/test_last.py": LAST,
        "tests/test_bad.py": "def test_bad():\n    assert 0\n",
    }.items():
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / name).write_text(text)
    bench = Bench(root=tmp_path / "it", package="pack", work=tmp_path / "work", workers=1, heavy=(), least_s=1)
    lines: list[str] = []
    covering = bench.maps(lines.append)
    assert sorted(lines) == [
        "map of tests/test_bad.py: 0 tests, 0 s, 1 left out",
        "map of tests/test_last.py: 1 tests, 0 s, 0 left out",
        "map of tests/test_more.py: 2 tests, 0 s, 0 left out",
        "map of tests/test_sums.py: 4 tests, 0 s, 0 left out",
    ]
    bench.maps(lines.append)
    assert len(lines) == 4  # kept
    wanted = [("opposite", "total"), ("off_by_one", ""), ("boundary", "total"), ("off_by_one", "never"), ("arithmetic", "count")]
    drawn = [next(m for m in mutations("pack/sums.py", CODE) if (m.operator, m.function) == which) for which in wanted]
    rows = {row["name"]: row for row in bench.meet(drawn, covering)}
    assert [rows[mutation.name]["status"] for mutation in drawn] == ["killed", "survived", "killed", "survived", "timeout"]
    assert rows[drawn[2].name]["by"] == "tests/test_last.py::test_the_limit"  # met after those that know the line better
    assert rows[drawn[0].name]["by"].startswith("tests/test_sums.py::")
    assert (tmp_path / "it" / "pack" / "sums.py").read_text() == CODE
