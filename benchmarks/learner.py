"""A learner's pass over FR3E groups: trees against padded rows, flat rows and the bare model; and the vocabulary projection.

    python benchmarks/learner.py [--quick] [--threads N] [--json OUT]

Recorded groups (``groups.py``; "apart": nothing but contexts is shared, as in prose) go through models with random weights in
float32. ``passes.py`` says what each way does and how operations are counted. Every way runs in its own process, one at a time,
in rounds of all of them; seconds are medians. Useful tokens are the trained ones of all samples. "Cores" is CPU time by time:
below the number of threads the machine was busy and its seconds mean little, for threads wait for each other. All ways but the
dense one compute the same loss; the benchmark fails if losses or gradient norms differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from typing import Any

import torch
from common import finish, machine, parser, quiet
from groups import structure
from passes import WAYS, Case, Worker, head_pass, once, start

AGREEMENT = 1e-4  # relative
SPEEDUP_GOAL = 1.8  # useful tokens a second, tree / padded
RATE_GOAL = 0.9  # operations a second, tree / dense

SIZES_1M = {
    "vocab_size": 8192, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 3,
}  # fmt: skip
SIZES_30M = {
    "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip
SIZES_125M = {
    "vocab_size": 32768, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 4,
}  # fmt: skip
FULL = (
    Case(name="1M, as recorded", groups=tuple(range(64)), budget=4096, rounds=3),
    Case(name="1M, apart", groups=(28, 29, 30), budget=4096, rounds=3, sizes=SIZES_1M, stretch=10, apart=True),
    Case(name="30M, apart", groups=(29, 30), budget=4096, rounds=3, sizes=SIZES_30M, stretch=10, apart=True),
    Case(name="125M, apart", groups=(29,), budget=4096, rounds=2, sizes=SIZES_125M, stretch=10, apart=True),
)
QUICK = (
    Case(name="1M", groups=tuple(range(8)), budget=4096, rounds=1),
    Case(name="1M, apart", groups=(29,), budget=1024, rounds=1, sizes=SIZES_1M, stretch=2, apart=True),
)
HEAD, QUICK_HEAD = {"hidden": 896, "vocabulary": 151_936}, {"hidden": 64, "vocabulary": 151_936}
HEAD_WAYS: dict[str, float | None] = {"naive": None, "ours, kept_mib 256": 256.0, "ours, kept_mib 0": 0.0}


def measure(case: Case, *, threads: int) -> dict[str, Any]:
    """Figures of every way, and how they compare."""
    workers = {way: Worker(start, case, way, threads) for way in WAYS}
    try:
        rounds = [{way: worker(once) for way, worker in workers.items()} for _ in range(case.rounds)]
    finally:
        for worker in workers.values():
            worker.close()
    shape = structure(case.samples())
    return {"samples": shape, "ways": {way: figures([r[way] for r in rounds], useful=shape["trained"]) for way in WAYS}}


def figures(passes: list[dict[str, float]], *, useful: float) -> dict[str, float]:
    last = passes[-1]
    seconds = statistics.median(one["seconds"] for one in passes)
    cores = statistics.median(one["cores"] for one in passes)
    return last | {"seconds": seconds, "cores": cores, "useful_per_s": useful / seconds, "gflop_per_s": last["gflop"] / seconds}


def compared(ways: dict[str, dict[str, float]]) -> dict[str, float]:
    plain, tree = ways["padded"], ways["tree"]
    packed = [row for way, row in ways.items() if way not in ("padded", "dense")]
    return {
        "tree_to_padded": tree["useful_per_s"] / plain["useful_per_s"],
        "tree_to_flat": tree["useful_per_s"] / ways["flat, our attention"]["useful_per_s"],
        "tree_to_dense_rate": tree["gflop_per_s"] / ways["dense"]["gflop_per_s"],
        **{f"{key}_error": max(abs(row[key] - plain[key]) / abs(plain[key]) for row in packed) for key in ("loss", "grad_norm")},
    }


def report(case: Case, found: dict[str, Any]) -> None:
    shape, row = found["samples"], found["compared"]
    print(
        f"\n{case.name}: {shape['rows']} samples of {len(case.groups)} group(s), mean {shape['row_mean']:.0f} tokens; {shape['tokens']:,} tokens, "
        f"{shape['unique']:,} distinct prefixes, {shape['trained']:,} trained; micro-batches of {case.budget:,}, {case.rounds} round(s)\n"
        f"  {'':<22}{'s a pass':>10}{'useful/s':>11}{'slots':>10}{'GFLOP':>10}{'GFLOP/s':>10}{'cores':>7}{'peak MiB':>10}"
    )
    for way, figure in found["ways"].items():
        useful = "" if way == "dense" else f"{figure['useful_per_s']:,.0f}"
        print(
            f"  {way:<22}{figure['seconds']:>10.3f}{useful:>11}{figure['slots']:>10,.0f}{figure['gflop']:>10,.1f}"
            f"{figure['gflop_per_s']:>10.1f}{figure['cores']:>7.2f}{figure['peak_mib']:>10,.0f}"
        )
    print(
        f"  tree / padded, useful tokens a second: {row['tree_to_padded']:.2f} ({judged(row['tree_to_padded'], SPEEDUP_GOAL)}); "
        f"tree / flat with our attention: {row['tree_to_flat']:.2f}; tree / dense, operations a second: "
        f"{row['tree_to_dense_rate']:.2f} ({judged(row['tree_to_dense_rate'], RATE_GOAL)})\n"
        f"  relative differences from padded: loss {row['loss_error']:.1e}, gradient norm {row['grad_norm_error']:.1e}",
        flush=True,
    )


def judged(value: float, goal: float) -> str:
    return f"{'met' if value >= goal else 'MISSED'}: goal {goal}"


def head(positions: int, sizes: dict[str, int], *, threads: int) -> dict[str, Any]:
    """Measured and printed: the projection with log-probs, entropies and backward, each way in a process of its own."""
    found = {}
    print(
        f"\nhead: {positions:,} positions, hidden {sizes['hidden']}, vocabulary {sizes['vocabulary']:,}; logits would take "
        f"{4 * positions * sizes['vocabulary'] / (1 << 20):,.0f} MiB\n  {'':<22}{'s':>10}{'peak MiB':>10}"
    )
    for way, kept_mib in HEAD_WAYS.items():
        worker = Worker(torch.set_num_threads, threads)
        found[way] = worker(partial(head_pass, kept_mib, positions=positions, **sizes))
        worker.close()
        print(f"  {way:<22}{found[way]['seconds']:>10.2f}{found[way]['peak_mib']:>10,.0f}", flush=True)
    return found


def disagreements(cases: dict[str, Any]) -> list[str]:
    """A line for each case in which the ways do not compute the same."""
    return [
        f"{name}: {key} of the packed ways is {row['compared'][key]:.1e}, above {AGREEMENT:.0e}"
        for name, row in cases.items()
        for key in ("loss_error", "grad_norm_error")
        if not row["compared"][key] <= AGREEMENT
    ]


def run(args: argparse.Namespace) -> dict[str, Any]:
    cases = {}
    for case in QUICK if args.quick else FULL:
        found = measure(case, threads=args.threads)
        cases[case.name] = found | {"compared": compared(found["ways"])}
        report(case, cases[case.name])
    goals = {"tree_to_padded": SPEEDUP_GOAL, "tree_to_dense_rate": RATE_GOAL, "agreement": AGREEMENT}
    return {
        "goals": goals,
        "threads": args.threads,
        "cases": cases,
        "head": head(*((256, QUICK_HEAD) if args.quick else (4096, HEAD)), threads=args.threads),
    }


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="of every measured process")
    args = arguments.parse_args()
    facts = machine()
    with quiet():
        figures = run(args)
    finish(args, figures, facts)
    wrong = disagreements(figures["cases"])
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
