"""``python -m fr3e_async.simulate``: ``fr3e simulate``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["simulate", *sys.argv[1:]]))
