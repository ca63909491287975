"""What the control machine and the world around it say to each other. Ids, lengths and rewards; tokens only in prompts.

Events go in, commands come out (``machine.Machine``). A *payload key* names a rollout batch that lies in the object store;
only the loop maps keys to handles. Workers are named by text. Every ``Assign`` ends in exactly one event that names its
task: Delivered, Judged, Lost or Answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.outcomes import GroupOutcome
from fr3e_async.types import Advantage, Anchor, RolloutId

# ---- commands: what the ledger wants done ----


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Draw these rollouts from the prompt. With ``trunk`` anchors are chosen on each of them as soon as it ends."""

    task: int
    ids: tuple[RolloutId, ...]
    trunk: bool = False
    attempt: int = 1  # the highest of its rollouts


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """Draw these continuations of one trunk's anchors (``id.node`` names the anchor). One explorer gets the whole task."""

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    trunk: RolloutId
    trunk_payload: int
    anchors: tuple[Anchor, ...]
    attempt: int = 1


class Rescore(msgspec.Struct, frozen=True, kw_only=True):
    """Have the learner work out the entropies of these trunks and choose their anchors (``engine.entropy: learner``)."""

    task: int
    group: str
    payload: int
    trunks: tuple[RolloutId, ...]
    lengths: tuple[int, ...]  # tokens of each, context included


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Judge rows of a payload against the prompt's reference answer."""

    task: int
    payload: int
    ids: tuple[RolloutId, ...]
    rows: tuple[int, ...]  # of the payload, one for each id
    attempt: int = 1


class TrainItem(NamedTuple):
    """One row to train: where it lies, its advantage, which optimiser step it belongs to and what it costs."""

    payload: int
    row: int
    advantage: Advantage
    load: RowCost


class Train(msgspec.Struct, frozen=True, kw_only=True):
    """Train on these rows, then make weights ``version``."""

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
    value: float | None  # V(S); None: nothing was judged
    low: float  # 95 % Wilson interval of V
    high: float
    alpha: float
    dropped: str  # the ``Rejection``; "" if it is trained


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a group cost and what came of it, in tokens."""

    generated: int = 0  # sampled by the engines
    prefilled: int = 0  # context that engines computed
    reused: int = 0  # context that engines took from their prefix caches
    trained: int = 0  # of the rollouts that were trained
    useful: int = 0  # of these, with an advantage that is not 0


class Retire(msgspec.Struct, frozen=True, kw_only=True):
    """A group has left the ledger: its payloads can go, its prompt counts as consumed, its numbers are final."""

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
    judged_again: int  # verdicts that took more than one attempt
    entropy_sum: float  # nats, over the generated tokens
    entropy_error_sum: float  # nats: how far that may be off
    truncated: int
    anchors: int
    anchors_certain: int  # of these, chosen whatever the entropies are within what is known of them
    reasons: Mapping[str, int]  # verdicts by the verifier's reason


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """These tasks of a group are not wanted any more: those that nobody has yet need not be done."""

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
    """Take these tasks back from the worker: each still ends in its own event, ``Lost(counted=False)`` unless it was quicker."""

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
    """End this worker, or what is left of it. ``lost``: it was not asked to leave."""

    worker: str
    why: str
    lost: bool = True


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """This engine works in the other engines' pool from now on: nothing is to be done but to know it."""

    worker: str
    role: str


class SetPoolTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A pool is to have so many actors: for the cluster's autoscaler, which may plan ahead."""

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
    """Every engine in service has the weights: an announcement, nothing is to be done."""

    version: int


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Say ``Due(key)`` after so many seconds."""

    key: str
    seconds: float


LedgerCommand = Work | Rescore | Train | Retire | Forget
Staffing = Hire | Dismiss | Release | Move | SetPoolTarget
Command = Rescore | Train | Retire | Assign | Withdraw | Staffing | Send | Live | Wait  # of the machine: work is assigned
