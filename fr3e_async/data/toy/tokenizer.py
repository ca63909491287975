"""The toy model's own tokenizer: every byte, and as whole tokens the numbers 10-99 and the words of the task.

A fixed vocabulary without merges, nothing is learnt. It is a Qwen2 tokenizer because transformers loads that class for
every Qwen2 model, whatever the folder says; whole words are therefore added tokens, which that class leaves alone.
Decoding what was encoded gives any text back exactly. Knows nothing of problems or models.
"""

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

PAD, END = "<|pad|>", "<|end|>"
SPECIAL = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
LABELS = tuple(f"{line}{step}) " for line in ("", "\n") for step in range(1, 10))
TERMS = tuple(f"{operator}{digit}" for operator in "+-*" for digit in range(1, 10))
WORDS = ("Start with ", "\\boxed{", "\n\\boxed{", *LABELS, *TERMS, *(str(number) for number in range(10, 100)))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """A fast tokenizer with end and pad tokens and a chat template for system, user and assistant."""
    letters = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}  # one for each of the 256 bytes
    tokenizer = Qwen2Tokenizer(
        vocab=letters,
        merges=[],
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL[2:]),
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in WORDS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode_example(tokenizer: Qwen2Tokenizer, problem: str, solution: str) -> tuple[list[int], list[int]]:
    """Token ids of the chat prompt for ``problem`` and of ``solution`` with its end token."""
    prompt = f"<|user|>{problem}{END}<|assistant|>"  # CHAT_TEMPLATE for one user message, without the cost of rendering it
    encoded = tokenizer([prompt, solution + END], add_special_tokens=False)["input_ids"]
    return encoded[0], encoded[1]
