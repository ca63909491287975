"""What prompts are like: how long their answers are and how often they are correct. Drawn group by group, by number.

The n-th group of a seed is the same whatever system answers it, so two simulated systems are compared on the same prompts.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

TRIES = 8  # draws of a length beyond a branch's position, and of an anchor that keeps its distance


class MeasuredAnswer(NamedTuple):
    """One rollout: tokens of its completion, and whether it is correct; None: nobody can tell."""

    length: int
    correct: bool | None


class Tree(Protocol):
    """A group's rollouts, as they will come out."""

    prompt: int  # tokens

    def base(self, number: int) -> MeasuredAnswer: ...

    def positions(self, base: int, *, count: int, min_gap: int) -> list[int]:
        """At most ``count`` positions of anchors on a base, ascending."""

    def branch(self, base: int, anchor: int, position: int) -> MeasuredAnswer:
        """The next continuation of a base's ``anchor``-th anchor (from 0), which stands at ``position``."""


class Workload(Protocol):
    def tree(self, seed: int, number: int, *, max_response: int) -> Tree: ...


class LogNormalWorkload(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="lognormal"):
    """Lengths are log-normal, in part common to a prompt; correct with a probability of the prompt's own, Beta-distributed."""

    mean: float  # tokens of a response
    sigma: float  # tokens, standard deviation
    prompt: int = 200  # tokens
    common: float = 0.5  # part of the variance of log length that is the prompt's
    correct_alpha: float = 0.6  # Beta(α, β) of the chance to be correct: most prompts are easy or hard
    correct_beta: float = 0.6

    def tree(self, seed: int, number: int, *, max_response: int) -> Tree:
        return _LogNormalTree(self, f"{seed}/{number}", max_response)


class _LogNormalTree:
    """Each rollout is drawn by its place in the tree alone, so that no order of asking changes it."""

    def __init__(self, workload: LogNormalWorkload, name: str, max_response: int) -> None:
        variance, chance = math.log1p((workload.sigma / workload.mean) ** 2), random.Random(name)
        self.prompt = workload.prompt
        self._name, self._most = name, max_response
        self._spread = math.sqrt(variance * (1 - workload.common))
        self._centre = math.log(workload.mean) - variance / 2 + chance.gauss(0.0, math.sqrt(variance * workload.common))
        self._correct = chance.betavariate(workload.correct_alpha, workload.correct_beta)
        self._drawn: Counter[tuple[int, int]] = Counter()  # branches by base and anchor

    def base(self, number: int) -> MeasuredAnswer:
        chance = random.Random(f"{self._name}/{number}")
        return self._answer(chance, self._response(chance))

    def positions(self, base: int, *, count: int, min_gap: int) -> list[int]:
        chance = random.Random(f"{self._name}/{base}/places")
        return scattered(chance, self.base(base).length, count=count, min_gap=min_gap)

    def branch(self, base: int, anchor: int, position: int) -> MeasuredAnswer:
        chance = random.Random(f"{self._name}/{base}/{anchor}/{self._drawn[base, anchor]}")
        self._drawn[base, anchor] += 1
        lengths = (self._response(chance) - position for _ in range(TRIES))
        return self._answer(chance, next((length for length in lengths if length > 0), 1))

    def _response(self, chance: random.Random) -> int:
        return min(self._most, max(1, round(math.exp(self._centre + chance.gauss(0.0, 1.0) * self._spread))))

    def _answer(self, chance: random.Random, length: int) -> MeasuredAnswer:
        return MeasuredAnswer(length, chance.random() < self._correct)


def scattered(chance: random.Random, length: int, *, count: int, min_gap: int) -> list[int]:
    """At most ``count`` token positions in [1, length - 1] with at least ``min_gap`` between them; fewer in a short response."""
    positions: list[int] = []
    for _ in range(TRIES * count if length > 1 else 0):
        position = chance.randrange(1, length)
        if all(abs(position - other) >= min_gap for other in positions):
            positions.append(position)
            if len(positions) == count:
                break
    return sorted(positions)


class MeasuredGroup(NamedTuple):
    """A group that was measured: its bases, and for each base that was branched its anchors with their branches.

    *Example*: ``MeasuredGroup(200, (MeasuredAnswer(50, True),), ((0, ((20, (MeasuredAnswer(31, False),)),)),))``: one base of 50 tokens, with one
    branch of 31 tokens from its anchor at position 20.
    """

    prompt: int  # tokens
    bases: tuple[MeasuredAnswer, ...]
    anchors: tuple[
        tuple[int, tuple[tuple[int, tuple[MeasuredAnswer, ...]], ...]], ...
    ]  # (base, (position, branches) by position)


class MeasuredWorkload(msgspec.Struct, frozen=True, tag_field="kind", tag="measured"):
    """Groups of a run, drawn with replacement, each with its own lengths, anchors and verdicts (bootstrap).

    A group that needs more rollouts than its case has draws again from those it has.
    """

    cases: Sequence[MeasuredGroup]

    def tree(self, seed: int, number: int, *, max_response: int) -> Tree:
        chance = random.Random(seed * 1_000_003 + number)
        return _MeasuredTree(self.cases[chance.randrange(len(self.cases))], chance, max_response)


class _MeasuredTree:
    def __init__(self, case: MeasuredGroup, chance: random.Random, max_response: int) -> None:
        self.prompt = case.prompt
        self._case, self._chance, self._most = case, chance, max_response
        self._anchors = dict(case.anchors)
        self._bases: dict[int, MeasuredAnswer] = {}
        self._drawn: dict[tuple[int, int], int] = {}

    def base(self, number: int) -> MeasuredAnswer:
        if number not in self._bases:
            bases = self._case.bases
            chosen = bases[number] if number < len(bases) else self._chance.choice(bases)
            self._bases[number] = MeasuredAnswer(min(chosen.length, self._most), chosen.correct)
        return self._bases[number]

    def positions(self, base: int, *, count: int, min_gap: int) -> list[int]:
        length = self.base(base).length
        measured = [at for at, _ in self._anchors.get(base, ()) if at < length]
        if base in self._anchors and len(measured) >= min(count, len(self._anchors[base])):
            return measured[:count]
        return scattered(self._chance, length, count=count, min_gap=min_gap)

    def branch(self, base: int, anchor: int, position: int) -> MeasuredAnswer:
        number = self._drawn.get((base, anchor), 0)
        self._drawn[base, anchor] = number + 1
        known = next((answers for at, answers in self._anchors.get(base, ()) if at == position), ())
        if known:
            chosen = known[number] if number < len(known) else self._chance.choice(known)
        else:
            longer = [b for b in self._case.bases if b.length > position]
            chosen = self._chance.choice(longer or self._case.bases)
            chosen = MeasuredAnswer(max(1, chosen.length - position), chosen.correct)
        return MeasuredAnswer(max(1, min(chosen.length, self._most - position)), chosen.correct)
