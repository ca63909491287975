"""``python -m fr3e_async.main config=FILE [key=value ...]``: ``fr3e train``, as ``ray job submit`` and schedulers start it."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
