"""The statistics of the comparison: curves on a common axis, intervals over seeds, paired tests. Pure: plain numbers in and out.

All arms of a seed have the same model, the same problems and the same order of prompts, so arms are compared seed by seed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy import stats

Points = Sequence[tuple[float, float]]  # (x, y), x never falling


def at(points: Points, x: float) -> float:
    """y at ``x``, linear between the points and constant beyond them. Raises ``ValueError`` without points."""
    if not points:
        raise ValueError("a curve needs a point")
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def mean_over(points: Points, end: float) -> float:
    """Mean of y over x in [0, end]: the area under the curve divided by ``end``. It tells how soon and how much."""
    xs = sorted({0.0, end, *(x for x, _ in points if 0 < x < end)})
    curve = [(x, at(points, x)) for x in xs]
    return sum((y0 + y1) / 2 * (x1 - x0) for (x0, y0), (x1, y1) in pairwise(curve)) / end


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over seeds with its 95 % t-interval; of one seed the interval is infinite."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        n = len(values)
        mean = math.fsum(values) / n
        if n < 2:
            return cls(mean=mean, low=-math.inf, high=math.inf, n=n)
        half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
        return cls(mean=mean, low=mean - half, high=mean + half, n=n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A difference over seeds, seed by seed."""

    difference: Mean
    p: float  # two-sided paired t-test; nan with fewer than two pairs
    p_signs: float  # two-sided exact test over all 2^n choices of signs; its smallest value is 2^(1 - n)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """``first`` - ``second`` over the seeds that both have; None if there is none."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    return Paired(difference=Mean.of(differences), p=_t_test(differences), p_signs=_sign_test(differences))


def _t_test(differences: Sequence[float]) -> float:
    if len(differences) < 2:
        return math.nan
    if len(set(differences)) == 1:  # no spread: the statistic is 0 / 0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _sign_test(differences: Sequence[float]) -> float:
    """Share of the sign patterns whose sum is at least as far from 0 as the one that was seen."""
    seen, n = abs(math.fsum(differences)), len(differences)
    sums = (abs(math.fsum(d if mask >> i & 1 else -d for i, d in enumerate(differences))) for mask in range(2**n))
    return sum(total >= seen - 1e-12 for total in sums) / 2**n


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the chance of any false finding among them stays below the level. nan stays nan."""
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    adjusted, highest = list(ps), 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


# ---- the task of forks ----


def decision_positions(problem_text: str, pieces: Sequence[str]) -> list[int]:
    """Where in a response the turns are taken: indices of the tokens that name the term, on the lines of forks.

    ``pieces``: the response's tokens as text, in which a term such as ``+5`` is one token (the toy's tokenizer).
    """
    forks = {number for number, line in re.findall(r"\n(\d+)\) (\S+)", problem_text) if "|" in line or "/" in line}
    found, label = [], ""
    for position, piece in enumerate(pieces):
        if heading := re.fullmatch(r"\n?(\d+)\) ", piece):
            label = heading[1]
        elif label in forks and re.fullmatch(r"[-+*]\d", piece):
            found.append(position)
            label = ""
    return found
