"""The system as a whole: the loop against its bare engines, asynchronous against synchronous, updates in flight, control capacity.

    python benchmarks/system.py [--quick] [--json OUT] [--only engine async updates control machine]

All of it is the toy; run it on an idle machine. `engine`, `async` (its search) and `updates` share one stage: Ray, a generator, an
explorer and a verifier that stay up while runs follow each other, each with a learner and a control loop of its own
(``system_parts``). These runs are stopped with their engines at work, and rates are those of their steady part: from the second
batch on, or without the first and the last tenth of the tokens. An engine may take the other one's work (pools.flexible_roles)
where a split does not say otherwise.

engine   generated tokens a second of real actors and loop with a learner that does nothing, over those of the same engine class
         in bare processes, given the same requests with the same number at once; in rounds of both. Then with a real learner.
async    flow.max_staleness 0 against others: the best of some splits for each, by batches a second, and with that one a whole job
         as a user starts it, with evaluations on the way.
updates  weights.update: in_flight, wait_idle, abort_retry.
control  rollouts a second through the real loop and Ray with actors that answer at once; journal, ledger log and metrics are written.
machine  events a second of the bare state machine: recorded beforehand, so that only ``Machine.handle`` is in the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import finish, machine, parser, quiet, table
from stand_ins import NoLearner
from system_bare import BareEngine, Listening, steady
from system_control import control_section, machine_section
from system_parts import Played, Stage, cluster, open_stage, pace, toy
from toy_seeds import GOOD, reached

from fr3e_async.control.ports import EngineWorker, LearnerPort

ENGINE_GOAL = 0.95  # tokens a second, system / bare
ASYNC_GOAL = 1.5  # batches a second, asynchronous / synchronous
SECTIONS = ("engine", "async", "updates", "control", "machine")
FLEXIBLE = "pools.flexible_roles=true"
SPLITS = {
    "own roles": (),
    "flexible": (FLEXIBLE,),
    "flexible, 2 learner threads": (FLEXIBLE, "learner.threads=2"),
    "flexible, 64 in flight": (FLEXIBLE, "generators.rollouts_in_flight=64", "explorers.rollouts_in_flight=64"),
}
UPDATES = ("in_flight", "wait_idle", "abort_retry")
ROLES = ("generators", "explorers", "verifiers", "learner")
Figures = dict[str, Any]


def idle(summary: dict[str, Any]) -> str:
    return " / ".join(f"{summary['idle_fraction'].get(role, 0):.2f}" for role in ROLES)


def judged(name: str, value: float, goal: float) -> None:
    print(f"\n{name}: {value:.3g}, goal {goal:g}: {'met' if value >= goal else 'MISSED'}", flush=True)


# ---- engine ----


async def system_rate(
    stage: Stage, batches: int, *, engines: int, learner: LearnerPort | None
) -> tuple[Figures, list[Listening]]:
    """Tokens a second of a run and where the rest has gone, and what each of its engines was asked for."""
    heard: list[Listening] = []

    def listen(worker: EngineWorker) -> Listening:
        heard.append(Listening(worker))
        return heard[-1]

    played = await stage.play(
        FLEXIBLE, "flow.max_staleness=2", batches=batches, engines=engines, learner=learner, around_engine=listen
    )
    found = facts(played)
    seconds = played.rows[-1]["time_s"] - played.rows[0]["time_s"]
    found["paused_fraction"] = sum(row.get("time/pause_s", 0.0) for row in played.rows[1:]) / max(seconds, 1e-9)
    found["system"] = steady([moment for engine in heard for moment in engine.moments()])
    return found, heard


async def bare_rate(bare: Sequence[BareEngine], asked: Sequence[Listening], *, at_once: int) -> float:
    """Each bare engine gets what its twin of the system was asked for."""
    import ray

    requests = [await asyncio.to_thread(engine.requests, ray.get) for engine in asked]
    for engine, work in zip(bare, requests, strict=True):
        engine.ask(work, at_once=at_once)
    return steady([moment for engine in bare for moment in await asyncio.to_thread(engine.wait)])


async def compared(stage: Stage, bare: Sequence[BareEngine], batches: int, learner: LearnerPort | None) -> Figures:
    """A run of the system, and the same work on as many bare engines."""
    found, heard = await system_rate(stage, batches, engines=len(bare), learner=learner)
    alone = await bare_rate(bare, heard, at_once=toy().config.generators.rollouts_in_flight)
    return found | {"engines": len(bare), "bare": alone, "ratio": found["system"] / alone}


async def engine_section(stage: Stage, folder: Path, *, quick: bool) -> Figures:
    batches = 3 if quick else 7
    rounds = {1: 1} if quick else {2: 2, 1: 1}
    idle_learner = NoLearner(await stage.first_weights())
    bare = [BareEngine(stage.spec, folder / f"bare-{i}.log") for i in range(max(rounds))]
    found: Figures = {"rounds": [], "goal": ENGINE_GOAL}
    try:
        for engine in bare:
            await asyncio.to_thread(engine.wait)
        _, heard = await system_rate(stage, 1, engines=len(bare), learner=idle_learner)  # everything runs once
        await bare_rate(bare, heard, at_once=32)
        for engines, count in rounds.items():
            for _ in range(count):
                found["rounds"].append(await compared(stage, bare[:engines], batches, idle_learner))
        found["learning"] = await compared(stage, bare, batches, None)
    finally:
        for engine in bare:
            engine.close()
    for engines in rounds:
        found[f"ratio_{engines}"] = statistics.median(r["ratio"] for r in found["rounds"] if r["engines"] == engines)
    return found


def tell_engine(found: Figures) -> None:
    print("\n## engine: generated tokens a second, steady\n")
    rows = [("off", r) for r in found["rounds"]] + [("on", found["learning"])]
    table(
        ("engines", "learner", "system", "bare", "system / bare", "cores busy", "engines paused", "idle gen / expl / ver / learn"),
        [
            (r["engines"], how, f"{r['system']:,.0f}", f"{r['bare']:,.0f}", f"{r['ratio']:.3f}", f"{r['cores']:.2f}",
             f"{r['paused_fraction']:.3f}", idle(r))
            for how, r in rows
        ],
    )  # fmt: skip
    for key in sorted(key for key in found if key.startswith("ratio_")):
        judged(f"system / bare, {key.removeprefix('ratio_')} engine(s), learner off", found[key], ENGINE_GOAL)


# ---- async ----


async def search(stage: Stage, bounds: Sequence[int], splits: Sequence[str], *, quick: bool) -> list[Figures]:
    """Every split with every bound; the same batches are measured in all of them.

    Batches of an asynchronous run come in bursts, so that a few of them say little.
    """
    batches = 3 if quick else 12
    rows = []
    for split in splits[:1] if quick else splits:
        for bound in bounds:
            played = await stage.play(*SPLITS[split], f"flow.max_staleness={bound}", batches=batches)
            rows.append({"bound": bound, "split": split, **facts(played), **pace(played.rows, first=2, last=batches)})
    return rows


def window(bounds: Sequence[int], steps: int) -> tuple[int, int]:
    """Steps between which jobs that run to their end are steady: the first batch and those after the last admission are not.

    With a bound of η the last η batches are made of groups that were admitted before, and nothing is added to them.
    """
    first, last = 2, steps - max(bounds)
    return (first, last) if last > first else (1, steps)


def facts(played: Played) -> Figures:
    s = played.summary
    if played.failure:
        raise RuntimeError(played.failure)
    names = ("idle_fraction", "overlap_fraction", "staleness_mean", "staleness_max")
    return {name: s[name] for name in names} | {"batch_cpu_s": played.batch_cpu_s, "cores": played.cores}


def best(rows: Sequence[Figures], bound: int) -> Figures:
    return max((row for row in rows if row["bound"] == bound), key=lambda row: row["batches_per_s"])


def job(bound: int, split: str, folder: Path, bounds: Sequence[int], *, quick: bool) -> Figures:
    """A main job of its own, with evaluations on the way."""
    steps, run_dir = (4 if quick else 16), folder / f"job-{bound}"
    command = [
        sys.executable, "-m", "fr3e_async.main", "config=toy", f"run.dir={run_dir}", f"run.steps={steps}", "observe.console=off",
        f"flow.max_staleness={bound}", "evaluation.every=2", f"evaluation.problems={32 if quick else 256}", *SPLITS[split],
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run(command, check=True)
    wall = time.monotonic() - started
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    first, last = window(bounds, steps)
    names = ("idle_fraction", "overlap_fraction", "staleness_mean", "staleness_max", "accuracy_before", "accuracy_after")
    return {
        "bound": bound, "split": split, "wall_s": wall, **{name: summary[name] for name in names},
        "good_after_s": reached(run_dir / "logs" / "events.jsonl", rows[0]["time_s"]), **pace(rows, first=first, last=last),
    }  # fmt: skip


def jobs(searched: list[Figures], bounds: Sequence[int], folder: Path, *, quick: bool) -> Figures:
    """Whole jobs at the best split of each bound, and the ratios. Quick: one job, beside itself."""
    whole = bounds[-1:] if quick else bounds
    made = [job(bound, best(searched, bound)["split"], folder, bounds, quick=quick) for bound in whole]
    sync, rest = made[0], [bound for bound in bounds if bound]
    return {
        "search": searched,
        "jobs": made,
        "goal": ASYNC_GOAL,
        "ratio": max(best(searched, bound)["batches_per_s"] for bound in rest) / best(searched, 0)["batches_per_s"],
        "most": (os.cpu_count() or 1) / best(searched, 0)["cores"],
        "ratio_jobs": max(row["batches_per_s"] for row in made[1:] or made) / sync["batches_per_s"],
    }


def tell_async(found: Figures) -> None:
    print("\n## async: search, steady\n")
    table(
        ("max_staleness", "split", "batches/s", "tokens/s", "CPU s / batch", "cores busy", "idle gen / expl / ver / learn", "overlap", "staleness mean / max"),
        [
            (r["bound"], r["split"], f"{r['batches_per_s']:.3f}", f"{r['tokens_per_s']:,.0f}", f"{r['batch_cpu_s']:.2f}",
             f"{r['cores']:.2f}", idle(r), f"{r['overlap_fraction']:.2f}", f"{r['staleness_mean']:.2f} / {r['staleness_max']}")
            for r in found["search"]
        ],
    )  # fmt: skip
    print("\n## async: whole jobs at the best split\n")
    table(
        ("max_staleness", "split", "batches/s", f"s from batch 1 to {GOOD}", "wall s", "before", "after", "idle gen / expl / ver / learn"),
        [
            (r["bound"], r["split"], f"{r['batches_per_s']:.3f}", "–" if r["good_after_s"] is None else f"{r['good_after_s']:.1f}",
             f"{r['wall_s']:.0f}", f"{r['accuracy_before']:.3f}", f"{r['accuracy_after']:.3f}", idle(r))
            for r in found["jobs"]
        ],
    )  # fmt: skip
    judged("asynchronous / synchronous, batches/s at the best split of each", found["ratio"], ASYNC_GOAL)
    print(
        f"\nThe best synchronous run leaves so much of the machine idle that the same CPU time a batch could make "
        f"{found['most']:.2f} times as many batches: no overlap can give more here."
    )
    judged("the same of whole jobs", found["ratio_jobs"], ASYNC_GOAL)


# ---- updates ----


async def updates_section(stage: Stage, *, quick: bool) -> Figures:
    batches, rows = 3 if quick else 12, []
    for update in UPDATES[:2] if quick else UPDATES:
        played = await stage.play(FLEXIBLE, f"weights.update={update}", batches=batches)
        found = facts(played) | pace(played.rows, first=2, last=batches)
        pauses = [row["time/pause_s"] for row in played.rows if "time/pause_s" in row]
        syncs = [row["time/sync_s"] for row in played.rows if "time/sync_s" in row]
        found |= {"update": update, "pause_s": statistics.mean(pauses), "sync_s": statistics.mean(syncs)}
        rows.append(found | {"retries": played.summary["retries"]})
    return {"rows": rows, "ratio": rows[0]["batches_per_s"] / max(row["batches_per_s"] for row in rows[1:])}


def tell_updates(found: Figures) -> None:
    print("\n## updates: steady\n")
    table(
        ("weights.update", "batches/s", "tokens/s", "an engine stands still, s", "until all have it, s", "rollouts begun again"),
        [
            (r["update"], f"{r['batches_per_s']:.3f}", f"{r['tokens_per_s']:,.0f}", f"{r['pause_s']:.3f}", f"{r['sync_s']:.3f}", r["retries"])
            for r in found["rows"]
        ],
    )  # fmt: skip
    judged("in_flight / the better of the others, batches/s", found["ratio"], 1.0)


# ---- control ----


def tell_control(found: Figures) -> None:
    print("\n## control: the loop through Ray\n")
    print(
        f"{found['rollouts']:,.0f} rollouts in {found['batches']} batches, {found['whole_s']:.1f} s with start and last checkpoint; "
        f"the driver's CPU time was {found['driver_cpu_s']:.1f} s"
    )
    judged("rollouts a second, steady", found["rollouts_per_s"], found["goal"])


def tell_machine(found: Figures) -> None:
    print("\n## machine: the bare state machine\n")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["kinds"].items())
    print(f"{found['events']:,} events recorded beforehand ({kinds}); {found['events_per_cpu_s']:,.0f} a second of CPU time")
    judged("events a second", found["events_per_s"], found["goal"])


# ---- all of it ----


async def on_stage(args: argparse.Namespace, folder: Path) -> Figures:
    found: Figures = {}
    async with open_stage((), folder) as stage:
        if "engine" in args.only:
            found["engine"] = await engine_section(stage, folder, quick=args.quick)
            tell_engine(found["engine"])
        if "updates" in args.only:
            found["updates"] = await updates_section(stage, quick=args.quick)
            tell_updates(found["updates"])
        if "async" in args.only:
            found["search"] = await search(stage, args.staleness, args.splits, quick=args.quick)
    return found


def measure(args: argparse.Namespace, folder: Path) -> Figures:
    found: Figures = {}
    if {"engine", "async", "updates"} & set(args.only):
        (folder / "stage").mkdir()
        with cluster(toy().config):
            found = asyncio.run(on_stage(args, folder / "stage"))
    if "async" in args.only:
        found["async"] = jobs(found.pop("search"), args.staleness, folder, quick=args.quick)
        tell_async(found["async"])
    if "control" in args.only:
        found["control"] = control_section(folder, quick=args.quick)
        tell_control(found["control"])
    if "machine" in args.only:
        found["state machine"] = machine_section(quick=args.quick)
        tell_machine(found["state machine"])
    return found


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    made.add_argument("--staleness", nargs="+", type=int, default=[0, 1, 2], help="bounds for `async`; the first is 0")
    made.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS)[:3], help="for `async`")
    args = made.parse_args()
    if args.staleness[0] != 0 or len(args.staleness) < 2:
        made.error("--staleness: 0 and at least one other bound")
    facts = machine()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, quiet():
        found = measure(args, Path(folder))
    print(f"\n{time.monotonic() - started:.0f} s in all" + (", quick: no figure means anything" if args.quick else ""))
    finish(args, found, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
