"""The state of the control loop at a heartbeat, and the Prometheus series that each field becomes.

A field is declared once: its annotation has the series' name, unit, panel and meaning. ``prometheus`` exports what stands here, so a
new number needs a field here and its value in ``control/heartbeat.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from fr3e_async.observe.metrics import PrometheusMetric


def _gauge(name: str, unit: str, panel: str, meaning: str) -> PrometheusMetric:
    return PrometheusMetric(name=name, kind="gauge", unit=unit, labels=(), panel=panel, meaning=meaning)


def _total(name: str, unit: str, panel: str, meaning: str, *, by: str = "") -> PrometheusMetric:
    """Declare a counter: the field holds the sum so far; ``by``: the label of a field that has a sum for each of several names."""
    return PrometheusMetric(name=name, kind="counter", unit=unit, labels=(by,) if by else (), panel=panel, meaning=meaning)


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class RoleHeartbeat:
    """A role's actors. Totals are since the session began. *Example*: ``RoleHeartbeat(up=2, wanted=3, pending=1, queued=5, in_flight=40)``."""

    up: Annotated[int, _gauge("actors_up", "actors", "Actors and checkpoints: Actors in service", "actors in service; learner: ranks")]
    wanted: Annotated[int, _gauge("actors_wanted", "actors", "Actors and checkpoints: Actors wanted", "actors that the pool is to have now")]
    pending: Annotated[int, _gauge("actors_pending", "actors", "Actors and checkpoints: Actors that wait or start", "actors that were asked for and are not in service: they wait for a node, or start")] = 0
    replaced: Annotated[int, _total("worker_replacements_total", "actors", "Actors and checkpoints: Actors replaced in half an hour", "actors that were lost and replaced; learner: restarts of the group")] = 0
    queued: Annotated[int, _gauge("tasks_queued", "tasks", "Flow and staleness: Tasks that wait", "tasks that wait for an actor of the role")] = 0
    in_flight: Annotated[int, _gauge("rollouts_in_flight", "rollouts", "Flow and staleness: Rollouts in flight", "rollouts (verifiers: calls) that actors of the role have now")] = 0
    busy_s: Annotated[float, _total("busy_seconds_total", "s", "Flow and staleness: Idle now", "time with work, summed over the actors of the role")] = 0.0
    idle: Annotated[float | None, _gauge("idle_ratio", "ratio", "Flow and staleness: Idle since the session began", "part of the actors' time without work since the session began")] = None  # None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHeartbeat:
    """An engine in service, as of its last answer. *Example*: ``EngineHeartbeat(name="generator-3", role="generators", kv_used=0.4, running=7, waiting=0, limit=16, version=12)``."""

    name: str
    role: str
    kv_used: Annotated[float, _gauge("engine_kv_cache_used_ratio", "ratio", "Engines: KV cache by engine", "part of the engine's key-value cache in use")]
    running: Annotated[int, _gauge("engine_requests_running", "requests", "Engines: Requests in an engine", "requests in the engine, waiting ones included")]
    waiting: Annotated[int, _gauge("engine_requests_waiting", "requests", "Engines: Requests that wait in an engine", "requests queued inside of the engine")]
    limit: Annotated[int, _gauge("engine_rollouts_limit", "rollouts", "Engines: Rollouts an engine is given", "rollouts that the engine is given at once; falls while its cache is full")]
    version: Annotated[int, _gauge("engine_version", "versions", "Engines: Versions behind the learner", "weights that new tokens are sampled with")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Totals are over the whole run, except ``node_notices``; they may fall when it goes back to a checkpoint."""

    roles: Mapping[str, RoleHeartbeat]  # the learner's among them
    engines: Sequence[EngineHeartbeat] = ()
    admitted: Annotated[int, _total("groups_admitted_total", "groups", "Throughput: Groups a second, by outcome", "prompt groups that were begun")]
    outcomes: Annotated[Mapping[str, int], _total("groups_settled_total", "groups", "Throughput: Groups a second, by outcome", "prompt groups that ended: trained, rejected_<reason>, failed", by="outcome")]
    in_flight: Annotated[int, _gauge("groups_in_flight", "groups", "Flow and staleness: Groups and slots", "prompt groups that are open or with the learner")]
    ready: Annotated[int, _gauge("groups_ready", "groups", "Flow and staleness: Groups and slots", "prompt groups that are complete and wait to be trained")]
    slots_held: Annotated[int, _gauge("group_slots_held", "groups", "Flow and staleness: Groups and slots", "slots taken, those of trained groups whose weights are not live yet included")]
    slots: Annotated[int, _gauge("group_slots", "groups", "Flow and staleness: Groups and slots", "slots that there are: (flow.max_staleness + 1) · flow.groups_per_step")]
    trained: Annotated[int, _gauge("version_trained", "versions", "Overview: Versions", "newest weights: batches trained")]
    live: Annotated[int, _gauge("version_live", "versions", "Overview: Versions", "weights that every engine in service has")]
    steps: Annotated[int, _gauge("steps_wanted", "batches", "Overview: Versions", "run.steps")]
    optimiser_steps: Annotated[int, _total("optimiser_steps_total", "steps", "Throughput: Optimiser steps a second", "optimiser steps")]
    staleness: Annotated[int, _gauge("staleness_versions", "versions", "Flow and staleness: Age in versions", "age that the oldest open group would have if it were trained now")]
    staleness_bound: Annotated[int, _gauge("staleness_bound_versions", "versions", "Flow and staleness: Age in versions", "flow.max_staleness")]
    verdicts: Annotated[Mapping[str, int], _total("verdicts_total", "rollouts", "Verifier: Verdicts a second", "verdicts of settled groups: correct, wrong, unknown, failed", by="status")]
    tokens_generated: Annotated[int, _total("tokens_generated_total", "tokens", "Throughput: Tokens a second", "tokens generated for settled groups")]
    tokens_prefilled: Annotated[int, _total("tokens_prefilled_total", "tokens", "Engines: Context tokens a second", "context tokens that engines computed for them")]
    tokens_reused: Annotated[int, _total("tokens_reused_total", "tokens", "Engines: Context tokens a second", "context tokens that engines took from their prefix caches for them")]
    tokens_useful: Annotated[int, _total("tokens_useful_total", "tokens", "Throughput: Tokens a second", "generated tokens that were trained with an advantage that is not 0")]
    tokens_trained: Annotated[int, _total("tokens_trained_total", "tokens", "Throughput: Tokens a second", "trained tokens, those with an advantage of 0 included")]
    stalled_s: Annotated[float, _gauge("stalled_seconds", "s", "Overview: Stall", "time since anything moved; the run ends at watchdog.timeout_s")]
    stall_limit_s: Annotated[float, _gauge("stall_limit_seconds", "s", "Overview: Stall", "watchdog.timeout_s")]
    wall_s: Annotated[float, _gauge("wall_seconds", "s", "Actors and checkpoints: Wall time", "wall time of the run, summed over sessions")]
    checkpoint_age_s: Annotated[float, _gauge("checkpoint_age_seconds", "s", "Overview: Last checkpoint", "time since the last checkpoint was written, or since the session began")]
    checkpoint_batches: Annotated[int, _gauge("checkpoint_batches", "batches", "Actors and checkpoints: Batches since the last checkpoint", "batches trained since the last checkpoint: what a loss of the learner costs")]
    checkpoint_every: Annotated[int, _gauge("checkpoint_every_batches", "batches", "Actors and checkpoints: Batches since the last checkpoint", "run.checkpoint_every; 0: by time only")]
    node_notices: Annotated[int, _total("node_notices_total", "notices", "Actors and checkpoints: Notices of nodes", "notices that a node will be taken away")] = 0
    heldout_accuracy: Annotated[float | None, _gauge("heldout_accuracy_ratio", "ratio", "Overview: Accuracy", "newest held-out accuracy; absent before the first evaluation")] = None
# fmt: on


def series_of(kind: type[Any]) -> dict[str, PrometheusMetric]:
    """Field → its series, of one of the classes above; fields without one are left out."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
