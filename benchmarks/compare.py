"""FR3E against its relatives: same model, same learner, same problems, same number of generated tokens, several seeds, two tasks.

    python benchmarks/compare.py [--out docs/results] [--seeds 0 1 2 3 4] [--tasks steps forks] [--arms fr3e ...] [--quick]

Every (task, seed, arm) is a run of the whole system (real engines, learner and verifier) until its settled groups have cost the
task's budget of generated tokens. The arms of a seed follow each other on one set of engines, which get the first weights again;
learner and control loop are new in each. Accuracy, all-right and all-wrong prompts, entropy and length are measured on 4 independent
rollouts of each of 128 held-out prompts, so that they mean the same for every arm. Each run is a row of OUT/runs.jsonl when it is
done; what is there is not run again, so an interrupted comparison goes on by the same command. The tables and curves are made from
that file alone (``--table`` only makes them). ``--quick``: two arms, one task, a hardly trained model and a small budget: it only
shows that everything works.

A row is kept with a digest of its settings; rows of other settings are passed over. ``foreign_cores``: CPU time that others took
meanwhile, per second. Wall-clock time is compared over rows with hardly any of that only, since a shared machine says nothing of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from common import finish, machine, parser, quiet
from compare_arms import ARMS, COMMON, FLAT, QUICK, QUICK_ARMS, QUICK_TOKENS, REFERENCE, STAGE, TASKS
from compare_report import Row, write_results
from system_parts import Stage, cluster, open_stage, toy

from fr3e_async.data.toy.forks import decision_positions

NEAR = 4  # a branch that begins fewer tokens before a decision still takes it anew
KEPT = ("accuracy", "low", "high", "all_right", "all_wrong", "problems", "samples", "unknown", "truncated", "mean_length", "entropy",
        "version", "generated", "trained", "wall_s")  # fmt: skip
SUMMARY = ("steps", "optimiser_steps", "tokens_generated", "tokens_trained", "tokens_useful", "tokens_prefilled", "tokens_per_prompt",
           "groups", "verdicts", "staleness_mean", "staleness_max", "overlap_fraction", "idle_fraction")  # fmt: skip


class Runs:
    """OUT/runs.jsonl: rows that are only appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text() if path.is_file() else ""
        self.rows: list[Row] = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def find(self, task: str, seed: int, arm: str, digest: str) -> Row | None:
        key = (task, seed, arm, digest)
        return next((row for row in self.rows if (row["task"], row["seed"], row["arm"], row["digest"]) == key), None)

    def add(self, row: Row) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


def settings_of(task: str, seed: int, arm: str, quick: bool, reference: Row | None) -> tuple[str, ...]:
    """All settings of a run over its task's config file. ``reference``: the row of ``REFERENCE``, for equal tokens."""
    its = ARMS[arm]
    budget = f"budget.tokens={QUICK_TOKENS if quick else TASKS[task].tokens}"
    equal = (f"budget.tokens_per_prompt={round(reference['tokens_per_prompt'])}",) if its.equal_tokens and reference else ()
    return (
        *STAGE,
        f"run.seed={seed}",
        *COMMON,
        budget,
        *(FLAT if its.flat else ()),
        *its.settings,
        *equal,
        *(QUICK if quick else ()),
    )


def digest_of(settings: Sequence[str]) -> str:
    """Of the settings that a row was made with; what an equal-token arm was told follows from its reference."""
    lasting = [setting for setting in settings if not setting.startswith("budget.tokens_per_prompt")]
    return hashlib.sha256("\n".join(lasting).encode()).hexdigest()[:12]


async def run_arm(stage: Stage, task: str, seed: int, arm: str, settings: Sequence[str], before: dict[str, Any] | None) -> Row:
    began, own, all_cpu = time.time(), own_s(), busy_s()
    played = await stage.play(
        *settings[len(STAGE) + 1 :], flat=ARMS[arm].flat, evaluate=True, before=before and before["accuracy"]
    )
    spent, total, seconds = own_s() - own, busy_s() - all_cpu, time.time() - began
    evaluations = [{name: found[name] for name in ("label", *KEPT)} for found in played.summary["evaluations"]]
    if before is not None and evaluations[0]["label"] != "before":
        evaluations.insert(0, before)
    return {
        "task": task,
        "seed": seed,
        "arm": arm,
        "digest": digest_of(settings),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "failure": played.failure,
        "wall_s": round(seconds, 2),
        "own_cpu_s": round(spent, 1),
        "foreign_cores": round(max(0.0, total - spent) / seconds, 2),
        **{name: played.summary[name] for name in SUMMARY},
        "evaluations": evaluations,
        "useful": useful(played.rows),
        "anchors": anchor_hits(played.folder / "trees.jsonl") if task == "forks" else [],
    }


def anchor_hits(path: Path) -> list[list[int]]:
    """By the batches trained so far: [step, anchors, at a decision, shortly before one, decisions, anchored ones, tokens] of the trunks in the trees that were kept."""
    by_step: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        tree = json.loads(line)
        for trunk in sorted({state["trunk"] for state in tree["states"]} - {None}):
            (rollout,) = (r for r in tree["rollouts"] if (r["node"], r["branch"]) == (0, trunk))
            decisions = set(decision_positions(tree["prompt"], rollout["pieces"]))
            anchors = {state["position"] for state in tree["states"] if state["trunk"] == trunk}
            near = sum(any(place <= decision < place + NEAR for decision in decisions) for place in anchors)
            counts = (len(anchors), len(anchors & decisions), near, len(decisions), len(rollout["pieces"]))
            sums = by_step.setdefault(tree["step"], [0] * len(counts))
            by_step[tree["step"]] = [total + count for total, count in zip(sums, counts, strict=True)]
    return [[step, *sums] for step, sums in sorted(by_step.items())]


def useful(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """[generated tokens so far, part of the last batch's that were trained with an advantage that is not 0], batch by batch."""
    generated, found = 0.0, []
    for row in rows:
        generated += row["tokens/generated"]
        found.append([generated, round(row.get("prompt/useful_fraction", 0.0), 4)])
    return found


def own_s() -> float:
    """CPU seconds of this process and all that it has started, those that have ended included."""
    this, total = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended, and its parent has its time
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def busy_s() -> float:
    """CPU seconds of the whole machine since it was started."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def commit() -> str:
    """Of the code that runs; "" outside of a repository."""
    done = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def missing(runs: Runs, task: str, seed: int, arms: Sequence[str], quick: bool) -> list[str]:
    return [arm for arm in arms if runs.find(task, seed, arm, digest_of(settings_of(task, seed, arm, quick, None))) is None]


async def run_seed(runs: Runs, task: str, seed: int, args: argparse.Namespace, folder: Path) -> None:
    """All arms of a task and seed that are not there yet, on one stage."""
    stage_settings = (*STAGE, f"run.seed={seed}", *(QUICK if args.quick else ()))
    async with open_stage(stage_settings, folder, TASKS[task].config) as stage:
        for arm in missing(runs, task, seed, args.arms, args.quick):
            reference = runs.find(task, seed, REFERENCE, digest_of(settings_of(task, seed, REFERENCE, args.quick, None)))
            settings = settings_of(task, seed, arm, args.quick, reference)
            row = await run_arm(stage, task, seed, arm, settings, reference and reference["evaluations"][0])
            runs.add(row)
            last = row["evaluations"][-1]
            print(
                f"{task}, seed {seed}, {arm}: {last['accuracy']:.3f} after {row['tokens_generated']:,} tokens, {row['steps']} batches, "
                f"{row['wall_s']:.0f} s{row['failure'] and ', FAILED: ' + row['failure'].splitlines()[0]}",
                flush=True,
            )


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of runs.jsonl, tables and curves")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    made.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    made.add_argument("--table", action="store_true", help="run nothing, make tables and curves of what is there")
    args = made.parse_args()
    if args.quick:
        args.seeds, args.tasks, args.arms = args.seeds[:1], args.tasks[-1:], list(QUICK_ARMS)
    if REFERENCE in args.arms:  # what equal tokens are is known first
        args.arms.sort(key=lambda arm: arm != REFERENCE)
    return args


def main() -> int:
    args = arguments()
    facts, runs = machine(), Runs(args.out / "runs.jsonl")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for seed in [] if args.table else args.seeds:
        for task in args.tasks:
            if missing(runs, task, seed, args.arms, args.quick):
                config = toy(*STAGE, config=TASKS[task].config).config
                with tempfile.TemporaryDirectory() as folder, quiet(), cluster(config):
                    asyncio.run(run_seed(runs, task, seed, args, Path(folder)))
    wanted = {
        (task, seed, arm): digest_of(settings_of(task, seed, arm, args.quick, None))
        for task in args.tasks
        for seed in args.seeds
        for arm in args.arms
    }
    rows = [row for row in runs.rows if wanted.get((row["task"], row["seed"], row["arm"])) == row["digest"]]
    write_results(rows, args.out, arms=args.arms, tasks=args.tasks)
    finish(args, {"rows": rows}, facts)
    return int(any(row["failure"] for row in rows) or len(rows) < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
