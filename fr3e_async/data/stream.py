"""The endless prompt stream: seeded epochs, each a permutation, and a position that is a *set* of what was consumed.

Groups finish out of order, so a position that is a number would lose or repeat prompts when a run is killed. Pure: no
files, no clock, no global random state. What counts as consumed (trained, rejected, given up) is the caller's to say.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from fr3e_async.errors import DataError
from fr3e_async.types import Prompt


def group_id(uid: str, epoch: int) -> str:
    """``"<uid>@<epoch>"``: the name of the group that is sampled from a prompt in one epoch."""
    return f"{uid}@{epoch}"


class PromptStream:
    """Gives every prompt once in each epoch, for ever.

    The order is a function of (seed, epoch) alone. An epoch is open from its first taken prompt until all of it is
    consumed; ``state()`` holds the consumed uids of the open epochs. A stream made from that state gives again what was
    taken but not consumed, first and in the same order, and then goes on: over any number of kills each (prompt, epoch)
    is consumed exactly once.
    """

    def __init__(
        self, prompts: Sequence[Prompt], seed: int, state: Mapping[str, Any] | None = None, taken: Sequence[str] = ()
    ) -> None:
        """``state`` is what ``state()`` gave; ``taken``: groups that the caller has brought along, which are not given again.

        ``DataError`` for no prompts, equal uids, or a state of other prompts or seed.
        """
        if not prompts:
            raise DataError("data.train: no prompt is left to train on")
        self._prompts = tuple(prompts)
        self._index = {prompt.uid: index for index, prompt in enumerate(prompts)}
        if len(self._index) != len(prompts):
            raise DataError("data.train: two prompts have the same id; see data.id_field")
        self._seed = seed
        self._oldest = 0  # lowest epoch that is not wholly consumed
        self._consumed: dict[int, set[int]] = {}  # by epoch, indices into prompts; no entry below the oldest
        if state is not None:
            self._restore(state)
        self._taken = {self._place(group) for group in taken}
        self._start_epoch(self._oldest)

    def take(self) -> tuple[Prompt, int]:
        """The next (prompt, epoch) to sample from."""
        while True:
            if self._epoch < self._oldest or self._position == len(self._order):
                self._start_epoch(max(self._epoch + 1, self._oldest))
            index = self._order[self._position]
            self._position += 1
            if index not in self._consumed.get(self._epoch, ()) and (self._epoch, index) not in self._taken:
                return self._prompts[index], self._epoch

    def mark_consumed(self, group: str) -> None:
        """Strike out the group ``"<uid>@<epoch>"``. One that is not taken yet (restored by the caller) is then not given.

        ``ValueError`` for an unknown group and for one that is consumed already: it would count twice.
        """
        epoch, index = self._place(group)
        consumed = self._consumed.setdefault(epoch, set()) if epoch >= self._oldest else None
        if consumed is None or index in consumed:
            raise ValueError(f"group {group!r} was consumed before; it must not count twice")
        consumed.add(index)
        while len(self._consumed.get(self._oldest, ())) == len(self._prompts):
            del self._consumed[self._oldest]
            self._oldest += 1

    def state(self) -> dict[str, Any]:
        """JSON-able: seed, oldest open epoch, consumed uids of each open epoch, and a digest of the prompt ids."""
        consumed = {
            str(epoch): sorted(self._prompts[index].uid for index in indices) for epoch, indices in sorted(self._consumed.items())
        }
        return {"seed": self._seed, "epoch": self._oldest, "consumed": consumed, "prompts": self._digest()}

    def _place(self, group: str) -> tuple[int, int]:
        """(epoch, index of the prompt) of a group."""
        uid, _, epoch_text = group.rpartition("@")
        if uid not in self._index or not epoch_text.isdecimal():
            raise ValueError(f"group {group!r} is not of this stream")
        return int(epoch_text), self._index[uid]

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["seed"] != self._seed:
            raise DataError(f"run.seed is {self._seed}, but the checkpoint's prompt stream has seed {state['seed']}")
        if state["prompts"] != self._digest():
            raise DataError("data.train: the problems are not those of the checkpoint, so its position means nothing here")
        self._oldest = int(state["epoch"])
        self._consumed = {int(epoch): {self._index[uid] for uid in uids} for epoch, uids in state["consumed"].items()}

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._position = epoch, 0
        self._order = list(range(len(self._prompts)))
        random.Random(f"fr3e prompts {self._seed} {epoch}").shuffle(self._order)

    def _digest(self) -> str:
        return hashlib.sha256("\n".join(prompt.uid for prompt in self._prompts).encode()).hexdigest()[:16]
