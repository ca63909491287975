"""``python -m fr3e_async.help FILE``: ``fr3e config --refresh FILE``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["config", "--refresh", *sys.argv[1:]]))
