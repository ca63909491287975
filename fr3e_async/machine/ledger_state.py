"""The ledger's checkpointed state, and its errors."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fr3e_async.errors import RunFailed
from fr3e_async.machine.budget import Account
from fr3e_async.machine.group import Group, Status
from fr3e_async.machine.messages import Retire

_WORDS = {Status.ISSUED: "being drawn", Status.SAMPLED: "to be scored", Status.SCORED: "scored", Status.FAILED: "failed"}


class StarvedError(RunFailed):
    """Too many degenerate groups in a row: there is nothing to learn from these prompts with this policy."""

    def __init__(self, why: str, retired: Retire) -> None:
        """``retired``: the last of these groups, which the ledger has already settled."""
        super().__init__(why)
        self.retired = retired


class LedgerError(RunFailed):
    """Group counts disagree (admitted = settled + in flight), too many slots are held, or a version was skipped: a bug."""


class RejectionStreak:
    """Count consecutive groups without a training signal, and their verdicts."""

    def __init__(self, bound: int, count: int) -> None:
        """``bound``: ``flow.max_rejected_in_a_row``. ``count``: of the session before; one above the bound ended that run, so
        a person has changed something, and counting restarts at 0.
        """
        self._bound, self.count = bound, count if count <= bound else 0
        self._reasons: Counter[str] = Counter()

    def end(self) -> None:
        self.count = 0
        self._reasons.clear()

    def add(self, group: Retire, outcomes: Mapping[str, int]) -> None:
        """Count a group without a training signal. Raises ``StarvedError`` above the bound. ``outcomes``: of all groups."""
        self.count += 1
        self._reasons.update(group.reasons)
        if self.count > self._bound:
            raise StarvedError(
                f"{self.count} groups in a row taught nothing (outcomes so far: {dict(outcomes)}; "
                f"their verdicts: {', '.join(f'{count} {reason}' for reason, count in self._reasons.most_common(3))}); "
                f"flow.max_rejected_in_a_row is {self._bound}. Are the problems far too easy or too hard, or answers unreadable?",
                group,
            )


class LedgerState(msgspec.Struct, frozen=True, kw_only=True):
    """What survives a restart: the counts, and the open groups with all that is known of their trees.

    Groups that were with the learner count as open: they are trained again from the weights that go with this state.
    """

    version: int
    admitted: int
    outcomes: dict[str, int]
    budget: Account
    groups: tuple[Group, ...] = ()  # in admission order
    rejected_in_a_row: int = 0

    @property
    def settled(self) -> int:
        """Number of retired groups, which is the number of rows in groups.jsonl."""
        return sum(self.outcomes.values())


class LedgerCut:
    """A consistent cut of a ledger, encoded a few groups at a time while the ledger works on: at no point does the loop stand still.

    A group that is about to change before its turn is encoded first (``keep``), so the result is the state as it was when the
    cut was taken. That costs the loop one group's encoding per event; ``step`` encodes as many as requested.
    """

    def __init__(self, state: LedgerState, encode: Callable[[Group], bytes]) -> None:
        self._state, self._encode = state, encode
        self._left = {group.name: group for group in state.groups}
        self._done: dict[str, bytes] = {}
        self.payloads: set[int] = set()  # keys that the encoded groups need

    @property
    def open(self) -> tuple[str, ...]:
        """The names of the groups, in admission order."""
        return tuple(group.name for group in self._state.groups)

    @property
    def done(self) -> bool:
        return not self._left

    def keep(self, name: str) -> None:
        """Encode a group, unless it is encoded already or was not open."""
        if (group := self._left.pop(name, None)) is not None:
            self._done[name] = self._encode(group)
            self.payloads.update([r.payload for r in group.issued if r.payload >= 0])

    def step(self, groups: int) -> bool:
        """Encode up to ``groups`` groups. Returns True while some remain."""
        for name in list(itertools.islice(self._left, groups)):
            self.keep(name)
        return bool(self._left)

    def state(self) -> LedgerState:
        """The state with its groups as JSON texts, in admission order, for an encoder; call it when ``done``."""
        texts: Any = tuple(msgspec.Raw(self._done[group.name]) for group in self._state.groups)
        return msgspec.structs.replace(self._state, groups=texts)


def state_of(group: Group) -> str:
    owed = Counter(_WORDS[rollout.status] for rollout in group.rollouts.values())
    return f"{group.name}: " + ("ready" if group.credit else ", ".join(f"{n} {s}" for s, n in owed.items()))
