"""``python -m fr3e_async.main config=FILE [key=value ...]``: the entry. Reads as a table of contents.

Exit codes: 0 the run finished or was stopped with a checkpoint, or had nothing left to do; 1 it failed after it had started; 2 bad input, and
nothing was started or written; 130 Ctrl-C, SIGTERM or SIGHUP before it had started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fr3e_async import __version__
from fr3e_async.errors import ConfigError, RunFailed, UserError
from fr3e_async.files.process_logs import quiet_environment
from fr3e_async.files.scratch import scratch
from fr3e_async.settings.hints import unknown_topic
from fr3e_async.settings.loader import OPTIONS, LoadedConfig, load_config
from fr3e_async.signals import interrupting

WORDS = (*OPTIONS, "--all", "--version")


def main(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; returns the exit code. Every error that a person can mend is one line on stderr."""
    words = [word for word in argv if word not in WORDS]
    try:
        if "--version" in argv:
            return show(f"fr3e_async {__version__}")
        if "--help" in argv or "-h" in argv:
            return show_help([word for word in words if "=" not in word])
        if "--all" in argv and "--dry-run" not in argv:
            raise ConfigError("--all: it makes --dry-run print every setting; add --dry-run")
        loaded = load_config(words, options=WORDS)
        if "--dry-run" in argv:
            return show_plan(loaded, every_setting="--all" in argv)
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


def show_help(topics: Sequence[str] = ()) -> int:
    """Everything, or what the words name: sections, settings. Raises ``ConfigError`` for a word that names nothing."""
    from fr3e_async.settings.help import render_help, render_topic

    texts = [render_topic(word) for word in topics]
    for word, text in zip(topics, texts, strict=True):
        if not text:
            raise unknown_topic(word)
    return show("\n\n".join(texts) or render_help())


def show_plan(loaded: LoadedConfig, *, every_setting: bool) -> int:
    """Settings, placement and a memory estimate; then the checks of a start. Nothing stays. Raises ``UserError`` as a start does."""
    from fr3e_async.learner.memory import model_shape
    from fr3e_async.plan.placement import render_plan

    config = loaded.config
    show(render_plan(config, origins=loaded.origins, yaml=loaded.yaml if every_setting else "", model=model_shape(config)))
    lines = "\n".join(f"  {line}" for line in check(loaded))
    return show(f"\nchecked\n{lines}\n\ndry run: nothing was started or kept")


def check(loaded: LoadedConfig) -> list[str]:
    """What the checks of a start find, a line each; by the same functions. Raises ``UserError`` as a start does."""
    os.environ.update(quiet_environment(verbose=loaded.config.observe.verbose))
    from fr3e_async.run.preparing import prepare  # it loads Ray, and the checks load the tokenizer

    with scratch(), prepare(loaded, trial=True) as session:
        return list(session.found)


def show(text: str) -> int:
    """Print to the end, or until the reader has seen enough (``--help | head``); returns 0."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it exits
    return 0


def train(loaded: LoadedConfig) -> int:
    os.environ.update(quiet_environment(verbose=loaded.config.observe.verbose))  # libraries read it when they are imported
    # Imported here: Ray takes a second to load, and neither help nor a dry run needs it.
    if loaded.config.observe.console != "off" and sys.stdout.isatty():  # imports and checks take seconds
        print("checking settings, data and model", flush=True)
    from fr3e_async.run.preparing import prepare

    with interrupting(), scratch(), prepare(loaded) as session:
        if session.done:
            show(session.done)
            return 0
        session.connect()
        with interrupting():  # again: Ray has put handlers of its own in place
            return session.run()


def cli() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()
