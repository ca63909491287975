"""Settings are written into run directories, journals and model cards; secrets come by the environment alone. Pure.

Knows the names of secrets, not who reads them: libraries take theirs from the environment themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fr3e_async.errors import ConfigError

if TYPE_CHECKING:
    from fr3e_async.config import Config

SECRET_NAME = re.compile(r"(?:^|.*_)(?:token|secret|password|passwd|api_?key|access_key|private_key)", re.IGNORECASE)
MIN_CHARS = 8  # shorter values would match settings by chance
# What accounts' keys look like (Weights & Biases: 40 hexadecimal digits, or its newer form), and a password within an address.
KEY = re.compile(r"\b[0-9a-f]{40}\b|\bwandb_v\d+_\w{20,}", re.IGNORECASE)
PASSWORD = re.compile(r"//[^/@\s]*@")


class SecretGiven(ConfigError):
    """A setting holds a secret. The message does not repeat it, and callers must not print the user's input beside it."""


def refuse_secrets(config: Config, environment: Mapping[str, str]) -> None:
    """Raise ``SecretGiven`` if a setting holds the value of a secret of the environment (by ``${oc.env:…}``, say), or is a secret
    by its own name (``engine.options.hf_token``)."""
    known = {name: value for name, value in environment.items() if SECRET_NAME.fullmatch(name) and len(value) >= MIN_CHARS}
    for path, text in _texts(asdict(config), ""):
        held = next((name for name, value in known.items() if value in text), "")
        if held:
            raise SecretGiven(
                f"{path}: it holds the value of {held}; settings are written to files, so leave it to the environment"
            )
        if text and SECRET_NAME.fullmatch(path.rpartition(".")[2]):
            raise SecretGiven(
                f"{path}: settings are written to files; give this by an environment variable of the library instead"
            )


def refuse_keys(path: str, text: str) -> None:
    """Raise ``SecretGiven`` for what looks like an account's key or holds a password. ``path``: the setting."""
    if KEY.search(text):
        raise SecretGiven(f"{path} looks like an account's key; settings are written to files, so set WANDB_API_KEY instead")
    if PASSWORD.search(text):
        raise SecretGiven(
            f"{path} holds a name or password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every text in nested settings; entries of a list by the list's path."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, path)
    elif isinstance(value, str):
        yield path, value
