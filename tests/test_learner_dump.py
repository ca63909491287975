"""A step that must not be taken: the run stops before it, and one command repeats it from the dump."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_support import build_model, largest_difference, make_samples, make_spec, start_rank

from fr3e_async.config import LossConfig
from fr3e_async.learner.__main__ import main, replay
from fr3e_async.learner.dump import STEP, FailedStep, Measured, read_dump, write_share, write_step


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


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_exploding_gradient_stops_before_the_weights_change_and_is_repeated(model: Path, tmp_path: Path, stage: int) -> None:
    rank, said = fail(model, tmp_path, zero_stage=stage, stop_above_grad_norm=1e-3)
    assert "learner.stop_above_grad_norm is 0.001" in said
    assert said.endswith(f"; `python -m fr3e_async.learner {tmp_path / 'step-000001'}` repeats it")
    untouched = dict(start_rank(make_spec(model))._engine.weights())
    assert largest_difference({name: w.clone() for name, w in rank._engine.weights()}, untouched) == 0
    dump, found = replay(tmp_path / "step-000001")
    assert dump.grad_norm is not None
    assert 1e-3 < dump.grad_norm == pytest.approx(found.grad_norm, rel=1e-4)
    assert dump.loss == pytest.approx(found.loss, rel=1e-5)
    assert len(found.tokens) == dump.total_tokens


def test_a_later_step_is_repeated_with_the_weights_and_the_proximal_policy_it_had(model: Path, tmp_path: Path) -> None:
    """The third step of a batch: two have moved the weights, and ratios are not 1 any more."""
    _, said = fail(model, tmp_path, lr=0.3, stop_above_ratio=1.5)
    number = int(said.split("optimiser step ")[1].split()[0])
    assert number > 1
    assert "times as likely as under the proximal policy" in said
    dump, found = replay(tmp_path / f"step-{number:06d}")
    assert (dump.grad_norm, dump.version) == (None, 0)
    assert dump.loss == pytest.approx(found.loss, rel=1e-4)
    ratios = [math.exp(token.logprob - token.prox) for token in found.tokens]
    assert max(ratios) > 1.5
    assert min(ratios) < 0.99


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
        next(rank._engine.model.parameters()).data.fill_(math.nan)
        with pytest.raises(FloatingPointError):
            rank.train(samples, version=1)
    assert main([str(tmp_path / "step-000001"), "--tokens", "1"]) == 0
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
    assert main([str(tmp_path / "step-000001")]) == 1
    assert "it did not happen again" in capsys.readouterr().out


def test_shares_of_all_ranks_come_back_as_they_were(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model)
    shares = [
        [Measured(sample=replace(s, minibatch=0), prox=np.full(len(s.versions), rank, np.float32)) for s in make_samples(rank)]
        for rank in (1, 2)
    ]
    for rank, share in enumerate([*shares, []]):  # the third rank had only dummies
        write_share(tmp_path, share, rank=rank)
    step = FailedStep(
        optimiser_step=4, where="w", cause="c", version=3, total_tokens=9, loss=math.nan, grad_norm=None, share=()
    )  # fmt: skip
    write_step(tmp_path, step, spec, ranks=3)
    dump = read_dump(tmp_path)
    assert math.isnan(dump.loss)
    assert (dump.loss_config, dump.temperature, dump.packing) == (spec.loss, spec.temperature, "tree")
    for was, now in zip([m for share in shares for m in share], dump.samples, strict=True):
        assert now.sample.context_len == was.sample.context_len
        for name in ("tokens", "behaviour_logprobs", "versions", "advantages"):
            assert np.array_equal(getattr(now.sample, name), getattr(was.sample, name))
        assert np.array_equal(now.prox, was.prox)


def test_bad_input_is_one_line_and_exit_code_2(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no whole dump of a failed step" in capsys.readouterr().err
    fail(model, tmp_path, stop_above_grad_norm=1e-3)
    (tmp_path / "step-000001" / "rank-0.npz").unlink()
    assert main([str(tmp_path / "step-000001")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
