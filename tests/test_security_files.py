"""Models, checkpoints and dumps from strangers: nothing in them is run, and no name in them leads out of their folder.

Each hostile file would leave a canary; each test also sees to it that the canary would sing.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import small_config
from checkpoint_support import TAG, PlainState, save_whole
from cli_support import TOY, Cli, guarded_cli, make_model
from learner_support import build_model, make_spec

from fr3e_async.cli.main import run as fr3e
from fr3e_async.config import DataConfig, EngineConfig
from fr3e_async.data.model import check_model, load_tokenizer
from fr3e_async.data.prompts import encode_prompt
from fr3e_async.data.toy.tokenizer import build_tokenizer
from fr3e_async.errors import ModelError, StorageError
from fr3e_async.files.jsonl import checked_json, read_checked_json
from fr3e_async.learner import checkpoint
from fr3e_async.learner.checkpoint import copy_base, damage
from fr3e_async.learner.dump import STEP, read_dump
from fr3e_async.learner.policy import load_policy
from fr3e_async.store.checkpoints import CheckpointStore

INDEX = "model.safetensors.index.json"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A path that no test may find made; that a payload does make it is tried first."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(path)))
    path.rmdir()
    yield path
    assert not path.exists(), "something in the file was run"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


def put_pickle(path: Path, canary: Path) -> None:
    """As ``torch.save`` would write it."""
    torch.save({"weight": Payload(canary)}, path)


# ---- models ----


def test_a_model_of_pickles_is_refused(cli: Cli, canary: Path) -> None:
    folder = make_model(cli.folder / "model")
    (folder / "model.safetensors").unlink()
    put_pickle(folder / "pytorch_model.bin", canary)
    cli.refused(*TOY, "model.path=model", says=["model.path: model has no weights (*.safetensors; other formats can carry code"])


def test_pickles_beside_safetensors_are_not_read(tmp_path: Path, canary: Path) -> None:
    folder = build_model(tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        put_pickle(folder / name, canary)
    assert load_policy(make_spec(folder)).causal_lm.config.vocab_size > 0
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_policy(make_spec(folder))


def test_a_pickle_under_the_name_of_safetensors_is_not_run(tmp_path: Path, canary: Path) -> None:
    from safetensors import SafetensorError

    folder = build_model(tmp_path / "model")
    put_pickle(folder / "model.safetensors", canary)
    with pytest.raises((SafetensorError, OSError)):
        load_policy(make_spec(folder))


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (
            {"a": "pytorch_model.bin"},
            f"{INDEX} of model lists 'pytorch_model.bin', which is no *.safetensors file of that folder",
        ),
        ({"a": "../other/model.safetensors"}, "lists '../other/model.safetensors'"),
        ({"a": "/etc/model.safetensors"}, "lists '/etc/model.safetensors'"),
        ({"a": ["model.safetensors"]}, "which is no *.safetensors file"),
        ("model.safetensors", "lacks weights"),
        (["model.bin"], "which is no *.safetensors file"),
    ],
)
def test_an_index_leads_nowhere_else(cli: Cli, listed: Any, says: str) -> None:
    make_model(cli.folder / "other")
    folder = make_model(cli.folder / "model")
    (folder / INDEX).write_text(json.dumps({"weight_map": listed if listed != "model.safetensors" else {"a": "b.safetensors"}}))
    cli.refused(*TOY, "model.path=model", says=["model.path: ", says])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", "[" * 100_000, "config.json of model cannot be read"),
        ("config.json", '{"vocab_size": ' + "9" * 5000 + "}", "config.json of model cannot be read"),
        ("generation_config.json", '{"eos_token_id": "0; import os"}', "must be token ids"),
        ("generation_config.json", '{"eos_token_id": [1, null]}', "must be token ids"),
        ("generation_config.json", '{"eos_token_id": -1}', "must be token ids"),
        ("tokenizer_config.json", "[" * 100_000, "no tokenizer could be loaded from model"),
    ],
)
def test_a_surprising_config_is_one_line(cli: Cli, name: str, text: str, says: str) -> None:
    (make_model(cli.folder / "model") / name).write_text(text)
    cli.refused(*TOY, "model.path=model", says=["model.path: ", says])


def with_code(folder: Path, canary: Path, *, kind: str = "evil") -> Path:
    """Give a model folder Python code that its config, and its tokenizer's, ask to be loaded by."""
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    maps = {
        "config.json": {"model_type": kind, "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        "tokenizer_config.json": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
    }
    for name, entries in maps.items():
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | entries))
    return folder


def test_code_of_a_model_is_not_run(cli: Cli, canary: Path) -> None:
    with_code(make_model(cli.folder / "model"), canary)
    cli.refused(
        *TOY, "model.path=model", says=["model.path: no tokenizer could be loaded from model", "model.trust_remote_code=true"]
    )


def test_the_learner_does_not_run_code_of_a_model(tmp_path: Path, canary: Path) -> None:
    spec = make_spec(with_code(build_model(tmp_path / "model"), canary))
    assert not spec.trust_remote_code
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_policy(spec)


def test_that_code_is_run_for_those_who_trust_it(tmp_path: Path) -> None:
    """Else the two tests before this one would say nothing."""
    made = tmp_path / "made"
    spec = make_spec(with_code(build_model(tmp_path / "model"), made))
    with pytest.raises(AttributeError):  # it defines no classes
        load_policy(replace(spec, trust_remote_code=True))
    assert made.is_dir()


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{% set ns = namespace() %}{{ ns.__class__.__base__.__subclasses__() }}",
        "{{ 1 // 0 }}",
        "{{ range(10 ** 12) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(canary: Path, template: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template.replace("CANARY", str(canary))
    with pytest.raises(ModelError, match="its chat template refuses these messages"):
        encode_prompt("1+1", tokenizer, DataConfig())


# ---- links ----


def test_a_link_out_of_a_model_folder_is_refused_and_never_copied(cli: Cli, tmp_path: Path) -> None:
    key = tmp_path / "auth_token"
    key.write_text("secret")
    folder = make_model(cli.folder / "model")
    (folder / "notes.txt").symlink_to(key)
    cli.refused(*TOY, "model.path=model", says=["model.path: notes.txt of model is a link to a file outside of that folder"])
    (folder / "inner.txt").symlink_to(folder / "config.json")
    for other in ("model.safetensors.index.json", "weights.h5", "photo.png", "run"):  # weights, and what no model reads
        (folder / other).write_text("{}")
    copy_base(folder, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "inner.txt",
    }


def test_the_hubs_own_cache_of_links_is_a_model_folder(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--o--m" / "blobs", tmp_path / "models--o--m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(make_model(tmp_path / "plain").iterdir())):
        path.rename(blobs / f"{number}")
        (snapshot / path.name).symlink_to(blobs / f"{number}")
    config = small_config(model={"path": str(snapshot)})
    check_model(config)
    assert load_tokenizer(config).eos_token == "<end>"
    copy_base(snapshot, tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").is_file()


# ---- checkpoints ----


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with one checkpoint, of a model that transformers knows."""
    base = build_model(tmp_path / "base")
    weights = dict(load_policy(make_spec(base)).named_weights())
    state = PlainState({name: weight.detach() for name, weight in weights.items()})
    save_whole(CheckpointStore(tmp_path / "run" / "checkpoints"), 5, base=base, state=state)
    return tmp_path / "run"


def learner_of(run: Path) -> Path:
    return run / "checkpoints" / "step-00000005" / TAG


def committed_again(run: Path) -> None:
    """Make the outer manifest agree with what was done: a checksum keeps damage out, not malice."""
    store, folder = CheckpointStore(run / "checkpoints"), run / "checkpoints" / "step-00000005"
    (folder / "checkpoint.json").unlink()
    filled = shutil.move(folder, folder.with_name("again"))
    store.commit(Path(filled), 5)


def exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = fr3e(["export", str(run), str(tmp_path / "out"), *arguments])
    return code, capsys.readouterr().err


def test_pickles_in_a_checkpoint_are_never_read(
    run: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = learner_of(run)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "random_states_0.pkl", "latest"):
        put_pickle(folder / name, canary)
    committed_again(run)
    assert damage(folder) == ""
    assert exported(run, tmp_path, capsys) == (0, "")
    assert not list((tmp_path / "out").glob("*.p*t*"))


def test_a_pickle_under_the_name_of_a_shard_is_refused(
    run: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = learner_of(run)
    shard = next(folder.glob("rank-*.safetensors"))
    put_pickle(shard, canary)
    content = read_checked_json(folder / checkpoint.MANIFEST)
    content["files"][shard.name] = shard.stat().st_size
    (folder / checkpoint.MANIFEST).write_text(checked_json(content))
    committed_again(run)
    assert "cannot be read" in damage(folder)
    code, output = exported(run, tmp_path, capsys)
    assert (code, output.count("\n")) == (2, 1)
    state = PlainState({"model.norm.weight": torch.zeros(32)})
    state_of_run = checkpoint.Manifest.read(folder)
    state.weights = {name: torch.zeros(shape) for name, shape in state_of_run.shapes.items()}
    with pytest.raises(StorageError, match="cannot be read"):
        checkpoint.load(folder, state, rank=0, world=1, seed=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["files"].update({"../../../../elsewhere.safetensors": 1}), "names '../../../../elsewhere.safetensors'"),
        (lambda c: c["pieces"][0].__setitem__(4, "/etc/x.safetensors"), "names '/etc/x.safetensors'"),
        (lambda c: c["pieces"][0].__setitem__(4, "weights.pt"), "names 'weights.pt'"),
        (lambda c: c["pieces"].append(["x"]), "is no manifest of a learner checkpoint"),
        (lambda c: c.update({"pieces": 5}), "is no manifest of a learner checkpoint"),
        (lambda c: c.update({"surprise": 5}), "is no manifest of a learner checkpoint"),
        (lambda c: c.update({"files": [1]}), "is no manifest of a learner checkpoint"),
    ],
)
def test_no_name_in_a_checkpoint_leads_out_of_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], Any], says: str
) -> None:
    folder = learner_of(run)
    content = read_checked_json(folder / checkpoint.MANIFEST)
    change(content)
    (folder / checkpoint.MANIFEST).write_text(checked_json(content))
    committed_again(run)
    assert says in damage(folder)
    code, output = exported(run, tmp_path, capsys, "--step", "5")
    assert (code, output.count("\n")) == (2, 1)
    assert says in output


def test_an_export_runs_no_code_of_the_checkpoint(
    run: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(learner_of(run) / checkpoint.BASE, canary)
    committed_again(run)
    code, output = exported(run, tmp_path, capsys)
    assert (code, output.count("\n")) == (2, 1)
    assert "the model comes with Python code of its own" in output
    assert "--trust-remote-code" in output
    assert not list(tmp_path.glob("out*"))


def test_code_that_a_checkpoint_carries_and_does_not_need_is_no_obstacle(
    run: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code(learner_of(run) / checkpoint.BASE, canary, kind="qwen2")
    committed_again(run)
    assert exported(run, tmp_path, capsys) == (0, "")


def test_an_export_runs_that_code_for_those_who_trust_it(run: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with_code(learner_of(run) / checkpoint.BASE, made)
    committed_again(run)
    with pytest.raises(AttributeError):  # it defines no classes
        fr3e(["export", str(run), str(tmp_path / "out"), "--trust-remote-code"])
    assert made.is_dir()


def test_links_in_a_checkpoint_are_not_followed_into_an_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "auth_token"
    key.write_text("secret")
    (learner_of(run) / checkpoint.BASE / "notes.txt").symlink_to(key)
    committed_again(run)
    assert exported(run, tmp_path, capsys) == (0, "")
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_the_pointer_to_the_newest_checkpoint_leads_to_no_other_folder(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000005", tmp_path / "step-00000009")
    for text in ("../../step-00000009", str(tmp_path / "step-00000009"), "step-00000005/../../../step-00000009", "\x1b[2J"):
        (run / "checkpoints" / "latest").write_text(text)
        store = CheckpointStore(run / "checkpoints")
        store.recover()
        assert store.latest() == run / "checkpoints" / "step-00000005"


# ---- dumps of failed steps ----


def test_objects_in_a_dump_are_not_unpickled(tmp_path: Path, canary: Path) -> None:
    np.savez(tmp_path / "rank-0.npz", lengths=np.array([Payload(canary)], dtype=object), contexts=np.zeros(1))
    assert "lengths.npy" in zipfile.ZipFile(tmp_path / "rank-0.npz").namelist()
    (tmp_path / STEP).write_text(json.dumps({"ranks": 1, "learner": {}, "loss_config": {}}))
    with pytest.raises(StorageError, match="Object arrays cannot be loaded"):
        read_dump(tmp_path)


@pytest.mark.engine
def test_engines_read_safetensors_and_run_no_code_of_a_model(tmp_path: Path) -> None:
    from fr3e_async.rollout import EngineSpec
    from fr3e_async.rollout.vllm_terms import engine_args

    args = engine_args(EngineSpec(model=str(tmp_path), end_token_ids=(1,), max_model_len=8))
    assert (args.load_format, args.trust_remote_code) == ("safetensors", False)


@pytest.mark.engine
def test_engines_of_several_gpus_start_workers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's Ray executor, which it takes inside a placement group, refuses a bundle of more than one GPU. On GPUs a step has 8,192 tokens."""
    from fr3e_async.rollout import EngineSpec, vllm_terms

    spec = EngineSpec(model=str(tmp_path), end_token_ids=(1,), max_model_len=8, tensor_parallel=2)
    assert vllm_terms.engine_args(spec).distributed_executor_backend == "mp"
    monkeypatch.setattr(vllm_terms, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    assert vllm_terms.engine_args(spec).max_num_batched_tokens == 8192
    told = replace(spec, engine=EngineConfig(options={"max_num_batched_tokens": 2048}))
    assert vllm_terms.engine_args(told).max_num_batched_tokens == 2048
