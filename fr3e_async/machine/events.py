"""What has happened: the events that go into the control machine. Ids, lengths and rewards, never a token.

Each is a tagged msgspec struct, and its JSON is what a journal keeps: ``{"type":"Trained","version":7}``. A field that has its
default is left out, so a newer field that an old journal lacks is read as its default.
"""

import msgspec

from fr3e_async.types import Anchor, RolloutId, RolloutSummary, Verdict


class Admitted(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A prompt enters as a new group; only while ``Ledger.admissible() > 0``."""

    group: str


class Delivered(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Rollouts of a sampling task have ended; they may be scored now, whatever the rest of the task does.

    ``anchors``: of the trunks among them (perhaps none); None: not chosen in this task. ``left``: rollouts of the task that are
    still being drawn; with 0 the task is over.

    *Example*: one trunk of 20 tokens, sampled by version 7, lies in row 0 of payload 3; an anchor was chosen at token 12::

        {"type":"Delivered","task":7,"group":"gsm8k/17@0","payload":3,
         "notes":[{"id":["gsm8k/17@0",0,0],"length":20,"context":31,"cached":0,"entropy_sum":9.5,"entropy_error_sum":0.0,
                   "finish":0,"oldest_version":7,"newest_version":7}],
         "anchors":[{"node":1,"parent":0,"trunk":0,"position":12,"score":1.4}]}
    """

    task: int
    group: str
    payload: int
    notes: tuple[RolloutSummary, ...]  # by row of the payload
    anchors: tuple[Anchor, ...] | None = None
    left: int = 0


class Rescored(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The learner has chosen the anchors of these trunks."""

    task: int
    group: str
    trunks: tuple[RolloutId, ...]
    anchors: tuple[Anchor, ...]


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The unfinished part of a sampling or scoring task will not come back: actor lost, lease expired, or withdrawn.

    ``ids``: of its rollouts those that were not delivered.

    ``counted``: it counts as an attempt; false if it was withdrawn for new weights. ``gone``: rollouts of
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


class Scored(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Verdicts of a scoring task, in the order of ``ids``.

    *Example*: ``{"type":"Scored","task":8,"group":"gsm8k/17@0","ids":[["gsm8k/17@0",0,0]],"verdicts":[{"outcome":"correct","reason":"integer"}]}``
    """

    task: int
    group: str
    ids: tuple[RolloutId, ...]
    verdicts: tuple[Verdict, ...]


class Trained(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The learner has consumed the batch that makes ``version``."""

    version: int


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The loop requests a worker for work outside any group: a part of an evaluation. ``task`` is negative."""

    task: int
    role: str
    weight: int  # rollouts
    priority: int = 0  # lower ones first; groups have 0


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A requested task (``Asked``) has ended or was cancelled. ``proof``: the worker finished it."""

    task: int
    proof: bool = True


class WorkerUp(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A worker is ready. ``version``: of an engine's weights; ``ticket``: of the ``Hire`` that it came by, 0 if it was there."""

    role: str
    worker: str
    version: int = 0
    ticket: int = 0
    node: str = ""  # that it runs on, if anybody knows


class WorkerDown(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A worker is dead, or silent for too long. Its tasks end by events of their own. ``node``: its node is gone with it."""

    worker: str
    why: str
    node: bool = False


class Unhired(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The worker of a ``Hire`` did not start; ``ticket`` names the ``Hire``."""

    ticket: int
    role: str
    why: str


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """All workers present at the session's start have been reported, so the machine can hire the missing ones.

    ``again``: they are those of a session before, in the same process, whose pools had the size that they needed.
    """

    again: bool = False


class Leaving(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The node of a worker will be taken away. ``seconds``: until then; 0: nobody knows."""

    worker: str
    why: str
    seconds: float = 0.0


class Utilization(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Idle time of the pools' actors. ``at``: seconds, any origin; ``idle``: (role, idle share of time since the last)."""

    at: float
    idle: tuple[tuple[str, float], ...]


class Pressure(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An engine's load since its last report, from which the dispatcher sets its limit."""

    worker: str
    kv_used: float  # part of its key-value cache, 0 to 1
    waiting: int  # requests queued inside of it
    preempted: int  # requests evicted from its cache and restarted


class Exported(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The learner has exported the weights of a version, so engines can receive them."""

    version: int


class Acked(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An engine has loaded the weights of ``version`` and serves them from now on."""

    worker: str
    version: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """An engine did not take a version, or not in time."""

    worker: str
    version: int
    why: str


class Due(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The time of a ``Wait`` is over; ``key`` names it."""

    key: str


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The run is asked to stop: the ledger admits no group and starts no batch after this."""

    reason: str


Event = (
    Admitted
    | Delivered
    | Rescored
    | Lost
    | Scored
    | Trained
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
