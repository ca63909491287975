"""What a run reports, as Markdown tables for the documentation: metrics, events, Prometheus, benchmarks, the summary."""

from __future__ import annotations

from dataclasses import fields

from fr3e_async.config.evaluation import PAPER
from fr3e_async.evaluation.benchmarks import BENCHMARKS
from fr3e_async.observe.events import LEVELS, MEANINGS
from fr3e_async.observe.metrics import METRICS
from fr3e_async.observe.prometheus import EXPORTED, PREFIX
from fr3e_async.store.summary import Summary


def metrics_table() -> str:
    """All metrics as a Markdown table, for the documentation."""
    rows = [f"| `{m.name}` | {m.unit} | {m.meaning.replace('|', chr(92) + '|')} |" for m in METRICS.values()]
    return "\n".join(["| name | unit | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def events_table() -> str:
    """All kinds as a Markdown table, for the documentation."""
    rows = [f"| `{kind}` | {level} | {MEANINGS[kind]} |" for kind, level in LEVELS.items()]
    return "\n".join(["| event | level | when; fields |", "| --- | --- | --- |", *rows]) + "\n"


def exported_table() -> str:
    """All of them as a Markdown table, for the documentation."""
    rows = [
        f"| `{PREFIX}{e.name}` | {e.kind} | {e.unit} | {', '.join(e.labels)} | {e.meaning.replace('|', chr(92) + '|').replace('<', chr(92) + '<')} |"
        for e in EXPORTED.values()
    ]
    return "\n".join(["| name | kind | unit | labels | meaning |", "| --- | --- | --- | --- | --- |", *rows]) + "\n"


def benchmarks_table() -> str:
    """All of them as a Markdown table, for the documentation."""
    lines = [
        "| name | published as | problems | k | reference | licence | source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in BENCHMARKS.values():
        place = " ".join(filter(None, [f"`{one.hub}`", one.config, one.split, f"@{one.revision[:8]}" if one.revision else ""]))
        count = str(one.problems) if one.problems else "1 in 200"
        star = " *" if one.name in PAPER else ""
        lines.append(f"| `{one.name}`{star} | {place} | {count} | {one.k} | {one.reference} | {one.licence} | {one.citation} |")
    return "\n".join(lines) + "\n"


def summary_table() -> str:
    """All keys as a Markdown table, for the documentation."""
    rows = [f"| `{f.name}` | {f.metadata['unit']} | {f.metadata['meaning']} |" for f in fields(Summary)]
    return "\n".join(["| key | unit | meaning |", "| --- | --- | --- |", *rows]) + "\n"
