"""Simulated runs whose pools grow, shrink and help each other: what that is worth, and what must hold all the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_support import model, system

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Acked, Delivered, Lost, Pressure, Scored, Utilization, WorkerUp
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Assign, Dismiss, Hire, Move, Release
from fr3e_async.simulate.service import SystemModel
from fr3e_async.simulate.stats import SimulationReport, Stats
from fr3e_async.simulate.world import World

SLOW = {"step": 0.05, "request": 1e-2, "train": 0.1, "token": 0.0}  # engines are what all wait for
ONE_TO_EIGHT = {"count": 1, "max": 8}
EIGHT_TO_ONE = {"count": 8, "min": 1}
LARGEST = {GENERATORS: 8, EXPLORERS: 8, VERIFIERS: 2}


class Log:
    """Keeps every event with its decisions, and counts the workers."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Any, list[Any]]] = []
        self.sizes: list[tuple[float, dict[str, int]]] = []  # whenever one comes, goes or is moved
        self._there: Counter[str] = Counter()
        self._roles: dict[str, str] = {}

    def write(self, event: Any, commands: list[Any], now: float) -> None:
        self.entries.append((now, event, commands))
        if isinstance(event, WorkerUp):
            self._roles[event.worker] = event.role
            self._there[event.role] += 1
        for command in commands:
            if isinstance(command, Release | Move):
                self._there[self._roles.pop(command.worker)] -= 1
            if isinstance(command, Move):
                self._roles[command.worker] = command.role
                self._there[command.role] += 1
        self.sizes.append((now, dict(self._there)))

    def engine_seconds(self) -> float:
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        return sum((later - at) * (there.get(GENERATORS, 0) + there.get(EXPLORERS, 0)) for (at, there), (later, _) in pairs)

    def commands(self, kind: type) -> list[Any]:
        return [command for _, _, commands in self.entries for command in commands if isinstance(command, kind)]

    def largest(self, role: str) -> int:
        return max(there.get(role, 0) for _, there in self.sizes)


def elastic(generators: dict[str, int], explorers: dict[str, int], *, steps: int = 30, **sections: dict[str, Any]) -> Config:
    """16 groups of 4 bases and 12 branches in a batch; engines take 8 rollouts each at once."""
    config = system(
        groups=16,
        **{
            "generators": {"rollouts_in_flight": 8} | generators,
            "explorers": {"rollouts_in_flight": 8} | explorers,
            "verifiers": {"count": 2},
            "flow": {"max_rejected_in_a_row": 10**6},
            "observe": {"heartbeat_s": 0.5},
            "pools": {"grow_after_s": 2.0, "shrink_after_s": 30.0},
        }
        | sections,
    )
    return replace(config, run=replace(config.run, steps=steps))


def run(config: Config, times: SystemModel, *, warmup: int, seed: int = 0) -> tuple[World, SimulationReport, Log]:
    log = Log()
    world = World(config, times, seed=seed, warmup=warmup, log=log)
    world.run()
    return world, world.stats.report(label="simulation"), log


# ---- growing ----


def test_pools_grow_where_engines_are_what_all_wait_for_and_soon_do_as_well_as_the_best_fixed_ones() -> None:
    times = model(**SLOW, engine={"start_s": 3.0})
    _, grown, log = run(elastic(ONE_TO_EIGHT, ONE_TO_EIGHT), times, warmup=10)
    sizes = {1: (15, 5), 8: (30, 10)}  # engines of a role: (batches, of these left out)
    fixed = {n: run(elastic({"count": n}, {"count": n}, steps=s), times, warmup=w)[1] for n, (s, w) in sizes.items()}
    assert fixed[8].rollouts_per_s > 5 * fixed[1].rollouts_per_s
    assert grown.rollouts_per_s == pytest.approx(fixed[8].rollouts_per_s, rel=0.01), "on the same batches"
    assert (log.largest(GENERATORS), log.largest(EXPLORERS)) == (8, 8)
    up = [now for now, there in log.sizes if there.get(GENERATORS, 0) == 8]
    assert up[0] < 20.0, "2, 4 and 8 of them: 2 s of waiting, and 3 s for each to start"


def test_new_engines_that_take_long_are_asked_for_once() -> None:
    """More than the pool's largest size is never there or asked for, though tasks wait for two minutes."""
    times = model(**SLOW, engine={"start_s": 120.0})
    _, _, log = run(elastic(ONE_TO_EIGHT, ONE_TO_EIGHT), times, warmup=10)
    out: Counter[str] = Counter()
    asked: dict[int, str] = {}
    there: dict[str, int] = {}
    for (_, event, commands), (_, there) in zip(log.entries, log.sizes, strict=True):
        if isinstance(event, WorkerUp) and event.ticket:
            out[asked.pop(event.ticket)] -= 1
        for command in commands:
            if isinstance(command, Hire):
                asked[command.ticket] = command.role
                out[command.role] += 1
            elif isinstance(command, Dismiss):
                out[asked.pop(command.ticket)] -= 1
        for role in (GENERATORS, EXPLORERS):
            assert there.get(role, 0) + out[role] <= 8
    assert log.largest(GENERATORS) == 8
    assert len(log.commands(Hire)) <= 14 + len(log.commands(Dismiss)) + len(log.commands(Release))


# ---- shrinking ----


def test_pools_shrink_where_the_learner_is_what_all_wait_for_and_the_run_is_as_quick() -> None:
    """A batch takes 60 s in the learner, and 16 engines are at work for a second of them."""
    times = model(step=0.01, request=1e-4, train=60.0, token=0.0, engine={"start_s": 3.0})
    slow = {"observe": {"heartbeat_s": 10.0}, "pools": {"grow_after_s": 10.0, "shrink_after_s": 120.0}}
    _, fixed, whole = run(elastic({"count": 8}, {"count": 8}, **slow), times, warmup=5)
    _, shrunk, log = run(elastic(EIGHT_TO_ONE, EIGHT_TO_ONE, **slow), times, warmup=5)
    assert fixed.idle["learner"] == pytest.approx(0.0, abs=0.01)
    assert shrunk.step_s == pytest.approx(fixed.step_s, rel=0.02)
    assert shrunk.rollouts_per_s == pytest.approx(fixed.rollouts_per_s, rel=0.02)
    assert log.engine_seconds() < 0.4 * whole.engine_seconds()
    assert all(not command.lost for command in log.commands(Release)), "nobody is lost"
    assert not any(isinstance(event, Lost) for _, event, _ in log.entries), "and no work with them"


# ---- helping each other ----


def test_engines_go_where_the_work_is_and_do_nearly_as_well_as_the_best_split() -> None:
    """8 engines, wrongly split, no node for another one, and no time to shrink."""
    times = model(**SLOW, engine={"start_s": 1e7})
    splits = {n: run(elastic({"count": n}, {"count": 8 - n}), times, warmup=15)[1].rollouts_per_s for n in (2, 3, 4, 6)}
    pools = {"count": 6, "min": 1, "max": 7}, {"count": 2, "min": 1, "max": 7}
    _, moved, log = run(elastic(*pools, pools={"grow_after_s": 2.0, "shrink_after_s": 1e6}), times, warmup=15)
    assert max(splits.values()) == splits[3] > 2 * splits[6], "6 and 2 is wrong indeed"
    assert moved.rollouts_per_s > 0.88 * splits[3]
    assert log.commands(Move)
    assert {there[GENERATORS] + there[EXPLORERS] for now, there in log.sizes if now > 0} == {8}


# ---- what must hold ----


def test_the_same_seed_is_the_same_run() -> None:
    times = model(engine={"start_s": 1.0, "mtbf_s": 30.0})
    config = elastic(ONE_TO_EIGHT, ONE_TO_EIGHT, steps=6)
    one, again, other = (run(config, times, warmup=1, seed=seed) for seed in (1, 1, 2))
    assert one[2].entries == again[2].entries
    assert dataclasses.replace(one[1], wall_s=0.0) == dataclasses.replace(again[1], wall_s=0.0)
    assert one[2].entries != other[2].entries


def test_a_control_loop_that_takes_its_time_starts_with_the_workers_that_there_are() -> None:
    """It hears of them one after another; nobody is hired before it has heard of all."""
    _, _, log = run(elastic({"count": 2}, {"count": 2}, steps=3), model(control=0.001), warmup=1)
    assert log.commands(Hire) == []
    assert {role: log.largest(role) for role in LARGEST} == {GENERATORS: 2, EXPLORERS: 2, VERIFIERS: 2}


def test_an_engine_that_would_have_failed_later_may_leave_before() -> None:
    times = model(step=0.01, request=1e-4, train=20.0, token=0.0, engine={"start_s": 3.0, "mtbf_s": 200.0})
    slow = {"observe": {"heartbeat_s": 10.0}, "pools": {"grow_after_s": 10.0, "shrink_after_s": 40.0}}
    _, _, log = run(elastic(EIGHT_TO_ONE, EIGHT_TO_ONE, **slow), times, warmup=5)
    assert {command.lost for command in log.commands(Release)} == {False, True}


class Account(Log):
    """Compares the tasks that the statistics know with its own, after every event."""

    stats: Stats
    open: set[int] = set()
    by_pressure = 0

    def write(self, event: Any, commands: list[Any], now: float) -> None:
        given = {command.task for command in commands if isinstance(command, Assign)}
        over = {getattr(event, "task", -1)} if not getattr(event, "left", 0) else set()
        self.open = (self.open | given) - over
        self.by_pressure += bool(given) and isinstance(event, Pressure)
        assert set(self.stats.tasks) == self.open


def test_what_is_given_out_because_a_cache_has_room_again_counts_as_work() -> None:
    log = Account()
    config = elastic({"count": 2}, {"count": 2}, steps=4, observe={"heartbeat_s": 0.1}, pools={"kv_low": 0.3, "kv_high": 0.6})
    world = World(config, model(engine={"kv_tokens": 400}), warmup=0, log=log)
    log.stats = world.stats
    world.run()
    assert log.by_pressure > 0


SETTINGS: list[dict[str, Any]] = [
    {},
    {"weights": {"update": "wait_idle", "idle_timeout_s": 1.0}},
    {"weights": {"update": "abort_retry"}},
    {"pools": {"flexible_roles": True, "grow_after_s": 0.5, "shrink_after_s": 3.0}},
    {"engine": {"entropy": "learner"}},
]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), staleness=st.integers(0, 3), alike=st.booleans())
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_laws(setting: dict[str, Any], seed: int, staleness: int, alike: bool) -> None:
    """Bounds of sizes and of staleness, a ledger that balances, every task ended once, engines that fail; and a replay says the same."""
    config = elastic(
        {"count": 3, "min": 1, "max": 6}, {"count": 2, "min": 1, "max": 6, "cpus": 1.0 if alike else 2.0}, steps=4,
        verifiers={"count": 1, "max": 3}, observe={"heartbeat_s": 0.2},
        **{"pools": {"grow_after_s": 0.5, "shrink_after_s": 3.0}} | setting,
    )  # fmt: skip
    config = replace(config, flow=replace(config.flow, max_staleness=staleness, groups_per_step=6))
    times = model(
        step=0.02, request=2e-3, train=0.5, export=0.1, fetch_s=0.2, pause_s=0.1, engine={"mtbf_s": 40.0, "start_s": 1.0}
    )
    world, report, log = run(config, times, warmup=0, seed=seed)
    assert report.staleness_max <= staleness
    assert report.slots_held_max <= config.flow.capacity
    ledger = world.machine.ledger
    assert (ledger.version, ledger.admitted) == (4, ledger.settled + ledger.in_flight)
    ended = [e.task for _, e, _ in log.entries if isinstance(e, Delivered | Scored | Lost) and not getattr(e, "left", 0)]
    given_out = [c.task for c in log.commands(Assign)]
    assert len(set(ended)) == len(ended)
    assert len(given_out) == len(ended) + len(world.jobs)
    assert all(
        there.get(role, 0) <= most for _, there in log.sizes for role, most in ((GENERATORS, 6), (EXPLORERS, 6), (VERIFIERS, 3))
    )
    assert any(isinstance(e, Utilization) for _, e, _ in log.entries)
    assert alike or not log.commands(Move)
    require_current(log)
    require_same(config, log)


def require_current(log: Log) -> None:
    """Nobody gets a task before it has the weights that were live when it came."""
    live, joined, serves = 0, {}, Counter[str]()
    for _, event, commands in log.entries:
        if isinstance(event, WorkerUp) and event.role != VERIFIERS:
            joined[event.worker] = live
        if isinstance(event, Acked):
            serves[event.worker] = event.version
        for command in commands:
            if isinstance(command, Assign) and command.worker in joined:
                assert serves[command.worker] >= joined[command.worker]
            live = max(live, getattr(command, "version", 0)) if type(command).__name__ == "Live" else live


def require_same(config: Config, log: Log) -> None:
    machine = Machine(config, make_strategy(config.algorithm))
    machine.start()
    for _, event, commands in log.entries:
        assert machine.handle(event) == commands
