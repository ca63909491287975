"""``python -m fr3e_async.main config=FILE [key=value ...]``: the entry. Reads as a table of contents.

Exit codes: 0 the run finished or was stopped with a checkpoint, or had nothing left to do; 1 it failed after it had started; 2 bad input, and
nothing was started or written; 130 Ctrl-C, SIGTERM or SIGHUP before it had started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fr3e_async.errors import RunFailed, UserError
from fr3e_async.loader import OPTIONS, LoadedConfig, load_config
from fr3e_async.observe.logs import quiet_environment
from fr3e_async.signals import interrupting


def main(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; returns the exit code. Every error that a person can mend is one line on stderr."""
    words = [word for word in argv if word not in OPTIONS]
    try:
        if "--help" in argv or "-h" in argv:
            return show_help()
        loaded = load_config(words)
        if "--dry-run" in argv:
            return show_plan(loaded)
        return train(loaded)
    except UserError as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    except RunFailed as error:  # may be a diagnosis of several lines
        print("error:", error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def show_help() -> int:
    from fr3e_async.help import render_help

    _show(render_help())
    return 0


def show_plan(loaded: LoadedConfig) -> int:
    """The resolved config, the placement and a memory estimate; starts nothing."""
    from fr3e_async.memory import model_shape
    from fr3e_async.plan import render_plan

    _show(render_plan(loaded.config, yaml=loaded.yaml, model=model_shape(loaded.config)))
    return 0


def _show(text: str) -> None:
    """Print to the end, or until the reader has seen enough (``--help | head``)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it exits


def train(loaded: LoadedConfig) -> int:
    os.environ.update(quiet_environment(verbose=loaded.config.observe.verbose))  # libraries read it when they are imported
    # Imported here: Ray takes a second to load, and neither help nor a dry run needs it.
    from fr3e_async.preparing import prepare

    with interrupting(), prepare(loaded) as session:
        if session.done:
            print(session.done)
            return 0
        session.connect()
        return session.run()


def cli() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
