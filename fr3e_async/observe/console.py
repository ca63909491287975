"""What a person sees while a run goes on: a live view on a terminal, one line a step elsewhere, a table at the end.

Takes metrics by the names of ``metrics`` and shows what is there; knows nothing of the loop that makes them. Writes to one
rich console only, so that a test can read what it wrote.
"""

from __future__ import annotations

import io
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fr3e_async.config import Config
from fr3e_async.errors import printable
from fr3e_async.evaluation.accuracy import EvaluationResult, comparison
from fr3e_async.observe.summary import Summary

Mode = Literal["live", "plain", "off"]
ROLES = ("generators", "explorers", "verifiers", "learner")
_NOTES = 6  # newest notes that the live view shows
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
    return lambda text: None if config.observe.console == "off" else print(text, flush=True)


def duration(seconds: float) -> str:
    """``4s``, ``3m05s`` or ``2h07m``."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One step's numbers as text, in the order in which they are shown; ``-`` where a metric is not reported."""

    step: str
    reward: str
    accuracy: str
    entropy: str
    all_right: str
    all_wrong: str
    staleness: str
    tokens_per_s: str
    step_s: str

    @classmethod
    def of(cls, step: int, steps: int, metrics: Mapping[str, float]) -> Line:
        def shown(name: str, layout: str = ".3f") -> str:
            return format(metrics[name], layout) if name in metrics else "-"

        rate = metrics.get("tokens/rate_per_s")
        return cls(
            step=f"{step}/{steps}",
            reward=shown("reward/mean"),
            accuracy=shown("reward/accuracy"),
            entropy=shown("rollout/entropy_nats"),
            all_right=shown("groups/all_right", ".0f"),
            all_wrong=shown("groups/all_wrong", ".0f"),
            staleness=f"{shown('lag/versions_mean', '.2f')} max {shown('lag/versions_max', '.0f')}",
            tokens_per_s="-" if rate is None else count(rate),
            step_s=f"{shown('time/step_s', '.1f')} s",
        )

    def plain(self, eta: str) -> str:
        return (
            f"step {self.step}  reward {self.reward}  accuracy {self.accuracy}  entropy {self.entropy}  "
            f"all right/wrong {self.all_right}/{self.all_wrong}  stale {self.staleness}  {self.tokens_per_s} tok/s  "
            f"{self.step_s}  ETA {eta}"
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
        if not self._times:
            return "-"
        return duration((self._steps - step) * sum(self._times) / len(self._times))


class ConsoleView:
    """The view of one run. ``start`` and ``stop`` are for the live view; both are harmless otherwise."""

    def __init__(self, *, mode: Mode, console: Console, name: str, steps: int) -> None:
        self._mode, self._console, self._name, self._steps = mode, console, name, steps
        self._eta = Eta(steps)
        self._step, self._metrics = 0, dict[str, float]()
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._trend: deque[float] = deque(maxlen=_TREND)
        # The screen is written by us alone: with redirection on, rich would also catch prints of libraries.
        self._live = Live(console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)

    def start(self) -> None:
        if self._mode == "live":
            self._live.start()
            self._live.update(self._view())

    def stop(self) -> None:
        """Leave the last state of the live view on the screen. Idempotent."""
        self._live.stop()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""
        self._step, self._metrics = step, dict(metrics)
        self._eta.add(metrics)
        if "reward/accuracy" in metrics:
            self._trend.append(metrics["reward/accuracy"])
        if self._mode == "plain":
            self._print(Line.of(step, self._steps, metrics).plain(self._eta.text(step)))
        elif self._mode == "live":
            self._live.update(self._view())

    def note(self, text: str) -> None:
        """One line about an event. It may quote ids of a dataset, errors of libraries: nothing in it reaches the terminal as a command."""
        text = printable(text)
        self._notes.append(text)
        if self._mode == "plain":
            self._print(f"- {text}")
        elif self._mode == "live":
            self._live.update(self._view())

    def finish(self, summary: Summary) -> None:
        """End the live view and print the before/after table and the run's numbers."""
        self.stop()
        if self._mode != "off":
            self._console.print(result_table(summary))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        self._console.file.flush()

    def _view(self) -> RenderableType:
        line = Line.of(self._step, self._steps, self._metrics)
        top = Table.grid(expand=True, padding=(0, 2))
        top.add_column()
        top.add_column(ratio=1)
        top.add_column(justify="right")
        bar = ProgressBar(total=self._steps, completed=self._step, complete_style="green", finished_style="green")
        top.add_row(Text(f"step {line.step}", style="bold"), bar, f"{line.step_s}/step   ETA {self._eta.text(self._step)}")
        parts: list[RenderableType] = [top, Text(), _numbers(line, self._metrics), Text(), _idle(self._metrics)]
        if len(self._trend) > 1:
            parts += [Text.assemble(("accuracy by step  ", "dim"), (sparkline(self._trend), "green"))]
        if self._notes:
            parts += [Text(), *(Text(f"- {note}", style="dim", overflow="ellipsis", no_wrap=True) for note in self._notes)]
        return Panel(Group(*parts), title=Text(f"FR3E  {self._name}"), title_align="left", border_style="cyan")


def sparkline(values: deque[float]) -> str:
    """Fractions as a row of bars, 0 at the bottom and 1 at the top."""
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[min(int(max(value, 0.0) * len(bars)), len(bars) - 1)] for value in values)


def _numbers(line: Line, metrics: Mapping[str, float]) -> Table:
    loss, gradient = metrics.get("train/loss"), metrics.get("train/grad_norm")
    cells = [
        ("accuracy", line.accuracy), ("reward", line.reward), ("entropy", line.entropy),
        ("staleness", line.staleness), ("all right", line.all_right), ("all wrong", line.all_wrong),
        ("tokens/s", line.tokens_per_s), ("loss", "-" if loss is None else f"{loss:+.4f}"),
        ("grad norm", "-" if gradient is None else f"{gradient:.3f}"),
    ]  # fmt: skip
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in range(3):
        table.add_column(style="dim")
        table.add_column(style="bold", ratio=1)
    for row in range(0, len(cells), 3):
        table.add_row(*(text for cell in cells[row : row + 3] for text in cell))
    return table


def _idle(metrics: Mapping[str, float]) -> Text:
    shares = [(role, metrics.get(f"idle/{role}_fraction")) for role in ROLES]
    shown = "   ".join(f"{role} {'-' if share is None else f'{share:.0%}'}" for role, share in shares)
    overlap = metrics.get("overlap/fraction")
    return Text.assemble(("idle  ", "dim"), shown, "" if overlap is None else f"   overlap {overlap:.0%}")


def result_table(summary: Summary) -> RenderableType:
    """The before/after table, if both were measured, and below it what the run cost."""
    parts: list[RenderableType] = []
    by_label = {record["label"]: EvaluationResult.from_record(record) for record in summary.evaluations}
    if "before" in by_label and "after" in by_label:
        table = Table(title=f"{summary.name}: before and after", title_justify="left")
        for heading in ("", "before", "after", "change"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for row in comparison(by_label["before"], by_label["after"]):
            table.add_row(row.name, row.before, row.after, row.change)
        parts.append(table)
    idle = ", ".join(f"{role} {share:.0%}" for role, share in summary.idle_fraction.items())
    groups = ", ".join(f"{fate} {number}" for fate, number in summary.groups.items() if number)
    first = "-" if summary.first_step_s is None else duration(summary.first_step_s)
    lines = [
        f"{summary.exit_reason}: {summary.steps} steps in {duration(summary.wall_s)}, the first after {first}",
        f"overlap of generation and learning {summary.overlap_fraction:.0%}; idle: {idle or '-'}",
        f"staleness mean {summary.staleness_mean:.2f}, max {summary.staleness_max} versions",
        f"tokens generated {count(summary.tokens_generated)}, trained {count(summary.tokens_trained)}; groups: {groups or '-'}",
    ]
    return Group(*parts, *(Text(printable(line)) for line in lines))
