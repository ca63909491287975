"""A step that must not be taken: the run stops before it, and one command repeats it from the dump."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_support import build_model, largest_difference, make_samples, make_spec, start_rank

from fr3e_async.cli.main import run as fr3e
from fr3e_async.config import LossConfig
from fr3e_async.errors import StorageError
from fr3e_async.learner.dump import MODEL, SETTINGS, STEP, DumpedSample, FailedStep, read_dump, write_share, write_step
from fr3e_async.learner.replay import replay
from fr3e_async.learner.spec import free_address, rank_environment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


def fail(model: Path, folder: Path, samples: Any = None, **learner: Any) -> tuple[Any, str]:
    """A rank that has refused a step, and what it said."""
    spec = replace(make_spec(model, loss=LossConfig(), **learner), dump_folder=str(folder))
    rank = start_rank(spec)
    with pytest.raises(FloatingPointError) as raised:
        rank.train(samples or make_samples(1), version=1)
    return rank, str(raised.value)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        (0, {"packing": "flat", "attention": "eager"}),
        (1, {"packing": "padded", "activation_checkpointing": True}),
        (2, {}),
        (3, {}),
    ],
)
def test_an_exploding_gradient_stops_before_the_weights_change_and_is_repeated(
    model: Path, tmp_path: Path, stage: int, settings: Any
) -> None:
    rank, message = fail(model, tmp_path, zero_stage=stage, stop_above_grad_norm=1e-3, **settings)
    assert "learner.stop_above_grad_norm is 0.001" in message
    assert message.endswith(f"; `fr3e replay_step {tmp_path / 'step-000001'}` repeats it")
    untouched = dict(start_rank(make_spec(model)).engine.weights())
    assert largest_difference({name: w.clone() for name, w in rank.engine.weights()}, untouched) == 0
    dump, found = replay(tmp_path / "step-000001")
    assert dump.grad_norm is not None
    assert 1e-3 < dump.grad_norm == pytest.approx(found.grad_norm, rel=1e-4)
    assert dump.loss == pytest.approx(found.loss, rel=1e-5)
    assert len(found.tokens) == dump.total_tokens
    assert found.cause == f"the gradient norm is {found.grad_norm:.6g} (learner.stop_above_grad_norm is 0.001)"


def test_a_later_step_is_repeated_with_the_weights_and_the_proximal_policy_it_had(model: Path, tmp_path: Path) -> None:
    """The third step of a batch: two have moved the weights, and ratios are not 1 any more."""
    _, message = fail(model, tmp_path, lr=0.3, stop_above_ratio=1.5)
    number = int(message.split("optimiser step ")[1].split()[0])
    assert number > 1
    assert "times as likely as under the proximal policy" in message
    dump, found = replay(tmp_path / f"step-{number:06d}")
    assert (dump.grad_norm, dump.version) == (None, 0)
    assert dump.loss == pytest.approx(found.loss, rel=1e-4)
    ratios = [math.exp(token.logprob - token.prox) for token in found.tokens]
    assert max(ratios) > 1.5
    assert min(ratios) < 0.99
    assert found.cause == message.split("): ", 1)[1].split("; `fr3e")[0]
    assert fr3e(["replay_step", str(tmp_path / f"step-{number:06d}"), "--tokens", "0"]) == 0


def test_a_ratio_to_the_behaviour_policy_stops_nothing(model: Path) -> None:
    """Its samples' log-probs are of another policy altogether: ratios beyond 1.5 from the first step on."""
    spec = make_spec(model, loss=LossConfig(prox="behaviour"), stop_above_ratio=1.5)
    metrics = start_rank(spec).train(make_samples(1), version=1).metrics
    assert metrics["train/ratio_max"] > 1.5


def test_numbers_that_agree_within_the_limits_are_no_second_failure(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(model, tmp_path, stop_above_grad_norm=1e-3)
    file = tmp_path / "step-000001" / STEP
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"learner": record["learner"] | {"stop_above_grad_norm": 1000.0}}))
    assert fr3e(["replay_step", str(file.parent)]) == 1
    assert "now: every number is finite and within the limits" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["sampler", "model"])
def test_a_loss_that_is_not_finite_is_repeated(
    model: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = make_samples(1)
    if damage == "sampler":
        broken = samples[2].behaviour_logprobs.copy()
        broken[1] = -math.inf
        samples[2] = replace(samples[2], behaviour_logprobs=broken)
        fail(model, tmp_path, samples)
    else:
        spec = replace(make_spec(model, loss=LossConfig()), dump_folder=str(tmp_path))
        rank = start_rank(spec)
        next(rank.engine.model.parameters()).data.fill_(math.nan)
        with pytest.raises(FloatingPointError):
            rank.train(samples, version=1)
    assert fr3e(["replay_step", str(tmp_path / "step-000001"), "--tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "it happened again" in out
    assert ("log-probs are broken" if damage == "sampler" else "logits are not finite") in out.split("now: ")[1]
    if damage == "sampler":
        position, token = 1, samples[2].tokens[samples[2].context_len + 1]
        assert f"token {position:5d} (id {token})" in out
        assert "behaviour -inf" in out


def test_a_step_that_is_well_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fail(model, tmp_path, stop_above_grad_norm=1e-3)
    record = json.loads((tmp_path / "step-000001" / STEP).read_text())
    (tmp_path / "step-000001" / STEP).write_text(json.dumps(record | {"loss": record["loss"] + 1}))
    assert fr3e(["replay_step", str(tmp_path / "step-000001")]) == 1
    assert "it did not happen again" in capsys.readouterr().out


def test_shares_of_all_ranks_come_back_as_they_were(model: Path, tmp_path: Path) -> None:
    settings = {"packing": "flat", "attention": "eager", "tree_attention": "blocks", "logits_mib": 2.0, "stop_above_ratio": 7.0}
    spec = replace(make_spec(model, **settings), revision="r", trust_remote_code=True)
    shares = [
        [
            DumpedSample(
                sample=replace(s, minibatch=0),
                prox=np.full(len(s.versions), rank, np.float32),
                reference=np.full(len(s.versions), -rank, np.float32),
                imitation=np.full(len(s.versions), 0.1 * rank, np.float32),
            )
            for s in make_samples(rank)
        ]
        for rank in (1, 2)
    ]
    for rank, share in enumerate([*shares, []]):  # the third rank had only dummies
        write_share(tmp_path, share, rank=rank)
    step = FailedStep(
        optimiser_step=4, where="w", cause="c", version=3, total_tokens=9, loss=math.nan, grad_norm=None, share=()
    )  # fmt: skip
    write_step(tmp_path, step, spec, ranks=3)
    dump, facts = read_dump(tmp_path)
    record = json.loads((tmp_path / STEP).read_text())
    assert math.isnan(dump.loss)
    assert (facts.loss, facts.temperature, facts.trust_remote_code) == (spec.loss, spec.temperature, True)
    assert {name: asdict(facts.learner)[name] for name in SETTINGS} == {name: asdict(spec.learner)[name] for name in SETTINGS}
    assert (record["base_model"], record["base_revision"]) == (spec.path, "r")
    for was, now in zip([m for share in shares for m in share], dump.share, strict=True):
        assert now.sample.context_len == was.sample.context_len
        for name in ("tokens", "behaviour_logprobs", "versions", "advantages"):
            assert np.array_equal(getattr(now.sample, name), getattr(was.sample, name))
        assert np.array_equal(now.prox, was.prox)
        assert np.array_equal(now.imitation, was.imitation)
        assert np.array_equal(now.reference, was.reference)


def test_bad_input_is_one_line_and_exit_code_2(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert fr3e(["replay_step", str(tmp_path / "step-000001"), *arguments]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "holds no whole dump of a failed step" in refused()
    assert "No such option '--toknes'" in refused("--toknes")
    fail(model, tmp_path, stop_above_grad_norm=1e-3)
    folder = tmp_path / "step-000001"
    for device in ("gpu", "meta"):
        assert f"--device must be cpu or cuda, got {device}" in refused("--device", device)
    if not torch.cuda.is_available():
        assert "--device=cuda: torch finds 0 CUDA devices here" in refused("--device", "cuda")
    record = json.loads((folder / STEP).read_text())
    (folder / STEP).write_text(json.dumps(record | {"trust_remote_code": True}))
    assert "give --trust-remote-code" in refused()
    weights = folder / MODEL / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cannot be loaded" in refused("--trust-remote-code")
    (folder / MODEL).rename(tmp_path / "elsewhere")
    assert "is no model folder" in refused("--trust-remote-code")
    (folder / "rank-0.npz").unlink()
    assert "rank-0.npz" in refused()


def test_the_command_leaves_no_temporary_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fr3e_async.learner", str(tmp_path / "nothing")]
    found = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dump_that_cannot_be_written_does_not_hide_the_failure(model: Path, tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("a file where the folder would be")
    rank, message = fail(model, tmp_path / "dumps", stop_above_grad_norm=1e-3)
    assert "the gradient norm is" in message
    assert f"; its dump could not be written: run.dir: cannot write to {tmp_path / 'dumps' / 'step-000001'}" in message
    with pytest.raises(RuntimeError, match="its state must not be used: optimiser step 1"):
        rank.train(make_samples(1), version=1)


def fail_in_group(index: int, path: str, folder: str, port: int) -> None:
    """Two ranks at ZeRO-3, three refused steps: all is written; rank 1 cannot write its share; rank 0 cannot write the model."""
    os.environ.update(rank_environment(make_spec(Path(path))))
    from fr3e_async.learner import engine
    from fr3e_async.learner import rank as rank_module

    engine.EXPORT_BUCKET = 1  # a gathering for each weight, so that rank 0 can fail between two

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_after_one(_: Path, weights: Iterable[Any], **__: Any) -> None:
        next(iter(weights))
        full()

    spec = make_spec(Path(path), loss=LossConfig(), zero_stage=3, stop_above_grad_norm=1e-3)
    whole = rank_module.write_share, rank_module.write_model
    refusals: dict[str, Any] = {}
    for case in ("written", "share", "model"):
        rank_module.write_share, rank_module.write_model = whole
        if (index, case) == (1, "share"):
            rank_module.write_share = full
        if (index, case) == (0, "model"):
            rank_module.write_model = full_after_one
        rank = rank_module.LearnerRank(replace(spec, dump_folder=str(Path(folder) / case)))
        rank.setup(index, 2, "127.0.0.1", port)
        if case == "model":
            with pytest.raises(StorageError) as refused:
                rank.save_hf(Path(folder) / "hf")
            refusals["hf"] = str(refused.value)
        started = time.monotonic()
        with pytest.raises(FloatingPointError) as raised:
            rank.train(make_samples(1)[index::2], version=1)
        refusals[case] = str(raised.value), time.monotonic() - started
    torch.save(refusals, Path(folder) / f"rank{index}.pt")
    rank.close()


@pytest.mark.slow
def test_all_ranks_say_the_same_and_none_waits_for_one_that_cannot_write(model: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(fail_in_group, (str(model), str(tmp_path), free_address("")[1]), nprocs=2)
    left, right = (torch.load(tmp_path / f"rank{index}.pt", weights_only=False) for index in (0, 1))
    for case in ("written", "share", "model"):
        assert left[case][0] == right[case][0]
        assert "the gradient norm is" in left[case][0]
        assert max(left[case][1], right[case][1]) < 240
    assert left["hf"] == right["hf"] == f"run.dir: cannot write to {tmp_path / 'hf'}: the disk is full (ENOSPC)"
    for case in ("share", "model"):
        assert "; its dump could not be written: " in left[case][0]
        assert left[case][0].endswith("the disk is full (ENOSPC)")
        assert not (tmp_path / case / "step-000001" / STEP).exists()
    dump, found = replay(tmp_path / "written" / "step-000001")
    assert len(dump.share) == sum(sample.minibatch == 0 for sample in make_samples(1))
    assert dump.loss == pytest.approx(found.loss, rel=1e-5)
    assert dump.grad_norm == pytest.approx(found.grad_norm, rel=1e-4)
    assert "learner.stop_above_grad_norm is 0.001" in found.cause
