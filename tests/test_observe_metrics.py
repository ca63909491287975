"""Metric names, the summary's keys, and the writers that a step fans out to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_monitoring import made

import fr3e_async
from fr3e_async.clock import RunClock
from fr3e_async.config import Config, EngineConfig, ObserveConfig
from fr3e_async.evaluation.accuracy import ScoredSample, evaluate
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.observe.metrics import METRICS, MetricError, checked
from fr3e_async.observe.recorder import Recorder
from fr3e_async.observe.tensorboard import TensorBoardWriter
from fr3e_async.outcomes import Outcome
from fr3e_async.store.run_dir import RunDir
from fr3e_async.store.summary import Summary

PACKAGE = Path(fr3e_async.__file__).parent
GROUPS = sorted({name.partition("/")[0] for name in METRICS})
CONFIG = Config(engine=EngineConfig(kv_cache_gib=0.25))


def example_summary() -> Summary:
    def record(label: str, right: int, low: float, high: float) -> dict[str, object]:
        result = evaluate(
            ScoredSample(
                problem=f"p{i}",
                outcome=Outcome.CORRECT if i < right else Outcome.WRONG,
                length=30,
                entropy_sum=6.0,
                truncated=False,
                oldest_version=0,
                newest_version=0,
            )
            for i in range(100)
        )
        return {"label": label, "low": low, "high": high, **asdict(result)}

    return Summary(
        name="toy", exit_reason="finished", steps=24, optimiser_steps=48, version=24, resumed_from=None,
        wall_s=251.2, first_step_s=41.0, accuracy_before=0.37, accuracy_after=0.9,
        accuracy_intervals={"before": [0.28, 0.47], "after": [0.82, 0.94]},
        evaluations=[record("before", 37, 0.28, 0.47), record("after", 90, 0.82, 0.94)],
        overlap_fraction=0.91, idle_fraction={"generators": 0.1, "learner": 0.25}, staleness_max=1, staleness_mean=0.8,
        tokens_generated=412_345, tokens_prefilled=90_000, tokens_reused=60_000, tokens_useful=200_000, tokens_per_prompt=490.2,
        tokens_trained=250_000,
        groups={"trained": 768, "rejected_all_correct": 70, "failed": 0, "in_flight": 3},
        verdicts={"correct": 10, "wrong": 5, "unknown": 1, "failed": 0}, verdict_reasons={"integer": 15},
            retries=2, duplicates=0, replaced={"generators": 0},
        cache_hit_fraction=None, sync_s=0.2, pause_s=0.1,
    )  # fmt: skip


# ---- names ----


def test_every_metric_is_declared_whole() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"[a-z]+/[a-z0-9_]+", name)
        assert metric.meaning
        assert name in made.metrics_table()
    assert METRICS["time/train_s"].unit == "s"
    assert METRICS["train/mismatch_nats"].meaning.startswith("mean |log proximal - log behaviour|:")


@pytest.mark.parametrize(("suffix", "unit"), [("_s", "s"), ("_fraction", "fraction"), ("_nats", "nats"), ("_tokens", "tokens")])
def test_a_unit_in_the_name_is_the_declared_unit(suffix: str, unit: str) -> None:
    named = [m for m in METRICS.values() if m.name.endswith(suffix) and not m.name.endswith("_per_s")]
    assert named
    assert {m.unit for m in named} == {unit}


def test_an_unknown_name_or_a_value_that_is_not_finite_is_an_error() -> None:
    assert checked({"train/loss": 1}) == {"train/loss": 1.0}
    with pytest.raises(MetricError, match="did you mean train/loss"):
        checked({"train/los": 1.0})
    with pytest.raises(MetricError, match="train/loss is nan"):
        checked({"train/loss": float("nan")})


def test_every_metric_that_the_package_names_is_declared() -> None:
    literal = re.compile(rf'f?"((?:{"|".join(GROUPS)})/[a-z_]{{2,}})"')
    sources = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.parent.name in {"control", "machine", "learner", "actors", "observe", "store", "run"}
    ]
    sources += list(PACKAGE.glob("*.py"))
    named = {(path.name, name) for path in sources for name in literal.findall(path.read_text())}
    assert len(named) > 20
    assert [(file, name) for file, name in sorted(named) if name not in METRICS] == []


# ---- summary ----


def test_a_summary_comes_back_from_its_json() -> None:
    summary = example_summary()
    assert Summary.from_json(summary.to_json()) == summary
    assert set(json.loads(summary.to_json())) == {f.name for f in fields(Summary)}


def test_a_summary_refuses_nan_and_unknown_keys() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        replace(example_summary(), wall_s=float("nan")).to_json()
    with pytest.raises(TypeError, match="surprise"):
        Summary.from_json(json.dumps({**asdict(example_summary()), "surprise": 1}))


def test_every_key_of_the_summary_is_documented() -> None:
    table = made.summary_table()
    for field in fields(Summary):
        assert field.metadata["meaning"]
        assert f"| `{field.name}` |" in table


# ---- writers ----


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def test_tensorboard_reads_back_what_was_written_and_a_resume_replaces_later_steps(tmp_path: Path) -> None:
    first = TensorBoardWriter(tmp_path, clock=RunClock())
    for step in (1, 2, 3):
        first.write(step, {"train/loss": step / 10})
    first.close()
    assert scalars(tmp_path, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    second = TensorBoardWriter(tmp_path, clock=RunClock(), first_step=3)
    second.write(3, {"train/loss": 0.33})
    second.close()
    assert scalars(tmp_path, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.33)]


def test_writing_events_needs_no_torch() -> None:
    code = "import sys, fr3e_async.observe.tensorboard; sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def recorder(run_dir: RunDir, *, resumed_from: int = 0) -> Recorder:
    mode, console = make_console("off")
    view = ConsoleView(mode=mode, console=console, name="test", steps=4)
    return Recorder(run_dir, config=ObserveConfig(), view=view, clock=lambda: 100.0, resumed_from=resumed_from)


def test_a_step_reaches_every_file_and_a_resume_continues_after_its_checkpoint(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path / "run", config=CONFIG, config_yaml="")
    first = recorder(run_dir)
    for step in (1, 2, 3):
        first.step(step, {"train/loss": step / 10, "groups/trained": 4})
    first.note("checkpoint made")
    first.close()
    run_dir.close()

    again = RunDir.open(tmp_path / "run", config=replace(CONFIG, resume="auto"), config_yaml="")
    second = recorder(again, resumed_from=2)
    second.step(3, {"train/loss": 0.33})
    second.finish(example_summary())
    second.close()
    second.close()
    rows = [json.loads(line) for line in again.metrics.read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 0.1), (2, 0.2), (3, 0.33)]
    assert rows[0] == {"step": 1, "time_s": 100.0, "train/loss": 0.1, "groups/trained": 4.0}
    assert scalars(again.tensorboard, "train/loss") == [(1, 0.1), (2, 0.2), (3, 0.33)]
    assert Summary.from_json(again.summary.read_text()) == example_summary()
    assert "checkpoint made" in (again.logs / "events.jsonl").read_text()


def test_a_metric_that_is_not_declared_is_written_nowhere(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path / "run", config=CONFIG, config_yaml="")
    sink = recorder(run_dir)
    with pytest.raises(MetricError):
        sink.step(1, {"train/loss": 0.5, "train/surprise": 1.0})
    sink.close()
    assert run_dir.metrics.read_text() == ""
