"""``python -m fr3e_async.learner``: ``fr3e replay_step``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("replay_step")
