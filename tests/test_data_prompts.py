"""Rows to prompts, and the model folder checks: templates, length limits, and faults that name their setting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fr3e_async.config import Config, DataConfig, EngineConfig, ModelConfig
from fr3e_async.data.model import check_model, load_tokenizer, resolve_model
from fr3e_async.data.prompts import encode_prompt, load_datasets, make_prompts
from fr3e_async.data.row import DataRow
from fr3e_async.data.rows import Rows
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.errors import DataError, ModelError

TOKENIZER = build_tokenizer()


def row(problem: str, line: int = 1) -> DataRow:
    return DataRow(uid=f"f:{line}", problem=problem, answer="5", source=f"f.jsonl:{line}")


def config(path: Path | str = "toy", **data: object) -> Config:
    return Config(model=ModelConfig(path=str(path)), data=DataConfig(**data), engine=EngineConfig(kv_cache_gib=0.1))


def text(problem: str, tokenizer=TOKENIZER, **data: object) -> str:
    return tokenizer.decode(encode_prompt(problem, tokenizer, DataConfig(**data)))


@pytest.fixture
def folder(tmp_path):
    """A model folder that passes the checks; its weights are never read."""
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_the_chat_template_frames_the_problem():
    assert text("2+3") == "<|user|>2+3<|end|><|assistant|>"
    assert text("2+3", system="Be brief.", template="Q: {problem} {x}") == (
        "<|system|>Be brief.<|end|><|user|>Q: 2+3 {x}<|end|><|assistant|>"
    )


def test_braces_in_a_problem_are_left_alone():
    assert text(r"\frac{1}{2} {problem} {0}") == r"<|user|>\frac{1}{2} {problem} {0}<|end|><|assistant|>"


def test_without_a_chat_template_the_plain_text_is_used():
    base = build_tokenizer()
    base.chat_template = None
    assert text("2+3", base, system="Be brief.") == "Be brief.\n\n2+3\n"


def test_a_template_that_refuses_the_messages_is_named():
    strict = build_tokenizer()
    strict.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ModelError, match=r"no system role.*data\.system"):
        text("2+3", strict)


def test_prompts_hold_int32_ids_and_the_gold_answer():
    (prompt,) = make_prompts([row("2+3")], TOKENIZER, DataConfig())
    assert (prompt.uid, prompt.text, prompt.reference, prompt.token_ids.dtype) == ("f:1", "2+3", "5", np.int32)


def test_a_long_prompt_is_refused_with_its_place_and_the_setting():
    with pytest.raises(DataError, match=r"^f\.jsonl:2: the prompt has 10 tokens, data\.max_prompt is 6"):
        make_prompts([row("2+3"), row("2 3 4 5", line=2)], TOKENIZER, DataConfig(max_prompt=6))


def test_long_prompts_can_be_dropped_and_are_counted():
    rows = Rows(train=(row("2+3"), row("2 3 4 5", line=2)), heldout=(row("9 9 9 9"), row("1")))
    datasets = load_datasets(config(max_prompt=6, on_long_prompt="drop"), TOKENIZER, rows)
    assert [prompt.text for prompt in datasets.train + datasets.heldout] == ["2+3", "1"]
    assert datasets.dropped == 2


def test_nothing_left_to_train_on_is_an_error():
    rows = Rows(train=(row("2 3 4 5"),), heldout=())
    with pytest.raises(DataError, match=r"data\.train: all 1 prompts are longer than data\.max_prompt = 6"):
        load_datasets(config(max_prompt=6, on_long_prompt="drop"), TOKENIZER, rows)


def test_the_toy_is_read_whole_and_fits_a_small_limit():
    datasets = load_datasets(config(max_prompt=24), load_tokenizer(config()))
    assert (len(datasets.train), len(datasets.heldout), datasets.dropped) == (4096, 1024, 0)


def test_a_whole_folder_and_a_hub_id_pass(folder):
    assert resolve_model(config(folder)) == folder.resolve()
    assert load_tokenizer(config(folder)).eos_token == "<|end|>"
    assert load_tokenizer(config(folder), folder).get_vocab() == TOKENIZER.get_vocab()
    assert resolve_model(config("Qwen/Qwen2.5-7B")) == "Qwen/Qwen2.5-7B"


@pytest.mark.parametrize(
    ("removed", "message"),
    [("config.json", "has no config.json"), ("tokenizer.json", "has no tokenizer"), ("model.safetensors", "has no weights")],
)
def test_a_folder_that_lacks_something_is_named(folder, removed, message):
    (folder / removed).unlink()
    with pytest.raises(ModelError, match=rf"^model\.path: .* {message}"):
        check_model(config(folder))


def test_pickled_weights_are_not_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has no weights"):
        resolve_model(config(folder))


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "a/b/c", "~nobody-here/x", ""])
def test_a_path_that_leads_nowhere_is_named(path):
    with pytest.raises(ModelError, match=r"^model\.path: "):
        check_model(config(path))


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(ModelError, match="is a file"):
        check_model(config(folder / "config.json"))


def test_a_tokenizer_without_end_token_is_refused(folder):
    endless = build_tokenizer()
    endless.eos_token = None
    endless.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"^model\.path: .* no end token"):
        load_tokenizer(config(folder))


def test_a_broken_tokenizer_is_refused_in_one_line(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"^model\.path: no tokenizer could be loaded from") as raised:
        load_tokenizer(config(folder))
    assert "\n" not in str(raised.value)


def test_datasets_are_frozen():
    datasets = load_datasets(config(), TOKENIZER, Rows(train=(row("1"),), heldout=()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        datasets.dropped = 3
