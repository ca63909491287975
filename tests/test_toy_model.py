"""The toy's tokenizer and model folder: text comes back, equal seeds give equal bytes, no folder is ever half built."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from fr3e_async.config import Config, EngineConfig, RunConfig, ToyConfig
from fr3e_async.data.toy import cache, ensure_toy, toy_path, warm_start
from fr3e_async.data.toy.task import toy_task, write_solution
from fr3e_async.data.toy.tokenizer import build_tokenizer, encode_example
from fr3e_async.errors import StorageError

TOKENIZER = build_tokenizer()


def tiny(folder: Path, *, seed: int = 0, steps: int = 2) -> Config:
    toy = ToyConfig(train_problems=50, heldout_problems=20, warm_start_steps=steps, cache_dir=str(folder))
    return Config(run=RunConfig(seed=seed), toy=toy, engine=EngineConfig(kv_cache_gib=0.1))


@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("0123456789+-*=) \n\\{}", max_size=40))
def test_any_text_survives_the_tokenizer(text):
    text = unicodedata.normalize("NFC", text)  # as Qwen2 tokenizers do
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_a_number_a_label_a_term_and_the_box_are_one_token_each():
    ids = TOKENIZER("1) 12-4=8\n\\boxed{8}", add_special_tokens=False)["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["1) ", "12", "-4", "=", "8", "\n\\boxed{", "8", "}"]


def test_ids_are_dense():
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(len(TOKENIZER)))


def test_chat_template_has_roles_and_matches_the_warm_start():
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "Start with 3."}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>Start with 3.<|end|><|assistant|>"
    prompt, solution = encode_example(TOKENIZER, "Start with 3.", "\\boxed{3}")
    assert TOKENIZER(text, add_special_tokens=False)["input_ids"] == prompt
    assert solution[-1] == TOKENIZER.eos_token_id


def test_problems_and_solutions_are_short():
    train, _ = toy_task(ToyConfig(), seed=0)
    lengths = [encode_example(TOKENIZER, p.text, write_solution(p, random.Random(0), 0.0)) for p in train]
    assert max(len(prompt) for prompt, _ in lengths) <= 16
    assert max(len(solution) for _, solution in lengths) <= 24
    assert min(len(solution) for _, solution in lengths) >= 18


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(tmp_path):
    first, again, other = (ensure_toy(tiny(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in again.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_the_folder_loads_in_transformers_as_float32(tmp_path):
    folder = ensure_toy(tiny(tmp_path))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == TOKENIZER.chat_template
    for text in ("2) 12*2=24\n", "<|user|>Start with 12.\n1) +5<|end|><|assistant|>"):  # transformers picks a class by model type
        assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_cached_model_is_not_built_again(tmp_path, monkeypatch):
    folder = ensure_toy(tiny(tmp_path))
    monkeypatch.setattr(cache, "build", lambda config, target: pytest.fail("built twice"))
    assert ensure_toy(tiny(tmp_path)) == folder


def test_the_key_covers_seed_and_settings_but_not_the_place(tmp_path):
    names = {toy_path(tiny(tmp_path)).name, toy_path(tiny(tmp_path, seed=1)).name, toy_path(tiny(tmp_path, steps=3)).name}
    assert len(names) == 3
    assert toy_path(tiny(tmp_path / "elsewhere")).name in names


def test_a_failed_build_leaves_no_model_and_the_next_one_works(tmp_path, monkeypatch):
    def broken(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(warm_start, "save_model", broken)
        with pytest.raises(KeyboardInterrupt):
            ensure_toy(tiny(tmp_path))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    remains = toy_path(tiny(tmp_path)).with_suffix(".unfinished")  # of a build that was killed outright
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    assert (ensure_toy(tiny(tmp_path)) / "model.safetensors").stat().st_size > 1_000_000


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"toy\.cache_dir"):
        ensure_toy(tiny(tmp_path / "file" / "below"))


def _build_and_report(folder: str, queue: multiprocessing.Queue) -> None:
    queue.put(str(ensure_toy(tiny(Path(folder)))))


@pytest.mark.slow
def test_two_processes_at_once_give_one_whole_model(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue = context.Queue()
    workers = [context.Process(target=_build_and_report, args=(str(tmp_path), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    folders = {queue.get(timeout=600) for _ in workers}
    for worker in workers:
        worker.join(timeout=600)
        assert worker.exitcode == 0
    assert len(folders) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [Path(folders.pop()).name]


def test_torch_is_as_before_after_a_build(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    ensure_toy(tiny(tmp_path))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_reading_rows_needs_no_torch():
    code = "import sys, fr3e_async.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent.parent).returncode == 0
