"""The console: plain lines, the live view on a recorded console, the table at the end; and where the logs go."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_observe_metrics import example_summary

from fr3e_async.files.process_logs import quiet_environment, redirect_output
from fr3e_async.observe import console as module
from fr3e_async.observe.console import ConsoleView, Eta, console_mode, count, duration, make_console, sparkline

STEP = {
    "reward/mean": 0.41, "reward/accuracy": 0.384, "rollout/entropy_nats": 0.523, "groups/trained": 32, "groups/all_correct": 4,
    "groups/all_wrong": 6, "verify/correct": 90, "verify/wrong": 106, "verify/unknown": 4, "rollout/length_tokens": 21.25,
    "lag/versions_mean": 0.83, "lag/versions_max": 1, "tokens/rate_per_s": 5432.0, "time/step_s": 12.0, "train/loss": -0.0123,
    "train/grad_norm": 0.43, "idle/generators_fraction": 0.12, "overlap/fraction": 0.91,
}  # fmt: skip


EXPORT = "not written; fr3e export runs/a OUT makes it of the last checkpoint"
LIVE = {"file": io.StringIO(), "force_terminal": True, "record": True}


def plain_view(steps: int = 24, **more: Any) -> tuple[ConsoleView, io.StringIO]:
    stream = io.StringIO()
    mode, console = make_console("auto", stream)
    return ConsoleView(mode=mode, console=console, name="toy", steps=steps, **more), stream


# ---- words ----


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (-3, "0s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (999.6, "1.0k"), (5432, "5.4k"), (1_200_000, "1.2M"), (3e9, "3.0G")]
)
def test_counts(number: float, text: str) -> None:
    assert count(number) == text


def test_a_sparkline_goes_from_bottom_to_top() -> None:
    assert sparkline(module.deque([0.0, 0.5, 1.0])) == "▁▅█"


def test_the_eta_follows_the_newest_steps() -> None:
    eta = Eta(20, newest=2)
    assert eta.text(0) == "ETA -"
    for step_s in (100.0, 10.0, 20.0):
        eta.add({"time/step_s": step_s})
    assert eta.text(10) == "ETA 2m30s at 15.0 s/step"


# ---- modes ----


def test_auto_is_plain_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert console_mode("auto", io.StringIO()) == "plain"
    assert console_mode("live", io.StringIO()) == "live"
    master, slave = pty.openpty()
    with os.fdopen(master), os.fdopen(slave, "w") as terminal:
        assert console_mode("auto", terminal) == "live"
        monkeypatch.setenv("TERM", "dumb")
        assert console_mode("auto", terminal) == "plain"


def test_plain_mode_writes_one_line_a_step_without_escapes() -> None:
    view, stream = plain_view()
    view.start()
    view.step(3, STEP)
    view.note("generator-0 [died] and is replaced")
    view.stop()
    assert stream.getvalue().splitlines() == [
        "step 3/24  reward 0.410  accuracy 0.384  entropy 0.523  rejected 24% (4 all correct, 6 all wrong)  unknown 2%  "
        "stale 0.83 max 1  5.4k tok/s  12.0 s  ETA 4m12s at 12.0 s/step",
        "- generator-0 [died] and is replaced",
    ]


def test_missing_metrics_are_shown_as_missing() -> None:
    view, stream = plain_view()
    view.step(1, {})
    assert "reward -  accuracy -" in stream.getvalue()


def test_a_long_note_stays_on_one_line() -> None:
    view, stream = plain_view()
    view.note("x" * 500)
    assert stream.getvalue() == f"- {'x' * 500}\n"


def test_off_mode_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    mode, console = make_console("off")
    view = ConsoleView(mode=mode, console=console, name="toy", steps=2)
    view.start()
    view.step(1, STEP)
    view.note("x")
    view.starting("learner 0 of 1 up")
    view.finish(example_summary(), Path("run"), model=None)
    view.last_words(Path("run"), model=None)
    assert capfd.readouterr() == ("", "")


def test_the_live_view_shows_all_numbers_and_stays_after_the_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40, record=True)
    view = ConsoleView(mode="live", console=console, name="toy", steps=24)
    view.start()
    for step in (1, 2, 3):
        view.step(step, STEP)
    view.note("checkpoint step-00000003")
    view.stop()
    view.stop()
    text = console.export_text()
    for words in (
        "FR3E  toy", "step 3/24", "accuracy 0.384", "reward      0.410", "entropy   0.523", "staleness   0.83 max 1", "all correct 4",
        "all wrong 6", "tokens/s  5.4k", "rejected 24%", "unknown  2%", "length   21.2", "loss        -0.0123", "ETA 4m12s", "generators 12%", "learner -", "overlap 91%",
        "- checkpoint step-00000003",
    ):  # fmt: skip
        assert words in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


def test_the_end_shows_before_and_after_and_what_it_cost() -> None:
    view, stream = plain_view()
    view.finish(example_summary(), Path("runs/my toy"), model=Path("runs/my toy/model"))
    text = stream.getvalue()
    assert "0.370 [0.282, 0.468]" in text
    assert "0.900 [0.826, 0.945]" in text
    assert "+0.530 [" in text
    assert "finished: 24 steps in 4m11s, the first after 41s" in text
    assert "overlap of generation and learning 91%; idle: generators 10%, learner 25%" in text
    assert "groups: trained 768, rejected all correct 70, in flight 3" in text
    assert "\x1b" not in text
    assert text.splitlines()[-3:] == [
        "model   runs/my toy/model",
        "page    fr3e report 'runs/my toy'",
        "resume  the same command with run.dir='runs/my toy' resume=auto run.steps=N, N above 24",
    ]


def test_at_80_columns_no_figure_of_the_table_at_the_end_is_cut() -> None:
    console = Console(width=80, height=24, **LIVE)
    view = ConsoleView(mode="live", console=console, name="toy", steps=24)
    view.finish(example_summary(), Path("runs/toy"), model=Path("runs/toy/model"))
    text = console.export_text()
    for figure in ("0.370", "[0.282, 0.468]", "0.900", "[0.826, 0.945]", "+0.530", "24 steps in 4m11s"):
        assert figure in text
    assert max(map(len, text.splitlines()[:-3])) <= 80
    assert "…" not in text


def test_a_run_that_ended_early_says_how_its_model_is_had() -> None:
    view, stream = plain_view()
    view.last_words(Path("runs/a"), model=None)
    assert stream.getvalue().splitlines() == [
        "model   not written; fr3e export runs/a OUT makes it of the last checkpoint",
        "page    fr3e report runs/a",
        "resume  the same command with run.dir=runs/a resume=auto",
    ]


@pytest.mark.parametrize(
    ("reason", "steps", "saved", "model", "resume"),
    [
        ("stopped by SIGINT", 0, False, "not written, and there is no checkpoint", ""),
        ("run.max_wall_s (60 s) reached", 7, True, EXPORT, " run.max_wall_s=N, N above the time that is over"),
        ("finished", 24, True, EXPORT, " run.steps=N, N above 24"),
        ("finished", 7, True, EXPORT, " budget.tokens=N, N above those that are used up"),
    ],
)
def test_the_last_lines_name_what_a_resume_must_raise(reason: str, steps: int, saved: bool, model: str, resume: str) -> None:
    view, stream = plain_view()
    view.finish(replace(example_summary(), exit_reason=reason, steps=steps), Path("runs/a"), model=None, saved=saved)
    assert stream.getvalue().splitlines()[-3:] == [
        f"model   {model}",
        "page    fr3e report runs/a",
        f"resume  the same command with run.dir=runs/a resume=auto{resume}",
    ]


def test_a_start_says_what_it_waits_for_when_that_takes_long_and_when_it_changes() -> None:
    now = [100.0]
    view, stream = plain_view(clock=lambda: now[0])
    for at, text in [
        (0, "A"),
        (4, "A"),
        (6, "A"),
        (8, "B"),
        (12, "B"),
        (20, "B"),
        (44, "B"),
        (45, ""),
        (50, "C"),
        (54, "C"),
        (56, ""),
    ]:
        now[0] = 100.0 + at
        view.starting(text)
    assert stream.getvalue().splitlines() == ["- waiting for 6s: A", "- waiting for 12s: B", "- waiting for 44s: B"]


def test_the_panel_shows_what_it_waits_for_until_it_continues() -> None:
    console = Console(width=80, height=24, **LIVE)
    view = ConsoleView(mode="live", console=console, name="toy", steps=24)
    view.starting("generators 1 of 2 up; generator-1 needs 1.75 CPUs, 0.0 free")
    console.print(view.panel())
    assert "waiting for 0s: generators 1 of 2 up; generator-1 needs 1.75 CPUs, 0.0 free" in console.export_text()
    view.waits("no batch for 31 s: 3 of 32 groups ready")
    console.print(view.panel())
    assert "no batch for 31 s: 3 of 32 groups ready" in console.export_text()
    view.step(1, STEP)
    console.print(view.panel())
    assert "no batch" not in console.export_text()


def test_after_a_resume_the_panel_starts_at_that_step_and_after_a_loss_it_goes_back() -> None:
    console = Console(width=80, height=24, **LIVE)
    view = ConsoleView(mode="live", console=console, name="toy", steps=24, done=15)
    console.print(view.panel())
    assert "step 15/24" in console.export_text()
    view.step(16, STEP)
    view.go_back(10)
    console.print(view.panel())
    text = console.export_text()
    assert "step 10/24" in text
    assert "ETA -" in text


def test_at_80_columns_no_figure_of_the_panel_is_cut() -> None:
    console = Console(width=80, height=40, **LIVE)
    view = ConsoleView(mode="live", console=console, name="toy", steps=2400)
    idle = {f"idle/{role}_fraction": 1.0 for role in module.ROLES}
    wide = {"lag/versions_mean": 31.25, "lag/versions_max": 128, "train/loss": -12345.6789, "train/grad_norm": 98765.432,
            "groups/all_correct": 123456, "groups/all_wrong": 654321, "time/step_s": 3456.7, "overlap/fraction": 1.0}  # fmt: skip
    for step in range(1900, 2000):
        view.step(step, {**STEP, **idle, **wide})
    view.note("held-out accuracy, step 1990: 0.406 [0.295, 0.529] at v1990, and " + "much more of it " * 4 + "1234.5678")
    console.print(view.panel())
    text = " ".join(line.strip("│ ") for line in console.export_text().splitlines())
    for figure in (
        "step 1999/2400", "ETA 385h02m at 3456.7 s/step", "31.25 max 128", "123456", "654321", "-12345.6789", "98765.432",
        "rejected 100%", "unknown  2%", "21.2", "0.410", "0.384", "0.523", "5.4k", "generators 100%", "verifiers 100%", "learner 100%", "overlap 100%",
        "0.406 [0.295, 0.529]", "1234.5678",
    ):  # fmt: skip
        assert figure in text
    assert "…" not in text


# ---- logs ----


def test_redirected_output_holds_prints_children_and_c_level_writes(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "actor.log"
    code = (
        "import os, subprocess, sys; from fr3e_async.files.process_logs import redirect_output; print('before');"
        f"print(redirect_output({str(log)!r}), file=sys.stderr); print('printed é'); os.write(1, b'raw\\n');"
        "subprocess.run(['echo', 'child']); sys.stderr.write('to stderr\\n'); os.kill(os.getpid(), 11)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("before\n", "")
    text = log.read_text()
    for words in ("True", "printed é", "raw", "child", "to stderr", "Fatal Python error: Segmentation fault"):
        assert words in text


def test_a_log_that_cannot_be_opened_leaves_the_output_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.log", tmp_path, ""):
        code = f"from fr3e_async.files.process_logs import redirect_output; print(redirect_output({str(path)!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


def test_redirect_output_with_an_empty_path_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert redirect_output("") is False
    print("still here")
    assert capfd.readouterr().out == "still here\n"


def test_records_and_warnings_of_the_driver_go_to_a_file(tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    code = (
        "import json, logging, os, sys, warnings; from pathlib import Path; from fr3e_async.files.process_logs import quiet_driver\n"
        "logging.getLogger('ray').addHandler(logging.StreamHandler())\n"
        "quiet_driver(Path(sys.argv[1]), verbose=sys.argv[2] == 'verbose')\n"
        "logging.getLogger('ray').warning('noise of ray'); warnings.warn('noise of a library')\n"
        "print(json.dumps(os.environ.get('VLLM_NO_USAGE_STATS')))"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "VLLM_NO_USAGE_STATS")}
    quiet = subprocess.run([sys.executable, "-c", code, log, "quiet"], capture_output=True, text=True, check=True, env=env)
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout) == "1"
    assert "noise of ray" in log.read_text()
    assert "noise of a library" in log.read_text()
    loud = subprocess.run([sys.executable, "-c", code, log, "verbose"], capture_output=True, text=True, check=True, env=env)
    assert loud.stderr.count("noise of ray") == 1
    assert json.loads(loud.stdout) is None


def test_settings_of_the_person_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    assert "TRANSFORMERS_VERBOSITY" not in quiet_environment(verbose=False)
    assert quiet_environment(verbose=True) == {}
