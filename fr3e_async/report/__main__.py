"""``python -m fr3e_async.report``: ``fr3e report``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("report")
