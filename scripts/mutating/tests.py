"""Tests in a process that is thrown away: with a coverage map as the result, or the first test that fails.

The package and its tests are imported again in each child, from a copy of the repository.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

LOOK_S = 0.02


def forked(work: Callable[[], int], *, log: Path, cpu_s: float, wall_s: float) -> int | None:
    """The exit code of ``work`` in a child, or None if it needed more than it may: CPU seconds of one process, or wall seconds of all. What the child
    has started ends with it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s) + 1, int(cpu_s) + 2))
            handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            code = work()
        finally:
            os._exit(code)
    until = time.monotonic() + wall_s
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
        time.sleep(LOOK_S)
    _end_the_rest()
    return None if os.WIFSIGNALED(ended[1]) else os.waitstatus_to_exitcode(ended[1])


def adopt() -> None:
    """What a child leaves behind becomes a child of this process, so that it can be ended (Linux, PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _end_the_rest() -> None:
    import psutil

    rest = psutil.Process().children(recursive=True)
    for process in rest:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(rest, timeout=10)


def run(copy: Path, arguments: Sequence[str], plugin: object) -> int:
    """pytest on a copy of the repository, in this process. Hypothesis draws the same examples every time and does not shrink what fails."""
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    settings.register_profile(
        "the same every time", derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "--tb=short", "--no-header", f"--rootdir={copy}"]
    return int(pytest.main([*options, *arguments], plugins=[_Same(), plugin]))


class _Same:
    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:  # conftest.py has loaded its own by now
        settings.load_profile("the same every time")


def used_s() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


class Mapping:
    """Which lines each test runs. What a fixture of many tests does counts for all tests of the file."""

    def __init__(self, copy: Path, package: str) -> None:
        from coverage import Coverage

        self._copy, self._seconds, self._bad = copy, {}, set()  # type: ignore[var-annotated]
        self._coverage = Coverage(data_file=None, config_file=False, source=[str(copy / package)], messages=False)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        began = used_s()
        result = yield
        self._seconds[item.nodeid] = round(used_s() - began, 3)
        self._coverage.switch_context("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        self._coverage.switch_context("many")
        result = yield
        self._coverage.switch_context(request.node.nodeid if isinstance(request.node, pytest.Item) else "many")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._bad.add(report.nodeid)

    def result(self) -> dict[str, Any]:
        """Tests that pass with their CPU seconds, what did not pass, and the tests of each line by their numbers, -1 for fixtures of many tests."""
        self._coverage.stop()
        data = self._coverage.get_data()
        tests = {test: seconds for test, seconds in self._seconds.items() if test not in self._bad}
        numbers = {test: number for number, test in enumerate(tests)} | {"many": -1}
        lines: dict[str, dict[int, list[int]]] = {}
        for file in sorted(data.measured_files()):
            of_file = {
                line: found
                for line, contexts in sorted(data.contexts_by_lineno(file).items())
                if (found := sorted(numbers[name] for name in contexts if name in numbers))
            }
            lines[str(Path(file).relative_to(self._copy))] = of_file
        return {"tests": tests, "left_out": sorted(self._bad), "lines": lines}


class FirstFailure:
    """Run these tests alone, in this order by files, and keep the first that fails."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._places = {test: place for place, test in enumerate(tests)}
        self.failed, self.stuck = "", False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._places), key=lambda item: self._places[item.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed, self.stuck = report.nodeid, "from pytest-timeout" in report.longreprtext


@contextmanager
def replaced(path: Path, text: str, number: int) -> Iterator[None]:
    """Another text in a file. Its time is one that no other text of the file has had: byte code is known by time and size."""
    before, status = path.read_bytes(), path.stat()
    path.write_text(text, encoding="utf-8")
    os.utime(path, (status.st_atime, status.st_mtime + 60 + number))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
