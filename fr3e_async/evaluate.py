"""``python -m fr3e_async.evaluate``: ``fr3e evaluate``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
