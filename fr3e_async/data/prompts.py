"""Rows to prompts: the user message, the tokenizer's chat template, token ids; and the limit on their length.

Knows templates and lengths; knows nothing of where rows and models come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import Config, DataConfig
from fr3e_async.data.jsonl import Row
from fr3e_async.data.model import check_model, load_tokenizer, resolve_model
from fr3e_async.data.rows import Rows, read_rows
from fr3e_async.errors import DataError, ModelError
from fr3e_async.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Datasets", "check_model", "encode_prompt", "load_datasets", "load_tokenizer", "make_prompts", "resolve_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """Prompts ready to sample from. ``heldout`` is empty when there is no evaluation."""

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    dropped: int  # prompts of both sets that were longer than data.max_prompt (data.on_long_prompt=drop)


def load_datasets(config: Config, tokenizer: PreTrainedTokenizerBase, rows: Rows | None = None) -> Datasets:
    """Both sets as prompts. ``rows``: what ``read_rows(config)`` gave, if it was called already to check the data."""
    rows = read_rows(config) if rows is None else rows
    train = make_prompts(rows.train, tokenizer, config.data)
    heldout = make_prompts(rows.heldout, tokenizer, config.data)
    if not train:
        raise DataError(
            f"data.train: all {len(rows.train)} prompts are longer than data.max_prompt = {config.data.max_prompt} tokens"
        )
    dropped = len(rows.train) + len(rows.heldout) - len(train) - len(heldout)
    return Datasets(train=train, heldout=heldout, dropped=dropped)


def make_prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> tuple[Prompt, ...]:
    """A prompt for each row that fits ``max_prompt``; a longer one is left out or a ``DataError``, by ``on_long_prompt``."""
    prompts = []
    for row in rows:
        token_ids = encode_prompt(row.problem, tokenizer, config)
        if len(token_ids) <= config.max_prompt:
            prompts.append(Prompt(uid=row.uid, text=row.problem, gold=row.answer, token_ids=token_ids))
        elif config.on_long_prompt == "error":
            raise DataError(
                f"{row.source}: the prompt has {len(token_ids)} tokens, data.max_prompt is {config.max_prompt}; "
                "raise it, or leave such prompts out with data.on_long_prompt=drop"
            )
    return tuple(prompts)


def encode_prompt(problem: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> NDArray[np.int32]:
    """[Q] int32 token ids of the chat prompt, up to where the answer begins.

    A tokenizer without a chat template (a base model) gets the plain text: system message, blank line, user message,
    newline, with the special tokens that the tokenizer itself puts around a text.
    """
    user = config.template.replace("{problem}", problem)
    if tokenizer.chat_template:
        text, special = _render_chat(user, tokenizer, config.system), False
    else:
        text, special = (f"{config.system}\n\n" if config.system else "") + user + "\n", True
    return np.asarray(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int32)


def _render_chat(user: str, tokenizer: PreTrainedTokenizerBase, system: str) -> str:
    """The template's text. Its special tokens are in it already, so none are added when it is encoded."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"model.path: its chat template refuses these messages ({error}); see data.system") from error
