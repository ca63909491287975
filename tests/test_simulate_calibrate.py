"""Service times out of a journal: a simulated run of known times is written, read and measured, and must give them back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulate_support import FixedWorkload, model, system

from fr3e_async.cli.main import run as fr3e
from fr3e_async.errors import StorageError
from fr3e_async.simulate.calibrate import Fit, calibrate, pause_of
from fr3e_async.simulate.recording import Recording, read_recording
from fr3e_async.simulate.service import Service, SystemModel, VerifierTimes
from fr3e_async.simulate.stats import SimulationReport
from fr3e_async.simulate.workload import LogNormalWorkload, MeasuredWorkload
from fr3e_async.simulate.world import simulate
from fr3e_async.store.journal import Journal

CONFIG = system(groups=16)
TRUTH = model(
    step=0.02, request=4e-4, prefill=5e-5, answer=0.005, train=0.5, token=3e-4, engine={"task_s": 0.01},
    workload=LogNormalWorkload(mean=40, sigma=25, prompt=40), export=0.1, fetch_s=0.2, pause_s=0.1,
)  # fmt: skip


def record(folder: Path, *, cores: float = 0, steps: int = 16, times: SystemModel = TRUTH) -> SimulationReport:
    log = Journal(folder / "journal", session=0, config=CONFIG, state=None)
    report = simulate(CONFIG, times, steps=steps, cores=cores, log=log)
    log.close()
    return report


@pytest.fixture(scope="module", params=[0.0, 2.0], ids=["apart", "two shared cores"])
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[float, SimulationReport, Recording, Fit]:
    folder = tmp_path_factory.mktemp("run")
    report = record(folder, cores=request.param)
    recording, again = read_recording(folder)
    assert again.step_s == pytest.approx(report.step_s, rel=1e-4)
    return request.param, report, recording, calibrate(recording, source="test", cores=request.param)


def test_a_recorded_run_is_counted_like_the_simulated_one(tmp_path: Path) -> None:
    report = record(tmp_path, steps=4)
    _, again = read_recording(tmp_path)
    assert again.label == "measured"
    for name in ("step_s", "train_s", "sync_s", "rollouts_per_s", "tokens_per_s", "rejected", "cached", "idle", "queued"):
        assert getattr(again, name) == pytest.approx(getattr(report, name), rel=1e-3), name
    assert again.staleness == report.staleness


def test_engines_give_back_their_times(measured: tuple[float, SimulationReport, Recording, Fit]) -> None:
    cores, _, _, fit = measured
    engine, loose = fit.model.service.engine, 0.10 if cores else 0.05
    assert engine.step_s == pytest.approx(0.02, rel=loose)
    # Prefill and generated tokens go together in any one run, so what is told less well apart is which of the two it was.
    assert engine.request_s == pytest.approx(4e-4, rel=0.25)
    assert engine.prefill_s < 2e-4
    assert fit.model.service.weights.pause_s == pytest.approx(0.1, rel=0.25)
    assert fit.errors["engine"] < 0.05


def test_learner_and_verifier_give_back_their_times(measured: tuple[float, SimulationReport, Recording, Fit]) -> None:
    cores, _, _, fit = measured
    learner = fit.model.service.learner
    typical = 3000  # tokens: what a batch takes is known better than its two parts
    expected = 0.5 + 3e-4 * typical
    assert learner.fixed_s + learner.token_s * typical == pytest.approx(expected, rel=0.15 if cores else 0.02)
    assert learner.export_s == pytest.approx(0.1, rel=0.1)
    assert fit.model.service.verifier.answer_s == pytest.approx(0.005, rel=0.25)


def test_what_was_measured_predicts_the_run(measured: tuple[float, SimulationReport, Recording, Fit]) -> None:
    cores, report, _, fit = measured
    again = [simulate(CONFIG, fit.model, steps=16, cores=cores, seed=seed) for seed in range(4)]
    mean = sum(r.step_s for r in again) / len(again)
    assert mean == pytest.approx(report.step_s, rel=0.12)  # of other prompts, drawn from these
    assert sum(r.rejected for r in again) / len(again) == pytest.approx(report.rejected, abs=0.08)


def test_every_settled_group_is_a_case(measured: tuple[float, SimulationReport, Recording, Fit]) -> None:
    _, _, recording, _ = measured
    assert len(recording.cases) >= 16 * 16
    for case in recording.cases:
        assert case.prompt == 40
        assert len(case.bases) == 4
        assert {base for base, _ in case.anchors} <= {0}
        assert all(len(branches) == 4 for _, anchors in case.anchors for _, branches in anchors)


def test_a_model_survives_its_file(tmp_path: Path, measured: tuple[float, SimulationReport, Recording, Fit]) -> None:
    for found in (measured[3].model, TRUTH):
        found.save(tmp_path / "model.json")
        older = (tmp_path / "model.json").read_bytes().replace(b'"correct', b'"right')
        (tmp_path / "older.json").write_bytes(older)
        for again in map(SystemModel.load, (tmp_path / "model.json", tmp_path / "older.json")):
            assert again.service == found.service
            assert again.workload.tree(0, 5, max_response=200).base(0) == found.workload.tree(0, 5, max_response=200).base(0)


def test_drawn_calls_to_verifiers_are_those_that_were_measured() -> None:
    """Every tenth call takes 50 s: some batch of 8 waits for one nearly always."""
    service = Service(
        engine=TRUTH.service.engine,
        verifier=VerifierTimes(answer_s=0.0, task_samples=(0.0,) * 9 + (50.0,)),
        learner=TRUTH.service.learner,
    )
    config = system(algorithm={"strategy": "grpo"})
    report = simulate(config, SystemModel(service=service, workload=FixedWorkload()), steps=5)
    assert report.step_s > 20


def test_pauses_come_from_the_metrics(tmp_path: Path) -> None:
    assert pause_of(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"time/pause_s": 0.2}\n{"time/pause_s": 0.4}\n')
    assert pause_of(tmp_path) == pytest.approx(0.3)


def test_a_journal_that_was_cut_off_is_read_to_its_end(tmp_path: Path) -> None:
    record(tmp_path, steps=4)
    path = tmp_path / "journal" / "0000.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) * 3 // 4]) + '{"t": 1')
    recording, report = read_recording(tmp_path)
    assert 0 < recording.events < len(lines)
    assert report.steps >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no journal in it"),
        ("", "no journal that this version can read"),
        ('{"format": 99}\n', "no journal that this version can read"),
        ('{"journal": "0.1.0", "config": {"none": 1}, "state": null}\n', "do not fit this version"),
        ('{"journal": "0.1.0", "config": {}, "state": [0]}\n', "no journal that this version can read"),
    ],
)
def test_runs_without_a_journal_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "journal").mkdir()
        (tmp_path / "journal" / "0000.jsonl").write_text(text)
    with pytest.raises(StorageError, match=message):
        read_recording(tmp_path)


def test_a_run_without_a_batch_cannot_be_measured(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", session=0, config=CONFIG, state=None).close()
    with pytest.raises(StorageError, match="not one batch was trained"):
        read_recording(tmp_path)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, steps=6)
    assert fr3e(["simulate", "calibrate", str(tmp_path), f"out={tmp_path}/model.json"]) == 0
    assert "service times of" in capsys.readouterr().out
    words = [f"model={tmp_path}/model.json", "config=toy", "steps=3", "flow.groups_per_step=8"]
    assert fr3e(["simulate", "run", *words]) == 0
    assert capsys.readouterr().out.startswith("simulation: no such run took place")
    assert isinstance(SystemModel.load(tmp_path / "model.json").workload, MeasuredWorkload)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Missing command. (see fr3e simulate --help)"),
        (["calibrate"], "run=RUN is missing"),
        (["calibrate", "run=/nowhere"], "/nowhere"),
        (["calibrate", "x", "cores=-1"], "cores must be a number of at least 0, got '-1'"),
        (["calibrate", "x", "flow.window=3"], "flow.window=3: calibrate takes"),
        (["run"], "config=FILE is missing"),
        (["run", "config=toy", "model=/nowhere"], "/nowhere is not readable"),
        (["run", "config=toy", "device=H100", "run=x"], "run and device: give one of them"),
        (["run", "config=toy", "device=B17"], "device must be one of A100"),
        (["run", "config=toy", "steps=0"], "steps must be a number of at least 1"),
        (["run", "config=toy", "flow.window=-1"], "flow.window"),
        (["run", "config=toy", "accuracy=2"], "accuracy must be in"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fr3e(["simulate", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert fr3e(["simulate", "--help"]) == 0
    assert "calibrate" in capsys.readouterr().out


def test_the_benchmark_puts_prediction_and_measurement_side_by_side(tmp_path: Path, repository: Path) -> None:
    record(tmp_path, steps=10)
    out = tmp_path / "out.json"
    command = [sys.executable, str(repository / "benchmarks" / "simulator.py"), str(tmp_path), "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": str(repository)})
    assert done.returncode == 0, done.stderr
    assert "measured" in done.stdout
    (table,) = json.loads(out.read_text())["runs"].values()
    row = table["step_s"]
    assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    assert abs(row["error"]) < 0.25  # ten batches of other prompts
    assert table["idle_learner"]["error"] == pytest.approx(table["idle_learner"]["predicted"] - table["idle_learner"]["measured"])
