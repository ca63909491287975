"""Prompt templates by name and by text: the exact prompts, and what ends a response."""

from __future__ import annotations

import pytest
from builders import small_config

from fr3e_async.config import DataConfig
from fr3e_async.config.data import TEMPLATES
from fr3e_async.data.prompts import encode_prompt
from fr3e_async.data.tokenizer import end_tokens
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.errors import ConfigError

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


class Letters:
    """A stand-in for a tokenizer: a token is a character, or one of its special tokens; ``<s>`` begins every text."""

    def __init__(self, chat_template: str = "") -> None:
        self.chat_template, self.eos_token_id = chat_template, 1

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": 0, "</s>": 1, "<|im_end|>": 2}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return "".join(f"[{message['role']}]{message['content']}" for message in messages) + "[assistant]"


def shown(problem: str, tokenizer: Letters, **data: object) -> str:
    """The prompt as text, with ``<s>`` where the tokenizer put its own token."""
    ids = encode_prompt(problem, tokenizer, DataConfig(**data))  # type: ignore[arg-type]
    return "".join("<s>" if token == 0 else chr(token) for token in ids)


def test_qwen_boxed_writes_its_turns_out_whatever_the_tokenizer_has():
    expected = (
        "<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n2+3=?\n{BOXED}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown("2+3=?", Letters(), template="qwen-boxed") == expected
    assert shown("2+3=?", Letters("has one"), template="qwen-boxed") == expected
    other = shown("2+3=?", Letters(), template="qwen-boxed", system="Be brief.")
    assert other == expected.replace("You are a helpful assistant.", "Be brief.")


def test_the_other_names():
    chat, base = Letters("has one"), Letters()
    assert shown("p", chat, template="boxed") == f"[user]p\n{BOXED}[assistant]"
    assert shown("p", base, template="boxed") == f"<s>p\n{BOXED}\n"
    assert shown("p", chat, template="qwen-math").startswith(
        f"<s><|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\np<|im_end|>"
    )
    assert shown("p", chat, template="question-answer") == "<s>Question:\np\nAnswer:\nLet's think step by step.\n"


def test_a_text_of_ones_own_with_and_without_the_chat_template():
    chat = Letters("has one")
    assert shown("p", chat, template="Q: {problem}", system="s") == "[system]s[user]Q: p[assistant]"
    assert shown("p", chat, template="Q: {problem}\nA:", chat="off") == "<s>Q: p\nA:"
    assert shown("p", chat, template="Q: {problem}\nA:", chat="off", system="s") == "<s>s\n\nQ: p\nA:"
    assert shown("p", chat, template="<{system}> {problem}", chat="off", system="s") == "<s><s> p".replace("<s> p", "<s> p")


def test_a_problem_that_holds_the_places_is_kept_as_it_is():
    assert shown("a {system} {problem}", Letters(), template="qwen-math").count("a {system} {problem}") == 1


def test_the_end_of_a_turn_ends_a_response_where_the_template_writes_turns():
    tokenizer = Letters()
    assert end_tokens(small_config(data={"template": "qwen-boxed"}), tokenizer) == (1, 2)  # type: ignore[arg-type]
    assert end_tokens(small_config(data={"template": "question-answer"}), tokenizer) == (1,)  # type: ignore[arg-type]
    toy = build_tokenizer()  # it has no such token
    assert end_tokens(small_config(data={"template": "qwen-boxed"}), toy) == (toy.eos_token_id,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"template": "qwen-boxd"}, r"data\.template must contain \{problem\}, got 'qwen-boxd' \(did you mean qwen-boxed\?\)"),
        ({"template": "solve it"}, r"got 'solve it' or be one of boxed, qwen-boxed, qwen-math, question-answer"),
        (
            {"template": "question-answer", "system": "s"},
            r"data\.system is given, but data\.template=question-answer has no room",
        ),
    ],
)
def test_wrong_templates_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**data)


def test_every_template_has_its_place_and_those_with_turns_their_end():
    for name, template in TEMPLATES.items():
        assert template.text.count("{problem}") == 1, name
        assert ("<|im_end|>" in template.text) == ("<|im_end|>" in template.ends), name
        assert not (template.chat and "{system}" in template.text), name
