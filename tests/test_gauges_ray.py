"""Metrics on the page that Prometheus reads: a real Ray, what the driver exports, and what it costs."""

from __future__ import annotations

import logging
import math
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from test_monitoring import series_of
from test_observe_prometheus import HEARTBEAT, engine

from fr3e_async.actors import gauges
from fr3e_async.actors.gauges import RayGauges
from fr3e_async.observe.metrics import METRICS
from fr3e_async.observe.prometheus import EXPORTED, NAMESPACE, PREFIX, HeartbeatSamples, PrometheusSample

pytestmark = pytest.mark.ray

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]  # (series, our labels) -> value
APPEARS_S = 60.0  # Ray reports once a second here; its agent takes some seconds to start
FORGOTTEN_S = 30.0  # longer than Ray keeps a gauge that nobody sets
SHOWN = ("run", "role", "engine", "outcome", "status", "reason", "age", "le")


@pytest.fixture(scope="module")
def page() -> Iterator[Callable[[], tuple[Page, dict[str, str]]]]:
    """Reads the page: values of all series of ours, and each metric's type."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level=logging.ERROR,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )

    def read() -> tuple[Page, dict[str, str]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:  # the agent still starts
            return {}, {}
        found, types = Page(), {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    types[sample.name] = family.type
                    labels = tuple((name, sample.labels[name]) for name in SHOWN if name in sample.labels)
                    found[sample.name, labels] = sample.value
        return found, types

    yield read
    ray.shutdown()


def until(read: Callable[[], tuple[Page, dict[str, str]]], there: Callable[[Page], Any]) -> tuple[Page, dict[str, str]]:
    deadline = time.monotonic() + APPEARS_S
    while True:
        found, types = read()
        if there(found):
            return found, types
        assert time.monotonic() < deadline, f"not on the page: {sorted(found)}"
        time.sleep(0.25)


def test_what_a_run_exports_stands_on_the_page(page: Any) -> None:
    exporter, samples = RayGauges("a run"), HeartbeatSamples()
    before = replace(HEARTBEAT, engines=[engine("generator-0"), engine("generator-1")], heldout_accuracy=0.5)
    exporter.publish(samples.beat(before, now=1000.0))
    assert not exporter.failed
    run = (("run", "a run"),)
    first, _ = until(page, lambda found: (f"{PREFIX}verdicts_total", (*run, ("status", "correct"))) in found)
    assert first[f"{PREFIX}verdicts_total", (*run, ("status", "correct"))] < 1e-300, (
        "there from the beginning, so that it can rise"
    )

    after = replace(
        HEARTBEAT, engines=[engine("generator-1", kv_used=0.875)], heldout_accuracy=0.75,
        verdicts={"correct": 33, "wrong": 50, "unknown": 2}, outcomes={"trained": 16, "rejected_all_correct": 2},
    )  # fmt: skip
    exporter.publish(samples.beat(after, now=1002.0))
    exporter.publish(samples.step(dict.fromkeys(METRICS, 3.0)))
    exporter.publish(samples.step({"time/step_s": 40.0, "states/kept": 4.0}))
    found, types = until(page, lambda found: found.get((f"{PREFIX}states_total", (*run, ("reason", "kept")))) == 7)

    def value(name: str, **labels: str) -> float:
        return found[PREFIX + name, (*run, *labels.items())]

    assert value("heartbeat_timestamp_seconds") == 1002.0
    assert value("actors_wanted", role="generators") == 3
    assert value("heldout_accuracy_ratio") == 0.75
    assert value("engine_kv_cache_used_ratio", role="generators", engine="1") == 0.875
    gone = (f"{PREFIX}engine_kv_cache_used_ratio", (*run, ("role", "generators"), ("engine", "0")))
    assert gone not in found or math.isnan(found[gone]), "its engine has left"
    assert value("verdicts_total", status="correct") == 3
    assert value("verdicts_total", status="wrong") < 1e-300
    assert value("groups_settled_total", outcome="trained") == 8
    assert value("time_step_seconds") == 40.0
    assert value("staleness_ess_ratio", age="2_3") == 3.0
    assert value("step_duration_seconds_count") == 2
    assert value("step_duration_seconds_bucket", le="5.0") == 1
    assert {name for name, _ in found} == {name for exported in EXPORTED.values() for name in series_of(exported)} | {
        name for name, _ in found if name.endswith(("_created",))
    }
    for exported in EXPORTED.values():
        assert {types[name] for name in series_of(exported)} == {exported.kind}
    assert not exporter.failed


@pytest.mark.long
@pytest.mark.slow
def test_a_steps_metrics_stay_while_heartbeats_come_and_all_gauges_go_when_they_do_not(page: Any) -> None:
    """Ray itself forgets a gauge that is not set again; that is how a driver that is stuck is noticed."""
    exporter, samples = RayGauges("lasting"), HeartbeatSamples()
    loss, beat = ((f"{PREFIX}{name}", (("run", "lasting"),)) for name in ("train_loss", "heartbeat_timestamp_seconds"))
    exporter.publish(samples.step({"train/loss": 0.5}))
    until(page, lambda found: loss in found)
    began = time.monotonic()
    while (spent := time.monotonic() - began) < FORGOTTEN_S:
        exporter.publish(samples.beat(HEARTBEAT, now=spent))
        time.sleep(1.0)
    found, _ = page()
    assert found[loss] == 0.5
    assert found[beat] > FORGOTTEN_S / 2, "the newest one"
    until(page, lambda found: found and loss not in found and beat not in found)


def test_two_runs_on_one_cluster_are_told_apart(page: Any) -> None:
    for name, accuracy in (("one", 0.25), ("zw\xf6lf", 0.5)):
        RayGauges(name).publish(HeartbeatSamples().beat(replace(HEARTBEAT, heldout_accuracy=accuracy), now=1.0))
    one, twelve = ((f"{PREFIX}heldout_accuracy_ratio", (("run", run),)) for run in ("one", "zw\\xf6lf"))
    found, _ = until(page, lambda found: one in found and twelve in found)
    assert (found[one], found[twelve]) == (0.25, 0.5)


def test_a_heartbeat_of_many_engines_costs_little(page: Any) -> None:
    """A twentieth of the time between two heartbeats at most; it takes far less."""
    exporter, samples = RayGauges("large"), HeartbeatSamples()
    large = replace(HEARTBEAT, engines=[engine(f"generator-{number}") for number in range(1_000)])
    exporter.publish(samples.beat(large, now=0.0))
    times = []
    for _ in range(5):
        started = time.process_time()
        exporter.publish(samples.beat(large, now=1.0))
        times.append(time.process_time() - started)
    assert not exporter.failed
    assert min(times) < 0.1


def test_what_ray_refuses_hurts_nobody_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self, name: str, *_: Any) -> None:
            raise RuntimeError(f"no {name}")

    monkeypatch.setattr(gauges, "Gauge", Broken)
    exporter = RayGauges("broken")
    for _ in range(3):
        exporter.publish([PrometheusSample("stalled_seconds", 1.0)])
    assert exporter.failed
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert f"no {NAMESPACE}stalled_seconds" in caplog.text
