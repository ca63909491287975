"""Prompt templates by name, for ``data.template``: what stands around a problem, and what besides the end token ends a response.

Plain text only; knows no tokenizer. A template with ``chat`` is a user message for the tokenizer's own chat template, one
without is the whole prompt as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROBLEM = "{problem}"
SYSTEM = "{system}"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHATML = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """*Example*: ``Template(text="Question: {problem}\\nAnswer:", chat=False)``."""

    text: str  # {problem} is replaced by the question, and where chat is false {system} by the system message
    chat: bool  # goes through the tokenizer's chat template, if it has one
    system: str = ""  # the system message unless data.system names another
    ends: tuple[str, ...] = ()  # special tokens that end a response besides the tokenizer's end token


TEMPLATES: Mapping[str, Template] = {
    # For any model that was taught its chat template.
    "boxed": Template(text=f"{PROBLEM}\n{BOXED}", chat=True),
    # Base models of the Qwen2.5 family, as SimpleRL-Zoo prompts them ("qwen-boxed"): the turns are written out, since their
    # tokenizers' own templates differ in the system message; the turn's end is no end token of a base model, so it is named.
    "qwen-boxed": Template(
        text=CHATML % f"{PROBLEM}\n{BOXED}", chat=False, system="You are a helpful assistant.", ends=("<|im_end|>",)
    ),
    # Qwen2.5-Math: the instruction is the system message, as in that family's own chat template.
    "qwen-math": Template(text=CHATML % PROBLEM, chat=False, system=BOXED, ends=("<|im_end|>",)),
    # Base models that know no turns at all; SimpleRL-Zoo uses such a form ("abel") for weaker ones.
    "question-answer": Template(text=f"Question:\n{PROBLEM}\nAnswer:\nLet's think step by step.\n", chat=False),
}


def template_of(name_or_text: str, *, chat: bool) -> Template:
    """The template of that name, or else one made of the text itself, which ``chat`` then speaks of."""
    known = TEMPLATES.get(name_or_text)
    return known if known is not None else Template(text=name_or_text, chat=chat)
