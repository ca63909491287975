"""Tables and curves of the comparison, from its rows alone: OUT/tables.md and one SVG a curve. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from compare_arms import FOREIGN, REFERENCE, TASKS
from compare_plots import draw
from compare_stats import Mean, at, holm, mean_over, paired

Row = dict[str, Any]  # of runs.jsonl
Value = Callable[[Row], float]
AXES = {"generated": "generated tokens", "trained": "trained tokens", "wall_s": "seconds"}
CURVES = {
    "accuracy": "held-out accuracy (avg@4)",
    "entropy": "entropy, nats a token",
    "all_correct": "prompts with 4 of 4 rollouts right",
    "all_wrong": "prompts with 0 of 4 rollouts right",
    "mean_length": "response length, tokens",
}
BEGIN, END = "<!-- begin of the tables: python benchmarks/compare.py --table -->", "<!-- end of the tables -->"


def write_results(rows: Sequence[Row], out: Path, *, arms: Sequence[str], tasks: Sequence[str], page: bool) -> None:
    """OUT/tables.md and OUT/*.svg; with ``page`` the tables go between the marks of the page OUT.md beside the folder as well."""
    out.mkdir(parents=True, exist_ok=True)
    by_task = {task: [row for row in rows if row["task"] == task] for task in tasks}
    parts = [section(task, its, arms, curves_of(its, out, task, arms)) for task, its in by_task.items()]
    text = "\n\n".join(part.strip() for part in parts if part)
    (out / "tables.md").write_text(text + "\n")
    beside = out.with_suffix(".md")
    if page and beside.is_file() and BEGIN in (old := beside.read_text()):
        head, rest = old.split(BEGIN, 1)
        shown = text.replace("](", f"]({out.name}/")
        beside.write_text(f"{head}{BEGIN}\n\n{shown}\n\n{END}{rest.split(END, 1)[1]}")


# ---- values of a run ----


def points(row: Row, name: str, axis: str = "generated") -> list[tuple[float, float]]:
    """The curve of a quantity; prompts as shares."""
    scale = 1 / row["evaluations"][0]["problems"] if name in ("all_correct", "all_wrong") else 1.0
    return [(found[axis], found[name] * scale) for found in row["evaluations"]]


def budget_of(row: Row) -> float:
    """Where curves over generated tokens are compared: what every run has reached."""
    return float(TASKS[row["task"]].tokens) if row["tokens_generated"] >= TASKS[row["task"]].tokens else row["tokens_generated"]


def final(name: str) -> Value:
    return lambda row: points(row, name)[-1][1]


def over_budget(row: Row) -> float:
    return mean_over(points(row, "accuracy"), budget_of(row))


def at_the_end(row: Row) -> float:
    """Accuracy where all arms have cost the same: the last evaluation stands a little beyond."""
    return at(points(row, "accuracy"), budget_of(row))


def alone(row: Row) -> bool:
    """Did it have the machine to itself, so that its seconds mean something?"""
    return row["foreign_cores"] <= FOREIGN


# ---- tables ----


def curves_of(rows: Sequence[Row], out: Path, task: str, arms: Sequence[str]) -> list[str]:
    """Draws the curves; the links to them."""
    links = []
    for axis in AXES:
        its = grouped([row for row in rows if axis != "wall_s" or alone(row)], arms)
        curves = {arm: [points(row, "accuracy", axis) for row in of] for arm, of in its}
        links += draw(curves, out / f"{task}-accuracy-{axis}.svg", what=CURVES["accuracy"], over=AXES[axis])
    for name in list(CURVES)[1:]:
        curves = {arm: [points(row, name) for row in of] for arm, of in grouped(rows, arms)}
        links += draw(curves, out / f"{task}-{name}-generated.svg", what=CURVES[name], over=AXES["generated"])
    curves = {arm: [[(x, y) for x, y in row["useful"]] for row in of] for arm, of in grouped(rows, arms)}
    return links + draw(curves, out / f"{task}-useful-generated.svg", what="share of useful tokens", over=AXES["generated"])


def section(task: str, rows: Sequence[Row], arms: Sequence[str], curves: Sequence[str]) -> str:
    if not rows:
        return ""
    seeds = sorted({row["seed"] for row in rows})
    before = Mean.of([points(row, "accuracy")[0][1] for row in rows if row["arm"] == rows[0]["arm"]])
    dates = sorted({row["date"] for row in rows})
    hours = math.fsum(row["wall_s"] for row in rows) / 3600
    lines = [
        f"### `{task}`: {TASKS[task].title}",
        "",
        f"{len(rows)} runs of {len(seeds)} seeds, {hours:.1f} hours in all, {dates[0]} to {dates[-1]}; commits "
        f"{', '.join(sorted({row['commit'] for row in rows}))}. Accuracy before training: {number(before)}.",
        "",
        *accuracy_table(rows, arms),
        "",
        *behaviour_table(rows, arms),
        "",
        *axes_table(rows, arms),
    ]
    anchored = anchor_table(rows, arms) if task == "forks" else []
    return "\n".join([*lines, *([""] if anchored else []), *anchored, "", *curves])


def accuracy_table(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    base = by_seed(rows, REFERENCE, over_budget)
    found = [(arm, paired(by_seed(rows, arm, over_budget), base)) for arm in arms if arm != REFERENCE]
    adjusted = dict(zip([arm for arm, _ in found], holm([p.p if p else math.nan for _, p in found]), strict=True))
    tests = dict(found)
    table = [
        header("arm", "seeds", "accuracy at the end", "mean accuracy over the budget", f"its difference from {REFERENCE}", "p (t-test)",
               "p (Holm)", "p (signs)")
    ]  # fmt: skip
    for arm, its in grouped(rows, arms):
        test = tests.get(arm)
        columns = [
            arm,
            str(len(its)),
            number(Mean.of([at_the_end(r) for r in its])),
            number(Mean.of([over_budget(r) for r in its])),
        ]
        columns += ["–"] * 4 if test is None else [
            number(test.difference, signed=True), probability(test.p), probability(adjusted[arm]), probability(test.p_signs)
        ]  # fmt: skip
        table.append(line(columns))
    return table


def behaviour_table(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    table = [
        header(
            "arm",
            "all right %",
            "all wrong %",
            "entropy",
            "length",
            "tokens a prompt",
            "useful %",
            "trained tokens",
            "batches",
            "optimiser steps",
        )
    ]
    for arm, its in grouped(rows, arms):
        right, wrong = (Mean.of([100 * final(name)(r) for r in its]) for name in ("all_correct", "all_wrong"))
        table.append(
            line([
                arm, number(right, 1), number(wrong, 1), number(Mean.of([final("entropy")(r) for r in its])),
                number(Mean.of([final("mean_length")(r) for r in its]), 1), plain(its, lambda r: r["tokens_per_prompt"]),
                plain(its, lambda r: 100 * r["tokens_useful"] / r["tokens_generated"]), plain(its, lambda r: r["tokens_trained"]),
                plain(its, lambda r: r["steps"]), plain(its, lambda r: r["optimiser_steps"]),
            ])
        )  # fmt: skip
    return table


def axes_table(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Accuracy at equal tokens generated, tokens trained and seconds: at what the arm that got least far has reached."""
    trained = min((points(row, "accuracy", "trained")[-1][0] for row in rows), default=0.0)
    own = [row for row in rows if alone(row)]
    seconds = min((points(row, "accuracy", "wall_s")[-1][0] for row in own), default=0.0)
    tokens = min(budget_of(row) for row in rows)
    table = [
        header("arm", f"at {tokens / 4:,.0f} generated", f"at {tokens / 2:,.0f} generated", f"at {trained:,.0f} trained",
               f"at {seconds:,.0f} s", "seconds of a run", "runs alone on the machine")
    ]  # fmt: skip
    for arm, its in grouped(rows, arms):
        own_ones = [row for row in its if alone(row)]
        table.append(
            line([
                arm,
                *(number(Mean.of([at(points(r, "accuracy"), part * tokens) for r in its])) for part in (0.25, 0.5)),
                number(Mean.of([at(points(r, "accuracy", "trained"), trained) for r in its])),
                number(Mean.of([at(points(r, "accuracy", "wall_s"), seconds) for r in own_ones])) if own_ones else "–",
                plain(own_ones, lambda r: r["wall_s"]) if own_ones else "–",
                str(len(own_ones)),
            ])
        )  # fmt: skip
    return table


def anchor_table(rows: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """How often anchors stand at the tokens that decide; ``anchors`` of a row is described in ``compare.anchor_hits``."""
    table = [
        header(
            "arm",
            "precision, first weights",
            "recall, first weights",
            "precision",
            "recall",
            "at or shortly before a decision",
            "by chance",
        )
    ]
    for arm, its in grouped(rows, arms):
        if not any(row["anchors"] for row in its):
            continue
        first = [total(entry for entry in row["anchors"] if entry[0] == 0) for row in its]
        whole = [total(row["anchors"]) for row in its]
        table.append(
            line([
                arm,
                *(number(Mean.of([part(sums) for sums in first])) for part in (precision, recall)),
                *(number(Mean.of([part(sums) for sums in whole])) for part in (precision, recall, upstream, chance)),
            ])
        )  # fmt: skip
    return table if len(table) > 1 else []


def total(entries: Iterable[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*(entry[1:] for entry in entries), strict=True)] or [0] * 5


def precision(sums: Sequence[int]) -> float:
    return sums[1] / max(1, sums[0])


def recall(sums: Sequence[int]) -> float:
    return sums[1] / max(1, sums[3])


def upstream(sums: Sequence[int]) -> float:
    return sums[2] / max(1, sums[0])


def chance(sums: Sequence[int]) -> float:
    return sums[3] / max(1, sums[4])


def by_seed(rows: Sequence[Row], arm: str, value: Value) -> dict[int, float]:
    return {row["seed"]: value(row) for row in rows if row["arm"] == arm}


def grouped(rows: Sequence[Row], arms: Sequence[str]) -> list[tuple[str, list[Row]]]:
    return [(arm, its) for arm in arms if (its := [row for row in rows if row["arm"] == arm])]


def header(*names: str) -> str:
    return line(names) + "\n" + line(["---"] * len(names))


def line(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |"


def number(value: Mean, digits: int = 3, *, signed: bool = False) -> str:
    """Mean and interval; of one seed the mean alone."""
    plus = "+" if signed else ""
    text = f"{value.mean:{plus}.{digits}f}"
    return text if value.n < 2 else f"{text} [{value.low:{plus}.{digits}f}, {value.high:{plus}.{digits}f}]"


def plain(rows: Sequence[Row], value: Value) -> str:
    return f"{Mean.of([value(row) for row in rows]).mean:,.0f}"


def probability(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
