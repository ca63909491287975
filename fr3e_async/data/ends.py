"""Which tokens end a response: all that the model's files name, and the one that closes a turn of its chat template.

Without all of them responses run into their budget: chat models often have two, one for the turn and one for the text, and name
them in different files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr3e_async.config import Config
from fr3e_async.config.templates import template_of
from fr3e_async.data.chat import closing_token
from fr3e_async.data.model import model_folder, read_json
from fr3e_async.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("generation_config.json", "config.json")


def end_tokens(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response, the tokenizer's own first. ``ModelError`` for a file that lists something else."""
    vocabulary = tokenizer.get_vocab()
    named = [token for file in FILES for token in _listed(config, file)]
    turns = [vocabulary[text] for text in _turn_ends(config, tokenizer) if text in vocabulary]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *named, *turns]))


def endless_turns(config: Config, tokenizer: PreTrainedTokenizerBase) -> str:
    """What to warn of if the turns of this model could not end, else ""."""
    template = template_of(config.data.template, chat=config.data.chat == "auto")
    missing = [text for text in template.ends if text not in tokenizer.get_vocab()]
    if missing:
        return (
            f"data.template={config.data.template} closes turns with {missing[0]}, which is no token of model.path: responses may run "
            "into sampling.max_response"
        )
    if template.chat and tokenizer.chat_template and not _turn_ends(config, tokenizer):
        return (
            "model.path: its chat template puts no token behind an answer, so that turns may not end: responses may run into "
            f"sampling.max_response (end tokens: {', '.join(map(str, tokenizer.convert_ids_to_tokens(end_tokens(config, tokenizer))))})"
        )
    return ""


def _turn_ends(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Tokens that close a turn: in the template of the settings, and in the chat template, which a model was taught."""
    written = template_of(config.data.template, chat=True).ends
    closing = closing_token(tokenizer, config.data.template_args) if tokenizer.chat_template else ""
    return (*written, closing) if closing else written


def _listed(config: Config, name: str) -> Iterator[int]:
    """The ids that a file of the model names as end tokens, be it one or a list."""
    raw = _content(config, name)
    text = raw.get("text_config")
    for part in (raw, text if isinstance(text, dict) else {}):
        value = part.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and token >= 0 for token in listed):
            raise ModelError(f"model.path: eos_token_id in the {name} of {config.model.path} must be token ids")
        yield from map(int, listed)


def _content(config: Config, name: str) -> dict[str, Any]:
    """Of a file of the model; a model need not have it."""
    if config.model.path == "toy":
        return {}
    folder = model_folder(config)
    if os.path.isdir(folder):
        file = folder / name
        return read_json(file, config.model.path) if file.is_file() else {}
    from transformers.utils import cached_file

    try:
        found = cached_file(config.model.path, name, revision=config.model.revision or None)
    except OSError:
        return {}
    return read_json(Path(found), config.model.path) if found is not None else {}
