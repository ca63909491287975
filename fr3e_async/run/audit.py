"""Audit a run directory: was every prompt group admitted, trained and settled once, and in time?

Replays the ledger log (``ledger.jsonl``) from the first session to the last, then checks ``groups.jsonl`` and the newest checkpoint
against it. Reads only.
"""

import json
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fr3e_async.control.progress import CONTROL_FILE
from fr3e_async.data.stream import group_id
from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading
from fr3e_async.report.rows import read_rows
from fr3e_async.store.checkpoints import CheckpointStore, step_of
from fr3e_async.store.ledger_audit import GROUP_OUTCOMES, TRAINED, LedgerReport, audit
from fr3e_async.store.ledger_log import read_ledger_log

LEDGER, GROUPS, CONFIG = "ledger.jsonl", "groups.jsonl", "config.yaml"
SHOWN = 50  # lines of a failure; the first ones are the cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The ledger's report of a run, and every problem that was found."""

    report: LedgerReport
    checkpoint: str  # name of the one that was compared, or empty
    problems: tuple[str, ...]  # a line each


def audit_run(run: Path) -> Audit:
    """Check all files of a run against each other. Raises ``StorageError``: no run directory, or a file cannot be read."""
    if not run.is_dir():
        raise StorageError(f"{run} is no folder")
    if not (run / LEDGER).is_file():
        raise StorageError(f"{run} is no run directory, or of an earlier version: it has no {LEDGER}")
    bounds = read_bounds(run / CONFIG)
    rows = read_groups(run / GROUPS)  # before the ledger log, which then tells of all of them, even in a run that is still going
    report = audit(read_ledger_log(run / LEDGER), **bounds)
    problems = [str(violation) for violation in report.violations]
    problems += [f"{GROUPS}: {text}" for text in check_groups(report, rows)]
    checkpoint = None
    try:
        checkpoint = find_checkpoint(run / "checkpoints", report)
        if checkpoint is not None:
            problems += [f"{checkpoint.name}: {text}" for text in check_checkpoint(report, **read_control(checkpoint))]
    except StorageError as error:  # the ledger log may be checked without it
        problems.append(str(error))
    return Audit(report=report, checkpoint=checkpoint.name if checkpoint else "", problems=tuple(problems))


# ---- what a run wrote beside its ledger log ----


def read_bounds(path: Path) -> dict[str, int]:
    """``groups_per_step`` and ``max_staleness`` of a resolved config; no run may change them. Raises ``StorageError``."""
    with reading(path, yaml.YAMLError):
        flow = yaml.safe_load(path.read_text(encoding="utf-8"))["flow"]
        return {name: int(flow[name]) for name in ("groups_per_step", "max_staleness")}


def read_groups(path: Path) -> list[tuple[str, str]]:
    """(group, outcome) of each row; none if there is no file. A last line that was cut off counts as not written.

    Raises ``StorageError``: another line is no row of this file.
    """
    rows = []
    for number, row in read_rows(path):
        if not {"group", "outcome"} <= row.keys():
            raise StorageError(f"{path}:{number} is damaged: it is no row of a settled group")
        rows.append((str(row["group"]), str(row["outcome"])))
    return rows


def find_checkpoint(root: Path, report: LedgerReport) -> Path | None:
    """The newest whole one that the run did not go back behind. Raises ``StorageError`` if all are damaged."""
    behind = report.abandoned - {cut.version for cut in report.cuts}
    return CheckpointStore(root).latest(lambda folder: "the run went back behind it" if step_of(folder) in behind else "")


def read_control(checkpoint: Path) -> dict[str, Any]:
    """Its ``version``, and ``epoch`` and ``consumed`` prompts, as group names, of its control part. Raises ``StorageError``."""
    path = checkpoint / CONTROL_FILE
    with reading(path):
        stream = json.loads(path.read_text(encoding="utf-8"))["stream"]
        consumed = {group_id(uid, int(epoch)) for epoch, uids in stream["consumed"].items() for uid in uids}
        return {"version": step_of(checkpoint), "epoch": int(stream["epoch"]), "consumed": consumed}


# ---- against the ledger log ----


def check_groups(report: LedgerReport, rows: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong with the rows (group, outcome), a line each.

    In a run that did not say its end, rows and ledger log may differ in what was settled after the last cut, and only there.
    """
    written = dict(rows)
    problems = [f"group {group} has {count} rows" for group, count in Counter(group for group, _ in rows).items() if count > 1]
    for index, (group, outcome) in enumerate(report.outcomes.items()):
        lenient = not report.ended and index >= report.settled_at_last_cut
        if group not in written and not lenient:
            problems.append(f"group {group} has no row; it is {outcome} in the ledger")
        elif written.get(group, outcome) != outcome:
            problems.append(f"group {group} is {written[group]}; it is {outcome} in the ledger")
    waiting = set() if report.ended else set(report.open)
    for group in written.keys() - report.outcomes.keys() - waiting:
        problems.append(f"group {group} is {written[group]}; it is not settled in the ledger")
    return problems


def check_checkpoint(report: LedgerReport, *, version: int, epoch: int, consumed: Set[str]) -> list[str]:
    """What is wrong with a checkpoint's consumed prompts, a line each. Epochs below ``epoch`` are wholly consumed."""
    cuts = [cut for cut in reversed(report.cuts) if cut.version == version]
    if not cuts:
        return [f"the ledger has no cut of version {version}"]
    settled = list(report.outcomes)
    expected = [{group for group in settled[: cut.settled] if _epoch(group) >= epoch} for cut in cuts]
    if consumed in expected:
        return []
    missing, foreign = sorted(expected[0] - consumed), sorted(consumed - expected[0])
    problems = [f"group {group} is settled in the ledger and its prompt is not consumed" for group in missing]
    return problems + [f"the prompt of {group} is consumed, and the group is not settled in the ledger" for group in foreign]


def _epoch(group: str) -> int:
    epoch = group.rpartition("@")[2]
    if not epoch.isdecimal():
        raise StorageError(f"{LEDGER}: group {group!r} has no name of the form uid@epoch")
    return int(epoch)


# ---- in words ----


def table(found: Audit) -> str:
    """Counts of groups, versions and sessions that survived all rollbacks, as text, a line each."""
    report = found.report
    rows = {
        "sessions": str(report.sessions),
        "version": str(report.version),
        "admitted": str(report.admitted),
        TRAINED: str(report.counts[TRAINED]),
        **{outcome: str(count) for outcome, count in sorted(report.counts.items()) if outcome.startswith(GROUP_OUTCOMES)},
        "open": str(len(report.open)),
        "thrown away": f"{report.void_groups} groups, {report.void_batches} batches, by sessions that went back",
        "checkpoint": found.checkpoint or "none",
        "end": "yes" if report.ended else "no: the last session was killed, or is still going",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def verdict(problems: Sequence[str]) -> str:
    """The last line is PASS or FAIL; the first problems stand before it."""
    if not problems:
        return "PASS"
    more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([*problems[:SHOWN], *more, f"FAIL: {len(problems)} violations"])
