"""Mutants met by the tests that run their lines, in worker processes that have a copy of the repository each.

sources ─► map of each test file (kept, by the hashes of what it depends on) ─► mutant ─► its tests, cheapest first ─► row
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mutating.operators import Mutation

LEFT_OUT = (".git", ".venv", "build", "dist", "site", "runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
MARKS = "not slow and not engine and not ray and not long and not gpu"
HEAVY = (  # imported once in each worker, before its children; no threads may come of it
    "numpy", "torch", "hypothesis.strategies", "omegaconf", "safetensors.torch", "tokenizers", "transformers", "ray", "math_verify", "scipy", "rich",
    "tensorboard", "datasets", "aiohttp", "yaml", "psutil",
)  # fmt: skip
ELSEWHERE = (  # tests of what is not mutated: they would make the map dear and kill little
    "test_mutate.py", "test_bench*", "test_cli*", "test_cluster*", "test_compare*", "test_configs*", "test_docs*", "test_locks*", "test_monitoring*",
    "test_observe_console*", "test_observe_prometheus*", "test_observe_trackers*", "test_packaging*", "test_plan*", "test_report*", "test_simulate*", "test_toy*",
)  # fmt: skip
STUCK_S = 60  # wall seconds after which a test of a mutant has failed
FIRST = 2  # files of tests that a mutant meets before the others
MAP_CPU_S, MAP_WALL_S = 900.0, 1800.0  # for one test file
FIXTURE = -1  # in place of a test's number
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """``root``: the repository. ``package``: what is mutated. ``work``: what may be thrown away. ``budget_s``: CPU seconds of tests for one mutant."""

    root: Path
    package: str
    work: Path
    workers: int = 2
    budget_s: float = 60.0
    heavy: tuple[str, ...] = HEAVY
    least_s: int = 20  # CPU seconds that a mutant may need in any case, its imports among them
    only: tuple[str, ...] = ()  # names of test files: no others
    patience: float = 1.0  # times the wall seconds that a mutant may need; more where a machine is busy

    def test_files(self) -> list[str]:
        names = sorted(path.name for path in (self.root / "tests").glob("test_*.py"))
        left_out = [name for name in names if any(fnmatch(name, pattern) for pattern in ELSEWHERE)]
        return [f"tests/{name}" for name in names if (name in self.only if self.only else name not in left_out)]

    def maps(self, say: Callable[[str], None]) -> CoverageMap:
        """Made where there is none yet for what a test file depends on."""
        shared = _digest([*sorted((self.root / self.package).rglob("*.py")), *self._support()])
        whole, missing = CoverageMap(), {}
        (self.work / "maps").mkdir(parents=True, exist_ok=True)
        for file in self.test_files():
            kept = self.work / "maps" / f"{Path(file).stem}-{shared}-{_digest([self.root / file])}.json"
            if kept.is_file():
                whole.add(file, json.loads(kept.read_text()))
            else:
                missing[file] = kept
        largest_first = sorted(missing, key=lambda file: -(self.root / file).stat().st_size)
        for file, result in self._work(_map, [(file,) for file in largest_first]):
            missing[file].write_text(json.dumps(result))
            whole.add(file, result)
            say(
                f"map of {file}: {len(result['tests'])} tests, {sum(result['tests'].values()):.0f} s, {len(result['left_out'])} left out"
            )
        return whole

    def meet(self, mutants: Sequence[Mutation], covering: CoverageMap) -> Iterator[Row]:
        """A row for each, as they end."""
        jobs = []
        for number, mutant in enumerate(mutants):
            tests, left_out = covering.of(mutant, self.budget_s)
            if tests:
                jobs.append((mutant, number, tests, left_out, covering.seconds(tests)))
            else:
                yield row_of(mutant, "uncovered", "")
        for _, row in self._work(_meet, jobs):
            yield row

    def _support(self) -> list[Path]:
        return sorted(path for path in (self.root / "tests").glob("*.py") if not path.name.startswith("test_"))

    def _work(self, work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
        """(first argument, result) of each job."""
        if not jobs:
            return
        context = get_context("spawn")
        with ProcessPoolExecutor(min(self.workers, len(jobs)), context, initializer=_begin, initargs=(self,)) as pool:
            futures = {pool.submit(work, *job): job[0] for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()


@dataclass(slots=True)
class CoverageMap:
    """The tests of each line of each file of the package."""

    cost: dict[str, float] = field(default_factory=dict)  # CPU seconds by test
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)

    def add(self, file: str, result: Row) -> None:
        """What ``tests.Mapping`` has found of a test file."""
        tests = list(result["tests"])
        self.cost |= result["tests"]
        for source, lines in result["lines"].items():
            of_source = self.lines.setdefault(source, {})
            for line, numbers in lines.items():
                named = tests if FIXTURE in numbers else [tests[number] for number in numbers if number >= 0]
                of_source.setdefault(int(line), set()).update(named)

    def of(self, mutant: Mutation, budget_s: float) -> tuple[list[str], int]:
        """(tests, how many more there are): the cheapest that need no more than ``budget_s`` together, file by file, first those that have many a second.

        What runs in other processes or never is met by the tests of the whole file; what runs with an import, and a file that no test is seen
        to run, by those of its folder.
        """
        lines, places = self.lines.get(mutant.file, {}), range(mutant.lines[0], mutant.lines[1] + 1)
        folder = [of_file for file, of_file in self.lines.items() if Path(file).parent == Path(mutant.file).parent]
        seen = set().union(*(lines.get(line, ()) for line in places)) or set().union(*lines.values())
        found = (
            seen if seen and not mutant.imported else set().union(*(tests for of_file in folder for tests in of_file.values()))
        )
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda test: (self.cost[test], test)):
            if chosen and total + self.cost[test] > budget_s:
                break
            chosen.append(test)
            total += self.cost[test]
        by_file: dict[str, list[str]] = {}
        for test in chosen:
            by_file.setdefault(test.split("::")[0], []).append(test)
        in_order = sorted(by_file.values(), key=lambda tests: (-len(tests) / (1 + self.seconds(tests)), tests))
        return [test for tests in in_order for test in tests], len(found) - len(chosen)

    def seconds(self, tests: Iterable[str]) -> float:
        return sum(self.cost[test] for test in tests)


def _digest(paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:12]


def row_of(mutant: Mutation, status: str, by: str, tests: int = 0, left_out: int = 0) -> Row:
    return {
        "name": mutant.name, "file": mutant.file, "line": mutant.lines[0], "function": mutant.function, "operator": mutant.operator,
        "before": mutant.before, "after": mutant.after, "nth": mutant.nth, "status": status, "by": by, "tests": tests, "tests_left_out": left_out,
    }  # fmt: skip


# ---- in a worker ----

_bench: Bench
_copy: Path


def _begin(bench: Bench) -> None:
    global _bench, _copy
    from mutating import tests

    _bench, here = bench, bench.work / f"worker-{os.getpid()}"
    _copy = here / bench.root.name
    shutil.copytree(bench.root, _copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for link, target in ((_copy / ".venv", bench.root / ".venv"), (here / "shared", bench.root.parent / "shared")):
        if target.exists():
            link.symlink_to(target.resolve())
    kept = Path("~/.cache/fr3e_async").expanduser()  # a mutant may not write to it
    if kept.is_dir():
        shutil.copytree(kept, here / "home" / ".cache" / "fr3e_async")
    (here / "tmp").mkdir()
    os.environ |= {
        "HOME": str(here / "home"), "TMPDIR": str(here / "tmp"), "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    os.environ.pop("PYTHONUNBUFFERED", None)  # a line that is not flushed gets lost, as it would elsewhere
    for name in bench.heavy:
        __import__(name)
    tests.adopt()


def _map(file: str) -> Row:
    """In a child that writes byte code, which the mutants then need not make."""
    from mutating import tests

    def work() -> int:
        plugin = tests.Mapping(_copy, _bench.package)
        tests.run(_copy, ["-m", MARKS, file], plugin)
        out.write_text(json.dumps(plugin.result()))
        return 0

    out = _copy.parent / "map.json"
    out.unlink(missing_ok=True)
    _forked(work, cpu_s=MAP_CPU_S, wall_s=MAP_WALL_S)
    empty: Row = {"tests": {}, "left_out": [file], "lines": {}}
    return json.loads(out.read_text()) if out.is_file() else empty


def _meet(mutant: Mutation, number: int, chosen: Sequence[str], left_out: int, seconds: float) -> Row:
    from mutating import tests

    def work() -> int:
        plugin, code = tests.FirstFailure(chosen), 0
        files = list(dict.fromkeys(test.split("::")[0] for test in chosen))
        for part in filter(
            None, (files[:FIRST], files[FIRST:])
        ):  # most die of the first, and the imports of the others are saved
            code = code or tests.run(_copy, ["-x", f"--timeout={STUCK_S * _bench.patience:g}", *part], plugin)
        out.write_text(json.dumps({"code": code, "failed": plugin.failed, "stuck": plugin.stuck}))
        return 0

    out = _copy.parent / "met.json"
    out.unlink(missing_ok=True)
    path = _copy / mutant.file
    with tests.replaced(path, mutant.applied(path.read_text(encoding="utf-8")), number):
        ended = _forked(work, cpu_s=_bench.least_s + 3 * seconds, wall_s=_bench.patience * (120 + 6 * seconds))
    met = json.loads(out.read_text()) if out.is_file() else {"code": -1, "failed": "", "stuck": False}
    if ended is None or met["stuck"]:
        return row_of(mutant, "timeout", met["failed"], len(chosen), left_out)
    if met["failed"] or met["code"] != 0:
        return row_of(mutant, "killed", met["failed"] or f"(pytest ended with {met['code']})", len(chosen), left_out)
    return row_of(mutant, "survived", "", len(chosen), left_out)


def _forked(work: Callable[[], int], *, cpu_s: float, wall_s: float) -> int | None:
    from mutating import tests

    ended = tests.forked(work, log=_copy.parent / "log.txt", cpu_s=cpu_s, wall_s=wall_s)
    shutil.rmtree(_copy.parent / "tmp", ignore_errors=True)
    (_copy.parent / "tmp").mkdir(exist_ok=True)
    return ended
