"""``python -m fr3e_async.export``: ``fr3e export``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["export", *sys.argv[1:]]))
