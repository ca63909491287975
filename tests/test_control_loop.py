"""The loop with fakes: whole runs, losses of every kind of worker, stop and resume, and what a stall looks like."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from builders import prompt, small_config

from fr3e_async.algorithm.strategies import GroupPlan, make_strategy
from fr3e_async.control.controller import Controller
from fr3e_async.control.crew import Crew
from fr3e_async.control.evaluator import Evaluator
from fr3e_async.control.group import Group
from fr3e_async.control.ledger import Ledger
from fr3e_async.control.pool import Pool, TaskLost
from fr3e_async.control.ports import WorkerLost
from fr3e_async.control.progress import Progress, load_control_state
from fr3e_async.control.publisher import Publisher
from fr3e_async.control.tally import Tally
from fr3e_async.control.watch import Watch
from fr3e_async.data.stream import PromptStream
from fr3e_async.errors import RunFailed
from fr3e_async.observe.checkpoints import CheckpointStore
from fr3e_async.observe.metrics import checked
from fr3e_async.testing import FAKE_ANCHORS, FakeEngineWorker, FakeLearner, FakeVerifier, Faults
from fr3e_async.types import Finish, RolloutNote


class Notes:
    """Port ``Reporter`` that keeps what it is told, and refuses undeclared metrics as the real one does."""

    def __init__(self):
        self.steps: dict[int, dict[str, float]] = {}
        self.lines: list[str] = []
        self.groups: list[dict] = []

    def step(self, step, metrics):
        self.steps[step] = checked(metrics)

    def group(self, record):
        self.groups.append(json.loads(json.dumps(record)))  # what goes into groups.jsonl must be plain

    def note(self, text):
        self.lines.append(text)


class World:
    """A run of fakes, wired as the real one is."""

    def __init__(
        self, tmp_path, *, faults=None, resume=None, evaluate=False, prompts=40, strategy="fr3e", rescored=False, **sections
    ):
        flow = {"groups_per_step": 4, "max_staleness": 1, "lease_s": 1.0} | sections.pop("flow", {})
        run = {"steps": 8, "checkpoint_every": 0} | sections.pop("run", {})
        self.config = small_config(
            flow=flow,
            run=run,
            algorithm={"anchors": FAKE_ANCHORS, "branches": 2, "bases": 3, "strategy": strategy} | sections.pop("algorithm", {}),
            observe={"heartbeat_s": 0.05},
            **sections,
        )
        faults = faults or {}
        self.replaced: list[str] = []
        self.engines = {
            role: [FakeEngineWorker(f"{role}-{i}", faults=faults.get(role) if i == 0 else None) for i in range(2)]
            for role in ("generator", "explorer")
        }
        for worker in self.engines["generator"]:
            worker.rescored = rescored
        self.learner = FakeLearner()
        verifiers = [FakeVerifier("verifier-0", faults=faults.get("verifier"))]
        pools = {role: self.pool(role, members) for role, members in self.engines.items()}
        self.crew = Crew(
            config=self.config,
            generators=pools["generator"],
            explorers=pools["explorer"],
            verifiers=self.pool("verifier", verifiers),
            learner=self.learner,
        )
        self.publisher = Publisher(self.crew.engines, ack_timeout_s=0.3, clock=time.time)
        self.ledger = Ledger(self.config, make_strategy(self.config.algorithm), state=resume.ledger if resume else None)
        problems = [prompt(f"p{i}") for i in range(prompts)]
        self.stream = PromptStream(problems, self.config.run.seed, state=resume.stream if resume else None)
        self.notes = Notes()
        self.store = CheckpointStore(tmp_path / "checkpoints")
        self.controller = Controller(
            config=self.config,
            crew=self.crew,
            ledger=self.ledger,
            stream=self.stream,
            publisher=self.publisher,
            evaluator=Evaluator(self.crew, problems[:10]) if evaluate else None,
            reporter=self.notes,
            checkpoints=self.store,
            progress=resume.progress if resume else Progress(),
            clock=time.time,
        )

    def pool(self, role, members):
        async def replace(lost):
            self.replaced.append(lost.name)
            if role == "verifier":
                return FakeVerifier("verifier-new")
            worker = FakeEngineWorker(f"{role}-new")
            self.engines[role].append(worker)
            await self.publisher.bring_up(worker)
            return worker

        return Pool(role, members, width=16, replace=replace, clock=time.time)

    def run(self, timeout=20.0):
        return asyncio.run(asyncio.wait_for(self.controller.run(), timeout))

    def trained_groups(self):
        return [row.payload.ids[row.row].group for batch in self.learner.trained for row in batch]


def test_a_whole_run(tmp_path):
    world = World(tmp_path, evaluate=True)
    assert world.run() == "finished"
    assert (world.ledger.version, world.ledger.in_flight, sorted(world.notes.steps)) == (8, 0, list(range(1, 9)))
    assert all(w.version == 8 for pool in world.engines.values() for w in pool)
    assert world.controller.progress.staleness_max <= 1
    assert [e["label"] for e in world.controller.progress.evaluations] == ["before", "after"]
    assert world.controller.progress.evaluations[0]["newest_version"] == 0
    assert not world.controller._payloads, "payloads of retired groups must be released"
    assert world.store.latest() is not None


def test_staleness_zero_is_synchronous(tmp_path):
    world = World(tmp_path, flow={"max_staleness": 0})
    world.run()
    for number, batch in enumerate(world.learner.trained):
        versions = {int(v) for row in batch for v in row.payload.completion(row.row).versions}
        assert versions == {number}


@pytest.mark.parametrize("role", ["generator", "explorer", "verifier"])
def test_a_lost_worker_costs_nothing_but_time(tmp_path, role):
    world = World(tmp_path, faults={role: Faults(die_at={3})})
    assert world.run() == "finished"
    assert world.replaced == [f"{role}-0"]
    assert world.ledger.version == 8
    assert world.ledger.given_up == 0


def test_a_call_that_hangs_is_leased_out_again(tmp_path):
    world = World(tmp_path, faults={"explorer": Faults(hang_at={2})}, flow={"lease_s": 0.3})
    assert world.run() == "finished"
    assert world.ledger.retries > 0
    assert world.replaced == []


def test_an_engine_that_does_not_acknowledge_is_replaced_and_the_new_one_is_current(tmp_path):
    world = World(tmp_path, run={"steps": 6})
    world.engines["explorer"][1].refuse_weights = True
    assert world.run() == "finished"
    assert world.replaced == ["explorer-1"]
    new = world.engines["explorer"][-1]
    assert new.name == "explorer-new"
    assert new.version == 6
    assert any("explorer-1 did not acknowledge" in line for line in world.notes.lines)


def test_stop_writes_a_checkpoint_and_resume_trains_every_prompt_once(tmp_path):
    first = World(tmp_path, prompts=200)

    async def interrupted():
        run = asyncio.create_task(first.controller.run())
        while first.ledger.version < 3:
            await asyncio.sleep(0.001)
        first.controller.stop("stopped by a test")
        return await run

    assert asyncio.run(interrupted()) == "stopped by a test"
    folder = first.store.latest()
    assert folder is not None
    state = load_control_state(folder)
    assert (state.ledger.version, state.progress.resumed_from) == (first.ledger.version, first.ledger.version)
    second = World(tmp_path, prompts=200, resume=state)
    for pool in second.engines.values():
        for worker in pool:
            worker.version = state.ledger.version
    second.learner.version = state.ledger.version
    assert second.run() == "finished"
    assert second.ledger.version == 8
    assert sorted(second.notes.steps) == list(range(state.ledger.version + 1, 9))
    assert not set(first.trained_groups()) & set(second.trained_groups())


def test_periodic_checkpoints_hold_a_consistent_cut(tmp_path):
    world = World(tmp_path, run={"steps": 6, "checkpoint_every": 2})
    world.run()
    assert [int(folder.parent.name.split("-")[1].split(".")[0]) for folder in world.learner.saved] == [2, 4, 6]
    assert (world.store.latest() / "learner" / "version").read_text() == "6"


def test_nothing_moving_ends_the_run_with_a_diagnosis(tmp_path):
    hang = Faults(hang_at=set(range(1, 100)))
    world = World(tmp_path, faults={"verifier": hang}, watchdog={"timeout_s": 0.5}, flow={"lease_s": 60.0})
    with pytest.raises(RunFailed, match=r"nothing moved for .*watchdog.timeout_s") as caught:
        world.run()
    assert "verifiers: " in str(caught.value)
    assert "sampled" in str(caught.value)


def test_the_wall_limit_stops_with_a_checkpoint(tmp_path):
    world = World(tmp_path, run={"steps": 100_000, "max_wall_s": 0.3})
    assert world.run().startswith("run.max_wall_s")
    assert world.store.latest() is not None


def test_a_pool_gives_work_to_the_least_loaded_and_bounds_it():
    async def story():
        workers = [FakeEngineWorker("a"), FakeEngineWorker("b")]
        pool = Pool("engine", workers, width=2, replace=None, clock=time.time)
        gate, seen = asyncio.Event(), []

        async def call(worker):
            seen.append(worker.name)
            await gate.wait()

        tasks = [asyncio.create_task(pool.run(call, weight=1, lease_s=5)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert (sorted(seen), pool.queued, pool.in_flight) == (["a", "a", "b", "b"], 1, 4)
        gate.set()
        await asyncio.gather(*tasks)
        assert (pool.queued, pool.in_flight) == (0, 0)

    asyncio.run(story())


def test_a_pool_tries_again_when_a_replacement_does_not_start():
    async def story():
        attempts = []

        async def replace(lost):
            attempts.append(lost.name)
            if len(attempts) < 3:
                raise RunFailed("no room")
            return FakeEngineWorker("new")

        async def fail(worker):
            raise WorkerLost("gone")

        async def work(worker):
            return worker.name

        pool = Pool("engine", [FakeEngineWorker("a")], width=2, replace=replace, clock=time.time)
        with pytest.raises(TaskLost):
            await pool.run(fail, weight=1, lease_s=5)
        assert await pool.run(work, weight=1, lease_s=5) == "new"
        assert (len(attempts), pool.replacements, pool.failure) == (3, 3, None)

    asyncio.run(story())


def test_a_pool_stops_replacing_a_worker_that_always_dies():
    async def story():
        async def replace(lost):
            return lost

        async def call(worker):
            raise WorkerLost("again")

        pool = Pool("engine", [FakeEngineWorker("a")], width=2, replace=replace, clock=time.time, max_deaths_in_a_row=2)
        for _ in range(3):
            with pytest.raises(TaskLost):
                await pool.run(call, weight=1, lease_s=5)
            await asyncio.sleep(0.01)
        assert isinstance(pool.failure, RunFailed)

    asyncio.run(story())


def test_stop_during_the_last_evaluation_keeps_the_checkpoint(tmp_path):
    world = World(tmp_path, evaluate=True, run={"steps": 2})

    async def story():
        run = asyncio.create_task(world.controller.run())
        while world.ledger.version < 2 or world.store.latest() is None:
            await asyncio.sleep(0.001)
        for engine in world.engines["generator"]:
            engine.faults.hang_at = set(range(engine.faults.calls + 1, engine.faults.calls + 100))
        while not world.controller._evaluations:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        world.controller.stop("stopped by a test")
        return await asyncio.wait_for(run, 5)

    world.engines["generator"][0]._delay = world.engines["generator"][1]._delay = 0.05  # so that the evaluation takes a while
    assert asyncio.run(story()) == "stopped by a test"
    assert load_control_state(world.store.latest()).ledger.version == 2
    assert world.controller.progress.accuracy_after is None


def test_a_run_with_one_engine_survives_its_loss_while_weights_are_published(tmp_path):
    world = World(tmp_path, strategy="grpo_pp", faults={"generator": Faults(die_at={9})})
    world.crew.generators.seats.pop()  # one generator, no explorer
    world.crew.explorers.seats.clear()
    assert world.run() == "finished"
    assert world.replaced == ["generator-0"]
    assert world.engines["generator"][-1].version == 8


def test_losing_many_proven_workers_at_once_is_no_reason_to_end():
    async def story():
        async def replace(lost):
            return FakeEngineWorker(f"{lost.name}-new")

        async def work(worker):
            await asyncio.sleep(0.01)

        async def die(worker):
            await asyncio.sleep(0.01)
            raise WorkerLost("the node is gone")

        workers = [FakeEngineWorker(f"w{i}") for i in range(8)]
        pool = Pool("engine", workers, width=1, replace=replace, clock=time.time)
        await asyncio.gather(*(pool.run(work, weight=1, lease_s=5) for _ in range(8)))
        lost = await asyncio.gather(*(pool.run(die, weight=1, lease_s=5) for _ in range(8)), return_exceptions=True)
        assert all(isinstance(error, TaskLost) for error in lost)
        await asyncio.gather(*(pool.run(work, weight=1, lease_s=5) for _ in range(8)))
        assert (pool.failure, pool.replacements) == (None, 8)

    asyncio.run(story())


def test_an_unforeseen_error_in_a_replacement_is_not_silent():
    async def story():
        async def replace(lost):
            raise KeyError("unforeseen")

        async def die(worker):
            raise WorkerLost("gone")

        pool = Pool("engine", [FakeEngineWorker("a")], width=1, replace=replace, clock=time.time)
        with pytest.raises(TaskLost):
            await pool.run(die, weight=1, lease_s=5)
        await asyncio.sleep(0.01)
        assert isinstance(pool.failure, RunFailed)
        assert "unforeseen" in str(pool.failure)

    asyncio.run(story())


def test_idle_and_overlap_of_a_timeline_made_by_hand():
    """Generator at work 0-4 and 5-8, learner 2-6, looked at from 0 to 10."""
    now = 0.0

    def pool(workers):
        return Pool("engine", workers, width=1, replace=None, clock=lambda: now)

    worker = FakeEngineWorker("generator-0")
    crew = Crew(config=small_config(), generators=pool([worker]), explorers=pool([]), verifiers=pool([]), learner=FakeLearner())
    watch = Watch(crew, clock=lambda: now, waiting=list, learner_busy=lambda: False)
    worker._busy = [(0.0, 3.0), (3.0, 4.0), (5.0, 8.0)]
    watch.learned((2.0, 6.0))
    asyncio.run(watch.beat())
    now = 10.0
    measured = watch.utilisation()
    assert measured["idle/generators_fraction"] == pytest.approx(0.3)
    assert measured["idle/learner_fraction"] == pytest.approx(0.6)
    assert measured["overlap/fraction"] == pytest.approx(0.75)
    assert "idle/explorers_fraction" not in measured


@pytest.mark.parametrize("trunk", ["random", "all", "one_right_one_wrong"])
@pytest.mark.parametrize("rescored", [False, True])
def test_every_way_to_choose_trunks_runs_to_the_end(tmp_path, trunk, rescored):
    world = World(tmp_path, algorithm={"trunk": trunk}, engine={"entropy": "learner"} if rescored else {}, rescored=rescored)
    assert world.run() == "finished"
    assert (world.ledger.version, world.ledger.in_flight, world.ledger.duplicates) == (8, 0, 0)
    assert (world.learner.rescored > 0) == rescored
    branched = [record for record in world.notes.groups if len(record["states"]) > 1]
    assert branched, "no group was branched"
    if trunk == "all":
        assert {len(record["states"]) for record in world.notes.groups} == {1 + 3 * FAKE_ANCHORS}


def test_vineppo_trains_trunks_in_stretches(tmp_path):
    world = World(tmp_path, strategy="vineppo")
    assert world.run() == "finished"
    rows = [row for batch in world.learner.trained for row in batch]
    assert {row.payload.ids[row.row][1:] for row in rows} == {(0, 0)}
    assert {tuple(stretch.start for stretch in row.advantage) for row in rows} == {(0, 1, 2)}


def test_every_settled_group_leaves_a_row(tmp_path):
    world = World(tmp_path)
    world.run()
    fates = [record["fate"] for record in world.notes.groups]
    assert len(fates) == world.ledger.settled
    row = next(record for record in world.notes.groups if record["fate"] == "trained")
    assert row["tokens"]["generated"] >= row["tokens"]["trained"] >= row["tokens"]["useful"] > 0
    assert {"node", "value", "low", "high", "alpha", "dropped"} <= row["states"][0].keys()


def test_a_token_budget_sizes_the_groups(tmp_path):
    world = World(tmp_path, strategy="grpo_pp", budget={"tokens_per_prompt": 60}, run={"steps": 20})
    world.run()
    costs = [record["tokens"]["generated"] for record in world.notes.groups]
    assert sum(costs) / len(costs) == pytest.approx(60, rel=0.1)
    assert max(record["rollouts"] for record in world.notes.groups) > 8, "fake responses have 6 tokens: 3 bases cost 18"


def test_entropies_that_no_engine_knows_are_not_reported():
    known, unknown = Tally(), Tally()
    group = Group(name="q@0", prompt=prompt("q"), plan=GroupPlan(bases=1), candidates=frozenset(), trunks=())
    group.issue([group.base(0)])
    for tally, error in ((known, 0.1), (unknown, 2.0)):
        note = RolloutNote(
            id=group.base(0), length=4, context=3, cached=0, entropy_sum=2.0, entropy_error_sum=error, finish=Finish.STOP,
            oldest_version=0, newest_version=0,
        )  # fmt: skip
        group.rollouts[group.base(0)].note = note
        tally.add(group.retire("rejected_too_few"))
    assert known.take()["rollout/entropy_nats"] == pytest.approx(0.5)
    assert "rollout/entropy_nats" not in unknown.take()
