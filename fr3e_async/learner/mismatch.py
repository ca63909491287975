"""Why the samplers' log-probs are not the learner's: read off the rollouts of a step that was refused. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fr3e_async.learner.dump import Measured

MOST = 0.8  # part of the rollouts from which all of them count as concerned
GROWTH = 3.0  # by which errors at the end of responses exceed those at the beginning, if positions are the cause


def likeliest(share: Sequence[Measured], *, version: int, bound: float) -> str:
    """The likeliest cause, from tokens of age 0. ``bound``: nats that a rollout's mean difference may have."""
    errors = list(_errors(share, version))
    wrong = [one for one in errors if one.mean() > bound]
    if len(wrong) < MOST * len(errors):
        return f"one engine with other weights: {len(wrong)} of {len(errors)} rollouts differ, and the others do not"
    begin, end = (np.mean([np.mean(part) for one in wrong if len(part := one[span])] or [0.0]) for span in _EDGES)
    if end > GROWTH * max(begin, bound):
        return f"positions (rope settings, sliding window): from {begin:.2g} nats at the beginning of responses to {end:.2g} at the end"
    return (
        "what all engines share, since all rollouts differ alike: sampling.temperature, engine.options, the output head or the "
        "vocabulary, or weights that they do not load as the learner names them"
    )


_EDGES = (slice(0, 4), slice(-4, None))  # tokens at the beginning and the end of a response


def _errors(share: Sequence[Measured], version: int) -> Iterator[NDArray[np.floating]]:
    """[tokens of age 0] |log-prob − log-prob| of each rollout that has any and whose proximal log-probs are known."""
    for measured in share:
        apart = np.abs(measured.prox - measured.sample.behaviour_logprobs)[measured.sample.versions == version]
        if len(apart) and np.isfinite(apart).all():
            yield apart
