"""``python -m fr3e_async.audit``: ``fr3e audit``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["audit", *sys.argv[1:]]))
