"""One prompt group in the ledger: its rollouts, each accepted once, and what is still owed. Pure, mutable, private to control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from fr3e_async.algorithm.strategies import Credit, GroupOutcome
from fr3e_async.control.messages import Retire
from fr3e_async.types import Anchor, Finish, Outcome, Prompt, RolloutId, RolloutNote, Verdict


class Status(Enum):
    ISSUED = auto()  # with an engine, or queued for one
    SAMPLED = auto()  # tokens are in the object store; a verdict is owed
    JUDGED = auto()
    GIVEN_UP = auto()  # failed max_attempts times; counted, never scored 0


@dataclass(slots=True)
class Rollout:
    id: RolloutId
    status: Status = Status.ISSUED
    attempts: int = 1
    note: RolloutNote | None = None
    payload: int = -1
    row: int = -1
    reward: float | None = None
    unknown: bool = False
    reason: str = ""  # the verifier's


@dataclass(slots=True)
class Group:
    """All that is known of a group. ``anchors`` is None until the trunk has ended (or was given up)."""

    name: str
    prompt: Prompt
    trunk: RolloutId | None
    rollouts: dict[RolloutId, Rollout] = field(default_factory=dict)
    anchors: tuple[Anchor, ...] | None = None
    context_lens: dict[int, int] = field(default_factory=dict)  # node -> prompt + prefix tokens
    credit: Credit | None = None
    scoring_attempts: dict[int, int] = field(default_factory=dict)  # payload -> attempts

    def issue(self, ids: Iterable[RolloutId]) -> None:
        for id in ids:
            if id in self.rollouts:
                raise ValueError(f"rollout {id} was issued twice")
            self.rollouts[id] = Rollout(id)

    @property
    def complete(self) -> bool:
        """Every rollout is judged or given up, and the trunk's anchors are known."""
        done = (Status.JUDGED, Status.GIVEN_UP)
        return self.anchors is not None and all(r.status in done for r in self.rollouts.values())

    def accept(self, note: RolloutNote, *, payload: int, row: int) -> bool:
        """Take a sampled rollout the first time it arrives; False for a duplicate."""
        rollout = self.rollouts.get(note.id)
        if rollout is None or rollout.status is not Status.ISSUED or note.finish is Finish.ABORT or note.length == 0:
            return False
        rollout.status, rollout.note, rollout.payload, rollout.row = Status.SAMPLED, note, payload, row
        return True

    def fail(self, ids: Iterable[RolloutId], *, max_attempts: int) -> list[RolloutId]:
        """Count a failed attempt of those still owed; returns the ids to issue again, the rest are given up."""
        again = []
        for id in ids:
            rollout = self.rollouts[id]
            if rollout.status is not Status.ISSUED:
                continue
            if rollout.attempts >= max_attempts:
                rollout.status = Status.GIVEN_UP
            else:
                rollout.attempts += 1
                again.append(id)
        return again

    def judge(self, id: RolloutId, verdict: Verdict, *, unknown_is_zero: bool) -> None:
        rollout = self.rollouts[id]
        if rollout.status is not Status.SAMPLED:
            return
        rollout.status, rollout.reason = Status.JUDGED, verdict.reason
        rollout.unknown = verdict.outcome is Outcome.UNKNOWN
        if not rollout.unknown:
            rollout.reward = float(verdict.outcome is Outcome.RIGHT)
        elif unknown_is_zero:
            rollout.reward = 0.0

    def give_up(self, ids: Iterable[RolloutId]) -> int:
        """Their verdicts will never come; they count as given up. Returns how many were still owed."""
        owed = [self.rollouts[id] for id in ids if self.rollouts[id].status is Status.SAMPLED]
        for rollout in owed:
            rollout.status = Status.GIVEN_UP
        return len(owed)

    def outcome(self) -> GroupOutcome:
        rewards = {id: r.reward for id, r in self.rollouts.items()}
        return GroupOutcome(group=self.name, trunk=self.trunk, rewards=rewards)

    def retire(self, fate: str) -> Retire:
        notes = [r.note for r in self.rollouts.values() if r.note is not None]
        bases = [r.reward for r in self.rollouts.values() if r.id.node == 0 and r.reward is not None]
        return Retire(
            group=self.name,
            fate=fate,
            bases_right=sum(reward > 0 for reward in bases),
            bases_judged=len(bases),
            rollouts=len(self.rollouts),
            right=sum(bool(r.reward) for r in self.rollouts.values()),
            unknown=sum(r.unknown for r in self.rollouts.values()),
            given_up=sum(r.status is Status.GIVEN_UP for r in self.rollouts.values()),
            tokens=sum(n.length for n in notes),
            entropy_sum=sum(n.entropy_sum for n in notes),
            truncated=sum(n.finish is Finish.LENGTH for n in notes),
            anchors=len(self.anchors or ()),
            reasons=Counter(r.reason for r in self.rollouts.values() if r.status is Status.JUDGED),
            dropped_states=self.credit.dropped_states if self.credit else 0,
        )
