"""Commands of the control machine's parts to the world and to each other. Ids, lengths and rewards, never a token.

A *payload key* names a rollout batch in the object store; only the loop maps keys to handles. Workers and groups are named by
text. Every ``Assign`` ends in exactly one event that names its task: Delivered, Scored, Lost or Answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.machine.events import Event
from fr3e_async.outcomes import GroupOutcome
from fr3e_async.types import Advantage, RolloutId

if TYPE_CHECKING:
    from fr3e_async.machine.group import Group

# ---- commands: what the ledger wants done ----


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Draw these rollouts from their group's prompt. With ``trunk`` the engine chooses anchors on each as soon as it ends.

    *Example*: ``Sample(task=7, ids=(RolloutId("gsm8k/17@0", 0, 0),), trunk=True)``
    """

    task: int
    ids: tuple[RolloutId, ...]
    trunk: bool = False
    attempt: int = 1  # the highest of its rollouts
    age: int = 0  # admissions before its group: older groups come first


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """Draw these continuations of one trunk's anchors (``id.node`` names the anchor). One explorer gets the whole task.

    *Example*: two continuations each of anchors 1 and 2 of base 0, whose tokens are in payload 3::

        Branch(task=9, group="gsm8k/17@0", ids=(RolloutId("gsm8k/17@0", 1, 0), …, RolloutId("gsm8k/17@0", 2, 1)),
               trunk=RolloutId("gsm8k/17@0", 0, 0), trunk_payload=3)
    """

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    trunk: RolloutId
    trunk_payload: int  # holds the trunk's tokens and its anchors: the explorer reads them there
    attempt: int = 1
    age: int = 0


class Rescore(msgspec.Struct, frozen=True, kw_only=True):
    """Have the learner compute the entropies of these trunks and choose their anchors (``engine.entropy: learner``)."""

    task: int
    group: str
    payload: int
    trunks: tuple[RolloutId, ...]
    lengths: tuple[int, ...]  # tokens of each, context included


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Judge rows of a payload against the prompt's reference answer.

    *Example*: ``Score(task=8, payload=3, ids=(RolloutId("gsm8k/17@0", 0, 0),), rows=(0,))``
    """

    task: int
    payload: int
    ids: tuple[RolloutId, ...]
    rows: tuple[int, ...]  # of the payload, one for each id
    attempt: int = 1
    age: int = 0


class TrainItem(NamedTuple):
    """One row to train: where it lies, its advantage, which optimiser step it belongs to and what it costs."""

    payload: int
    row: int
    advantage: Advantage
    load: RowCost


class Train(msgspec.Struct, frozen=True, kw_only=True):
    """Train on these rows, then make weights ``version``.

    *Example*: a batch of two groups; its first row is row 0 of payload 3, with A = 0.5 on all 20 tokens::

        Train(version=8, groups=("gsm8k/17@0", "gsm8k/4@0"), oldest=6,
              items=(TrainItem(3, 0, (AdvantageSpan(0, 0.5),), RowCost(minibatch=0, group=0, context=31, completion=20)), …))
    """

    version: int
    groups: tuple[str, ...]
    items: tuple[TrainItem, ...]
    oldest: int  # lowest weight version among the tokens


class StateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One state of a group as it ended: a row's ``states`` in groups.jsonl."""

    node: int
    parent: int | None  # None: the prompt
    trunk: int | None  # branch index of the base that it lies on
    position: int  # tokens of the response before it
    score: float | None  # what the anchor rule ranked by
    reward_sum: float  # Σ r of its scored rollouts
    scored: int
    value: float | None  # V(S); None: nothing was scored
    low: float  # 95 % Wilson interval of V
    high: float
    alpha: float
    dropped: str  # the ``Rejection``; "" if it is trained


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """A group's tokens: how many were generated, and how they were used."""

    generated: int = 0  # sampled by the engines
    prefilled: int = 0  # context that engines computed
    reused: int = 0  # context that engines took from their prefix caches
    trained: int = 0  # of the rollouts that were trained
    useful: int = 0  # of these, with an advantage that is not 0


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """A settled group's cost and result: a row of groups.jsonl."""

    group: str
    outcome: GroupOutcome
    tokens: Tokens
    states: tuple[StateRecord, ...]
    bases_correct: int
    bases_scored: int
    rollouts: int
    drawn: int  # of these, made by an engine
    correct: int
    reward_sum: float  # Σ r, each as a share of its range
    rewarded: int  # rollouts with an r
    response_tokens: int  # whole responses of those with an r: prefix and continuation
    unknown: int
    failed: int
    scored_again: int  # verdicts that took more than one attempt
    entropy_sum: float  # nats, over the generated tokens
    entropy_error_sum: float  # nats: how far that may be off
    truncated: int
    anchors: int
    anchors_certain: int  # of these, chosen for every value of the entropies within their error bounds
    reasons: Mapping[str, int]  # verdicts by the verifier's reason


class Retire(GroupRow, frozen=True, kw_only=True):
    """A group has left the ledger: its payloads can go, its prompt counts as consumed, its numbers are final."""

    tree: Group  # all that was known of it

    def row(self) -> dict[str, Any]:
        """Return the group's row of groups.jsonl as plain values, without the tree."""
        return {name: msgspec.to_builtins(getattr(self, name)) for name in GroupRow.__struct_fields__}


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Drop these tasks of a group from the queue; those that a worker runs already continue, but change nothing."""

    tasks: tuple[int, ...]


Work = Sample | Branch | Score  # what a pool's worker does for a group


def group_of(work: Work) -> str:
    return work.ids[0].group


class Assign(msgspec.Struct, frozen=True, kw_only=True):
    """Have this worker do this task. ``work`` is None for a task that the loop asked for by ``Asked``."""

    task: int
    worker: str
    work: Work | None


class Withdraw(msgspec.Struct, frozen=True, kw_only=True):
    """Take these tasks back from the worker: each still ends in its own event, ``Lost(counted=False)`` or its result."""

    worker: str
    tasks: tuple[int, ...]


class Hire(msgspec.Struct, frozen=True, kw_only=True):
    """Start a new worker of this role, after ``delay_s``, as soon as the cluster has room; ends in WorkerUp or Unhired."""

    ticket: int
    role: str
    delay_s: float = 0.0


class Dismiss(msgspec.Struct, frozen=True, kw_only=True):
    """The worker of this ``Hire`` is not needed any more; it ends in no event, unless it is up by now."""

    ticket: int


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """End this worker's actor, even if it is dead already. ``lost``: it was not asked to leave."""

    worker: str
    why: str
    lost: bool = True


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Record that an engine belongs to the other engine pool from now on. The executor starts and stops nothing for it."""

    worker: str
    role: str


class SetPoolTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Tell the cluster's autoscaler how many actors a pool is to have, so that it can plan ahead."""

    role: str
    actors: int


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """Give these engines the weights of a version; ends in Acked or Refused for each of them.

    ``alone``: an engine that joins, or one that was down; it need not be part of a common hand-over.
    """

    version: int
    workers: tuple[str, ...]
    alone: bool = False


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """Every engine in service has these weights: the ledger frees the slots of the batch, and the world is told."""

    version: int


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Send ``Due(key)`` after so many seconds. *Example*: ``Wait(key="task 7", seconds=1.0)``"""

    key: str
    seconds: float


# ---- commands of one part to another: the world never sees them ----


class Start(msgspec.Struct, frozen=True):
    """Machine to ledger: the session begins; return the commands that the checkpoint's groups still need."""


class Settle(msgspec.Struct, frozen=True):
    """Machine to dispatcher, at the end of every event: assign queued tasks, then look after workers that have run empty."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Fleet to dispatcher: give this engine no tasks until ``Serve``, and say so (``Idle``) once it has none."""

    worker: str


class Serve(msgspec.Struct, frozen=True, kw_only=True):
    """Fleet to dispatcher: give this engine tasks again."""

    worker: str


class TakeBack(msgspec.Struct, frozen=True, kw_only=True):
    """Fleet to dispatcher: withdraw the tasks of this engine, which is to receive weights."""

    worker: str


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """Dispatcher to fleet: an engine that is held has no task."""

    worker: str


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """Dispatcher to fleet: this worker is out of service."""

    worker: str


class Vacant(msgspec.Struct, frozen=True, kw_only=True):
    """Dispatcher to autoscaler: a worker is gone, is about to leave, or (``ticket``) did not start. ``staying``: those left."""

    role: str
    staying: int
    delay_s: float = 0.0  # before a new one is started
    ticket: int = 0


class PoolCensus(NamedTuple):
    """A pool as the dispatcher sees it."""

    spare: tuple[str, ...]  # the workers that stay, in the order in which they can be spared
    leaving: int  # workers
    queued: int  # tasks
    fill: float  # workers that could run all of its tasks, running and queued, at once
    idle: float  # part of the time since the last census that its workers had nothing to do


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """Dispatcher to autoscaler: all pools, by role. ``at``: seconds; None: the session begins, ``again`` in the same process."""

    pools: Mapping[str, PoolCensus]
    at: float | None = None
    again: bool = False


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """Autoscaler to dispatcher: give this worker no more tasks; ``Release`` follows when its running ones have ended.

    ``seconds``: after which these are withdrawn; None: ``pools.drain_timeout_s``.
    """

    worker: str
    why: str
    seconds: float | None = None


LedgerCommand = Work | Rescore | Train | Retire | Forget
Staffing = Hire | Dismiss | Release | Move | SetPoolTarget
Command = Rescore | Train | Retire | Assign | Withdraw | Staffing | Send | Live | Wait  # to the world
Inner = Start | Settle | Work | Forget | Hold | Serve | TakeBack | Idle | Gone | Vacant | Census | Drain
Message = Event | Command | Inner  # what a part may be handed, and what it may answer
