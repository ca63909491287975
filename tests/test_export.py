"""The export command: from a checkpoint alone to a folder that transformers loads, without DeepSpeed, Ray or vLLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import small_config
from checkpoint_support import TAG, PlainState, save_learner, save_whole
from learner_support import build_model, largest_difference
from safetensors.torch import load_file
from test_learner_checkpoint import files_end_at

from fr3e_async.cli.main import run as fr3e
from fr3e_async.control.progress import Progress
from fr3e_async.learner.export import write_model
from fr3e_async.run.session import Session
from fr3e_async.store.checkpoints import CheckpointStore

EVALUATION = {"label": "step 5", "accuracy": 0.5, "low": 0.41, "high": 0.59, "problems": 100}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


def changed(base: Path) -> dict[str, torch.Tensor]:
    """The weights of the base model, but for something."""
    return {name: weight + 0.125 for name, weight in load_file(base / "model.safetensors").items()}


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints of steps 4 and 5, whose base model is gone."""
    folder, lost = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("lost") / "model"
    shutil.copytree(base, lost)
    store, progress = (
        CheckpointStore(folder / "checkpoints"),
        Progress(optimiser_steps=10, tokens_trained=1234, evaluations=[EVALUATION]),
    )
    for step in (4, 5):
        save_whole(store, step, base=lost, state=PlainState(changed(base)), progress=progress)
    shutil.rmtree(lost)
    settings = {"algorithm.strategy": "fr3e", "loss.clip_high": 0.28, "data.train": "toy", "learner.lr": 1e-6, "run.seed": 0}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    return folder


def test_a_run_becomes_a_model_folder(run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert fr3e(["export", str(run), str(tmp_path / "out")]) == 0
    assert "26 weights of version 5 in float32" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert largest_difference(dict(loaded.named_parameters()), changed(base)) == 0
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_ids_to_tokens([5, 9]) == ["w5", "w9"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: weight.shape for name, weight in stored.items()} == {
        name: weight.shape for name, weight in load_file(base / "model.safetensors").items()
    }
    same = {path.name for path in base.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == same | {"README.md"}
    assert not list(tmp_path.glob("*.tmp"))


def test_the_card_tells_what_was_done(run: Path, tmp_path: Path) -> None:
    assert fr3e(["export", str(run), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "# base after 5 steps of fr3e", "Base model: `base`.", "| loss.clip_high | 0.28 |", "| data.train | toy |", "| learner.lr | 1e-06 |",
        "| optimiser steps | 10 |", "| trained tokens | 1234 |", "| step 5 | 50.0 % | 41.0 to 59.0 % |", "vllm serve", "| torch | ",
    ):  # fmt: skip
        assert line in card
    assert "run.seed" not in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("source", ["checkpoints/step-00000004", f"checkpoints/step-00000004/{TAG}"])
def test_a_checkpoint_is_enough_of_itself(run: Path, tmp_path: Path, source: str) -> None:
    shutil.copytree(run / source, tmp_path / "elsewhere")
    assert fr3e(["export", str(tmp_path / "elsewhere"), str(tmp_path / "out")]) == 0
    assert "after 4 steps" in (tmp_path / "out" / "README.md").read_text()


def test_a_step_may_be_picked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fr3e(["export", str(run), str(tmp_path / "out"), "--step", "4"]) == 0
    assert "version 4" in capsys.readouterr().out


@pytest.mark.parametrize("made", [(), ("checkpoints",)])
@pytest.mark.parametrize("step", [(), ("--step", "4")])
def test_a_run_without_a_checkpoint_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: tuple[str, ...], step: tuple[str, ...]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    for name in made:
        (tmp_path / name).mkdir()
    assert fr3e(["export", str(tmp_path), str(tmp_path / "out"), *step]) == 2
    output = capsys.readouterr().err
    assert output == f"error: {tmp_path} has no checkpoint yet: the run ended, or is, before its first one\n"


@pytest.mark.slow
def test_the_command_loads_neither_deepspeed_nor_ray_nor_vllm(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from fr3e_async.cli.main import run; code = run(['export', *sys.argv[1:]]); "
        "print(code, {m.partition('.')[0] for m in sys.modules} & {'ray', 'vllm', 'deepspeed'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), str(tmp_path / "out")], capture_output=True, text=True, timeout=600
    )
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert fr3e(["export", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("CHECKPOINT_OR_RUN", "OUT", "--dtype", "--step"))


def damaged(run: Path, folder: Path) -> Path:
    """A copy of the run in which one bit of a weight of step 5 is another."""
    shutil.copytree(run, folder)
    weights = next((run / "checkpoints" / "step-00000005" / TAG).glob("*.safetensors"))
    weight = load_file(weights)["master/model.embed_tokens.weight/0"]
    shard = next((folder / "checkpoints" / "step-00000005" / TAG).glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 100] ^= 1
    shard.write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}"], "Missing argument 'OUT'. (see fr3e export --help)"),
        (["{run}", "{out}", "--dtype", "int4"], "'int4' is not one of 'bfloat16', 'float32'"),
        (["{run}", "{out}", "--step", "9"], "has no checkpoint of step 9; there are: 4, 5"),
        (["{run}/checkpoints/step-00000004", "{out}", "--step", "4"], "--step is for a run directory"),
        (["{tmp}", "{out}"], "is neither a checkpoint nor a run directory"),
        (["{tmp}/nowhere", "{out}"], "is neither a checkpoint nor a run directory"),
        (["{run}", "{run}"], "is there already; choose a new folder"),
        (["{damaged}", "{out}", "--step", "5"], "does not have the checksum it was written with"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    places = {"run": run, "out": tmp_path / "out", "tmp": tmp_path, "damaged": tmp_path / "damaged"}
    if "{damaged}" in arguments:
        damaged(run, tmp_path / "damaged")
    assert fr3e(["export", *(word.format(**places) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
    assert not list(tmp_path.glob("out*"))


def test_a_failed_write_is_one_line_and_leaves_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files_end_at(20_000):
        assert fr3e(["export", str(run), str(tmp_path / "out")]) == 2
    error = f"error: the model folder: cannot write to {tmp_path / 'out'}: File too large\n"
    assert capsys.readouterr() == ("", error)
    assert not list(tmp_path.iterdir())


def test_a_card_that_cannot_be_written_is_no_failure_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir: Any = SimpleNamespace(path=tmp_path)  # without the model's folder
    nothing: Any = None
    session = Session(
        small_config(), nothing, nothing, run_dir, resume_from=None, clock=time.monotonic, started_at=0.0, spell=lambda tokens: []
    )
    session.write_card()
    output = capsys.readouterr().out
    assert output.startswith(f"the model's README.md was not written: run.dir: cannot write to {tmp_path}: No such file")
    assert output.count("\n") == 1


def test_a_damaged_newest_one_gives_way_to_the_one_before(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damaged(run, tmp_path / "damaged")
    assert fr3e(["export", str(folder), str(tmp_path / "out")]) == 0
    assert "version 4" in capsys.readouterr().out


def test_weights_in_several_files_have_an_index(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = changed(base)
    write_model(tmp_path / "out", iter(weights.items()), dtype="float32", base=base, limit=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert files == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    assert max((tmp_path / "out" / name).stat().st_size for name in files) < 24_000
    assert largest_difference(dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters()), weights) == 0


def test_names_on_disk_are_those_of_the_base_model_where_memory_has_others(tmp_path: Path) -> None:
    """Experts are joined in memory and apart on disk."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, **sizes
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    before = load_file(tmp_path / "base" / "model.safetensors")
    save_learner(tmp_path / "c", PlainState({n: p.detach() for n, p in model.named_parameters()}), base=tmp_path / "base")
    assert fr3e(["export", str(tmp_path / "c"), str(tmp_path / "out")]) == 0
    assert largest_difference(load_file(tmp_path / "out" / "model.safetensors"), before) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert largest_difference(dict(loaded.named_parameters()), dict(model.named_parameters())) == 0


def test_buffers_and_a_quantised_base(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    config = json.loads((copy / "config.json").read_text())
    config.update(quantization_config={"quant_method": "fp8"}, torch_dtype="float16", text_config={"dtype": "float16"})
    (copy / "config.json").write_text(json.dumps(config))
    from fr3e_async.learner.export import set_dtype

    set_dtype(copy / "config.json", "bfloat16")
    written = json.loads((copy / "config.json").read_text())
    assert (written["torch_dtype"], written["text_config"], "quantization_config" in written) == (
        "bfloat16",
        {"dtype": "bfloat16"},
        False,
    )
    state = PlainState(changed(base), buffers={"model.bias": torch.tensor([1.5, 2.5])})
    save_learner(tmp_path / "c", state, base=base)
    assert fr3e(["export", str(tmp_path / "c"), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")["model.bias"]
    assert torch.equal(kept, torch.tensor([1.5, 2.5]))
