"""What the control loop knows of itself at a heartbeat, as plain numbers, and how it and a step's metrics become samples.

    Vitals ─► Samples.beat ─┐
                            ├─► Exporter (``exported``)
    metrics ─► Samples.step ┘

Totals become increments here, so that a counter never falls when a run goes back to a checkpoint; engines get the number of
their place in the role, so that one that is replaced makes no new series. Knows neither the control plane nor Ray. No clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

from fr3e_async.observe.metrics import METRICS
from fr3e_async.observe.prometheus import COUNTED, EXPORTED, HISTOGRAM_OF, NOT_EXPORTED, PrometheusSample, place_of

PLACES = 64  # engines of a role with series of their own; of all others only mean and maximum show
_ENGINE_GAUGES = {
    "engine_kv_cache_used_ratio": "kv_used",
    "engine_requests_running": "running",
    "engine_requests_waiting": "waiting",
    "engine_rollouts_limit": "limit",
    "engine_version": "version",
}

Key = tuple[str, tuple[str, ...]]  # a series: name, values of its labels


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleHeartbeat:
    """A role's actors. ``replaced`` and ``busy_s`` are totals since the session began."""

    up: int
    wanted: int
    pending: int = 0  # asked for and not in service
    queued: int = 0  # tasks
    in_flight: int = 0  # rollouts; verifiers: calls
    busy_s: float = 0.0  # actor-seconds
    idle: float | None = None  # 0..1, since the session began; None: not known
    replaced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHeartbeat:
    """An engine in service, as of its last answer."""

    name: str
    role: str
    version: int
    running: int  # requests, waiting ones included
    waiting: int  # requests
    kv_used: float  # 0..1
    limit: int  # rollouts that it is given at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Totals are over the whole run; they may fall when it goes back to a checkpoint."""

    roles: Mapping[str, RoleHeartbeat]  # the learner's among them
    engines: Sequence[EngineHeartbeat] = ()
    admitted: int  # groups, as are the next five
    fates: Mapping[str, int]  # settled ones: trained, rejected_<reason>, failed_<reason>
    in_flight: int
    ready: int
    slots_held: int
    slots: int
    trained: int  # version: batches trained
    live: int  # version that every engine in service has
    steps: int  # run.steps
    staleness: int  # versions that the oldest open group is old
    staleness_bound: int
    verdicts: Mapping[str, int]  # rollouts: right, wrong, unknown, given_up
    tokens: Mapping[str, int]  # generated, prefilled, reused, useful, trained
    optimiser_steps: int
    stalled_s: float  # since anything moved
    stall_limit_s: float
    wall_s: float
    checkpoint_age_s: float
    checkpoint_batches: int  # trained since the last checkpoint
    checkpoint_every: int
    node_notices: int = 0  # since the session began
    heldout_accuracy: float | None = None


@dataclass(slots=True)
class HeartbeatSamples:
    """Of one process: its counters begin at 0. The first ``beat`` tells what there was before; call it when a run begins."""

    _totals: dict[Key, float] | None = None  # as of the last beat
    _places: dict[str, dict[str, int]] = field(default_factory=dict)  # role -> engine -> its number

    def beat(self, vitals: Heartbeat, *, now: float) -> list[PrometheusSample]:
        """``now``: seconds since the epoch."""
        gauges: dict[Key, float] = {}
        for name, value in _gauges(vitals, now).items():
            gauges[name, ()] = value
        for role, its in vitals.roles.items():
            gauges |= {(name, (role,)): value for name, value in _gauges_of_role(its).items()}
        roles = {*self._places, *(engine.role for engine in vitals.engines)}
        gauges |= self._engines(vitals.engines, sorted(roles))
        return [*_samples(gauges), *_samples(self._increments(_totals(vitals)))]

    def step(self, metrics: Mapping[str, float]) -> list[PrometheusSample]:
        """``metrics``: of a training batch, by the names of ``METRICS``."""
        values: list[tuple[Key, float]] = []
        for metric, value in metrics.items():
            if metric in HISTOGRAM_OF:
                values.append(((HISTOGRAM_OF[metric], ()), value))
            if metric in COUNTED:
                values.append((COUNTED[metric], value))
            elif metric not in NOT_EXPORTED:
                values.append((place_of(METRICS[metric]), value))
        return [_sample(key, value) for key, value in values]

    def _increments(self, totals: dict[Key, float]) -> dict[Key, float]:
        """What was added since the last beat, and 0 for a series that is new. A total that fell, because the run went back,
        is a new beginning."""
        before = totals if self._totals is None else self._totals
        new = totals.keys() - (self._totals or {}).keys()
        self._totals = totals
        added = {key: total - before.get(key, 0) for key, total in totals.items()}
        return {key: increment for key, increment in added.items() if increment > 0 or (key in new and not increment)}

    def _engines(self, engines: Sequence[EngineHeartbeat], roles: Iterable[str]) -> dict[Key, float]:
        gauges: dict[Key, float] = {}
        for role in roles:
            its = [engine for engine in engines if engine.role == role]
            if its:
                used = [engine.kv_used for engine in its]
                gauges["kv_cache_used_mean_ratio", (role,)] = sum(used) / len(used)
                gauges["kv_cache_used_max_ratio", (role,)] = max(used)
            elif self._places.get(role):  # the last one has left
                gauges |= {("kv_cache_used_mean_ratio", (role,)): nan, ("kv_cache_used_max_ratio", (role,)): nan}
            places, left = self._placed(role, [engine.name for engine in its])
            for engine in its:
                if engine.name in places:
                    where = (role, str(places[engine.name]))
                    gauges |= {(name, where): getattr(engine, field) for name, field in _ENGINE_GAUGES.items()}
            gauges |= {(name, (role, str(place))): nan for place in left for name in _ENGINE_GAUGES}
        return gauges

    def _placed(self, role: str, names: Sequence[str]) -> tuple[dict[str, int], set[int]]:
        """Numbers of the engines: an engine keeps its own, a new one gets the lowest that is free; and those now vacant."""
        before = self._places.get(role, {})
        places = {name: before[name] for name in names if name in before}
        free = sorted(set(range(PLACES)) - set(places.values()), reverse=True)
        for name in names:
            if name not in places and free:
                places[name] = free.pop()
        self._places[role] = places
        return places, set(before.values()) - set(places.values())


def _gauges(vitals: Heartbeat, now: float) -> dict[str, float]:
    gauges: dict[str, float] = {
        "groups_in_flight": vitals.in_flight,
        "groups_ready": vitals.ready,
        "group_slots_held": vitals.slots_held,
        "group_slots": vitals.slots,
        "version_trained": vitals.trained,
        "version_live": vitals.live,
        "steps_wanted": vitals.steps,
        "staleness_versions": vitals.staleness,
        "staleness_bound_versions": vitals.staleness_bound,
        "stalled_seconds": vitals.stalled_s,
        "stall_limit_seconds": vitals.stall_limit_s,
        "heartbeat_timestamp_seconds": now,
        "wall_seconds": vitals.wall_s,
        "checkpoint_age_seconds": vitals.checkpoint_age_s,
        "checkpoint_batches": vitals.checkpoint_batches,
        "checkpoint_every_batches": vitals.checkpoint_every,
    }
    if vitals.heldout_accuracy is not None:
        gauges["heldout_accuracy_ratio"] = vitals.heldout_accuracy
    return gauges


def _gauges_of_role(its: RoleHeartbeat) -> dict[str, float]:
    gauges: dict[str, float] = {
        "actors_up": its.up,
        "actors_wanted": its.wanted,
        "actors_pending": its.pending,
        "tasks_queued": its.queued,
        "rollouts_in_flight": its.in_flight,
    }
    return gauges if its.idle is None else {**gauges, "idle_ratio": its.idle}


def _totals(vitals: Heartbeat) -> dict[Key, float]:
    totals: dict[Key, float] = {
        ("groups_admitted_total", ()): vitals.admitted,
        ("optimiser_steps_total", ()): vitals.optimiser_steps,
        ("node_notices_total", ()): vitals.node_notices,
    }
    totals |= {("groups_settled_total", (fate,)): count for fate, count in vitals.fates.items()}
    totals |= {("verdicts_total", (status,)): count for status, count in vitals.verdicts.items()}
    totals |= {(f"tokens_{kind}_total", ()): count for kind, count in vitals.tokens.items()}
    for role, its in vitals.roles.items():
        totals["worker_replacements_total", (role,)] = its.replaced
        totals["busy_seconds_total", (role,)] = its.busy_s
    return totals


def _samples(values: Mapping[Key, float]) -> list[PrometheusSample]:
    return [_sample(key, value) for key, value in values.items()]


def _sample(key: Key, value: float) -> PrometheusSample:
    name, labels = key
    return PrometheusSample(name, float(value), tuple(zip(EXPORTED[name].labels, labels, strict=True)))
