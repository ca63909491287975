"""``python -m fr3e_async.evaluate``: ``fr3e evaluate``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("evaluate")
