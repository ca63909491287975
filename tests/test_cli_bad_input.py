"""Bad input by the real command line: exit code 2, one line that names cause and setting, nothing started, nothing left behind."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from chat_support import WANTS_PARTS
from cli_support import POSITIONS, ROWS, TOY, Cli, assert_one_line, everything_below, guarded_cli, make_model, process, write_rows

from fr3e_async.errors import UserError
from fr3e_async.files import durable as storage
from fr3e_async.settings.loader import load_config
from fr3e_async.store.run_dir import RunDir


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with guarded_cli(tmp_path, monkeypatch, capsys) as guarded:
        yield guarded


@pytest.fixture
def model(cli: Cli) -> Path:
    return make_model(cli.folder / "model")


# ---- settings ----


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("run.stepz=3", ["run.stepz=3: unknown setting run.stepz", "did you mean run.steps?"]),
        ("leaner.lr=1e-6", ["unknown setting leaner.lr", "did you mean learner.lr?"]),
        ("lr=1e-6", ["unknown setting lr", "did you mean critic.lr or learner.lr?"]),
        ("run.steps=many", ["run.steps must be a whole number, got 'many'"]),
        ("learner.lr=fast", ["learner.lr must be a number, got 'fast'"]),
        ("algorithm.alpha=perhaps", ["algorithm.alpha must be true or false, got 'perhaps'"]),
        (
            "algorithm.strategy=grop",
            ["must be one of fr3e, grpo, grpo_pp, ppo, rloo, tree_credit, vapo, vineppo, got 'grop'", "did you mean grpo?"],
        ),
        ("loss.importance=none", ["loss.importance must be one of truncate, mask, off, got 'none'"]),
        ("resume=always", ["resume must be one of never, auto, got 'always'"]),
        ("learner.betas=[0.9", ["learner.betas=[0.9", "not YAML"]),
        ("run.steps=0", ["run.steps must be positive, got 0"]),
        ("ray.object_store_gib=0.01", ["ray.object_store_gib must be at least 0.075, got 0.01"]),
    ],
)
def test_a_setting_that_is_unknown_or_mistyped(cli: Cli, argument: str, says: list[str]) -> None:
    cli.refused(*TOY, argument, says=says)


def test_a_setting_of_a_file_is_named_by_its_line(cli: Cli) -> None:
    (cli.folder / "mine.yaml").write_text("base: toy\nrun:\n  steps: 3\n  stepz: 4\n")
    cli.refused("config=mine.yaml", says=["mine.yaml:4: unknown setting run.stepz (did you mean run.steps?)"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["learner.minibatches=64"], ["learner.minibatches (64) is above flow.groups_per_step (32)"]),
        (["learner.micro_batch_tokens=64"], ["learner.micro_batch_tokens (64)", "data.max_prompt + sampling.max_response = 112"]),
        (["sampling.top_p=0.9"], ["sampling.top_p=0.9", "loss.importance=truncate", "set top_p=1 and top_k=0, or"]),
        (["sampling.top_k=5", "loss.importance=mask"], ["sampling.top_k=5", "loss.importance=mask"]),
        (["explorers.count=0"], ["explorers.count must be at least 1", "algorithm.strategy=fr3e"]),
        (["engine.kv_cache_gib=0"], ["engine.kv_cache_gib must be set when generators.gpus is 0"]),
        (["learner.dtype=bfloat16"], ["learner.dtype=bfloat16 needs learner.gpus=1"]),
        (["weights.transfer=collective", "generators.gpus=1"], ["weights.transfer=collective: learner.gpus", "got 0 and 0, 1"]),
        (["learner.zero_stage=4"], ["learner.zero_stage must be in [0, 3], got 4"]),
        (["toy.steps_min=5"], ["toy.steps_max (4) is below toy.steps_min (5)"]),
    ],
)
def test_settings_that_contradict_each_other(cli: Cli, arguments: list[str], says: list[str]) -> None:
    cli.refused(*TOY, *arguments, says=says)


# ---- resources: before the model is built and the run directory made ----


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["ray.num_cpus=1"],
            ["more actors than resources: 1.75 CPUs needed", "offers 1", "generators.count", "or raise ray.num_cpus"],
        ),
        (["ray.num_cpus=4", "generators.count=9"], ["5.75 CPUs needed (generators 9×0.5", "offers 4"]),
        (["generators.gpus=1"], ["1 GPUs needed (generators 1×1)", "offers 0", "generators.gpus"]),
        (["learner.gpus=1", "learner.ranks=2"], ["2 GPUs needed (learner 2×1)", "offers 0", "learner.ranks", "learner.gpus"]),
        (["ray.object_store_gib=1000000"], ["ray.object_store_gib=1e+06: this machine has", "GiB of memory"]),
        (["ray.address=nonsense"], ["ray.address=nonsense: an address is written host:port"]),
        (["ray.address=http://127.0.0.1:8265"], ["ray.address=http://127.0.0.1:8265: an address is written host:port"]),
    ],
)
def test_more_than_the_cluster_can_have(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cli.refused(*TOY, *arguments, says=says)


@pytest.mark.parametrize("setting", ["ray.address", "RAY_ADDRESS"])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer(cli: Cli, monkeypatch: pytest.MonkeyPatch, setting: str, scheme: str) -> None:
    with socket.socket() as unused:  # bound, not listening: nobody else can take the port, and connecting is refused
        unused.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        if setting == "RAY_ADDRESS":
            monkeypatch.setenv(setting, address)
        arguments = [f"{setting}={address}"] if setting == "ray.address" else []
        cli.refused(*TOY, *arguments, says=[f"{setting}={address}: no cluster answers", "refused"])


def test_a_local_cluster_that_does_not_come_up(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a bare exception when its node is too slow, as on a machine with much else to do."""
    from fr3e_async.wiring import connect, joining

    def slow(**settings: Any) -> NoReturn:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(joining.ray, "init", slow)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"^RAY_ADDRESS=local: Ray cannot start: The current node timed out during startup\.$"):
        connect(load_config(TOY).config)


@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_left_as_it_was(tmp_path: Path) -> None:
    import ray

    context = ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        model = make_model(tmp_path / "model")
        before = everything_below(tmp_path)
        address = context.address_info["gcs_address"]
        done = process(*TOY, f"ray.address={address}", f"model.path={model}", folder=tmp_path)
        assert_one_line(done.stderr, ["more actors than resources: 1.75 CPUs needed", "the cluster offers 1"])
        assert (done.returncode, done.stdout) == (2, f"joining the cluster at ray.address={address}\n")
        left = everything_below(tmp_path)
        assert {path: content for path, content in left.items() if not path.startswith("ray-was-here")} == before
        assert ray.cluster_resources()["CPU"] == 1
    finally:
        ray.shutdown()


# ---- data ----

GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([GOOD, '{"problem": "2+2"'], ["train.jsonl:2: not JSON"]),
        ([GOOD, "", "[1, 2]"], ["train.jsonl:3: a JSON object was expected, got list"]),
        ([GOOD, b'{"problem": "\xff", "answer": "1"}'], ["train.jsonl:2: not UTF-8"]),
        ([GOOD, '{"question": "2+2", "answer": "4"}'], ["train.jsonl:2: no text in column 'problem' (data.problem_field)"]),
        ([GOOD, GOOD, '{"problem": "2+2"}'], ["train.jsonl:3: no answer in column 'answer' (data.answer_field)"]),
        (['{"problem": "2+2", "answer": " "}'], ["train.jsonl:1: no answer in column 'answer' (data.answer_field)"]),
        (['{"problem": "2+2", "answer": "so #### "}'], ["train.jsonl:1: no answer"]),
        ([], ["train.jsonl: the file is empty", "data.train"]),
    ],
)
def test_a_row_that_cannot_be_used(cli: Cli, model: Path, rows: list[str | bytes], says: list[str]) -> None:
    write_rows(cli.folder / "train.jsonl", *rows)
    for path in ("model", "toy"):
        cli.refused(*TOY, f"model.path={path}", "data.train=train.jsonl", says=says)


@pytest.mark.parametrize("setting", ["data.train", "data.heldout"])
def test_a_data_file_that_is_not_there(cli: Cli, model: Path, setting: str) -> None:
    nowhere = "nowhere.jsonl: cannot be read (No such file or directory); see data.train, data.heldout"
    cli.refused(*TOY, f"{setting}=nowhere.jsonl", says=[nowhere])
    cli.refused(*TOY, f"{setting}=model", says=["model: cannot be read (Is a directory)"])


def test_a_heldout_problem_that_is_trained_on(cli: Cli, model: Path) -> None:
    write_rows(cli.folder / "train.jsonl", *ROWS)
    write_rows(cli.folder / "test.jsonl", '{"problem": "7+7", "answer": "14"}', ROWS[1])
    says = ["test.jsonl:2: this held-out problem is also a training problem (train.jsonl:2)", "data.heldout"]
    cli.refused(*TOY, "data.train=train.jsonl", "data.heldout=test.jsonl", says=says)


def test_a_bad_row_ends_the_real_process_before_anything_starts(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", *ROWS, "oops")
    before = everything_below(tmp_path)
    processes = {p.pid for p in psutil.process_iter()}
    done = process(*TOY, "data.train=train.jsonl", "toy.cache_dir=cache", folder=tmp_path)
    assert_one_line(done.stderr, ["train.jsonl:4: not JSON"])
    assert (done.returncode, done.stdout) == (2, "")
    assert everything_below(tmp_path) == before
    new = [p for p in psutil.process_iter(["name", "cwd"]) if p.pid not in processes and p.info["cwd"] == str(tmp_path)]
    assert new == []


def test_a_prompt_that_is_too_long_for_its_limit(cli: Cli, model: Path) -> None:
    write_rows(cli.folder / "train.jsonl", GOOD, json.dumps({"problem": "1+" * 300 + "1", "answer": "301"}))
    for path, tokens in (("model", "602 tokens"), ("toy", "tokens")):
        says = ["train.jsonl:2: the prompt has ", f"{tokens}, data.max_prompt is 48", "data.on_long_prompt=drop"]
        cli.refused(*TOY, f"model.path={path}", "data.train=train.jsonl", says=says)


# ---- the model ----


@pytest.mark.parametrize(
    ("changes", "arguments", "limit"),
    [
        ({}, ["sampling.max_response=81"], POSITIONS),
        ({}, ["data.max_prompt=65"], POSITIONS),
        ({"text_config": {"max_position_embeddings": 100}}, [], 100),
        ({"max_position_embeddings": None, "n_positions": 64}, [], 64),
        ({"rope_parameters": {"rope_type": "default"}}, ["sampling.max_response=81"], POSITIONS),
        ({}, ["engine.options={hf_overrides: {max_position_embeddings: 111}}"], 111),
    ],
)
def test_sequences_longer_than_the_model_has_positions(
    cli: Cli, changes: dict[str, Any], arguments: list[str], limit: int
) -> None:
    make_model(cli.folder / "model", **changes)
    config = load_config([*TOY, *arguments]).config
    tokens = config.data.max_prompt + config.sampling.max_response
    says = [f"data.max_prompt + sampling.max_response = {tokens} tokens", f"model.path=model has {limit} positions"]
    cli.refused(*TOY, "model.path=model", *arguments, says=says)


def test_the_toy_models_positions_are_known_before_it_is_built(cli: Cli) -> None:
    from fr3e_async.data.model import TOY_POSITIONS
    from fr3e_async.data.toy.tokenizer import build_tokenizer
    from fr3e_async.data.toy.warm_start import build_model

    assert build_model(build_tokenizer()).config.max_position_embeddings == TOY_POSITIONS
    arguments = [*TOY, f"sampling.max_response={TOY_POSITIONS}", "learner.micro_batch_tokens=9999"]
    cli.refused(*arguments, says=[f"model.path=toy has {TOY_POSITIONS} positions"])


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, ["sampling.max_response=80"]),
        ({"max_position_embeddings": None}, ["sampling.max_response=999"]),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, ["sampling.max_response=999"]),
        ({"rope_parameters": {"full_attention": {"factor": 8.0}}}, ["sampling.max_response=999"]),
        ({}, ["sampling.max_response=999", "engine.options={hf_overrides: {max_position_embeddings: 4096}}"]),
    ],
)
def test_sequences_that_fit_get_as_far_as_the_run_directory(cli: Cli, changes: dict[str, Any], arguments: list[str]) -> None:
    make_model(cli.folder / "model", **changes)
    cli.refused(*TOY, "model.path=model", "run.dir=model", *arguments, says=["run.dir: ", "holds no run"])


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def overwritten(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without("config.json"), ["has no config.json"]),
        (without("tokenizer.json"), ["has no tokenizer (none of tokenizer.json, "]),
        (without("model.safetensors"), ["has no weights (*.safetensors"]),
        (
            overwritten("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}'),
            ["has no end token (eos_token)"],
        ),
        (
            overwritten("tokenizer_config.json", '{"eos_token": "<fin>"}'),
            ["the end token '<fin>' of model is none of the model's: its id is 98, vocab_size in config.json is 98"],
        ),
        (
            overwritten("model.safetensors.index.json", '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'),
            ["lacks weights: model-2.safetensors of model.safetensors.index.json is not there"],
        ),
        (overwritten("config.json", "{"), ["config.json of model cannot be read"]),
        (overwritten("config.json", "[]"), ["config.json of model holds no JSON object"]),
        (overwritten("tokenizer.json", "{"), ["no tokenizer could be loaded from model"]),
        (
            overwritten("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Riddle"}}'),
            ["no tokenizer could be loaded from model"],
        ),
        (
            overwritten("chat_template.jinja", WANTS_PARTS),
            ["toy-train:0: the problem is not in the prompt: the chat template of model.path leaves it out"],
        ),
        (overwritten("chat_template.jinja", "{{ raise_exception('no') }}"), ["its chat template refuses these messages (no)"]),
        (overwritten("generation_config.json", '{"eos_token_id": "x"}'), ["eos_token_id in the generation_config.json of model"]),
    ],
)
def test_a_model_folder_that_lacks_something(cli: Cli, model: Path, spoil: Callable[[Path], None], says: list[str]) -> None:
    spoil(model)
    cli.refused(*TOY, "model.path=model", says=["model.path", *says])


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("./nowhere", ["there is no folder ./nowhere, and it is not a hub id"]),
        ("~nobody-here/model", ["there is no folder ~nobody-here/model"]),
        ("/" + "x" * 300, ["there is no folder"]),
        ("model/config.json", ["model/config.json is a file; a model folder was expected"]),
    ],
)
def test_a_model_path_that_leads_nowhere(cli: Cli, model: Path, path: str, says: list[str]) -> None:
    cli.refused(*TOY, f"model.path={path}", says=["model.path: ", *says])


def test_a_hub_model_that_cannot_be_fetched(cli: Cli) -> None:  # conftest.py keeps the hub offline
    says = ["model.path: no config.json could be loaded from nobody/nothing: "]
    cli.refused(*TOY, "model.path=nobody/nothing", says=says)


# ---- vLLM ----


@pytest.mark.parametrize(
    ("version", "importable", "says"),
    [
        (None, False, ["no vLLM installed; fr3e_async needs vLLM 0.32.x", "pip install"]),
        ("0.32.0", False, ["no vLLM installed", "pip install"]),
        ("0.11.0", True, ["vLLM 0.11.0 is installed; fr3e_async needs vLLM 0.32.x", "pip install"]),
    ],
)
def test_no_vllm_or_another_one(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, version: str | None, importable: bool, says: list[str]
) -> None:
    real_version, real_find = importlib.metadata.version, importlib.util.find_spec

    def fake_version(name: str) -> str:
        if not name.startswith("vllm"):
            return real_version(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    def fake_find(name: str, package: str | None = None) -> Any:
        return real_find(name, package) if name != "vllm" or importable else None

    monkeypatch.setattr(importlib.metadata, "version", fake_version)
    monkeypatch.setattr(importlib.util, "find_spec", fake_find)
    cli.refused(*TOY, says=says)


# ---- the run directory ----


def a_run(folder: Path, *overrides: str) -> RunDir:
    loaded = load_config([*TOY, "model.path=model", *overrides])
    return RunDir.open(folder, config=loaded.config, config_yaml=loaded.yaml)


RUN = (*TOY, "model.path=model", "run.dir=run")


def test_a_run_directory_that_holds_a_run(cli: Cli, model: Path) -> None:
    a_run(cli.folder / "run").close()
    cli.refused(*RUN, says=["run.dir: ", "run holds a run already; continue with it by resume=auto, or choose another run.dir"])


def test_a_run_directory_of_another_config(cli: Cli, model: Path) -> None:
    a_run(cli.folder / "run", "learner.lr=5e-4", "run.seed=7").close()
    says = [
        "run.dir: ",
        "run holds a run of another config: learner.lr: 0.0005 -> 0.002; run.seed: 7 -> 0;",
        "(with run.branch_from it begins with these weights)",
    ]
    cli.refused(*RUN, "resume=auto", "learner.lr=2e-3", says=says)


def test_a_run_directory_that_is_in_use(cli: Cli, model: Path) -> None:
    running = a_run(cli.folder / "run")
    cli.refused(*RUN, "resume=auto", says=["run.dir: ", "run is in use by another process"])
    running.close()


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_folder_that_holds_something_else(cli: Cli, model: Path, resume: str) -> None:
    (cli.folder / "run").mkdir()
    (cli.folder / "run" / "thesis.tex").write_text("precious")
    cli.refused(*RUN, f"resume={resume}", says=["run.dir: ", "run is not empty and holds no run; choose another folder"])


@pytest.mark.slow
def test_the_real_process_says_one_line_about_the_run_directory(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    a_run(tmp_path / "run").close()
    before = everything_below(tmp_path)
    done = process(*RUN, folder=tmp_path)
    assert_one_line(done.stderr, ["run.dir: ", "holds a run already"])  # and not a word of transformers or Ray
    assert (done.returncode, done.stdout) == (2, "")
    assert everything_below(tmp_path) == before


# ---- disks ----


@pytest.mark.parametrize("path", ["model/config.json", "model/config.json/run", "/proc/nowhere/run", "x" * 300])
def test_a_run_directory_that_cannot_be_made(cli: Cli, model: Path, path: str) -> None:
    cli.refused(*TOY, "model.path=model", f"run.dir={path}", says=["run.dir: cannot "])


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "the disk is full (ENOSPC)"), (errno.EROFS, "the file system is read-only (EROFS)")]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str) -> None:
    monkeypatch.setattr(storage.os, call, failing(code))
    cli.refused(*TOY, "model.path=model", "run.dir=deep/run", says=["run.dir: cannot write to", words])


def test_a_toy_cache_that_cannot_be_written(cli: Cli) -> None:
    (cli.folder / "file").write_text("")
    arguments = [*TOY, "toy.cache_dir=file/cache", "observe.console=off"]
    cli.refused(*arguments, says=["toy.cache_dir: the toy model cannot be kept in file/cache"])
