"""Runs ``fr3e verify`` under the name ``python -m fr3e_async.verify``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("verify")
