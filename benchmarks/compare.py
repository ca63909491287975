"""FR3E against its relatives: same model, same learner, same problems, same number of generated tokens, several seeds, two tasks.

    python benchmarks/compare.py [--out docs/results] [--seeds 0 1 2 3 4] [--tasks steps forks] [--arms fr3e ...] [--quick]

Every (task, seed, arm) is a run of the whole system (real engines, learner and verifier) until its settled groups have cost the
task's budget of generated tokens. The arms of a seed follow each other on one set of engines, which get the first weights again;
learner and control loop are new in each. Accuracy, all-right and all-wrong prompts, entropy and length are measured on 4 independent
rollouts of each of 128 held-out prompts, so that they mean the same for every arm. Each run is a row of OUT/runs.jsonl when it is
done; what is there is not run again, so an interrupted comparison continues by the same command. The tables and curves are made from
that file alone (``--table`` only makes them); the page beside OUT gets them when all arms, tasks and seeds were asked for.
``--quick``: two arms, one task, a hardly trained model and a small budget: it only shows that everything works.

A row is kept with a digest of its settings; rows of other settings are passed over, and so are those of runs that failed, which are
made again. ``foreign_cores``: CPU time that others took meanwhile, per second. Wall-clock time is compared over rows with hardly any
of that only, since a shared machine says nothing of it; ``--alone`` makes the other rows again.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import finish, machine, parser, quiet
from compare_arms import ARMS, COMMON, FLAT, PROTOCOL, QUICK, QUICK_ARMS, QUICK_TOKENS, REFERENCE, STAGE, TASKS
from compare_report import Row, alone, write_results
from compare_stats import decision_positions
from system_parts import Stage, cluster, open_stage, toy

CONFIGS = Path(__file__).parent.parent / "configs"
NEAR = 4  # a branch that begins fewer tokens before a decision still takes it again
KEPT = (
    "label", "accuracy", "low", "high", "all_correct", "all_wrong", "problems", "samples", "unknown", "truncated", "mean_length", "entropy",
    "version", "oldest_version", "newest_version", "generated", "trained", "wall_s",
)  # fmt: skip
SUMMARY = (
    "steps", "optimiser_steps", "tokens_generated", "tokens_trained", "tokens_useful", "tokens_prefilled", "tokens_per_prompt", "groups",
    "verdicts", "staleness_mean", "staleness_max", "overlap_fraction", "idle_fraction",
)  # fmt: skip


# ---- what is there ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A run that is wanted."""

    task: str
    seed: int
    arm: str
    quick: bool = False

    def settings(self, reference: Row | None = None) -> tuple[str, ...]:
        """Over the stage's. ``reference``: the row of ``REFERENCE``, for equal tokens."""
        its, task = ARMS[self.arm], TASKS[self.task]
        tokens, every = (QUICK_TOKENS, QUICK_TOKENS // 2) if self.quick else (task.tokens, task.every)
        budget = (f"budget.tokens={tokens}", f"evaluation.every_tokens={every}")
        equal = (f"budget.tokens_per_prompt={round(reference['tokens_per_prompt'])}",) if its.equal_tokens and reference else ()
        flat = FLAT if its.flat else ()
        return (*COMMON, *budget, *flat, *its.settings, *equal, *(QUICK if self.quick else ()))

    @property
    def stage(self) -> tuple[str, ...]:
        return (*STAGE, f"run.seed={self.seed}", *(QUICK if self.quick else ()))

    @property
    def digest(self) -> str:
        """Of what its row is made with: protocol, config files, settings. What an equal-token arm is told follows from its reference."""
        files = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("toy", TASKS[self.task].config)]
        return hashlib.sha256(json.dumps([PROTOCOL, files, self.stage, self.settings()]).encode()).hexdigest()[:12]

    @property
    def reference(self) -> Cell:
        return Cell(task=self.task, seed=self.seed, arm=REFERENCE, quick=self.quick)


class Runs:
    """OUT/runs.jsonl: rows that are only appended to. What an interruption left of a last one is cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_bytes() if path.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(path, len(whole))
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]

    def find(self, cell: Cell) -> Row | None:
        """The newest run of these settings that did not fail, one that had the machine to itself before others."""
        wanted = (cell.task, cell.seed, cell.arm, cell.digest, "")
        found = [row for row in self.rows if tuple(row[key] for key in ("task", "seed", "arm", "digest", "failure")) == wanted]
        return max(found, key=alone, default=None)

    def add(self, row: Row) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


# ---- running ----


async def run_cells(runs: Runs, cells: Sequence[Cell], folder: Path) -> None:
    """Cells of one task and seed, on one stage."""
    first = cells[0]
    async with open_stage(first.stage, folder, TASKS[first.task].config) as stage:
        found = await stage.accuracy(*first.reference.settings())
        before = {name: found[name] for name in KEPT}
        for cell in cells:
            reference = runs.find(cell.reference)
            if ARMS[cell.arm].equal_tokens and reference is None:
                raise SystemExit(
                    f"{cell.arm!r} needs a run of {REFERENCE!r} on {cell.task}, seed {cell.seed}, that did not fail: add it to --arms"
                )
            row = await run_cell(stage, cell, cell.settings(reference), before)
            runs.add(row)
            last = row["evaluations"][-1]
            print(
                f"{cell.task}, seed {cell.seed}, {cell.arm}: {last['accuracy']:.3f} after {row['tokens_generated']:,} tokens, "
                f"{row['steps']} batches, {row['wall_s']:.0f} s{row['failure'] and ', FAILED: ' + row['failure'].splitlines()[0]}",
                flush=True,
            )


async def run_cell(stage: Stage, cell: Cell, settings: Sequence[str], before: dict[str, Any]) -> Row:
    began, others, everyone = time.monotonic(), others_s(), busy_s()
    played = await stage.play(
        *settings, flat=ARMS[cell.arm].flat, ruled=not ARMS[cell.arm].flat, evaluate=True, before=before["accuracy"]
    )
    foreign, total, seconds = max(0.0, others_s() - others), busy_s() - everyone, time.monotonic() - began
    return {
        "task": cell.task,
        "seed": cell.seed,
        "arm": cell.arm,
        "digest": cell.digest,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "failure": played.failure,
        "wall_s": round(seconds, 2),
        "own_cpu_s": round(total - foreign, 1),
        "foreign_cores": round(foreign / seconds, 2),
        **{name: played.summary[name] for name in SUMMARY},
        "evaluations": [before, *({name: found[name] for name in KEPT} for found in played.summary["evaluations"])],
        "useful": useful(played.rows),
        "anchors": anchor_hits(played.folder / "trees.jsonl") if cell.task == "forks" else [],
    }


def anchor_hits(path: Path) -> list[list[int]]:
    """By the weights that drew the trunks of the trees that were kept: [version, anchors, those at a decision, those at or shortly
    before one, decisions, tokens]."""
    by_version: dict[int, list[int]] = {}
    for line in path.read_text().split("\n")[:-1]:
        tree = json.loads(line)
        for trunk in sorted({state["trunk"] for state in tree["states"]} - {None}):
            (rollout,) = (r for r in tree["rollouts"] if (r["node"], r["branch"]) == (0, trunk))
            if "pieces" not in rollout:  # it failed after its anchors were known
                continue
            decisions = set(decision_positions(tree["prompt"], rollout["pieces"]))
            anchors = {state["position"] for state in tree["states"] if state["trunk"] == trunk}
            near = sum(any(place <= decision < place + NEAR for decision in decisions) for place in anchors)
            counts = (len(anchors), len(anchors & decisions), near, len(decisions), len(rollout["pieces"]))
            version = max(version for _, version in rollout["versions"])
            sums = by_version.setdefault(version, [0] * len(counts))
            by_version[version] = [total + count for total, count in zip(sums, counts, strict=True)]
    return [[version, *sums] for version, sums in sorted(by_version.items())]


def useful(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """[generated tokens so far, part of the last batch's that were trained with an advantage that is not 0], batch by batch."""
    generated, found = 0.0, []
    for row in rows:
        generated += row["tokens/generated"]
        found.append([generated, round(row.get("prompt/useful_fraction", 0.0), 4)])
    return found


def busy_s() -> float:
    """CPU seconds of the whole machine since it was started."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def others_s() -> float:
    """CPU seconds of all processes but this one and those below it, with what they have reaped: what begins and ends between two
    calls counts with its parent."""
    own = psutil.Process()
    ours = {own.pid, *(process.pid for process in own.children(recursive=True))}
    return sum(
        sum(process.info["cpu_times"][:4])
        for process in psutil.process_iter(["cpu_times"])
        if process.pid not in ours and process.info["cpu_times"]
    )


def commit() -> str:
    """Of the code that runs; "" outside of a repository."""
    done = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


# ---- the command ----


def turned(arms: Sequence[str], seed: int) -> list[str]:
    """The reference first, since others are told what it cost; the others in another order for each seed."""
    others = [arm for arm in arms if arm != REFERENCE]
    cut = seed % max(1, len(others))
    return [*(arm for arm in arms if arm == REFERENCE), *others[cut:], *others[:cut]]


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument(
        "--out", type=Path, help="folder of runs.jsonl, tables and curves (docs/results; with --quick build/compare)"
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    made.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    made.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    made.add_argument("--table", action="store_true", help="run nothing, make tables and curves of what is there")
    made.add_argument("--alone", action="store_true", help="make rows again during which others used the machine")
    args = made.parse_args()
    args.page = (args.arms, args.tasks) == (list(ARMS), list(TASKS)) and len(args.seeds) > 1 and not args.quick
    if args.quick:
        args.seeds, args.tasks, args.arms = args.seeds[:1], args.tasks[-1:], list(QUICK_ARMS)
    args.out = args.out or Path("build/compare" if args.quick else "docs/results")
    return args


def main() -> int:
    args = arguments()
    facts, runs = machine(), Runs(args.out / "runs.jsonl")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted: list[Cell] = []
    for seed in args.seeds:
        for task in args.tasks:
            cells = [Cell(task=task, seed=seed, arm=arm, quick=args.quick) for arm in turned(args.arms, seed)]
            wanted += cells
            found = {cell: runs.find(cell) for cell in cells}
            todo = [cell for cell, row in found.items() if row is None or (args.alone and not alone(row))]
            if todo and not args.table:
                with tempfile.TemporaryDirectory() as folder, quiet(), cluster(toy(*STAGE, config=TASKS[task].config).config):
                    asyncio.run(run_cells(runs, todo, Path(folder)))
    rows = [row for cell in wanted if (row := runs.find(cell)) is not None]
    write_results(rows, args.out, arms=args.arms, tasks=args.tasks, page=args.page)
    finish(args, {"rows": rows}, facts)
    return int(len(rows) < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
