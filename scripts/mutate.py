"""Mutants drawn by seed, each met by the tests that run its lines: ``python scripts/mutate.py`` (``--help``).

Before those that are drawn come the named faults (mutating/named.py). The rows go to ``--rows``, one a mutant; a second call resumes where the first
one ended. ``--again`` meets rows again whatever is drawn today: those that lived, or those of the names or outcomes that follow. What changes nothing that anybody could see stands in docs/mutations/equivalents.jsonl with its argument.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mutating.bench import Bench, Row, row_of
from mutating.named import NAMED
from mutating.operators import Mutation, MutationError, draw, mutations

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "mutations"
FILES = (
    "algorithm/**/*.py", "machine/*.py", "control/[dlpt]*.py", "control/checkpointing.py", "control/context.py", "control/evaluating.py", "store/journal.py", "wiring/*.py", "run/session.py", "run/resume.py", "weights/*.py", "learner/checkpoint*.py",
    "learner/metrics.py", "store/checkpoints.py", "files/jsonl.py", "files/durable.py", "observe/metrics.py", "data/*.py", "verify/*.py",
)  # fmt: skip
ALIVE = ("survived", "uncovered")
GONE = "gone"  # it lived, and its text has left the package since


def sources(root: Path = ROOT) -> dict[str, str]:
    """Text by name of the files that are mutated."""
    found = {path for pattern in FILES for path in (root / "fr3e_async").glob(pattern)}
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in sorted(found)}


def chosen(texts: Mapping[str, str], *, seed: int, count: int) -> list[Mutation]:
    """The named faults, then ``count`` that are drawn. Raises ``MutationError`` if a named one does not fit its file any more."""
    return named_ones(texts) + draw(all_of(texts), seed=seed, count=count)


def named_ones(texts: Mapping[str, str]) -> list[Mutation]:
    return [fault.mutation(texts[fault.file]) for fault in NAMED]


def all_of(texts: Mapping[str, str]) -> list[Mutation]:
    return [one for file, text in texts.items() for one in mutations(file, text)]


def asked_again(
    texts: Mapping[str, str], rows: dict[str, Row], wanted: Sequence[str], equivalents: Mapping[str, Row]
) -> list[Mutation]:
    """Those of ``rows`` of which a name or an outcome is wanted (none: that lived); what lived and is no text of today is gone."""
    found = {
        name for name, row in rows.items() if (name in wanted or row["status"] in (wanted or ALIVE)) and name not in equivalents
    }
    today = {one.name: one for one in named_ones(texts) + all_of(texts)}
    for name in found - today.keys():
        if rows[name]["status"] in ALIVE:
            rows[name] = rows[name] | {"status": GONE}
    return [today[name] for name in rows if name in found and name in today]


def read_rows(path: Path) -> dict[str, Row]:
    """By name of the mutant."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {row["name"]: row for row in rows}


def write_rows(path: Path, rows: Mapping[str, Row], order: Sequence[str]) -> None:
    places = {name: place for place, name in enumerate(order)}
    lines = [
        json.dumps(row, ensure_ascii=False) for row in sorted(rows.values(), key=lambda row: places.get(row["name"], len(places)))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rows: Sequence[Row], equivalents: Mapping[str, Row]) -> str:
    """Markdown: by operator how many were drawn, killed (without an end among them), are equivalent, left the package, and live."""
    operators = sorted({row["operator"] for row in rows})
    lines = [
        "| operator | drawn | killed | of them without an end | equivalent | gone | surviving |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, some in [*((name, [row for row in rows if row["operator"] == name]) for name in operators), ("all", rows)]:
        outcomes = Counter(
            "equivalent" if row["status"] in ALIVE and row["name"] in equivalents else row["status"] for row in some
        )
        dead, alive = outcomes["killed"] + outcomes["timeout"], sum(outcomes[status] for status in ALIVE)
        lines.append(
            f"| {name} | {len(some)} | {dead} | {outcomes['timeout']} | {outcomes['equivalent']} | {outcomes[GONE]} | {alive} |"
        )
    return "\n".join(lines)


def shown(row: Row) -> str:
    before, after = (" ".join(row[key].split()) for key in ("before", "after"))
    return f"{row['name']} {row['file']}:{row['line']} {row['function']} [{row['operator']}] {before}  ->  {after}"


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 all are dead or equivalent; 1 some live; 2 a named fault does not fit, or an equivalent is none of today's mutants."""
    parser = argparse.ArgumentParser(prog="scripts/mutate.py", description="Meet mutants of the package with its tests.")
    parser.add_argument("--seed", type=int, default=34)
    parser.add_argument("--count", type=int, default=200, help="how many are drawn (200)")
    parser.add_argument("--rows", type=Path, default=FOLDER / "rows.jsonl")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "mutations", help="coverage maps and copies of the repository"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--budget", type=float, default=60.0, help="CPU seconds of tests for one mutant (60), the cheapest first")
    parser.add_argument(
        "--again", nargs="*", metavar="NAME", help="meet rows again: those that lived, or of these names or outcomes"
    )
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times the wall seconds of a mutant (1); more on a busy machine"
    )
    parser.add_argument(
        "--tests", nargs="+", default=(), metavar="test_x.py", help="no other test files: soon done after new tests"
    )
    parser.add_argument("--list", action="store_true", help="list them and run nothing")
    arguments = parser.parse_args(argv)
    rows, equivalents = read_rows(arguments.rows), read_rows(FOLDER / "equivalents.jsonl")
    try:
        if arguments.again is None:
            mutants = chosen(sources(), seed=arguments.seed, count=arguments.count)
        else:
            mutants = asked_again(sources(), rows, arguments.again, equivalents)
    except (MutationError, KeyError) as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    names = [mutant.name for mutant in mutants] if arguments.again is None else list(rows)
    if arguments.list:
        print("\n".join(shown(row_of(mutant, "", "")) for mutant in mutants))
        return 0
    open_ones = [mutant for mutant in mutants if arguments.again is not None or mutant.name not in rows]
    _meet(arguments, open_ones, rows, names)
    ours = [rows[name] for name in names]
    print(table(ours, equivalents))
    alive = [row for row in ours if row["status"] in ALIVE and row["name"] not in equivalents]
    print("\n".join(shown(row) for row in alive))
    return int(bool(alive))


def _meet(arguments: argparse.Namespace, mutants: Sequence[Mutation], rows: dict[str, Row], order: Sequence[str]) -> None:
    """Each row is written as soon as it is known."""
    bench = Bench(
        root=ROOT,
        package="fr3e_async",
        work=arguments.work,
        workers=arguments.workers,
        budget_s=arguments.budget,
        only=tuple(arguments.tests),
        patience=arguments.patience,
    )
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        write_rows(arguments.rows, rows, order)
        covering = bench.maps(lambda text: print(text, file=sys.stderr, flush=True))
        for done, row in enumerate(bench.meet(mutants, covering), start=1):
            rows[row["name"]] = row
            write_rows(arguments.rows, rows, order)
            print(f"{done}/{len(mutants)} {row['status']} {shown(row)}", file=sys.stderr, flush=True)
    finally:
        for copy in arguments.work.glob("worker-*"):
            shutil.rmtree(copy, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
