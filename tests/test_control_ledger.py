"""The ledger: a hand-made story, and its laws for any order of events (staleness, capacity, conservation, once only)."""

from __future__ import annotations

import pytest
from builders import prompt, small_config
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.control.ledger import Ledger, LedgerState, StarvedError
from fr3e_async.control.messages import (
    Admitted,
    Branch,
    Delivered,
    Judged,
    Lost,
    Published,
    Retire,
    Sample,
    Score,
    Train,
    Trained,
)
from fr3e_async.types import Anchor, Finish, Outcome, RolloutNote, Verdict


def make_ledger(*, steps=100, groups=2, staleness=1, attempts=2, anchors=2, strategy="fr3e", rejected=10_000, state=None):
    config = small_config(
        run={"steps": steps},
        flow={
            "groups_per_step": groups,
            "max_staleness": staleness,
            "max_attempts": attempts,
            "max_rejected_in_a_row": rejected,
        },
        algorithm={"bases": 2, "anchors": anchors, "branches": 2, "strategy": strategy},
        learner={"minibatches": 1},
    )
    return Ledger(config, make_strategy(config.algorithm), state=state)


def note(id, version=0, finish=Finish.STOP, length=5):
    return RolloutNote(id=id, length=length, entropy_sum=1.0, finish=finish, oldest_version=version, newest_version=version)


def anchors_of(count):
    return tuple(Anchor(node=n, position=n, score=1.0) for n in range(1, count + 1))


def kinds(commands):
    return [type(c).__name__ for c in commands]


def verdicts(*right):
    return tuple(Verdict(outcome=Outcome.RIGHT if r else Outcome.WRONG) for r in right)


def admit(ledger, uid):
    return ledger.handle(Admitted(group=f"{uid}@0", prompt=prompt(uid)))


def drive(ledger, commands, *, rewards, payload=100, anchors=1):
    """Carry out commands to the end with rewards by (node, branch); returns what is left over (Train, Retire)."""
    rest, todo = [], list(commands)
    while todo:
        command = todo.pop(0)
        match command:
            case Sample() | Branch():
                payload += 1
                trunk = isinstance(command, Sample) and command.trunk
                todo += ledger.handle(
                    Delivered(
                        task=command.task,
                        group=command.ids[0].group,
                        payload=payload,
                        notes=tuple(note(id, ledger.live) for id in command.ids),
                        anchors=anchors_of(anchors) if trunk else None,
                    )
                )
            case Score():
                right = [rewards(id) for id in command.ids]
                todo += ledger.handle(
                    Judged(task=command.task, group=command.ids[0].group, ids=command.ids, verdicts=verdicts(*right))
                )
            case _:
                rest.append(command)
    return rest


def test_a_branch_starts_when_its_own_trunk_ends():
    ledger = make_ledger()
    trunk, others = admit(ledger, "a")
    assert (trunk.trunk, len(trunk.ids), len(others.ids)) == (True, 1, 1)
    commands = ledger.handle(
        Delivered(task=trunk.task, group="a@0", payload=1, notes=(note(trunk.ids[0]),), anchors=anchors_of(2))
    )
    assert kinds(commands) == ["Score", "Branch"]
    assert [tuple(id[1:]) for id in commands[1].ids] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_batch_is_trained_in_admission_order_and_frees_slots_when_live():
    ledger = make_ledger(groups=1, staleness=1)
    assert ledger.admissible() == 2
    first, second = admit(ledger, "a"), admit(ledger, "b")
    assert ledger.admissible() == 0
    assert drive(ledger, second, rewards=lambda id: id.branch) == []  # b is ready, but a comes first
    (train,) = drive(ledger, first, rewards=lambda id: id.branch)
    assert (train.groups, train.version) == (("a@0",), 1)
    retired, train_b = ledger.handle(Trained(version=1))
    assert (retired.fate, train_b.groups) == ("trained", ("b@0",))
    assert ledger.admissible() == 0  # a's slot is held until version 1 is live
    ledger.handle(Published(version=1))
    assert ledger.admissible() == 1


def test_a_degenerate_group_gives_its_slot_back_at_once():
    ledger = make_ledger(groups=1)
    (retired,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    assert (retired.fate, ledger.admissible(), ledger.in_flight) == ("rejected_all_right", 2, 0)


def test_without_branching_all_bases_are_one_task():
    ledger = make_ledger(strategy="grpo_pp", groups=1)
    (sample,) = admit(ledger, "a")
    assert len(sample.ids) == 2
    assert kinds(drive(ledger, [sample], rewards=lambda id: id.branch)) == ["Train"]


def test_a_lost_trunk_is_issued_again_then_given_up_and_the_bases_go_on():
    ledger = make_ledger(attempts=2, groups=1)
    trunk, others = admit(ledger, "a")
    lost = {"task": trunk.task, "group": "a@0", "ids": trunk.ids, "reason": "died"}
    (again,) = ledger.handle(Lost(**lost))
    assert (again.ids, again.trunk) == (trunk.ids, True)
    assert ledger.handle(Lost(**lost)) == []
    (retired,) = drive(ledger, [others], rewards=lambda id: 1)
    assert (retired.fate, retired.given_up, ledger.given_up) == ("rejected_too_few", 1, 1)


def test_an_aborted_rollout_is_owed_again_and_a_duplicate_is_not():
    ledger = make_ledger(strategy="grpo_pp")
    (sample,) = admit(ledger, "a")
    notes = (note(sample.ids[0]), note(sample.ids[1], finish=Finish.ABORT))
    score, again = ledger.handle(Delivered(task=sample.task, group="a@0", payload=1, notes=notes))
    assert (score.rows, again.ids) == ((0,), (sample.ids[1],))
    assert ledger.handle(Delivered(task=sample.task, group="a@0", payload=2, notes=notes[:1])) == []
    assert ledger.duplicates == 1


def test_a_lost_score_is_asked_for_again_then_given_up():
    ledger = make_ledger(strategy="grpo_pp", attempts=2)
    (sample,) = admit(ledger, "a")
    (score,) = ledger.handle(Delivered(task=sample.task, group="a@0", payload=1, notes=tuple(note(id) for id in sample.ids)))
    lost = Lost(task=score.task, group="a@0", ids=score.ids, reason="died", scoring=True, payload=1)
    (again,) = ledger.handle(lost)
    assert (again.ids, again.rows) == (score.ids, score.rows)
    (retired,) = ledger.handle(lost)
    assert (retired.fate, retired.unknown, retired.given_up) == ("failed_given_up", 0, 2)


def test_starvation_is_an_error_with_the_knob():
    ledger = make_ledger(rejected=1)
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    with pytest.raises(StarvedError, match=r"flow\.max_rejected_in_a_row is 1"):
        drive(ledger, admit(ledger, "b"), rewards=lambda id: 1)


def test_no_more_groups_are_admitted_than_the_remaining_steps_need():
    ledger = make_ledger(steps=1, groups=2, staleness=3)
    assert ledger.admissible() == 2


def test_state_leaves_out_what_is_in_flight():
    ledger = make_ledger(groups=1)
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    admit(ledger, "b")
    state = ledger.state()
    assert state == LedgerState(version=0, admitted=1, fates={"rejected_all_right": 1})
    again = make_ledger(groups=1, state=state)
    again.check()
    assert again.admissible() == 2


class LedgerMachine(RuleBasedStateMachine):
    """Any interleaving of deliveries, losses, duplicates, verdicts, training and publishing."""

    groups, staleness = 2, 1

    def __init__(self):
        super().__init__()
        self.ledger = make_ledger(groups=self.groups, staleness=self.staleness, attempts=2)
        self.open: list = []  # sampling and scoring commands not carried out yet
        self.delivered: list[Delivered] = []
        self.train: Train | None = None
        self.unpublished: list[int] = []
        self.admitted = self.retired = self.payload = 0
        self.fates: dict[str, str] = {}

    def take(self, commands):
        for command in commands:
            match command:
                case Train():
                    assert self.train is None
                    self.train = command
                case Retire():
                    assert command.group not in self.fates, "a group was settled twice"
                    self.fates[command.group] = command.fate
                case _:
                    self.open.append(command)

    def pick(self, data, kind):
        options = [c for c in self.open if isinstance(c, kind)]
        if not options:
            return None
        command = data.draw(st.sampled_from(options))
        self.open.remove(command)
        return command

    @precondition(lambda self: self.ledger.admissible() > 0)
    @rule()
    def admit(self):
        self.admitted += 1
        uid = f"p{self.admitted}"
        self.take(self.ledger.handle(Admitted(group=f"{uid}@0", prompt=prompt(uid))))

    @rule(data=st.data())
    def deliver(self, data):
        command = self.pick(data, (Sample, Branch))
        if command is None:
            return
        self.payload += 1
        finishes = st.sampled_from([Finish.STOP, Finish.STOP, Finish.LENGTH, Finish.ABORT])
        notes = tuple(note(id, self.ledger.live, data.draw(finishes), data.draw(st.integers(0, 3))) for id in command.ids)
        trunk = isinstance(command, Sample) and command.trunk
        event = Delivered(
            task=command.task,
            group=command.ids[0].group,
            payload=self.payload,
            notes=notes,
            anchors=anchors_of(data.draw(st.integers(0, 2))) if trunk else None,
        )
        self.delivered.append(event)
        self.take(self.ledger.handle(event))

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def deliver_again(self, data):
        self.take(self.ledger.handle(data.draw(st.sampled_from(self.delivered))))

    @rule(data=st.data(), scoring=st.booleans())
    def lose(self, data, scoring):
        command = self.pick(data, Score if scoring else (Sample, Branch))
        if command is None:
            return
        payload = command.payload if scoring else -1
        group = command.ids[0].group
        lost = Lost(task=command.task, group=group, ids=command.ids, reason="x", scoring=scoring, payload=payload)
        self.take(self.ledger.handle(lost))

    @rule(data=st.data())
    def judge(self, data):
        command = self.pick(data, Score)
        if command is None:
            return
        outcomes = data.draw(st.lists(st.sampled_from(list(Outcome)), min_size=len(command.ids), max_size=len(command.ids)))
        words = tuple(Verdict(outcome=o) for o in outcomes)
        self.take(self.ledger.handle(Judged(task=command.task, group=command.ids[0].group, ids=command.ids, verdicts=words)))

    @precondition(lambda self: self.train is not None)
    @rule()
    def train_batch(self):
        train, self.train = self.train, None
        assert len(train.groups) == self.groups
        assert train.items, "a batch without rows"
        assert not any(group in self.fates for group in train.groups)
        self.unpublished.append(train.version)
        self.take(self.ledger.handle(Trained(version=train.version)))

    @precondition(lambda self: self.unpublished)
    @rule(data=st.data())
    def publish(self, data):
        count = data.draw(st.integers(1, len(self.unpublished)))
        version = self.unpublished[count - 1]  # older ones may be skipped over
        del self.unpublished[:count]
        self.take(self.ledger.handle(Published(version=version)))

    @invariant()
    def books_balance(self):
        self.ledger.check()  # Ledger itself raises StalenessError on a batch that is too old
        assert self.ledger.admitted == self.admitted == len(self.fates) + self.ledger.in_flight
        assert self.ledger.slots_held <= self.groups * (self.staleness + 1)

    @invariant()
    def somebody_owes_something(self):
        """No deadlock: while groups are in flight, something is outstanding, or a slot is free to refill the head."""
        if self.ledger.in_flight and not self.open and self.train is None and not self.unpublished:
            assert self.ledger.admissible() > 0


class SynchronousMachine(LedgerMachine):
    groups, staleness = 1, 0


class DeepMachine(LedgerMachine):
    groups, staleness = 2, 3


for machine in (LedgerMachine, SynchronousMachine, DeepMachine):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)

TestLedger = LedgerMachine.TestCase
TestSynchronousLedger = SynchronousMachine.TestCase
TestDeepLedger = DeepMachine.TestCase
