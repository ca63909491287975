"""Who gets which task: scenarios with numbers, and the laws against a plain model for any order of events."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from fr3e_async.config import PoolsConfig
from fr3e_async.errors import RunFailed
from fr3e_async.machine.slots import EXPLORERS, GENERATORS, SLACK, STALE, VERIFIERS, Slots, Task

WIDTHS = {GENERATORS: 8, EXPLORERS: 8, VERIFIERS: 4}
OTHER = {GENERATORS: EXPLORERS, EXPLORERS: GENERATORS}


def dispatcher(*slots: str, width: int = 8, **config) -> Slots:
    """Workers by name: their role is what stands before the dash."""
    made = Slots({**WIDTHS, GENERATORS: width}, PoolsConfig(**config))
    for slot in slots:
        made.slot_up(slot.partition("-")[0], slot)
    return made


def put(to: Slots, *numbers: int, role: str = GENERATORS, weight: int = 1, **fields) -> list[tuple[int, str]]:
    for number in numbers:
        to.put(Task(number, role, weight, **fields))
    return [(task.number, worker) for task, worker in to.place()]


# ---- scenarios ----


def test_tasks_go_to_the_roomiest_worker_and_wait_when_all_are_full():
    at = dispatcher("generators-0", "generators-1", width=2)
    assert put(at, 1, 2, 3) == [(1, "generators-0"), (2, "generators-1"), (3, "generators-0")]
    assert put(at, 4, 5) == [(4, "generators-1")]
    assert (at.queued(GENERATORS), at.in_flight(GENERATORS)) == (1, 4)
    assert at.end(2, proof=True) == "generators-1"
    assert put(at) == [(5, "generators-1")]


def test_older_groups_come_first_and_what_has_priority_before_them():
    at = dispatcher(width=1)
    put(at, 1, age=7)
    put(at, 2, age=3)
    put(at, 3, age=9, priority=-1)
    put(at, 4, age=3)
    at.slot_up(GENERATORS, "g")
    order = []
    while placed := put(at):
        order += [number for number, _ in placed]
        at.end(placed[0][0], proof=True)
    assert order == [3, 2, 4, 1]


def test_a_task_that_is_wider_than_a_slot_gets_an_empty_one():
    at = dispatcher("generators-0", width=4)
    assert put(at, 1) == [(1, "generators-0")]
    assert put(at, 2, weight=6) == []
    assert put(at, 3) == []  # it does not overtake the wide one, which would never get its turn
    at.end(1, proof=True)
    assert put(at) == [(2, "generators-0")]
    at.end(2, proof=True)
    assert put(at) == [(3, "generators-0")]
    assert at.slots["generators-0"].load == 1


def test_a_task_goes_to_its_prefix_unless_that_is_much_fuller():
    at = dispatcher("explorers-0", "explorers-1")  # width 8: loads that differ by up to 2 are equal
    assert put(at, 1, role=EXPLORERS, weight=2, near="explorers-1") == [(1, "explorers-1")]
    assert put(at, 2, role=EXPLORERS, weight=1, near="explorers-1") == [(2, "explorers-1")]
    assert put(at, 3, role=EXPLORERS, weight=1, near="explorers-1") == [(3, "explorers-0")]  # 3 against 0
    assert put(at, 4, role=EXPLORERS, near="nobody") == [(4, "explorers-0")]


def test_a_prefix_on_an_engine_of_the_other_role_counts_only_with_flexible_roles():
    for flexible, expected in ((False, "explorers-0"), (True, "generators-0")):
        at = dispatcher("generators-0", "explorers-0", flexible_roles=flexible)
        assert put(at, 1, role=EXPLORERS, near="generators-0") == [(1, expected)]


def test_flexible_roles_lend_what_is_much_emptier_and_has_nothing_waiting():
    at = dispatcher("generators-0", "explorers-0", flexible_roles=True)
    assert put(at, 1, 2) == [(1, "generators-0"), (2, "generators-0")]
    assert put(at, 3) == [(3, "generators-0")]  # 2 against 0 is not much
    assert put(at, 4) == [(4, "explorers-0")]  # 3 against 0 is
    assert put(at, 5, weight=9) == []
    assert put(at, 6, role=EXPLORERS, weight=5) == [(6, "explorers-0")]


def test_a_verifier_is_never_lent():
    at = dispatcher("verifiers-0", flexible_roles=True)
    assert put(at, 1) == put(at, 2, role=EXPLORERS) == []
    assert put(at, 3, role=VERIFIERS) == [(3, "verifiers-0")]


def test_an_engine_is_lent_as_soon_as_its_own_queue_is_empty():
    at = dispatcher("generators-0", "explorers-0", flexible_roles=True)
    assert put(at, 1, weight=8) == [(1, "generators-0")]
    at.put(Task(2, EXPLORERS, 1))
    at.put(Task(3, GENERATORS, 1))
    assert put(at) == [(2, "explorers-0"), (3, "explorers-0")]


def test_a_held_worker_gets_nothing_and_keeps_what_it_has():
    at = dispatcher("generators-0")
    put(at, 1)
    at.hold("generators-0")
    assert put(at, 2) == []
    assert at.end(1, proof=True) == "generators-0"
    assert put(at) == []
    at.release("generators-0")
    assert put(at) == [(2, "generators-0")]


def test_a_dead_workers_tasks_count_until_they_end():
    at = dispatcher("generators-0", "generators-1")
    put(at, 1, weight=3)
    assert at.slot_down("generators-0", "died") == (GENERATORS, 1.0)
    assert at.slot_down("generators-0", "died") is None
    assert (at.in_flight(GENERATORS), at.tasks_of("generators-0")) == (0, ())
    at.slot_up(GENERATORS, "generators-0")  # the name again
    assert at.end(1, proof=False) == "generators-0"
    assert at.slots["generators-0"].load == 0


def test_a_lost_task_gives_its_room_back_too():
    at = dispatcher("generators-0", width=2)
    put(at, 1, weight=2)
    at.end(1, proof=False)
    assert put(at, 2, weight=2) == [(2, "generators-0")]


def test_a_task_that_is_not_wanted_any_more_leaves_the_queue():
    at = dispatcher()
    put(at, 1, 2)
    assert at.end(1, proof=False) == ""
    assert at.queued(GENERATORS) == 1
    at.slot_up(GENERATORS, "g")
    assert put(at) == [(2, "g")]


@pytest.mark.parametrize(
    ("kv_used", "waiting", "preempted", "limit"),
    [(0.5, 0, 1, 20), (0.96, 0, 0, 20), (0.95, 0, 0, 64), (0.9, 0, 0, 64), (0.5, 3, 0, 64), (0.5, 0, 0, 64)],
)
def test_a_limit_is_halved_when_the_cache_is_too_full(kv_used, waiting, preempted, limit):
    at = dispatcher("generators-0", width=64)
    put(at, 1, weight=40)  # what it has counts, not what it might have
    at.press("generators-0", kv_used=kv_used, waiting=waiting, preempted=preempted)
    assert at.slots["generators-0"].limit == limit


def test_a_limit_grows_by_a_sixteenth_and_stays_within_its_bounds():
    at = dispatcher("generators-0", width=64)
    put(at, 1, weight=40)
    limits = []
    for kv_used in (0.99, 0.99, 0.99, 0.99, 0.9, 0.5, 0.5):
        at.press("generators-0", kv_used=kv_used, waiting=0, preempted=0)
        limits.append(at.slots["generators-0"].limit)
    assert limits == [20, 10, 5, 4, 4, 8, 12]
    for _ in range(20):
        at.press("generators-0", kv_used=0.0, waiting=0, preempted=0)
    assert at.slots["generators-0"].limit == 64
    at.press("gone", kv_used=1.0, waiting=0, preempted=0)


def test_a_least_limit_above_the_width_is_the_width():
    at = dispatcher("generators-0", width=2, least_in_flight=4)
    at.press("generators-0", kv_used=1.0, waiting=0, preempted=0)
    assert at.slots["generators-0"].limit == 2


def test_a_lowered_limit_holds_new_work_up_until_enough_has_ended():
    at = dispatcher("generators-0", least_in_flight=2)
    put(at, *range(1, 9))
    at.press("generators-0", kv_used=1.0, waiting=0, preempted=0)  # 4
    put(at, 9)
    for number in range(1, 5):
        at.end(number, proof=True)
        assert put(at) == []
    at.end(5, proof=True)
    assert put(at) == [(9, "generators-0")]


def test_workers_that_die_in_a_row_are_replaced_ever_later_and_then_end_the_run():
    at = dispatcher(max_deaths_in_a_row=3, replace_backoff_s=1.0)
    delays = []
    for n in range(2):
        at.slot_up(GENERATORS, f"g{n}")
        delays.append(at.slot_down(f"g{n}", "no memory")[1])
    delays.append(at.not_started(GENERATORS, "no node"))
    assert delays == [1.0, 2.0, 4.0]
    at.slot_up(GENERATORS, "g9")
    with pytest.raises(RunFailed, match=r"3 workers in a row .*pools\.max_deaths_in_a_row.* no memory"):
        at.slot_down("g9", "no memory")


def test_new_ones_that_do_not_start_are_no_reason_to_end_while_another_one_works():
    """A node may die that many were about to start on. They are tried again, at last once a minute."""
    at = dispatcher("generators-0", "explorers-0", max_deaths_in_a_row=2, replace_backoff_s=1.0)
    put(at, 1)
    at.end(1, proof=True)
    delays = [at.not_started(GENERATORS, "its node has died") for _ in range(50)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[60.0] * 44]
    assert at.not_started(EXPLORERS, "x") == 1.0
    put(at, 2)
    at.end(2, proof=True)
    assert at.not_started(GENERATORS, "its node has died") == 1.0, "one has worked since"
    at.drain("generators-0")
    with pytest.raises(RunFailed, match=r"pools\.max_deaths_in_a_row"):
        [at.not_started(GENERATORS, "its node has died") for _ in range(2)]


def test_a_finished_task_is_proof_that_workers_can_work():
    at = dispatcher("generators-0", "generators-1", max_deaths_in_a_row=1)
    put(at, 1)
    at.slot_down("generators-1", "died")
    at.end(1, proof=True)
    for worker in ("generators-0",):
        assert at.slot_down(worker, "its node was taken") == (GENERATORS, 0.0)  # it had worked: no count
    at.slot_up(GENERATORS, "generators-2")
    put(at, 2)
    at.end(2, proof=False)  # lost: no proof
    assert at.slot_down("generators-2", "died") == (GENERATORS, 1.0)


def test_one_that_died_because_it_was_to_leave_is_no_bad_sign():
    at = dispatcher("generators-0", "generators-1", max_deaths_in_a_row=1)
    at.drain("generators-0")
    assert at.slot_down("generators-0", "its node is gone") == (GENERATORS, 0.0)
    assert at.slot_down("generators-1", "died") == (GENERATORS, 1.0)


# ---- slots that come and go ----


def test_one_that_is_to_leave_gets_nothing_keeps_what_it_has_and_counts_no_more():
    at = dispatcher("generators-0", "generators-1")
    put(at, 1, 2)
    at.drain("generators-0")
    assert put(at, 3, 4) == [(3, "generators-1"), (4, "generators-1")]
    assert (at.staying(GENERATORS), at.in_flight(GENERATORS), at.tasks_of("generators-0")) == (1, 4, (1,))
    assert at.end(1, proof=True) == "generators-0"
    assert put(at, 5) == [(5, "generators-1")]
    at.gone("generators-0")
    assert (list(at.slots), at.roles[GENERATORS].slots) == (["generators-1"], 1)


def test_one_that_is_to_leave_gets_nothing_by_its_prefix_nor_for_the_other_role():
    at = dispatcher("generators-0", "explorers-0", "explorers-1", flexible_roles=True)
    at.drain("explorers-0")
    assert put(at, 1, role=EXPLORERS, near="explorers-0") == [(1, "explorers-1")]
    at.drain("explorers-1")
    assert put(at, 2, weight=7) == [(2, "generators-0")]
    assert put(at, 3, weight=2) == []


def test_one_that_was_held_and_is_to_leave_is_not_given_work_by_its_release():
    at = dispatcher("generators-0")
    at.hold("generators-0")
    at.drain("generators-0")
    at.release("generators-0")
    assert put(at, 1) == []


def test_what_can_be_spared_has_the_least_to_do_and_is_the_newest_of_those_that_have_alike():
    at = dispatcher("generators-0", "generators-1", "generators-2", "generators-3", "explorers-0")
    put(at, 1, 2, 3, 4)
    at.end(3, proof=True)
    at.end(4, proof=True)
    put(at, 5, weight=1)  # generators-2 or -3, whichever is first: it is -2
    assert at.spare(GENERATORS, 2) == ["generators-3", "generators-2"]
    assert at.spare(GENERATORS, 9) == ["generators-3", "generators-2", "generators-1", "generators-0"]
    at.drain("generators-3")
    assert at.spare(GENERATORS, 1) == ["generators-2"]
    assert at.spare(GENERATORS, 0) == []


def test_workers_that_it_would_take_to_have_all_tasks_at_once():
    at = dispatcher("generators-0", "generators-1", least_in_flight=2)  # room for 8 each
    assert at.fill(GENERATORS) == 0.0
    put(at, *range(16))
    put(at, 16, weight=4)
    assert at.fill(GENERATORS) == 20 / 8
    at.drop(16)
    assert at.fill(GENERATORS) == 16 / 8
    at.press("generators-0", kv_used=1.0, waiting=0, preempted=0)  # 4
    assert at.fill(GENERATORS) == 16 / 6
    at.drain("generators-0")
    assert at.fill(GENERATORS) == 16 / 8, "of those that stay"
    assert dispatcher().fill(GENERATORS) == 0.0
    nobody = dispatcher()
    put(nobody, 1, 2, weight=6)
    assert nobody.fill(GENERATORS) == 12 / 8


def test_an_engine_that_is_moved_keeps_its_tasks_and_gets_those_of_its_new_role():
    at = dispatcher("generators-0", "explorers-0")
    put(at, 1, role=EXPLORERS)
    at.move("explorers-0", GENERATORS)
    assert put(at, 2) == [(2, "generators-0")]
    assert put(at, 3, 4) == [(3, "explorers-0"), (4, "generators-0")]
    assert put(at, 5, role=EXPLORERS) == []
    assert (at.staying(GENERATORS), at.staying(EXPLORERS), at.in_flight(GENERATORS), at.in_flight(EXPLORERS)) == (2, 0, 4, 0)
    assert at.end(1, proof=True) == "explorers-0"
    assert at.slot_down("explorers-0", "died") == (GENERATORS, 0.0)


def test_an_engine_that_is_held_while_it_is_moved_works_for_its_new_role_when_it_is_released():
    at = dispatcher("generators-0", "explorers-0", "explorers-1")
    at.hold("explorers-0")
    at.move("explorers-0", GENERATORS)
    put(at, 1, weight=8)
    assert put(at, 2) == []
    assert put(at, 3, role=EXPLORERS) == [(3, "explorers-1")]
    at.release("explorers-0")
    assert put(at) == [(2, "explorers-0")]
    assert put(at, 4, 5, role=EXPLORERS) == [(4, "explorers-1"), (5, "explorers-1")]


def test_two_workers_of_one_name_are_an_error():
    with pytest.raises(RunFailed, match="generators-0"):
        dispatcher("generators-0", "generators-0")


def test_the_heap_of_rooms_does_not_grow_with_the_run():
    """A slot that is nearly full now and then leaves entries behind that never come to the top."""
    at = dispatcher("generators-0", "generators-1", width=8)
    for number in range(5_000):
        put(at, number)
        at.end(number, proof=True)
        assert len(at.roles[GENERATORS].rooms) <= 2 * STALE
    assert len(put(at, *range(10_000, 10_020))) == 16  # and all room is still found


# ---- the laws, for any order ----


@dataclass
class ModelSlot:
    role: str
    limit: int
    tasks: dict[int, int] = field(default_factory=dict)  # weights
    held: bool = False
    leaving: bool = False
    node: str = ""

    @property
    def room(self) -> int:
        return self.limit - sum(self.tasks.values())

    def fits(self, task: Task) -> bool:
        return self.room >= task.weight or not self.tasks


class DispatcherMachine(RuleBasedStateMachine):
    """A dispatcher and lists. The model says which choices are allowed, the dispatcher takes one."""

    @initialize(flexible=st.booleans())
    def begin(self, flexible):
        self.config = PoolsConfig(flexible_roles=flexible, least_in_flight=2, max_deaths_in_a_row=10**6)
        self.at = Slots(WIDTHS, self.config)
        self.queues: dict[str, list[Task]] = {role: [] for role in WIDTHS}
        self.slots: dict[str, ModelSlot] = {}
        self.dead: dict[int, str] = {}  # tasks of the dead
        self.number = self.names = 0
        self.ended: set[int] = set()
        self.given: set[int] = set()

    @rule(
        role=st.sampled_from(list(WIDTHS)),
        wishes=st.lists(st.tuples(st.integers(1, 9), st.integers(-1, 0), st.integers(0, 3), st.integers(0, 3)), max_size=4),
    )
    def put(self, role, wishes):
        for weight, priority, age, near in wishes:
            self.number += 1
            names = sorted(self.slots)
            task = Task(
                self.number, role, weight, priority=priority, age=age, near=names[near % len(names)] if names and near else ""
            )
            self.at.put(task)
            self.queues[role].append(task)
            self.queues[role].sort(key=lambda t: (t.priority, t.age))  # stable
        self.place()

    def place(self):
        for task, worker in self.at.place():
            assert task.number not in self.given, "placed twice"
            self.given.add(task.number)
            assert self.queues[task.role][0] is task, "not the first of its queue"
            self.require_choice(task, worker)
            self.queues[task.role].pop(0)
            self.slots[worker].tasks[task.number] = task.weight
        for role, queue in self.queues.items():
            if queue and (best := self.best(role)):
                # the roomiest one, whichever it is among equals, cannot take it; its limit may be lower than another's
                assert not all(slot.fits(queue[0]) for slot in best), "a task waits although there is room"

    def usable(self, role: str) -> list[ModelSlot]:
        return [slot for slot in self.slots.values() if slot.role == role and not slot.held and not slot.leaving]

    def lends(self, role: str) -> bool:
        return self.config.flexible_roles and role in OTHER and not self.queues[OTHER[role]]

    def best(self, role: str) -> list[ModelSlot]:
        """The roomiest slots, of the other role if that lends and is much emptier."""
        own, slack = self.usable(role), WIDTHS[role] // SLACK
        most = max((slot.room for slot in own), default=None)
        if self.lends(role):
            lent = self.usable(OTHER[role])
            room = max((slot.room for slot in lent), default=None)
            if room is not None and (most is None or most + slack < room):
                return [slot for slot in lent if slot.room == room]
        return [slot for slot in own if slot.room == most]

    def require_choice(self, task: Task, worker: str) -> None:
        slot, best = self.slots[worker], self.best(task.role)
        assert not slot.held
        assert not slot.leaving
        assert slot.role == task.role or (self.lends(task.role) and slot.role == OTHER[task.role])
        assert slot.fits(task)
        near = self.slots.get(task.near)
        good = (
            near is not None
            and not near.held
            and not near.leaving
            and near.room >= task.weight
            and near.room + WIDTHS[task.role] // SLACK >= best[0].room
            and (near.role == task.role or (self.lends(task.role) and near.role == OTHER[task.role]))
        )
        assert slot is near if good else any(slot is one for one in best)

    @precondition(lambda self: self.number > len(self.ended))
    @rule(data=st.data(), count=st.integers(1, 4), proof=st.booleans())
    def end(self, data, count, proof):
        for _ in range(count):
            left = [n for n in range(1, self.number + 1) if n not in self.ended]
            if left:
                self.end_one(data.draw(st.sampled_from(left)), proof)
        self.place()

    def end_one(self, number, proof=True):
        self.ended.add(number)
        worker = next((name for name, slot in self.slots.items() if number in slot.tasks), self.dead.pop(number, ""))
        assert self.at.end(number, proof=proof) == worker
        assert self.at.end(number, proof=proof) == "", "ended twice"
        for queue in self.queues.values():
            queue[:] = [task for task in queue if task.number != number]
        if worker in self.slots:
            self.slots[worker].tasks.pop(number, None)

    @rule(role=st.sampled_from(list(WIDTHS)), node=st.sampled_from(["", "a", "b"]))
    def slot_up(self, role, node):
        self.names += 1
        self.at.slot_up(role, f"w{self.names}", node=node)
        self.slots[f"w{self.names}"] = ModelSlot(role, WIDTHS[role], node=node)
        self.place()

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), what=st.sampled_from(["down", "hold", "release", "press", "press", "drain", "gone", "move"]))
    def befall(self, data, what):
        name = data.draw(st.sampled_from(sorted(self.slots)))
        slot = self.slots[name]
        match what:
            case "down":
                self.at.slot_down(name, "x")
                self.dead |= dict.fromkeys(slot.tasks, name)
                del self.slots[name]
            case "hold" | "release":
                getattr(self.at, what)(name)
                slot.held = what == "hold"
            case "drain":
                self.at.drain(name)
                slot.leaving = True
            case "gone":
                if slot.leaving and not slot.tasks:
                    self.at.gone(name)
                    del self.slots[name]
            case "move":
                if slot.role in OTHER and not slot.leaving:
                    slot.role = OTHER[slot.role]
                    slot.limit = WIDTHS[slot.role]
                    self.at.move(name, slot.role)
            case _:
                full = data.draw(st.sampled_from([0.5, 0.9, 0.99]))
                self.at.press(name, kv_used=full, waiting=0, preempted=0)
                width, before = WIDTHS[slot.role], slot.limit
                slot.limit = self.at.slots[name].limit
                assert min(2, width) <= slot.limit <= width
                assert (slot.limit - before > 0) <= (full == 0.5)
                assert (slot.limit - before < 0) <= (full == 0.99)
        self.place()

    @invariant()
    def loads_are_what_the_slots_have(self):
        if not hasattr(self, "at"):
            return
        assert self.at.slots.keys() == self.slots.keys()
        for name, slot in self.slots.items():
            assert (self.at.slots[name].load, set(self.at.tasks_of(name))) == (sum(slot.tasks.values()), set(slot.tasks))
        for role, queue in self.queues.items():
            assert self.at.queued(role) == len(queue)
            mine = [slot for slot in self.slots.values() if slot.role == role]
            staying = [slot for slot in mine if not slot.leaving]
            assert (self.at.roles[role].slots, self.at.staying(role)) == (len(mine), len(staying))
            load = sum(sum(slot.tasks.values()) for slot in mine)
            assert self.at.in_flight(role) == load
            each = sum(slot.limit for slot in staying) / len(staying) if staying else WIDTHS[role]
            assert self.at.fill(role) * each == pytest.approx(load + sum(task.weight for task in queue))
            spare = [self.slots[worker] for worker in self.at.spare(role, len(mine))]
            assert [self.company(slot) for slot in spare] == sorted(self.company(slot) for slot in staying)

    def company(self, slot):
        """(how many stay on its node, what it has to do)"""
        others = [one for one in self.slots.values() if one.node == slot.node and not one.leaving]
        return len(others) if slot.node else 0, slot.limit - slot.room

    def teardown(self):
        """Everybody serves again: every task gets its turn and ends, and nothing is left of it."""
        if not hasattr(self, "at"):
            return
        for name, slot in self.slots.items():
            self.at.release(name)
            slot.held = False
        for role in WIDTHS:
            self.slot_up(role, "")
        while len(self.ended) < self.number:
            waiting = {task.number for queue in self.queues.values() for task in queue}
            self.end_one(next(n for n in range(1, self.number + 1) if n not in self.ended | waiting))
            self.place()
        self.loads_are_what_the_slots_have()
        assert all(slot.load == 0 for slot in self.at.slots.values())


def test_laws():
    run_state_machine_as_test(DispatcherMachine, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


def test_those_leave_first_whose_node_becomes_empty():
    at = dispatcher()
    for number, node in enumerate(("a", "a", "b", "b", "b", "c")):
        at.slot_up(GENERATORS, f"g{number}", node=node)
    at.slot_up(EXPLORERS, "e0", node="c")
    put(at, 1)
    (busy,) = [name for name, slot in at.slots.items() if slot.load]
    assert {at.slots[name].node for name in at.spare(GENERATORS, 3)} == {"a", "c"}
    assert busy not in at.spare(GENERATORS, 2)


def test_what_dies_with_its_node_counts_against_nobody():
    at = dispatcher(max_deaths_in_a_row=1, replace_backoff_s=1.0)
    for number in range(8):
        at.slot_up(GENERATORS, f"g{number}")
    assert {at.slot_down(f"g{number}", "gone", node=True) for number in range(8)} == {(GENERATORS, 0.0)}
