"""What the control loop, the ledger and the actors say to each other. Ids, lengths and rewards; tokens only in prompts.

A *payload key* names a rollout batch that lies in the object store; only the loop maps keys to handles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fr3e_async.types import Anchor, Prompt, RolloutId, RolloutNote, Verdict

# ---- commands: what the ledger wants done ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Draw these rollouts from the prompt. With ``trunk`` (a single id) anchors are chosen from it as soon as it ends."""

    task: int
    prompt: Prompt
    ids: tuple[RolloutId, ...]
    trunk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Draw these continuations of the trunk's anchors (``id.node`` names the anchor). One explorer gets the whole task."""

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    trunk_payload: int


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
    """One row to train: where it lies, its advantage, which optimiser step it belongs to."""

    payload: int
    row: int
    length: int  # tokens, context included
    advantage: float
    minibatch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train on these rows, then make weights ``version``."""

    version: int
    groups: tuple[str, ...]
    items: tuple[TrainItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """A group has left the ledger: its payloads can go, its prompt counts as consumed, its numbers as final."""

    group: str
    fate: str  # "trained" or the reason: "rejected_all_right", ..., "failed_given_up"
    bases_right: int
    bases_judged: int
    rollouts: int
    right: int
    unknown: int
    given_up: int
    tokens: int  # generated for this group
    entropy_sum: float  # nats, over those tokens
    truncated: int
    anchors: int
    dropped_states: int
    reasons: Mapping[str, int]  # verdicts by the verifier's reason


Command = Sample | Branch | Score | Train | Retire


# ---- events: what has happened ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A prompt enters as a new group; only while ``Ledger.admissible() > 0``."""

    group: str
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A sampling task came back. ``anchors`` is set for a trunk (perhaps empty), None for others."""

    task: int
    group: str
    payload: int
    notes: tuple[RolloutNote, ...]  # by row of the payload
    anchors: tuple[Anchor, ...] | None = None


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


Event = Admitted | Delivered | Lost | Judged | Trained | Published
