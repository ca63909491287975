"""Kinds of events of a run, and the JSON object of one: a line of ``logs/events.jsonl``.

    {"time_s": 1767225600.0, "level": "warning", "event": "worker_lost", "actor": "generator-3", "text": "…"}

A kind has its level and its meaning here and nowhere else. ``note`` is what a person should be told and no other kind fits.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypedDict, Unpack

EventKind = Literal[
    "note", "run_started", "run_resumed", "run_finished", "run_stopped", "run_failed", "data_dropped", "model_doubt", "checkpoint_skipped",
    "checkpoint_written", "evaluation", "evaluation_lost", "model_not_written", "actors_up", "actor_joined", "actor_moved",
    "actor_left", "actor_lost", "actor_stuck", "actor_failed", "engine_compared", "engines_asked", "pool_resized", "node_notice", "learner_lost", "storage_pressure",
    "tracker_failed", "policy_verdicts", "reward_failed", "no_batch",
]  # fmt: skip

_TABLE = """
note               | info    | what a person should know and no other kind fits
run_started        | info    | a session begins; the text has the run directory
run_resumed        | info    | the same, from a checkpoint; version
run_finished       | info    | all steps are done, the result stands; version
run_stopped        | warning | a signal or a limit ended the run before its last step, with a checkpoint; version
run_failed         | error   | the run could not continue; the text has the diagnosis
data_dropped       | warning | problems were left out
model_doubt        | warning | something of the model's files may make the run worse; it continues
checkpoint_skipped | warning | a checkpoint is not whole, an older one is taken
checkpoint_written | info    | a checkpoint is whole and durable; version, seconds
evaluation         | info    | held-out accuracy; version, measured: the entry of the summary's evaluations
evaluation_lost    | warning | an evaluation failed; training continues
model_not_written  | warning | the run ended before model/ was written; the last checkpoint has the weights
actors_up          | info    | all actors that a run waits for are in service; seconds
actor_joined       | info    | an actor that came later is in service; actor, role
actor_moved        | info    | an engine works in the other pool from now on; actor, role
actor_left         | info    | an actor has left as it was asked to; actor, role
actor_lost         | warning | an actor is gone without having been asked to leave; actor, role
actor_stuck        | warning | an actor does not answer or does not get on; the text has its stacks; actor, role
actor_failed       | warning | an actor did not start; role
engines_asked      | info    | before the first group all engines have taken the learner's weights and were asked for their numbers; seconds
engine_compared    | info    | an engine's log-probs were held against the learner's; actor, version, nats: the mean difference
pool_resized       | info    | a pool is to have another number of actors; role, count
node_notice        | warning | the node of an actor will be taken away; actor, seconds until then
learner_lost       | warning | the learner group is restarted, the run goes back to a checkpoint; version of that
storage_pressure   | warning | a disk or the object store is nearly full
tracker_failed     | warning | Weights & Biases or MLflow does not work or loses rows; the run continues
policy_verdicts    | warning | more answers than before are correct by a policy of the judge rather than by a proof; version
reward_failed      | warning | the first failure of its kind of a user's reward function; actor
no_batch           | warning | no batch was trained for 30 s, and again after twice that; the text says what the run waits for; version, seconds
"""


class EventFields(TypedDict, total=False):
    """The fields of an event besides its text."""

    actor: str
    role: str
    group: str
    node: str
    version: int  # of weights: batches trained
    count: int
    seconds: float
    nats: float
    measured: Mapping[str, Any]  # an evaluation as the summary has it


class Note(Protocol):
    """How a part of the program reports an event that a person should see. ``text``: one line for the console, more for details."""

    def __call__(self, text: str, kind: EventKind = "note", **fields: Unpack[EventFields]) -> None: ...


def unheard(text: str, kind: EventKind = "note", **fields: Unpack[EventFields]) -> None:
    """Drop the event: the ``Note`` of callers that have no events log."""


LEVELS: dict[str, str] = {}
MEANINGS: dict[str, str] = {}
for _line in _TABLE.strip().splitlines():
    _kind, LEVELS[_kind], MEANINGS[_kind] = (cell.strip() for cell in _line.split("|", 2))


def event_row(text: str, kind: EventKind, fields: EventFields, *, time_s: float) -> dict[str, Any]:
    """``time_s``: seconds since the epoch. Raises ``KeyError`` for a kind that is not declared."""
    return {"time_s": time_s, "level": LEVELS[kind], "event": kind, **fields, "text": text}
