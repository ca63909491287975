"""Runs ``fr3e plan`` under the name ``python -m fr3e_async.plan``."""

from fr3e_async.cli.main import entry

if __name__ == "__main__":
    entry("plan")
