"""``python -m fr3e_async.replay``: ``fr3e replay``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("replay")
