"""What staleness costs, with and without corrections: final accuracy of the toy by flow.max_staleness and loss settings.

    python benchmarks/staleness.py --json OUT [--quick] [--seeds 0 1 2] [--staleness 0 1 2 4 8] [--corrections off ...] [--steps 20] [--lead bound]

off         loss.prox=recompute loss.importance=off: stale tokens are trained as if the update's own start had sampled them
behaviour   loss.prox=behaviour loss.importance=off: plain PPO, the ratio is against the policy that sampled the token
decoupled   loss.prox=recompute loss.importance=truncate: the ratio is against the update's start, weighted by exp(log prox - log
            behaviour) up to loss.importance_cap

With ``--lead bound`` the learner begins a batch only when the engines have made all that the bound lets them make, so that every
batch is as old as it may be, after the first ones of a run; without ("natural") the engines are as far ahead as their speed
allows. Cells of one seed share Ray, engines and verifier, and the engines get the first weights again; learner and loop are new in
each. A run that fails (the learner refused a step) has diverged, and its accuracy is that of the last weights that were served.
Accuracy is that of ``--problems`` held-out problems at T = 1. Each cell is written to OUT when it is done, and those that are there
are not run again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import finish, machine, parser, quiet, table
from stand_ins import RunAhead
from system_parts import Stage, cluster, open_stage, toy

CORRECTIONS = {
    "off": ("loss.prox=recompute", "loss.importance=off"),
    "behaviour": ("loss.prox=behaviour", "loss.importance=off"),
    "decoupled": ("loss.prox=recompute", "loss.importance=truncate"),
}
STAGE = ("pools.flexible_roles=true",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    seed: int
    bound: int  # flow.max_staleness
    correction: str

    @property
    def name(self) -> str:
        return f"seed {self.seed}, bound {self.bound}, {self.correction}"


Results = dict[str, dict[str, Any]]  # by the name of the cell


def cells(seeds: Sequence[int], bounds: Sequence[int], corrections: Iterable[str] = CORRECTIONS) -> Iterator[Cell]:
    """By seed; within one by bound and correction, so that what is compared lies close together in time."""
    for seed in seeds:
        for bound in bounds:
            for correction in corrections:
                yield Cell(seed=seed, bound=bound, correction=correction)


def kept(path: Path | None, settings: dict[str, Any]) -> Results:
    """Results of an earlier start with the same settings. Raises ``ValueError`` if the file is of others."""
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if found.get("settings") != settings:
        raise ValueError(f"{path} holds results of other settings: {found.get('settings')}, not {settings}")
    return found["cells"]


async def run_cell(stage: Stage, cell: Cell, args: argparse.Namespace, before: float | None) -> dict[str, Any]:
    started = time.monotonic()
    played = await stage.play(
        *CORRECTIONS[cell.correction],
        f"flow.max_staleness={cell.bound}",
        f"flow.groups_per_step={args.groups}",
        f"run.steps={args.steps}",
        "run.checkpoint_every=0",
        f"evaluation.problems={args.problems}",
        evaluate=True,
        before=before,
        around_learner=RunAhead if args.lead == "bound" else lambda learner: learner,
    )
    s, rows = played.summary, played.rows
    return {
        **asdict(cell),
        "before": s["accuracy_before"],
        "after": s["accuracy_after"],
        "staleness_mean": s["staleness_mean"],
        "staleness_max": s["staleness_max"],
        "steps": s["steps"],
        "failure": played.failure,
        "ess_fraction": [row.get("train/ess_fraction", 1.0) for row in rows],
        "clipped_fraction": [row.get("train/clip_low_fraction", 0.0) + row.get("train/clip_high_fraction", 0.0) for row in rows],
        "grad_norm": [row.get("train/grad_norm") for row in rows],
        "reward": [row.get("reward/accuracy") for row in rows],
        "wall_s": time.monotonic() - started,
    }


async def run_seed(seed: int, todo: Sequence[Cell], args: argparse.Namespace, folder: Path, done: Results, save: Any) -> None:
    """All cells of a seed on one stage."""
    async with open_stage((*STAGE, f"run.seed={seed}"), folder) as stage:
        for cell in todo:
            before = next((found["before"] for found in done.values() if found["seed"] == seed), None)
            done[cell.name] = await run_cell(stage, cell, args, before)
            save()
            found = done[cell.name]
            print(
                f"{cell.name}: {found['after']:.3f} after {found['steps']} steps, staleness {found['staleness_mean']:.2f} / "
                f"{found['staleness_max']}, {found['wall_s']:.0f} s{found['failure'] and ', FAILED: ' + found['failure'].splitlines()[0]}",
                flush=True,
            )


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def summarised(done: Results, bounds: Sequence[int]) -> list[tuple[str, ...]]:
    """A row for each bound: observed staleness, and for each correction the accuracy over the seeds and how many diverged."""
    rows = []
    for bound in bounds:
        of = [found for found in done.values() if found["bound"] == bound]
        if not of:
            continue
        lag = f"{statistics.mean(r['staleness_mean'] for r in of):.2f} / {max(r['staleness_max'] for r in of)}"
        row = [str(bound), lag]
        for correction in CORRECTIONS:
            mine = [found for found in of if found["correction"] == correction]
            diverged = sum(bool(found["failure"]) for found in mine)
            row.append(
                spread([found["after"] for found in mine]) + (f", {diverged} diverged" if diverged else "") if mine else "–"
            )
        rows.append(tuple(row))
    return rows


def tell(done: Results, args: argparse.Namespace) -> None:
    before = {found["seed"]: found["before"] for found in done.values()}
    print(
        f"\nAccuracy after {args.steps} batches of {args.groups} groups, mean and range of {len(before)} seed(s); before: "
        f"{spread(list(before.values()))}; lead: {args.lead}\n"
    )
    table(("max_staleness", "observed mean / max", *CORRECTIONS), summarised(done, args.staleness))


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    made.add_argument("--corrections", nargs="+", choices=CORRECTIONS, default=list(CORRECTIONS))
    made.add_argument("--steps", type=int, default=20, help="batches of a run")
    made.add_argument("--groups", type=int, default=16, help="groups of a batch")
    made.add_argument("--problems", type=int, default=512, help="of the final evaluation")
    made.add_argument("--lead", choices=("bound", "natural"), default="bound")
    args = made.parse_args()
    if args.quick:
        args.seeds, args.staleness, args.steps, args.problems = args.seeds[:1], [0, 2], 4, 64
    return args


def main() -> int:
    args = arguments()
    settings = {name: getattr(args, name) for name in ("steps", "groups", "problems", "lead")}
    facts, done = machine(), kept(args.json, settings)

    def save() -> None:
        finish(args, {"settings": settings, "corrections": CORRECTIONS, "cells": done}, facts)

    for seed in args.seeds:
        todo = [cell for cell in cells([seed], args.staleness, args.corrections) if cell.name not in done]
        if todo:
            with tempfile.TemporaryDirectory() as folder, quiet(), cluster(toy(*STAGE).config):
                asyncio.run(run_seed(seed, todo, args, Path(folder), done, save))
    save()
    tell(done, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
