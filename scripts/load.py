"""Tests beside a load: what they say must not depend on what else the machine does.

    python scripts/load.py                                              the fast set, five times at a load of 30
    python scripts/load.py --rounds 2 --load 30 -- tests/test_control_loop.py

Processes that do nothing but compute run while pytest does. They end with this program, however that ends, and after ``--limit-s``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

FAST = ["-m", "not slow and not engine and not ray and not long", "-n", "auto"]
PATIENT = ["--timeout=3000", "-p", "no:cacheprovider"]  # what takes a minute alone may take half an hour here
BUSY = """
import os, sys, time
parent, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == parent and time.monotonic() < end:
    sum(range(100_000))
"""


@contextmanager
def load(count: int, limit_s: float) -> Iterator[None]:
    """So many busy processes, for ``limit_s`` at most."""
    command = [sys.executable, "-S", "-c", BUSY, str(os.getpid()), str(limit_s)]
    busy = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def one_round(number: int, words: Sequence[str]) -> bool:
    """Whether all tests passed. Tells how it went."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", *PATIENT, *words], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    average, seconds = os.getloadavg()[0], time.monotonic() - began
    print(
        f"round {number}: exit {done.returncode} after {seconds:.0f} s, load average {average:.0f}: {lines[-1] if lines else ''}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout, done.stderr, flush=True)
    return done.returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", type=int, default=30, help="busy processes")
    parser.add_argument("--limit-s", type=float, default=4 * 3600.0, help="that they run, at most")
    parser.add_argument("tests", nargs="*", help="words for pytest; none: the fast set")
    args = parser.parse_args(argv)
    with load(args.load, args.limit_s):
        passed = [one_round(number + 1, args.tests or FAST) for number in range(args.rounds)]
    print(f"{sum(passed)} of {len(passed)} rounds passed beside {args.load} busy processes on {os.cpu_count()} cores")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
