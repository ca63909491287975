"""What the control loop, the ledger and the actors say to each other. Ids, lengths and rewards; tokens only in prompts.

A *payload key* names a rollout batch that lies in the object store; only the loop maps keys to handles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fr3e_async.algorithm.batching import Load
from fr3e_async.types import Advantage, Anchor, Prompt, RolloutId, RolloutNote, Verdict

# ---- commands: what the ledger wants done ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Draw these rollouts from the prompt. With ``trunk`` anchors are chosen on each of them as soon as it ends."""

    task: int
    prompt: Prompt
    ids: tuple[RolloutId, ...]
    trunk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Draw these continuations of one trunk's anchors (``id.node`` names the anchor). One explorer gets the whole task."""

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    trunk: RolloutId
    trunk_payload: int
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescore:
    """Have the learner work out the entropies of these trunks and choose their anchors (``engine.entropy: learner``)."""

    task: int
    group: str
    payload: int
    trunks: tuple[RolloutId, ...]
    lengths: tuple[int, ...]  # tokens of each, context included


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Judge rows of a payload against the prompt's reference answer."""

    task: int
    payload: int
    prompt: Prompt
    ids: tuple[RolloutId, ...]
    rows: tuple[int, ...]  # of the payload, one for each id


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainItem:
    """One row to train: where it lies, its advantage, which optimiser step it belongs to and what it costs."""

    payload: int
    row: int
    advantage: Advantage
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train on these rows, then make weights ``version``."""

    version: int
    groups: tuple[str, ...]
    items: tuple[TrainItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRecord:
    """One state of a group as it ended: a row's ``states`` in groups.jsonl."""

    node: int
    parent: int | None  # None: the prompt
    trunk: int | None  # branch index of the base that it lies on
    position: int  # tokens of the response before it
    score: float | None  # what the anchor rule ranked by
    right: float  # Σ r of its judged rollouts
    judged: int
    value: float | None  # V(S); None: nothing was judged
    low: float  # 95 % Wilson interval of V
    high: float
    alpha: float
    dropped: str  # why it is not trained; "" if it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a group cost and what came of it, in tokens."""

    generated: int = 0  # sampled by the engines
    prefilled: int = 0  # context that engines computed
    reused: int = 0  # context that engines took from their prefix caches
    trained: int = 0  # with a gradient
    useful: int = 0  # of these, with an advantage that is not 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """A group has left the ledger: its payloads can go, its prompt counts as consumed, its numbers are final."""

    group: str
    fate: str  # "trained" or the reason: "rejected_all_right", ..., "failed_given_up"
    tokens: Tokens
    states: tuple[StateRecord, ...]
    bases_right: int
    bases_judged: int
    rollouts: int
    right: int
    reward_sum: float  # Σ r
    rewarded: int  # rollouts with an r
    unknown: int
    given_up: int
    judged_again: int  # verdicts that took more than one attempt
    entropy_sum: float  # nats, over the generated tokens
    entropy_error_sum: float  # nats: how far that may be off
    truncated: int
    anchors: int
    anchors_certain: int  # of these, chosen whatever the entropies are within what is known of them
    reasons: Mapping[str, int]  # verdicts by the verifier's reason


Command = Sample | Branch | Rescore | Score | Train | Retire


# ---- events: what has happened ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A prompt enters as a new group; only while ``Ledger.admissible() > 0``."""

    group: str
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A sampling task came back. ``anchors``: of the trunks in it (perhaps none); None: not chosen in this task."""

    task: int
    group: str
    payload: int
    notes: tuple[RolloutNote, ...]  # by row of the payload
    anchors: tuple[Anchor, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The learner has chosen the anchors of these trunks."""

    task: int
    group: str
    trunks: tuple[RolloutId, ...]
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A sampling or scoring task will not come back in time: actor lost, or lease expired."""

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    reason: str
    scoring: bool = False
    payload: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Verdicts of a scoring task, in the order of ``ids``."""

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The learner has consumed the batch that makes ``version``."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Every engine that is in service has acknowledged ``version``."""

    version: int


Event = Admitted | Delivered | Rescored | Lost | Judged | Trained | Published
