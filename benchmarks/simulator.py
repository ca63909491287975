"""The simulator against real runs: service times measured in one run, other runs predicted, side by side.

    python benchmarks/simulator.py CALIBRATION_RUN [RUN ...] [--cores 2] [--seeds 3] [--json OUT]

Each RUN is simulated with its own settings and the calibration run's service times and prompts; the calibration run itself is
predicted too. Both columns are counted by the same code from events of the control machine, without the first batch.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from common import finish, machine, parser

from fr3e_async.errors import UserError
from fr3e_async.simulate.calibrate import calibrate, pause_of
from fr3e_async.simulate.recording import read_recording
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.stats import SimulationReport
from fr3e_async.simulate.world import simulate

WARMUP = 1
RATES = ("rollouts_per_s", "tokens_per_s", "step_s", "train_s", "sync_s", "rejected")


def figures(report: SimulationReport) -> dict[str, float]:
    return {name: float(getattr(report, name)) for name in RATES} | {
        f"idle_{role}": idle for role, idle in sorted(report.idle.items())
    }


def compare(run: Path, model: SystemModel, *, cores: float, seeds: int) -> dict[str, dict[str, float]]:
    """By figure: measured, predicted (mean over seeds), error. Rates relative to the measured one, fractions as a difference."""
    recording, measured = read_recording(run, warmup=WARMUP)
    steps = len([batch for batch in recording.batches if batch.end])
    predicted = [
        figures(simulate(recording.config, model, steps=steps, seed=seed, cores=cores, warmup=WARMUP)) for seed in range(seeds)
    ]
    table = {}
    for name, found in figures(measured).items():
        mean = fmean(row[name] for row in predicted if name in row)
        fraction = name.startswith("idle") or name == "rejected"
        table[name] = {"measured": found, "predicted": mean, "error": mean - found if fraction else mean / found - 1}
    return table


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("calibration", type=Path, help="run whose journal gives service times and prompts")
    made.add_argument("runs", type=Path, nargs="*", help="runs to predict")
    made.add_argument("--cores", type=float, default=0.0, help="cores of one machine that all processes shared; 0: none")
    made.add_argument("--seeds", type=int, default=3, help="simulations of each run")
    args = made.parse_args()
    facts = machine()
    recording, _ = read_recording(args.calibration, warmup=WARMUP)
    pause_s = pause_of(args.calibration) if args.calibration.is_dir() else None
    fit = calibrate(recording, source=str(args.calibration), cores=args.cores, pause_s=pause_s)
    print(fit.render())
    results: dict[str, Any] = {}
    for run in [args.calibration, *args.runs]:
        results[str(run)] = table = compare(run, fit.model, cores=args.cores, seeds=1 if args.quick else args.seeds)
        print(f"\n{run}{' (calibration)' if run == args.calibration else ''}")
        print(f"  {'':<18}{'measured':>10}{'simulated':>11}{'error':>9}")
        for name, row in table.items():
            unit = " pp" if name.startswith("idle") or name == "rejected" else " %"
            print(f"  {name:<18}{row['measured']:>10.4g}{row['predicted']:>11.4g}{100 * row['error']:>+6.0f}{unit}")
    finish(args, {"runs": results, "errors_of_fit": fit.errors}, facts)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
