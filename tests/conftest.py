"""Shared set-up: quiet, unauthenticated Ray for tests, stable names, and which tests were skipped and why."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A deadline for each example would fail a test for what else the machine does, and so would a limit on how long examples take to draw.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

STRICT = "FR3E_TESTS_STRICT"  # set by .ci/run: a skip for anything but a missing GPU fails the run
COUNTS = "FR3E_TESTS_COUNTS"  # a file to which each run of pytest adds a line of JSON: how many tests, and why which were skipped
NEEDS_GPU = re.compile(r"needs (a CUDA GPU|two GPUs)")
PASSING = re.compile(rf"{date.today().isoformat()}| at 0x[0-9a-f]{{8,}}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test whose name is made of the clock or of an address: names must be the same in every process that collects them."""
    for item in items:
        if PASSING.search(item.nodeid):
            raise pytest.UsageError(f"the name of this test differs from process to process: {item.nodeid}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Count what ran and what was skipped; under ``FR3E_TESTS_STRICT`` fail for a skip that CI does not allow."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return  # a worker of xdist: the process that started it counts
    skips = Counter(reason_of(report) for report in reporter.stats.get("skipped", []))
    if path := os.environ.get(COUNTS):
        outcomes = {outcome: len(reporter.stats.get(outcome, [])) for outcome in ("passed", "failed", "error")}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**outcomes, "skipped": skips}) + "\n")
    if os.environ.get(STRICT) and (refused := [reason for reason in skips if not NEEDS_GPU.search(reason)]):
        reporter.write_line(f"{STRICT}: these skips are not allowed: {'; '.join(refused)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if virtual := sys.modules.get("virtual_time"):
        virtual.restart()


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for tests that skip without it (``browser_support.missing``)."""
    from browser_support import chromium  # by its tests alone

    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two small runs."""
    from browser_support import two_small_runs

    return two_small_runs(tmp_path_factory.mktemp("page"))
