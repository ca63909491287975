"""Events and ledgers go through JSON and come back as they were; a journal that was recorded before they had tags replays to the same decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_support import admit, delivered, drive, make_ledger, through_json
from old_journal import read_old_journal

from fr3e_async.algorithm.anchors import AnchorRule
from fr3e_async.algorithm.strategies import GroupPlan
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine.budget import Account
from fr3e_async.machine.events import Event, WorkerUp
from fr3e_async.machine.group import Group, Rollout, Status
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.outcomes import Outcome
from fr3e_async.run.replay import replay
from fr3e_async.store.journal import read_journal
from fr3e_async.types import Anchor, RolloutId, RolloutSummary, Verdict

OLD = Path(__file__).parent / "fixtures" / "journals" / "cluster-format-2.jsonl"

texts = st.text(max_size=6)
small = st.integers(-2, 10**6)
numbers = st.floats(allow_nan=False, allow_infinity=False)
ids = st.builds(RolloutId, texts, small, small)
verdicts = st.one_of(
    st.builds(Verdict, outcome=st.sampled_from([Outcome.CORRECT, Outcome.WRONG, Outcome.UNKNOWN]), reason=texts, attempts=small),
    st.builds(Verdict, outcome=st.just(Outcome.CORRECT), score=st.floats(0, 1)),
)
plans = st.one_of(
    st.builds(GroupPlan, bases=small),
    st.builds(
        GroupPlan, bases=small, trunks=small, branches=st.integers(3, 9), first=st.just(2),
        rule=st.builds(AnchorRule, name=texts, count=st.integers(1, 5), min_gap=small),
    ),
)  # fmt: skip
anchors = st.builds(
    Anchor, node=st.integers(5, 9), parent=st.integers(0, 4), trunk=small, position=st.integers(1, 9), score=numbers,
    certain=st.booleans(),
)  # fmt: skip


def struct(kind: Any, **fixed: st.SearchStrategy) -> st.SearchStrategy:
    """Any value of a struct, by the types of its fields."""
    of_fields = {field.name: fixed.get(field.name, st.from_type(field.type)) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **of_fields)


for kind, how in ((float, numbers), (RolloutId, ids), (Verdict, verdicts), (Anchor, anchors)):
    st.register_type_strategy(kind, how)
st.register_type_strategy(RolloutSummary, struct(RolloutSummary))
rollouts = struct(Rollout, status=st.sampled_from(Status))
groups = st.builds(
    Group, name=texts, plan=plans, number=small, born=small,
    candidates=st.frozensets(ids, max_size=3), trunks=st.none() | st.tuples(ids, ids),
    issued=st.lists(rollouts, max_size=3, unique_by=lambda rollout: rollout.id),
    anchors_of=st.dictionaries(small, st.tuples(anchors), max_size=2),
    branched=st.sets(ids, max_size=2), settled=st.sets(ids, max_size=2),
    anchors=st.dictionaries(small, anchors, max_size=2), scoring_attempts=st.dictionaries(small, small, max_size=2),
)  # fmt: skip
states = st.builds(
    LedgerState, version=small, admitted=small, outcomes=st.dictionaries(texts, small, max_size=3), budget=struct(Account),
    groups=st.lists(groups, max_size=2).map(tuple), rejected_in_a_row=small,
)  # fmt: skip


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_event_comes_back(kind, data):
    value = data.draw(struct(kind))
    back = msgspec.json.decode(to_json(value), type=Event)
    assert back == value
    assert type(back) is kind


@given(states)
def test_the_ledger_comes_back(state):
    assert through_json(state) == state


def test_what_is_worked_out_again_is_left_out():
    group = make_ledger(groups=1)
    admit(group, "p")
    (kept,) = group.state().groups
    assert kept.tasks.keys() == {1, 2}
    (back,) = through_json(group.state()).groups
    assert (back.tasks, back.credit) == ({}, None)
    assert (back.owed, list(back.rollouts)) == (2, [RolloutId("p@0", 0, 0), RolloutId("p@0", 0, 1)])


def test_a_running_ledger_comes_back():
    ledger = make_ledger(groups=2, staleness=3, trunk="all", budget=60)
    drive(ledger, admit(ledger, "p"), rewards=lambda id: id.branch)
    first, *_ = admit(ledger, "q/1")
    ledger.handle(delivered(first, payload=5))
    assert through_json(ledger.state()) == ledger.state()
    assert [list(group.rollouts) for group in through_json(ledger.state()).groups] == [
        list(group.rollouts) for group in ledger.state().groups
    ]


@pytest.mark.parametrize("value", [np.int64(1), np.array([1]), object(), np.bool_(True)])
def test_what_has_no_form_is_refused(value):
    with pytest.raises(TypeError, match="has no JSON form"):
        to_json({"x": value})


def test_a_float_of_numpy_is_one():
    assert to_json([np.float64(0.5), {"b": 1}]) == b'[0.5,{"b":1}]'


def test_what_stands_at_its_default_is_not_written():
    assert to_json(WorkerUp(role="verifiers", worker="v")) == b'{"type":"WorkerUp","role":"verifiers","worker":"v"}'


def test_a_journal_recorded_before_messages_had_tags_replays_to_the_same_decisions(tmp_path):
    """A session that resumed with nine open groups, all 20 kinds of events in it; and once more through the journal of today."""
    header, entries = read_old_journal(OLD)
    assert header.state is not None
    assert (len(header.state.groups), len(entries), len({type(entry.event) for entry in entries})) == (9, 335, 20)
    path = tmp_path / "again.jsonl"
    path.write_bytes(b"".join(to_json(line) + b"\n" for line in (header, *entries)))
    again, rows = read_journal(path)
    assert (again.state, list(rows)) == (header.state, entries)
    assert sum(step.same for step in replay(header, iter(entries))) == 335
    assert sum(step.same for step in replay(*read_journal(path))) == 335
