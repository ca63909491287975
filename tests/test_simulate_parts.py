"""The parts of the simulator against numbers worked out by hand: virtual time, shared cores, queues, engines, fits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.simulate.clock import Cores, Station, VirtualClock
from fr3e_async.simulate.engine import Request, SimulatedEngine
from fr3e_async.simulate.service import EngineTimes
from fr3e_async.simulate.work_time import Ramps, Staircase, WorkTime, non_negative, robust
from fr3e_async.simulate.workload import LogNormalWorkload, MeasuredAnswer, MeasuredGroup, MeasuredWorkload, scattered


class Bench:
    """A clock, and what ended when."""

    def __init__(self, cores: float = 0) -> None:
        self.clock = VirtualClock()
        self.cores = Cores(cores)
        self.ended: dict[Any, float] = {}

    def note(self, what: Any) -> None:
        self.ended[what.job if isinstance(what, Request) else what] = self.clock.now

    def run(self) -> dict[Any, float]:
        while self.clock.step():
            pass
        return self.ended

    def engine(
        self, *, step: float, request: float = 0.0, prefill: float = 0.0, running: int = 8, kv: int = 0
    ) -> SimulatedEngine:
        times = EngineTimes(step_s=step, request_s=request, prefill_s=prefill, kv_tokens=kv)
        return SimulatedEngine(self.clock, self.cores, times, max_running=running, threads=1, ended=self.note)

    def later(self, time: float, call: Callable[[], None]) -> None:
        self.clock.at(time, lambda _: call())


# ---- time and cores ----


def test_bookings_come_by_time_and_then_in_order() -> None:
    clock, seen = VirtualClock(), []
    for time, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.at(time, seen.append, name)
    while clock.step():
        pass
    assert seen == ["a", "b", "c"]
    assert clock.now == 2.0


def test_two_jobs_on_one_core_share_it() -> None:
    bench = Bench(cores=1)
    for name, work in (("short", 2.0), ("long", 3.0)):
        Station(bench.clock, bench.cores).submit(work, bench.note, name)
    assert bench.run() == pytest.approx({"short": 4.0, "long": 5.0})  # half speed until 4, then 1 s of work alone


def test_three_threads_on_two_cores_run_at_two_thirds() -> None:
    bench = Bench(cores=2)
    Station(bench.clock, bench.cores, servers=1, threads=2).submit(2.0, bench.note, "two threads")
    other = Station(bench.clock, bench.cores)
    bench.later(0.0, lambda: other.submit(2.0, bench.note, "one"))
    assert bench.run() == pytest.approx({"two threads": 3.0, "one": 3.0})


def test_without_cores_to_share_nobody_is_slowed_down() -> None:
    bench = Bench()
    for name in range(5):
        Station(bench.clock, bench.cores).submit(1.0, bench.note, name)
    assert set(bench.run().values()) == {1.0}


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=6), st.integers(1, 3))
def test_shared_cores_neither_make_nor_lose_work(jobs: list[float], count: int) -> None:
    bench = Bench(cores=count)
    for name, work in enumerate(jobs):
        Station(bench.clock, bench.cores).submit(work, bench.note, name)
    last = max(bench.run().values())
    assert last >= max(sum(jobs) / count, max(jobs)) - 1e-6
    assert last <= sum(jobs) / count + max(jobs) + 1e-6
    ends = [bench.ended[name] for name in sorted(bench.ended, key=lambda name: jobs[name])]
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(ends)), "even shares: less work ends earlier"


def test_a_station_serves_in_order_of_arrival_and_holds() -> None:
    bench = Bench()
    station = Station(bench.clock, bench.cores, servers=2)
    for name, work in (("a", 3.0), ("b", 1.0), ("c", 1.0)):
        station.submit(work, bench.note, name)
    bench.later(0.5, lambda: station.submit_first(4.0, bench.note, "first"))
    bench.later(6.0, lambda: station.hold(True))
    bench.later(6.5, lambda: station.submit(1.0, bench.note, "held"))
    bench.later(8.0, lambda: station.hold(False))
    assert bench.run() == pytest.approx({"b": 1.0, "a": 3.0, "c": 4.0, "first": 5.0, "held": 9.0})


# ---- engines ----


def test_two_requests_by_hand() -> None:
    """a = 1, b = 0.5, c = 0.1. The first: 1 s of prefill, 2/3 step alone until 2; then both, 2 s a step; then the other alone."""
    bench = Bench()
    engine = bench.engine(step=1.0, request=0.5, prefill=0.1)
    engine.add([Request("first", length=2, fresh=10)])
    bench.later(2.0, lambda: engine.add([Request("second", length=4, fresh=0)]))
    ends = bench.run()
    assert ends["first"] == pytest.approx(2 + 4 / 3 * 2.0)
    assert ends["second"] == pytest.approx(ends["first"] + (4 - 4 / 3) * 1.5)


def test_more_than_max_running_wait() -> None:
    bench = Bench()
    bench.engine(step=1.0, request=0.5, running=1).add([Request("a", length=2, fresh=0), Request("b", length=3, fresh=0)])
    assert bench.run() == pytest.approx({"a": 3.0, "b": 7.5})


def test_new_weights_stop_an_engine_and_empty_its_cache() -> None:
    bench = Bench()
    engine = bench.engine(step=1.0, prefill=0.1)
    engine.add([Request("a", length=4, fresh=0)])
    bench.later(1.0, lambda: engine.load(2.0, clear_cache=True, call=bench.note, argument="loaded"))
    assert bench.run() == pytest.approx({"loaded": 3.0, "a": 6.1})  # one token was in the cache
    assert engine.cache == 1


def test_an_idle_engine_loads_too() -> None:
    bench = Bench()
    bench.engine(step=1.0).load(2.0, clear_cache=False, call=bench.note, argument="loaded")
    assert bench.run() == {"loaded": 2.0}


def test_a_full_cache_evicts_the_newest_which_computes_again() -> None:
    """60 tokens: both begin (20 + 2 blocks fit); after 20 steps it is full. The second waits, prefills its 10 + 20 again."""
    bench = Bench()
    engine = bench.engine(step=1.0, prefill=0.1, kv=60)
    engine.add([Request("first", length=30, fresh=10), Request("second", length=30, fresh=10)])
    bench.later(23.0, lambda: bench.ended.update(used=engine.pressure()))
    ends = bench.run()
    assert ends.pop("used") == (pytest.approx((10 + 21) / 60), 1, 1)
    assert ends == pytest.approx({"first": 2 + 30, "second": 32 + 3 + 10})


def test_withdrawn_requests_leave_and_the_others_speed_up() -> None:
    bench = Bench()
    engine = bench.engine(step=1.0, request=1.0)
    engine.add([Request("stays", length=4, fresh=0), Request("goes", length=4, fresh=0)])
    bench.later(3.0, lambda: engine.withdraw({"goes"}))
    assert bench.run() == pytest.approx({"stays": 3.0 + 3 * 2.0})


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=12), st.integers(1, 4))
def test_engine_time_is_steps_and_prefill(requests: list[tuple[float, int, int]], running: int) -> None:
    """With b = 0 an engine that is never idle ends no earlier than its longest queue and no later than one after another."""
    bench = Bench()
    engine = bench.engine(step=0.5, prefill=0.01, running=running)
    for name, (at, length, fresh) in enumerate(requests):
        bench.later(at, lambda name=name, length=length, fresh=fresh: engine.add([Request(name, length, fresh)]))
    ends = bench.run()
    assert len(ends) == len(requests)
    for name, (at, length, fresh) in enumerate(requests):
        assert ends[name] >= at + 0.5 * length + 0.01 * fresh - 1e-6
    work = sum(0.5 * length + 0.01 * fresh for _, length, fresh in requests)
    assert max(ends.values()) <= max(at for at, *_ in requests) + work + 1e-6


# ---- fits ----


def test_negative_coefficients_are_left_out() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert non_negative(rows, np.array([1.0, 3.0, 5.0])) == pytest.approx([1.0, 2.0])
    assert non_negative(rows, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])  # a slope of -1 is not one


def test_an_accident_does_not_move_the_fit() -> None:
    x = np.arange(1.0, 21.0)
    values = 2 + 0.5 * x + 0.01 * np.sin(x)
    values[7] += 100
    found, error = robust(np.column_stack([np.ones(20), x]), values)
    assert found == pytest.approx([2.0, 0.5], abs=0.02)
    assert error < 0.01


def test_scattered_durations_keep_their_mean() -> None:
    values = np.array([1.0, 2.0, 3.0] * 20)
    found, _ = robust(np.ones((60, 1)), values)
    assert found == pytest.approx([2.0]), "weights by the values themselves would give the harmonic mean, 1.64"


def test_work_time_by_hand() -> None:
    """One core. Alone from 0 to 2, two from 2 to 6, nobody until 8, one until 9."""
    clock = WorkTime([(0, 6, 1), (2, 6, 1), (8, 9, 1)], cores=1)
    assert clock([0, 2, 4, 6, 9]) == pytest.approx([0, 2, 3, 4, 7])
    assert WorkTime([(0, 6, 5)], cores=0)([3.0]) == pytest.approx([3.0])


def test_ramps_and_staircase_by_hand() -> None:
    ramps = Ramps(np.array([0.0, 1.0]), np.array([2.0, 3.0]), np.array([4.0, 2.0]))
    assert ramps([0, 1, 2, 3, 9]) == pytest.approx([0, 2, 5, 6, 6])
    stairs = Staircase(np.array([2.0, 1.0]), np.array([5.0, 3.0]))
    assert stairs([1.0, 1.5, 2.0, 3.0]) == pytest.approx([0, 3, 3, 8])


# ---- prompts ----


def test_log_normal_lengths_have_the_mean_and_spread_that_were_asked_for() -> None:
    workload = LogNormalWorkload(mean=100, sigma=50)
    lengths = [workload.tree(0, number, max_response=10**6).base(b).length for number in range(4000) for b in range(2)]
    assert np.mean(lengths) == pytest.approx(100, rel=0.05)
    assert np.std(lengths) == pytest.approx(50, rel=0.1)


def test_a_branch_fits_into_what_its_prefix_leaves() -> None:
    tree = LogNormalWorkload(mean=100, sigma=80).tree(0, 3, max_response=120)
    for position in (1, 60, 119):
        assert 1 <= tree.branch(0, 0, position).length <= 120 - position


def test_the_same_number_is_the_same_prompt() -> None:
    workload = LogNormalWorkload(mean=100, sigma=80)
    assert workload.tree(1, 7, max_response=500).base(0) == workload.tree(1, 7, max_response=500).base(0)
    assert len({workload.tree(1, n, max_response=500).base(0) for n in range(20)}) > 10


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 20))
def test_places_keep_their_distance(length: int, count: int, gap: int) -> None:
    positions = scattered(random.Random(0), length, count=count, min_gap=gap)
    assert len(positions) <= count
    assert all(1 <= p < length for p in positions)
    assert all(b - a >= gap for a, b in itertools.pairwise(positions))


def test_a_measured_group_is_drawn_as_it_was() -> None:
    case = MeasuredGroup(
        7,
        (MeasuredAnswer(20, True), MeasuredAnswer(5, False)),
        ((0, ((4, (MeasuredAnswer(3, True), MeasuredAnswer(9, None))), (12, (MeasuredAnswer(2, False),)))),),
    )
    workload = msgspec.json.decode(msgspec.json.encode(MeasuredWorkload([case])), type=MeasuredWorkload)
    tree = workload.tree(0, 0, max_response=100)
    assert (tree.prompt, tree.base(0), tree.base(1)) == (7, MeasuredAnswer(20, True), MeasuredAnswer(5, False))
    assert tree.positions(0, count=2, min_gap=3) == [4, 12]
    assert [tree.branch(0, 0, 4), tree.branch(0, 0, 4)] == [MeasuredAnswer(3, True), MeasuredAnswer(9, None)]
    assert tree.branch(0, 0, 4) in (MeasuredAnswer(3, True), MeasuredAnswer(9, None)), (
        "a third one is drawn from those that are known"
    )
    assert tree.branch(0, 1, 12) == MeasuredAnswer(2, False)
    assert tree.base(5) in case.bases
