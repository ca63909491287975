"""Makes cluster/monitoring/grafana-dashboard.json, and the tables of docs/operations.md and docs/outputs.md.

    python scripts/dashboard.py

A metric's declaration (``observe/metrics.py``, ``observe/heartbeat.py``) names its panel as "<section>: <title>"; how that is drawn follows
from kind, unit and labels. What differs from that is said here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import events_table, exported_table, metrics_table, summary_table

from fr3e_async.observe.metrics import PrometheusMetric
from fr3e_async.observe.prometheus import EXPORTED, PREFIX

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "cluster" / "monitoring" / "grafana-dashboard.json"
OUTPUTS = ROOT / "docs" / "outputs.md"
TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "exported metrics": (ROOT / "docs" / "operations.md", exported_table),
    "metrics": (OUTPUTS, metrics_table),
    "events": (OUTPUTS, events_table),
    "summary": (OUTPUTS, summary_table),
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, TALL, LOW = 24, 8, 4  # Grafana's columns; heights of a graph and of a single number

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


def now(name: str, *by: str) -> Query:
    """A gauge as it is, of each run and label."""
    return f"max by ({', '.join(('run', *by))}) ({_of(name)})", _legend(name, *by)


def rate(name: str, *by: str) -> Query:
    """A counter's increase a second."""
    return f"sum by ({', '.join(('run', *by))}) (rate({_of(name)}[$__rate_interval]))", _legend(name, *by)


def grown(name: str, *by: str, over: str) -> Query:
    """A counter's increase over a time."""
    return f"sum by ({', '.join(('run', *by))}) (increase({_of(name)}[{over}]))", _legend("", *by)


def quantile(q: float, name: str) -> Query:
    inside = f"sum by (run, le) (rate({_of(name + '_bucket')}[$__rate_interval]))"
    return f"histogram_quantile({q}, {inside})", f"{{{{run}}}} p{q * 100:.0f}"


def drawn(one: PrometheusMetric) -> tuple[Query, ...]:
    """A metric on its panel: what its kind and labels ask for."""
    if one.kind == "histogram":
        return quantile(0.5, one.name), quantile(0.95, one.name)
    return ((rate if one.kind == "counter" else now)(one.name, *one.labels),)


def _of(name: str) -> str:
    return f'{PREFIX}{name}{{run=~"$run"}}'


def _legend(name: str, *by: str) -> str:
    labels = " ".join(f"{{{{{label}}}}}" for label in ("run", *by))
    return f"{labels} {name.removesuffix('_total').replace('_', ' ')}".rstrip()


def stat(title: str, expression: str, unit: str = "short", *, red_above: float | None = None) -> Panel:
    return Panel(title=title, queries=((expression, "{{run}}"),), unit=unit, kind="stat", width=3, red_above=red_above)


UP, WANTED = now("actors_up", "role")[0], now("actors_wanted", "role")[0]
UNKNOWN = f'sum by (run) (rate({PREFIX}verdicts_total{{run=~"$run", status="unknown"}}[$__rate_interval]))'
BEHIND = f"{now('version_trained')[0]} - on (run) group_right () {now('engine_version', 'role', 'engine')[0]}"

SECTIONS = ("Overview", "Throughput", "Flow and staleness", "Engines", "Verifier", "Learner", "Actors and checkpoints")
NUMBERS = (  # above the graphs
    stat("Batches trained", now("version_trained")[0]),
    stat("of", now("steps_wanted")[0]),
    stat("Held-out accuracy", now("heldout_accuracy_ratio")[0], "percentunit"),
    stat("Nothing moved for", now("stalled_seconds")[0], "s", red_above=300),
    stat("Control loop seen", f"time() - {now('heartbeat_timestamp_seconds')[0]}", "s", red_above=120),
    stat("Last checkpoint", now("checkpoint_age_seconds")[0], "s", red_above=7200),
    stat("Actors missing", f"sum by (run) ({WANTED} - {UP})", red_above=1),
    stat("Actors replaced", grown("worker_replacements_total", over="$__range")[0]),
)
BY_HAND: dict[str, tuple[Query, ...]] = {  # panels whose queries are no plain rate or value of their metrics
    "Flow and staleness: Idle now": ((f"1 - {rate('busy_seconds_total', 'role')[0]} / {UP}", "{{run}} {{role}}"),),
    "Engines: Versions behind the learner": ((BEHIND, "{{run}} {{role}} {{engine}}"),),
    "Verifier: Unknown verdicts": ((f"{UNKNOWN} / {rate('verdicts_total')[0]}", "{{run}}"),),
    "Actors and checkpoints: Actors replaced in half an hour": (grown("worker_replacements_total", "role", over="30m"),),
    "Actors and checkpoints: Notices of nodes": (grown("node_notices_total", over="30m"),),
}
LOOKS: dict[str, dict[str, Any]] = {  # what does not follow from a panel's metrics
    "Trained tokens by age": {"stacked": True},
    "States a second, by what became of them": {"stacked": True},
    "Verdicts a second": {"stacked": True},
    "Clipped tokens": {"most": None},
    "Unknown verdicts": {"unit": "percentunit"},
    "Idle now": {"unit": "percentunit", "most": 1},
    "Learning rate": {"unit": "sci"},
}


def panels() -> dict[str, list[Panel]]:
    """Section → its panels: numbers, then the graphs that the metrics name, in the order of their declarations."""
    metrics: dict[str, list[PrometheusMetric]] = {title: [] for title in BY_HAND}
    for one in EXPORTED.values():
        if one.panel:
            metrics.setdefault(one.panel, []).append(one)
    rows: dict[str, list[Panel]] = {section: [] for section in SECTIONS}
    rows["Overview"] += NUMBERS
    numbers = {panel.title for panel in NUMBERS}
    for place, its in metrics.items():
        section, _, title = place.partition(": ")
        if title not in numbers:
            queries = BY_HAND.get(place) or tuple(query for one in its for query in drawn(one))
            rows.setdefault(section, []).append(Panel(title=title, queries=queries, **(_looks(its) | LOOKS.get(title, {}))))
    return rows


def _looks(metrics: list[PrometheusMetric]) -> dict[str, Any]:
    """Unit and end of the axis, where all metrics have one unit; a counter is drawn by its rate."""
    units = {"short" if one.kind == "counter" else one.unit for one in metrics}
    if units == {"ratio"}:
        return {"unit": "percentunit", "most": 1}
    return {"unit": units.pop() if units in ({"s"}, {"bytes"}) else "short"}


def dashboard() -> dict[str, Any]:
    """The whole thing, as Grafana imports it."""
    laid: list[dict[str, Any]] = []
    y = 0
    for title, row in panels().items():
        heading = {"title": title, "collapsed": False, "panels": [], "gridPos": _at(0, y, WIDTH, 1)}
        laid.append({"id": len(laid) + 1, "type": "row", **heading})
        y = _laid_out(row, laid, y + 1)
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
        "panels": laid,
    }  # fmt: skip


def _laid_out(row: list[Panel], laid: list[dict[str, Any]], y: int) -> int:
    """Left to right, a new line where one is full or the height changes; the first free y below."""
    x, height = 0, 0
    for panel in row:
        its = LOW if panel.kind == "stat" else TALL
        if x + panel.width > WIDTH or (height and its != height):
            x, y = 0, y + height
        height = its
        laid.append(_panel(panel, len(laid) + 1, _at(x, y, panel.width, height)))
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
    """``text`` with what stands between the table's marker lines made again. ValueError if a marker is missing."""
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
