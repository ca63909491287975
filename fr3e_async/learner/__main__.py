"""``python -m fr3e_async.learner``: ``fr3e replay_step``."""

import sys

from fr3e_async.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["replay_step", *sys.argv[1:]]))
