"""``python -m fr3e_async.plan``: which actor ratios suit a cluster, by simulation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fr3e_async.simulate import commands


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    return commands.guarded(argv, commands.PLAN_USAGE, commands.plan)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
