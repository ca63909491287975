"""What a run directory says, as one JSON object for the page: curves, result, evaluations, groups by outcome, events, settings.

Every file may be missing, since a run may be still going or have been killed; only ``metrics.jsonl`` or ``config.yaml`` must be there
for a folder to count as a run. Does not know how the numbers are shown.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from fr3e_async.config import Config
from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading
from fr3e_async.report.rows import mapping, metric_of_today, number, objects, plain, read_object, read_rows, text, today
from fr3e_async.report.timeline import read_timeline

METRICS, CONFIG, HELDOUT = "metrics.jsonl", "config.yaml", "heldout"
TOKENS = ("generated", "prefilled", "reused", "trained", "useful")
EVENT_TEXT = 400  # characters of an event's text that the page keeps: stacks can be long
DIGITS = 6


def read_run(path: Path) -> dict[str, Any]:
    """Read a run directory as one JSON object. Raises ``StorageError``: it is none, or a file of it is damaged."""
    check_run_folder(path)
    rows = [row for _, row in read_rows(path / METRICS)]
    events = [_event(row) for _, row in read_rows(path / "logs" / "events.jsonl")]
    summary = read_object(path / "summary.json")
    run = {
        "name": text(path.resolve().name),
        "summary": _of_today(plain(summary)),
        "metrics": columns(rows),
        "axes": axes(rows, events),
        "events": events,
        "groups": groups_by_outcome(path / "groups.jsonl"),
        "config": read_config(path / CONFIG),
        "timeline": read_timeline(path),
    }
    run["evaluations"] = evaluations(path, summary, run["axes"])
    return run


def check_run_folder(path: Path) -> None:
    """Raises ``StorageError`` unless ``path`` is a run directory."""
    if not path.is_dir():
        raise StorageError(f"{path} is no folder")
    if not (path / METRICS).is_file() and not (path / CONFIG).is_file():
        raise StorageError(f"{path} is no run directory: it has neither {METRICS} nor {CONFIG}")


def _of_today(summary: Any) -> Any:
    """Return the summary with counts under today's words."""
    counts = {key: {today(word): n for word, n in mapping((summary or {}).get(key)).items()} for key in ("groups", "verdicts")}
    return None if summary is None else {**summary, **{key: words for key, words in counts.items() if words}}


def distinct(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Names of the runs for the reader: the folder's, with as many parents as tell them apart, else with a number."""
    parts = [[text(part) for part in path.resolve().parts] for path in paths]  # a name on disk need not be UTF-8
    for depth in range(1, 4):
        said = ["/".join(part[-depth:]) for part in parts]
        if len(set(said)) == len(said):
            return said
    return [f"{name} ({index})" for index, name in enumerate(names, 1)]


# ---- curves ----


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Metric → a value or None for each row, of the metrics that have one."""
    rows = [{metric_of_today(name): value for name, value in row.items()} for row in rows]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "time_s"))
    values = {name: [number(row.get(name), DIGITS) for row in rows] for name in names}
    return {text(name): column for name, column in values.items() if any(value is not None for value in column)}


def axes(rows: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Where each row stands: ``step`` (batches), ``generated`` and ``trained`` (tokens, summed), ``wall`` (s), ``time`` (epoch)."""
    times = [number(row.get("time_s")) or 0.0 for row in rows]
    walls = _Wall(events, times)
    return {
        "step": [number(row.get("step")) or index for index, row in enumerate(rows, 1)],
        "generated": list(accumulate(number(row.get("tokens/generated")) or 0 for row in rows)),
        "trained": list(accumulate(number(row.get("train/tokens")) or 0 for row in rows)),
        "wall": [round(walls.at(moment), 3) for moment in times],
        "time": times,
    }


class _Wall:
    """Seconds of work since the run's start: the time between two sessions does not count, as in the run's own summary."""

    def __init__(self, events: Sequence[dict[str, Any]], times: Sequence[float]) -> None:
        moments = sorted([*times, *(event["time"] for event in events)])
        starts = [event["time"] for event in events if event["event"] in ("run_started", "run_resumed")] or moments[:1]
        up = [(event["time"], event["time"] - event["seconds"]) for event in events if event["event"] == "actors_up"]
        self._sessions: list[tuple[float, float]] = []  # (begins, seconds of the sessions before it)
        before = 0.0
        for index, start in enumerate(starts):
            following = starts[index + 1] if index + 1 < len(starts) else float("inf")
            begin = min(
                [start, *(began for said, began in up if start <= said < following)]
            )  # the program started before its first row
            last = max([moment for moment in moments if start <= moment < following], default=start)
            self._sessions.append((begin, before))
            before += last - begin

    def at(self, moment: float) -> float:
        found = [(begin, before) for begin, before in self._sessions if begin <= moment] or self._sessions[:1]
        return found[-1][1] + moment - found[-1][0] if found else 0.0


# ---- evaluations ----


def evaluations(path: Path, summary: dict[str, Any] | None, found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Every evaluation, with its ``benchmark`` and its position on each axis (``at``).

    From evaluations.jsonl, else the summary, else the events; of an evaluation that ran alone, from its results.json.
    """
    rows = [row for _, row in read_rows(path / "evaluations.jsonl")]
    alone = mapping((read_object(path / "results.json") or {}).get("benchmarks"))
    rows = [{"label": "alone", "benchmark": name, **mapping(row)} for name, row in alone.items()] or rows
    rows = rows or objects((summary or {}).get("evaluations"))
    rows = rows or [mapping(event.get("measured")) for _, event in read_rows(path / "logs" / "events.jsonl")]
    known = [row for row in rows if number(row.get("accuracy")) is not None]
    return [plain({"benchmark": HELDOUT, **row, "at": _placed(row, found)}) for row in known]


def _placed(row: dict[str, Any], found: dict[str, list[float]]) -> dict[str, float | None]:
    version = number(row.get("version"))
    passed = sum(1 for step in found["step"] if version is not None and step <= version)

    def of_rows(name: str) -> float | None:
        return None if version is None else found[name][passed - 1] if passed else 0

    stated = {
        "step": version,
        **{name: number(row.get(name)) for name in ("generated", "trained")},
        "wall": number(row.get("wall_s")),
    }
    return {name: of_rows(name) if value is None else value for name, value in stated.items()}


# ---- groups, events, settings ----


def groups_by_outcome(path: Path) -> dict[str, dict[str, Any]] | None:
    """Outcome → ``groups``, tokens by account, ``states`` by why they were dropped ("" if kept), ``reasons`` of verdicts."""
    outcomes: dict[str, dict[str, Any]] = {}
    for _, row in read_rows(path):
        outcome = outcomes.setdefault(
            today(row.get("outcome", row.get("fate"))),
            {"groups": 0, **dict.fromkeys(TOKENS, 0), "states": Counter(), "reasons": Counter()},
        )
        outcome["groups"] += 1
        for name in TOKENS:
            outcome[name] += number(mapping(row.get("tokens")).get(name)) or 0
        outcome["states"].update(today(state.get("dropped")) for state in objects(row.get("states")))
        outcome["reasons"].update({text(reason): number(count) or 0 for reason, count in mapping(row.get("reasons")).items()})
    return outcomes or None


def _event(row: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {name: plain(row[name]) for name in ("actor", "role", "version") if name in row}
    return {
        "time": number(row.get("time_s")) or 0.0,
        "level": text(row.get("level")),
        "event": text(row.get("event")),
        **said,
        "seconds": number(row.get("seconds")) or 0.0,
        "text": text(row.get("text"))[:EVENT_TEXT],
    }


def read_config(path: Path) -> dict[str, Any]:
    """Dotted name → value of every setting; empty if there is no file. Raises ``StorageError``."""
    with reading(path, yaml.YAMLError):
        return flat(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def defaults() -> dict[str, Any]:
    """Dotted name → value of every setting that nobody has set. Field by field: as a whole they need not be a run."""
    found: dict[str, Any] = {}
    for item in fields(Config):
        value = item.default_factory() if item.default_factory is not MISSING else item.default
        found |= flat(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value, item.name)
    return found


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names. *Example*: ``{"flow": {"window": 0}}`` → ``{"flow.window": 0}``."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: plain(tree)} if prefix else {}
    return {
        name: value
        for key, item in tree.items()
        for name, value in flat(item, f"{prefix}.{text(key)}" if prefix else text(key)).items()
    }
