"""Tests beside a load: what they say must not depend on what else the machine does.

    python scripts/load.py                                              the fast set, five times at a load of 30
    python scripts/load.py --rounds 2 --load 30 -- tests/test_control_loop.py
    python scripts/load.py --share 0.06 -- tests/test_control_loop.py   without a load: the tests are stopped but for that part of the time

Processes that do nothing but compute run while pytest does. They end with this program, however that ends, and after ``--limit-s``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TURN_S = 0.02  # that tests run at a time, about
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
    """Keep ``count`` processes computing while the block runs, for ``limit_s`` seconds at most."""
    command = [sys.executable, "-S", "-c", BUSY, str(os.getpid()), str(limit_s)]
    busy = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


def run(command: Sequence[str], share: float) -> tuple[int, str]:
    """Run the command: (exit code, its output). ``share`` < 1: it runs for that part of the time, in turns of uneven length."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while share < 1 and process.poll() is None:
                time.sleep(TURN_S * random.uniform(0.5, 1.5))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGSTOP)
                    time.sleep(TURN_S * (1 / share - 1) * random.uniform(0.5, 1.5))
                    os.killpg(process.pid, signal.SIGCONT)
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # nobody would wake it any more
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        return code, said.read()


def one_round(number: int, words: Sequence[str], share: float) -> bool:
    """Whether all tests passed. Tells how it went."""
    began = time.monotonic()
    code, said = run([sys.executable, "-m", "pytest", *PATIENT, *words], share)
    lines = said.strip().splitlines()
    average, seconds = os.getloadavg()[0], time.monotonic() - began
    print(
        f"round {number}: exit {code} after {seconds:.0f} s, load average {average:.0f}: {lines[-1] if lines else ''}",
        flush=True,
    )
    if code:
        print(said, flush=True)
    return code == 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", type=int, default=30, help="busy processes")
    parser.add_argument(
        "--share", type=float, default=1.0, help="part of the time that the tests may run; below 1 there is no load"
    )
    parser.add_argument("--limit-s", type=float, default=4 * 3600.0, help="that they run, at most")
    parser.add_argument("tests", nargs="*", help="words for pytest; none: the fast set")
    args = parser.parse_args(argv)
    count = args.load if args.share >= 1 else 0
    with load(count, args.limit_s):
        passed = [one_round(number + 1, args.tests or FAST, args.share) for number in range(args.rounds)]
    print(
        f"{sum(passed)} of {len(passed)} rounds passed beside {count} busy processes, for {args.share:.0%} of the time, on {os.cpu_count()} cores"
    )
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
