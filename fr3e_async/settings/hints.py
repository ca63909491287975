"""Messages for words on the command line or in a file that name no setting; they guess what was meant. Pure."""

import difflib
from collections.abc import Sequence

from fr3e_async.config.foreign import instead, ours
from fr3e_async.config.knobs import Knob, did_you_mean
from fr3e_async.errors import ConfigError
from fr3e_async.settings.help import knobs, sections


def misplaced_option(argument: str, follower: str, options: Sequence[str]) -> str:
    """The message for a word with a dash: a misspelt option, or a setting as other programs take it (``--config toy``)."""
    key = argument.lstrip("-").partition("=")[0].replace("-", "_")
    hint = did_you_mean(argument, options)
    named = [key] if key == "config" or locate(key)[0] is not None else _others(key)
    if named and not hint:
        given = argument.partition("=")[2] or _value(follower)
        return f"{argument}: settings are written without dashes: {' or '.join(f'{name}={given}' for name in named)}"
    known = " and ".join(", ".join(word for word in options if word != "-h").rsplit(", ", 1))
    return f"unknown option {argument}{hint or _nearest(key)}; the options are {known}, settings are key=value"


def _value(word: str) -> str:
    """Return the next word of the command line if it can be the value of the option before it."""
    return "VALUE" if not word or "=" in word or word.startswith("-") else word


def meant(word: str, follower: str, options: Sequence[str], shipped: Sequence[str]) -> str:
    """What a bare word on the command line may stand for. ``shipped``: names of configs."""
    if f"--{word}" in options:
        return f"--{word}"
    return f"config={word}" if word.endswith((".yaml", ".yml")) or word in shipped else f"{word}={_value(follower)}"


def locate(path: str) -> tuple[Knob | None, tuple[str, ...]]:
    """The knob that a dotted path names, and the keys inside of it if it is a mapping (``engine.options.seed``)."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        knob = knobs().get(".".join(parts[:length]))
        if knob is not None and (length == len(parts) or knob.is_mapping):
            return knob, tuple(parts[length:])
    return None, ()


def unknown(path: str, origin: str) -> ConfigError:
    return ConfigError(f"{origin}: unknown setting {path}{_nearest(path)}; --help lists them all")


def unknown_topic(word: str) -> ConfigError:
    """The error of ``fr3e config WORD`` and ``--help WORD`` for a word that names nothing."""
    return ConfigError(f"{word}: neither a section nor a setting{_nearest(word)}; sections: {', '.join(sections())}")


def _others(path: str) -> list[str]:
    """The settings with the same last word in another section, the one alone whose section is nearly this; else what other libraries call so."""
    leaf = path.rpartition(".")[2]
    same = [known for known in knobs() if known.rpartition(".")[2] == leaf]
    return difflib.get_close_matches(path, same, n=1, cutoff=0.85) or same or ours(leaf.lower().replace("-", "_"))


def _nearest(path: str) -> str:
    """`` (did you mean …?)`` over all dotted paths: the same thing by another name first, then similar spelling."""
    leaf = path.rpartition(".")[2]
    if same := _others(path):
        return f" (did you mean {' or '.join(same)}?)"
    if why := instead(leaf.lower().replace("-", "_")):
        return f" ({why})"
    near = did_you_mean(path, ["config", *knobs(), *sections()])
    if near:
        return near
    by_leaf = {known.rpartition(".")[2]: known for known in knobs()}
    close = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)
    return f" (did you mean {by_leaf[close[0]]}?)" if close else ""
