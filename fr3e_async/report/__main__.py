"""``python -m fr3e_async.report``: ``fr3e report``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["report", *sys.argv[1:]]))
