"""``python -m fr3e_async.replay``: ``fr3e replay``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["replay", *sys.argv[1:]]))
