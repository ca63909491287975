"""Bound the entropy over the whole vocabulary by an interval, from the log-probs of the k likeliest tokens.

With H_k = -Σ p ln p over the k tokens, r = 1 - Σ p the mass of the other V - k, and p_k the smallest of the k::

    H_k - r ln p_k  <=  H  <=  H_k + r ln((V - k) / r)

below because no other token is likelier than p_k, above because r spread evenly has the most entropy. The log-probs
come from a float32 softmax, so each is only known to within ``rounding``; the interval holds for all distributions
that they can stand for. Pure: numpy in, numpy out.
"""

import math

import numpy as np
from numpy.typing import NDArray

UNIT = 2.0**-24  # relative rounding error of one float32 operation
LANES = 8  # partial sums that a float32 softmax keeps side by side, at the least; each adds V / LANES terms one after another
FEW = 32  # further roundings in one log-prob: exp, log, subtractions, adding up the lanes


def rounding(vocabulary: int) -> float:
    """Bound the error of a float32 log-prob, nats. The sum of V terms dominates it: tiny terms added to a large sum are lost."""
    return (vocabulary / LANES + FEW) * UNIT


def entropy_interval(top: NDArray[np.floating], *, vocabulary: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bound entropies by the likeliest tokens: ([L] lowest, [L] highest) float64, nats.

    ``top``: [L, k] log-probs of the k likeliest tokens in any order, nats, -inf allowed; 1 <= k <= ``vocabulary``.
    Raises ``ValueError`` for another k. Ties and tokens of probability 0 are no special case.
    """
    count = top.shape[1]
    if not 1 <= count <= vocabulary:
        raise ValueError(f"{count} likeliest tokens of a vocabulary of {vocabulary}")
    logprobs = np.minimum(top.astype(np.float64), 0.0)
    slack = rounding(vocabulary) + UNIT * np.where(np.isfinite(logprobs), -logprobs, 0.0)
    fewest, most = np.exp(logprobs - slack), np.minimum(np.exp(logprobs + slack), 1.0)
    others, smallest = vocabulary - count, most.min(axis=1)
    least_rest = np.maximum(1.0 - most.sum(axis=1), 0.0)
    most_rest = np.minimum(np.maximum(1.0 - fewest.sum(axis=1), 0.0), others * smallest)
    low, high = _own_entropy(fewest, most)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(least_rest > 0, -least_rest * np.log(smallest), 0.0)
    limit = math.log(vocabulary)
    return np.clip(low + below, 0.0, limit), np.clip(high + _spread_evenly(most_rest, others), 0.0, limit)


def midpoint(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn intervals into ([L] centre, [L] half-width) float32, rounded so that centre ± half-width still covers [low, high]."""
    centre = ((low + high) / 2).astype(np.float32)
    exact = np.maximum(high - centre, centre - low)
    half = exact.astype(np.float32)
    return centre, np.where(half < exact, np.nextafter(half, np.float32(np.inf)), half)


def nothing_known(length: int, *, vocabulary: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[L] centres and half-widths of the interval [0, ln V]."""
    return midpoint(np.zeros(length), np.full(length, math.log(vocabulary)))


def _own_entropy(fewest: NDArray[np.float64], most: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest Σ -p ln p with each p between its limits. -p ln p rises up to 1/e and falls from there."""
    at_fewest, at_most = _plogp(fewest), _plogp(most)
    over_the_top = (fewest < 1 / math.e) & (most > 1 / math.e)
    highest = np.where(over_the_top, 1 / math.e, np.maximum(at_fewest, at_most))
    return np.minimum(at_fewest, at_most).sum(axis=1), highest.sum(axis=1)


def _spread_evenly(mass: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The most entropy that up to ``mass`` on ``count`` tokens can have: r ln(count / r), which rises up to r = count / e."""
    if count == 0:
        return np.zeros_like(mass)
    mass = np.minimum(mass, count / math.e)
    return _plogp(mass) + mass * math.log(count)


def _plogp(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """-p ln p, 0 at 0."""
    return -p * np.log(np.where(p > 0, p, 1.0))
