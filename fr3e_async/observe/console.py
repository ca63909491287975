"""What a person sees while a run continues: a live view on a terminal, one line a step elsewhere, a table at the end.

Takes metrics by the names of ``metrics`` and shows what is there; knows nothing of the loop that makes them. Writes to one
rich console only, so that a test can read what it wrote.
"""

import io
import math
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fr3e_async.clock import Clock, steady
from fr3e_async.config import Config
from fr3e_async.config.reward import RewardRange
from fr3e_async.errors import printable
from fr3e_async.evaluation.accuracy import EvaluationResult, comparison
from fr3e_async.outcomes import GroupOutcome
from fr3e_async.store.summary import Summary

Mode = Literal["live", "plain", "off"]
ROLES = ("generators", "explorers", "verifiers", "learner")
_NOTES = 6  # newest notes that the live view shows, if there is room
_TABLE_WIDTH = 104  # columns of the table at the end, on one line a row
_OTHERS = 16  # rows of the live view without its notes
_PATIENCE_S = 5.0  # a wait that is shorter is not worth a line, nor is a change so soon after one
_AGAIN_S = 30.0  # what is waited for is said again
_REJECTED = tuple(outcome.word for outcome in GroupOutcome if outcome is not GroupOutcome.TRAINED)
_TREND = 40  # newest steps in the accuracy trend


def console_mode(setting: Literal["auto", "live", "plain", "off"], stream: IO[str]) -> Mode:
    """``auto`` is live on a terminal that can move its cursor. Under ``ray job submit`` and in CI it is a pipe or file: plain."""
    if setting != "auto":
        return setting
    return "live" if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown") else "plain"


def make_console(setting: Literal["auto", "live", "plain", "off"], stream: IO[str] | None = None) -> tuple[Mode, Console]:
    """The mode and a console on ``stream`` (standard output). A live view there stays on that very stream, so that
    redirecting ``sys.stdout`` later does not take it away."""
    stream = stream or sys.stdout
    mode = console_mode(setting, stream)
    if mode == "off":
        return mode, Console(file=io.StringIO())
    if mode == "live":
        return mode, Console(file=stream, force_terminal=True)
    return mode, Console(file=stream, force_terminal=False, no_color=True, highlight=False, width=140)


def say(config: Config) -> Callable[[str], None]:
    """Print a line before there is a view, unless the console is off."""
    return lambda text: None if config.observe.console == "off" else print(printable(text), flush=True)


def duration(seconds: float) -> str:
    """Format seconds for a person: ``4s``, ``3m05s`` or ``2h07m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """A number in at most five characters: ``950``, ``5.4k``, ``1.2M``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.1f}{suffix}"
    return f"{number:.0f}"


def figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """A step's numbers as text, by their names in the panel; ``-`` where a metric is not reported."""

    def shown(name: str, layout: str = ".3f") -> str:
        return format(metrics[name], layout) if name in metrics else "-"

    def share(part: Sequence[str], whole: Sequence[str], kind: str) -> str:
        of, all_of = (sum(metrics.get(f"{kind}/{name}", 0.0) for name in names) for names in (part, whole))
        return f"{of / all_of:.0%}" if all_of else "-"

    return {
        "accuracy": shown("reward/accuracy"),
        "reward": shown("reward/mean"),
        "entropy": shown("rollout/entropy_nats"),
        "rejected": share(_REJECTED, ("trained", *_REJECTED), "groups"),
        "all correct": shown("groups/all_correct", ".0f"),
        "all wrong": shown("groups/all_wrong", ".0f"),
        "unknown": share(("unknown",), ("correct", "wrong", "unknown"), "verify"),
        "staleness": f"{shown('lag/versions_mean', '.2f')} max {shown('lag/versions_max', '.0f')}",
        "tokens/s": count(metrics["tokens/rate_per_s"]) if "tokens/rate_per_s" in metrics else "-",
        "length": shown("rollout/length_tokens", ".1f"),
        "loss": shown("train/loss", "+.4f"),
        "grad norm": shown("train/grad_norm"),
    }


def step_line(metrics: Mapping[str, float]) -> str:
    """Format a step as one line for a log, with rejected groups by reason."""
    its = figures(metrics)
    reasons = ", ".join(f"{n:.0f} {name.replace('_', ' ')}" for name in _REJECTED if (n := metrics.get(f"groups/{name}")))
    step_s = f"{metrics['time/step_s']:.1f} s" if "time/step_s" in metrics else "-"
    return (
        f"reward {its['reward']}  accuracy {its['accuracy']}  entropy {its['entropy']}  rejected {its['rejected']}"
        f"{f' ({reasons})' if reasons else ''}  unknown {its['unknown']}  stale {its['staleness']}  {its['tokens/s']} tok/s  {step_s}"
    )


class Eta:
    """Time left, from the mean of the newest steps: early ones are slow, and the pace changes with response lengths."""

    def __init__(self, steps: int, *, newest: int = 10) -> None:
        self._steps = steps
        self._times: deque[float] = deque(maxlen=newest)

    def add(self, metrics: Mapping[str, float]) -> None:
        if "time/step_s" in metrics:
            self._times.append(metrics["time/step_s"])

    def text(self, step: int) -> str:
        """Format the time to the run's end: ``ETA 4m12s at 12.0 s/step``."""
        if not self._times:
            return "ETA -"
        mean = sum(self._times) / len(self._times)
        return f"ETA {duration((self._steps - step) * mean)} at {mean:.1f} s/step"


class ConsoleView:
    """The view of one run. ``start`` and ``stop`` are for the live view; both are harmless otherwise."""

    def __init__(
        self, *, mode: Mode, console: Console, name: str, steps: int, done: int = 0, graded: RewardRange | None = None,
        clock: Clock = steady,
    ) -> None:  # fmt: skip
        """``done``: steps that were trained before this session. ``graded``: the range of rewards that are more than correct and wrong;
        their trend is shown then, and not the accuracy's."""
        self._mode, self._console, self._name, self._steps, self._clock = mode, console, name, steps, clock
        self._waits = self._start = self._told = ""  # for what the run waits; its start; and what was written of that
        self._graded = graded
        self._began = self._said_at = clock()
        self.go_back(done)
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._trend: deque[float] = deque(maxlen=_TREND)
        # The screen is written by us alone: with redirection on, rich would also catch prints of libraries.
        self._live = Live(console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)

    def start(self) -> None:
        if self._mode == "live":
            self._live.start()
            self._live.update(self.panel())

    def stop(self) -> None:
        """Leave the last state of the live view on the screen. Idempotent."""
        self._live.stop()

    def go_back(self, step: int) -> None:
        """Show ``step`` as the last finished one, without metrics, and start a new time estimate: the run resumes there."""
        self._step, self._metrics, self._eta = step, dict[str, float](), Eta(self._steps)

    def waits(self, text: str) -> None:
        """Show in the live view what the run waits for; "" once it continues."""
        self._waits = printable(text)
        if self._mode == "live":
            self._live.update(self.panel())

    def starting(self, text: str) -> None:
        """Show what the start waits for; "" when it is over. Plain lines: after ``_PATIENCE_S``, also for a change, else after ``_AGAIN_S``."""
        now = self._clock()
        if not self._start:
            self._told, self._began, self._said_at = "", now, now
        self._start = text
        line = f"waiting for {duration(now - self._began)}: {printable(text)}" if text else ""
        self.waits(line)
        if self._mode == "plain" and text and now - self._said_at >= (_AGAIN_S if text == self._told else _PATIENCE_S):
            self._told, self._said_at = text, now
            self._print(f"- {line}")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of the step that just finished: in the live view, or as a printed line."""
        self._step, self._metrics, self._waits = step, dict(metrics), ""
        self._eta.add(metrics)
        if self._graded and "reward/mean" in metrics:
            self._trend.append(self._graded.share(metrics["reward/mean"]))
        elif not self._graded and "reward/accuracy" in metrics:
            self._trend.append(metrics["reward/accuracy"])
        if self._mode == "plain":
            self._print(f"step {step}/{self._steps}  {step_line(metrics)}  {self._eta.text(step)}")
        elif self._mode == "live":
            self._live.update(self.panel())

    def note(self, text: str) -> None:
        """One line about an event. It may quote ids of a dataset, errors of libraries: nothing in it reaches the terminal as a command."""
        text = printable(text)
        self._notes.append(text)
        if self._mode == "plain":
            self._print(f"- {text}")
        elif self._mode == "live":
            self._live.update(self.panel())

    def finish(self, summary: Summary, folder: Path, *, model: Path | None, saved: bool = True) -> None:
        """End the live view and print the before/after table, the run's numbers, and what can be done with the run's folder."""
        self.stop()
        if self._mode != "off":
            self._console.print(result_table(summary, narrow=self._console.width < _TABLE_WIDTH))
            self.last_words(folder, model=model, saved=saved, limit=self._limit(summary))

    def _limit(self, summary: Summary) -> str:
        """Name the limit that a resume must raise; without that it would end at once."""
        if summary.exit_reason.startswith("run.max_wall_s"):
            return " run.max_wall_s=N, N above the time that is over"
        if summary.exit_reason != "finished":
            return ""
        done = summary.steps >= self._steps
        return f" run.steps=N, N above {self._steps}" if done else " budget.tokens=N, N above those that are used up"

    def last_words(self, folder: Path, *, model: Path | None, saved: bool = True, limit: str = "") -> None:
        """End the live view and print where the model is, how the page is made and how the run is resumed. ``saved``: there is a checkpoint;
        ``limit``: a setting that a resume needs besides."""
        self.stop()
        run = shlex.quote(str(folder))
        export = f"; fr3e export {run} OUT makes it of the last checkpoint" if saved else ", and there is no checkpoint"
        for name, text in (
            ("model", str(model) if model else f"not written{export}"),
            ("page", f"fr3e report {run}"),
            ("resume", f"the same command with run.dir={run} resume=auto{limit}"),
        ):
            if self._mode != "off":
                self._print(f"{name:<7} {printable(text)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        self._console.file.flush()

    def panel(self) -> RenderableType:
        top = Table.grid(expand=True, padding=(0, 2))
        top.add_column()
        top.add_column(ratio=1)
        top.add_column(justify="right")
        bar = ProgressBar(total=self._steps, completed=self._step, complete_style="green", finished_style="green")
        top.add_row(Text(f"step {self._step}/{self._steps}", style="bold"), bar, self._eta.text(self._step))
        parts: list[RenderableType] = [top]
        if self._waits:
            parts.append(Text(self._waits, style="yellow", overflow="fold"))
        of = "reward" if self._graded else "accuracy"
        parts += [Text(), _numbers(self._metrics), Text(), _idle(self._metrics), _last_row(self._metrics, self._trend, of)]
        if notes := self._newest_notes():
            parts += [Text(), *(Text(f"- {note}", style="dim", overflow="fold") for note in notes)]
        return Panel(Group(*parts), title=Text(f"FR3E  {self._name}"), title_align="left", border_style="cyan")

    def _newest_notes(self) -> list[str]:
        """Return the first lines of the newest notes, as many as the terminal has room for; the events log has the rest."""
        width, room, shown = max(self._console.width - 6, 20), self._console.height - _OTHERS, list[str]()
        for note in reversed(self._notes):
            line = note.partition("\n")[0]
            room -= math.ceil(cell_len(line) / width)
            if shown and room < 0:
                break
            shown.insert(0, line)
        return shown


def sparkline(values: deque[float]) -> str:
    """Fractions as a row of bars, 0 at the bottom and 1 at the top."""
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[min(int(max(value, 0.0) * len(bars)), len(bars) - 1)] for value in values)


def _numbers(metrics: Mapping[str, float]) -> Table:
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in range(3):
        table.add_column(style="dim", no_wrap=True)
        table.add_column(style="bold", ratio=1, overflow="fold")
    cells = list(figures(metrics).items())
    for row in range(0, len(cells), 3):
        table.add_row(*(text for cell in cells[row : row + 3] for text in cell))
    return table


def _idle(metrics: Mapping[str, float]) -> Text:
    shares = [(role, metrics.get(f"idle/{role}_fraction")) for role in ROLES]
    shown = "  ".join(f"{role} {'-' if share is None else f'{share:.0%}'}" for role, share in shares)
    return Text.assemble(("idle  ", "dim"), shown)


def _last_row(metrics: Mapping[str, float], trend: deque[float], of: str) -> Text:
    overlap = metrics.get("overlap/fraction")
    row = Text.assemble(("overlap ", "dim"), "-" if overlap is None else f"{overlap:.0%}")
    return row if len(trend) < 2 else Text.assemble(row, (f"   {of} by step  ", "dim"), (sparkline(trend), "green"))


def result_table(summary: Summary, *, narrow: bool = False) -> RenderableType:
    """The before/after table, if both were measured, and below it what the run cost. ``narrow``: intervals on a line of their own."""
    parts: list[RenderableType] = []
    by_label = {record["label"]: EvaluationResult.from_record(record) for record in summary.evaluations}
    if "before" in by_label and "after" in by_label:
        table = Table(title=f"{summary.name}: before and after", title_justify="left")
        for heading in ("", "before", "after", "change"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for row in comparison(by_label["before"], by_label["after"]):
            table.add_row(*(cell.replace(" [", "\n[") if narrow else cell for cell in row))
        parts.append(table)
    idle = ", ".join(f"{role} {share:.0%}" for role, share in summary.idle_fraction.items())
    groups = ", ".join(f"{outcome.replace('_', ' ')} {number}" for outcome, number in summary.groups.items() if number)
    first = "-" if summary.first_step_s is None else duration(summary.first_step_s)
    lines = [
        f"{summary.exit_reason}: {summary.steps} steps in {duration(summary.wall_s)}, the first after {first}",
        f"overlap of generation and learning {summary.overlap_fraction:.0%}; idle: {idle or '-'}",
        f"staleness mean {summary.staleness_mean:.2f}, max {summary.staleness_max} versions",
        f"tokens generated {count(summary.tokens_generated)}, trained {count(summary.tokens_trained)}; groups: {groups or '-'}",
    ]
    return Group(*parts, *(Text(printable(line)) for line in lines))
