"""Rows to prompts: the template, the tokenizer's chat template, token ids; the limit on their length; and the mixture.

Knows templates, lengths and weights; knows nothing of where rows and models come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import Config, DataConfig
from fr3e_async.config.data import SOURCES
from fr3e_async.config.templates import PROBLEM, SYSTEM, Template, template_of
from fr3e_async.data.mixture import Part, mix, mixture_note
from fr3e_async.data.model import check_model, load_tokenizer, resolve_model
from fr3e_async.data.row import Row
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
    parts: tuple[Part, ...] = ()  # of ``train`` in a mixture, for ``PromptStream``
    notes: tuple[str, ...] = ()  # what a person should know


def load_datasets(config: Config, tokenizer: PreTrainedTokenizerBase, rows: Rows | None = None) -> Datasets:
    """Both sets as prompts. ``rows``: what ``read_rows(config)`` gave, if it was called already to check the data."""
    rows = read_rows(config) if rows is None else rows
    by_source: dict[str, list[Row]] = {}
    for row in rows.train:
        by_source.setdefault(row.source_name, []).append(row)
    sources = {name: made for name, own in by_source.items() if (made := make_prompts(own, tokenizer, config.data))}
    heldout = make_prompts(rows.heldout, tokenizer, config.data)
    if not sources:
        raise DataError(
            f"data.train: all {len(rows.train)} prompts are longer than data.max_prompt = {config.data.max_prompt} tokens"
        )
    dropped = len(rows.train) + len(rows.heldout) - sum(map(len, sources.values())) - len(heldout)
    if config.data.train != SOURCES:
        (train,) = sources.values()
        return Datasets(train=train, heldout=heldout, dropped=dropped)
    weights = {source.label: source.weight for source in config.data.train_sources}
    train, parts = mix(sources, weights, setting="data.train_sources")
    note = f"data.train_sources: {mixture_note(sources, weights)}"
    return Datasets(train=train, heldout=heldout, dropped=dropped, parts=parts, notes=(note,))


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
    """[Q] int32 token ids of the prompt, up to where the answer begins.

    A template that is the whole prompt is taken as it is, with the special tokens that the tokenizer itself puts around a
    text. Any other goes through the tokenizer's chat template; one without (a base model's) gets the plain text: system
    message, blank line, user message, newline.
    """
    template = template_of(config.template, chat=config.chat == "auto")
    system = config.system or template.system
    if template.chat and tokenizer.chat_template:
        text, special = _render_chat(_filled(template, problem, ""), tokenizer, system), False
    else:
        lead = f"{system}\n\n" if system and SYSTEM not in template.text else ""
        text, special = lead + _filled(template, problem, system) + ("\n" if template.chat else ""), True
    return np.asarray(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int32)


def _filled(template: Template, problem: str, system: str) -> str:
    """The template's text with both places filled. A problem that has such a place in it keeps it as it is."""
    text = template.text if template.chat else template.text.replace(SYSTEM, system)
    return text.replace(PROBLEM, problem)


def _render_chat(user: str, tokenizer: PreTrainedTokenizerBase, system: str) -> str:
    """The template's text. Its special tokens are in it already, so none are added when it is encoded."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"model.path: its chat template refuses these messages ({error}); see data.system") from error
