"""Whatever the machine says or keeps goes through JSON and comes back as it was."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import Any, get_args

import numpy as np
import pytest
from builders import prompt
from hypothesis import given
from hypothesis import strategies as st
from ledger_support import admit, delivered, drive, make_ledger

from fr3e_async.algorithm.anchors import AnchorRule
from fr3e_async.algorithm.strategies import GroupPlan
from fr3e_async.machine.codec import decode, encode
from fr3e_async.machine.events import Event
from fr3e_async.machine.group import Group, Rollout, Status
from fr3e_async.machine.ledger_state import LedgerState
from fr3e_async.machine.messages import Assign, Command, Retire, Sample, Score
from fr3e_async.types import Anchor, Finish, Outcome, Prompt, RolloutId, RolloutSummary, Verdict

PROMPTS = {uid: prompt(uid) for uid in ("p", "q/1", "ü 3")}
EVENTS, COMMANDS = get_args(Event), [kind for kind in get_args(Command) if kind is not Assign]


def numbers() -> st.SearchStrategy[float]:
    """Whole ones too, for a sum that begins with 0 is one."""
    return st.floats(allow_nan=False) | st.integers(-5, 5)


texts = st.text(max_size=6)
small = st.integers(-2, 10**6)
ids = st.builds(RolloutId, texts, small, small)
verdicts = st.one_of(
    st.builds(Verdict, outcome=st.sampled_from(Outcome), reason=texts, attempts=small),
    st.builds(Verdict, outcome=st.just(Outcome.RIGHT), score=st.floats(0, 1)),
)
plans = st.one_of(
    st.builds(GroupPlan, bases=small),
    st.builds(
        GroupPlan, bases=small, trunks=small, branches=st.integers(3, 9), first=st.just(2),
        rule=st.builds(AnchorRule, name=texts, count=st.integers(1, 5), min_gap=small),
    ),
)  # fmt: skip
anchors = st.builds(
    Anchor, node=st.integers(5, 9), parent=st.integers(0, 4), trunk=small, position=st.integers(1, 9), score=numbers(),
    certain=st.booleans(),
)  # fmt: skip
prompts = st.sampled_from(list(PROMPTS.values()))
for kind, how in ((Prompt, prompts), (RolloutId, ids), (Verdict, verdicts), (GroupPlan, plans), (Anchor, anchors)):
    st.register_type_strategy(kind, how)
st.register_type_strategy(Retire, st.builds(Retire, reasons=st.dictionaries(texts, small), reward_sum=numbers()))
groups = st.builds(
    Group, name=texts, prompt=prompts, plan=plans, number=small, born=small,
    candidates=st.frozensets(ids, max_size=3), trunks=st.none() | st.tuples(ids, ids),
    rollouts=st.dictionaries(ids, st.from_type(Rollout), max_size=3),
    anchors_of=st.dictionaries(ids, st.tuples(anchors), max_size=2),
    branched=st.sets(ids, max_size=2), settled=st.sets(ids, max_size=2),
    anchors=st.dictionaries(small, anchors, max_size=2), scoring_attempts=st.dictionaries(small, small, max_size=2),
)  # fmt: skip
states = st.builds(
    LedgerState, version=small, admitted=small, fates=st.dictionaries(texts, small, max_size=3),
    budget=st.dictionaries(texts, numbers(), max_size=3), groups=st.lists(groups, max_size=2).map(tuple), rejected_in_a_row=small,
)  # fmt: skip


def there_and_back(kind: Any, value: Any) -> Any:
    return decode(kind, json.loads(json.dumps(encode(value))), PROMPTS.__getitem__)


def same(one: Any, other: Any) -> bool:
    """Equal to the type of every number; a prompt by its id."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Prompt):
        return bool(one.uid == other.uid)
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or repr(one) == repr(other) == "nan"


@pytest.mark.parametrize("kind", [*EVENTS, *COMMANDS, *(Finish, Status), RolloutSummary], ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_message_comes_back(kind, data):
    value = data.draw(st.sampled_from(list(kind)) if issubclass(kind, Enum) else st.from_type(kind))
    assert same(there_and_back(kind, value), value)


@given(states)
def test_the_books_come_back(state):
    assert same(there_and_back(LedgerState, state), state)


def test_what_is_worked_out_again_is_left_out():
    group = make_ledger(groups=1)
    admit(group, "p")
    (kept,) = group.state().groups
    assert kept.tasks == {1, 2}
    assert there_and_back(Group, kept).tasks == set()


def test_a_prompt_is_its_id():
    ledger = make_ledger()
    (sample, _) = admit(ledger, "p")
    assert encode(sample)[1] == "p"
    assert there_and_back(Sample, sample).prompt is PROMPTS["p"]


def test_a_running_ledger_comes_back():
    ledger = make_ledger(groups=2, staleness=3, trunk="all", budget=60)
    drive(ledger, admit(ledger, "p"), rewards=lambda id: id.branch)
    first, *_ = admit(ledger, "q/1")
    ledger.handle(delivered(first, payload=5))
    ledger.state().groups[0].credit = None  # not kept
    for group in ledger.state().groups:
        group.tasks.clear()
    assert same(there_and_back(LedgerState, ledger.state()), ledger.state())


@pytest.mark.parametrize("value", [np.int64(1), np.array([1]), object(), np.bool_(True)])
def test_what_has_no_form_is_refused(value):
    with pytest.raises(TypeError, match="has no JSON form"):
        encode({"x": value})


@pytest.mark.parametrize("kind", [int | str, Assign, complex])
def test_a_type_that_json_cannot_tell_is_refused(kind):
    with pytest.raises(TypeError, match="JSON form"):
        decode(kind, [1, "w", None], PROMPTS.__getitem__)


@pytest.mark.parametrize("kind", [Score, tuple[str, float]])
def test_too_few_fields_are_an_error(kind):
    with pytest.raises(ValueError, match="zip"):
        decode(kind, [1], PROMPTS.__getitem__)


def test_each_of_a_pair_has_its_own_type():
    assert decode(tuple[int, Outcome], [1, "right"], PROMPTS.__getitem__) == (1, Outcome.RIGHT)
