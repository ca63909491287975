"""Which model folder a run uses, and its tokenizer: found, checked and loaded, or refused with the setting's name.

Knows file names and transformers' tokenizers; loads no weights and knows nothing of problems.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from fr3e_async.config import Config
from fr3e_async.data.toy import ensure_toy
from fr3e_async.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")  # "name" or "owner/name"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model")


def check_model(config: Config) -> None:
    """Refuse a ``model.path`` that cannot work, without building, downloading or loading anything. ``ModelError``."""
    path = config.model.path
    if path == "toy":
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"model.path: {path} is a file; a model folder was expected")
        if not HUB_ID.fullmatch(path):
            raise ModelError(f"model.path: there is no folder {path}, and it is not a hub id (owner/name)")
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.path: {path} has no config.json; it is not a Hugging Face model folder")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"model.path: {path} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model.path: {path} has no weights (*.safetensors; other formats can carry code and are not read)")


def resolve_model(config: Config) -> Path | str:
    """The checked local folder, or the hub id as it is. ``model.path=toy`` builds the toy model if it is not cached."""
    check_model(config)
    if config.model.path == "toy":
        return ensure_toy(config)
    folder = Path(config.model.path).expanduser()
    return folder.resolve() if folder.is_dir() else config.model.path


def load_tokenizer(config: Config, model_dir: Path | str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of ``model_dir``; without it that of ``model.path``, where the toy's needs no built model.

    ``ModelError`` if there is none, it cannot be loaded, or it has no end token (no response would ever end).
    """
    if model_dir is None and config.model.path == "toy":
        from fr3e_async.data.toy.tokenizer import build_tokenizer

        return build_tokenizer()
    check_model(config)
    from transformers import AutoTokenizer

    source = str(Path(config.model.path).expanduser() if model_dir is None else model_dir)
    source = source if Path(source).is_dir() else config.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=config.model.revision or "main", trust_remote_code=config.model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(f"model.path: no tokenizer could be loaded from {source}: {first_line}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path: the tokenizer of {source} has no end token (eos_token), so no response would end")
    return tokenizer
