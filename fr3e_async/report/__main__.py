"""``python -m fr3e_async.report RUN [RUN …] [--out FILE]``: the page of one or more runs, as one HTML file without network.

Reads the run directories, also of runs that are still going. Exit codes: 0 written; 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fr3e_async.errors import ConfigError, UserError, printable
from fr3e_async.report.page import write_page
from fr3e_async.settings.arguments import CommandParser


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Every error that a person can mend is one line on stderr."""
    try:
        args = parser().parse_args(argv)
        runs = [Path(run).expanduser() for run in args.runs]
        out = Path(args.out).expanduser() if args.out else runs[0] / "report.html"
        if args.trees < 0:
            raise ConfigError(f"--trees is {args.trees}; it must be 0 or more")
        counts = write_page(runs, out, trees=args.trees)
    except UserError as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(printable(f"{out}: {told}, {out.stat().st_size / 1e6:.1f} MB"))
    return 0


def parser() -> CommandParser:
    made = CommandParser(prog="python -m fr3e_async.report", description="Write the page of one or more runs: one HTML file.")
    made.add_argument("runs", metavar="RUN", nargs="+", help="a run directory; the first one gives the colour of its curves")
    made.add_argument("--out", metavar="FILE", help="the page; report.html in the first RUN if not given")
    made.add_argument("--trees", metavar="N", type=int, default=10_000, help="trees kept of each run, evenly over it (10000)")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
