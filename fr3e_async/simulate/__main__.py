"""Runs ``fr3e simulate`` under the name ``python -m fr3e_async.simulate``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("simulate")
