"""The loop with fakes: whole runs, losses of every kind of worker, stop and resume, and ways to run."""

from __future__ import annotations

import asyncio
import json

import pytest
import virtual_time
from loop_support import World, audited, replayed

from fr3e_async.algorithm.strategies import GroupPlan
from fr3e_async.control.progress import load_control_state
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.machine.events import Admitted, Pressure
from fr3e_async.machine.group import Group
from fr3e_async.machine.tally import Tally
from fr3e_async.store.journal import read_journal
from fr3e_async.testing.fakes import FAKE_ANCHORS, ActorFault, FakeLearner, always
from fr3e_async.types import Finish, RolloutSummary

CALLS = {GENERATORS: "sample", EXPLORERS: "branch", VERIFIERS: "judge"}


def commands_of(world: World) -> list[str]:
    """Every decision of the last session, in short."""
    return [command for entry in read_journal(world.journal.path)[1] for command in entry.commands]


# ---- whole runs ----


def test_a_whole_run(tmp_path):
    world = World(tmp_path, evaluate=True)
    assert world.run() == "finished"
    assert (world.ledger.version, world.ledger.in_flight, sorted(world.notes.steps)) == (8, 0, list(range(1, 9)))
    assert all(engine.version == 8 for engine in world.engines)
    ages = [metrics["lag/versions_max"] for metrics in world.notes.steps.values()]
    assert world.controller.progress.staleness_max == max(ages) <= 1
    assert [e["label"] for e in world.controller.progress.evaluations] == ["before", "after"]
    assert world.controller.progress.evaluations[0]["newest_version"] == 0
    assert not len(world.controller.context.table), "payloads of retired groups must be released"
    assert world.store.latest() is not None


def test_the_ledger_log_tells_the_run_and_the_journal_repeats_it(tmp_path):
    world = World(tmp_path, run={"checkpoint_every": 3})
    world.run()
    report = audited(tmp_path, world.config)
    assert report.counts == world.ledger.outcomes
    assert (report.counts["trained"], report.version, report.open, report.ended) == (32, 8, (), True)
    assert [cut.version for cut in report.cuts] == [3, 6, 8]
    assert replayed(tmp_path, world.config) > 200
    assert len(world.notes.groups) == world.ledger.settled


def test_staleness_zero_is_synchronous(tmp_path):
    world = World(tmp_path, flow={"max_staleness": 0})
    world.run()
    for number, batch in enumerate(world.learner.trained):
        versions = {int(v) for row in batch for v in row.payload.completion(row.row).versions}
        assert versions == {number}


@pytest.mark.parametrize("mode", ["wait_idle", "abort_retry"])
def test_with_paused_engines_no_rollout_has_tokens_of_two_versions(tmp_path, mode):
    world = World(tmp_path, weights={"update": mode}, flow={"max_staleness": 2}, run={"steps": 6})
    assert world.run() == "finished"
    assert (world.ledger.version, world.ledger.failed, world.controller.progress.staleness_max <= 2) == (6, 0, True)
    assert all(engine.loaded[-1] == 6 for engine in world.engines)
    withdrawn = [command for command in commands_of(world) if command.startswith("withdraw ")]
    assert bool(withdrawn) == (mode == "abort_retry")
    audited(tmp_path, world.config)
    replayed(tmp_path, world.config)


def test_wait_idle_does_not_wait_for_ever(tmp_path):
    """A rollout that does not end is taken back after weights.idle_timeout_s, and begun again elsewhere or later."""
    world = World(
        tmp_path,
        weights={"update": "wait_idle", "idle_timeout_s": 0.1},
        faults={EXPLORERS: {("branch", 3): ActorFault.HANG}},
        flow={"lease_s": 60.0},
    )
    assert world.run() == "finished"
    assert any(command.startswith("withdraw explorer-0 ") for command in commands_of(world))
    assert (world.replaced(), world.ledger.failed) == ({}, 0)


def test_idle_engines_take_the_work_of_the_other_role(tmp_path):
    flexible = World(
        tmp_path / "on", pools={"flexible_roles": True}, counts={GENERATORS: 3, EXPLORERS: 1, VERIFIERS: 1}, delay_s=0.01
    )
    assert flexible.run() == "finished"
    assert sum(generator.calls["branch"] for generator in flexible.of(GENERATORS)) > 0
    fixed = World(tmp_path / "off", counts={GENERATORS: 3, EXPLORERS: 1, VERIFIERS: 1}, run={"steps": 2})
    fixed.run()
    assert sum(generator.calls["branch"] for generator in fixed.of(GENERATORS)) == 0


def test_a_window_lets_ready_groups_overtake_a_slow_one(tmp_path):
    """The generator that has the first group does not come back: the others are trained around it until its lease ends."""
    flow = {"order": "window", "window": 4, "max_staleness": 2, "lease_s": 0.5}
    world = World(tmp_path, flow=flow, faults={GENERATORS: {("sample", 1): ActorFault.HANG}})
    assert world.run() == "finished"
    first = next(entry.event.group for entry in read_journal(world.journal.path)[1] if isinstance(entry.event, Admitted))
    trained = [command.split() for command in commands_of(world) if command.startswith("train ")]
    batch_of = {group: int(version) for _, version, _, *groups in trained for group in groups}
    assert batch_of.get(first, 2) > 1, "the first batch did without the first group"
    assert world.controller.progress.staleness_max <= 2
    audited(tmp_path, world.config)


def test_a_second_round_goes_where_the_first_one_differed(tmp_path):
    world = World(tmp_path, algorithm={"branches": 4, "adaptive_first": 2})
    assert world.run() == "finished"
    rollouts = [record["rollouts"] for record in world.notes.groups]
    assert set(rollouts) == {3 + 2 * FAKE_ANCHORS, 3 + 4 * FAKE_ANCHORS}, "groups stop after a round without spread"
    audited(tmp_path, world.config)
    replayed(tmp_path, world.config)


@pytest.mark.parametrize("trunk", ["random", "all", "one_correct_one_wrong"])
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


def test_vineppo_trains_trunks_in_spans(tmp_path):
    world = World(tmp_path, strategy="vineppo")
    assert world.run() == "finished"
    rows = [row for batch in world.learner.trained for row in batch]
    assert {row.payload.ids[row.row][1:] for row in rows} == {(0, 0)}
    assert {tuple(span.start for span in row.advantage) for row in rows} == {(0, 1, 2)}


def test_every_settled_group_leaves_a_row(tmp_path):
    world = World(tmp_path)
    world.run()
    outcomes = [record["outcome"] for record in world.notes.groups]
    assert len(outcomes) == world.ledger.settled
    row = next(record for record in world.notes.groups if record["outcome"] == "trained")
    assert row["tokens"]["generated"] >= row["tokens"]["trained"] >= row["tokens"]["useful"] > 0
    assert {"node", "value", "low", "high", "alpha", "dropped"} <= row["states"][0].keys()


def test_a_token_budget_sizes_the_groups(tmp_path):
    world = World(tmp_path, strategy="grpo_pp", budget={"tokens_per_prompt": 60}, run={"steps": 20}, prompts=200)
    world.run()
    costs = [record["tokens"]["generated"] for record in world.notes.groups]
    assert sum(costs) / len(costs) == pytest.approx(60, rel=0.1)
    assert max(record["rollouts"] for record in world.notes.groups) > 8, "fake responses have 6 tokens: 3 bases cost 18"


# ---- losses ----


@pytest.mark.parametrize("role", CALLS)
def test_a_lost_worker_costs_nothing_but_time(tmp_path, role):
    world = World(tmp_path, faults={role: {(CALLS[role], 3): ActorFault.DIE}})
    assert world.run() == "finished"
    assert world.started == [f"{role.removesuffix('s')}-{2 if role != VERIFIERS else 1}"]
    assert world.said(f"{role.removesuffix('s')}-0 is lost")
    assert (world.ledger.version, world.ledger.failed) == (8, 0)
    audited(tmp_path, world.config)
    replayed(tmp_path, world.config)


def test_a_worker_that_dies_while_it_is_asked_for_its_state_is_replaced(tmp_path):
    world = World(tmp_path, faults={GENERATORS: {("stats", 2): ActorFault.DIE}}, delay_s=0.01)
    assert world.run() == "finished"
    assert world.started == ["generator-2"]


def test_a_call_that_hangs_is_leased_out_again(tmp_path):
    world = World(tmp_path, faults={EXPLORERS: {("branch", 2): ActorFault.HANG}}, flow={"lease_s": 0.3})
    assert world.run() == "finished"
    assert world.ledger.retries > 0
    assert world.started == []


def test_a_second_attempt_waits_and_is_counted_and_the_last_one_gives_up(tmp_path):
    """Every call of the one explorer runs out of its lease: three attempts, with waits of 0.01 and 0.02 s between them."""
    counts = {GENERATORS: 1, EXPLORERS: 1, VERIFIERS: 1}
    world = World(
        tmp_path, counts=counts, faults={EXPLORERS: always("branch", ActorFault.HANG)}, flow={"lease_s": 0.05}, run={"steps": 1}
    )
    assert world.run() == "finished"
    waits = [command for command in commands_of(world) if " task " in command]
    assert {command.split()[1] for command in waits} == {"0.01", "0.02"}
    settled = world.ledger.settled
    assert world.ledger.failed >= 4 * settled, "no group has got its four branches"
    assert world.ledger.retries >= 2 * world.ledger.failed
    assert sum(record["failed"] for record in world.notes.groups) == 4 * settled


@pytest.mark.parametrize("fault", [ActorFault.HANG, ActorFault.BLOCK, ActorFault.SILENT, ActorFault.DIE])
def test_an_engine_that_does_not_acknowledge_is_replaced_and_the_new_one_is_current(tmp_path, fault):
    faults = {EXPLORERS: {("load_weights", 2): fault}}
    world = World(tmp_path, run={"steps": 6}, weights={"ack_timeout_s": 0.5}, faults=faults)
    assert world.run() == "finished"
    assert world.started == ["explorer-2"]
    assert world.workers.worker("explorer-2").version == 6
    assert world.said("explorer-0 is lost: ")
    audited(tmp_path, world.config)


def test_a_run_with_one_engine_survives_its_loss_while_weights_are_published(tmp_path):
    counts = {GENERATORS: 1, EXPLORERS: 0, VERIFIERS: 1}
    world = World(tmp_path, strategy="grpo_pp", counts=counts, faults={GENERATORS: {("load_weights", 2): ActorFault.DIE}})
    assert world.run() == "finished"
    assert world.started == ["generator-1"]
    assert world.workers.worker("generator-1").version == 8


def test_a_replacement_that_does_not_start_is_tried_again(tmp_path):
    world = World(tmp_path, faults={GENERATORS: {("sample", 1): ActorFault.DIE}})
    world.no_room = 2
    assert world.run() == "finished"
    assert (world.started, world.replaced()) == (["generator-2"], {GENERATORS: 1})
    delays = [command.split()[3] for command in commands_of(world) if command.startswith("hire ")]
    assert delays == ["0.01", "0.02", "0.04"] or delays[0] == "0.01", "nobody is started at once after a failed start"


def test_a_pool_stops_replacing_a_worker_that_always_dies(tmp_path):
    world = World(tmp_path, pools={"max_deaths_in_a_row": 2, "replace_backoff_s": 0.0})
    make = world.worker

    def doomed(role):
        made = make(role)
        made.faults = always("sample", ActorFault.DIE)
        return made

    world.worker = doomed
    for generator in world.of(GENERATORS):
        generator.suffer(ActorFault.DIE)
    with pytest.raises(RunFailed, match=r"generators: 2 workers in a row died .*pools\.max_deaths_in_a_row.*died \(injected\)"):
        world.run()


def test_losing_many_proven_workers_at_once_is_no_reason_to_end(tmp_path):
    counts = {GENERATORS: 8, EXPLORERS: 2, VERIFIERS: 1}
    config = {"pools": {"max_deaths_in_a_row": 2, "replace_backoff_s": 0.0}, "generators": {"rollouts_in_flight": 1}}
    world = World(tmp_path, counts=counts, delay_s=0.01, **config)

    async def scenario():
        run = asyncio.create_task(world.go())
        await world.until(lambda: all(g.calls["sample"] > 1 for g in world.of(GENERATORS)))
        for generator in world.of(GENERATORS):
            generator.suffer(ActorFault.DIE)
        return await run

    assert virtual_time.run(scenario()) == "finished"
    assert world.replaced() == {GENERATORS: 8}


def test_an_unforeseen_error_in_a_replacement_is_not_silent(tmp_path):
    world = World(tmp_path, faults={EXPLORERS: {("branch", 1): ActorFault.DIE}})

    def broken(role):
        raise KeyError("unforeseen")

    world.worker = broken
    with pytest.raises(KeyError, match="unforeseen"):
        world.run()


@pytest.mark.parametrize("where", ["learner", "lease", "beat"])
def test_a_cancellation_that_comes_together_with_a_result_is_not_lost(tmp_path, where):
    """The end of a run cancels what still runs. A loop that did not hear of it would continue for ever."""
    world = World(tmp_path)

    async def scenario():
        answer = asyncio.get_running_loop().create_future()
        waits = {
            "learner": lambda: world.controller.context.learner.of(answer),
            "lease": lambda: world.workers.leased("generator-0", lambda: answer),
            "beat": lambda: world.controller.watch.diagnosis.within_a_beat(answer),
        }
        task = asyncio.create_task(waits[where]())
        await asyncio.sleep(0)
        answer.set_result(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    virtual_time.run(scenario())


# ---- the learner ----


def go_on(world: World, folder, **sections) -> World:
    """A new learner group for the same workers, from the newest checkpoint, as ``session`` does it after a ``LearnerLost``."""
    latest = world.store.latest()
    world.workers.learner = FakeLearner(version=load_control_state(latest).ledger.version if latest else 0)
    return World(folder, resume=latest is not None, workers=world.workers, **sections)


@pytest.mark.parametrize(("call", "number"), [("train", 1), ("train", 5), ("export", 4), ("save", 2)])
@pytest.mark.parametrize("fault", [ActorFault.DIE, ActorFault.BLOCK])
def test_a_lost_learner_sends_everything_back_to_the_last_checkpoint(tmp_path, call, number, fault):
    sections = {"run": {"checkpoint_every": 2}, "watchdog": {"stuck_s": 0.5}}
    first = World(tmp_path, faults={"learner": {(call, number): fault}}, **sections)
    with pytest.raises(LearnerLost, match="injected" if fault is ActorFault.DIE else "the learner is stuck: it "):
        first.run()
    second = go_on(first, tmp_path, **sections)
    start = second.state.version if second.state else 0
    assert second.run() == "finished"
    assert sorted(second.notes.steps) == list(range(start + 1, 9))
    assert all(engine.version == 8 for engine in second.engines)
    report = audited(tmp_path, second.config)
    assert (report.counts["trained"], report.sessions, report.open) == (32, 2, ())
    replayed(tmp_path, second.config)


def test_a_worker_that_is_being_replaced_when_the_learner_is_lost_is_not_forgotten(tmp_path):
    """A node may take both along."""
    first = World(tmp_path, faults={GENERATORS: {("sample", 9): ActorFault.DIE}, "learner": {("train", 6): ActorFault.DIE}})

    async def never(role):
        await asyncio.Event().wait()

    first.workers.start, start = never, first.workers.start
    with pytest.raises(LearnerLost):
        first.run()
    assert first.workers.names(GENERATORS) == ["generator-1"]
    first.workers.start = start
    second = go_on(first, tmp_path)
    assert second.run() == "finished"
    assert first.started == ["generator-2"]
    assert second.workers.names(GENERATORS) == ["generator-1", "generator-2"]
    replayed(tmp_path, second.config)


def test_a_payload_that_is_gone_at_a_checkpoint_sends_everything_back(tmp_path):
    first = World(tmp_path, run={"checkpoint_every": 2})

    async def scenario():
        run = asyncio.create_task(first.go())
        await first.until(lambda: bool(first.store.steps()))
        first.workers.payloads.lost = True
        return await run

    with pytest.raises(LearnerLost, match=r"rollouts that a checkpoint needs.*a payload is gone"):
        virtual_time.run(scenario())
    first.workers.payloads.lost = False
    second = go_on(first, tmp_path, run={"checkpoint_every": 2})
    assert second.run() == "finished"
    audited(tmp_path, second.config)


# ---- stop and resume ----


async def stopped_at(world: World, version: int) -> str:
    run = asyncio.create_task(world.go())
    await world.until(lambda: world.ledger.version >= version)
    world.controller.stop("stopped by a test")
    return await run


def test_stop_writes_a_checkpoint_and_resume_keeps_the_open_groups(tmp_path):
    first = World(tmp_path, prompts=200, flow={"max_staleness": 3}, delay_s=0.004)
    assert virtual_time.run(stopped_at(first, 3)) == "stopped by a test"
    second = World(tmp_path, prompts=200, flow={"max_staleness": 3}, resume=True)
    assert second.state.version == second.resumed.progress.resumed_from == first.ledger.version
    assert second.state.groups, "there were open groups"
    assert second.kept, "and rollouts of them"
    assert second.run() == "finished"
    assert second.ledger.version == 8
    assert sorted(second.notes.steps) == list(range(second.state.version + 1, 9))
    assert not set(first.trained_groups()) & set(second.trained_groups())
    again = {id for engine in second.engines for id in engine.made}
    assert not again & set(second.kept), "a finished rollout was sampled again"
    kept = {id.group for id in second.kept}
    assert kept & set(second.trained_groups()), "what was kept was of use"
    report = audited(tmp_path, second.config)
    assert (report.counts["trained"], report.sessions, report.void_groups) == (32, 2, 0)
    replayed(tmp_path, second.config)


def test_a_stop_before_the_first_batch_leaves_no_checkpoint(tmp_path):
    world = World(tmp_path)
    world.controller.stop("at once")
    assert world.run() == "at once"
    assert (world.ledger.version, world.store.steps()) == (0, [])
    second = World(tmp_path, resume=True)
    assert second.run() == "finished"
    report = audited(tmp_path, second.config)
    assert (report.counts["trained"], report.void_groups > 0) == (32, True)


def test_open_groups_survive_any_number_of_sessions(tmp_path):
    """Keys of payloads stay what they were, and new ones do not collide with them."""
    for version in (2, 4, 6):
        world = World(tmp_path, resume=version > 2, prompts=200)
        virtual_time.run(stopped_at(world, version))
    last = World(tmp_path, resume=True, prompts=200)
    assert last.run() == "finished"
    report = audited(tmp_path, last.config)
    assert (report.counts["trained"], report.sessions, report.void_groups) == (32, 4, 0)
    replayed(tmp_path, last.config)


def test_periodic_checkpoints_hold_a_consistent_cut(tmp_path):
    world = World(tmp_path, run={"steps": 6, "checkpoint_every": 2})
    world.run()
    assert [int(folder.parent.name.split("-")[1].split(".")[0]) for folder in world.learner.saved] == [2, 4, 6]
    assert (world.store.latest() / "learner" / "version").read_text() == "6"
    middle = load_control_state(world.store.root / "step-00000004").ledger
    assert middle.admitted == middle.settled + len(middle.groups)
    assert middle.outcomes["trained"] == 16
    (stated,) = [cut.stated for cut in audited(tmp_path, world.config).cuts if cut.version == 4]
    assert (stated.admitted, stated.open) == (middle.admitted, tuple(group.name for group in middle.groups))


def test_the_wall_limit_stops_with_a_checkpoint(tmp_path):
    world = World(tmp_path, run={"steps": 100_000, "max_wall_s": 0.3}, prompts=1000)
    assert world.run().startswith("run.max_wall_s")
    assert world.store.latest() is not None
    assert load_control_state(world.store.latest()).progress.wall_before_s >= 0.3


def test_stop_during_the_last_evaluation_keeps_the_checkpoint(tmp_path):
    world = World(tmp_path, evaluate=True, run={"steps": 2}, delay_s=0.02)

    async def scenario():
        run = asyncio.create_task(world.go())
        await world.until(lambda: world.ledger.version == 2 and world.learner.running["save"] > 0)
        for engine in world.of(GENERATORS):
            engine.faults = always("sample", ActorFault.HANG)
        await world.until(lambda: world.controller.evaluations.busy)
        await asyncio.sleep(0.05)
        world.controller.stop("stopped by a test")
        return await asyncio.wait_for(run, 5)

    assert virtual_time.run(scenario()) == "stopped by a test"
    assert load_control_state(world.store.latest()).ledger.version == 2
    assert world.controller.progress.accuracy_after is None


def test_evaluations_between_the_first_and_the_last(tmp_path):
    world = World(tmp_path, evaluate=True, evaluation={"every": 3}, faults={GENERATORS: {("sample", 1): ActorFault.DIE}})
    assert world.run() == "finished"
    assert sorted(e["label"] for e in world.controller.progress.evaluations) == ["after", "before", "step 3", "step 6"]
    assert {e["problems"] for e in world.controller.progress.evaluations} == {10}, "also where a part was lost once"
    assert replayed(tmp_path, world.config) > 0


# ---- what is told ----


def test_a_full_engine_is_given_less(tmp_path):
    world = World(tmp_path, delay_s=0.01)
    full = world.of(GENERATORS)[0]
    full.kv_used, full.waiting = 0.99, 3
    assert world.run() == "finished"
    slots = world.controller.machine.dispatcher.slots
    assert slots[full.name].limit == world.config.pools.least_in_flight < slots["generator-1"].limit == 16
    pressed = [entry.event for entry in read_journal(world.journal.path)[1] if isinstance(entry.event, Pressure)]
    assert {(event.worker, event.kv_used, event.waiting) for event in pressed} == {(full.name, 0.99, 3)}


def test_the_journal_can_be_left_out(tmp_path):
    world = World(tmp_path, run={"steps": 2})
    world.journals = False
    assert world.run() == "finished"
    audited(tmp_path, world.config)


def test_metrics_of_a_step_are_plain_numbers(tmp_path):
    world = World(tmp_path, run={"checkpoint_every": 2}, flow={"max_staleness": 2})
    world.run()
    rows = world.notes.steps
    assert json.loads(json.dumps(rows[3]))["time/checkpoint_s"] > 0 or rows[4]["time/checkpoint_s"] > 0
    assert rows[8]["time/sync_s"] > 0
    assert rows[8]["tokens/generated"] > 0


def test_entropies_that_no_engine_knows_are_not_reported():
    known, unknown = Tally(), Tally()
    group = Group(
        name="q@0", plan=GroupPlan(bases=1), number=0, born=0, candidates=frozenset(), trunks=()
    )  # fmt: skip
    group.issue([group.base(0)])
    for tally, error in ((known, 0.1), (unknown, 2.0)):
        note = RolloutSummary(
            id=group.base(0), length=4, context=3, cached=0, entropy_sum=2.0, entropy_error_sum=error, finish=Finish.STOP,
            oldest_version=0, newest_version=0,
        )  # fmt: skip
        group.rollouts[group.base(0)].note = note
        tally.add(group.retire("rejected_too_few"))
    assert known.take()["rollout/entropy_nats"] == pytest.approx(0.5)
    assert "rollout/entropy_nats" not in unknown.take()
