"""Journals of format 2, as this package wrote them before its messages had tags: a struct was the list of its fields, in this order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fr3e_async.machine.events import Event
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.report.rows import today
from fr3e_async.store.journal import Entry, Header

FIELDS = {
    "Admitted": "group prompt", "Delivered": "task group payload notes anchors", "Rescored": "task group trunks anchors",
    "Lost": "task group ids reason scoring payload counted gone", "Scored": "task group ids verdicts", "Trained": "version",
    "Published": "version", "Asked": "task role weight priority", "Answered": "task proof",
    "WorkerUp": "role worker version ticket node", "WorkerDown": "worker why node", "Unhired": "ticket role why", "Begun": "again",
    "Leaving": "worker why seconds", "Utilization": "at idle", "Pressure": "worker kv_used waiting preempted",
    "Exported": "version", "Acked": "worker version", "Refused": "worker version why", "Due": "key", "Stopped": "reason",
    "summary": "id length context cached entropy_sum entropy_error_sum finish oldest_version newest_version",
    "anchor": "node parent trunk position score certain", "verdict": "outcome reason score attempts",
    "state": "version admitted outcomes budget groups rejected_in_a_row",
    "group": "name prompt plan number born candidates trunks rollouts anchors_of branched settled anchors scoring_attempts beginnings",
    "rollout": "id status attempts note payload row reward correct unknown scored_again reason",
    "plan": "bases trunks branches first rule", "rule": "name count min_gap raw",
}  # fmt: skip


def named(kind: str, values: list[Any], **parts: Callable[[Any], Any]) -> dict[str, Any]:
    """The fields by name, those in ``parts`` read in turn; None stays None."""
    row = dict(zip(FIELDS[kind].split(), values, strict=True))
    return row | {name: read(row[name]) for name, read in parts.items() if name in row and row[name] is not None}


def summary(values: list[Any]) -> dict[str, Any]:
    return named("summary", values)


def anchors(values: list[Any]) -> list[dict[str, Any]]:
    return [named("anchor", value) for value in values]


def event(words: list[Any]) -> Event:
    kind = {"Busy": "Utilization", "Judged": "Scored"}.get(words[0], words[0])
    row = named(
        kind, words[1:], notes=lambda rows: [*map(summary, rows)], anchors=anchors, verdicts=lambda rows: [named("verdict", v) for v in rows]
    )  # fmt: skip
    row.pop("prompt", None)
    return msgspec.convert({"type": kind, **row}, Event)


def group(values: list[Any]) -> dict[str, Any]:
    row = named(
        "group", values,
        plan=lambda value: named("plan", value, rule=lambda rule: named("rule", rule)),
        rollouts=lambda pairs: [named("rollout", rollout, note=summary) for _, rollout in pairs],
        anchors_of=lambda pairs: {id[2]: anchors(found) for id, found in pairs},
        anchors=lambda pairs: {node: named("anchor", anchor) for node, anchor in pairs},
        scoring_attempts=dict,
    )  # fmt: skip
    del row["prompt"]
    return {**row, "issued": row.pop("rollouts")}


def state(values: list[Any]) -> LedgerState:
    row = named("state", values, outcomes=dict, budget=dict, groups=lambda rows: [*map(group, rows)])
    return msgspec.convert(row, LedgerState)


def decision(brief: str) -> str:
    """A decision by the words of today: a group's outcome had others."""
    head, _, outcome = brief.rpartition(" ")
    return f"{head} {today(outcome)}" if brief.startswith("retire ") else brief


def read_old_journal(path: Path) -> tuple[Header, list[Entry]]:
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["format"] == 2
    entries = [Entry(line["t"], event(line["e"]), tuple(map(decision, line["c"]))) for line in lines]
    return Header("format 2", header["config"], None if header["state"] is None else state(header["state"])), entries
