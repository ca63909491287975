"""``fr3e train`` and ``fr3e config``: a run, and what may be set for one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fr3e_async import __version__
from fr3e_async.cli.words import SETTINGS, UserPath, options_of, show, takes_words
from fr3e_async.errors import ConfigError

if TYPE_CHECKING:
    from fr3e_async.settings.loader import LoadedConfig


@click.command(add_help_option=False, context_settings=SETTINGS)
@click.option(
    "--help", "-h", "asks_help", is_flag=True, help="This text and every setting, or the sections and settings that are named."
)
@click.option("--dry-run", is_flag=True, help="Check what a start checks, start nothing; print what differs from the defaults, "
              "placement and a memory estimate.")  # fmt: skip
@click.option("--all", "every_setting", is_flag=True, help="With --dry-run: print every setting.")
@click.version_option(__version__, message="fr3e_async %(version)s")
@takes_words("config=FILE[,FILE ...] [key=value ...]")
@click.pass_context
def train(context: click.Context, words: tuple[str, ...], asks_help: bool, dry_run: bool, every_setting: bool) -> int:
    """Train a model, or resume a run.

    \b
    config=toy                    the embedded task and model; 2 CPU cores are enough
    config=toy,mine.yaml          files are laid over each other, the later one wins
    run.steps=50 learner.lr=2e-6  settings on the command line win over files; values are YAML
    generators.resources={engine: 1}  learner.betas=[0.9, 0.95]  data.heldout=   (empty)

    A file may begin with `base: other.yaml` (or a list), relative to itself or shipped.
    """
    from fr3e_async.settings.loader import load_config

    if asks_help:
        return show_settings([word for word in words if "=" not in word], head=context.get_help())
    if every_setting and not dry_run:
        raise ConfigError("--all: it makes --dry-run print every setting; add --dry-run")
    loaded = load_config(words, options=options_of(context))
    return show_plan(loaded, every_setting=every_setting) if dry_run else start(loaded)


@click.command()
@click.argument("topics", metavar="[SECTION or setting ...]", nargs=-1)
@click.option(
    "--refresh",
    type=UserPath(),
    metavar="FILE",
    help="Rewrite the tables of settings in a Markdown file, or write their JSON Schema to a .json file.",
)
def config(topics: tuple[str, ...], refresh: Path | None) -> int:
    """Print what may be set, and the defaults."""
    if refresh is None:
        return show_settings(topics)
    from fr3e_async.settings import help

    help.refresh(refresh)
    return 0


def show_settings(topics: Sequence[str], *, head: str = "") -> int:
    """Every setting below ``head``, or what the words name. Raises ``ConfigError`` for a word that names nothing."""
    from fr3e_async.settings.help import render_help, render_topic
    from fr3e_async.settings.hints import unknown_topic

    texts = [render_topic(word) for word in topics]
    for word, text in zip(topics, texts, strict=True):
        if not text:
            raise unknown_topic(word)
    show("\n\n".join(texts or filter(None, [head, render_help()])))
    return 0


def show_plan(loaded: LoadedConfig, *, every_setting: bool) -> int:
    """Settings, placement and a memory estimate; then the checks of a start. Nothing stays. Raises ``UserError`` as a start does."""
    from fr3e_async.cli.sizing import forecast
    from fr3e_async.learner.memory import model_shape
    from fr3e_async.plan.placement import render_plan

    chosen = loaded.config
    shape = model_shape(chosen)
    show(render_plan(chosen, origins=loaded.origins, yaml=loaded.yaml if every_setting else "", model=shape))
    if shape is not None and shape.known and chosen.learner.gpus:
        show("\nforecast\n" + forecast(chosen))
    lines = "\n".join(f"  {line}" for line in check(loaded))
    show(f"\nchecked\n{lines}\n\ndry run: nothing was started or kept")
    return 0


def check(loaded: LoadedConfig) -> list[str]:
    """What the checks of a start find, a line each; by the same functions. Raises ``UserError`` as a start does."""
    quiet(loaded)
    from fr3e_async.files.scratch import scratch
    from fr3e_async.run.preparing import prepare

    with scratch(), prepare(loaded, trial=True) as session:
        return list(session.found)


def start(loaded: LoadedConfig) -> int:
    """Prepare a session and run it to its end; returns the exit code."""
    quiet(loaded)
    from fr3e_async.files.scratch import scratch
    from fr3e_async.signals import interrupting

    if loaded.config.observe.console != "off" and sys.stdout.isatty():  # imports and checks take seconds
        show("checking settings, data and model")
    from fr3e_async.run.preparing import prepare

    with interrupting(), scratch(), prepare(loaded) as session:
        if session.done:
            show(session.done)
            return 0
        session.connect()
        with interrupting():  # again: Ray has put handlers of its own in place
            return session.run()


def quiet(loaded: LoadedConfig) -> None:
    """Set the environment variables that libraries read when they are imported: they print less."""
    from fr3e_async.files.process_logs import quiet_environment

    os.environ.update(quiet_environment(verbose=loaded.config.observe.verbose))
