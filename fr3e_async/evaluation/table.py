"""Scores of several benchmarks as a table of text for a console. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fr3e_async.evaluation.estimators import Estimate
from fr3e_async.evaluation.scores import Scores

HEAD = (
    "benchmark", "problems", "k", "avg@k", "reward", "pass@k", "maj@k", "tokens", "no box", "cut off", "unknown", "all right", "all wrong",
)  # fmt: skip


def scores_table(scores: Mapping[str, Scores]) -> str:
    """One line a benchmark, in percent with 95 % intervals; below them the mean over benchmarks if there are several.

    The mean reward is there where it is not the accuracy, in its own unit.
    """
    rows: list[tuple[str, ...]] = [HEAD, *(_row(name, its) for name, its in scores.items())]
    if len(scores) > 1:
        mean = sum(its.avg.value for its in scores.values()) / len(scores)
        rows.append(("mean", "", "", f"{100 * mean:.1f}", *[""] * (len(HEAD) - 4)))
    if all(its.reward.value == its.avg.value for its in scores.values()):
        rows = [(*row[:4], *row[5:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, scores: Scores) -> tuple[str, ...]:
    return (
        name,
        str(scores.problems),
        str(scores.k),
        _percent(scores.avg),
        str(scores.reward),
        _percent(scores.pass_at[scores.k]),
        _percent(scores.maj),
        f"{scores.length.value:.0f}",
        f"{100 * scores.unanswered.value:.1f}",
        f"{100 * scores.truncated.value:.1f}",
        f"{100 * scores.unknown_share.value:.1f}",
        str(scores.all_right),
        str(scores.all_wrong),
    )


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
