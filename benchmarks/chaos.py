"""The toy run while random processes of it are killed, against an undisturbed one: the same accuracy, and a ledger that balances.

    python benchmarks/chaos.py [key=value ...] --kills 30 --seed 0

Each kill is SIGKILL of a random victim (generator, its engine core, explorer, its engine core, verifier, one of its processes,
a learner rank, the driver) in a random phase (generating and branching, updating, broadcasting, checkpointing). If the driver is
gone, the same command is started again. After each kill the run must get on by itself: a batch or an evaluation within
``--patience`` seconds. At the end the audit must pass, every session's journal must replay to the same decisions, and the
accuracy must agree with that of an undisturbed run. Exits with 1 if it does not.

``--spread`` (``run.steps=20 --spread --kills 10 --victims driver learner``): rewards by chance instead, so that every group has something to learn from and is trained. Then both runs must have
consumed exactly the same prompt groups. ``--quick``: six kills at most, of which one is of the driver, and no undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import psutil

from fr3e_async.evaluation.accuracy import EvaluationResult, difference

VICTIMS = ("generator", "generator core", "explorer", "explorer core", "verifier", "verifier process", "learner", "driver")
PHASES = ("any moment", "updating", "broadcasting", "checkpointing")
SETTINGS = (
    "run.steps=110",  # small batches: a toy that is solved has nothing but groups that are all right, and its batches take long
    "flow.groups_per_step=8",
    "run.checkpoint_every=1",
    "learner.max_restarts=1000",
    "pools.max_deaths_in_a_row=20",
    "resume=auto",
    "observe.console=off",
    "verifiers.exact_integers=false",  # so that verifiers have processes to kill: the toy's integers need none
)
SPREAD = ("reward=spread_reward:reward", "evaluation.problems=16")
HERE = Path(__file__).parent
POLL_S = 0.005
LOOK_S = 20.0  # for a victim and its phase, before the next one of the plan is looked for
REST_S = (0.2, 2.0)  # between a sign of life after a kill and the next kill


@dataclass
class Kill:
    victim: str
    phase: str
    at_s: float
    version: int  # last one that was trained
    back_s: float = 0.0  # until the next batch was trained or the run ended


@dataclass
class Run:
    """A main job as a subprocess, started again when it dies."""

    folder: Path
    overrides: list[str]
    starts: int = 0
    read: int = 0  # bytes of the ledger
    rows: list[dict[str, Any]] = field(default_factory=list)
    process: subprocess.Popen[bytes] = field(init=False)
    log: Any = None

    def start(self) -> None:
        command = [sys.executable, "-m", "fr3e_async.main", "config=toy", f"run.dir={self.folder}", *SETTINGS, *self.overrides]
        self.log = self.log or open(self.folder.with_suffix(".log"), "ab")  # noqa: SIM115 - open as long as the run
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        self.starts += 1

    @property
    def ended(self) -> bool:
        return (self.folder / "summary.json").is_file() and self.process.poll() is not None

    def ledger_log(self) -> list[dict[str, Any]]:
        """The ledger so far; only what is new is read."""
        path = self.folder / "ledger.jsonl"
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(self.read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self.read += len(line)
                    with contextlib.suppress(json.JSONDecodeError):  # half a line that a kill has left
                        self.rows.append(json.loads(line))
        return self.rows


def phase_of(ledger_log: list[dict[str, Any]], folder: Path) -> str:
    """What the run is doing now, as far as its files tell."""
    if any((folder / "checkpoints").glob("step-*.tmp")):
        return "checkpointing"
    last: dict[str, int] = {}
    for place, row in enumerate(reversed(ledger_log)):
        last.setdefault(row["what"], -place)
        if len(last.keys() & {"train", "trained", "live"}) == 3 or row["what"] == "begin":
            break
    never = -len(ledger_log)
    if last.get("train", never) > last.get("trained", never):
        return "updating"
    if last.get("trained", never) > last.get("live", never):
        return "broadcasting"
    return "generating"


def victims(driver: int) -> dict[str, list[psutil.Process]]:
    """The run's processes by what they are: actors by the log that they write their output to, others by the actor above them."""
    found: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(driver)]}
    actors: dict[int, str] = {}
    for process in psutil.Process(driver).children(recursive=True):  # parents come before their children
        role = role_above(process, actors)
        if not role:
            if role := role_by_log(process):
                actors[process.pid] = role
                found.setdefault(role, []).append(process)
        elif role == "verifier":
            found.setdefault("verifier process", []).append(process)
        elif "EngineCore" in process.name():
            found.setdefault(f"{role} core", []).append(process)
    return found


def role_by_log(process: psutil.Process) -> str:
    try:
        out = Path(f"/proc/{process.pid}/fd/1").readlink()
    except OSError:
        return ""
    role = out.name.split("-")[0]
    return role if out.suffix == ".log" and role in ("generator", "explorer", "verifier", "learner") else ""


def role_above(process: psutil.Process, actors: dict[int, str]) -> str:
    """Of the actor that this process descends from, or an empty text."""
    try:
        above = process.ppid()
        while above not in actors and above > 1:
            above = psutil.Process(above).ppid()
    except psutil.Error:
        return ""
    return actors.get(above, "")


def kill(run: Run, kind: str) -> bool:
    """False if there is nobody of this kind to kill."""
    try:
        process = random_of(victims(run.process.pid).get(kind, []))
        if process is None:
            return False
        process.kill()
        return True
    except psutil.Error:
        return False


def random_of(processes: list[psutil.Process]) -> psutil.Process | None:
    return DICE.choice(sorted(processes, key=lambda p: p.pid)) if processes else None


DICE = random.Random(0)


def versions(ledger_log: list[dict[str, Any]]) -> tuple[int, int]:
    """(batches trained over all sessions, last version)."""
    trained = [row["version"] for row in ledger_log if row["what"] == "trained"]
    return len(trained), trained[-1] if trained else 0


def chaos(run: Run, plan: list[tuple[str, str]], *, patience_s: float) -> list[Kill]:
    """Run to the end with these (victim, phase) kills. Raises ``TimeoutError`` if it does not get on."""
    started = time.monotonic()
    kills: list[Kill] = []
    run.start()
    todo = list(plan)
    next_at, moved_at, seen, waiting = time.monotonic(), time.monotonic(), 0, None
    looked_since = 0.0
    while not run.ended:
        if run.process.poll() is not None:
            run.start()
            moved_at = time.monotonic()
        ledger_log = run.ledger_log()
        count, version = versions(ledger_log)
        if count > seen or any(row["what"] == "end" for row in ledger_log[-1:]):
            seen, moved_at = count, time.monotonic()
            if waiting is not None:
                waiting.back_s = time.monotonic() - started - waiting.at_s
                waiting, next_at = None, time.monotonic() + DICE.uniform(*REST_S)
        if time.monotonic() - moved_at > patience_s:
            raise TimeoutError(f"nothing was trained for {patience_s:.0f} s after {kills[-1] if kills else 'the start'}")
        alive = bool(ledger_log) and ledger_log[-1]["what"] != "end" and run.process.poll() is None
        if todo and waiting is None and alive and time.monotonic() >= next_at and seen:
            victim, phase = todo[0]
            now = phase_of(ledger_log, run.folder)
            looked_since = looked_since or time.monotonic()
            if time.monotonic() - looked_since > LOOK_S:  # at the end it may come at any moment
                todo.append((todo.pop(0)[0], "any moment"))
                looked_since = 0.0
            elif (phase in (now, "any moment")) and kill(run, victim):
                todo.pop(0)
                looked_since = 0.0
                waiting = Kill(victim, now, time.monotonic() - started, version)
                kills.append(waiting)
        time.sleep(POLL_S)
    if todo:
        print(f"the run ended with {len(todo)} kills to go: more run.steps, please")
    return kills


def planned(count: int, kinds: list[str]) -> list[tuple[str, str]]:
    """Every victim in every phase as evenly as the number allows, in random order."""
    pairs = [(victim, phase) for victim in kinds for phase in PHASES]
    plan = [pair for _ in range(count // len(pairs) + 1) for pair in DICE.sample(pairs, len(pairs))][:count]
    return DICE.sample(plan, len(plan))


def short_plan(count: int, kinds: list[str], *, most: int = 6) -> list[tuple[str, str]]:
    """One kill a kind, the driver's last: it takes longest."""
    driver = [kind for kind in kinds if kind == "driver"]
    others = [kind for kind in kinds if kind != "driver"]
    return [(kind, "any moment") for kind in [*others[: min(count, most) - len(driver)], *driver]]


def checked(folder: Path) -> list[str]:
    """What the audit and the replay say, if it is not that all is well."""
    faults = []
    for command in ("audit", "replay"):
        done = subprocess.run([sys.executable, "-m", f"fr3e_async.{command}", str(folder)], capture_output=True, text=True)
        print(f"\n{command}:\n{done.stdout}{done.stderr}".rstrip())
        if done.returncode:
            faults.append(f"{command} fails")
    return faults


def accuracy(summary: dict[str, Any]) -> tuple[float, float, float]:
    low, high = summary["accuracy_intervals"]["after"]
    return summary["accuracy_after"], low, high


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--patience", type=float, default=240.0)
    parser.add_argument(
        "--spread", action="store_true", help="rewards by chance: every group is trained, so both runs must consume the same"
    )
    parser.add_argument("--keep", type=Path, help="keep the run directories here")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    DICE.seed(args.seed)
    facts = common.machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plan = short_plan(args.kills, args.victims) if args.quick else planned(args.kills, args.victims)
        started = time.monotonic()
        overrides = [*(SPREAD if args.spread else ()), *args.overrides]
        disturbed = Run(folder / "chaos", overrides)
        kills = chaos(disturbed, plan, patience_s=args.patience)
        spent = time.monotonic() - started
        faults = checked(disturbed.folder)
        summaries = {"chaos": json.loads((disturbed.folder / "summary.json").read_text())}
        if not args.quick:
            calm = Run(folder / "calm", overrides)
            calm.start()
            calm.process.wait()
            summaries["calm"] = json.loads((calm.folder / "summary.json").read_text())
            if args.spread:
                faults += same_consumed(consumed(disturbed.folder), consumed(calm.folder))
        figures = {
            "kills": [vars(k) for k in kills],
            "spent_s": spent,
            "starts": disturbed.starts,
            "accuracy": {name: accuracy(summary) for name, summary in summaries.items()},
        }
    print(report(kills, spent, disturbed.starts, summaries))
    faults += judged(kills, len(plan), summaries, accuracy_too=not args.spread)
    common.finish(args, figures, facts)
    for fault in faults:
        print("FAIL:", fault)
    return 1 if faults else 0


def report(kills: list[Kill], spent: float, starts: int, summaries: dict[str, dict[str, Any]]) -> str:
    lines = ["", "| victim | kills | phases | s until the next batch, median (longest) |", "| --- | --- | --- | --- |"]
    for victim in VICTIMS:
        own = [k for k in kills if k.victim == victim]
        if own:
            back = sorted(k.back_s for k in own)
            phases = ", ".join(f"{count} {phase}" for phase, count in sorted(Counter(k.phase for k in own).items()))
            lines.append(f"| {victim} | {len(own)} | {phases} | {back[len(back) // 2]:.0f} ({back[-1]:.0f}) |")
    lines += ["", f"{len(kills)} kills, {starts} starts of the command, {spent:.0f} s in all"]
    for name, summary in summaries.items():
        value, low, high = accuracy(summary)
        lines.append(
            f"{name}: accuracy {summary['accuracy_before']:.3f} -> {value:.3f} [{low:.3f}, {high:.3f}], {summary['steps']} batches, "
            f"staleness max {summary['staleness_max']}, wall {summary['wall_s']:.0f} s"
        )
    return "\n".join(lines)


def consumed(folder: Path) -> dict[str, str]:
    """Group -> outcome, of every group that settled."""
    rows = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    return {row["group"]: row["outcome"] for row in rows}


def same_consumed(chaos: dict[str, str], calm: dict[str, str]) -> list[str]:
    print(
        f"\nconsumed: {len(chaos)} groups with kills, {len(calm)} without, {len(chaos.items() & calm.items())} in common with their outcome"
    )
    return [] if chaos == calm else ["another set of groups was consumed"]


def judged(kills: list[Kill], wanted: int, summaries: dict[str, dict[str, Any]], *, accuracy_too: bool) -> list[str]:
    """All kills were made, and the accuracy is the same: the 95 % interval of the difference holds 0."""
    faults = [] if len(kills) == wanted else [f"{len(kills)} kills of {wanted}"]
    if "calm" in summaries and accuracy_too:
        gain, low, high = difference(result(summaries["calm"]), result(summaries["chaos"]))
        print(f"chaos - calm: accuracy {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
        if not low <= 0 <= high:
            faults.append("the accuracy is another one")
    return faults


def result(summary: dict[str, Any]) -> EvaluationResult:
    return EvaluationResult.from_record(summary["evaluations"][-1])


if __name__ == "__main__":
    sys.exit(main())
