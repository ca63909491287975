"""Dashboard, alerts and runbook against the metrics that are exported: every name exists, every alarm has its remedy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs import headings, slug

from fr3e_async.observe.metrics import PrometheusMetric
from fr3e_async.observe.prometheus import EXPORTED, PREFIX

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import dashboard as made  # noqa: E402 - from scripts/

MONITORING = ROOT / "cluster" / "monitoring"
OPERATIONS = ROOT / "docs" / "operations.md"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

# Of PromQL: what a word may be besides a metric and a label.
FUNCTIONS = {"rate", "increase", "histogram_quantile", "max_over_time", "last_over_time", "time"}
AGGREGATIONS = {"sum", "max", "min", "avg"}
WORDS = {"by", "on", "group_right", "group_left", "and", "or", "unless"}
OURS = {"run", "role", "engine", "outcome", "status", "age", "reason", "le"}
TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*) | (?P<text>"[^"]*") | (?P<range>\[(?:\d+[smhd]|\$__(?:rate_interval|range))\])
    | (?P<number>\d+(?:\.\d+)?) | (?P<name>[A-Za-z_]\w*) | (?P<operator>=~|!~|!=|==|>=|<=|[-+*/<>=]) | (?P<mark>[(){},])
    """,
    re.VERBOSE,
)


class Wrong(ValueError):
    """An expression that Prometheus or we would not accept."""


def tokens(expression: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of all but blanks and comments."""
    place = 0
    while place < len(expression):
        found = TOKEN.match(expression, place)
        if found is None:
            raise Wrong(f"what is {expression[place : place + 10]!r}?")
        place = found.end()
        if found.lastgroup != "space":
            yield str(found.lastgroup), found[0]


def series_of(exported: PrometheusMetric) -> list[str]:
    """Names that an expression may use."""
    parts = ("_bucket", "_sum", "_count") if exported.kind == "histogram" else ("",)
    return [f"{PREFIX}{exported.name}{part}" for part in parts]


def checked(expression: str) -> set[str]:
    """Metrics that an expression uses. Raises ``Wrong``: unknown names or labels, brackets, a counter without its rate."""
    seen, open_brackets, used = list(tokens(expression)), [], set[str]()
    series = {name: exported for exported in EXPORTED.values() for name in series_of(exported)}
    labels_in: tuple[str, ...] = ()
    for place, (kind, text) in enumerate(seen):
        before = seen[place - 1] if place else ("", "")
        after = seen[place + 1] if place + 1 < len(seen) else ("", "")
        if text in "({":
            open_brackets.append(text if before[1] not in ("by", "on", "group_right", "group_left") else "by")
        elif text in ")}":
            if not open_brackets or {"(": ")", "{": "}", "by": ")"}[open_brackets.pop()] != text:
                raise Wrong(f"{text} closes nothing")
        elif kind == "name" and open_brackets and open_brackets[-1] in ("{", "by"):
            allowed = OURS if open_brackets[-1] == "by" else {"run", "le", *labels_in}
            if text not in allowed:
                raise Wrong(f"{text} is no label here")
            if open_brackets[-1] == "{" and (after[0] != "operator" or seen[place + 2][0] != "text"):
                raise Wrong(f"label {text} is compared with nothing")
        elif text in series:
            used.add(series[text].name)
            labels_in = series[text].labels
            _look_at_counter(series[text].kind, text, seen[place:], before=[word for _, word in seen[max(0, place - 2) : place]])
        elif kind == "name" and not (
            (text in FUNCTIONS and after[1] == "(") or (text in AGGREGATIONS and after[1] in ("by", "(")) or text in WORDS
        ):
            raise Wrong(f"{text} is neither exported nor a word of PromQL")
        elif kind == "operator" and (not place or after == ("", "")):
            raise Wrong(f"{text} lacks a side")
    if open_brackets:
        raise Wrong(f"{open_brackets[-1]} stays open")
    return used


def _look_at_counter(kind: str, name: str, rest: list[tuple[str, str]], *, before: list[str]) -> None:
    """A counter only by its rate or increase, over a range; a gauge never by those."""
    behind = 1
    if rest[behind : behind + 1] == [("mark", "{")]:
        behind = next(i for i, (_, text) in enumerate(rest) if text == "}") + 1
    ranged = rest[behind][0] == "range" if behind < len(rest) else False
    cumulative = kind in ("counter", "histogram")
    if cumulative != (before[-2:-1] in (["rate"], ["increase"])):
        raise Wrong(f"{name} is a {kind}")
    if ranged != (cumulative or before[-2:-1] in (["max_over_time"], ["last_over_time"])):
        raise Wrong(f"{name} has a range, or lacks one")


# ---- the check itself ----


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("max by (run) (ray_fr3e_surprise)", "neither exported nor a word"),
        ("max by (run) (ray_fr3e_stalled_seconds", "stays open"),
        ("ray_fr3e_stalled_seconds) > 1", "closes nothing"),
        ("ray_fr3e_stalled_seconds >", "lacks a side"),
        ("ray_fr3e_verdicts_total > 1", "is a counter"),
        ("rate(ray_fr3e_stalled_seconds[5m])", "is a gauge"),
        ("rate(ray_fr3e_verdicts_total)", "lacks one"),
        ('ray_fr3e_stalled_seconds{role="x"} > 1', "no label here"),
        ("sum by (surprise) (ray_fr3e_actors_up)", "no label here"),
        ("maxx(ray_fr3e_stalled_seconds)", "neither exported"),
        ("max by (run) (ray_fr3e_stalled_seconds) ; 1", "what is"),
        ("max by (run) (ray_fr3e_actors_up{role}) > 0", "compared with nothing"),
    ],
)
def test_a_wrong_expression_is_found(expression: str, part: str) -> None:
    with pytest.raises(Wrong, match=part):
        checked(expression)


def test_a_right_expression_passes() -> None:
    text = (
        'sum by (run) (increase(ray_fr3e_verdicts_total{run=~"$run", status="unknown"}[30m])) > 0.5 # a comment\nand time() > 1'
    )
    assert checked(text) == {"verdicts_total"}
    assert checked("histogram_quantile(0.5, sum by (le) (rate(ray_fr3e_step_duration_seconds_bucket[5m])))") == {
        "step_duration_seconds"
    }


# ---- the dashboard ----


def test_the_dashboard_is_the_one_that_the_script_makes() -> None:
    text = (MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8")
    assert text == made.dashboard_text(), "run: python scripts/dashboard.py"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_exported_metrics_by_run(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        names = checked(target["expr"])
        assert names
        selectors = re.findall(rf"{PREFIX}\w+(\{{[^}}]*\}})?", target["expr"])
        assert all('run=~"$run"' in selector for selector in selectors), "the variable picks the runs"
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= OURS
        assert all(EXPORTED[name].meaning in panel["description"] for name in names)
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"


def test_every_exported_metric_is_shown_or_said_not_to_be() -> None:
    shown = {name for panel in PANELS for target in panel["targets"] for name in checked(target["expr"])}
    assert shown == {name for name, exported in EXPORTED.items() if exported.panel}
    assert len(EXPORTED.keys() - shown) < 10


def test_a_panel_stands_where_its_metrics_say() -> None:
    section, places = "", set()
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            section = panel["title"]
        places.add(f"{section}: {panel['title']}")
    assert {exported.panel for exported in EXPORTED.values() if exported.panel} <= places


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    return {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}


def test_panels_lie_within_the_grid_and_on_no_other() -> None:
    covered = [cells(panel) for panel in DASHBOARD["panels"]]
    assert all(0 <= x < 24 for each in covered for x, _ in each)
    assert sum(map(len, covered)) == len(set().union(*covered))


def test_an_overlap_would_be_found() -> None:
    one, other = ({"gridPos": {"x": x, "y": 0, "w": 8, "h": 4}} for x in (0, 7))
    assert cells(one) & cells(other)


def test_the_dashboard_has_what_grafana_needs_to_import_it() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert {panel["type"] for panel in DASHBOARD["panels"]} == {"row", "stat", "timeseries"}
    assert "id" not in DASHBOARD, "Grafana gives one"
    assert DASHBOARD["panels"][0]["type"] == "row"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["run"]["type"] == "query"
    (metric,) = re.findall(r"label_values\((\w+), run\)", variables["run"]["query"]["query"])
    assert metric.removeprefix(PREFIX) in EXPORTED


# ---- alerts ----


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_uses_exported_metrics_and_leads_to_its_remedy(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert checked(rule["expr"])
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "runbook"}
    assert "{{ $labels.run }}" in rule["annotations"]["summary"]
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
    assert named <= kept, "a label that the expression does not keep would be empty"
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (page, anchor) == ("docs/operations.md", slug(rule["alert"]))


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    names = [rule["alert"] for rule in ALERTS]
    sections = [heading for heading in headings(OPERATIONS) if heading.startswith("Fr3e")]
    assert sections == names, "in the same order"
    assert len(set(names)) == len(names)


def test_a_section_says_what_it_means_where_to_look_and_what_to_do() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    for section in re.split(r"^### (?=Fr3e)", text, flags=re.MULTILINE)[1:]:
        body = re.split(r"^##? ", section, flags=re.MULTILINE)[0]
        assert [body.count(f"**{part}.**") for part in ("Means", "Look at", "Do")] == [1, 1, 1], section[:40]


def test_what_the_runbook_calls_by_name_is_on_the_dashboard() -> None:
    text = re.sub(r"```.*?```", "", OPERATIONS.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = {panel["title"] for panel in DASHBOARD["panels"]}
    called = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", text))
    assert called <= shown
    assert len(called) > 12


def test_metrics_that_the_page_names_are_exported() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    assert set(re.findall(rf"{PREFIX}(\w+)", text)) == EXPORTED.keys()


# ---- the rest of the folder ----


def test_prometheus_reads_the_alerts_and_keeps_our_metrics() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    assert [(MONITORING / name).is_file() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"][0].endswith("/prom_metrics_service_discovery.json")
    (rule,) = job["metric_relabel_configs"]
    assert (rule["source_labels"], rule["action"]) == (["__name__"], "keep")
    assert all(re.fullmatch(rule["regex"], name) for exported in EXPORTED.values() for name in series_of(exported))


@pytest.mark.parametrize("name", made.TABLES)
def test_the_tables_of_the_pages_are_up_to_date(name: str) -> None:
    page, table = made.TABLES[name]
    text = page.read_text(encoding="utf-8")
    assert made.with_fresh_table(text, name, table()) == text, "run: python scripts/dashboard.py"


def test_the_tables_need_their_markers() -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        made.with_fresh_table("no markers", "events", "")
