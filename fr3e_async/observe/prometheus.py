"""Every metric that a run exports to Prometheus: name, kind, unit, labels, meaning. A name that is not here is exported nowhere.

    heartbeat   what the control loop knows now (``vitals``)          gauges, and counters of totals
    step        the metrics of a training batch (``metrics.METRICS``)  by ``prometheus_name``, less ``NOT_EXPORTED``

Names follow Prometheus: base units (seconds, bytes, ratios from 0 to 1), ``_total`` for counters. Every series has the label
``run``. On the page that Prometheus reads each name begins with ``PREFIX``, since Ray puts ``ray_`` in front. The dashboard, the
alerts and the tables of the documentation are checked against this file. Knows nothing of Ray, and not how values come about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.observe.metrics import METRICS, Metric

NAMESPACE = "fr3e_"  # ours; Ray adds its own
PREFIX = f"ray_{NAMESPACE}"
RUN = "run"  # label of every series: run.name

Kind = Literal["gauge", "counter", "histogram"]
Source = Literal["heartbeat", "step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusMetric:
    name: str  # without a prefix
    kind: Kind
    unit: str  # "" for a pure number
    labels: tuple[str, ...]  # besides ``RUN``
    meaning: str
    source: Source
    buckets: tuple[float, ...] = ()  # upper bounds, of a histogram


@dataclass(frozen=True, slots=True)
class PrometheusSample:
    """A value for one series: of a gauge what it is now, of a counter what is added, of a histogram one observation.

    Raises ``ValueError`` for a name that is not declared, or labels that are not those of the name.
    """

    name: str
    value: float  # NaN: a gauge has nothing to say any more, and goes
    labels: tuple[tuple[str, str], ...] = ()  # in the order in which they are declared

    def __post_init__(self) -> None:
        if self.name not in EXPORTED:
            raise ValueError(f"metric {self.name} is not declared in observe/prometheus.py")
        if tuple(label for label, _ in self.labels) != EXPORTED[self.name].labels:
            raise ValueError(f"metric {self.name} has the labels {EXPORTED[self.name].labels}, got {self.labels}")


class Exporter(Protocol):
    """Where samples go."""

    def publish(self, samples: Iterable[PrometheusSample]) -> None:
        """Returns at once and raises nothing: a run does not depend on who watches it."""


_HEARTBEAT = """
actors_up                  | gauge   | actors   | role         | actors in service; learner: ranks
actors_wanted              | gauge   | actors   | role         | actors that the pool is to have now
actors_pending             | gauge   | actors   | role         | actors that were asked for and are not in service: they wait for a node, or start
worker_replacements_total  | counter | actors   | role         | actors that were lost and replaced; learner: times that the group was made anew
tasks_queued               | gauge   | tasks    | role         | tasks that wait for an actor of the role
rollouts_in_flight         | gauge   | rollouts | role         | rollouts (verifiers: calls) that actors of the role have now
busy_seconds_total         | counter | s        | role         | time with work, summed over the actors of the role
idle_ratio                 | gauge   | ratio    | role         | part of the actors' time without work since the session began
kv_cache_used_mean_ratio   | gauge   | ratio    | role         | part of the key-value cache in use, mean over the role's engines
kv_cache_used_max_ratio    | gauge   | ratio    | role         | the same of the fullest engine
engine_kv_cache_used_ratio | gauge   | ratio    | role, engine | part of the engine's key-value cache in use
engine_requests_running    | gauge   | requests | role, engine | requests in the engine, waiting ones included
engine_requests_waiting    | gauge   | requests | role, engine | requests queued inside of the engine
engine_rollouts_limit      | gauge   | rollouts | role, engine | rollouts that the engine is given at once; falls while its cache is full
engine_version             | gauge   | versions | role, engine | weights that new tokens are sampled with
groups_admitted_total      | counter | groups   |              | prompt groups that were begun
groups_settled_total       | counter | groups   | fate         | prompt groups that ended: trained, rejected_<reason>, failed_<reason>
groups_in_flight           | gauge   | groups   |              | prompt groups that are open or with the learner
groups_ready               | gauge   | groups   |              | prompt groups that are complete and wait to be trained
group_slots_held           | gauge   | groups   |              | slots taken, those of trained groups whose weights are not live yet included
group_slots                | gauge   | groups   |              | slots that there are: (flow.max_staleness + 1) · flow.groups_per_step
version_trained            | gauge   | versions |              | newest weights: batches trained
version_live               | gauge   | versions |              | weights that every engine in service has
steps_wanted               | gauge   | batches  |              | run.steps
optimiser_steps_total      | counter | steps    |              | optimiser steps
staleness_versions         | gauge   | versions |              | age that the oldest open group would have if it were trained now
staleness_bound_versions   | gauge   | versions |              | flow.max_staleness
verdicts_total             | counter | rollouts | status       | verdicts of settled groups: right, wrong, unknown, given_up
tokens_generated_total     | counter | tokens   |              | tokens generated for settled groups
tokens_prefilled_total     | counter | tokens   |              | context tokens that engines computed for them
tokens_reused_total        | counter | tokens   |              | context tokens that engines took from their prefix caches for them
tokens_useful_total        | counter | tokens   |              | generated tokens that were trained with an advantage that is not 0
tokens_trained_total       | counter | tokens   |              | trained tokens, those with an advantage of 0 included
stalled_seconds            | gauge   | s        |              | time since anything moved; the run ends at watchdog.timeout_s
stall_limit_seconds        | gauge   | s        |              | watchdog.timeout_s
heartbeat_timestamp_seconds | gauge  | s        |              | when the control loop was last seen alive, seconds since the epoch
wall_seconds               | gauge   | s        |              | wall time of the run, summed over sessions
checkpoint_age_seconds     | gauge   | s        |              | time since the last checkpoint was written, or since the session began
checkpoint_batches         | gauge   | batches  |              | batches trained since the last checkpoint: what a loss of the learner costs
checkpoint_every_batches   | gauge   | batches  |              | run.checkpoint_every; 0: by time only
node_notices_total         | counter | notices  |              | notices that a node will be taken away
heldout_accuracy_ratio     | gauge   | ratio    |              | newest held-out accuracy; absent before the first evaluation
"""

_STEP = """
states_total               | counter | states   | reason       | states of settled groups: kept, or why they teach nothing
judged_again_total         | counter | rollouts |              | rollouts judged more than once (verifiers.on_unknown=retry)
"""

_HISTOGRAMS = {
    "step_duration_seconds": ("time/step_s", (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)),
    "sync_duration_seconds": ("time/sync_s", (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)),
}
HISTOGRAM_OF = {metric: name for name, (metric, _) in _HISTOGRAMS.items()}

# Step metrics that are counts since the row before: (counter, its labels' values).
COUNTED = {
    f"states/{reason}": ("states_total", (reason,))
    for reason in ("kept", "all_right", "all_wrong", "no_spread", "too_few", "not_trained")
} | {"verify/judged_again": ("judged_again_total", ())}

# Step metrics without a series of their own, and where their numbers are instead.
NOT_EXPORTED = {
    **{
        f"groups/{fate}": "groups_settled_total"
        for fate in ("trained", "all_right", "all_wrong", "no_spread", "too_few", "failed")
    },
    **{f"verify/{status}": "verdicts_total" for status in ("right", "wrong", "unknown", "given_up")},
    **{f"queue/{role}": "tasks_queued" for role in ("generators", "explorers", "verifiers")},
    **{f"idle/{role}_fraction": "idle_ratio" for role in ("generators", "explorers", "verifiers", "learner")},
    "queue/ready_groups": "groups_ready",
    "tokens/generated": "tokens_generated_total",
    "tokens/rate_per_s": "tokens_generated_total",
    "actors/replaced": "worker_replacements_total",
}


def prometheus_name(metric: Metric) -> str:
    """``time/step_s`` is ``time_step_seconds``, ``reward/accuracy`` (a fraction) ``reward_accuracy_ratio``; no prefix."""
    name = metric.name.replace("/", "_")
    if metric.unit == "s":
        return name.removesuffix("_s") + "_seconds"
    return name.removesuffix("_fraction") + "_ratio" if metric.unit == "fraction" else name


def place_of(metric: Metric) -> tuple[str, tuple[str, ...]]:
    """(name, values of its labels) of a step metric's gauge. Metrics by age of the tokens are one name with a label."""
    for bucket in AGE_BUCKETS:
        head = f"staleness/{bucket}_"
        if metric.name.startswith(head):
            whole = Metric(name=metric.name.replace(head, "staleness/"), unit=metric.unit, meaning="")
            return prometheus_name(whole), (bucket,)
    return prometheus_name(metric), ()


def _parse(table: str, source: Source) -> dict[str, PrometheusMetric]:
    found = {}
    for line in table.strip().splitlines():
        name, kind, unit, labels, meaning = (cell.strip() for cell in line.split("|", 4))
        assert kind in ("gauge", "counter")
        names = tuple(labels.split(", ")) if labels else ()
        found[name] = PrometheusMetric(
            name=name, kind="gauge" if kind == "gauge" else "counter", unit=unit, labels=names, meaning=meaning, source=source
        )
    return found


def _histograms() -> dict[str, PrometheusMetric]:
    return {
        name: PrometheusMetric(
            name=name, kind="histogram", unit="s", labels=(), meaning=METRICS[metric].meaning, source="step", buckets=buckets
        )
        for name, (metric, buckets) in _HISTOGRAMS.items()
    }


def _gauges_of_steps() -> dict[str, PrometheusMetric]:
    found: dict[str, PrometheusMetric] = {}
    for metric in METRICS.values():
        if metric.name in NOT_EXPORTED or metric.name in COUNTED:
            continue
        name, values = place_of(metric)
        meaning = "by age of the tokens in versions: " + metric.meaning.partition(": ")[2] if values else metric.meaning
        unit = "ratio" if metric.unit == "fraction" else metric.unit
        found[name] = PrometheusMetric(
            name=name, kind="gauge", unit=unit, labels=("age",) if values else (), meaning=meaning, source="step"
        )
    return found


EXPORTED: dict[str, PrometheusMetric] = (
    _parse(_HEARTBEAT, "heartbeat") | _parse(_STEP, "step") | _histograms() | _gauges_of_steps()
)
