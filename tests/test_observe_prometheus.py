"""What is exported to Prometheus: names, labels, and how heartbeats and steps become samples."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.config import Config, EngineConfig, ObserveConfig
from fr3e_async.files.process_logs import JsonLines
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.observe.events import LEVELS, EventFields, EventKind, event_row
from fr3e_async.observe.heartbeat import EngineHeartbeat, Heartbeat, RoleHeartbeat
from fr3e_async.observe.metrics import METRICS
from fr3e_async.observe.prometheus import EXPORTED, SLOTS, HeartbeatSamples, PrometheusSample, prometheus_name, series_key
from fr3e_async.observe.recorder import Recorder
from fr3e_async.store.run_dir import RunDir

HEARTBEAT = Heartbeat(
    roles={"generators": RoleHeartbeat(up=2, wanted=3, pending=1, queued=5, in_flight=40, busy_s=7.5, idle=0.25, replaced=1)},
    admitted=20, outcomes={"trained": 8, "rejected_all_correct": 2}, in_flight=10, ready=1, slots_held=12, slots=16, trained=2, live=1,
    steps=100, staleness=1, staleness_bound=3, verdicts={"correct": 30, "wrong": 50, "unknown": 0},
    tokens_generated=900, tokens_prefilled=100, tokens_reused=50, tokens_useful=400, tokens_trained=500, optimiser_steps=4,
    stalled_s=0.5, stall_limit_s=600.0, wall_s=60.0, checkpoint_age_s=20.0, checkpoint_batches=2, checkpoint_every=20,
)  # fmt: skip


def engine(name: str, role: str = "generators", *, kv_used: float = 0.5) -> EngineHeartbeat:
    return EngineHeartbeat(name=name, role=role, version=3, running=7, waiting=2, kv_used=kv_used, limit=16)


def told(samples: list[PrometheusSample]) -> dict[str, float]:
    """Values by series, as they would stand on the page."""
    found = {}
    for sample in samples:
        labels = ",".join(f'{label}="{value}"' for label, value in sample.labels)
        found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


OF_STEPS = {"states_total", "scored_again_total", "step_duration_seconds", "sync_duration_seconds"} | {
    series_key(metric)[0] for metric in METRICS.values() if not metric.series
}


# ---- names ----


def test_every_step_metric_is_exported_or_says_which_series_has_its_numbers() -> None:
    for metric in METRICS.values():
        assert (metric.series or series_key(metric)[0]) in EXPORTED, metric.name
        assert not (metric.series and metric.panel), metric.name


def test_no_two_step_metrics_share_a_series() -> None:
    keys = Counter(series_key(metric) for metric in METRICS.values() if not metric.series)
    assert max(keys.values()) == 1


@pytest.mark.parametrize("exported", EXPORTED.values(), ids=lambda exported: exported.name)
def test_names_follow_the_conventions_of_prometheus(exported: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", exported.name)
    assert (exported.kind == "counter") == exported.name.endswith("_total")
    assert not re.search(r"_(ms|minutes|hours|percent|fraction|kib|mib|gib|s)$", exported.name)
    bare = exported.name.removesuffix("_total")
    assert (exported.unit == "s") == bare.endswith("_seconds")
    assert (exported.unit == "ratio") == bare.endswith("_ratio")
    if exported.unit in ("bytes", "nats"):
        assert bare.endswith(f"_{exported.unit}")
    assert set(exported.labels) <= {"role", "engine", "outcome", "status", "age", "reason"}
    assert (exported.kind == "histogram") == bool(exported.buckets)
    assert list(exported.buckets) == sorted(set(exported.buckets))
    assert exported.meaning


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("time/step_s", "time_step_seconds"),
        ("reward/mean", "reward_mean"),
        ("train/clip_low_fraction", "train_clip_low_ratio"),
        ("train/kl_nats", "train_kl_nats"),
        ("train/loss", "train_loss"),
        ("weights/sent_bytes", "weights_sent_bytes"),
    ],
)
def test_names_of_step_metrics(metric: str, name: str) -> None:
    assert prometheus_name(METRICS[metric]) == name


def test_metrics_by_age_are_one_name_with_a_label() -> None:
    assert series_key(METRICS["staleness/2_3_ess_fraction"]) == ("staleness_ess_ratio", ("2_3",))
    assert EXPORTED["staleness_ess_ratio"].labels == ("age",)


def test_a_sample_has_the_labels_of_its_name() -> None:
    with pytest.raises(ValueError, match="not declared"):
        PrometheusSample("surprise", 1.0)
    with pytest.raises(ValueError, match=r"actors_up has the labels \('role',\)"):
        PrometheusSample("actors_up", 1.0)


# ---- a heartbeat ----


def test_what_is_known_at_a_heartbeat() -> None:
    page = told(
        HeartbeatSamples().beat(replace(HEARTBEAT, engines=[engine("generator-0"), engine("generator-1", kv_used=1.0)]), now=99.0)
    )
    expected = {
        'actors_up{role="generators"}': 2,
        'actors_wanted{role="generators"}': 3,
        'actors_pending{role="generators"}': 1,
        'tasks_queued{role="generators"}': 5,
        'rollouts_in_flight{role="generators"}': 40,
        'idle_ratio{role="generators"}': 0.25,
        'kv_cache_used_mean_ratio{role="generators"}': 0.75,
        'kv_cache_used_max_ratio{role="generators"}': 1.0,
        'engine_kv_cache_used_ratio{role="generators",engine="1"}': 1.0,
        'engine_rollouts_limit{role="generators",engine="0"}': 16,
        "groups_in_flight": 10,
        "group_slots": 16,
        "version_trained": 2,
        "version_live": 1,
        "staleness_versions": 1,
        "staleness_bound_versions": 3,
        "stalled_seconds": 0.5,
        "heartbeat_timestamp_seconds": 99.0,
        "checkpoint_age_seconds": 20.0,
    }
    assert {name: page[name] for name in expected} == expected
    assert "heldout_accuracy_ratio" not in page, "nothing was measured yet"


def test_every_field_and_every_name_of_a_heartbeat_is_used() -> None:
    """A field that reaches no series, or a series that no field reaches, would be a lie of the documentation."""
    before, after = HeartbeatSamples(), HeartbeatSamples()
    whole = replace(HEARTBEAT, engines=[engine("generator-0")], heldout_accuracy=0.5)
    names = {sample.name for sample in before.beat(whole, now=1.0)}
    assert names == EXPORTED.keys() - OF_STEPS
    role, its = whole.roles["generators"], whole.engines[0]
    first = told(after.beat(whole, now=1.0))
    others: list[Heartbeat] = []
    for field in fields(Heartbeat):
        value = getattr(whole, field.name)
        if isinstance(value, int | float):
            others.append(replace(whole, **{field.name: value + 1}))
        elif field.name in ("outcomes", "verdicts"):
            others.append(replace(whole, **{field.name: {key: count + 1 for key, count in value.items()}}))
    for field in fields(RoleHeartbeat):
        others.append(replace(whole, roles={"generators": replace(role, **{field.name: getattr(role, field.name) + 1})}))
    for field in fields(EngineHeartbeat):
        if field.name not in ("name", "role"):
            others.append(replace(whole, engines=[replace(its, **{field.name: getattr(its, field.name) + 1})]))
    assert len(others) == len(fields(Heartbeat)) - 2 + len(fields(RoleHeartbeat)) + len(fields(EngineHeartbeat)) - 2
    for other in others:
        samples = HeartbeatSamples()
        samples.beat(whole, now=1.0)
        assert told(samples.beat(other, now=1.0)).items() - first.items(), other


def test_counters_begin_at_0_and_tell_what_was_added() -> None:
    samples = HeartbeatSamples()
    page = told(samples.beat(HEARTBEAT, now=0.0))
    assert page['groups_settled_total{outcome="trained"}'] == 0, "what there was before this process is not its work"
    later = replace(HEARTBEAT, outcomes={"trained": 12, "rejected_all_correct": 2, "rejected_no_spread": 3}, admitted=27)
    page = told(samples.beat(later, now=1.0))
    assert page['groups_settled_total{outcome="trained"}'] == 4
    assert page['groups_settled_total{outcome="rejected_no_spread"}'] == 3, "a new one counts from 0"
    assert page["groups_admitted_total"] == 7
    assert 'groups_settled_total{outcome="rejected_all_correct"}' not in page, "nothing was added"


def test_going_back_to_a_checkpoint_takes_nothing_off() -> None:
    samples = HeartbeatSamples()
    for trained in (8, 20):
        samples.beat(replace(HEARTBEAT, outcomes={"trained": trained}), now=0.0)
    back = told(samples.beat(replace(HEARTBEAT, outcomes={"trained": 12}), now=0.0))
    assert 'groups_settled_total{outcome="trained"}' not in back
    again = told(samples.beat(replace(HEARTBEAT, outcomes={"trained": 13}), now=0.0))
    assert again['groups_settled_total{outcome="trained"}'] == 1


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), min_size=1))
def test_a_counter_is_the_sum_of_all_rises(totals: list[dict[str, int]]) -> None:
    samples = HeartbeatSamples()
    sums: Counter[str] = Counter()
    for verdicts in totals:
        for sample in samples.beat(replace(HEARTBEAT, verdicts=verdicts), now=0.0):
            if sample.name == "verdicts_total":
                assert sample.value >= 0
                sums[sample.labels[0][1]] += int(sample.value)
    pairs = list(pairwise(totals))
    for key in "abc":
        assert sums[key] == sum(max(0, after[key] - before.get(key, 0)) for before, after in pairs if key in after)


# ---- engines ----


def places(samples: HeartbeatSamples, *names: str, role: str = "generators") -> dict[str, float]:
    page = told(samples.beat(replace(HEARTBEAT, engines=[engine(name, role) for name in names]), now=0.0))
    return {key: value for key, value in page.items() if key.startswith("engine_version")}


def test_a_replacement_takes_the_place_of_the_lost_engine() -> None:
    samples = HeartbeatSamples()
    places(samples, "generator-0", "generator-1")
    alone = places(samples, "generator-1")
    assert math.isnan(alone.pop('engine_version{role="generators",engine="0"}')), "a vacant place has nothing to say"
    assert alone == {'engine_version{role="generators",engine="1"}': 3}
    assert places(samples, "generator-1") == alone, "once"
    both = places(samples, "generator-1", "generator-7")
    assert both == {f'engine_version{{role="generators",engine="{place}"}}': 3 for place in (0, 1)}


def test_an_engine_that_moves_to_another_role_leaves_its_place() -> None:
    samples = HeartbeatSamples()
    places(samples, "generator-0")
    moved = places(samples, "generator-0", role="explorers")
    assert math.isnan(moved['engine_version{role="generators",engine="0"}'])
    assert moved['engine_version{role="explorers",engine="0"}'] == 3
    page = told(samples.beat(HEARTBEAT, now=0.0))
    assert math.isnan(page['kv_cache_used_mean_ratio{role="explorers"}'])
    assert not any("kv_cache" in key for key in told(samples.beat(HEARTBEAT, now=0.0)))


def test_ten_thousand_engines_make_no_more_series_than_the_places() -> None:
    samples = HeartbeatSamples()
    made = set[str]()
    for first in (0, 5_000):
        names = [f"generator-{number}" for number in range(first, first + 10_000)]
        made |= {key for key, value in places(samples, *names).items() if not math.isnan(value)}
    assert made == {f'engine_version{{role="generators",engine="{place}"}}' for place in range(SLOTS)}


# ---- a step ----


def test_a_step_becomes_gauges_counts_and_observations() -> None:
    row = {"time/step_s": 3.0, "reward/mean": 0.5, "states/kept": 4.0, "groups/trained": 8.0, "staleness/0_ratio_max": 1.5}
    assert told(HeartbeatSamples().step(row)) == {
        "step_duration_seconds": 3.0,
        "time_step_seconds": 3.0,
        "reward_mean": 0.5,
        'states_total{reason="kept"}': 4.0,
        'staleness_ratio_max{age="0"}': 1.5,
    }


def test_every_metric_that_a_step_may_report_becomes_samples() -> None:
    names = {sample.name for sample in HeartbeatSamples().step(dict.fromkeys(METRICS, 1.0))}
    assert names == OF_STEPS


# ---- the recorder ----


class Page:
    """Port ``Exporter``."""

    def __init__(self) -> None:
        self.samples: list[PrometheusSample] = []

    def publish(self, samples: Any) -> None:
        self.samples += samples


def recorder(folder: Path, exporter: Page | None) -> tuple[Recorder, RunDir]:
    run_dir = RunDir.open(folder, config=Config(engine=EngineConfig(kv_cache_gib=0.25)), config_yaml="")
    mode, console = make_console("off")
    view = ConsoleView(mode=mode, console=console, name="test", steps=4)
    config = ObserveConfig(tensorboard=False)
    return Recorder(run_dir, config=config, view=view, clock=lambda: 100.0, exporter=exporter), run_dir


def test_steps_and_heartbeats_reach_the_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page()
    sink, _ = recorder(tmp_path / "run", page)
    monkeypatch.setattr("fr3e_async.observe.recorder.wall", lambda: 4711.0)
    sink.beat(HEARTBEAT)
    sink.step(1, {"train/loss": 0.5})
    sink.close()
    seen = told(page.samples)
    assert (seen["version_trained"], seen["train_loss"]) == (2, 0.5)
    assert seen["heartbeat_timestamp_seconds"] == 4711.0, "an alert compares it with the wall clock of its own machine"


def test_without_an_exporter_nothing_is_made(tmp_path: Path) -> None:
    sink, run_dir = recorder(tmp_path / "run", None)
    sink.beat(HEARTBEAT)
    sink.step(1, {"train/loss": 0.5})
    sink.close()
    assert json.loads(run_dir.metrics.read_text())["train/loss"] == 0.5


# ---- events ----


def test_an_event_is_one_line_with_its_kind_level_and_fields(tmp_path: Path) -> None:
    sink, run_dir = recorder(tmp_path / "run", None)
    sink.note("run directory here")
    sink.note("generator-3 is stuck\n  its stacks", "actor_stuck", actor="generator-3", role="generators")
    sink.event("not for the console", "checkpoint_written", version=20, seconds=1.5)
    sink.close()
    rows = [json.loads(line) for line in (run_dir.logs / "events.jsonl").read_text().splitlines()]
    assert rows == [
        {"time_s": 100.0, "level": "info", "event": "note", "text": "run directory here"},
        {
            "time_s": 100.0, "level": "warning", "event": "actor_stuck", "actor": "generator-3", "role": "generators",
            "text": "generator-3 is stuck\n  its stacks",
        },
        {"time_s": 100.0, "level": "info", "event": "checkpoint_written", "version": 20, "seconds": 1.5, "text": "not for the console"},
    ]  # fmt: skip


def test_what_is_for_the_file_only_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = RunDir.open(tmp_path / "run", config=Config(engine=EngineConfig(kv_cache_gib=0.25)), config_yaml="")
    mode, console = make_console("plain")
    view = ConsoleView(mode=mode, console=console, name="test", steps=4)
    sink = Recorder(run_dir, config=ObserveConfig(tensorboard=False), view=view, clock=lambda: 100.0)
    sink.event("quiet", "run_failed")
    sink.note("loud", "checkpoint_written", version=1)
    sink.close()
    assert capsys.readouterr().out == "- loud\n"


def test_kinds_are_a_closed_list_with_levels() -> None:
    assert set(get_args(EventKind)) == set(LEVELS)
    assert set(LEVELS.values()) == {"info", "warning", "error"}
    with pytest.raises(KeyError):
        event_row("text", "surprise", EventFields(), time_s=0.0)  # type: ignore[arg-type]


def test_a_log_record_is_one_line_with_its_traceback() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("ray", logging.WARNING, __file__, 1, "bad %s", ("news",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    row = json.loads(line)
    assert (row["level"], row["event"], row["logger"], row["time_s"]) == ("warning", "log", "ray", record.created)
    assert row["text"].startswith("bad news\nTraceback")
    assert row["text"].endswith("ValueError: a\nb")
