"""``python -m fr3e_async.audit``: ``fr3e audit``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("audit")
