"""What a run asks of the model's tokenizer: its chat template's text, what ends a response, special ids, and token ids as text.

Knows tokenizers and the model's small files; knows nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fr3e_async.config import Config
from fr3e_async.config.data import template_of
from fr3e_async.data.model import model_folder, read_json
from fr3e_async.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("generation_config.json", "config.json")  # of the model, which may name end tokens
TODAY = datetime(2024, 7, 26)  # for templates that write the date; the one that Llama 3's own falls back to
_ANSWER = "An-answer-of-this-turn"  # no template writes it by itself

Spell = Callable[[NDArray], list[str]]


def render_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any], *, ask: bool = True
) -> str:
    """Render messages with the tokenizer's chat template, special tokens included. ``ask``: up to where the next answer begins.

    ``args``: further variables of the template. ``ModelError`` if the template refuses the messages.
    """
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=ask, **{"strftime_now": TODAY.strftime, **args}
            )
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"model.path: its chat template refuses these messages ({error}); see data.system") from error


def unused(args: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the variables that the chat template does not name; all of them if there is no template."""
    text = tokenizer.get_chat_template() if args and tokenizer.chat_template else ""
    return sorted(name for name in args if not re.search(rf"\b{re.escape(name)}\b", text))


def closing_token(tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any]) -> str:
    """Find the token that the chat template puts behind an answer; "" if it puts none there.

    A chat that ends with the answer is tried first, then one with a question behind it: in templates with channels an earlier turn
    ends as a thought does.
    """
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _ANSWER}]
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    for chat in (messages, [*messages, messages[0]]):
        try:
            _, found, behind = render_chat(chat, tokenizer, args, ask=False).rpartition(_ANSWER)
        except ModelError:  # for example, the template requires a question at the end
            continue
        closing = max((token for token in tokens if behind.lstrip().startswith(token)), key=len, default="")
        if found and closing:
            return closing
    return ""


# ---- what ends a response: without all end tokens responses run into their budget ----
# Chat models often have two, one for the turn and one for the text, and name them in different files.


def end_tokens(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a response: the tokenizer's own, then those of the model's files, then the token that closes a turn.

    ``ModelError`` for a file that lists something else.
    """
    vocabulary = tokenizer.get_vocab()
    named = [token for file in FILES for token in _listed(config, file)]
    turns = [vocabulary[text] for text in _turn_ends(config, tokenizer) if text in vocabulary]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *named, *turns]))


def endless_turns(config: Config, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a warning if the turns of this model may not end, else ""."""
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
    """Return the tokens that close a turn, in the settings' template and in the model's chat template."""
    written = template_of(config.data.template, chat=True).ends
    closing = closing_token(tokenizer, config.data.template_args) if tokenizer.chat_template else ""
    return (*written, closing) if closing else written


def _listed(config: Config, name: str) -> Iterator[int]:
    """Return the ids that a model file names as end tokens, one or a list."""
    raw = _content(config, name)
    text = raw.get("text_config")
    for part in (raw, text if isinstance(text, dict) else {}):
        value = part.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and token >= 0 for token in listed):
            raise ModelError(f"model.path: eos_token_id in the {name} of {config.model.path} must be token ids")
        yield from map(int, listed)


def _content(config: Config, name: str) -> dict[str, Any]:
    """Read a JSON file of the model; {} if there is none."""
    path = config.model.path
    if path == "toy":
        return {}
    from transformers.utils import cached_file

    folder = model_folder(config)
    try:
        found = cached_file(str(folder) if folder.is_dir() else path, name, revision=config.model.revision or None)
    except OSError:
        return {}
    return read_json(Path(found), path) if found is not None else {}


# ---- token ids as text, for people to look at ----


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that ``skip_special_tokens`` leaves out: those with a role, and those that the vocabulary merely calls special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}


def speller(tokenizer: PreTrainedTokenizerBase) -> Spell:
    """Return a function from token ids to one text each, which joined are the whole text, special tokens included.

    A character that several tokens make up stands with the last one. An id of a padded vocabulary, which the tokenizer does not have,
    is written as such: ``<id 151700>``.

    A tokenizer of the slow kind has each token decoded alone, where such a character becomes replacement characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda tokens: [str(tokenizer.decode([int(token)])) for token in tokens]
    from tokenizers.decoders import DecodeStream

    def spell(tokens: NDArray) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        return [
            f"<id {token}>" if backend.id_to_token(int(token)) is None else stream.step(backend, int(token)) or ""
            for token in tokens
        ]

    return spell
