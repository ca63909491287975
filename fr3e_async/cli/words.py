"""What the commands share: words of the form ``key=value``, paths, and printing to the end."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fr3e_async.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

SETTINGS = {"ignore_unknown_options": True}  # --config toy: the loader says better than click what was meant


class UserPath(click.ParamType):
    """A path as a person types it: ``~`` is the home folder."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(value).expanduser()


def takes_words(metavar: str) -> Callable[[Function], Function]:
    """Decorate a command that takes ``key=value`` words, as the parameter ``words``; beside ``context_settings=SETTINGS``."""
    return click.argument("words", metavar=metavar, nargs=-1, type=click.UNPROCESSED)


def options_of(context: click.Context) -> list[str]:
    """The options of the command that runs, ``--help`` first, for messages about a misspelt one."""
    known = [name for param in context.command.get_params(context) for name in param.opts if name.startswith("-")]
    return sorted(known, key=lambda name: name not in context.help_option_names)


def texts(words: Sequence[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Split the values that a command knows by name from all other words, which are settings. ``known``: name → default.

    Example: ``texts(["out=a", "run.steps=3"], {"out": ""})`` is ``({"out": "a"}, ["run.steps=3"])``.
    """
    values, rest = dict(known), []
    for word in words:
        key, equals, text = word.partition("=")
        if equals and key in known:
            values[key] = text.strip()
        else:
            rest.append(word)
    return values, rest


def numbers(words: Sequence[str], known: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """The same for values that are finite and not negative. Raises ``ConfigError`` that names the word."""
    said, rest = texts(words, dict.fromkeys(known, ""))
    return {key: number(key, said[key]) if said[key] else default for key, default in known.items()}, rest


def number(key: str, text: str) -> float:
    """Parse a finite number that is not negative. Raises ``ConfigError`` for any other text."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{key} must be a number of at least 0, got {text!r}")
    return value


def show(text: str) -> None:
    """Print to the end, or until the reader has seen enough (``fr3e train --help | head``)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        stop_printing()


def stop_printing() -> None:
    """Send what is printed from now on nowhere: nobody reads stdout any more, and Python would complain when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
