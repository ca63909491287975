"""The ledger's laws as a state machine: any interleaving of deliveries, losses, duplicates, verdicts, training, publishing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from ledger_support import anchors_of, make_ledger, note, verdict

from fr3e_async.machine.events import Admitted, Delivered, Event, Lost, Rescored, Scored, Trained
from fr3e_async.machine.messages import Branch, Command, Live, Rescore, Retire, Sample, Score, Train
from fr3e_async.types import Finish, RolloutId

REWARDS = st.sampled_from([0, 0, 1, 1, 0.25, None])
FINISHES = st.sampled_from([Finish.STOP, Finish.STOP, Finish.LENGTH, Finish.ABORT])
MISHAPS = st.sampled_from(["", "", "", "", "rows", "lost"])  # what befalls a task: some rows come to nothing, or all is lost
PLACES = st.sampled_from([[1, 2], [1, 2], [2], []])  # anchors of a trunk


class LedgerMachine(RuleBasedStateMachine):
    """One trunk, anchors from the engine. Subclasses change what their names say."""

    groups, staleness, budget, rescored = 2, 1, 0, False
    algorithm: dict = {}

    def __init__(self):
        super().__init__()
        self.ledger = make_ledger(groups=self.groups, staleness=self.staleness, budget=self.budget, **self.algorithm)
        self.open: list[Command] = []  # not carried out yet
        self.told: list[Event] = []  # may be told again
        self.train: Train | None = None
        self.unpublished: list[int] = []
        self.admitted = self.payload = 0
        self.outcomes: dict[str, str] = {}
        self.rows: dict[tuple[int, int], RolloutId] = {}
        self.trained: set[RolloutId] = set()

    def tell(self, event):
        if not isinstance(event, Trained | Live | Admitted):
            self.told.append(event)
        for command in self.ledger.handle(event):
            match command:
                case Train():
                    assert self.train is None
                    self.train = command
                case Retire():
                    assert command.group not in self.outcomes, "a group was settled twice"
                    self.outcomes[command.group] = command.outcome
                case _:
                    self.require_sense(command)
                    self.open.append(command)

    def require_sense(self, command):
        match command:
            case Sample() | Branch():
                assert command.ids
                assert len(set(command.ids)) == len(command.ids)
            case Score():
                assert [self.rows[command.payload, row] for row in command.rows] == list(command.ids)
                assert command.ids
            case Rescore():
                assert command.trunks
                assert len(command.lengths) == len(command.trunks)

    @precondition(lambda self: self.ledger.admissible() > 0)
    @rule()
    def admit(self):
        self.admitted += 1
        uid = f"p{self.admitted}"
        self.tell(Admitted(group=f"{uid}@0"))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), mishaps=st.lists(MISHAPS, min_size=1, max_size=4))
    def carry_out(self, data, mishaps):
        for mishap in mishaps[: len(self.open)]:
            command = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
            match command:
                case Rescore():
                    self.chosen(command, data.draw(PLACES))
                case Sample() | Branch() | Score() if mishap == "lost":
                    self.lost(command)
                case Score():
                    self.judged(command, data.draw(st.lists(REWARDS, min_size=len(command.ids), max_size=len(command.ids))))
                case Sample() | Branch():
                    rows = data.draw(st.permutations(command.ids))
                    ended = data.draw(st.integers(1, len(rows)))  # the others are still being drawn
                    rows, rest = rows[:ended], rows[ended:]
                    finishes = FINISHES if mishap == "rows" else st.just(Finish.STOP)
                    lengths = st.integers(0 if mishap == "rows" else 3, 6)
                    self.delivered(
                        command, [(id, data.draw(finishes), data.draw(lengths)) for id in rows], data.draw(PLACES), rest
                    )

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def tell_again(self, data):
        self.tell(data.draw(st.sampled_from(self.told)))

    def lost(self, command):
        scoring = isinstance(command, Score)
        payload = command.payload if scoring else -1
        group = command.ids[0].group
        self.tell(Lost(task=command.task, group=group, ids=command.ids, reason="x", scoring=scoring, payload=payload))

    def delivered(self, command, rows, places, rest=()):
        if rest:
            self.open.append(msgspec.structs.replace(command, ids=tuple(rest)))
        self.payload += 1
        self.rows |= {(self.payload, row): id for row, (id, _, _) in enumerate(rows)}
        trunk = isinstance(command, Sample) and command.trunk
        anchors = tuple(a for id, _, _ in rows for a in anchors_of(id, *places)) if trunk and not self.rescored else None
        notes = tuple(note(id, self.ledger.live, finish, length) for id, finish, length in rows)
        self.tell(
            Delivered(
                task=command.task, group=command.ids[0].group, payload=self.payload, notes=notes, anchors=anchors, left=len(rest)
            )
        )  # fmt: skip

    def judged(self, command, rewards):
        words = tuple(verdict(r) for r in rewards)
        self.tell(Scored(task=command.task, group=command.ids[0].group, ids=command.ids, verdicts=words))

    def chosen(self, command, places):
        anchors = tuple(a for id in command.trunks for a in anchors_of(id, *places))
        self.tell(Rescored(task=command.task, group=command.group, trunks=command.trunks, anchors=anchors))

    @precondition(lambda self: self.train is not None)
    @rule()
    def train_batch(self):
        train, self.train = self.train, None
        assert len(train.groups) == self.groups
        assert not any(group in self.outcomes for group in train.groups)
        ids = [self.rows[item.payload, item.row] for item in train.items]
        assert {id.group for id in ids} == set(train.groups), "a group without a row, or a row of another"
        assert len(set(ids)) == len(ids)
        assert not self.trained & set(ids), "trained twice"
        self.trained |= set(ids)
        self.unpublished.append(train.version)
        self.tell(Trained(version=train.version))

    @precondition(lambda self: self.unpublished)
    @rule(data=st.data())
    def publish(self, data):
        self.published(data.draw(st.integers(1, len(self.unpublished))))

    def published(self, count):
        version = self.unpublished[count - 1]  # older ones may be skipped over
        del self.unpublished[:count]
        self.tell(Live(version=version))

    @invariant()
    def counts_balance(self):
        self.ledger.check()  # Ledger itself raises StalenessError on a batch that is too old
        assert self.ledger.admitted == self.admitted == len(self.outcomes) + self.ledger.in_flight
        assert self.ledger.slots_held <= self.groups * (self.staleness + 1)

    @invariant()
    def somebody_owes_something(self):
        """No deadlock: while groups are in flight, something is outstanding, or a slot is free to refill the head."""
        if self.ledger.in_flight and not self.open and self.train is None and not self.unpublished:
            assert self.ledger.admissible() > 0

    def teardown(self):
        """Carry out all that is open: every prompt is settled, or ready and waiting for the rest of its batch only."""
        while self.open or self.train or self.unpublished:
            if self.open:
                self.finish(self.open.pop(0))
            elif self.train:
                self.train_batch()
            else:
                self.published(len(self.unpublished))
        self.counts_balance()
        assert self.ledger.ready == self.ledger.in_flight < self.groups, self.ledger.waiting()

    def finish(self, command):
        match command:
            case Sample() | Branch():
                self.delivered(command, [(id, Finish.STOP, 3) for id in command.ids], [1, 2])
            case Score():
                self.judged(command, [id.branch % 2 for id in command.ids])
            case Rescore():
                self.chosen(command, [1, 2])


class Synchronous(LedgerMachine):
    groups, staleness = 1, 0


class Deep(LedgerMachine):
    groups, staleness = 2, 3


class Flat(LedgerMachine):
    algorithm = {"strategy": "rloo", "bases": 3}
    budget = 8


class RandomTrunk(LedgerMachine):
    algorithm = {"trunk": "random", "bases": 3}


class AllTrunksRescored(LedgerMachine):
    algorithm = {"trunk": "all"}
    rescored = True


class PickedByReward(LedgerMachine):
    algorithm = {"trunk": "one_correct_one_wrong", "bases": 3}
    budget = 60


class PickedByRewardRescored(LedgerMachine):
    algorithm = {"trunk": "one_correct_one_wrong", "bases": 3}
    rescored = True


class VinePpoRescored(LedgerMachine):
    algorithm = {"strategy": "vineppo", "trunk": "all"}
    groups, rescored, budget = 1, True, 40


@pytest.mark.parametrize("machine", [LedgerMachine, *LedgerMachine.__subclasses__()], ids=lambda machine: machine.__name__)
def test_laws(machine):
    # A play that begins badly has few steps that may follow: hypothesis then complains of its own luck.
    few = [HealthCheck.filter_too_much, HealthCheck.too_slow]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=50, deadline=None, suppress_health_check=few)
    )
