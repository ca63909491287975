"""``python -m fr3e_async.plan``: ``fr3e plan``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["plan", *sys.argv[1:]]))
