"""What the scale benchmark computes; the split of control that docs/adr/0027 proves, on today's ledger; and the benchmark as a user starts it."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Any

import psutil
import pytest
from ledger_support import admit, delivered, judged, make_ledger
from make_support import figures, make

from fr3e_async.machine.events import Trained
from fr3e_async.machine.messages import Branch, Live, Sample, Score, Train


@pytest.fixture(autouse=True)
def _benchmarks(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))


# ---- arithmetic ----


def test_sections_bring_what_they_need():
    from scale import chosen

    assert chosen(None) == ["start", "broadcast", "memory", "limits"]
    assert chosen(["broadcast"]) == ["broadcast"]
    assert chosen(["limits"]) == ["start", "memory", "limits"]


def test_one_actor_more_is_the_median_step():
    from scale_start import beat_cost, slope

    rows = {"1": 2.0, "11": 7.0, "21": 17.0, "31": 24.0}
    found = {"rows": {count: {"seconds": seconds, "loop_cpu_ms": seconds / 10} for count, seconds in rows.items()}}
    assert slope(found) == pytest.approx(0.7), "of 0.5, 1.0 and 0.7 s"
    assert beat_cost(found) == 2.4, "of the largest number"


def test_a_broadcast_is_compared_with_as_many_plain_copies():
    from scale_broadcast import ratio

    assert ratio(0.9, 0.1, copies=3) == pytest.approx(3.0)


def test_nothing_is_started_where_memory_would_run_out(monkeypatch):
    from scale_actors import LEAST_FREE_GIB, MemoryLow, require_memory

    free = psutil.virtual_memory()._replace(available=5 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    require_memory(5 - LEAST_FREE_GIB, "as much as there is")
    with pytest.raises(MemoryLow, match=r"200 actors would take some 4\.0 GiB, but 5\.0 GiB are free"):
        require_memory(4.0, "200 actors")


def test_weights_from_one_node_and_down_a_tree():
    from scale_limits import STORE_BYTES_PER_S, nodes_of, star_s, tree_s

    second = STORE_BYTES_PER_S
    assert [nodes_of(engines) for engines in (1, 8, 9, 10_000)] == [1, 1, 2, 1250]
    assert [star_s(second, nodes) for nodes in (1, 7, 8)] == pytest.approx([1, 7, 8])
    assert [tree_s(second, nodes) for nodes in (1, 2, 3, 7, 8, 1250)] == pytest.approx([1, 2, 2, 3, 4, 11])


def test_loads_are_parts_of_what_one_can_give():
    from scale_limits import DRIVER_GIB, STORE_BYTES_PER_S, Costs, Demand, limit, loads, shards

    costs = Costs(event_s=1e-3, beat_s=5e-4, group_bytes=2**20, cut_s=1e-4)
    demand = Demand(
        engines=800, step_s=20.0, events_per_s=300.0, machine_load=0.02, in_flight=2048, looks_per_s=400.0,
        weight_bytes=STORE_BYTES_PER_S,
    )  # fmt: skip
    found = loads(demand, costs)
    assert found == pytest.approx(
        {
            "bare machine": 0.02,
            "events through the loop": 0.3,
            "heartbeats": 0.2,
            "the loop together": 0.5,
            "driver memory": 2 / DRIVER_GIB,
            "weights, all nodes from one": 100 / 20,
            "weights, down a tree": 7 / 20,
        }
    )
    assert limit(found["the loop together"], 800) == pytest.approx(1600)
    assert limit(0.0, 800) == math.inf
    assert [shards(load, 0.0) for load in (0.0, 0.5, 0.51, 4.2)] == [1, 1, 2, 9]
    assert shards(0.1, 2.5) == 3, "memory alone can ask for more"


def test_the_verdict_names_what_is_reached_first_and_the_loop():
    from scale_limits import verdict

    assert verdict({"the loop together": 0.5, "weights": 2.0}, 100) == "weights limits first, at 50, control at 200"
    assert verdict({"the loop together": 0.5, "weights": 0.2}, 100) == "the loop together limits first, at 200"


# ---- a small cluster, simulated ----


def test_a_cluster_is_scaled_and_its_events_are_counted_from_the_end_of_the_warm_up():
    from scale_limits import GROUPS_AN_ENGINE, STALENESS, preset, scaled, simulated

    config, model = preset()
    small = scaled(config, 5)
    assert (small.generators.count, small.explorers.count, small.verifiers.count) == (3, 2, 1)
    assert small.flow.capacity == (STALENESS + 1) * GROUPS_AN_ENGINE * 5
    found = simulated(small, model, 5)
    kinds, demand = found["kinds"], found["demand"]
    assert kinds["Trained"] == STALENESS + 1, "as many batches as were left out"
    assert kinds["Acked"] == pytest.approx(5 * (STALENESS + 1), abs=5)
    assert demand["events_per_s"] == pytest.approx(sum(kinds.values()) / found["simulated_s"])
    assert kinds["Scored"] == pytest.approx(kinds["Delivered"], rel=0.2)
    assert found["pressure"] > 0, "heartbeats are counted apart"
    assert 0 < demand["machine_load"] < 0.1
    assert 0 < demand["in_flight"] <= small.flow.capacity
    assert demand["weight_bytes"] == 2 * config.model.parameters


# ---- the driver's memory ----


def test_the_fullest_state_fills_every_slot_with_whole_groups():
    from scale_memory import Crowd, paper

    crowd = Crowd(paper(12), learner=False)
    crowd.fill()
    state = crowd.machine.ledger.state()
    assert len(state.groups) == 12
    assert crowd.machine.ledger.ready == 6, "the other half is with the learner"
    assert all(group.complete and group.credit is not None for group in state.groups)
    assert {len(group.rollouts) for group in state.groups} == {16}
    assert len(crowd.table) == 3 * 12, "a payload each for the trunk, the other bases and the branches: of open groups only"


def test_with_a_learner_groups_pass_through():
    from scale_memory import Crowd, paper

    crowd = Crowd(paper(12), learner=True)
    crowd.steady(500)
    assert crowd.told >= 500
    assert crowd.machine.ledger.version > 3
    assert crowd.cpu_s > 0
    assert crowd.longest_s <= crowd.cpu_s
    assert crowd.longest != ""


def test_a_cut_is_measured_in_its_parts():
    from scale_memory import full

    found = full(8)
    assert (found["in_flight"], found["rollouts"], found["payloads"]) == (8, 8 * 16, 8 * 3)
    assert found["json_bytes"] > 8 * 16 * 50
    assert min(found["cut_s"], found["turn_s"]) > 0
    assert found["turn_s"] <= found["encode_s"]


# ---- control in shards: docs/adr/0027 ----


class Sharded:
    """Ledgers that know nothing of each other, a merger in lockstep, one fleet. What a shard is told comes late, in order."""

    def __init__(self, shares: list[int], *, staleness: int, window: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ledgers = [  # a shard's window cannot hold more than the groups that it may have beyond a batch
            make_ledger(groups=share, staleness=staleness, window=min(window, staleness * share)) for share in shares
        ]
        self.told: list[deque[Any]] = [deque() for _ in shares]
        self.todo: list[tuple[int, Any, int]] = []  # shard, work, live version when it was given
        self.parts: set[int] = set()  # shards whose part of the next batch is there
        self.version = self.live = self.payloads = self.admitted = self.oldest = 0
        self.trained: list[int] = []

    def run(self, versions: int) -> None:
        moves = [self.admit, self.work, self.work, self.work, self.tell, self.train, self.publish]
        while self.version < versions:
            self.chance.choice(moves)()

    def take(self, shard: int, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Train):
                assert command.version == self.version + 1, "shards are in step"
                self.parts.add(shard)
                self.oldest = max(self.oldest, self.version - command.oldest)
            elif isinstance(command, Sample | Branch | Score):
                self.todo.append((shard, command, self.live))

    def admit(self) -> None:
        shard = self.chance.randrange(len(self.ledgers))
        if self.ledgers[shard].admissible():
            self.admitted += 1
            self.take(shard, admit(self.ledgers[shard], f"p{self.admitted}"))

    def work(self) -> None:
        if not self.todo:
            return
        shard, command, version = self.todo.pop(self.chance.randrange(len(self.todo)))
        if isinstance(command, Score):
            event: Any = judged(command, *(float(self.chance.random() < 0.5) for _ in command.ids))
        else:
            self.payloads += 1
            event = delivered(command, payload=self.payloads, version=version)
        self.take(shard, self.ledgers[shard].handle(event))

    def train(self) -> None:
        """The batch is whole when every shard has given its part."""
        if len(self.parts) == len(self.ledgers):
            self.version += 1
            self.parts.clear()
            for told in self.told:
                told.append(Trained(version=self.version))

    def publish(self) -> None:
        if self.live < self.version:
            self.live += 1
            for told in self.told:
                told.append(Live(version=self.live))

    def tell(self) -> None:
        shard = self.chance.randrange(len(self.ledgers))
        if self.told[shard]:
            self.take(shard, self.ledgers[shard].handle(self.told[shard].popleft()))


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize(("shares", "staleness"), [([1, 1], 1), ([2, 1, 3], 1), ([2, 2], 2), ([1, 2], 0), ([1, 1, 1, 1], 3)])
def test_shards_with_a_share_of_the_capacity_keep_the_bound(shares, staleness, window):
    """The ledger refuses a token that is too old; the oldest one seen shows that the bound is reached, so the test can fail."""
    oldest = 0
    for seed in range(8):
        world = Sharded(shares, staleness=staleness, window=window, seed=seed)
        world.run(25)
        oldest = max(oldest, world.oldest)
        held = sum(ledger.slots_held for ledger in world.ledgers)
        assert held <= (staleness + 1) * sum(shares), "together no more than one ledger would admit"
    assert oldest == staleness


# ---- as a user starts it ----


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scale_as_a_user_starts_it(tmp_path):
    done = make("bench-scale", "--quick", "--json", str(tmp_path / "out.json"))
    found = figures(tmp_path / "out.json")
    assert set(found) >= {"start", "broadcast", "memory", "limits", "quick", "machine"}
    for row in found["start"]["rows"].values():
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor"]["seconds"])
        assert row["own_mib"] <= row["resident_mib"]
    for row in found["broadcast"]["one_node"]["rows"].values():
        assert row["broadcast"] >= row["slowest"] > 0
    for size, row in found["memory"]["sizes"].items():
        assert row["in_flight"] == int(size)
    for engines, row in found["limits"]["engines"].items():
        assert row["demand"]["engines"] == int(engines)
        assert row["shards"] >= 1
    assert "no such run took place" in done.stdout
    assert "limits first" in done.stdout
