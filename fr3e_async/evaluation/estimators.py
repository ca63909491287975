"""Estimates from correct and wrong samples of problems: pass@k, maj@k, and 95 % intervals that know problems from samples. Pure.

Problems are the independent units; samples of one problem resemble each other. So each problem gives one value first, and all
intervals are over problems. Knows nothing of engines, verifiers and files.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fr3e_async.algorithm.values import wilson

RESAMPLES = 2000
_PIECE = 1 << 20  # random indices drawn at once: bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems with its 95 % interval. *Example*: ``Estimate(value=0.5, low=0.4, high=0.6)``."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that k of a problem's samples, drawn without putting back, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that k fresh samples do (Chen et al. 2021, *Evaluating Large Language Models Trained on Code*,
    equation 1); as a product of ratios, so that no binomial coefficient overflows. Raises ``ValueError`` unless 1 <= k <= n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {samples} samples with {correct} correct ones")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


def budgets(k: int) -> list[int]:
    """The powers of two below k, and k: the k' that pass@k' is reported for. *Example*: 1, 2, 4, 8, 10 for 10."""
    return [*(1 << i for i in range(k.bit_length()) if 1 << i < k), k]


def majority(votes: Iterable[tuple[str | None, bool]]) -> float:
    """The expected share of correct answers if the most frequent answer is taken; ties are drawn by lot.

    A vote is (answer, was it correct); None is no answer and does not vote, and where nobody votes nothing is correct. Answers are
    the same if their texts are: an answer whose samples were scored differently counts with its share of correct ones.
    """
    counted = [(answer, correct) for answer, correct in votes if answer is not None]
    count = Counter(answer for answer, _ in counted)
    if not count:
        return 0.0
    correct = Counter(answer for answer, its in counted if its)
    most = max(count.values())
    winners = [answer for answer, number in count.items() if number == most]
    return math.fsum(correct[answer] / most for answer in winners) / len(winners)


def effective_samples(rates: Sequence[float], *, samples: int) -> float:
    """Independent samples worth as much as ``samples`` on ``len(rates)`` problems with these shares of correct ones.

    Samples of one problem resemble each other, so k samples of P problems tell less than k·P single ones. The variance of
    the mean is estimated between problems and turned into a count p(1 - p) / variance, which lies in [P, k·P].
    """
    problems = len(rates)
    mean = math.fsum(rates) / problems
    if problems < 2 or samples <= problems:
        return float(problems)
    variance = math.fsum((rate - mean) ** 2 for rate in rates) / (problems - 1) / problems
    if variance == 0 or mean in (0.0, 1.0):
        return float(problems)  # the data say nothing about how samples differ: the cautious end
    return min(max(mean * (1 - mean) / variance, problems), samples)


def share(rates: Sequence[float], *, samples: int) -> Estimate:
    """The mean of values in [0, 1], one a problem, with the Wilson interval of its effective samples.

    The interval keeps a width at means of 0 and 1, where that of a bootstrap has none.
    """
    mean = math.fsum(rates) / len(rates)
    effective = effective_samples(rates, samples=samples)
    low, high = wilson(mean * effective, effective)
    return Estimate(value=mean, low=low, high=high)


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value a problem, with the percentile interval of 2,000 means over problems drawn again. Same seed, same interval."""
    numbers = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng([seed, len(numbers)])
    rows = max(1, _PIECE // len(numbers))
    means = [_means(numbers, rng, min(rows, RESAMPLES - start)) for start in range(0, RESAMPLES, rows)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    mean = math.fsum(values) / len(numbers)
    return Estimate(value=mean, low=min(float(low), mean), high=max(float(high), mean))


def bootstrapped_share(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """``bootstrap`` of values in [0, 1]. If all are the same, it has no width, and the Wilson interval stands in."""
    if len(set(values)) == 1:
        return share(values, samples=len(values))
    return bootstrap(values, seed=seed)


def _means(values: NDArray[np.float64], rng: np.random.Generator, rows: int) -> NDArray[np.float64]:
    return values[rng.integers(0, len(values), size=(rows, len(values)))].mean(axis=1)
