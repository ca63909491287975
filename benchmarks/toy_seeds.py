"""The toy run on several seeds, as a user starts it: one process each, one after another; prints the table of docs/LOG.md.

    python benchmarks/toy_seeds.py [key=value ...] --seeds 0 1 2

Each seed has its own task, model and order of prompts. Caches are made warm first, so that the times are those of a
second run; run it on an idle machine. "s to 0.85": when the first evaluation at or above it had ended, counted from the start of
the process; ask for evaluations on the way (``evaluation.every=2``) to have it exact. ``--rows FILE`` adds a JSON line for each run, and leaves
out seeds whose run with the same settings is in it. Exits with 1 if a run misses a target of the embedded default. ``--quick`` is one
seed and two batches: it only shows that everything works.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

GOOD = 0.85
TARGETS = (
    ("accuracy_before", ">=", 0.25),
    ("accuracy_before", "<=", 0.45),
    ("accuracy_after", ">=", GOOD),
    ("wall_s", "<=", 300.0),
    ("first_step_s", "<=", 90.0),
)
HEADER = "| seed | before | after | wall s | first step s | s to 0.85 | overlap | idle gen / expl / ver / learn | staleness mean / max | tokens | groups trained / rejected |"


def run(seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Start the main job and return its summary, with the wall time as seen from outside."""
    run_dir = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "fr3e_async.main", "config=toy", f"run.seed={seed}", f"run.dir={run_dir}", *overrides]
    started = time.monotonic()
    subprocess.run([*command, "observe.console=off"], check=True)
    summary = json.loads((run_dir / "summary.json").read_text())
    return summary | {"wall_s": time.monotonic() - started, "reached_s": reached(run_dir / "logs" / "events.jsonl")}


def reached(events: Path, started: float = 0.0) -> float | None:
    """Seconds from a stamp of the run, or else its start, to the first evaluation at or above ``GOOD``; None: there was none."""
    for event in map(json.loads, events.read_text().splitlines()):
        if event["event"] == "actors_up":
            started = started or event["time_s"] - event["seconds"]
        found = re.match(r"held-out accuracy, [^:]*: ([0-9.]+)", event["text"])
        if found and float(found[1]) >= GOOD:
            return event["time_s"] - started
    return None


def warm(seed: int, overrides: list[str]) -> float:
    """Build the toy model of a seed if it is not cached; returns the seconds that took."""
    started = time.monotonic()
    code = "import sys; from fr3e_async.settings.loader import load_config; from fr3e_async.data.model import resolve_model; resolve_model(load_config(sys.argv[1:]).config)"
    subprocess.run([sys.executable, "-c", code, "config=toy", f"run.seed={seed}", *overrides], check=True)
    return time.monotonic() - started


def row(seed: int, s: dict[str, Any]) -> str:
    idle = " / ".join(f"{s['idle_fraction'].get(role, 0):.2f}" for role in ("generators", "explorers", "verifiers", "learner"))
    rejected = sum(count for outcome, count in s["groups"].items() if outcome.startswith("rejected"))
    intervals = {k: f"{s[f'accuracy_{k}']:.3f} [{low:.3f}, {high:.3f}]" for k, (low, high) in s["accuracy_intervals"].items()}
    return (
        f"| {seed} | {intervals['before']} | {intervals['after']} | {s['wall_s']:.0f} | {s['first_step_s']:.0f} | "
        f"{'–' if s['reached_s'] is None else format(s['reached_s'], '.0f')} | {s['overlap_fraction']:.2f} | {idle} | {s['staleness_mean']:.2f} / {s['staleness_max']} | "
        f"{s['tokens_generated']:,} | {s['groups']['trained']} / {rejected} |"
    )


def recorded(rows: Path, overrides: list[str]) -> dict[int, dict[str, Any]]:
    """The runs of a ``--rows`` file that had these settings, by seed."""
    lines = map(json.loads, rows.read_text().splitlines() if rows.exists() else ())
    return {line["seed"]: line for line in lines if line["overrides"] == overrides}


def record(rows: Path, seed: int, overrides: list[str], s: dict[str, Any]) -> None:
    """Add a run to a ``--rows`` file."""
    names = ("accuracy_before", "accuracy_after", "accuracy_intervals", "wall_s", "tokens_generated", "groups")
    with rows.open("a") as file:
        file.write(json.dumps({"overrides": overrides, "seed": seed, **{name: s[name] for name in names}}) + "\n")


def misses(summary: dict[str, Any]) -> list[str]:
    wrong = []
    for key, relation, bound in TARGETS:
        value = summary[key]
        if (value > bound) if relation == "<=" else (value < bound):
            wrong.append(f"{key} is {value:.3g}, target {relation} {bound:g}")
    return wrong


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.overrides = args.seeds[:1], [*args.overrides, "run.steps=2", "evaluation.problems=64"]
    if args.rows is not None:
        done = recorded(args.rows, args.overrides)
        args.seeds = [seed for seed in args.seeds if seed not in done]
    failures: list[str] = []
    facts, summaries = common.machine(), {}
    builds = {seed: warm(seed, args.overrides) for seed in args.seeds}
    print("model build s:", ", ".join(f"seed {seed} {seconds:.0f}" for seed, seconds in builds.items()), flush=True)
    print(HEADER, "|" + " --- |" * HEADER.count("| "), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            summary = run(seed, args.overrides, Path(folder))
            print(row(seed, summary), flush=True)
            summaries[str(seed)] = summary
            if args.rows is not None:
                record(args.rows, seed, args.overrides, summary)
            failures += [] if args.quick else [f"seed {seed}: {miss}" for miss in misses(summary)]
    common.finish(args, {"runs": summaries, "missed": failures}, facts)
    if args.quick:
        print("two batches only: no target is checked, no figure means anything")
        return False
    print("\n".join(failures) if failures else "every target met")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
