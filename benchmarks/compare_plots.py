"""Curves of the comparison as small multiples: in each panel one arm beside the reference, means over seeds with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from compare_arms import REFERENCE
from compare_stats import Mean, Points, at

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

POINTS = 40
COLUMNS = 4
OWN, OTHER = "#d1495b", "#30638e"


def draw(curves: Mapping[str, Sequence[Points]], path: Path, *, what: str, over: str) -> list[str]:
    """Write the SVG, the same bytes for the same numbers; a markdown link to it. Without any point: nothing."""
    curves = {arm: with_points for arm, its in curves.items() if (with_points := [points for points in its if points])}
    if not curves:
        return []
    arms = [arm for arm in curves if arm != REFERENCE] or list(curves)
    rows = -(-len(arms) // COLUMNS)
    with matplotlib.rc_context({"svg.hashsalt": "fr3e", "font.size": 8}):
        figure, panels = pyplot.subplots(
            rows,
            min(COLUMNS, len(arms)),
            figsize=(11, 0.6 + 2.2 * rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for panel in panels.flat[len(arms) :]:
            panel.set_axis_off()
        for arm, panel in zip(arms, panels.flat, strict=False):
            if REFERENCE in curves:
                band(panel, curves[REFERENCE], OWN, REFERENCE, "--")
            band(panel, curves[arm], OTHER, arm, "-")
            panel.grid(alpha=0.3)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.legend(loc="best", frameon=False)
        figure.supxlabel(over)
        figure.supylabel(what)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return [f"![{what} over {over}]({path.name})", ""]


def band(panel: Axes, curves: Sequence[Points], colour: str, label: str, style: str) -> None:
    end = min(curve[-1][0] for curve in curves)
    xs = [end * i / POINTS for i in range(POINTS + 1)]
    means = [Mean.of([at(curve, x) for curve in curves]) for x in xs]
    panel.plot(xs, [mean.mean for mean in means], style, color=colour, label=label, linewidth=1.6)
    if len(curves) > 1:
        panel.fill_between(xs, [mean.low for mean in means], [mean.high for mean in means], color=colour, alpha=0.18, linewidth=0)
