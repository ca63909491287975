"""``python -m fr3e_async.verify``: ``fr3e verify``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["verify", *sys.argv[1:]]))
