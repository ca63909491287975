"""Every metric that a run exports to Prometheus, and how a heartbeat and a step's metrics become samples of it.

    Heartbeat ─► HeartbeatSamples.beat ─┐  gauges, and counters of totals
                                        ├─► Exporter
    metrics   ─► HeartbeatSamples.step ─┘  one gauge each, by ``prometheus_name``, unless they are counted or have a series elsewhere

Names follow Prometheus: base units (seconds, bytes, ratios from 0 to 1), ``_total`` for counters. Every series has the label
``run``. On the page that Prometheus reads each name begins with ``PREFIX``, since Ray puts ``ray_`` in front. The dashboard, the
alerts and the tables of the documentation are checked against ``EXPORTED``. Knows neither Ray nor the control plane; no clock.

Totals become increments here, so that a counter never falls when a run goes back to a checkpoint. Engines get the number of their
slot in the role, so that one that is replaced makes no new series.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any, Protocol

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.observe.heartbeat import EngineHeartbeat, Heartbeat, RoleHeartbeat, series_of
from fr3e_async.observe.metrics import METRICS, Metric, PrometheusMetric

NAMESPACE = "fr3e_"  # ours; Ray adds its own
PREFIX = f"ray_{NAMESPACE}"
RUN = "run"  # label of every series: run.name
SLOTS = 64  # engines of a role with series of their own; of all others only mean and maximum show

Key = tuple[str, tuple[str, ...]]  # a series: name, values of its labels

_RUN_SERIES, _ROLE_SERIES, _ENGINE_SERIES = (series_of(kind) for kind in (Heartbeat, RoleHeartbeat, EngineHeartbeat))
_NOW, _KV_MEAN, _KV_MAX = "heartbeat_timestamp_seconds", "kv_cache_used_mean_ratio", "kv_cache_used_max_ratio"


def _more(name: str, unit: str, panel: str, meaning: str, *labels: str) -> PrometheusMetric:
    kind: Any = "counter" if name.endswith("_total") else "gauge"
    return PrometheusMetric(name=name, kind=kind, unit=unit, labels=labels, panel=panel, meaning=meaning)


# Of a heartbeat, and no field of it.
_COMPUTED = (
    _more(_KV_MEAN, "ratio", "Engines: KV cache by role", "part of the key-value cache in use, mean over the role's engines", "role"),
    _more(_KV_MAX, "ratio", "Engines: KV cache by role", "the same of the fullest engine", "role"),
    _more(_NOW, "s", "Overview: Control loop seen", "when the control loop was last seen alive, seconds since the epoch"),
)  # fmt: skip

# Counters of step metrics. A metric of ``METRICS`` that names one adds to it; its last word is the label's value.
_COUNTERS = (
    _more("states_total", "states", "Flow and staleness: States a second, by what became of them", "states of settled groups: kept, or why they teach nothing", "reason"),
    _more("scored_again_total", "rollouts", "Verifier: Scored again", "rollouts scored more than once (verifiers.on_unknown=retry)"),
)  # fmt: skip

# Step metrics whose distribution is exported besides their last value. Bounds in seconds.
_HISTOGRAMS = {
    metric: PrometheusMetric(
        name=name, kind="histogram", unit="s", labels=(), panel=panel, meaning=METRICS[metric].meaning, buckets=buckets
    )
    for metric, name, panel, buckets in (
        ("time/step_s", "step_duration_seconds", "Throughput: Step time", (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)),
        ("time/sync_s", "sync_duration_seconds", "Engines: Weights: hand-over", (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)),
    )
}  # fmt: skip


def prometheus_name(metric: Metric) -> str:
    """``time/step_s`` is ``time_step_seconds``, ``reward/accuracy`` (a fraction) ``reward_accuracy_ratio``; no prefix."""
    name = metric.name.replace("/", "_")
    if metric.unit == "s":
        return name.removesuffix("_s") + "_seconds"
    return name.removesuffix("_fraction") + "_ratio" if metric.unit == "fraction" else name


def series_key(metric: Metric) -> Key:
    """(name, values of its labels) of a step metric's gauge. Metrics by age of the tokens are one name with a label."""
    for bucket in AGE_BUCKETS:
        head = f"staleness/{bucket}_"
        if metric.name.startswith(head):
            return prometheus_name(replace(metric, name=metric.name.replace(head, "staleness/"))), (bucket,)
    return prometheus_name(metric), ()


def _exported() -> dict[str, PrometheusMetric]:
    all_of_them = [
        *(replace(one, labels=("role",)) for one in _ROLE_SERIES.values()),
        *(replace(one, labels=("role", "engine")) for one in _ENGINE_SERIES.values()),
        *_RUN_SERIES.values(),
        *_COMPUTED,
        *_COUNTERS,
        *_HISTOGRAMS.values(),
    ]
    for one in METRICS.values():
        if not one.series:
            name, by_age = series_key(one)
            meaning = "by age of the tokens in versions: " + one.meaning.partition(": ")[2] if by_age else one.meaning
            unit = "ratio" if one.unit == "fraction" else one.unit
            all_of_them.append(_more(name, unit, one.panel, meaning, *(["age"] if by_age else [])))
    return {one.name: one for one in all_of_them}


EXPORTED: dict[str, PrometheusMetric] = _exported()


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
            raise ValueError(f"metric {self.name} is not declared in observe")
        if tuple(label for label, _ in self.labels) != EXPORTED[self.name].labels:
            raise ValueError(f"metric {self.name} has the labels {EXPORTED[self.name].labels}, got {self.labels}")


class Exporter(Protocol):
    """Receives Prometheus samples and makes them visible to whoever scrapes the process."""

    def publish(self, samples: Iterable[PrometheusSample]) -> None:
        """Take the samples. Returns at once and raises nothing: a run does not depend on who watches it."""


@dataclass(slots=True)
class HeartbeatSamples:
    """Makes the samples of one process, whose counters begin at 0. The first ``beat`` tells what there was before: call it when a run begins."""

    _totals: dict[Key, float] | None = None  # as of the last beat
    _slots: dict[str, dict[str, int]] = field(default_factory=dict)  # role → engine → its number

    def beat(self, heartbeat: Heartbeat, *, now: float) -> list[PrometheusSample]:
        """Return this heartbeat's gauges and what each counter gained since the last one; ``now``: seconds since the epoch."""
        gauges: dict[Key, float] = {(_NOW, ()): now}
        totals: dict[Key, float] = {}
        found = [((), heartbeat, _RUN_SERIES), *(((role,), its, _ROLE_SERIES) for role, its in heartbeat.roles.items())]
        for labels, values, series in found:
            for name, one in series.items():
                value = getattr(values, name)
                if isinstance(value, Mapping):
                    totals |= {(one.name, (kind,)): count for kind, count in value.items()}
                elif value is not None:
                    (totals if one.kind == "counter" else gauges)[one.name, labels] = value
        gauges |= self._engines(heartbeat.engines)
        return [_sample(key, value) for key, value in (gauges | self._increments(totals)).items()]

    def step(self, metrics: Mapping[str, float]) -> list[PrometheusSample]:
        """``metrics``: of a training batch, by the names of ``METRICS``."""
        values: list[tuple[Key, float]] = []
        for name, value in metrics.items():
            metric = METRICS[name]
            if name in _HISTOGRAMS:
                values.append(((_HISTOGRAMS[name].name, ()), value))
            if not metric.series:
                values.append((series_key(metric), value))
            elif counter := next((one for one in _COUNTERS if one.name == metric.series), None):
                values.append(((counter.name, (name.partition("/")[2],) if counter.labels else ()), value))
        return [_sample(key, value) for key, value in values]

    def _increments(self, totals: dict[Key, float]) -> dict[Key, float]:
        """What was added since the last beat, and 0 for a series that is new. A total that fell, because the run went back,
        is a new beginning."""
        before = totals if self._totals is None else self._totals
        new = totals.keys() - (self._totals or {}).keys()
        self._totals = totals
        added = {key: total - before.get(key, 0) for key, total in totals.items()}
        return {key: increment for key, increment in added.items() if increment > 0 or (key in new and not increment)}

    def _engines(self, engines: Sequence[EngineHeartbeat]) -> dict[Key, float]:
        gauges: dict[Key, float] = {}
        for role in sorted({*self._slots, *(engine.role for engine in engines)}):
            its = [engine for engine in engines if engine.role == role]
            if its:
                used = [engine.kv_used for engine in its]
                gauges |= {(_KV_MEAN, (role,)): sum(used) / len(used), (_KV_MAX, (role,)): max(used)}
            elif self._slots.get(role):  # the last one has left
                gauges |= {(_KV_MEAN, (role,)): nan, (_KV_MAX, (role,)): nan}
            slots, left = self._numbered(role, [engine.name for engine in its])
            for engine in its:
                if engine.name in slots:
                    labels = (role, str(slots[engine.name]))
                    gauges |= {(one.name, labels): getattr(engine, name) for name, one in _ENGINE_SERIES.items()}
            gauges |= {(one.name, (role, str(slot))): nan for slot in left for one in _ENGINE_SERIES.values()}
        return gauges

    def _numbered(self, role: str, names: Sequence[str]) -> tuple[dict[str, int], set[int]]:
        """Numbers of the engines: an engine keeps its own, a new one gets the lowest that is free; and those now vacant."""
        before = self._slots.get(role, {})
        slots = {name: before[name] for name in names if name in before}
        free = sorted(set(range(SLOTS)) - set(slots.values()), reverse=True)
        for name in names:
            if name not in slots and free:
                slots[name] = free.pop()
        self._slots[role] = slots
        return slots, set(before.values()) - set(slots.values())


def _sample(key: Key, value: float) -> PrometheusSample:
    name, labels = key
    return PrometheusSample(name, float(value), tuple(zip(EXPORTED[name].labels, labels, strict=True)))
