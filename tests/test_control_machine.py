"""The control machine in a cluster where anything may happen in any order: its laws, its ends, and hand-made stories.

The laws stand in ``machine_support.Cluster``, which checks every command against books of its own. Here it is played.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
from builders import prompt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from ledger_support import delivered, judged, lost
from machine_support import ENGINES, MODES, Cluster, control_config, first, play, random_cluster, script

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.control.machine import Machine
from fr3e_async.control.messages import (
    Acked,
    Admitted,
    Assign,
    Branch,
    Due,
    Exported,
    Live,
    Lost,
    Refused,
    Replace,
    Sample,
    Score,
    Send,
    Stopped,
    Trained,
    Wait,
    Withdraw,
    WorkerDown,
    WorkerUp,
)
from fr3e_async.errors import RunFailed

NUMBERS = st.lists(st.integers(0, 23), max_size=6)


# ---- any order of events ----


class Life(RuleBasedStateMachine):
    """A cluster with any settings. Many good actions for each mishap, so that runs get somewhere."""

    settings: dict = {}

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed):
        self.cluster = random_cluster(random.Random(seed), **self.settings)

    @rule(actions=st.lists(st.tuples(st.sampled_from(Cluster.GOOD), NUMBERS), min_size=1, max_size=12))
    def go_on(self, actions):
        for name, numbers in actions:
            self.cluster.act(name, script(numbers))

    @rule(count=st.integers(1, 20), numbers=NUMBERS)
    def go_on_in_order(self, count, numbers):
        for _ in range(count):
            self.cluster.turn()

    @rule(name=st.sampled_from(Cluster.BAD), numbers=NUMBERS)
    def mishap(self, name, numbers):
        self.cluster.act(name, script(numbers))

    @rule()
    def checkpoint(self):
        self.cluster.checkpoint()

    @precondition(lambda self: self.cluster.checkpoints)
    @rule(back=st.integers(0, 3))
    def kill(self, back):
        self.cluster.kill(script([back]))

    @rule()
    def stop(self):
        self.cluster.stop(first)
        assert not self.cluster.machine.ledger.admissible()
        self.cluster.checkpoint()
        self.cluster.kill()

    def teardown(self):
        if hasattr(self, "cluster"):
            self.cluster.to_the_end()
            assert self.cluster.replay() == self.cluster.commands


class Synchronous(Life):
    settings = {"staleness": 0}


class Window(Life):
    settings = {"staleness": 2, "groups": 2, "window": 3, "steps": 6}


class Together(Life):
    settings = {"together": True, "steps": 5}


LIVES = [Life, *Life.__subclasses__()]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_laws(life):
    run_state_machine_as_test(life, settings=settings(max_examples=15, stateful_step_count=30, deadline=None))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
def test_laws_at_length(life):
    run_state_machine_as_test(life, settings=settings(max_examples=400, stateful_step_count=60, deadline=None))


def plays(count: int, **fixed) -> list[Cluster]:
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        cluster = random_cluster(rng, **fixed)
        found.append(play(cluster, rng, moves=rng.randint(10, 400), mishaps=rng.choice([0.05, 0.2, 0.4])))
    return found


@pytest.mark.parametrize(("update", "together", "flexible"), list(product(MODES, (False, True), (False, True))))
def test_whatever_happens_the_run_ends_once_everything_succeeds(update, together, flexible):
    clusters = plays(12, update=update, together=together, flexible=flexible)
    seen = sum((c.seen_kinds for c in clusters), Counter())
    assert min(seen[kind] for kind in ("Refused", "WorkerDown", "Unreplaced", "Pressure", "Asked", "Lost", "Live", "Retire")) > 0
    assert (seen["Withdraw"] > 0) == (update != "in_flight")
    assert (seen["lent"] > 0) == flexible
    assert (seen["mixed versions"] > 0) == (update == "in_flight")


@pytest.mark.slow
@pytest.mark.long
def test_whatever_happens_the_run_ends_at_length():
    plays(2_000)


@pytest.mark.parametrize(("staleness", "window"), [(0, 0), (1, 0), (1, 2), (2, 0), (2, 4), (3, 0), (3, 6)])
def test_the_bound_is_reached_and_never_passed(staleness, window):
    """Teeth: tokens really get as old as they may."""
    lags = Counter[int]()
    for cluster in plays(25, staleness=staleness, window=window, groups=2, steps=5, update="in_flight"):
        lags += cluster.lags
    assert max(lags) == staleness
    assert set(lags) == set(range(staleness + 1))


@pytest.mark.parametrize("window", [0, 3])
def test_the_same_events_give_the_same_commands(window):
    for cluster in plays(8, staleness=2, groups=2, window=window, flexible=True):
        assert cluster.replay() == cluster.commands


# ---- stories ----


def machine_of(**fields) -> Machine:
    config = control_config(**{"groups": 1, "strategy": "grpo_pp", **fields})
    return Machine(config, make_strategy(config.algorithm))


def up(machine: Machine, *workers: str, version: int = 0) -> list:
    """Workers by name: their role is what stands before the dash."""
    return [c for w in workers for c in machine.handle(WorkerUp(role=w.partition("-")[0], worker=w, version=version))]


def admit(machine: Machine, uid: str) -> list:
    return machine.handle(Admitted(group=f"{uid}@0", prompt=prompt(uid)))


def works(commands: list) -> list:
    return [(c.worker, type(c.work).__name__) for c in commands if isinstance(c, Assign)]


def test_a_group_goes_from_engine_to_verifier_to_the_learner():
    machine = machine_of()
    assert up(machine, "generators-0", "explorers-0", "verifiers-0") == []
    (assign,) = admit(machine, "a")
    assert (assign.worker, type(assign.work), assign.task) == ("generators-0", Sample, assign.work.task)
    (score,) = machine.handle(delivered(assign.work, payload=1))
    assert (score.worker, type(score.work)) == ("verifiers-0", Score)
    (train,) = machine.handle(judged(score.work, 0, 1))
    assert (train.version, train.groups, len(train.items)) == (1, ("a@0",), 2)


def test_work_that_nobody_can_do_yet_waits_for_a_worker():
    machine = machine_of()
    assert admit(machine, "a") == []
    assert works(up(machine, "generators-0")) == [("generators-0", "Sample")]


def test_branches_go_to_the_engine_that_made_their_trunk_and_back_there_after_a_loss():
    machine = machine_of(flexible=True, strategy="fr3e")
    up(machine, "generators-0", "explorers-0")
    trunk, other = admit(machine, "a")
    assert (trunk.worker, other.worker) == ("generators-0", "generators-0")
    machine.handle(lost(other.work, counted=False))
    (branch,) = [c for c in machine.handle(delivered(trunk.work, payload=1)) if isinstance(c, Assign)]
    assert works([branch]) == [("generators-0", "Branch")]
    again = machine.handle(lost(branch.work))
    assert works(again) == [("generators-0", "Branch")]


def test_a_second_attempt_rests_longer_each_time():
    machine = machine_of(backoff=0.5, attempts=4)
    up(machine, "generators-0")
    (assign,) = admit(machine, "a")
    for seconds in (0.5, 1.0, 2.0):
        (wait,) = machine.handle(lost(assign.work))
        assert (type(wait), wait.seconds) == (Wait, seconds)
        (assign,) = machine.handle(Due(key=wait.key))
        assert machine.handle(Due(key=wait.key)) == []
    retired, *_ = machine.handle(lost(assign.work))
    assert retired.fate == "failed_given_up"


def test_a_withdrawn_task_is_no_attempt_and_does_not_rest():
    machine = machine_of(backoff=0.5, attempts=1)
    up(machine, "generators-0")
    (assign,) = admit(machine, "a")
    for _ in range(5):
        (assign,) = machine.handle(lost(assign.work, counted=False))
        assert assign.work.attempt == 1
    (retired,) = machine.handle(lost(assign.work))
    assert retired.fate == "failed_given_up"


def test_a_withdrawn_scoring_task_is_no_attempt_either():
    machine = machine_of(attempts=1)
    up(machine, "generators-0", "verifiers-0")
    (assign,) = admit(machine, "a")
    (score,) = machine.handle(delivered(assign.work, payload=1))
    for _ in range(3):
        (score,) = machine.handle(lost(score.work, scoring=True, payload=1, counted=False))
        assert (type(score.work), score.work.attempt) == (Score, 1)


def test_the_tasks_of_a_dead_worker_end_on_their_own_and_go_to_another_one():
    machine = machine_of()
    up(machine, "generators-0")
    (assign,) = admit(machine, "a")
    (replace,) = machine.handle(WorkerDown(worker="generators-0", why="died"))
    assert (type(replace), replace.role, replace.delay_s) == (Replace, "generators", 0.0)
    assert machine.handle(WorkerDown(worker="generators-0", why="died")) == []
    assert machine.handle(lost(assign.work)) == []
    assert works(up(machine, "generators-1")) == [("generators-1", "Sample")]


def test_a_dead_workers_result_that_comes_all_the_same_counts():
    machine = machine_of()
    up(machine, "generators-0", "verifiers-0")
    (assign,) = admit(machine, "a")
    machine.handle(WorkerDown(worker="generators-0", why="silent"))
    assert works(machine.handle(delivered(assign.work, payload=1))) == [("verifiers-0", "Score")]
    assert machine.handle(lost(assign.work)) == []


def trained(machine: Machine, uid: str) -> None:
    """One more version at the learner. Needs a generator and a verifier."""
    (assign,) = [c for c in admit(machine, uid) if isinstance(c, Assign)]
    (score,) = [
        c for c in machine.handle(delivered(assign.work, payload=1, version=machine.ledger.live)) if isinstance(c, Assign)
    ]
    (train,) = machine.handle(judged(score.work, 0, 1))
    machine.handle(Trained(version=train.version))


def test_slots_are_free_once_every_engine_in_service_has_the_weights():
    machine = machine_of(staleness=1)
    up(machine, "generators-0", "explorers-0", "verifiers-0")
    trained(machine, "a")
    assert machine.handle(Exported(version=1)) == [Send(version=1, workers=("generators-0", "explorers-0"))]
    assert machine.ledger.admissible() == 1
    assert machine.handle(Acked(worker="explorers-0", version=1)) == []
    assert machine.ledger.admissible() == 1
    assert machine.handle(Acked(worker="generators-0", version=1)) == [Live(version=1)]
    assert machine.ledger.admissible() == 2


def test_an_engine_that_refuses_is_replaced_and_holds_up_nobody():
    machine = machine_of(staleness=1)
    up(machine, "generators-0", "explorers-0", "verifiers-0")
    trained(machine, "a")
    machine.handle(Exported(version=1))
    machine.handle(Acked(worker="generators-0", version=1))
    replace, live = machine.handle(Refused(worker="explorers-0", version=1, why="late"))
    assert (replace.worker, replace.why, live) == ("explorers-0", "did not take weights v1: late", Live(version=1))
    assert machine.handle(Refused(worker="explorers-0", version=1, why="late")) == []


def test_wait_idle_waits_for_the_rollouts_and_takes_them_back_when_it_is_too_long():
    machine = machine_of(update="wait_idle", staleness=2)
    up(machine, "generators-0", "verifiers-0")
    trained(machine, "a")
    (assign,) = admit(machine, "b")
    (wait,) = machine.handle(Exported(version=1))
    assert (type(wait), wait.seconds) == (Wait, 300.0)
    assert admit(machine, "c") == []  # paused
    assert machine.handle(Due(key=wait.key)) == [Withdraw(worker="generators-0", tasks=(assign.task,))]
    send = machine.handle(lost(assign.work, counted=False))
    assert send == [Send(version=1, workers=("generators-0",))]
    assert works(machine.handle(Acked(worker="generators-0", version=1))) == [("generators-0", "Sample")] * 2
    assert machine.handle(Due(key=wait.key)) == []


def test_the_time_limit_of_an_earlier_pause_does_not_end_a_later_one():
    machine = machine_of(update="wait_idle", staleness=2)
    up(machine, "generators-0", "verifiers-0")
    trained(machine, "a")
    wait, _ = machine.handle(Exported(version=1))  # idle: sent at once
    machine.handle(Acked(worker="generators-0", version=1))
    trained(machine, "b")
    (assign,) = admit(machine, "c")
    (later,) = machine.handle(Exported(version=2))
    assert machine.handle(Due(key=wait.key)) == []
    assert machine.handle(Due(key=later.key)) == [Withdraw(worker="generators-0", tasks=(assign.task,))]


def test_abort_retry_takes_rollouts_back_at_once():
    machine = machine_of(update="abort_retry", staleness=2)
    up(machine, "generators-0", "verifiers-0")
    trained(machine, "a")
    (assign,) = admit(machine, "b")
    assert machine.handle(Exported(version=1)) == [Withdraw(worker="generators-0", tasks=(assign.task,))]
    quick = machine.handle(delivered(assign.work, payload=2))  # quicker than the withdrawal
    assert quick[-1] == Send(version=1, workers=("generators-0",))
    assert works(quick) == [("verifiers-0", "Score")]


def test_after_the_stop_the_batch_in_training_is_the_last():
    machine = machine_of(staleness=1)
    up(machine, "generators-0", "explorers-0", "verifiers-0")
    trained(machine, "a")
    assert machine.handle(Stopped(reason="enough")) == []
    assert machine.ledger.admissible() == 0


def test_workers_that_keep_dying_end_the_run_with_the_setting():
    machine = machine_of()
    for n in range(500):
        up(machine, f"generators-{n}")
        machine.handle(WorkerDown(worker=f"generators-{n}", why="no memory"))
    up(machine, "generators-500")
    with pytest.raises(RunFailed, match=r"pools\.max_deaths_in_a_row"):
        machine.handle(WorkerDown(worker="generators-500", why="no memory"))


def test_a_role_that_is_not_an_engines_has_no_weights():
    machine = machine_of()
    assert up(machine, "verifiers-0", version=-1) == []
    assert up(machine, "generators-0", version=-1) == [Send(version=0, workers=("generators-0",), alone=True)]
    assert set(machine.fleet.members) == {"generators-0"}
    assert ENGINES == ("generators", "explorers")


def test_a_lost_task_that_is_told_again_after_its_group_has_gone_is_nothing():
    machine = machine_of(attempts=1)
    up(machine, "generators-0", "verifiers-0")
    (assign,) = admit(machine, "a")
    event = lost(assign.work)
    assert isinstance(event, Lost)
    machine.handle(event)
    assert machine.handle(event) == []
    assert not any(isinstance(c, Branch) for c in machine.handle(event))


def test_tasks_of_a_group_that_is_given_up_are_done_by_nobody():
    """No explorer is there; the branches wait for one while the group's rollouts are found to be gone for the last time."""
    config = control_config(groups=1, staleness=0, attempts=1)
    machine = Machine(config, make_strategy(config.algorithm))
    machine.start()
    machine.handle(WorkerUp(role="generators", worker="g"))
    machine.handle(WorkerUp(role="verifiers", worker="v"))
    commands = machine.handle(Admitted(group="p@0", prompt=prompt("p")))
    trunk = next(c.work for c in commands if c.work.trunk)
    (score,) = machine.handle(delivered(trunk, payload=1))
    assert machine.desk.queued("explorers") == 1
    commands = machine.handle(lost(score.work, scoring=True, payload=1, gone=True))
    assert [type(c).__name__ for c in commands] == ["Retire"]
    assert machine.desk.queued("explorers") == 0
    assert machine.handle(WorkerUp(role="explorers", worker="e")) == []
