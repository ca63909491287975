"""Rows to prompts: the template, the tokenizer's chat template, token ids; the limit on their length; and the mixture.

Knows templates, lengths and weights; knows nothing of where rows and models come from.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fr3e_async.config import Config, DataConfig
from fr3e_async.config.data import PROBLEM, SOURCES, SYSTEM, template_of
from fr3e_async.data.row import REFUSE, BadRows, DataRow
from fr3e_async.data.rows import Rows, read_rows
from fr3e_async.data.screening import Note
from fr3e_async.data.stream import Part, mix, mixture_note
from fr3e_async.data.tokenizer import end_tokens, render_chat, unused
from fr3e_async.errors import ConfigError, DataError
from fr3e_async.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets:
    """Prompts ready to sample from. ``heldout`` is empty when there is no evaluation.

    *Example*: ``Datasets(train=(prompt, …), heldout=(), dropped=12, ends=(151643, 151645))``.
    """

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    dropped: int  # prompts of both sets that were longer than data.max_prompt (data.on_long_prompt=drop)
    parts: tuple[Part, ...] = ()  # of ``train`` in a mixture, for ``PromptStream``
    notes: tuple[Note, ...] = ()  # what a person should know
    template: str = ""  # digest of the chat template, for ``PromptStream``
    ends: tuple[int, ...] = ()  # ids that end a response


def load_datasets(config: Config, tokenizer: PreTrainedTokenizerBase, rows: Rows | None = None) -> Datasets:
    """Make prompts of both sets. ``rows``: what ``read_rows(config)`` returned, if it was called already to check the data."""
    rows = read_rows(config) if rows is None else rows
    by_source: dict[str, list[DataRow]] = {}
    for row in rows.train:
        by_source.setdefault(row.source_name, []).append(row)
    bad = BadRows(drop=config.data.on_bad_row == "drop")
    sources = {name: made for name, own in by_source.items() if (made := make_prompts(own, tokenizer, config.data, bad))}
    heldout = make_prompts(rows.heldout, tokenizer, config.data, bad)
    if not sources:
        if bad.count:
            raise DataError(bad.first)
        raise DataError(
            f"data.train: all {len(rows.train)} prompts are longer than data.max_prompt = {config.data.max_prompt} tokens"
        )
    dropped = len(rows.train) + len(rows.heldout) - sum(map(len, sources.values())) - len(heldout) - bad.count
    notes: list[Note] = []
    if bad.count:
        notes.append(("data_dropped", f"{bad.count:,} rows left out (data.on_bad_row=drop), the first: {bad.first}"))
    found = Datasets(
        train=(), heldout=heldout, dropped=dropped, notes=tuple(notes), ends=end_tokens(config, tokenizer),
        template=hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16],
    )  # fmt: skip
    if config.data.train != SOURCES:
        (train,) = sources.values()
        return replace(found, train=train)
    weights = {source.label: source.weight for source in config.data.train_sources}
    train, parts = mix(sources, weights, setting="data.train_sources")
    note: Note = ("note", f"data.train_sources: {mixture_note(sources, weights)}")
    return replace(found, train=train, parts=parts, notes=(*found.notes, note))


def make_prompts(
    rows: Sequence[DataRow], tokenizer: PreTrainedTokenizerBase, config: DataConfig, bad: BadRows = REFUSE
) -> tuple[Prompt, ...]:
    """Make a prompt of each row that fits ``max_prompt``; a longer one is left out or a ``DataError``, by ``on_long_prompt``.

    A row whose text is not in the decoded prompt goes to ``bad``.
    """
    _check_template_args(tokenizer, config)
    prompts = []
    for row in rows:
        token_ids = encode_prompt(row.problem, tokenizer, config)
        if lost := _lost(row.problem, token_ids, tokenizer, config):
            bad.add(DataError(f"{row.source}: {lost}"))
        elif len(token_ids) <= config.max_prompt:
            prompts.append(Prompt(uid=row.uid, text=row.problem, reference=row.answer, token_ids=token_ids, columns=row.columns))
        elif config.on_long_prompt == "error":
            raise DataError(
                f"{row.source}: the prompt has {len(token_ids)} tokens, data.max_prompt is {config.max_prompt}; "
                "raise it, or leave such prompts out with data.on_long_prompt=drop"
            )
    return tuple(prompts)


def encode_prompt(problem: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> NDArray[np.int32]:
    """Tokenize the prompt up to where the answer begins, [Q] int32.

    A template that is the whole prompt is taken as it is, with the special tokens that the tokenizer puts before a text, and
    without those that it puts behind one. Any other goes through the tokenizer's chat template; a tokenizer without one (a base
    model's) gets the plain text: system message, blank line, user message, newline.
    """
    text, special = _written(problem, tokenizer, config)
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if special:
        plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ends = (start + len(plain) for start in range(len(ids) - len(plain) + 1) if ids[start : start + len(plain)] == plain)
        ids = ids[: next(ends, len(ids))]
    return np.asarray(ids, dtype=np.int32)


def _written(problem: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> tuple[str, bool]:
    """The prompt as text, and whether the tokenizer is to add its special tokens: a chat template has written them."""
    user, system, chat = _message(problem, tokenizer, config)
    if chat:
        messages = [{"role": "system", "content": system}] if system else []
        return render_chat([*messages, {"role": "user", "content": user}], tokenizer, config.template_args), False
    return (f"{system}\n\n" if system else "") + user, True


def _message(problem: str, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> tuple[str, str, bool]:
    """The user message, the system message unless it is in there already, and whether they go through the chat template."""
    template = template_of(config.template, chat=config.chat == "auto")
    system = config.system or template.system
    chat = template.chat and bool(tokenizer.chat_template)
    text = template.text if template.chat else template.text.replace(SYSTEM, "" if chat else system)
    user = text.replace(PROBLEM, problem)  # last, so that a problem with such a placeholder in it keeps it
    if template.chat and not chat:
        user += "\n"
    return user, "" if not chat and SYSTEM in template.text else system, chat


def _lost(problem: str, token_ids: NDArray[np.int32], tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> str:
    """Describe which text is missing from the decoded tokens, and why; "" if none is."""
    user, system, chat = _message(problem, tokenizer, config)
    prompt = tokenizer.decode(token_ids.tolist(), clean_up_tokenization_spaces=False)
    for what, part in (("the problem", problem), ("data.template", user), ("data.system", system)):
        if part.strip() not in prompt and _folded(part) not in _folded(prompt):
            if chat and _folded(part) not in _folded(_written(problem, tokenizer, config)[0]):
                return f"{what} is not in the prompt: the chat template of model.path leaves it out (one that wants content as a list?)"
            return f"{what} is not in the prompt: the tokenizer of model.path has no tokens for all of it"
    return ""


def _folded(text: str) -> str:
    """Remove what tokenizers may change: white space, invisible characters, and variant forms of a character."""
    letters = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in letters if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf"))


def _check_template_args(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
    if not config.template_args:
        return
    if not _message("", tokenizer, config)[2]:
        raise ConfigError("data.template_args is given, but no chat template is used (data.chat, data.template, model.path)")
    if names := unused(config.template_args, tokenizer):
        raise ConfigError(f"data.template_args: {', '.join(names)}: the chat template of model.path knows no such variable")
