"""``python -m fr3e_async.main config=FILE [key=value ...]``: the entry. Reads as a table of contents.

Exit codes: 0 the run finished or was stopped with a checkpoint; 1 it failed after it had started; 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fr3e_async.errors import RunFailed, UserError
from fr3e_async.loader import LoadedConfig, load_config


def main(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; returns the exit code. Every error that a person can mend is one line on stderr."""
    words = [word for word in argv if word not in ("--help", "-h", "--dry-run")]
    try:
        if "--help" in argv or "-h" in argv:
            return show_help()
        loaded = load_config(words)
        if "--dry-run" in argv:
            return show_plan(loaded)
        return train(loaded)
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def show_help() -> int:
    from fr3e_async.help import render_help

    print(render_help())
    return 0


def show_plan(loaded: LoadedConfig) -> int:
    """The resolved config, the placement and a memory estimate; starts nothing."""
    from fr3e_async.memory import model_shape
    from fr3e_async.plan import render_plan

    print(render_plan(loaded.config, yaml=loaded.yaml, model=model_shape(loaded.config)))
    return 0


def train(loaded: LoadedConfig) -> int:
    # Imported here: Ray takes a second to load, and neither help nor a dry run needs it.
    from fr3e_async.session import Session

    with Session.prepare(loaded) as session:
        session.connect()
        return session.run()


def cli() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
