"""How many workers a pool has: growth and shrinking with hand-computed numbers, no flapping, and the laws for any order of events."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from builders import small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from fr3e_async.config import PoolsConfig
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS, Dispatcher, Task
from fr3e_async.machine.events import Begun, Utilization, WorkerUp
from fr3e_async.machine.messages import Dismiss, Drain, Hire, Message, Move, SetPoolTarget, Vacant
from fr3e_async.machine.sizing import Autoscaler, Bounds, alike, bounds_of

WIDTH = 4  # rollouts that a worker has at once
GROW_S, SHRINK_S = 10.0, 100.0


class Hall:
    """An autoscaler over a dispatcher with workers, and what it has asked for. A draining worker leaves when its tasks have ended."""

    def __init__(self, bounds: dict[str, Bounds], *, alike: bool = False, up: bool = True, **config: float) -> None:
        self.config = PoolsConfig(
            **{"grow_after_s": GROW_S, "shrink_after_s": SHRINK_S, "busy_target": 0.8, "max_deaths_in_a_row": 10**6} | config
        )
        self.dispatcher = Dispatcher(dict.fromkeys(bounds, WIDTH), self.config)
        self.alike, self.autoscaler = alike, Autoscaler(bounds, self.config, alike=alike)
        self.hires: dict[int, Hire] = {}  # by ticket, oldest first
        self.dismissed: dict[int, Hire] = {}
        self.wants: dict[str, list[int]] = {role: [] for role in bounds}
        self.moved: list[Move] = []
        self.names = self.task = self.last_ticket = 0
        self.workers: dict[str, str] = {}  # those that stay -> their role
        self.tasks: dict[int, str] = {}  # -> role, those that have not ended
        if up:
            for role, its in bounds.items():
                for _ in range(its.count):
                    self.arrive(role)
            assert self.begin() == ""

    def arrive(self, role: str, ticket: int = 0) -> str:
        self.names += 1
        up = WorkerUp(role=role, worker=f"{role}-{self.names}", ticket=ticket)
        assert [*self.dispatcher.handle(up), *self.autoscaler.handle(up)] == []
        self.workers[f"{role}-{self.names}"] = role
        self.dispatcher.place()
        return f"{role}-{self.names}"

    def come(self, count: int = 100) -> None:
        """So many of those that were asked for, oldest first."""
        for ticket in list(self.hires)[:count]:
            self.arrive(self.hires.pop(ticket).role, ticket)

    def put(self, count: int, role: str = GENERATORS, weight: int = 1) -> None:
        for _ in range(count):
            self.task += 1
            self.tasks[self.task] = role
            self.dispatcher.put(Task(self.task, role, weight))
        self.dispatcher.place()

    def end(self, count: int = 10**6, role: str = GENERATORS) -> None:
        """The oldest ones of the role."""
        for task in [task for task, its in self.tasks.items() if its == role][:count]:
            del self.tasks[task]
            worker = self.dispatcher.end(task, proof=True)
            self.gone_if_idle(worker)
        self.dispatcher.place()

    def gone_if_idle(self, worker: str) -> None:
        if worker in self.dispatcher.slots and self.dispatcher.slots[worker].leaving and not self.dispatcher.tasks_of(worker):
            self.dispatcher.gone(worker)

    def beat(self, at: float, **idle: float) -> str:
        """What was done, in short: ``hire g1 drain g2 want g3``, …; roles that are not named were at work all the time."""
        return self.tell(Utilization(at=at, idle=tuple(idle.items())))

    def begin(self, *, again: bool = False) -> str:
        return self.tell(Begun(again=again))

    def tell(self, event: Begun | Utilization) -> str:
        (census,) = self.dispatcher.handle(event)
        return self.do(self.autoscaler.handle(census))

    def lost(self, role: str, **fields: float) -> str:
        """One of the role is gone, is to leave, or did not start."""
        return self.do(self.autoscaler.handle(Vacant(role=role, staying=self.dispatcher.staying(role), **fields)))

    def do(self, commands: Sequence[Message]) -> str:
        """Carry it out; every command must make sense."""
        said: list[str] = []
        for command in commands:
            match command:
                case Hire():
                    assert command.ticket > self.last_ticket, "a ticket twice"
                    self.last_ticket = command.ticket
                    self.hires[command.ticket] = command
                    said.append(f"hire {command.role[0]}")
                case Dismiss():
                    self.dismissed[command.ticket] = self.hires.pop(command.ticket)  # it was out
                    said.append(f"dismiss {command.ticket}")
                case Move():
                    assert {self.workers[command.worker], command.role} == {GENERATORS, EXPLORERS}
                    self.workers[command.worker] = command.role
                    self.dispatcher.move(command.worker, command.role)
                    self.moved.append(command)
                    said.append(f"move {command.role[0]}")
                case SetPoolTarget():
                    assert self.wants[command.role][-1:] != [command.actors], "told twice"
                    self.wants[command.role].append(command.actors)
                case Drain():
                    said.append(f"drain {self.workers.pop(command.worker)[0]}")  # it was staying
                    self.dispatcher.drain(command.worker)
                    self.gone_if_idle(command.worker)
                case _:
                    raise AssertionError(command)
        self.dispatcher.place()
        return " ".join(said)

    def staying(self, role: str = GENERATORS) -> int:
        return sum(its == role for its in self.workers.values())

    def wanted(self, role: str = GENERATORS) -> int:
        return self.autoscaler.pools[role].wanted

    def asked(self, role: str = GENERATORS) -> int:
        return sum(hire.role == role for hire in self.hires.values())


def hall(least: int = 1, count: int = 1, most: int = 8, **config: float) -> Hall:
    return Hall({GENERATORS: Bounds(least, count, most)}, **config)


# ---- growth ----


def test_a_pool_grows_when_tasks_have_waited_for_exactly_so_long():
    it = hall()
    it.put(WIDTH + 3)
    assert [it.beat(at) for at in (0.0, 5.0, 9.9)] == ["", "", ""]
    assert it.beat(10.0) == "hire g"  # 7 rollouts at 4 each: 2 workers
    assert [it.beat(at) for at in (11.0, 12.0, 60.0)] == ["", "", ""], "who has asked is not asked again"
    assert it.wants[GENERATORS] == [1, 2]


def test_a_pause_in_the_waiting_begins_the_time_again():
    it = hall()
    it.put(WIDTH + 1)
    assert it.beat(0.0) == it.beat(9.0) == ""
    it.end(1)
    assert it.beat(9.5) == ""  # nothing waits
    it.put(1)
    assert [it.beat(at) for at in (9.6, 10.0, 19.5)] == ["", "", ""]
    assert it.beat(19.6) == "hire g"


def test_without_a_wait_a_pool_grows_at_once():
    it = hall(grow_after_s=0.0)
    it.put(WIDTH + 1)
    assert it.beat(0.0) == "hire g"


def test_a_pool_grows_at_most_twofold_of_what_is_up():
    it = hall()
    it.put(10 * WIDTH)
    it.beat(0.0)
    steps = []
    for at in (10.0, 11.0, 12.0, 13.0, 14.0):
        steps.append((it.beat(at).count("hire"), it.wanted(), it.staying()))
        if at > 10.0:  # at 11 the one that is asked for is not up yet
            it.come()
    assert steps == [(1, 2, 1), (0, 2, 1), (2, 4, 2), (4, 8, 4), (0, 8, 8)]


def test_a_pool_grows_to_what_holds_all_that_it_has_and_all_that_waits():
    it = hall(count=4, most=100)
    it.put(4 * WIDTH + 2 * WIDTH + 1)  # 25 rollouts: 6.25 workers
    it.beat(0.0)
    assert it.beat(10.0).count("hire") == 3
    it.come()
    assert (it.dispatcher.queued(GENERATORS), it.wanted()) == (0, 7)


def test_a_limit_that_follows_the_cache_counts_and_not_the_width():
    """Engines that are given half of their width hold half as much."""
    it = hall(count=2, most=100, least_in_flight=2)
    for worker in it.workers:
        it.dispatcher.press(worker, kv_used=0.99, waiting=0, preempted=0)  # nothing in flight: at least 2
    it.put(5, weight=1)
    it.beat(0.0)
    assert it.beat(10.0) == "hire g"  # 5 rollouts at 2 each


def test_a_pool_is_never_larger_than_max():
    it = hall(count=3, most=4)
    it.put(100)
    it.beat(0.0)
    assert it.beat(10.0) == "hire g"
    it.come()
    assert [it.beat(at) for at in (20.0, 200.0)] == ["", ""]
    assert it.staying() == 4


def test_one_that_drains_holds_its_place_until_it_has_gone():
    it = hall(count=3, most=3)
    it.put(3)
    assert [it.beat(at, generators=0.5) for at in (0.0, 99.0)] == ["", ""]
    assert it.beat(100.0, generators=0.5) == "drain g"  # 3 · ½ / 0.8: 2 do it
    it.put(20)
    assert [it.beat(at) for at in (101.0, 111.0, 112.0)] == ["", "", ""]
    it.end()
    it.put(20)
    assert it.beat(113.0) == "hire g"


def test_a_pool_of_nobody_grows_too():
    it = hall(least=0, count=0)
    it.put(20)
    it.beat(0.0)
    assert it.beat(10.0) == "hire g hire g"


def test_a_lost_worker_is_hired_at_once_and_counts_as_asked_for():
    it = hall(count=2)
    worker = next(iter(it.workers))
    del it.workers[worker]
    role, delay = it.dispatcher.slot_down(worker, "died")
    assert it.lost(role, delay_s=delay) == "hire g"
    assert [hire.delay_s for hire in it.hires.values()] == [1.0]
    assert it.lost(role) == ""
    (ticket,) = it.hires
    del it.hires[ticket]
    assert it.lost(role, delay_s=it.dispatcher.not_started(role, "no room"), ticket=ticket) == "hire g"
    assert [(hire.ticket > ticket, hire.delay_s) for hire in it.hires.values()] == [(True, 2.0)]


def test_a_run_begins_with_what_is_there():
    """Fewer: the rest is hired. More (a pool that had grown before the learner was lost): they stay. Above max: they leave."""
    for there, expected in ((1, "hire g hire g"), (3, ""), (5, ""), (7, "drain g drain g")):
        it = Hall({GENERATORS: Bounds(2, 3, 5)}, up=False)
        for _ in range(there):
            it.arrive(GENERATORS)
        assert it.begin() == expected
        assert it.wants[GENERATORS] == [min(max(there, 3), 5)]


def test_a_session_after_the_loss_of_the_learner_continues_with_the_pools_as_they_were():
    """Of 3 at the beginning, of at least 2: it had shrunk to 2, or grown to 5, or somebody was lost together with the learner."""
    for there, expected, wanted in ((2, "", 2), (5, "", 5), (1, "hire g", 2)):
        it = Hall({GENERATORS: Bounds(2, 3, 5)}, up=False)
        for _ in range(there):
            it.arrive(GENERATORS)
        assert it.begin(again=True) == expected
        assert it.wants[GENERATORS] == [wanted]


# ---- shrinking ----


def test_a_pool_shrinks_to_the_most_that_it_needed_over_the_whole_time():
    """4 at work half of the time are 2 at work all of it, and 2.5, so 3, at work 0.8 of it."""
    it = hall(count=4)
    assert [it.beat(float(at), generators=0.5) for at in range(0, 100, 10)] == [""] * 10
    assert it.beat(100.0, generators=0.5) == "drain g"
    assert it.beat(110.0, generators=0.5) == ""
    assert (it.wanted(), it.staying(), it.wants[GENERATORS]) == (3, 3, [4, 3])


@pytest.mark.parametrize(
    ("count", "idle", "needed"),
    [(3, 0.2, 3), (5, 0.2, 5), (4, 0.4, 3), (8, 0.7, 3), (12, 0.6, 6), (8, 0.99, 1), (8, 1.0, 0), (5, 0.0, 7)],
)
def test_how_many_are_needed_for_the_work_that_was_done(count, idle, needed):
    """count · (1 - idle) / 0.8, rounded up, whatever floating point makes of it."""
    it = hall(least=0, count=count, most=16)
    it.beat(0.0, generators=idle)
    it.beat(100.0, generators=idle)
    assert it.wanted() == min(needed, count)


def test_a_peak_keeps_a_pool_for_as_long_as_it_is_remembered():
    it = hall(count=4)
    said = {at: it.beat(float(at), generators=0.2 if at == 50 else 1.0) for at in range(0, 160, 10)}
    assert {at: what for at, what in said.items() if what} == {150: "drain g drain g drain g"}  # 4 · 0.8 / 0.8 = 4 at 50


def test_a_pool_is_never_smaller_than_min():
    it = hall(least=2, count=4)
    assert it.beat(0.0, generators=1.0) == ""
    assert it.beat(100.0, generators=1.0) == "drain g drain g"
    assert it.beat(300.0, generators=1.0) == ""
    assert it.staying() == 2


def test_a_pool_does_not_shrink_while_tasks_wait():
    """Whatever the idle times say: an engine that stands still for new weights is idle, too."""
    it = hall(count=2, most=2)
    it.put(2 * WIDTH + 1)
    assert [it.beat(at, generators=1.0) for at in (0.0, 100.0, 200.0)] == ["", "", ""]
    it.end(1)
    assert it.beat(210.0, generators=1.0) == "", "they were needed a moment ago"
    assert it.beat(301.0, generators=1.0) == "drain g"


def test_those_with_the_least_to_do_leave_first_and_the_newest_of_them():
    it = hall(count=4)
    it.put(1, weight=3)
    it.put(2)
    first, second, third, _ = it.workers  # with 3, 1 and 1 rollouts, and none
    it.beat(0.0, generators=1.0)
    it.beat(100.0, generators=0.7)  # 4 · 0.3 / 0.8 = 1.5
    assert list(it.workers) == [first, second]
    assert third in it.dispatcher.slots, "it ends what it has"
    it.end()
    assert third not in it.dispatcher.slots


def test_those_that_are_not_up_yet_are_dismissed_first_the_newest_first():
    it = hall(count=2)
    it.put(30)
    it.beat(0.0)
    it.beat(10.0)
    it.come(1)
    it.beat(11.0)
    assert (sorted(it.hires), it.staying()) == ([2, 3, 4], 3)
    it.end()
    assert [it.beat(at, generators=1.0) for at in (12.0, 110.0)] == ["", ""]
    assert it.beat(111.0, generators=1.0) == "dismiss 4 dismiss 3 dismiss 2 drain g drain g"
    assert (it.wanted(), it.staying(), it.hires) == (1, 1, {})


def test_one_that_comes_although_it_was_dismissed_is_sent_away():
    it = hall(count=1)
    it.put(2 * WIDTH)
    it.beat(0.0)
    it.beat(10.0)
    it.end()
    assert it.beat(110.0, generators=1.0) == "dismiss 1"
    it.arrive(GENERATORS, ticket=1)
    assert it.beat(111.0, generators=1.0) == "drain g"


# ---- hysteresis ----


def test_growth_is_not_taken_back_by_a_moment_without_a_queue():
    """4 are at work all the time, and 20 more rollouts wait now and then: the nodes for them take two minutes."""
    it = hall(count=4, most=16)
    it.put(4 * WIDTH)
    for at in range(0, 200, 10):
        assert it.beat(float(at)) == ""
    it.put(20)
    it.beat(200.0)
    assert it.beat(210.0).count("hire") == 4
    it.end(20)
    assert [it.beat(float(at)) for at in range(211, 310)] == [""] * 99
    assert it.beat(310.0) == "dismiss 4 dismiss 3 dismiss 2"  # 4 / 0.8 = 5: one to spare is right


@given(seed=st.integers(0, 2**16), period=st.floats(1.0, 400.0), high=st.integers(1, 60), low=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_a_load_that_goes_up_and_down_changes_a_pool_only_so_often(seed, period, high, low):
    """Once grown, a pool stays for ``shrink_after_s``: so many times it turns from growing to shrinking, however long it runs."""
    rng, it = random.Random(seed), hall(most=16)
    ups, downs = [], []
    lasts = 20 * SHRINK_S
    at = 0.0
    while at < lasts:
        load = high if int(at / period) % 2 == 0 else low
        missing = load - len(it.tasks)
        it.put(missing) if missing > 0 else it.end(-missing)
        at_work = sum(bool(it.dispatcher.tasks_of(worker)) for worker in it.workers)
        said = it.beat(at, generators=1 - at_work / max(it.staying(), 1))
        ups += [at] if "hire" in said else []
        downs += [at] if "dismiss" in said or "drain" in said else []
        it.come(rng.choice([0] * 20 + [1, 16]))
        at += rng.choice([1.0, 5.0])
    for down in downs:
        assert not any(down - SHRINK_S < up <= down for up in ups), "what was asked for is released at once"
    turns = sum(a in ups and b in downs for a, b in pairwise(sorted({*ups, *downs})))
    assert turns <= lasts / (SHRINK_S + GROW_S) + 1


# ---- moves ----


def both(generators: int, explorers: int, *, alike: bool = True, least: int = 1, most: int = 8, **config: float) -> Hall:
    return Hall({GENERATORS: Bounds(least, generators, most), EXPLORERS: Bounds(least, explorers, most)}, alike=alike, **config)


def test_an_engine_that_the_other_pool_can_spare_is_moved_before_a_new_one_is_started():
    """Explorers: 4 · 0.25 / 0.8 = 1.25, so 2 are needed and 2 to spare; generators want 4 and have 1: one is hired."""
    it = both(2, 4)
    it.put(2 * WIDTH + 8)
    for at in (0.0, 5.0):
        assert it.beat(at, explorers=0.75) == ""
    assert it.beat(10.0, explorers=0.75) == "move g move g"
    assert ((it.wanted(), it.staying()), (it.wanted(EXPLORERS), it.staying(EXPLORERS))) == ((4, 4), (2, 2))
    assert it.dispatcher.queued(GENERATORS) == 0, "who was moved works"
    assert it.wants == {GENERATORS: [2, 4], EXPLORERS: [4, 2]}


def test_what_the_other_pool_cannot_spare_is_hired():
    it = both(2, 3)
    it.put(4 * WIDTH)
    it.beat(0.0, explorers=0.6)
    assert it.beat(10.0, explorers=0.6) == "move g hire g"  # 3 · 0.4 / 0.8 = 1.5: 2 stay


def test_a_pool_gives_no_engine_away_beyond_its_min():
    it = both(2, 4, least=2)
    it.put(100)
    it.beat(0.0, explorers=1.0)
    assert it.beat(10.0, explorers=1.0) == "move g move g"
    assert it.beat(20.0, explorers=1.0).startswith("hire g")
    assert it.staying(EXPLORERS) == 2


def test_engines_are_moved_only_between_pools_that_are_alike():
    it = both(2, 4, alike=False)
    it.put(4 * WIDTH)
    it.beat(0.0, explorers=1.0)
    assert it.beat(10.0, explorers=1.0) == "hire g hire g"


def test_a_pool_whose_own_tasks_wait_gives_nothing_away():
    """Its engines may be idle all the same: they stand still, or their caches are full."""
    it = both(1, 2, most=2)
    it.put(2 * WIDTH)
    it.beat(0.0, explorers=1.0)
    it.put(2 * WIDTH + 1, EXPLORERS)  # not long enough for it to grow
    assert it.beat(10.0, explorers=1.0) == "hire g"
    assert it.moved == []


def test_a_pool_gives_nothing_away_that_it_needed_a_moment_ago():
    it = both(1, 4)
    it.put(2 * WIDTH)
    it.beat(0.0, explorers=1.0)
    it.beat(5.0, explorers=0.0)
    assert it.beat(10.0, explorers=1.0) == "hire g"
    assert it.beat(14.9, explorers=1.0) == ""
    assert it.beat(15.0, explorers=1.0) == "move g dismiss 1"


def test_one_that_waits_for_a_lost_worker_only_gets_nobody_elses():
    """Nothing waits in either pool: each has lost a worker and hires another one, and moving would only send them to and fro."""
    it = both(4, 4)
    for at in (0.0, 10.0):
        it.beat(at, generators=0.8, explorers=0.8)
    for role in (GENERATORS, EXPLORERS):
        worker = next(name for name, its in it.workers.items() if its == role)
        del it.workers[worker]
        it.dispatcher.slot_down(worker, "died")
        assert it.lost(role) == f"hire {role[0]}"
    assert [it.beat(at, generators=0.8, explorers=0.8) for at in (20.0, 30.0)] == ["", ""]
    assert (it.wanted(), it.wanted(EXPLORERS)) == (4, 4)


def test_verifiers_are_never_moved():
    it = Hall({GENERATORS: Bounds(1, 1, 4), VERIFIERS: Bounds(1, 4, 4)}, alike=True)
    it.put(2 * WIDTH)
    it.beat(0.0, verifiers=1.0)
    assert it.beat(10.0, verifiers=1.0) == "hire g"


@given(period=st.floats(5.0, 100.0), grow=st.floats(1.0, 20.0))
@settings(max_examples=40, deadline=None)
def test_engines_do_not_go_to_and_fro(period, grow):
    """The load goes from one pool to the other and back: an engine turns round only when the other's tasks have waited."""
    it = both(3, 3, least=1, grow_after_s=grow, shrink_after_s=10_000.0)
    at = 0.0
    moves: list[tuple[float, str]] = []
    while at < 20 * period:
        busy = (GENERATORS, EXPLORERS)[int(at / period) % 2]
        for role in (GENERATORS, EXPLORERS):
            load = 5 * WIDTH if role == busy else 0
            missing = load - sum(its == role for its in it.tasks.values())
            it.put(missing, role) if missing > 0 else it.end(-missing, role)
        it.beat(at, **{role: float(role != busy) for role in (GENERATORS, EXPLORERS)})
        moves += [(at, move.role) for move in it.moved]
        it.moved.clear()
        at += 1.0
    turns = [(a, b) for a, b in pairwise(moves) if a[1] != b[1]]
    assert all(b[0] - a[0] >= grow for a, b in turns)
    assert len(turns) <= 20
    assert turns or grow >= period - 1.0


# ---- from the config ----


def test_bounds_and_likeness_come_from_the_config():
    config = small_config(generators={"count": 3, "min": 2, "max": 7}, explorers={"count": 2}, verifiers={"max": 4})
    assert bounds_of(config, explorers=2) == {
        GENERATORS: Bounds(2, 3, 7), EXPLORERS: Bounds(2, 2, 2), VERIFIERS: Bounds(1, 1, 4)
    }  # fmt: skip
    assert bounds_of(config, explorers=0)[EXPLORERS] == Bounds(0, 0, 0)
    assert alike(config)
    for section in ({"cpus": 2.0}, {"gpus": 1}, {"resources": {"a": 1.0}}, {"labels": {"zone": "b"}}):
        assert not alike(small_config(generators={"count": 3}, explorers=section))


def test_only_a_pool_with_room_between_its_bounds_is_elastic():
    assert not hall(least=2, count=2, most=2).autoscaler.elastic
    assert hall(least=2, count=2, most=3).autoscaler.elastic


# ---- the laws, for any order ----

ROLES = (GENERATORS, EXPLORERS, VERIFIERS)


class Pools(RuleBasedStateMachine):
    """Any load, any idle times, and a cluster in which anything may happen. ``Hall.do`` checks every single command."""

    @initialize(seed=st.integers(0, 2**16), alike=st.booleans())
    def begin(self, seed, alike):
        rng = random.Random(seed)
        bounds = {}
        for role in ROLES:
            least, most = sorted((rng.randint(0, 3), rng.randint(1, 6)))
            bounds[role] = Bounds(least, rng.randint(least, most), most)
        self.hall = Hall(
            bounds, alike=alike, up=False, shrink_after_s=rng.choice([5.0, 20.0]), grow_after_s=rng.choice([0.0, 3.0])
        )
        for role in ROLES:
            for _ in range(rng.randint(0, 5)):
                self.hall.arrive(role)
        self.hall.begin(again=rng.random() < 0.3)
        self.at = 0.0
        self.require_settled()

    def require_settled(self):
        """After a look at the pools there are exactly as many as are wanted, or asked for."""
        for role in ROLES:
            assert self.hall.staying(role) + self.hall.asked(role) == self.hall.wanted(role)

    @rule(role=st.sampled_from(ROLES), count=st.integers(1, 20))
    def put(self, role, count):
        self.hall.put(count, role)

    @rule(role=st.sampled_from(ROLES), count=st.integers(1, 30))
    def end(self, role, count):
        self.hall.end(count, role)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 30.0]), idle=st.lists(st.sampled_from([0.0, 0.3, 0.8, 1.0]), max_size=3))
    def beat(self, seconds, idle):
        self.at += seconds
        waits = {role for role in ROLES if self.hall.dispatcher.queued(role)}
        before = {role: self.hall.staying(role) for role in ROLES}
        self.hall.beat(self.at, **dict(zip(ROLES, idle, strict=False)))
        self.require_settled()
        for move in self.hall.moved:
            donor = EXPLORERS if move.role == GENERATORS else GENERATORS
            assert self.hall.alike
            assert donor not in waits
            assert move.role in waits
            assert before[donor] > self.hall.autoscaler.pools[donor].bounds.least
        self.hall.moved.clear()

    @precondition(lambda self: self.hall.hires)
    @rule(count=st.integers(1, 4))
    def come(self, count):
        self.hall.come(count)

    @precondition(lambda self: self.hall.dismissed)
    @rule()
    def come_too_late(self):
        ticket, hire = self.hall.dismissed.popitem()
        self.hall.arrive(hire.role, ticket)

    @precondition(lambda self: self.hall.hires)
    @rule(data=st.data())
    def fail_to_start(self, data):
        hire = self.hall.hires.pop(data.draw(st.sampled_from(sorted(self.hall.hires))))
        self.hall.lost(hire.role, delay_s=1.0, ticket=hire.ticket)

    @precondition(lambda self: self.hall.workers)
    @rule(data=st.data(), leaves=st.booleans())
    def lose(self, data, leaves):
        name = data.draw(st.sampled_from(sorted(self.hall.workers)))
        role = self.hall.workers.pop(name)
        if leaves:
            self.hall.dispatcher.drain(name)
            self.hall.gone_if_idle(name)
        else:
            self.hall.dispatcher.slot_down(name, "died")
        self.hall.lost(role)

    @invariant()
    def sizes_are_within_their_bounds_and_nobody_is_missing(self):
        if not hasattr(self, "hall"):
            return
        for role in ROLES:
            bounds, wanted = self.hall.autoscaler.pools[role].bounds, self.hall.wanted(role)
            assert bounds.least <= wanted <= bounds.most
            assert self.hall.staying(role) == self.hall.dispatcher.staying(role)
            assert set(self.hall.autoscaler.pools[role].hiring) == {t for t, hire in self.hall.hires.items() if hire.role == role}
            assert self.hall.staying(role) + self.hall.asked(role) >= wanted, "one is missing, and nobody hires it"
            assert self.hall.wants[role][-1] == wanted or not self.hall.autoscaler.elastic

    def teardown(self):
        """A constant load: all come up, nothing ends. The pools settle, and then nothing is asked for any more."""
        if not hasattr(self, "hall"):
            return
        it, step = self.hall, it_step(self.hall.config)
        for beats in (range(60), range(60)):
            said = []
            for _ in beats:
                self.at += step
                idle = {role: self.idle(role) for role in ROLES}
                said.append(it.beat(self.at, **idle))
                it.come()
        assert not any(said), f"a constant load and no end of changes: {said}"
        for role in ROLES:
            most = it.autoscaler.pools[role].bounds.most
            assert it.staying(role) == it.wanted(role)
            full = it.staying(role) + it.dispatcher.leaving(role) >= most  # nobody who leaves is gone here
            assert not it.dispatcher.queued(role) or full, "tasks wait, and the pool could be larger"

    def idle(self, role):
        names = [name for name, its in self.hall.workers.items() if its == role]
        return sum(not self.hall.dispatcher.tasks_of(name) for name in names) / max(len(names), 1)


def it_step(config: PoolsConfig) -> float:
    """60 of these are longer than every time that a pool waits for."""
    return max(config.grow_after_s, config.shrink_after_s) / 15


def test_laws():
    run_state_machine_as_test(Pools, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))


@pytest.mark.slow
@pytest.mark.long
def test_laws_at_length():
    run_state_machine_as_test(Pools, settings=settings(max_examples=3_000, stateful_step_count=60, deadline=None))
