"""Whole simulated runs: times worked out by hand, bottlenecks of known throughput, and what must hold whatever happens."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_laws import Laws
from simulate_support import FixedWorkload, model, system

from fr3e_async.algorithm.batching import RowCost
from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import Config
from fr3e_async.errors import RunFailed
from fr3e_async.machine.events import Delivered, Exported, Lost, Scored
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Assign
from fr3e_async.simulate.service import LearnerTimes, batch_tokens
from fr3e_async.simulate.stats import SimulationReport
from fr3e_async.simulate.world import World, simulate

FLAT = {"strategy": "grpo", "bases": 4}


class Log:
    """Keeps every event with its decisions."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, Any, list[Any]]] = []

    def write(self, event: Any, commands: list[Any], now: float) -> None:
        self.entries.append((now, event, commands))


def without_clock(report: SimulationReport) -> SimulationReport:
    return dataclasses.replace(report, wall_s=0.0)


def test_a_synchronous_step_by_hand() -> None:
    """2 groups of 4 flat rollouts on one engine, nothing overlaps: 18.5 + 0.5 + 2 + 4 + 2 + 1 + 1 = 29 s.

    Prefill 0.01 s a token: 10 for the first of a group, then a block of 5 is cached: 2 · (10 + 3 · 5) tokens = 0.5 s. 10 steps
    of 1 + 8 · 0.1 s. 0.5 s a task. Two calls of 4 answers, 1 s each, at 4 processes: 2 s. Training 3 s + 0.01 s · 2 · (10 + 40).
    """
    config = system(groups=2, staleness=0, algorithm=FLAT, engine={"block_size": 5}, verifiers={"workers": 4})
    times = model(
        step=1.0, request=0.1, prefill=0.01, answer=1.0, train=3.0, token=0.01, engine={"task_s": 0.5}, workload=FixedWorkload(),
        export=2.0, fetch_s=1.0, pause_s=1.0,
    )  # fmt: skip
    report = simulate(config, times, steps=3, warmup=1)
    assert report.step_s == pytest.approx(29.0)
    assert report.train_s == pytest.approx(4.0)
    assert report.sync_s == pytest.approx(2.0)
    assert report.rollouts_per_s == pytest.approx(8 / 29)
    assert report.tokens_per_s == pytest.approx(80 / 29)
    assert report.idle["generators"] == pytest.approx(1 - 19 / 29)
    assert report.idle["verifiers"] == pytest.approx(1 - 2 / 29)
    assert report.idle["learner"] == pytest.approx(1 - 6 / 29)
    assert report.cached == pytest.approx(15 / 40)
    assert report.staleness == {0: 16}


def test_where_the_learner_is_the_bottleneck_a_step_is_its_time() -> None:
    config = system(groups=4, algorithm=FLAT)
    report = simulate(config, model(step=1e-4, train=10.0, token=0.0, export=1.0, workload=FixedWorkload()), steps=6, warmup=2)
    assert report.step_s == pytest.approx(11.0)
    assert report.idle["learner"] == pytest.approx(0.0, abs=1e-9)
    assert report.idle["generators"] > 0.9


def test_where_an_engine_is_the_bottleneck_it_makes_what_it_can() -> None:
    """4 requests at once, always more waiting: 4 tokens every 1 + 4 · 0.1 s."""
    config = system(
        groups=16, staleness=2, algorithm=FLAT, engine={"max_running": 4}, generators={"rollouts_in_flight": 400},
    )  # fmt: skip
    times = model(step=1.0, request=0.1, prefill=0.0, answer=1e-3, train=1.0, token=0.0, workload=FixedWorkload(length=50))
    report = simulate(config, times, steps=6, warmup=2)
    assert report.tokens_per_s == pytest.approx(4 / 1.4, rel=0.02)
    assert report.idle["generators"] == pytest.approx(0.0, abs=1e-3)


def test_twice_the_engines_take_half_the_time_until_the_learner_is_the_bottleneck() -> None:
    times = model(step=0.05, request=1e-2, train=2.0, workload=FixedWorkload(length=100))
    steps = [simulate(system(groups=32, algorithm=FLAT, generators={"count": n}), times, steps=5).step_s for n in (1, 2, 4, 64)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] / steps[1] > 1.5
    assert steps[-1] >= 2.0


def test_shared_cores_slow_everyone_down() -> None:
    apart, shared = (simulate(system(), model(), steps=4, cores=cores) for cores in (0, 1))
    assert shared.step_s > 1.2 * apart.step_s
    assert simulate(system(), model(), steps=4, cores=1000).step_s == pytest.approx(apart.step_s)


def test_a_slow_control_loop_is_a_bottleneck() -> None:
    quick, slow = (simulate(system(), model(control=seconds), steps=4) for seconds in (0.0, 0.1))
    assert slow.step_s > 2 * quick.step_s


def test_the_learner_pays_a_context_once_a_group() -> None:
    loads = [RowCost(minibatch=0, group=g, context=c, completion=10) for g, c in ((0, 5), (0, 9), (1, 7))]
    assert batch_tokens(loads) == 9 + 20 + 7 + 10
    times = LearnerTimes(fixed_s=1.0, token_s=0.1, scaling=0.9)
    assert times.train_s(loads, ranks=1) == pytest.approx(1 + 4.6)
    assert times.train_s(loads, ranks=4) == pytest.approx(1 + 4.6 / (4 * 0.81))


# ---- what must always hold ----


def test_the_same_seed_is_the_same_run() -> None:
    one, again, other = (simulate(system(), model(), steps=4, seed=seed) for seed in (1, 1, 2))
    assert without_clock(one) == without_clock(again)
    assert without_clock(one) != without_clock(other)


MODES = [
    {},
    {"weights": {"update": "wait_idle", "idle_timeout_s": 1.0}},
    {"weights": {"update": "abort_retry"}},
    {"weights": {"transfer": "collective"}},
    {"engine": {"entropy": "learner"}},
    {"pools": {"flexible_roles": True}},
    {"flow": {"order": "window", "window": 4}},
    {"algorithm": {"trunk": "all"}},
    {"algorithm": {"trunk": "one_correct_one_wrong"}},
    {"algorithm": {"adaptive_first": 2}},
    {"algorithm": {"strategy": "vineppo"}},
]


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), staleness=st.integers(0, 3))
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("failing", [False, True], ids=["whole", "failing"])
def test_laws(mode: dict[str, Any], failing: bool, seed: int, staleness: int) -> None:
    """Staleness within its bound, a ledger that balances, every task ended once, whatever fails."""
    if mode.get("flow"):
        staleness = max(staleness, 1)
    config: Config = system(groups=4, staleness=staleness, generators={"count": 2}, explorers={"count": 2}, **mode)
    trouble = {"mtbf_s": 20.0, "start_s": 2.0} if failing else {}
    log = Log()
    times = model(engine=trouble, export=0.1, fetch_s=0.2, pause_s=0.1)
    world = World(config_of_steps(config, 4), times, seed=seed, warmup=0, log=log)
    world.run()
    report = world.stats.report(label="simulation")
    assert report.staleness_max <= staleness
    assert report.slots_held_max <= config.flow.capacity
    ledger = world.machine.ledger
    assert ledger.version == 4
    assert ledger.admitted == ledger.settled + ledger.in_flight
    ended = [e.task for _, e, _ in log.entries if isinstance(e, Delivered | Scored | Lost) and not getattr(e, "left", 0)]
    given_out = [c.task for _, _, commands in log.entries for c in commands if isinstance(c, Assign)]
    assert len(set(ended)) == len(ended)
    assert set(ended) <= set(given_out)
    assert len(given_out) == len(ended) + len(world.jobs)
    assert [e.version for _, e, _ in log.entries if isinstance(e, Exported)] == [1, 2, 3, 4]
    assert [t for t, _, _ in log.entries] == sorted(t for t, _, _ in log.entries)
    machine = Machine(world.config, make_strategy(config.algorithm))
    laws = Laws(machine, world.config)
    laws.obey(machine.start())
    assert [laws.tell(event) for _, event, _ in log.entries] == [commands for _, _, commands in log.entries]
    if failing:
        assert report.lost_tasks > 0 or all(t < 40 for t, _, _ in log.entries)


def config_of_steps(config: Config, steps: int) -> Config:
    return replace(config, run=replace(config.run, steps=steps))


def test_a_full_cache_lowers_what_an_engine_is_given() -> None:
    tight = model(engine={"kv_tokens": 600}, workload=FixedWorkload(length=100))
    report = simulate(system(observe={"heartbeat_s": 0.1}), tight, steps=3)
    free = simulate(system(), model(workload=FixedWorkload(length=100)), steps=3)
    assert report.step_s > 1.2 * free.step_s


def test_collective_transfer_keeps_the_learner_until_all_have_the_weights() -> None:
    """The learner is the bottleneck: 5 s of training + 1 s of export, and 2 s until the engines have loaded."""
    times = model(step=1e-4, train=5.0, token=0.0, export=1.0, fetch_s=1.5, pause_s=0.5, workload=FixedWorkload())
    apart = simulate(system(groups=2, algorithm=FLAT), times, steps=6, warmup=2)
    collective = simulate(system(groups=2, algorithm=FLAT, weights={"transfer": "collective"}), times, steps=6, warmup=2)
    assert apart.step_s == pytest.approx(6.0, abs=0.01)
    assert collective.step_s == pytest.approx(8.0, abs=0.01)


def test_prompts_that_teach_nothing_end_a_simulated_run_like_a_real_one() -> None:
    hopeless = FixedWorkload(correct=lambda number: False)
    with pytest.raises(RunFailed, match="max_rejected_in_a_row"):
        simulate(system(flow={"max_rejected_in_a_row": 20}), model(workload=hopeless), steps=2)


def test_tasks_longer_than_a_lease_are_counted() -> None:
    report = simulate(system(flow={"lease_s": 0.3}), model(workload=FixedWorkload(length=100)), steps=3)
    assert report.late_tasks > 0
    assert "flow.lease_s" in report.render()


def test_a_report_says_what_it_is() -> None:
    report = simulate(system(), model(), steps=3)
    assert report.render().startswith("simulation")
    assert report.label == "simulation"
    assert all(0 <= idle <= 1 for idle in report.idle.values())


def test_a_thousand_engines_in_seconds() -> None:
    config = system(
        groups=500, generators={"count": 500}, explorers={"count": 500}, verifiers={"count": 32}, learner={"ranks": 64},
        flow={"max_rejected_in_a_row": 10**6},
    )  # fmt: skip
    began = time.process_time()
    report = simulate(config, model(), steps=2, warmup=0)
    assert report.events > 10_000
    assert time.process_time() - began < 30, "some 3 s"
