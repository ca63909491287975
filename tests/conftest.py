"""Shared set-up: quiet, unauthenticated Ray for tests, what runs first, and what is left out when there is no time left."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
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

UNTIL = "FR3E_TESTS_UNTIL"  # seconds since the epoch after which no slow test is begun; .ci/run sets it,
TURN = "FR3E_TESTS_TURN"  # and this number, so that what is left out is not always the same
SLOW = ("slow", "ray", "engine")
FIRST = ("end_to_end", "compare", "elastic_ray", "security_ray")  # run in any case
PASSING = re.compile(rf"{date.today().isoformat()}| at 0x[0-9a-f]{{8,}}")
left_out: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in ``FIRST`` before the others, these in an order that turns.

    Names of tests must be the same in every process that collects them: one made of the clock or of an address fails a parallel run, now and then.
    """
    for item in items:
        if PASSING.search(item.nodeid):
            raise pytest.UsageError(f"the name of this test differs from process to process: {item.nodeid}")
    others = list(dict.fromkeys(item.path.stem for item in items if item.path.stem.removeprefix("test_") not in FIRST))
    cut = int(os.environ.get(TURN, 0)) % max(1, len(others))
    order = [*(f"test_{name}" for name in FIRST), *others[cut:], *others[:cut]]
    places = {name: place for place, name in enumerate(order)}
    items.sort(key=lambda item: places[item.path.stem])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if virtual := sys.modules.get("virtual_time"):
        virtual.restart()
    until = os.environ.get(UNTIL)
    always = item.path.stem.removeprefix("test_") in FIRST
    if until and time.time() > float(until) and not always and any(item.get_closest_marker(name) for name in SLOW):
        left_out.append(item.nodeid)
        pytest.skip(f"no time left ({UNTIL}); `make slow` runs it")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left_out:
        terminalreporter.section(f"{len(left_out)} tests were left out, since there was no time left; `make slow` runs them")
        for line in files_of(left_out):
            terminalreporter.line(line)


def files_of(tests: Sequence[str]) -> list[str]:
    """Their files, each with how many of them are in it."""
    files = [test.split("::")[0] for test in tests]
    return [f"{name}: {files.count(name)}" for name in dict.fromkeys(files)]


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
