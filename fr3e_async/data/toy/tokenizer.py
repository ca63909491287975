"""The toy model's own tokenizer: numbers 0-99, a few words of the task and every printable ASCII character.

A fixed vocabulary, nothing is learnt. Decoding what was encoded gives the text back exactly (ASCII text and newlines;
anything else becomes ``<|unk|>``). Knows nothing of problems or models.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unk|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (PAD, END, UNKNOWN, *(f"<|{role}|>" for role in ROLES))
WORDS = ("Start with ", "\\boxed{", "\n\\boxed{", *(f"{line}{step}) " for line in ("", "\n") for step in range(1, 10)))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, in the order of its id; special tokens first."""
    characters = ["\n", *(chr(code) for code in range(32, 127) if not chr(code).isdigit())]
    return [*SPECIAL, *(str(number) for number in range(100)), *WORDS, *characters]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with end and pad tokens and a chat template for system, user and assistant."""
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary())}, unk_token=UNKNOWN))
    pieces = "|".join(["Start with ", r"\n?\\boxed\{", r"\n?[1-9]\) ", "[1-9][0-9]", r"[\s\S]"])  # the first that fits wins
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode_example(tokenizer: PreTrainedTokenizerFast, problem: str, solution: str) -> tuple[list[int], list[int]]:
    """Token ids of the chat prompt for ``problem`` and of ``solution`` with its end token."""
    prompt = f"<|user|>{problem}{END}<|assistant|>"  # CHAT_TEMPLATE for one user message, without the cost of rendering it
    encoded = tokenizer([prompt, solution + END], add_special_tokens=False)["input_ids"]
    return encoded[0], encoded[1]
