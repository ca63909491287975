"""The main job on the real engine, learner and verifier: the reward rises, and what the run leaves can be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from make_support import make

from fr3e_async.notebook import load_run

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.engine]


def fr3e(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fr3e_async.main", "config=toy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of the embedded default, shorter than the demo, and with every answer judged by math-verify."""
    run_dir = tmp_path_factory.mktemp("e2e") / "run"
    temporary = tempfile.mkdtemp(prefix="e", dir="/tmp")  # short enough for Ray's sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", temporary)
        done = make("demo", f"run.dir={run_dir}", "run.steps=12", "run.checkpoint_every=5", "verifiers.exact_integers=false")
    os.rmdir(temporary)  # it is empty: sockets, caches and Ray's session have gone with the run
    (run_dir / "stdout.txt").write_text(done.stdout)
    assert done.stderr == "", "third-party noise belongs into the log files"
    return run_dir


def summary_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def group_rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "groups.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)
def test_accuracy_rises(finished):
    summary = summary_of(finished)
    assert summary["exit_reason"] == "finished"
    assert 0.2 <= summary["accuracy_before"] <= 0.45
    # The interval of the gain, not its point estimate, must be clear of nothing.
    assert summary["accuracy_intervals"]["after"][0] > summary["accuracy_intervals"]["before"][1] + 0.1


def test_every_role_worked_and_they_overlapped(finished):
    summary = summary_of(finished)
    assert summary["overlap_fraction"] > 0.5
    assert all(0 <= idle < 1 for idle in summary["idle_fraction"].values())
    assert set(summary["idle_fraction"]) == {"generators", "explorers", "verifiers", "learner"}
    assert summary["staleness_max"] <= 1
    assert summary["optimiser_steps"] == 12 * 4  # batches, learner.minibatches of the toy
    assert summary["groups"]["trained"] == 12 * 32
    assert summary["groups"]["in_flight"] == 0
    assert summary["verdicts"]["correct"] > 0
    assert summary["verdicts"]["wrong"] > 0
    assert summary["verdict_reasons"]["number"] > 500  # compared in a process; right ones are mostly the same text
    assert "integer" not in summary["verdict_reasons"]
    assert summary["replaced"] == {"generators": 0, "explorers": 0, "verifiers": 0}


def test_metrics_have_a_row_for_each_step(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(row["lag/versions_max"] <= 1 for row in rows)
    assert all(row["train/ratio_max"] > 1 for row in rows), "the second optimiser step of a batch must be off-policy"
    assert list((finished / "tensorboard").iterdir())


def test_a_notebook_gets_its_rows(finished):
    run, summary = load_run(finished), summary_of(finished)
    assert [row["step"] for row in run.metrics] == list(range(1, 13))
    assert Counter(row["outcome"] for row in run.groups) == {k: n for k, n in summary["groups"].items() if n and k != "in_flight"}
    assert {tree["group"] for tree in run.trees} <= {row["group"] for row in run.groups}
    assert all(len(rollout["pieces"]) == len(rollout["logprobs"]) for tree in run.trees for rollout in tree["rollouts"])


def test_the_engines_had_the_learners_numbers(finished):
    """At first; the first of them again with the learner's weights, which all take before the run; and after the first update of the run."""
    events = [json.loads(line) for line in (finished / "logs" / "events.jsonl").read_text().splitlines()]
    compared = [event for event in events if event["event"] == "engine_compared"]
    versions = {name: [e["version"] for e in compared if e["actor"] == name] for name in ("generator-0", "explorer-0")}
    assert [len(its) for its in versions.values()] == [3, 2]
    assert [its[-2] for its in versions.values()] == [0, 0]
    assert all(its[-1] >= 1 for its in versions.values())
    assert max(event["nats"] for event in compared) < 1e-3
    (asked,) = [event for event in events if event["event"] == "engines_asked"]
    assert asked["text"].startswith("2 engines have the learner's weights and numbers")
    assert asked["seconds"] > 0


def test_the_console_is_quiet_and_plain(finished):
    lines = (finished / "stdout.txt").read_text().splitlines()
    assert sum(line.startswith("step ") for line in lines) == 12
    assert not any(word in line for line in lines for word in ("WARNING", "INFO", "Traceback"))


def test_checkpoints_are_there_and_the_newest_is_the_last_step(finished):
    names = sorted(path.name for path in (finished / "checkpoints").glob("step-*"))
    assert names == ["step-00000010", "step-00000012"]  # run.keep_checkpoints is 2
    assert (finished / "checkpoints" / "latest").read_text().strip() == "step-00000012"
    modes = {path.stat().st_mode & 0o777 for path in finished.rglob("*.safetensors")}
    assert modes == {0o666 & ~int(os.popen("umask").read(), 8)}  # the group may read weights


def accuracy_in_transformers(model_folder: Path, problems: list) -> float:
    """Accuracy at T = 1 by plain transformers and string comparison: none of the system's own code but the problems."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    chats = [[{"role": "user", "content": p.problem}] for p in problems]
    inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
    torch.manual_seed(0)
    done = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64)
    texts = tokenizer.batch_decode(done[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [text.rpartition("\\boxed{")[2].partition("}")[0].strip() for text in texts]
    return sum(answer == p.answer for answer, p in zip(answers, problems, strict=True)) / len(problems)


def test_the_final_model_is_as_good_in_plain_transformers(finished):
    from fr3e_async.data.rows import read_rows
    from fr3e_async.settings.loader import load_config

    heldout = read_rows(load_config(["config=toy"]).config).heldout[:512]
    measured = accuracy_in_transformers(finished / "model", heldout)
    low, high = summary_of(finished)["accuracy_intervals"]["after"]
    half = (high - low) / 2
    # Both are estimates from 512 samples: allow the difference of two such numbers, three standard errors wide.
    assert measured == pytest.approx((low + high) / 2, abs=half * 3 / 1.96 * 2**0.5)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_the_final_model_starts_another_run_with_two_zero_ranks_and_resumes(finished, tmp_path):
    """vLLM loads the final model; two learner ranks with ZeRO-2 train it and re-score trunks; a second command continues."""
    common = (
        f"run.dir={tmp_path / 'next'}", f"model.path={finished / 'model'}", "learner.ranks=2", "learner.zero_stage=2",
        "flow.groups_per_step=4", "data.heldout=", "resume=auto",
        "engine.entropy=learner", "algorithm.trunk=one_correct_one_wrong",
    )  # fmt: skip
    first = fr3e(*common, "run.steps=2")
    assert first.returncode == 0, first.stdout + first.stderr
    second = fr3e(*common, "run.steps=4")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming from step 2" in second.stdout
    summary = summary_of(tmp_path / "next")
    assert (summary["steps"], summary["resumed_from"], summary["optimiser_steps"]) == (4, 2, 4 * 4)
    rows = [json.loads(line)["step"] for line in (tmp_path / "next" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4]
    groups = group_rows(tmp_path / "next")
    assert (
        len({row["group"] for row in groups}) == len(groups) == sum(summary["groups"].values()) - summary["groups"]["in_flight"]
    )
    assert any(len(row["states"]) > 1 for row in groups), "no trunk was branched"
    assert all(row["anchors"] == row["anchors_certain"] for row in groups), "the learner's entropies are exact"


OWN_REWARD = """
def short_and_right(response, gold, prompt):
    right = response.rpartition("\\\\boxed{")[2].partition("}")[0] == gold
    assert prompt.startswith("Start with")
    return 0.5 + 0.5 / len(response.split()) if right else 0.0
"""


@pytest.mark.timeout(300)
def test_vineppo_with_a_reward_of_ones_own_within_a_token_budget(tmp_path, monkeypatch):
    (tmp_path / "own_reward.py").write_text(OWN_REWARD)
    monkeypatch.chdir(tmp_path)
    done = fr3e(
        "run.dir=run", "run.steps=3", "flow.groups_per_step=8", "data.heldout=", "algorithm.strategy=vineppo", "algorithm.trunk=all",
        "algorithm.branches=2", "reward=own_reward:short_and_right", "budget.tokens_per_prompt=500",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    groups = [row for row in group_rows(tmp_path / "run") if row["outcome"] == "trained"]
    assert len(groups) == 24
    assert 0 < sum(row["tokens"]["trained"] for row in groups) < 0.5 * sum(row["tokens"]["generated"] for row in groups)
    values = {state["reward_sum"] % 1 for row in groups for state in row["states"]}
    assert len(values) > 2, "graded rewards reach the values of the states"
    assert len({row["rollouts"] for row in groups}) > 1, "the budget sizes the groups"


def engine_processes(driver: int) -> list[psutil.Process]:
    """The engine actors of the cluster that a driver has started for itself."""
    below = psutil.Process(driver).children(recursive=True)
    return [process for process in below if "ray::EngineActor" in " ".join(process.cmdline())]


@pytest.mark.long  # a minute; benchmarks/chaos.py kills another part in `make test`
@pytest.mark.timeout(300)
def test_an_engine_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path):
    """kill -9 of an engine's process, the whole of vLLM's core with it, in the middle of the run."""
    run_dir, steps = tmp_path / "run", 40
    words = ("flow.groups_per_step=4", "evaluation.problems=32", f"run.steps={steps}", f"run.dir={run_dir}")
    command = [sys.executable, "-m", "fr3e_async.main", "config=toy", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        seen = []
        for line in driver.stdout:
            seen.append(line)
            if line.startswith("step 2/"):
                victim = engine_processes(driver.pid)[0]
                victim.kill()
        assert driver.wait(timeout=60) == 0, "".join(seen)
    assert any("is lost" in line for line in seen)
    summary = summary_of(run_dir)
    assert (summary["exit_reason"], summary["steps"]) == ("finished", steps)
    assert sum(summary["replaced"].values()) == 1
    assert summary["verdicts"]["failed"] == 0
    assert summary["staleness_max"] <= 1
    assert not victim.is_running()
