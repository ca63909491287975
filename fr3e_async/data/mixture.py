"""Weights of sources as epochs: how often each problem of a source is drawn.

A source of n prompts and weight w gives round(w·n) draws to every epoch. Its whole part is that many copies of every prompt,
each with an id of its own; the rest is one more copy of which an epoch draws a part, and the parts of the epochs follow
each other round the source in a seeded order, so that over any number of epochs no prompt is ahead of another by more than one
draw (``stream`` does that). With weight 1 everywhere an epoch is all problems once, as the paper mixes its two sets.

Pure: knows prompts and numbers, no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fr3e_async.errors import DataError
from fr3e_async.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive prompts of which each epoch draws ``quota``. *Example*: ``Part(name="gsm8k", size=7473, quota=3736)``."""

    name: str
    size: int  # prompts
    quota: int  # prompts drawn in an epoch, 1..size

    def __post_init__(self) -> None:
        if not 1 <= self.quota <= self.size:
            raise ValueError(f"part {self.name}: quota must be in 1..{self.size}, got {self.quota}")


def copy_id(uid: str, number: int) -> str:
    """The id of a prompt's ``number``-th copy, from 1; the first has the prompt's own."""
    return uid if number == 1 else f"{uid}~{number}"


def draws(weight: float, size: int) -> int:
    """round(weight · size), halves upwards: the draws of an epoch."""
    return math.floor(weight * size + 0.5)


def mix(
    sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float], *, setting: str
) -> tuple[tuple[Prompt, ...], tuple[Part, ...]]:
    """Prompts with copies, and the parts they lie in, for ``PromptStream``. ``setting`` names the weights in messages.

    ``DataError`` for a source of which an epoch would draw nothing.
    """
    prompts: list[Prompt] = []
    parts: list[Part] = []
    for name, own in sources.items():
        wanted = draws(weights[name], len(own))
        if wanted == 0:
            raise DataError(f"{setting}: with weight {weights[name]:g} no epoch draws any of the {len(own)} problems of {name}")
        quotas = [len(own)] * (wanted // len(own)) + ([wanted % len(own)] if wanted % len(own) else [])
        for number, quota in enumerate(quotas, 1):
            prompts += [replace(prompt, uid=copy_id(prompt.uid, number)) if number > 1 else prompt for prompt in own]
            parts.append(Part(name=copy_id(name, number), size=len(own), quota=quota))
    return tuple(prompts), tuple(parts)


def mixture_note(sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float]) -> str:
    """One line for a person. *Example*: ``"an epoch draws 3 prompts: a 2 of 2 (67 %), b 1 of 4 (33 %)"``."""
    counts = {name: draws(weights[name], len(own)) for name, own in sources.items()}
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count:,} of {len(sources[name]):,} ({count / total:.0%})" for name, count in counts.items())
    return f"an epoch draws {total:,} prompts: {shares}"
