"""Tokenizers of bytes made on the spot, and chat templates as the known model families write them, cut down to plain messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family's tokenizer and chat template are like, and what becomes of the problem "2+3=?"."""

    template: str
    eos: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()  # added tokens that are not special
    bos: str | None = None
    prompt: str  # up to where the answer begins
    closes: str  # the token behind an answer

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return make_tokenizer(eos=self.eos, bos=self.bos, special=self.special, plain=self.plain, template=self.template)


def make_tokenizer(
    *,
    eos: str = "</s>",
    bos: str | None = None,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    template: str | None = None,
    around: str = "",
) -> PreTrainedTokenizerFast:
    """A token is a byte, or one of the added ones. ``around``: what the tokenizer itself puts around a text, as ``"<s> $A"``."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=eos,
        bos_token=bos,
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=True,
    )
    tokenizer.add_tokens(list(plain))
    if around:
        names = [name for name in around.split() if name != "$A"]
        ids: Any = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    tokenizer.chat_template = template
    return tokenizer


CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
)
NO_THOUGHT = "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n2+3=?<|im_end|>\n<|im_start|>assistant\n"

FAMILIES = {
    "chatml": Family(
        template=CHATML + "{%- endif %}",
        eos="<|endoftext|>",
        special=("<|im_start|>", "<|im_end|>"),
        prompt=TURN,
        closes="<|im_end|>",
    ),
    "qwen3": Family(
        template=CHATML + NO_THOUGHT + "{%- endif %}",
        eos="<|im_end|>",
        special=("<|im_start|>", "<|endoftext|>"),
        plain=("<think>", "</think>"),
        prompt=TURN,
        closes="<|im_end|>",
    ),
    "qwen3-thinking": Family(
        template=CHATML + "{{- '<think>\\n' }}{%- endif %}",
        eos="<|im_end|>",
        special=("<|im_start|>", "<|endoftext|>"),
        plain=("<think>", "</think>"),
        prompt=TURN + "<think>\n",
        closes="<|im_end|>",
    ),
    "llama3": Family(
        template=(
            "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
            "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
            "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
            "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
            "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{{- 'Cutting Knowledge Date: December 2023\\n' }}"
            "{{- 'Today Date: ' + date_string + '\\n\\n' }}{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}"
            "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
        ),
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        prompt=(
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n2+3=?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        closes="<|eot_id|>",
    ),
    "deepseek-r1-distill": Family(
        template=(
            "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
            "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
            "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
            "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
            "{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}"
            "{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
        ),
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        plain=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        prompt="<｜begin▁of▁sentence｜><｜User｜>2+3=?<｜Assistant｜><think>\n",
        closes="<｜end▁of▁sentence｜>",
    ),
    "gemma": Family(
        template=(
            "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
            "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
            "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
        ),
        eos="<eos>",
        bos="<bos>",
        special=("<start_of_turn>", "<end_of_turn>"),
        prompt="<bos><start_of_turn>user\n2+3=?<end_of_turn>\n<start_of_turn>model\n",
        closes="<end_of_turn>",
    ),
    "mistral": Family(
        template=(
            "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
            "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
            "{{ ' ' + message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
            "{% endfor %}"
        ),
        eos="</s>",
        bos="<s>",
        special=("[INST]", "[/INST]"),
        prompt="<s>[INST] 2+3=? [/INST]",
        closes="</s>",
    ),
    "phi3": Family(
        template=(
            "{% for message in messages %}{{'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
        ),
        eos="<|endoftext|>",
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        prompt="<|user|>\n2+3=?<|end|>\n<|assistant|>\n",
        closes="<|end|>",
    ),
    "glm4": Family(  # the next question closes an answer
        template=(
            "[gMASK]<sop>{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        ),
        eos="<|endoftext|>",
        special=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
        prompt="[gMASK]<sop><|user|>\n2+3=?<|assistant|>",
        closes="<|user|>",
    ),
    "channels": Family(  # as gpt-oss: an earlier answer ends with the token that ends a thought
        template=(
            "{%- for message in messages %}{%- if message.role == 'assistant' %}"
            "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
            "{%- if loop.last and not add_generation_prompt %}{{- '<|return|>' }}{%- else %}{{- '<|end|>' }}{%- endif %}"
            "{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
        ),
        eos="<|return|>",
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        prompt="<|start|>user<|message|>2+3=?<|end|><|start|>assistant",
        closes="<|return|>",
    ),
}
# Of models that see: a message is a list of parts, and from a plain text nothing is written.
WANTS_PARTS = (
    "{% for message in messages %}<s>{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
)
