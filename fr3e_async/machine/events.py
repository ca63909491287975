"""What has happened: the events that go into the control machine. Ids, lengths and rewards; tokens only in prompts."""

from __future__ import annotations

from dataclasses import dataclass

from fr3e_async.types import Anchor, Prompt, RolloutId, RolloutSummary, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A prompt enters as a new group; only while ``Ledger.admissible() > 0``."""

    group: str
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """Rollouts of a sampling task have ended; they may be judged at once, whatever the rest of the task does.

    ``anchors``: of the trunks among them (perhaps none); None: not chosen in this task. ``left``: rollouts of the task that are
    still being drawn; with 0 the task is over.
    """

    task: int
    group: str
    payload: int
    notes: tuple[RolloutSummary, ...]  # by row of the payload
    anchors: tuple[Anchor, ...] | None = None
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The learner has chosen the anchors of these trunks."""

    task: int
    group: str
    trunks: tuple[RolloutId, ...]
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What is left of a sampling or scoring task will not come back: actor lost, lease expired, or withdrawn.

    ``ids``: of its rollouts those that were not delivered.

    ``counted``: it was an attempt; not if it was withdrawn for new weights, which is nobody's fault. ``gone``: rollouts of
    the group that the task needed are no longer in the object store.
    """

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    reason: str
    scoring: bool = False
    payload: int = -1
    counted: bool = True
    gone: bool = False


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
    """Every engine that is in service has acknowledged ``version``. The machine's own word to its ledger."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The loop wants a worker for something that is not a group's: a part of an evaluation. ``task`` is negative."""

    task: int
    role: str
    weight: int  # rollouts
    priority: int = 0  # lower ones first; groups have 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A task that was asked for has ended, or is not wanted any more. ``proof``: the worker has done it."""

    task: int
    proof: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUp:
    """A worker is ready. ``version``: of an engine's weights; ``ticket``: of the ``Hire`` that it came by, 0 if it was there."""

    role: str
    worker: str
    version: int = 0
    ticket: int = 0
    node: str = ""  # that it runs on, if anybody knows


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDown:
    """A worker is dead, or silent for too long. Its tasks end by events of their own. ``node``: its node is gone with it."""

    worker: str
    why: str
    node: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unhired:
    """The worker of this ``Hire`` did not start."""

    ticket: int
    role: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """All workers that were there when the session began have been told: those that are missing are hired.

    ``again``: they are those of a session before, in the same process, whose pools had the size that they needed.
    """

    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """The node of a worker will be taken away. ``seconds``: until then; 0: nobody knows."""

    worker: str
    why: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilization:
    """How much the pools' actors had to do. ``at``: seconds, since any moment; ``idle``: (role, part of their time) since the last."""

    at: float
    idle: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How full an engine is, since its last report."""

    worker: str
    kv_used: float  # part of its key-value cache, 0 to 1
    waiting: int  # requests queued inside of it
    preempted: int  # requests it had to throw out of its cache and begin again


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The learner's weights of a version can be sent."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """An engine serves a version."""

    worker: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An engine did not take a version, or not in time."""

    worker: str
    version: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A ``Wait`` is over."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """No admission and no new batch from now on."""

    reason: str


LedgerEvent = Admitted | Delivered | Rescored | Lost | Judged | Trained | Published


Event = (
    LedgerEvent
    | Asked
    | Answered
    | WorkerUp
    | WorkerDown
    | Unhired
    | Begun
    | Leaving
    | Utilization
    | Pressure
    | Exported
    | Acked
    | Refused
    | Due
    | Stopped
)
