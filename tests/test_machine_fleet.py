"""Which weights every engine serves: scenarios for each way of updating, and the laws for any order of events.

The laws together with the rest of the machine are in test_machine_machine.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from builders import small_config
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from fr3e_async.machine.dispatch import GENERATORS
from fr3e_async.machine.events import Acked, Due, Exported, WorkerUp
from fr3e_async.machine.fleet import Fleet, MemberState
from fr3e_async.machine.messages import Gone, Hold, Idle, Live, Message, Send, Serve, TakeBack, Wait


class Ships(Fleet):
    """A fleet whose events are told in short. The answer is checked for ``Live`` and ``Wait``, and given without them."""

    def join(self, worker: str, version: int) -> list[Message]:
        return self.tell(WorkerUp(role=GENERATORS, worker=worker, version=version))

    def leave(self, worker: str) -> list[Message]:
        return self.tell(Gone(worker=worker))

    def exported(self, version: int) -> list[Message]:
        return self.tell(Exported(version=version))

    def idle(self, worker: str) -> list[Message]:
        return self.tell(Idle(worker=worker))

    def acked(self, worker: str, version: int) -> list[Message]:
        return self.tell(Acked(worker=worker, version=version))

    def overdue(self, worker: str, version: int) -> list[Message]:
        return self.tell(Due(key=f"idle {version} {worker}"))

    def tell(self, event: Message) -> list[Message]:
        before = self.live
        commands = self.handle(event)
        if self.live > before:
            assert commands.pop() == Live(version=self.live)
        held = [c.worker for c in commands if isinstance(c, Hold)]
        waits = [c for c in commands if isinstance(c, Wait)]
        limit = self._config.idle_timeout_s
        idle = held if self._config.update == "wait_idle" else []
        assert waits == [Wait(key=f"idle {self.target} {worker}", seconds=limit) for worker in idle]
        assert not any(isinstance(c, Live) for c in commands)
        return [c for c in commands if c not in waits]


NOTHING: list[Message] = []


def sent(version: int, *workers: str, alone: bool = False) -> Send:
    return Send(version=version, workers=workers, alone=alone)


def held(*workers: str) -> list[Message]:
    return [Hold(worker=worker) for worker in workers]


def fleet(*engines: str, update: str = "in_flight", transfer: str = "object_store", version: int = 0) -> Ships:
    made = Ships(small_config(weights={"update": update, "transfer": transfer}).weights, version=version)
    for engine in engines:
        assert made.join(engine, version) == NOTHING
    return made


# ---- in flight ----


def test_in_flight_engines_get_new_weights_at_once_and_never_stop():
    ships = fleet("a", "b")
    assert ships.exported(1) == [sent(ships.target, "a", "b")]
    assert ships.acked("a", 1) == NOTHING
    assert ships.live == 0
    assert ships.acked("b", 1) == NOTHING
    assert ships.live == 1


def test_each_engine_goes_its_own_way_to_the_newest_version():
    ships = fleet("a", "b")
    ships.exported(1)
    assert ships.acked("a", 1) == NOTHING
    assert ships.exported(2) == [sent(ships.target, "a")]
    assert ships.exported(3) == NOTHING  # a is busy with 2, b with 1
    assert ships.acked("b", 1) == [sent(ships.target, "b")]
    assert ships.acked("a", 2) == [sent(ships.target, "a")]
    assert ships.live == 1
    ships.acked("b", 3)
    assert ships.live == 2
    ships.acked("a", 3)
    assert ships.live == 3


def test_the_live_version_is_not_above_that_of_an_engine_that_has_just_acknowledged_an_old_one():
    ships = fleet("slow", "fast")
    ships.exported(1)
    ships.acked("fast", 1)
    ships.exported(2)
    ships.acked("fast", 2)
    ships.acked("slow", 1)
    assert ships.live == 1


def test_an_engine_that_leaves_does_not_hold_up_the_others():
    ships = fleet("a", "b")
    ships.exported(1)
    ships.acked("a", 1)
    assert ships.leave("b") == NOTHING
    assert ships.live == 1
    assert ships.leave("b") == NOTHING


# ---- engines that join ----


def test_an_engine_with_older_weights_serves_nothing_before_it_has_the_newest():
    ships = fleet("a", version=3)
    assert ships.join("b", 0) == [*held("b"), sent(ships.target, "b", alone=True)]
    assert ships.live == 3
    assert ships.acked("b", 3) == [Serve(worker="b")]


@pytest.mark.parametrize("update", ["in_flight", "wait_idle", "abort_retry"])
def test_a_joining_engine_whose_weights_are_old_by_the_time_it_has_them_gets_newer_ones_first(update):
    ships = fleet("a", version=1, update=update)
    ships.join("b", 0)
    ships.exported(2)
    if update != "in_flight":
        assert ships.idle("a") == [sent(ships.target, "a")]
    ships.acked("a", 2)
    assert ships.live == 2
    assert ships.acked("b", 1) == [sent(ships.target, "b")]  # it would make tokens older than the live version
    assert (ships.live, ships.members["b"].joining) == (2, True)
    assert ships.acked("b", 2) == [Serve(worker="b")]
    ships.exported(3)
    ships.idle("a"), ships.acked("a", 3)
    assert ships.live == 2  # b counts from now on


def test_without_any_engine_the_live_version_stands_until_one_has_joined():
    ships = fleet("a", version=1)
    ships.leave("a")
    assert ships.exported(2) == NOTHING
    assert ships.live == 1
    ships.join("b", -1)
    assert ships.live == 1
    assert ships.acked("b", 2) == [Serve(worker="b")]
    assert ships.live == 2


# ---- when idle, and by force ----


def test_wait_idle_pauses_sends_when_idle_and_serves_again():
    ships = fleet("a", "b", update="wait_idle")
    assert ships.exported(1) == held("a", "b")
    assert ships.idle("a") == [sent(ships.target, "a")]
    assert ships.idle("a") == NOTHING
    assert ships.acked("a", 1) == [Serve(worker="a")]
    assert ships.overdue("b", 0) == NOTHING  # of an earlier pause
    assert ships.overdue("b", 1) == [TakeBack(worker="b")]
    assert ships.idle("b") == [sent(ships.target, "b")]
    assert ships.overdue("b", 1) == NOTHING
    assert ships.acked("b", 1) == [Serve(worker="b")]
    assert ships.live == 1


def test_a_paused_engine_gets_the_newest_of_several_versions():
    ships = fleet("a", update="wait_idle")
    ships.exported(1)
    assert ships.exported(2) == NOTHING
    ships.idle("a")
    assert ships.members["a"].state is MemberState.RECEIVING
    assert ships.exported(3) == NOTHING
    assert ships.acked("a", 2) == [sent(ships.target, "a")]  # still paused
    assert ships.acked("a", 3) == [Serve(worker="a")]


def test_abort_retry_withdraws_at_once():
    ships = fleet("a", update="abort_retry")
    assert ships.exported(1) == [*held("a"), TakeBack(worker="a")]
    assert ships.idle("a") == [sent(ships.target, "a")]


# ---- all at once ----


def test_together_the_weights_go_out_when_the_last_one_can_take_them():
    ships = fleet("a", "b", update="wait_idle", transfer="collective")
    assert ships.exported(1) == held("a", "b")
    assert ships.idle("a") == NOTHING
    assert ships.idle("b") == [sent(ships.target, "a", "b")]


def test_together_a_second_hand_over_waits_for_the_first():
    ships = fleet("a", "b", transfer="collective")
    assert ships.exported(1) == [sent(ships.target, "a", "b")]
    assert ships.exported(2) == NOTHING
    assert ships.acked("a", 1) == NOTHING
    assert ships.acked("b", 1) == [sent(ships.target, "a", "b")]


def test_together_the_one_that_all_wait_for_may_die():
    ships = fleet("a", "b", update="wait_idle", transfer="collective")
    ships.exported(1)
    ships.idle("a")
    assert ships.leave("b") == [sent(ships.target, "a")]


def test_together_a_hand_over_to_nobody_is_one_all_the_same():
    """The learner waits for it."""
    ships = fleet(transfer="collective")
    assert ships.exported(1) == [sent(ships.target)]
    assert ships.leave("nobody") == NOTHING
    ships = fleet("a", update="wait_idle", transfer="collective")
    assert ships.exported(1) == held("a")
    assert ships.leave("a") == [sent(ships.target)]
    assert ships.join("b", 0) == [*held("b"), sent(ships.target, "b", alone=True)]
    assert ships.acked("b", 1) == [Serve(worker="b")]  # and nothing is sent to nobody once more


# ---- the laws, for any order ----


@dataclass
class Ship:
    serves: int
    coming: int | None = None
    idle: bool = False
    held: bool = False
    joining: bool = False


class FleetLife(RuleBasedStateMachine):
    @initialize(update=st.sampled_from(["in_flight", "wait_idle", "abort_retry"]), together=st.booleans())
    def begin(self, update, together):
        self.update, self.together = update, together
        self.fleet = fleet(update=update, transfer="collective" if together else "object_store")
        self.ships: dict[str, Ship] = {}
        self.names = self.target = self.live = 0
        self.handed = 0  # versions that went out, to nobody perhaps
        self.common: set[str] = set()  # of the hand-over that is under way

    def follow(self, commands):
        for command in commands:
            match command:
                case Hold():
                    self.ships[command.worker].held = True
                case TakeBack():
                    assert self.update == "abort_retry"
                case Send(alone=True):
                    (name,) = command.workers
                    assert self.ships[name].joining
                    self.receive(name)
                case Send():
                    self.sent(command.workers)
                case Serve():
                    ship = self.ships[command.worker]
                    assert ship.held
                    assert ship.serves >= self.target or self.update == "in_flight"
                    ship.held = ship.joining = ship.idle = False
                case _:
                    raise AssertionError(command)

    def sent(self, names):
        assert names or self.together
        if self.together:
            assert not self.common, "two hand-overs at once"
            assert {n for n, ship in self.ships.items() if ship.serves < self.target} == set(names), "not to all"
            assert names or self.handed < self.target, "once more to nobody"
            self.common = set(names)
        self.handed = self.target
        for name in names:
            assert self.update == "in_flight" or self.ships[name].idle
            self.receive(name)

    def receive(self, name):
        ship = self.ships[name]
        assert ship.coming is None, "two versions at once"
        assert ship.serves < self.target
        ship.coming = self.target

    @rule(older=st.integers(0, 3))
    def join(self, older):
        self.names += 1
        version = max(-1, self.target - older)
        late = version < self.target
        self.ships[f"e{self.names}"] = Ship(version, joining=late, idle=late)
        self.follow(self.fleet.join(f"e{self.names}", version))

    @rule(n=st.integers(0, 9))
    def leave(self, n):
        if self.ships:
            name = sorted(self.ships)[n % len(self.ships)]
            del self.ships[name]
            self.common.discard(name)
            self.follow(self.fleet.leave(name))

    @rule()
    def export(self):
        self.target += 1
        self.follow(self.fleet.exported(self.target))

    @rule(n=st.integers(0, 9))
    def become_idle(self, n):
        held = [name for name, ship in self.ships.items() if ship.held and not ship.idle]
        if held:
            name = held[n % len(held)]
            self.ships[name].idle = True
            self.follow(self.fleet.idle(name))

    @rule(n=st.integers(0, 9))
    def ack(self, n):
        coming = [name for name, ship in self.ships.items() if ship.coming is not None]
        if coming:
            name = coming[n % len(coming)]
            ship = self.ships[name]
            ship.serves, ship.coming = ship.coming, None
            self.common.discard(name)
            self.follow(self.fleet.acked(name, ship.serves))

    @invariant()
    def nobody_in_service_is_behind_the_live_version(self):
        if hasattr(self, "fleet"):
            assert self.live <= self.fleet.live <= self.target
            self.live = self.fleet.live
            assert all(ship.serves >= self.live for ship in self.ships.values() if not ship.joining)

    def teardown(self):
        """Everybody becomes idle and acknowledges: all serve the newest version, and it is live."""
        if not hasattr(self, "fleet"):
            return
        for n in range(4 * len(self.ships) + 4):
            self.become_idle(n)
            self.ack(n)
        self.nobody_in_service_is_behind_the_live_version()
        assert all((s.serves, s.coming, s.held, s.joining) == (self.target, None, False, False) for s in self.ships.values())
        assert self.fleet.live == self.target or not self.ships
        assert self.handed == self.target or not self.together


def test_laws():
    run_state_machine_as_test(FleetLife, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
