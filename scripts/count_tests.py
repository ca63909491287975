"""Print what the runs of pytest that wrote to a file of counts (``FR3E_TESTS_COUNTS``) did together: ``python scripts/count_tests.py FILE``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path


def lines(text: str) -> list[str]:
    """One line of totals, then a line for each reason to skip."""
    runs = [json.loads(line) for line in text.splitlines()]
    totals = {outcome: sum(run[outcome] for run in runs) for outcome in ("passed", "failed", "error")}
    skips: Counter[str] = Counter()
    for run in runs:
        skips.update(run["skipped"])
    tests = sum(totals.values()) + skips.total()
    said = ", ".join(f"{count} {outcome}" for outcome, count in totals.items())
    return [
        f"{tests} tests in {len(runs)} runs: {said}, {skips.total()} skipped",
        *(f"  {n} skipped: {why}" for why, n in skips.items()),
    ]


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]).read_text(encoding="utf-8"))))
