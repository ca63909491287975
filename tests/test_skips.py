"""A skip that CI does not allow fails the run, and the counts of several runs are summed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import pytest

def test_that_passes(): pass

@pytest.mark.skipif(True, reason="{reason}")
def test_that_is_skipped(): raise AssertionError
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
@pytest.mark.parametrize(
    ("reason", "strict", "code"), [("needs a CUDA GPU", "1", 0), ("no such file", "1", 1), ("no such file", "", 0)]
)
def test_which_skips_are_allowed(tmp_path: Path, reason: str, strict: str, code: int, workers: list[str]) -> None:
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_it.py").write_text(TESTS.format(reason=reason), encoding="utf-8")
    environment = os.environ | {"FR3E_TESTS_STRICT": strict, "FR3E_TESTS_COUNTS": str(tmp_path / "counts")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("are not allowed: no such file" in done.stdout) is bool(code)
    (line,) = (tmp_path / "counts").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"passed": 1, "failed": 0, "error": 0, "skipped": {reason: 1}}


def test_counts_are_summed(tmp_path: Path) -> None:
    rows = [
        {"passed": 5, "failed": 0, "error": 0, "skipped": {}},
        {"passed": 2, "failed": 1, "error": 1, "skipped": {"needs a CUDA GPU": 3}},
    ]
    (tmp_path / "counts").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "count_tests.py"), str(tmp_path / "counts")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "12 tests in 2 runs: 7 passed, 1 failed, 1 error, 3 skipped",
        "  3 skipped: needs a CUDA GPU",
    ]
