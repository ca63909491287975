"""``python -m fr3e_async.export``: ``fr3e export``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("export")
