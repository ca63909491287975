"""Runs ``fr3e report`` under the name ``python -m fr3e_async.report``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("report")
