"""Makes cluster/monitoring/grafana-dashboard.json, and the tables of docs/operations.md and of events in docs/outputs.md.

    python scripts/dashboard.py

What a panel shows is said here, one line a panel; a panel's description is the meaning of its metrics, from observe/prometheus.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import events_table, exported_table

from fr3e_async.observe.prometheus import EXPORTED, PREFIX

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "cluster" / "monitoring" / "grafana-dashboard.json"
TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "exported metrics": (ROOT / "docs" / "operations.md", exported_table),
    "events": (ROOT / "docs" / "outputs.md", events_table),
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, TALL, LOW = 24, 8, 4  # Grafana's columns; heights of a graph and of a single number

# Exported, and on no panel: name, and why.
NOT_SHOWN = {
    "train_tokens": "tokens_trained_total has it",
    "prompt_trained_tokens": "tokens_trained_total has it",
    "checkpoint_open_groups": "groups_in_flight has it",
    "staleness_clip_low_ratio": "by age; all ages together are shown",
    "staleness_clip_high_ratio": "by age; all ages together are shown",
    "staleness_importance_mean": "by age; all ages together are shown",
    "staleness_ratio_mean": "by age; all ages together are shown",
    "staleness_offpolicy_nats": "staleness_offpolicy_kl_nats tells the same",
    "rollout_anchors_certain_ratio": "1 unless engine.entropy=topk",
}

Query = tuple[str, str]  # expression, legend


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"  # or "stat"
    width: int = 8
    stacked: bool = False
    most: float | None = None  # of the axis
    red_above: float | None = None


def now(name: str, *by: str, legend: str = "") -> Query:
    """A gauge as it is, of each run and label."""
    labels = ", ".join(("run", *by))
    return f"max by ({labels}) ({_of(name)})", legend or _legend(name, *by)


def rate(name: str, *by: str, legend: str = "") -> Query:
    """A counter's increase a second."""
    labels = ", ".join(("run", *by))
    return f"sum by ({labels}) (rate({_of(name)}[$__rate_interval]))", legend or _legend(name, *by)


def grown(name: str, *by: str, legend: str = "") -> Query:
    """A counter's increase over the time that is shown."""
    labels = ", ".join(("run", *by))
    return f"sum by ({labels}) (increase({_of(name)}[$__range]))", legend or _legend(name, *by)


def quantile(q: float, name: str) -> Query:
    inside = f"sum by (run, le) (rate({_of(name + '_bucket')}[$__rate_interval]))"
    return f"histogram_quantile({q}, {inside})", f"{{{{run}}}} p{q * 100:.0f}"


def each(*names: str) -> tuple[Query, ...]:
    return tuple(now(name) for name in names)


def _of(name: str) -> str:
    return f'{PREFIX}{name}{{run=~"$run"}}'


def _legend(name: str, *by: str) -> str:
    labels = " ".join(f"{{{{{label}}}}}" for label in ("run", *by))
    return labels if by else f"{labels} {name.removesuffix('_total').replace('_', ' ')}"


def stat(title: str, query: Query, unit: str = "short", *, red_above: float | None = None) -> Panel:
    return Panel(title=title, queries=(query,), unit=unit, kind="stat", width=3, red_above=red_above)


IDLE_NOW = (
    f"1 - {rate('busy_seconds_total', 'role')[0]} / {now('actors_up', 'role')[0]}",
    "{{run}} {{role}}",
)
MISSING = f"sum by (run) ({now('actors_wanted', 'role')[0]} - {now('actors_up', 'role')[0]})"
UNKNOWN = (
    f'sum by (run) (rate({PREFIX}verdicts_total{{run=~"$run", status="unknown"}}[$__rate_interval])) / '
    f"{rate('verdicts_total')[0]}"
)
BEHIND = f"{now('version_trained')[0]} - on (run) group_right () {now('engine_version', 'role', 'engine')[0]}"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Overview": (
        stat("Batches trained", now("version_trained")),
        stat("of", now("steps_wanted")),
        stat("Held-out accuracy", now("heldout_accuracy_ratio"), "percentunit"),
        stat("Nothing moved for", now("stalled_seconds"), "s", red_above=300),
        stat("Control loop seen", (f"time() - {now('heartbeat_timestamp_seconds')[0]}", "{{run}}"), "s", red_above=120),
        stat("Last checkpoint", now("checkpoint_age_seconds"), "s", red_above=7200),
        stat("Actors missing", (MISSING, "{{run}}"), red_above=1),
        stat("Actors replaced", grown("worker_replacements_total")),
        Panel(title="Accuracy", queries=each("reward_accuracy_ratio", "heldout_accuracy_ratio"), unit="percentunit", most=1),
        Panel(title="Reward", queries=each("reward_mean")),
        Panel(title="Versions", queries=each("version_trained", "version_live", "steps_wanted")),
        Panel(title="Stall", queries=each("stalled_seconds", "stall_limit_seconds"), unit="s"),
    ),
    "Throughput": (
        Panel(title="Tokens a second", queries=tuple(rate(f"tokens_{k}_total") for k in ("generated", "useful", "trained"))),
        Panel(title="Groups a second, by fate", queries=(rate("groups_settled_total", "fate"), rate("groups_admitted_total")), stacked=False),
        Panel(title="Step time", queries=(now("time_step_seconds"), quantile(0.5, "step_duration_seconds"), quantile(0.95, "step_duration_seconds")), unit="s"),
        Panel(title="Where a step's time goes", queries=each("time_train_seconds", "time_export_seconds", "time_sync_seconds", "time_checkpoint_seconds"), unit="s"),
        Panel(title="Tokens a prompt", queries=each("prompt_generated_tokens", "prompt_prefilled_tokens", "prompt_reused_tokens")),
        Panel(title="Useful tokens", queries=each("prompt_useful_ratio"), unit="percentunit", most=1),
        Panel(title="Prompts all right, all wrong", queries=each("prompt_all_right_ratio", "prompt_all_wrong_ratio"), unit="percentunit", most=1),
        Panel(title="Length of a response", queries=each("rollout_length_tokens")),
        Panel(title="Cut completions", queries=each("rollout_truncated_ratio"), unit="percentunit", most=1),
        Panel(title="Optimiser steps a second", queries=(rate("optimiser_steps_total"),)),
    ),
    "Flow and staleness": (
        Panel(title="Groups and slots", queries=each("groups_in_flight", "groups_ready", "group_slots_held", "group_slots")),
        Panel(title="Age in versions", queries=each("staleness_versions", "lag_versions_mean", "lag_versions_max", "staleness_bound_versions")),
        Panel(title="Trained tokens by age", queries=(now("staleness_tokens_ratio", "age"),), unit="percentunit", stacked=True, most=1),
        Panel(title="Tasks that wait", queries=(now("tasks_queued", "role"),)),
        Panel(title="Rollouts in flight", queries=(now("rollouts_in_flight", "role"),)),
        Panel(title="Idle now", queries=(IDLE_NOW,), unit="percentunit", most=1),
        Panel(title="Idle since the session began", queries=(now("idle_ratio", "role"),), unit="percentunit", most=1),
        Panel(title="Overlap", queries=each("overlap_ratio"), unit="percentunit", most=1),
        Panel(title="States a second, by what became of them", queries=(rate("states_total", "reason"),), stacked=True),
        Panel(title="How well states are known", queries=each("states_interval_width_ratio"), unit="percentunit", most=1),
        Panel(title="Right answers, by policy", queries=each("verify_policy_ratio"), unit="percentunit", most=1),
        Panel(title="Anchors of a group", queries=each("rollout_anchors")),
    ),
    "Engines": (
        Panel(title="KV cache by role", queries=(now("kv_cache_used_mean_ratio", "role", legend="{{run}} {{role}} mean"), now("kv_cache_used_max_ratio", "role", legend="{{run}} {{role}} max")), unit="percentunit", most=1),
        Panel(title="KV cache by engine", queries=(now("engine_kv_cache_used_ratio", "role", "engine"),), unit="percentunit", most=1),
        Panel(title="Requests in an engine", queries=(now("engine_requests_running", "role", "engine"),)),
        Panel(title="Requests that wait in an engine", queries=(now("engine_requests_waiting", "role", "engine"),)),
        Panel(title="Rollouts an engine is given", queries=(now("engine_rollouts_limit", "role", "engine"),)),
        Panel(title="Versions behind the learner", queries=((BEHIND, "{{run}} {{role}} {{engine}}"),)),
        Panel(title="Prefix cache hits", queries=each("cache_hit_ratio"), unit="percentunit", most=1),
        Panel(title="Context tokens a second", queries=(rate("tokens_prefilled_total"), rate("tokens_reused_total"))),
        Panel(title="Weights: hand-over", queries=(quantile(0.5, "sync_duration_seconds"), quantile(0.95, "sync_duration_seconds"), *each("time_copy_seconds")), unit="s"),
        Panel(title="Weights: engines stand still", queries=each("time_pause_seconds", "time_pause_max_seconds"), unit="s"),
        Panel(title="Weights: bytes of a version", queries=each("weights_sent_bytes", "weights_skipped_bytes", "weights_copied_bytes"), unit="bytes"),
        Panel(title="Weights: tensors proven, and looked at in part", queries=each("weights_verified_tensors", "weights_probed_tensors")),
    ),
    "Verifier": (
        Panel(title="Verdicts a second", queries=(rate("verdicts_total", "status"),), stacked=True),
        Panel(title="Unknown verdicts", queries=((UNKNOWN, "{{run}}"),), unit="percentunit"),
        Panel(title="Judged again", queries=(rate("judged_again_total"),)),
    ),
    "Learner": (
        Panel(title="Entropy", queries=each("train_entropy_nats", "rollout_entropy_nats", "rollout_entropy_error_nats")),
        Panel(title="KL estimates", queries=each("train_kl_nats", "train_offpolicy_kl_nats", "train_mismatch_kl_nats")),
        Panel(title="Ratio", queries=each("train_ratio_mean", "train_ratio_max")),
        Panel(title="Clipped tokens", queries=each("train_clip_low_ratio", "train_clip_high_ratio", "train_dual_clip_ratio"), unit="percentunit"),
        Panel(title="Gradient norm", queries=each("train_grad_norm", "train_grad_norm_max")),
        Panel(title="Loss", queries=each("train_loss")),
        Panel(title="Learning rate", queries=each("train_lr"), unit="sci"),
        Panel(title="Importance weights", queries=each("train_importance_mean", "train_importance_capped_ratio", "train_sequence_masked_ratio")),
        Panel(title="Effective sample size", queries=(*each("train_ess_ratio"), now("staleness_ess_ratio", "age", legend="{{run}} age {{age}}")), unit="percentunit", most=1),
        Panel(title="Sampler against trainer", queries=each("train_mismatch_nats", "train_offpolicy_nats", "train_offpolicy_signed_nats")),
        Panel(title="KL to the sampler, by age", queries=(now("staleness_offpolicy_kl_nats", "age"),)),
        Panel(title="Largest ratio, by age", queries=(now("staleness_ratio_max", "age"),)),
        Panel(title="Packing", queries=each("train_padding_ratio", "train_shared_ratio"), unit="percentunit", most=1),
    ),
    "Actors and checkpoints": (
        Panel(title="Actors in service", queries=(now("actors_up", "role"),)),
        Panel(title="Actors wanted", queries=(now("actors_wanted", "role"),)),
        Panel(title="Actors that wait or start", queries=(now("actors_pending", "role"),)),
        Panel(title="Actors replaced in half an hour", queries=((f"sum by (run, role) (increase({_of('worker_replacements_total')}[30m]))", "{{run}} {{role}}"),)),
        Panel(title="Notices of nodes", queries=((f"sum by (run) (increase({_of('node_notices_total')}[30m]))", "{{run}}"),)),
        Panel(title="Batches since the last checkpoint", queries=each("checkpoint_batches", "checkpoint_every_batches")),
        Panel(title="Rollouts in a checkpoint", queries=each("checkpoint_tree_bytes"), unit="bytes"),
        Panel(title="Wall time", queries=each("wall_seconds"), unit="s"),
    ),
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole thing, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": _at(0, y, WIDTH, 1),
            }
        )
        y = _laid_out(row, panels, y + 1)
    return {
        "uid": "fr3e-async",
        "title": "FR3E",
        "description": "Made by scripts/dashboard.py. What to do about what it shows: docs/operations.md.",
        "tags": ["fr3e", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_datasource_variable(), _run_variable()]},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }  # fmt: skip


def _laid_out(row: tuple[Panel, ...], panels: list[dict[str, Any]], y: int) -> int:
    """Left to right, a new line where one is full or the height changes; the first free y below."""
    x, height = 0, 0
    for panel in row:
        its = LOW if panel.kind == "stat" else TALL
        if x + panel.width > WIDTH or (height and its != height):
            x, y = 0, y + height
        height = its
        panels.append(_panel(panel, len(panels) + 1, _at(x, y, panel.width, height)))
        x += panel.width
    return y + height


def _at(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for i, (expression, legend) in enumerate(panel.queries)
    ]
    steps = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    if panel.kind == "stat":
        options: dict[str, Any] = {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "auto",
        }
    else:
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": stacking,
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": _description(panel),
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _description(panel: Panel) -> str:
    names = dict.fromkeys(name for expression, _ in panel.queries for name in names_in(expression))
    return "\n\n".join(f"{name}: {EXPORTED[name].meaning}" for name in names)


def names_in(expression: str) -> list[str]:
    """Exported metrics that an expression uses; a histogram by its own name."""
    found = [word.removeprefix(PREFIX) for word in re.findall(rf"\b{PREFIX}\w+", expression)]
    return [name if name in EXPORTED else re.sub(r"_(bucket|sum|count)$", "", name) for name in found]


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0}


def _run_variable() -> dict[str, Any]:
    query = f"label_values({PREFIX}heartbeat_timestamp_seconds, run)"
    return {
        "name": "run", "label": "run", "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": "runs"}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]}, "hide": 0,
    }  # fmt: skip


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def with_fresh_table(text: str, name: str, table: str) -> str:
    """``text`` with what stands between the table's marker lines made anew. ValueError if a marker is missing."""
    begin, end = f"<!-- begin of the {name}: python scripts/dashboard.py -->", f"<!-- end of the {name} -->"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the text must hold the lines {begin!r} and {end!r}")
    return f"{head}{begin}\n\n{table}\n{end}{tail}"


def main() -> None:
    OUT.write_text(dashboard_text(), encoding="utf-8")
    for name, (page, table) in TABLES.items():
        page.write_text(with_fresh_table(page.read_text(encoding="utf-8"), name, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
