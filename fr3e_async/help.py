"""``python -m fr3e_async.help FILE``: ``fr3e config --refresh FILE``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("config", "--refresh")
