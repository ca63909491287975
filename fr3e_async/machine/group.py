"""One prompt group in the ledger: its rollouts, each accepted once, its tree, and what is still owed. Pure, private to control."""

from collections import Counter
from collections.abc import Iterable
from enum import Enum, auto

import msgspec

from fr3e_async.algorithm.anchors import trunks_by_reward
from fr3e_async.algorithm.batching import span_lengths
from fr3e_async.algorithm.strategies import Credit, GroupPlan, GroupRewards, Strategy
from fr3e_async.algorithm.strategies.base import overlong_penalty
from fr3e_async.algorithm.values import second_round, wilson
from fr3e_async.config import Config
from fr3e_async.config.reward import RewardRange
from fr3e_async.machine.messages import Retire, StateRecord, Tokens
from fr3e_async.outcomes import GroupOutcome, Outcome
from fr3e_async.types import Advantage, Anchor, Finish, RolloutId, RolloutSummary, Verdict


class Status(Enum):
    """The stage of a rollout: issued to an engine, sampled, scored, or failed."""

    ISSUED = auto()  # with an engine, or queued for one
    SAMPLED = auto()  # tokens are in the object store; a verdict is owed
    SCORED = auto()
    FAILED = auto()  # failed max_attempts times; counted, never scored 0


DONE = (Status.SCORED, Status.FAILED)


class Rollout(msgspec.Struct, omit_defaults=True, gc=False):
    """One rollout of a group, from its issue to its verdict. It is never in a reference cycle, so the collector skips it."""

    id: RolloutId
    status: Status = Status.ISSUED
    attempts: int = 1
    note: RolloutSummary | None = None
    payload: int = -1
    row: int = -1
    reward: float | None = None  # as a share of its range: 0 lowest, 1 highest
    correct: bool = False
    unknown: bool = False
    scored_again: bool = False
    reason: str = ""  # the verifier's


class Group(msgspec.Struct, dict=True, kw_only=True, omit_defaults=True):
    """The full state of a group. A checkpoint keeps the fields; ``__post_init__`` recomputes the rest from them.

    ``trunks`` is None while they are still to be picked (by their rewards). A trunk is *open* until it has been branched
    or has failed; ``anchors_of`` holds the anchors of every base that may be a trunk, from when they are known.
    """

    name: str
    plan: GroupPlan
    number: int  # admissions before it, over the whole run
    born: int  # live version when it was admitted: no token of it is older
    candidates: frozenset[RolloutId]  # bases whose anchors are chosen
    trunks: tuple[RolloutId, ...] | None
    issued: list[Rollout] = []  # in the order of their issue
    anchors_of: dict[int, tuple[Anchor, ...]] = {}  # by the trunk's branch index
    branched: set[RolloutId] = set()
    settled: set[RolloutId] = set()  # trunks whose second round is drawn, or not needed
    anchors: dict[int, Anchor] = {}  # by node, of the trunks that were branched
    scoring_attempts: dict[int, int] = {}  # payload -> attempts
    beginnings: int = 1  # times sampled; above 1: its rollouts were lost from the object store

    def __post_init__(self) -> None:
        self.rollouts = {rollout.id: rollout for rollout in self.issued}
        self.owed = sum(rollout.status not in DONE for rollout in self.issued)  # neither scored nor failed
        self.tasks: dict[int, set[RolloutId]] = {}  # by task the rollouts that it still owes an answer for; it ends with the last
        self.credit: Credit | None = None

    def base(self, branch: int) -> RolloutId:
        return RolloutId(self.name, 0, branch)

    def issue(self, ids: Iterable[RolloutId]) -> None:
        """Add rollouts that are to be drawn. Raises ``ValueError`` for one that is there already."""
        for id in ids:
            if id in self.rollouts:
                raise ValueError(f"rollout {id} was issued twice")
            self.rollouts[id] = rollout = Rollout(id)
            self.issued.append(rollout)
            self.owed += 1

    @property
    def complete(self) -> bool:
        """Trunks are picked and branched, and every rollout is scored or has failed."""
        return not self.owed and self.trunks is not None and self.settled.issuperset(self.trunks)

    def accept(self, note: RolloutSummary, *, payload: int, row: int) -> bool:
        """Take a sampled rollout the first time it arrives; False for a duplicate."""
        rollout = self.rollouts.get(note.id)
        if rollout is None or rollout.status is not Status.ISSUED or note.finish is Finish.ABORT or note.length == 0:
            return False
        rollout.status, rollout.note, rollout.payload, rollout.row = Status.SAMPLED, note, payload, row
        return True

    def fail(self, ids: Iterable[RolloutId], *, max_attempts: int, counted: bool = True) -> list[RolloutId]:
        """Count a failed attempt of the unfinished ones among ``ids``. Returns the ids to issue again; the rest have failed.

        ``counted=False``: not a failure of the rollout, so the same attempt is repeated.
        """
        again = []
        for id in ids:
            rollout = self.rollouts[id]
            if rollout.status is not Status.ISSUED:
                continue
            if counted and rollout.attempts >= max_attempts:
                rollout.status = Status.FAILED
                self.owed -= 1
            else:
                rollout.attempts += counted
                again.append(id)
        return again

    def attempt_of(self, ids: Iterable[RolloutId]) -> int:
        return max([self.beginnings, *[self.rollouts[id].attempts for id in ids]])

    def judge(self, id: RolloutId, verdict: Verdict, *, unknown_is_zero: bool, rewards: RewardRange = RewardRange()) -> None:
        """``rewards``: the range that the verdict's lies in; the group keeps its share, since V and alpha are of [0, 1]."""
        rollout = self.rollouts[id]
        if rollout.status is not Status.SAMPLED:
            return
        self.owed -= 1
        rollout.status, rollout.reason, rollout.scored_again = Status.SCORED, verdict.reason, verdict.attempts > 1
        rollout.unknown = verdict.outcome is Outcome.UNKNOWN
        rollout.correct = verdict.outcome is Outcome.CORRECT
        reward = verdict.reward
        rollout.reward = None if reward is None else rewards.share(reward)
        if rollout.unknown and unknown_is_zero:
            rollout.reward = 0.0

    def give_up(self, ids: Iterable[RolloutId]) -> int:
        """Count rollouts whose verdicts will never come as failed. Returns how many verdicts were still owed."""
        owed = [self.rollouts[id] for id in ids if self.rollouts[id].status is Status.SAMPLED]
        for rollout in owed:
            rollout.status = Status.FAILED
        self.owed -= len(owed)
        return len(owed)

    def begin_again(self, trunks: tuple[RolloutId, ...] | None) -> list[RolloutId]:
        """Forget every rollout, and what is still on its way. Issues the base rollouts again and returns their ids."""
        bases = [id for id in self.rollouts if id.node == 0]
        for known in (
            self.issued,
            self.rollouts,
            self.anchors_of,
            self.branched,
            self.settled,
            self.anchors,
            self.scoring_attempts,
            self.tasks,
        ):
            known.clear()
        self.trunks, self.credit = trunks, None
        self.beginnings += 1
        self.owed = 0
        self.issue(bases)
        return bases

    def abandon(self) -> int:
        """Mark every rollout as failed. Returns how many were not failed before."""
        open_ones = [rollout for rollout in self.rollouts.values() if rollout.status is not Status.FAILED]
        for rollout in open_ones:
            rollout.status, rollout.reward, rollout.correct, rollout.unknown = Status.FAILED, None, False, False
        self.trunks, self.owed = (), 0
        self.tasks.clear()
        return len(open_ones)

    # ---- the tree ----

    def learn_anchors(self, trunks: Iterable[RolloutId], anchors: Iterable[Anchor]) -> None:
        """Record the anchors of these base rollouts (a base may have none). Later calls do not change them."""
        for trunk in trunks:
            if trunk in self.candidates:
                self.anchors_of.setdefault(trunk.branch, tuple(a for a in anchors if a.trunk == trunk.branch))

    def pick_trunks(self) -> None:
        """If ``algorithm.trunk`` picks by reward: pick, once all bases are done (``algorithm.anchors.trunks_by_reward``)."""
        if self.trunks is not None:
            return
        bases = [r for r in self.rollouts.values() if r.id.node == 0]
        if not all(r.status in DONE for r in bases):
            return
        self.trunks = trunks_by_reward({r.id: r.correct for r in bases if r.reward is not None})

    def open_trunks(self) -> list[RolloutId]:
        """Trunks that may be branched now; those that were never drawn are closed without branches."""
        if len(self.branched) == len(self.trunks or ()):
            return []
        for trunk in self.trunks or ():
            rollout = self.rollouts[trunk]
            if rollout.status is Status.FAILED and rollout.note is None:  # else its anchors are known, or on their way
                self.anchors_of.setdefault(trunk.branch, ())
        return [trunk for trunk in self.trunks or () if trunk.branch in self.anchors_of and trunk not in self.branched]

    def branch(self, trunk: RolloutId) -> tuple[RolloutId, ...]:
        """Issue the continuations of a trunk's anchors, those of the first round if there are two; their ids, node by node."""
        anchors = self.anchors_of[trunk.branch]
        self.branched.add(trunk)
        if not (self.plan.first and anchors):
            self.settled.add(trunk)
        self.anchors |= {anchor.node: anchor for anchor in anchors}
        ids = tuple(RolloutId(self.name, a.node, m) for a in anchors for m in range(self.plan.at_once))
        self.issue(ids)
        return ids

    def unsettled_trunks(self) -> list[RolloutId]:
        """Trunks whose first round is done, so that the second one can be drawn."""
        if len(self.branched) == len(self.settled):
            return []
        return [
            trunk
            for trunk in sorted(self.branched - self.settled)
            if all(self.rollouts[id].status in DONE for id in self._branches_of(trunk))
        ]

    def branch_again(self, trunk: RolloutId) -> tuple[RolloutId, ...]:
        """Issue the second round of a trunk, by what is known of its first (``values.second_round``); perhaps nothing."""
        self.settled.add(trunk)
        rewards: dict[int, list[float | None]] = {anchor.node: [] for anchor in self.anchors_of[trunk.branch]}
        for id in self._branches_of(trunk):
            rewards[id.node].append(self.rollouts[id].reward)
        more = second_round(rewards, first=self.plan.first, branches=self.plan.branches)
        ids = tuple(RolloutId(self.name, node, self.plan.first + m) for node, count in more.items() for m in range(count))
        self.issue(ids)
        return ids

    def _branches_of(self, trunk: RolloutId) -> list[RolloutId]:
        nodes = {anchor.node for anchor in self.anchors_of[trunk.branch]}
        return [id for id in self.rollouts if id.node in nodes]

    # ---- the end ----

    @property
    def oldest_version(self) -> int:
        """Return the lowest version among the trained tokens. Call it only once the group has credit."""
        assert self.credit is not None
        notes = (self.rollouts[id].note for id in self.credit.advantages)
        return min(note.oldest_version for note in notes if note is not None)

    def credited(self, strategy: Strategy, config: Config) -> Credit:
        """Credit the complete group. Raw rewards decide if it is trained; DAPO's overlong settings come after that."""
        longest, cache, penalties = config.sampling.max_response, config.algorithm.overlong_cache, {}
        if cache:  # the paper's rewards are -1 and 1, ours 0 and 1: its penalty counts half
            lengths = {id: self._response(r.note) for id, r in self.rollouts.items() if r.note is not None}
            penalties = {id: overlong_penalty(n, longest=longest, cache=cache) / 2 for id, n in lengths.items()}
        credit = strategy.credit(
            GroupRewards(
                group=self.name, rewards={id: r.reward for id, r in self.rollouts.items()}, anchors=self.anchors,
                trunks=self.trunks or (), penalties=penalties,
            )
        )  # fmt: skip
        if not config.algorithm.overlong_filter:
            return credit
        return credit.without({id for id, r in self.rollouts.items() if r.note and r.note.finish is Finish.LENGTH})

    def lengths(self, *, bases: bool) -> list[int]:
        """Tokens of the rollouts that were drawn: of the bases, or of the branches."""
        return [r.note.length for r in self.rollouts.values() if r.note is not None and (r.id.node == 0) == bases]

    def retire(self, outcome: GroupOutcome) -> Retire:
        """Build the ``Retire`` command, with all final numbers of the group."""
        rollouts = list(self.rollouts.values())
        notes = [r.note for r in rollouts if r.note is not None]
        rewards = [r.reward for r in rollouts if r.reward is not None]
        bases = [r.correct for r in rollouts if r.id.node == 0 and r.reward is not None]
        return Retire(
            group=self.name,
            outcome=outcome,
            tokens=self._tokens(trained=outcome == "trained"),
            states=self._states(),
            bases_correct=sum(bases),
            bases_scored=len(bases),
            rollouts=len(rollouts),
            drawn=len(notes),
            correct=sum([r.correct for r in rollouts]),
            reward_sum=sum(rewards),
            rewarded=len(rewards),
            response_tokens=sum([self._response(r.note) for r in rollouts if r.note is not None and r.reward is not None]),
            unknown=sum([r.unknown for r in rollouts]),
            failed=sum([r.status is Status.FAILED for r in rollouts]),
            scored_again=sum([r.scored_again for r in rollouts]),
            entropy_sum=sum([n.entropy_sum for n in notes]),
            entropy_error_sum=sum([n.entropy_error_sum for n in notes]),
            truncated=sum([n.finish is Finish.LENGTH for n in notes]),
            anchors=len(self.anchors),
            anchors_certain=sum([a.certain for a in self.anchors.values()]),
            reasons=Counter([r.reason for r in rollouts if r.status is Status.SCORED]),
            tree=self,
        )

    def _response(self, note: RolloutSummary) -> int:
        """Tokens of the whole response: the trunk's up to the anchor, and what was drawn from there."""
        return note.length + (self.anchors[note.id.node].position if note.id.node else 0)

    def _tokens(self, *, trained: bool) -> Tokens:
        notes = [r.note for r in self.rollouts.values() if r.note is not None]
        lengths = {note.id: note.length for note in notes}
        advantages = self.credit.advantages if self.credit and trained else {}
        return Tokens(
            generated=sum(lengths.values()),
            prefilled=sum([note.context - note.cached for note in notes]),
            reused=sum([note.cached for note in notes]),
            trained=sum([lengths[id] for id in advantages]),
            useful=sum([_useful(advantage, lengths[id]) for id, advantage in advantages.items()]),
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
                    reward_sum=value.reward_sum if value else 0.0,
                    scored=value.scored if value else 0,
                    value=value.value if value else None,
                    low=low,
                    high=high,
                    alpha=state.alpha,
                    dropped=state.dropped,
                )
            )
        return tuple(records)


def _useful(advantage: Advantage, length: int) -> int:
    """Count the tokens of a completion whose advantage is not 0."""
    if len(advantage) == 1:
        return length if advantage[0].value else 0
    return sum(tokens for span, tokens in span_lengths(advantage, length) if span.value)
