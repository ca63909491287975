"""Processes that stop without dying (SIGSTOP): named with what they were doing, replaced, ended, and the run runs to its end.

An engine's core stands still while the actor before it still answers; a verifier does not answer at all. Both at the same time.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.engine, pytest.mark.long]

STEPS = 4
SETTINGS = (
    "config=toy", f"run.steps={STEPS}", "flow.groups_per_step=8", "data.heldout=", "observe.tensorboard=false",
    "watchdog.stuck_s=8", "observe.heartbeat_s=0.5",
    "engine.max_running=4",  # so that a generator is busy for a while once groups have been admitted
    "weights.ack_timeout_s=30",  # the other limit that may find it, should it have no work: then the test fails sooner
    "verifiers.exact_integers=false",  # so that the verifier has processes of its own
)  # fmt: skip
CORE = "VLLM::EngineCore"
START_S, REPAIR_S, GONE_S = 150, 60, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    run: Path
    code: int
    said: str
    left_behind: list[str]  # of the stopped processes and what is below them, while the run continues


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    folder = tmp_path_factory.mktemp("stuck")
    run, out = folder / "run", folder / "out.txt"
    command = [sys.executable, "-m", "fr3e_async.main", *SETTINGS, f"run.dir={run}"]
    with out.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as driver:
        try:
            wait_for(lambda: groups_were_just_admitted(run), START_S, driver)
            generator, verifier = (actor(driver.pid, run, name) for name in ("generator-0", "verifier-0"))
            (core,) = (process for process in generator.children(recursive=True) if process.name() == CORE)
            doomed = [generator, verifier, *generator.children(recursive=True), *verifier.children(recursive=True)]
            for process in (core, verifier):
                process.send_signal(signal.SIGSTOP)
            wait_for(lambda: len(replacements(run)) == 2, REPAIR_S, driver)
            left = psutil.wait_procs(doomed, timeout=GONE_S)[1]
            assert driver.poll() is None, "the run was over before the stopped processes could be looked for"
            code = driver.wait(timeout=100)
        finally:
            if driver.poll() is None:
                driver.terminate()
    return Seen(run=run, code=code, said=out.read_text(), left_behind=[str(process) for process in left])


def wait_for(condition: Callable[[], bool], limit_s: float, driver: subprocess.Popen) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert driver.poll() is None, "the run has ended"
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.005)


def rows_of(path: Path) -> list[dict]:
    """The whole lines of a file that is being written."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def groups_were_just_admitted(run: Path) -> bool:
    """Under weights that were trained already: now their bases are with the generator."""
    last = rows_of(run / "ledger.jsonl")[-1:]
    return any(row["what"] == "admitted" and row["live"] >= 1 for row in last)


def actor(driver: int, run: Path, name: str) -> psutil.Process:
    """The topmost process below the driver that writes into the actor's log."""
    log = (run / "logs" / f"{name}.log").resolve()
    for process in psutil.Process(driver).children(recursive=True):
        out = Path(f"/proc/{process.pid}/fd/1")
        try:
            if out.resolve() == log and process.name().startswith("ray::"):
                return process
        except (OSError, psutil.Error):
            continue
    raise AssertionError(f"no process writes to {log}")


def events(run: Path) -> list[str]:
    return [row["text"] for row in rows_of(run / "logs" / "events.jsonl")]


def replacements(run: Path) -> list[str]:
    return [text for text in events(run) if " is lost" in text]


@pytest.mark.timeout(360)
def test_a_stuck_engine_is_named_with_what_it_was_doing(seen):
    """The actor answers, so it can tell: requests wait for an output that does not come."""
    (told,) = (text for text in events(seen.run) if text.startswith("generator-0 is stuck"))
    first, *stack = told.splitlines()
    assert "it has work and has not got on for" in first
    assert "(watchdog.stuck_s)" in first
    assert stack[0].startswith("  generator-0 with tasks ")
    assert any("rollout/vllm_engine.py:" in line and line.endswith(" sample") for line in stack)
    assert any("get_output_async" in line for line in stack)
    assert stack[-1] == "  object store: answers"


def test_a_verifier_that_does_not_answer_is_named(seen):
    (told,) = (text for text in events(seen.run) if text.startswith("verifier-0 is stuck"))
    assert "it has not answered for" in told
    assert "does not answer at all: its process or its node has stopped" in told


def test_both_are_replaced_and_the_run_finishes(seen):
    assert seen.code == 0, seen.said
    assert sorted(text.split(" ")[0] for text in replacements(seen.run)) == ["generator-0", "verifier-0"]
    assert {"generator-1.log", "verifier-1.log"} <= {path.name for path in (seen.run / "logs").iterdir()}
    summary = json.loads((seen.run / "summary.json").read_text())
    assert (summary["exit_reason"], summary["steps"]) == ("finished", STEPS)
    assert summary["replaced"] == {"generators": 1, "explorers": 0, "verifiers": 1}
    assert summary["verdicts"]["failed"] == 0
    assert (summary["groups"]["trained"], summary["groups"]["in_flight"]) == (8 * STEPS, 0)


def test_nothing_was_lost_and_nothing_used_twice(seen):
    audit = subprocess.run([sys.executable, "-m", "fr3e_async.audit", str(seen.run)], capture_output=True, text=True)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_the_stopped_processes_and_their_children_are_ended(seen):
    """SIGSTOP holds all other signals back but SIGKILL: a process that was only asked to end would stay with its memory."""
    assert seen.left_behind == []
