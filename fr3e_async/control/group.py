"""One prompt group in the ledger: its rollouts, each accepted once, its tree, and what is still owed. Pure, private to control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from fr3e_async.algorithm.strategies import Credit, GroupOutcome, GroupPlan
from fr3e_async.algorithm.values import wilson
from fr3e_async.control.messages import Retire, StateRecord, Tokens
from fr3e_async.types import Anchor, Finish, Outcome, Prompt, RolloutId, RolloutNote, Verdict


class Status(Enum):
    ISSUED = auto()  # with an engine, or queued for one
    SAMPLED = auto()  # tokens are in the object store; a verdict is owed
    JUDGED = auto()
    GIVEN_UP = auto()  # failed max_attempts times; counted, never scored 0


DONE = (Status.JUDGED, Status.GIVEN_UP)


def choose_trunks(
    bases: Sequence[RolloutId], policy: str | None, *, seed: Sequence[int]
) -> tuple[frozenset[RolloutId], tuple[RolloutId, ...] | None]:
    """(bases whose anchors are chosen, trunks), by ``algorithm.trunk``; None: the group does not branch.

    Trunks are fixed before any reward is known, else V would be biased; or they are None until it is, by the user's wish.
    """
    match policy:
        case None:
            return frozenset(), ()
        case "one_right_one_wrong":
            return frozenset(bases), None
        case "all":
            return frozenset(bases), tuple(bases)
        case "random":
            trunk = bases[int(np.random.default_rng(seed).integers(len(bases)))]
        case _:
            trunk = bases[0]
    return frozenset({trunk}), (trunk,)


@dataclass(slots=True)
class Rollout:
    id: RolloutId
    status: Status = Status.ISSUED
    attempts: int = 1
    note: RolloutNote | None = None
    payload: int = -1
    row: int = -1
    reward: float | None = None
    right: bool = False
    unknown: bool = False
    judged_again: bool = False
    reason: str = ""  # the verifier's


@dataclass(slots=True)
class Group:
    """All that is known of a group.

    ``trunks`` is None while they are still to be picked (by their rewards). A trunk is *open* until it has been branched
    or given up; ``anchors_of`` holds the anchors of every base that may be a trunk, from when they are known.
    """

    name: str
    prompt: Prompt
    plan: GroupPlan
    candidates: frozenset[RolloutId]  # bases whose anchors are chosen
    trunks: tuple[RolloutId, ...] | None
    rollouts: dict[RolloutId, Rollout] = field(default_factory=dict)
    anchors_of: dict[RolloutId, tuple[Anchor, ...]] = field(default_factory=dict)
    branched: set[RolloutId] = field(default_factory=set)
    anchors: dict[int, Anchor] = field(default_factory=dict)  # by node, of the trunks that were branched
    credit: Credit | None = None
    scoring_attempts: dict[int, int] = field(default_factory=dict)  # payload -> attempts
    ended: set[int] = field(default_factory=set)  # tasks that came back or were lost: they cannot fail once more

    def base(self, branch: int) -> RolloutId:
        return RolloutId(self.name, 0, branch)

    def issue(self, ids: Iterable[RolloutId]) -> None:
        for id in ids:
            if id in self.rollouts:
                raise ValueError(f"rollout {id} was issued twice")
            self.rollouts[id] = Rollout(id)

    @property
    def complete(self) -> bool:
        """Trunks are picked and branched, and every rollout is judged or given up."""
        return (
            self.trunks is not None
            and self.branched.issuperset(self.trunks)
            and all(r.status in DONE for r in self.rollouts.values())
        )

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
        rollout.status, rollout.reason, rollout.judged_again = Status.JUDGED, verdict.reason, verdict.attempts > 1
        rollout.unknown = verdict.outcome is Outcome.UNKNOWN
        rollout.right = verdict.outcome is Outcome.RIGHT
        rollout.reward = 0.0 if rollout.unknown and unknown_is_zero else verdict.reward

    def give_up(self, ids: Iterable[RolloutId]) -> int:
        """Their verdicts will never come; they count as given up. Returns how many were still owed."""
        owed = [self.rollouts[id] for id in ids if self.rollouts[id].status is Status.SAMPLED]
        for rollout in owed:
            rollout.status = Status.GIVEN_UP
        return len(owed)

    # ---- the tree ----

    def learn_anchors(self, trunks: Iterable[RolloutId], anchors: Iterable[Anchor]) -> None:
        """The anchors of these bases, each perhaps without any; the first word counts."""
        for trunk in trunks:
            if trunk in self.candidates:
                self.anchors_of.setdefault(trunk, tuple(a for a in anchors if a.trunk == trunk.branch))

    def pick_trunks(self) -> None:
        """The first right and the first wrong base, once all are done. Only where the plan picks by reward."""
        bases = [r for r in self.rollouts.values() if r.id.node == 0]
        if self.trunks is not None or not all(r.status in DONE for r in bases):
            return
        judged = sorted((r.id, r.right) for r in bases if r.reward is not None)
        first = {right: next((id for id, r in judged if r is right), None) for right in (True, False)}
        self.trunks = tuple(sorted(id for id in first.values() if id is not None))

    def open_trunks(self) -> list[RolloutId]:
        """Trunks that may be branched now; those that were never drawn are closed without branches."""
        for trunk in self.trunks or ():
            rollout = self.rollouts[trunk]
            if rollout.status is Status.GIVEN_UP and rollout.note is None:  # else its anchors are known, or on their way
                self.anchors_of.setdefault(trunk, ())
        return [trunk for trunk in self.trunks or () if trunk in self.anchors_of and trunk not in self.branched]

    def branch(self, trunk: RolloutId) -> tuple[RolloutId, ...]:
        """Issue the continuations of a trunk's anchors; their ids, node by node."""
        anchors = self.anchors_of[trunk]
        self.branched.add(trunk)
        self.anchors |= {anchor.node: anchor for anchor in anchors}
        ids = tuple(RolloutId(self.name, a.node, m) for a in anchors for m in range(self.plan.branches))
        self.issue(ids)
        return ids

    def trunk_of(self, node: int) -> RolloutId:
        return self.base(self.anchors[node].trunk)

    # ---- the end ----

    def outcome(self) -> GroupOutcome:
        rewards = {id: r.reward for id, r in self.rollouts.items()}
        return GroupOutcome(group=self.name, rewards=rewards, anchors=self.anchors, trunks=self.trunks or ())

    def lengths(self, *, bases: bool) -> list[int]:
        """Tokens of the rollouts that were drawn: of the bases, or of the branches."""
        return [r.note.length for r in self.rollouts.values() if r.note is not None and (r.id.node == 0) == bases]

    def retire(self, fate: str) -> Retire:
        rollouts = list(self.rollouts.values())
        notes = [r.note for r in rollouts if r.note is not None]
        rewards = [r.reward for r in rollouts if r.reward is not None]
        bases = [r.right for r in rollouts if r.id.node == 0 and r.reward is not None]
        return Retire(
            group=self.name,
            fate=fate,
            tokens=self._tokens(trained=fate == "trained"),
            states=self._states(),
            bases_right=sum(bases),
            bases_judged=len(bases),
            rollouts=len(rollouts),
            right=sum(r.right for r in rollouts),
            reward_sum=sum(rewards),
            rewarded=len(rewards),
            unknown=sum(r.unknown for r in rollouts),
            given_up=sum(r.status is Status.GIVEN_UP for r in rollouts),
            judged_again=sum(r.judged_again for r in rollouts),
            entropy_sum=sum(n.entropy_sum for n in notes),
            entropy_error_sum=sum(n.entropy_error_sum for n in notes),
            truncated=sum(n.finish is Finish.LENGTH for n in notes),
            anchors=len(self.anchors),
            anchors_certain=sum(a.certain for a in self.anchors.values()),
            reasons=dict(Counter(r.reason for r in rollouts if r.status is Status.JUDGED)),  # asdict would break a Counter
        )

    def _tokens(self, *, trained: bool) -> Tokens:
        notes = [r.note for r in self.rollouts.values() if r.note is not None]
        lengths = {note.id: note.length for note in notes}
        advantages = self.credit.advantages if self.credit and trained else {}
        return Tokens(
            generated=sum(lengths.values()),
            prefilled=sum(note.context - note.cached for note in notes),
            reused=sum(note.cached for note in notes),
            trained=sum(lengths[id] for id in advantages),
            useful=sum(
                end - stretch.start
                for id, advantage in advantages.items()
                for stretch, end in zip(advantage, [*(s.start for s in advantage[1:]), lengths[id]], strict=True)
                if stretch.value
            ),
        )

    def _states(self) -> tuple[StateRecord, ...]:
        records = []
        for node, state in sorted((self.credit.states if self.credit else {}).items()):
            anchor, value = self.anchors.get(node), state.value
            low, high = value.interval if value else wilson(0, 0)
            records.append(
                StateRecord(
                    node=node,
                    parent=anchor.parent if anchor else None,
                    trunk=anchor.trunk if anchor else None,
                    position=anchor.position if anchor else 0,
                    score=anchor.score if anchor else None,
                    right=value.right if value else 0.0,
                    judged=value.judged if value else 0,
                    value=value.value if value else None,
                    low=low,
                    high=high,
                    alpha=state.alpha,
                    dropped=state.dropped,
                )
            )
        return tuple(records)
