"""The endless prompt stream: seeded epochs, each a permutation, and a position that is a *set* of what was consumed.

Groups finish out of order, so a position that is a number would lose or repeat prompts when a run is killed. In a mixture an epoch
may draw a part of a source only. The caller decides what counts as consumed (trained, rejected, failed). Pure: no files, no clock,
no global random state.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from fr3e_async.errors import DataError, ModelError
from fr3e_async.types import Prompt


def group_id(uid: str, epoch: int) -> str:
    """Name the group that is sampled from a prompt in one epoch: ``"<uid>@<epoch>"``."""
    return f"{uid}@{epoch}"


class PromptStream:
    """Gives every prompt of an epoch once, epoch after epoch: all prompts, or of each part of a mixture its quota.

    The order is a function of (seed, epoch) alone. An epoch is open from its first taken prompt until all of it is
    consumed; ``state()`` holds the consumed uids of the open epochs. A stream made from that state gives again what was
    taken but not consumed, first and in the same order, and then continues: over any number of kills each (prompt, epoch)
    is consumed exactly once.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        state: Mapping[str, Any] | None = None,
        taken: Sequence[str] = (),
        parts: Sequence[Part] = (),
        template: str = "",
        ends: Sequence[int] = (),
    ) -> None:
        """``state`` is what ``state()`` gave; ``taken``: groups that the caller restored; ``take`` skips them.

        ``parts``: which prompts are of which source, in the order of ``prompts``; none: each epoch has all of them.
        ``template``: digest of the chat template that made their tokens, to name it when it has changed. ``ends``: ids that end a response.
        ``DataError`` for no prompts, equal uids, or a state of other prompts, mixture or seed; ``ModelError`` for other tokens or ends.
        """
        if not prompts:
            raise DataError("data.train: no prompt is left to train on")
        self._prompts = tuple(prompts)
        self._index = {prompt.uid: index for index, prompt in enumerate(prompts)}
        if len(self._index) != len(prompts):
            raise DataError("data.train: two prompts have the same id; see data.id_field")
        if parts and sum(part.size for part in parts) != len(prompts):
            raise ValueError(f"the parts hold {sum(part.size for part in parts)} prompts, there are {len(prompts)}")
        self._seed = seed
        self._identity: dict[str, Any] = {  # must match on resume
            "seed": seed,
            "prompts": _digest(prompt.uid for prompt in prompts),
            "texts": _digest(
                text for p in prompts for text in (p.text, p.reference, *([json.dumps(p.columns)] if p.columns else []))
            ),
            "tokens": _digest(prompt.token_ids.tobytes().hex() for prompt in prompts),
            "template": template,
            "ends": list(ends),
            "mixture": [[part.name, part.size, part.quota] for part in parts],
        }
        self._parts = tuple(parts) or (Part(name="", size=len(prompts), quota=len(prompts)),)
        self._starts = list(accumulate((part.size for part in self._parts), initial=0))
        self._rounds = [self._round(number, part) for number, part in enumerate(self._parts)]
        self._ranks = [{index: rank for rank, index in enumerate(around)} for around in self._rounds]
        self._drawn = sum(part.quota for part in self._parts)  # prompts of an epoch
        self._oldest = 0  # lowest epoch with unconsumed prompts
        self._consumed: dict[int, set[int]] = {}  # by epoch, indices into prompts; no entry below the oldest
        if state is not None:
            self._restore(state)
        self._taken = {self._place(group) for group in taken}
        self._start_epoch(self._oldest)

    def take(self) -> tuple[Prompt, int]:
        """Return the next (prompt, epoch) to sample from."""
        while True:
            if self._epoch < self._oldest or self._position == len(self._order):
                self._start_epoch(max(self._epoch + 1, self._oldest))
            index = self._order[self._position]
            self._position += 1
            if index not in self._consumed.get(self._epoch, ()) and (self._epoch, index) not in self._taken:
                return self._prompts[index], self._epoch

    def mark_consumed(self, group: str) -> None:
        """Mark the group ``"<uid>@<epoch>"`` as consumed. ``take`` then skips it if it was not taken yet (restored).

        ``ValueError`` for an unknown group and for one that is consumed already: it would count twice.
        """
        epoch, index = self._place(group)
        if not self._in_epoch(index, epoch):
            raise ValueError(f"group {group!r} is not of this stream: its epoch does not draw that prompt")
        consumed = self._consumed.setdefault(epoch, set()) if epoch >= self._oldest else None
        if consumed is None or index in consumed:
            raise ValueError(f"group {group!r} was consumed before; it must not count twice")
        consumed.add(index)
        while len(self._consumed.get(self._oldest, ())) == self._drawn:
            del self._consumed[self._oldest]
            self._oldest += 1

    def prompt(self, group: str) -> Prompt:
        """The prompt that a group is sampled from. Raises ``ValueError`` for a group of another stream."""
        return self._prompts[self._place(group)[1]]

    def state(self) -> dict[str, Any]:
        """JSON-able: seed, oldest open epoch, consumed uids of each open epoch, digests of the prompts, and the mixture."""
        consumed = {
            str(epoch): sorted(self._prompts[index].uid for index in indices) for epoch, indices in sorted(self._consumed.items())
        }
        return self._identity | {"epoch": self._oldest, "consumed": consumed}

    def _place(self, group: str) -> tuple[int, int]:
        """Return (epoch, index of the prompt) of a group's name."""
        uid, _, epoch_text = group.rpartition("@")
        if uid not in self._index or not epoch_text.isdecimal():
            raise ValueError(f"group {group!r} is not of this stream")
        return int(epoch_text), self._index[uid]

    def _restore(self, state: Mapping[str, Any]) -> None:
        own = self._identity
        if state["seed"] != own["seed"]:
            raise DataError(f"run.seed is {own['seed']}, but the checkpoint's prompt stream has seed {state['seed']}")
        mixture = [list(part) for part in state.get("mixture", [])]
        if mixture != own["mixture"]:
            raise DataError(f"data.train_sources: the mixture is not that of the checkpoint: {_changed(mixture, own['mixture'])}")
        if state["prompts"] != own["prompts"]:
            raise DataError("data.train: the problems are not those of the checkpoint, so its position means nothing here")
        if state.get("texts", own["texts"]) != own["texts"]:  # checkpoints of earlier versions have no such digest
            raise DataError(
                "data.train: the problems have the ids of the checkpoint's, but other texts or answers; for a dataset of the hub "
                "name the revision that the run began with"
            )
        if state.get("tokens", own["tokens"]) != own["tokens"]:
            changed = "tokenizer" if state["template"] == own["template"] else "chat template"
            raise ModelError(
                f"model.path: its {changed} is not that of the checkpoint: the prompts have other tokens now; continue with the files that "
                "the run began with (of a hub id: model.revision)"
            )
        if (before := state.get("ends", own["ends"])) != own["ends"]:
            raise ModelError(
                f"model.path: the tokens that end a response are {own['ends']} now, those of the checkpoint were {before} "
                "(generation_config.json, config.json, the tokenizer or its chat template); continue with the files that the run began with"
            )
        self._oldest = int(state["epoch"])
        self._consumed = {int(epoch): {self._index[uid] for uid in uids} for epoch, uids in state["consumed"].items()}

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._position = epoch, 0
        self._order = self._members(epoch)
        random.Random(f"fr3e prompts {self._seed} {epoch}").shuffle(self._order)

    def _members(self, epoch: int) -> list[int]:
        """Return the indices of the prompts that an epoch draws."""
        members: list[int] = []
        for part, first, around in zip(self._parts, self._starts, self._rounds, strict=False):
            start = epoch * part.quota % part.size
            some = [around[(start + step) % part.size] for step in range(part.quota)] if around else range(part.size)
            members += [first + offset for offset in some]
        return members

    def _in_epoch(self, index: int, epoch: int) -> bool:
        number = bisect_right(self._starts, index) - 1
        part, ranks = self._parts[number], self._ranks[number]
        return not ranks or (ranks[index - self._starts[number]] - epoch * part.quota) % part.size < part.quota

    def _round(self, number: int, part: Part) -> list[int]:
        """The order in which the epochs go round a part, from epoch to epoch; empty for one that is always drawn whole.

        One order for all rounds: were each round another, an epoch across two of them could draw a prompt twice.
        """
        order = list(range(part.size)) if part.quota < part.size else []
        random.Random(f"fr3e part {self._seed} {number} {part.name}").shuffle(order)
        return order


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _changed(old: list[list[Any]], new: list[list[Any]]) -> str:
    """Name the first part of two states that differs, for a message."""
    before, after = ({name: f"{quota} of {size} prompts an epoch" for name, size, quota in parts} for parts in (old, new))
    name = next((name for name in [*before, *after] if before.get(name) != after.get(name)), "")
    return f"{name}: {before.get(name, 'none')} -> {after.get(name, 'none')}" if name else "its sources in another order"


# ---- Weights of sources as epochs: how often each problem of a source is drawn ----
# A source of n prompts and weight w gives round(w·n) draws to every epoch. Its whole part is that many copies of every prompt,
# each with an id of its own; the rest is one more copy of which an epoch draws a part, and the parts of the epochs follow
# each other round the source in a seeded order, so that over any number of epochs no prompt is ahead of another by more than one
# draw (``stream`` does that). With weight 1 everywhere an epoch is all problems once, as the paper mixes its two sets.
#
# Pure: knows prompts and numbers, no files.


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
    """Name a prompt's ``number``-th copy, from 1; the first keeps the prompt's own id."""
    return uid if number == 1 else f"{uid}~{number}"


def draws(weight: float, size: int) -> int:
    """Count the draws of an epoch: round(weight · size), halves upwards."""
    return math.floor(weight * size + 0.5)


def mix(
    sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float], *, setting: str
) -> tuple[tuple[Prompt, ...], tuple[Part, ...]]:
    """Make the prompts with copies, and the parts they are in, for ``PromptStream``. ``setting`` names the weights in messages.

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
    """Describe the shares of the mixture in one line. *Example*: ``"an epoch draws 3 prompts: a 2 of 2 (67 %), b 1 of 4 (33 %)"``."""
    counts = {name: draws(weights[name], len(own)) for name, own in sources.items()}
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count:,} of {len(sources[name]):,} ({count / total:.0%})" for name, count in counts.items())
    return f"an epoch draws {total:,} prompts: {shares}"
