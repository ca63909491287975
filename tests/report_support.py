"""Synthetic run directories for tests of the run's page: as a run leaves them, without a run. Seeded; no clock, no engine."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from fr3e_async.report.page import write_page

START = 1_760_000_000.0  # seconds since the epoch
HOSTILE = "</script><img src=x onerror=\"window.harm=1;alert('harm')\"><svg onload=alert(1)>\u202e{{title}}"
GROUP_OUTCOMES = ("trained", "trained", "rejected_all_correct", "rejected_all_wrong", "rejected_no_spread")


def write_run(
    folder: Path, *, steps: int = 6, trees: int = 8, seed: int = 0, say: Callable[[str], str] = str, config: dict[str, Any] | None = None
) -> Path:  # fmt: skip
    """A run of so many batches and kept trees. ``say``: what becomes of every text that a data set, a model or a user wrote."""
    random.seed(seed)
    folder.mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "journal").mkdir()
    write_rows(folder / "metrics.jsonl", (metrics_row(step) for step in range(1, steps + 1)))
    write_rows(folder / "groups.jsonl", (group_row(index, say) for index in range(4 * steps)))
    write_rows(folder / "logs" / "events.jsonl", events(steps, say))
    write_rows(folder / "journal" / "0000.jsonl", [{"format": 2, "config": {}, "state": None}, *journal(steps)])
    write_trees(folder / "trees.jsonl", trees, say)
    (folder / "summary.json").write_text(json.dumps(summary(steps, say)))
    write_rows(
        folder / "evaluations.jsonl",
        [*summary(steps, say)["evaluations"], benchmark("before", 0, say), benchmark("after", steps, say)],
    )
    settings = {"run": {"name": say("synthetic"), "seed": seed, "steps": steps}, "algorithm": {"strategy": "fr3e"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    return folder


def write_rows(path: Path, rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metrics_row(step: int) -> dict[str, Any]:
    return {
        "step": step, "time_s": START + 10 + 5 * step, "reward/accuracy": 0.4 + 0.05 * step, "reward/mean": random.random(),
        "tokens/generated": 1000.0, "train/tokens": 500.0, "train/loss": random.gauss(0, 1), "rollout/entropy_nats": 0.5 / step,
        "groups/all_correct": float(step), "groups/all_wrong": 2.0, "staleness/0_tokens_fraction": 0.25,
        "staleness/1_tokens_fraction": 0.75, "lag/versions_mean": 0.75, "lag/versions_max": 1.0, "time/step_s": 5.0,
        "train/clip_low_fraction": 0.01, "train/clip_high_fraction": 0.02,
    }  # fmt: skip


def group_row(index: int, say: Callable[[str], str]) -> dict[str, Any]:
    outcome = GROUP_OUTCOMES[index % len(GROUP_OUTCOMES)]
    trained = 150 if outcome == "trained" else 0
    return {
        "group": say(f"task/{index}@0"),
        "outcome": outcome,
        "tokens": {
            "generated": 250,
            "prefilled": 300,
            "reused": 100,
            "trained": trained,
            "useful": trained - 50 if trained else 0,
        },
        "states": [{"dropped": "" if trained else "all_wrong"}],
        "reasons": {say("integer"): 3, "cpu limit": 1},
    }


def events(steps: int, say: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    yield {"time_s": START, "level": "info", "event": "run_started", "text": say("run directory x")}
    yield {"time_s": START + 8, "level": "info", "event": "actors_up", "seconds": 9.0, "text": "all actors up after 9 s"}
    yield {
        "time_s": START + 12,
        "level": "warning",
        "event": "actor_lost",
        "actor": "explorer-0",
        "text": say("explorer-0 is lost"),
    }
    yield {
        "time_s": START + 10 + 5 * steps,
        "level": "info",
        "event": "run_finished",
        "seconds": 11.0 + 5 * steps,
        "text": "finished",
    }


def journal(steps: int) -> Iterator[dict[str, Any]]:
    """Two engines, a verifier and a learner; each step a base, four branches, a verdict and a batch, one after the other."""

    def line(at: float, kind: str, *decisions: str, **fields: Any) -> dict[str, Any]:
        return {"t": START + at, "e": {"type": kind, **fields}, "c": list(decisions)}

    for role, worker in (("generators", "generator-0"), ("explorers", "explorer-0"), ("verifiers", "verifier-0")):
        yield line(8, "WorkerUp", role=role, worker=worker)
    for step in range(1, steps + 1):
        at, task, group = 5 + 5 * step, 3 * step, f"task/{step}@0"
        yield line(at, "Admitted", f"assign {task} generator-0 Sample 1", group=group)
        yield line(at + 1, "Delivered", f"assign {task + 1} explorer-0 Branch 4", task=task)
        yield line(at + 3, "Delivered", f"assign {task + 2} verifier-0 Score 4", task=task + 1)
        yield line(at + 3.5, "Scored", f"train {step} 4 {group}", task=task + 2)
        yield line(at + 4.5, "Trained", f"retire {group} trained", version=step)
        yield line(at + 4.6, "Exported", f"send {step} generator-0 explorer-0", version=step)
        yield line(at + 4.8, "Acked", worker="generator-0", version=step)
        yield line(at + 4.9, "Acked", f"live {step}", worker="explorer-0", version=step)


def evaluation(label: str, step: int, accuracy: float) -> dict[str, Any]:
    at = {"version": step, "generated": 1000 * step, "trained": 500 * step, "wall_s": 11.0 + 5 * step}
    interval = {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
    return {"label": label, **interval, **at, "problems": 64, "samples": 64, "correct": round(64 * accuracy), "mean_length": 20.5}


def benchmark(label: str, step: int, say: Callable[[str], str]) -> dict[str, Any]:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    more = {"k": 4, "pass_at": {"1": estimate, "4": estimate}, "maj": estimate, "length": {"value": 20.5, "low": 18, "high": 23}}
    return evaluation(label, step, 0.5) | more | {"benchmark": say("gsm8k"), "digest": "0", "length_correct": None}


def summary(steps: int, say: Callable[[str], str]) -> dict[str, Any]:
    return {
        "name": say("synthetic"),
        "exit_reason": say("finished"),
        "steps": steps,
        "wall_s": 11.0 + 5 * steps,
        "accuracy_before": 0.4,
        "accuracy_after": 0.8,
        "accuracy_intervals": {"before": [0.3, 0.5], "after": [0.7, 0.9]},
        "evaluations": [evaluation("before", 0, 0.4), evaluation(say("after"), steps, 0.8)],
        "idle_fraction": {"generators": 0.25, "learner": 0.5},
        "staleness_mean": 0.75,
        "staleness_max": 1,
        "verdicts": {"correct": 50, "wrong": 40, "unknown": 6, "failed": 0},
        "verdict_reasons": {say("integer"): 90, "cpu limit": 6},
    }


# ---- trees ----


def tree_row(index: int, say: Callable[[str], str] = str) -> dict[str, Any]:
    """A group of 4 bases and 3 anchors of 4 branches each on base 0, as the paper has it."""
    outcome = GROUP_OUTCOMES[index % len(GROUP_OUTCOMES)]
    states = [state(node, outcome) for node in range(4)]
    return {
        "group": say(f"task/{index}@0"),
        "step": index // 8,
        "outcome": outcome,
        "prompt": say(f"Start with {index}.\n1) +6\n2) *3"),
        "gold": say(str(index)),
        "states": states,
        "rollouts": [rollout(node, branch, outcome, say) for node in range(4) for branch in range(4)],
        "a_key_of_a_later_version": {"nested": True},
    }


def state(node: int, outcome: str) -> dict[str, Any]:
    return {
        "node": node,
        "parent": node - 1 if node else None,
        "trunk": 0 if node else None,
        "position": 3 * node,
        "score": 0.9 if node else None,
        "reward_sum": 2.0,
        "scored": 4,
        "value": 0.5,
        "low": 0.15,
        "high": 0.85,
        "alpha": 1.0,
        "dropped": "" if outcome == "trained" else "no_spread",
    }


def rollout(node: int, branch: int, group_outcome: str, say: Callable[[str], str]) -> dict[str, Any]:
    pieces = [
        say(piece)
        for piece in ("1) ", "12", "+6", "=", "18", "\n", "2) ", "18", "*3", "=", "54", "\n", "\\boxed{", "54", "}", "<|end|>")
    ]
    pieces = pieces[3 * node :]
    outcome = "unknown" if (node, branch) == (1, 2) else "correct" if branch % 2 else "wrong"
    return {
        "node": node,
        "branch": branch,
        "pieces": pieces,
        "entropies": [round(random.random() * 3, 3) if i % 5 == 2 else 0.011 * (i % 3) for i in range(len(pieces))],
        "logprobs": [-round(random.random(), 3) for _ in pieces],
        "versions": [[0, 3], [2, 4]],
        "outcome": outcome,
        "reason": say("integer"),
        "reward": {"correct": 1.0, "wrong": 0.0}.get(outcome),
        "finish": "stop",
        "advantage": [[0, 0.5 if branch % 2 else -0.5]] if group_outcome == "trained" else None,
    }


def write_trees(path: Path, count: int, say: Callable[[str], str] = str) -> None:
    """So many trees; beyond some tens they are the same ones under other names, which costs a test less."""
    forms = [json.dumps(tree_row(index, say)) for index in range(min(count, 40))]
    with open(path, "w", encoding="utf-8") as file:
        for index in range(count):
            form = forms[index % len(forms)]
            if index >= len(forms):
                form = form.replace(f"task/{index % len(forms)}@0", f"task/{index}@0").replace(
                    f"Start with {index % len(forms)}.", f"Start with {index}."
                )
            file.write(form + "\n")


# ---- a page, read back ----


class Blocks(HTMLParser):
    """Elements of a page, and the text of those with data, by id or class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, list[str]] = {}
        self._now = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._now = (found.get("id") or found.get("class") or "") if found.get("type") == "text/plain" else ""

    def handle_data(self, data: str) -> None:
        if self._now:
            self.data.setdefault(self._now, []).append(data)
            self._now = ""


def unpacked(part: str) -> Any:
    """What ``report.trees.packed`` was given."""
    return json.loads(gzip.decompress(base64.b64decode(part)))


def page_of(*runs: Path, trees: int = 100) -> str:
    out = runs[0] / "report.html"
    write_page(runs, out, trees=trees)
    return out.read_text(encoding="utf-8")
