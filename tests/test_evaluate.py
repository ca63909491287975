"""``python -m fr3e_async.evaluate``: what it understands and refuses; and on real engines, after a run with a suite of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import assert_one_line, make_model

from fr3e_async.cli.evaluate import understood
from fr3e_async.cli.main import run as fr3e
from fr3e_async.data.rows import read_heldout
from fr3e_async.errors import ModelError
from fr3e_async.evaluation.suite import TestSet
from fr3e_async.run.benchmarking import default_out, identity_of, model_of, weights_digest
from fr3e_async.settings.loader import load_config
from fr3e_async.types import Prompt
from fr3e_async.wiring import PolicyFiles


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert fr3e(["evaluate", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], ["model: no model given"]),
        (["config=toy", "suite=aime2024"], ["evaluation.suite", "did you mean aime24?"]),
        (["config=toy", "data.heldout=", "model=toy"], ["suite: name benchmarks"]),
        (["config=toy", "sampling.temprature=1"], ["unknown setting sampling.temprature"]),
        (["config=toy", "--dryrun"], ["unknown option --dryrun", "--dry-run"]),
    ],
)
def test_bad_words_are_one_line(words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(refused(capsys, *words), says)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert fr3e(["evaluate", "--help"]) == 0
    assert "suite=NAMES" in capsys.readouterr().out


def test_words_of_this_command_become_settings() -> None:
    asked = understood(["config=toy", "suite=heldout,gsm8k,aime24", "out=x", "evaluation.top_p=0.95"])
    assert (asked.config.evaluation.benchmarks, asked.heldout, asked.out) == (("gsm8k", "aime24"), True, "x")
    assert not understood(["config=toy", "suite=paper"]).heldout
    assert understood(["config=toy"]).heldout
    assert understood(["model=Qwen/Qwen2.5-7B", "suite=aime24"]).config.model.path == "Qwen/Qwen2.5-7B"


def a_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(load_config(["config=toy", "run.name=mine"]).yaml)
    (folder / "run.json").write_text("{}")
    return folder


def test_a_run_brings_its_settings_and_its_final_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    assert_one_line(refused(capsys, f"model={run}"), ["holds no model yet", "fr3e export"])
    make_model(run / "model")
    expected = (str(run / "model"), str(run / "config.yaml"))
    assert model_of(str(run)) == model_of(str(run / "model")) == expected
    asked = understood([f"model={run}"])
    assert (asked.config.run.name, asked.config.model.path) == ("mine", str(run / "model"))
    assert model_of("owner/name") == ("owner/name", "")
    assert default_out(str(run), 0.0).parent == Path("evaluations")


def test_the_weights_tell_models_apart(tmp_path: Path) -> None:
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other")
    assert weights_digest(one) == weights_digest(other)
    (other / "model.safetensors").write_bytes(b"others")
    assert weights_digest(one) != weights_digest(other)


def identity(
    folder: Path, *words: str, ids: Sequence[int] = (1, 2), ends: tuple[int, ...] = (0,), path: str = ""
) -> dict[str, Any]:
    problem = Prompt(uid="amc23/0", text="?", reference="1", token_ids=np.array(ids, np.int32))
    config = load_config(["config=toy", *words]).config
    return identity_of(
        config, PolicyFiles(path=path or str(folder), end_token_ids=ends), [TestSet(name="amc23", problems=(problem,), samples=1)]
    )


def test_all_that_changes_samples_or_verdicts_is_told_apart(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    asked = identity(folder)
    assert asked == identity(folder, "generators.count=3", "observe.console=off") == json.loads(json.dumps(asked))
    others = [
        identity(folder, "engine.options={attention_backend: CPU_ATTN}"),
        identity(folder, "verifiers.wall_limit_s=99"),
        identity(folder, "verifiers.memory_gib=9"),
        identity(folder, "verifiers.on_unknown=retry"),
        identity(folder, ids=(1, 3)),  # another tokenizer, chat template or text of the template
        identity(folder, ids=(1, 2, 2)),
        identity(folder, ends=(0, 7)),
    ]
    assert all(other != asked for other in others)
    assert len({json.dumps(other, sort_keys=True) for other in others}) == len(others)


def test_a_hub_model_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert identity(tmp_path, path="owner/name")["model"]["weights"] == commit
    with pytest.raises(ModelError, match=r"model\.path: no config\.json could be loaded from owner/other"):
        identity(tmp_path, path="owner/other")


def toy_benchmark(path: Path, count: int = 8) -> Path:
    """Problems that the toy model can read, in the form of AMC 2023."""
    rows = read_heldout(load_config(["config=toy"]).config)[:count]
    path.write_text("".join(json.dumps({"id": i, "question": r.problem, "answer": r.answer}) + "\n" for i, r in enumerate(rows)))
    return path


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = toy_benchmark(tmp_path / "amc.jsonl")
    assert fr3e(["evaluate", "config=toy", "suite=heldout,amc23", f"evaluation.paths.amc23={path}", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "heldout: 512 problems x 1 samples" in output
    assert "amc23: 8 problems x 16 samples" in output
    assert "generators" in output
    assert "learner" not in output
    assert_one_line(refused(capsys, "config=toy", "suite=amc23", "evaluation.paths.amc23=nowhere.jsonl"), ["nowhere.jsonl"])
    assert_one_line(refused(capsys, "config=toy", "suite=heldout", "data.max_prompt=8", "--dry-run"), ["data.max_prompt is 8"])
    assert [p.name for p in tmp_path.iterdir()] == ["amc.jsonl"]


def python(module: str, *words: str) -> str:
    command = [sys.executable, "-m", f"fr3e_async.{module}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_suite_in_a_run_and_the_runs_model_alone(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    suite = (
        f"evaluation.paths.amc23={toy_benchmark(tmp_path / 'amc.jsonl')}",
        "evaluation.suite_samples=4",
        "evaluation.problems=16",
    )
    python(
        "main", "config=toy", f"run.dir={run}", "run.steps=2", "flow.groups_per_step=4", *suite,
        "evaluation.suite=[amc23]", "evaluation.before=false", "evaluation.every=1", "run.checkpoint_every=0",
    )  # fmt: skip
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert sorted((row["label"], row["benchmark"]) for row in rows) == [
        ("after", "amc23"), ("after", "heldout"), ("step 1", "amc23"), ("step 1", "heldout"),
    ]  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert [row["label"] for row in summary["benchmarks"]] == ["step 1", "after"]
    kept = [json.loads(line) for line in (run / "evaluations" / "after-amc23.jsonl").read_text().splitlines()]
    assert [len(row["outcomes"]) for row in kept] == [4] * 8
    assert any(answer is not None for row in kept for answer in row["answers"])

    output = python("evaluate", f"model={run}", "suite=heldout,amc23", f"out={out}", *suite)
    results = json.loads((out / "results.json").read_text())["benchmarks"]
    assert {name: (row["problems"], row["k"]) for name, row in results.items()} == {"heldout": (16, 1), "amc23": (8, 4)}
    digests = {row["benchmark"]: row["digest"] for row in rows}
    assert results["amc23"]["digest"] == digests["amc23"]
    assert json.loads((out / "evaluation.json").read_text())["benchmarks"]["heldout"]["digest"] == digests["heldout"]
    assert "amc23" in output
    again = python("evaluate", f"model={run}", "suite=heldout,amc23", f"out={out}", *suite)
    assert "24 problems are there already" in again
    assert "engines are up" not in again
