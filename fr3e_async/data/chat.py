"""Rendering with a tokenizer's chat template: the same text on every day, and what closes a turn in it.

Knows templates and tokenizers; knows nothing of rows and settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fr3e_async.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26)  # for templates that write the date; the one that Llama 3's own falls back to
_ANSWER = "An-answer-of-this-turn"  # no template writes it by itself


def render_chat(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any], *, ask: bool = True
) -> str:
    """The template's text, special tokens included. ``ask``: up to where the next answer begins.

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
    """Which of these variables the chat template does not name; all without a template."""
    text = tokenizer.get_chat_template() if args and tokenizer.chat_template else ""
    return sorted(name for name in args if not re.search(rf"\b{re.escape(name)}\b", text))


def closing_token(tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any]) -> str:
    """The token that stands behind an answer in the chat template, be it the last one or one that a question follows; or "".

    The last one first: in templates with channels an earlier turn ends as a thought does.
    """
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _ANSWER}]
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    for chat in (messages, [*messages, messages[0]]):
        try:
            _, found, behind = render_chat(chat, tokenizer, args, ask=False).rpartition(_ANSWER)
        except ModelError:  # it wants a question at the end, say
            continue
        closing = max((token for token in tokens if behind.lstrip().startswith(token)), key=len, default="")
        if found and closing:
            return closing
    return ""
