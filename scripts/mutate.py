"""Mutants drawn by seed, each met by the tests that run its lines: ``python scripts/mutate.py`` (``--help``).

Before those that are drawn come the named faults (mutating/named.py). The rows go to ``--rows``, one a mutant; a second call goes on where the first
one ended, and with ``--again`` meets those anew that have lived. What changes nothing that anybody could see stands in docs/mutations/equivalents.jsonl with its argument.
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
    "algorithm/**/*.py", "control/[bdfgiklmopst]*.py", "control/codec.py", "wiring/*.py", "session.py", "resuming.py", "weights/*.py", "learner/checkpoint*.py",
    "learner/metrics.py", "observe/checkpoints.py", "observe/checked.py", "observe/storage.py", "observe/metrics.py", "data/*.py", "verify/*.py",
)  # fmt: skip
ALIVE = ("survived", "uncovered")


def sources(root: Path = ROOT) -> dict[str, str]:
    """Text by name of the files that are mutated."""
    found = {path for pattern in FILES for path in (root / "fr3e_async").glob(pattern)}
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in sorted(found)}


def chosen(texts: Mapping[str, str], *, seed: int, count: int) -> list[Mutation]:
    """The named faults, then ``count`` that are drawn. Raises ``MutationError`` if a named one does not fit its file any more."""
    named = [fault.mutation(texts[fault.file]) for fault in NAMED]
    return named + draw([one for file, text in texts.items() for one in mutations(file, text)], seed=seed, count=count)


def read_rows(path: Path) -> dict[str, Row]:
    """By name of the mutant."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {row["name"]: row for row in rows}


def write_rows(path: Path, rows: Mapping[str, Row], order: Sequence[Mutation]) -> None:
    places = {mutant.name: place for place, mutant in enumerate(order)}
    lines = [
        json.dumps(row, ensure_ascii=False) for row in sorted(rows.values(), key=lambda row: places.get(row["name"], len(places)))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rows: Sequence[Row], equivalents: Mapping[str, Row]) -> str:
    """Markdown: by operator how many were drawn, killed (without an end among them), are equivalent, and live."""
    operators = sorted({row["operator"] for row in rows})
    lines = [
        "| operator | drawn | killed | of them without an end | equivalent | surviving |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, some in [*((name, [row for row in rows if row["operator"] == name]) for name in operators), ("all", rows)]:
        fates = Counter("equivalent" if row["status"] in ALIVE and row["name"] in equivalents else row["status"] for row in some)
        dead, alive = fates["killed"] + fates["timeout"], sum(fates[status] for status in ALIVE)
        lines.append(f"| {name} | {len(some)} | {dead} | {fates['timeout']} | {fates['equivalent']} | {alive} |")
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
    parser.add_argument("--again", action="store_true", help="meet those anew that have lived")
    parser.add_argument("--list", action="store_true", help="list them and run nothing")
    arguments = parser.parse_args(argv)
    try:
        mutants = chosen(sources(), seed=arguments.seed, count=arguments.count)
    except (MutationError, KeyError) as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    rows, names = read_rows(arguments.rows), {mutant.name for mutant in mutants}
    equivalents = read_rows(FOLDER / "equivalents.jsonl")
    if arguments.list:
        print("\n".join(shown(row_of(mutant, "", "")) for mutant in mutants))
        return 0
    open_ones = [
        m
        for m in mutants
        if m.name not in rows or (arguments.again and rows[m.name]["status"] in ALIVE and m.name not in equivalents)
    ]
    _meet(arguments, open_ones, rows, mutants)
    ours = [row for name, row in rows.items() if name in names]
    print(table(ours, equivalents))
    alive = [row for row in ours if row["status"] in ALIVE and row["name"] not in equivalents]
    print("\n".join(shown(row) for row in alive))
    return int(bool(alive))


def _meet(arguments: argparse.Namespace, mutants: Sequence[Mutation], rows: dict[str, Row], order: Sequence[Mutation]) -> None:
    """Each row is written as soon as it is known."""
    bench = Bench(root=ROOT, package="fr3e_async", work=arguments.work, workers=arguments.workers, budget_s=arguments.budget)
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
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
