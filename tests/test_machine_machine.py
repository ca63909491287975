"""The control machine in a cluster where anything may happen in any order: its laws, its ends, and hand-made scenarios.

``machine_laws.Laws`` checks every command; ``machine_support.Cluster`` chooses what happens next.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from ledger_support import control_config, delivered, judged, lost
from machine_laws import ENGINES
from machine_mishaps import first, script
from machine_plays import MODES, play, random_cluster
from machine_support import Cluster

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.errors import RunFailed
from fr3e_async.machine.events import (
    Acked,
    Admitted,
    Answered,
    Asked,
    Begun,
    Due,
    Exported,
    Leaving,
    Lost,
    Pressure,
    Refused,
    Stopped,
    Trained,
    Unhired,
    Utilization,
    WorkerDown,
    WorkerUp,
)
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import (
    Assign,
    Branch,
    Dismiss,
    Hire,
    Live,
    Move,
    Release,
    Sample,
    Score,
    Send,
    SetPoolTarget,
    Wait,
    Withdraw,
)

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
    @rule(back=st.integers(0, 3), same_workers=st.booleans())
    def kill(self, back, same_workers):
        self.cluster.kill(script([2 * same_workers, back]))

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


def plays(count: int, *, bad: tuple[str, ...] = Cluster.BAD, often=(0.05, 0.2, 0.4), **fixed) -> list[Cluster]:
    """``bad``: the mishaps that there are; ``often``: parts of all actions that they may be."""
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        cluster = random_cluster(rng, **fixed)
        cluster.BAD = bad
        found.append(play(cluster, rng, moves=rng.randint(10, 400), mishaps=rng.choice(often)))
    return found


@pytest.mark.parametrize(("update", "together", "flexible"), list(product(MODES, (False, True), (False, True))))
def test_whatever_happens_the_run_ends_once_everything_succeeds(update, together, flexible):
    clusters = plays(16, update=update, together=together, flexible=flexible)
    seen = sum((c.history.seen for c in clusters), Counter())
    assert min(seen[kind] for kind in ("Refused", "WorkerDown", "Pressure", "Asked", "Lost", "Live", "Retire")) > 0
    assert (
        min(
            seen[kind] for kind in ("Utilization", "SetPoolTarget", "Hire", "Unhired", "Leaving", "Release", "withdrawn to leave")
        )
        > 0
    )
    assert (seen["Dismiss"] > 0) == (not together)
    assert update != "in_flight" or not seen["withdrawn for weights"]
    assert update != "abort_retry" or seen["withdrawn for weights"]
    assert (seen["lent"] > 0) == flexible
    assert update == "in_flight" or not seen["mixed versions"]


@pytest.mark.slow
@pytest.mark.long
def test_whatever_happens_the_run_ends_at_length():
    plays(2_000)


@pytest.mark.parametrize(("staleness", "window"), [(0, 0), (1, 0), (1, 2), (2, 0), (2, 4), (3, 0), (3, 6)])
def test_the_bound_is_reached_and_never_passed(staleness, window):
    """Teeth: tokens really get as old as they may."""
    lags, mixed = Counter[int](), 0
    for cluster in plays(25, staleness=staleness, window=window, groups=2, steps=5, update="in_flight"):
        lags += cluster.history.lags
        mixed += cluster.history.seen["mixed versions"]
    assert mixed > 0 or not staleness
    assert max(lags) == staleness
    assert set(lags) == set(range(staleness + 1))


@pytest.mark.parametrize(("update", "together"), list(product(MODES, (False, True))))
def test_workers_may_be_told_to_leave_in_every_state(update, together):
    """Nodes go and come back, and nothing else is wrong."""
    clusters = plays(
        24, bad=("leave",), often=(0.02, 0.05, 0.1), update=update, together=together, elastic=not together, alike=True
    )
    seen = sum((c.history.seen for c in clusters), Counter())
    assert min(seen[kind] for kind in ("leaves twice", "leaves with weights on their way", "withdrawn to leave")) > 0
    assert update == "in_flight" or min(seen[kind] for kind in ("leaves while it is paused", "withdrawn for weights")) > 0
    assert update != "abort_retry" or seen["withdrawn twice"] > 0
    assert (seen["Move"] > 0) == (not together)
    for cluster in clusters:
        assert not any(role.replacements for role in cluster.machine.dispatcher.roles.values()), "one that leaves is not lost"
        assert cluster.replay() == cluster.commands


@pytest.mark.parametrize("window", [0, 3])
def test_the_same_events_give_the_same_commands(window):
    for cluster in plays(8, staleness=2, groups=2, window=window, flexible=True):
        assert cluster.replay() == cluster.commands


# ---- scenarios ----


def machine_of(**fields) -> Machine:
    config = control_config(**{"groups": 1, "strategy": "grpo_pp", **fields})
    return Machine(config, make_strategy(config.algorithm))


def up(machine: Machine, *workers: str, **fields) -> list:
    """Workers by name: their role is what stands before the dash."""
    return [c for w in workers for c in machine.handle(WorkerUp(role=w.partition("-")[0], worker=w, **fields))]


def test_work_that_waits_in_an_engine_holds_its_limit_and_work_thrown_away_halves_it():
    limits = []
    for waiting, preempted in ((3, 0), (0, 3)):
        machine = machine_of()
        begun(machine, "generators-0", "verifiers-0")
        before = machine.dispatcher.slots["generators-0"].limit
        machine.handle(Pressure(worker="generators-0", kv_used=0.6, waiting=waiting, preempted=preempted))
        limits.append(machine.dispatcher.slots["generators-0"].limit / before)
    assert limits[0] == 1 > limits[1]


def begun(machine: Machine, *workers: str) -> list:
    """These are there when the session begins; who else is wanted."""
    return [*up(machine, *workers), *machine.handle(Begun())]


def admit(machine: Machine, uid: str) -> list:
    return machine.handle(Admitted(group=f"{uid}@0"))


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
    assert retired.outcome == "failed"


def test_a_withdrawn_task_is_no_attempt_and_does_not_rest():
    machine = machine_of(backoff=0.5, attempts=1)
    up(machine, "generators-0")
    (assign,) = admit(machine, "a")
    for _ in range(5):
        (assign,) = machine.handle(lost(assign.work, counted=False))
        assert assign.work.attempt == 1
    (retired,) = machine.handle(lost(assign.work))
    assert retired.outcome == "failed"


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
    begun(machine, "generators-0", "generators-1", "verifiers-0")
    (assign,) = admit(machine, "a")
    for ticket, worker in ((1, "generators-1"), (2, "generators-0")):
        assert machine.handle(WorkerDown(worker=worker, why="died")) == [
            Release(worker=worker, why="died"),
            Hire(ticket=ticket, role="generators"),
        ]
        assert machine.handle(WorkerDown(worker=worker, why="died")) == []
    assert machine.handle(lost(assign.work)) == []
    assert works(up(machine, "generators-2", ticket=2)) == [("generators-2", "Sample")]


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
    commands = machine.handle(Admitted(group="p@0"))
    trunk = next(c.work for c in commands if c.work.trunk)
    (score,) = machine.handle(delivered(trunk, payload=1))
    assert machine.dispatcher.queued("explorers") == 1
    commands = machine.handle(lost(score.work, scoring=True, payload=1, gone=True))
    assert [type(c).__name__ for c in commands] == ["Retire"]
    assert machine.dispatcher.queued("explorers") == 0
    assert machine.handle(WorkerUp(role="explorers", worker="e")) == []


# ---- pools that come and go ----


def staffed(*workers: str, **fields) -> Machine:
    """Pools of 2 generators and 2 verifiers, or of these workers."""
    machine = machine_of(**fields)
    begun(machine, *(workers or ("generators-0", "generators-1", "verifiers-0")))
    return machine


def leaving(machine: Machine, worker: str, seconds: float = 0.0) -> list:
    return machine.handle(Leaving(worker=worker, why="spot", seconds=seconds))


def left(worker: str, why: str = "spot") -> Release:
    return Release(worker=worker, why=why, lost=False)


def test_a_run_begins_with_what_is_there_and_hires_the_rest():
    machine = machine_of(strategy="fr3e")
    wants = [
        SetPoolTarget(role="generators", actors=2),
        SetPoolTarget(role="explorers", actors=2),
        SetPoolTarget(role="verifiers", actors=1),
    ]
    hires = [Hire(ticket=1, role="generators"), Hire(ticket=2, role="explorers"), Hire(ticket=3, role="explorers")]
    assert begun(machine, "generators-0", "verifiers-0") == [hires[0], wants[0], *hires[1:], *wants[1:]]
    assert works(admit(machine, "a")) == [("generators-0", "Sample")] * 2, "it does not wait for them"


def test_one_that_is_to_leave_is_replaced_at_once_ends_what_it_has_and_goes():
    machine = staffed(staleness=3)
    (assign,) = admit(machine, "a")
    assert leaving(machine, assign.worker) == [
        Hire(ticket=1, role="generators"), Wait(key=f"leave {assign.worker}", seconds=5.0)
    ]  # fmt: skip
    assert works([*admit(machine, "b"), *admit(machine, "c")]) == [("generators-1", "Sample")] * 2
    assert works(admit(machine, "d")) == []
    score, release = machine.handle(delivered(assign.work, payload=1))
    assert (type(score.work), release) == (Score, left("generators-0"))
    assert machine.handle(Due(key="leave generators-0")) == []
    assert works(up(machine, "generators-2", ticket=1)) == [("generators-2", "Sample")]


def test_one_that_has_nothing_to_do_goes_at_once():
    assert leaving(staffed(), "generators-0") == [Hire(ticket=1, role="generators"), left("generators-0")]
    assert leaving(staffed(), "verifiers-0") == [Hire(ticket=1, role="verifiers"), left("verifiers-0")]
    assert leaving(staffed(), "nobody") == []


@pytest.mark.parametrize(("notice", "limit"), [(0.0, 5.0), (120.0, 5.0), (10.0, 5.0), (3.0, 1.5)])
def test_what_it_has_is_taken_from_it_after_half_of_the_notice(notice, limit):
    machine = staffed()
    (assign,) = admit(machine, "a")
    _, wait = leaving(machine, "generators-0", notice)
    assert wait.seconds == limit
    for _ in range(2):  # it may be told twice, and the worker hears only once
        assert machine.handle(Due(key=wait.key)) == [Withdraw(worker="generators-0", tasks=(assign.task,))]
    again, release = machine.handle(lost(assign.work, counted=False))
    assert ((again.worker, again.work.attempt), release) == (("generators-1", 1), left("generators-0"))
    assert machine.handle(Due(key=wait.key)) == []


def test_a_notice_that_comes_to_one_that_leaves_already_shortens_its_time():
    machine = staffed()
    (assign,) = admit(machine, "a")
    leaving(machine, "generators-0")
    (wait,) = leaving(machine, "generators-0", 2.0)
    assert (wait.key, wait.seconds) == ("leave generators-0", 1.0)
    assert machine.handle(Due(key=wait.key)) == [Withdraw(worker="generators-0", tasks=(assign.task,))]


def test_one_that_dies_while_it_leaves_was_replaced_already_and_is_no_bad_sign():
    machine = staffed()
    admit(machine, "a")
    leaving(machine, "generators-0")
    assert machine.handle(WorkerDown(worker="generators-0", why="its node is gone")) == [
        Release(worker="generators-0", why="its node is gone")
    ]
    assert machine.dispatcher.roles["generators"].deaths_in_a_row == 0


def test_an_evaluation_keeps_one_that_leaves_until_it_is_given_back():
    machine = staffed()
    (loan,) = machine.handle(Asked(task=-1, role="generators", weight=1))
    _, wait = leaving(machine, loan.worker)
    assert machine.handle(Due(key=wait.key)) == [Withdraw(worker=loan.worker, tasks=(-1,))]  # which does not end a loan
    assert machine.handle(Answered(task=-1)) == [left(loan.worker)]


def test_one_that_gets_weights_leaves_when_it_has_taken_them():
    machine = staffed("generators-0", "generators-1", "verifiers-0", staleness=2)
    trained(machine, "a")
    assert machine.handle(Exported(version=1)) == [Send(version=1, workers=("generators-0", "generators-1"))]
    hire, wait = leaving(machine, "generators-0")
    assert (type(hire), machine.handle(Due(key=wait.key))) == (Hire, [])
    assert machine.handle(Acked(worker="generators-1", version=1)) == []
    assert machine.handle(Acked(worker="generators-0", version=1)) == [Live(version=1), left("generators-0")]


def test_one_that_refuses_weights_while_it_leaves_is_not_replaced_twice():
    machine = staffed("generators-0", "generators-1", "verifiers-0", staleness=2)
    trained(machine, "a")
    machine.handle(Exported(version=1))
    leaving(machine, "generators-0")
    (release,) = machine.handle(Refused(worker="generators-0", version=1, why="late"))
    assert (release.worker, release.lost) == ("generators-0", True)


@pytest.mark.parametrize("update", ["wait_idle", "abort_retry"])
def test_a_paused_one_that_leaves_gets_no_weights_and_with_it_the_old_ones_go(update):
    machine = staffed(staleness=3, update=update)
    trained(machine, "a")
    (assign,) = admit(machine, "b")
    one, other = assign.worker, ({"generators-0", "generators-1"} - {assign.worker}).pop()
    withdraw = Withdraw(worker=one, tasks=(assign.task,))
    *first_commands, send = machine.handle(Exported(version=1))
    assert send == Send(version=1, workers=(other,))
    assert (withdraw in first_commands) == (update == "abort_retry")
    _, wait = leaving(machine, one)
    assert machine.handle(Due(key=wait.key)) == [withdraw]
    if update == "wait_idle":
        assert machine.handle(Due(key=f"idle 1 {one}")) == [withdraw]
    assert machine.handle(Acked(worker=other, version=1)) == []
    assert machine.ledger.live == 0, "it serves v0 as long as it has work"
    again, release, live = machine.handle(lost(assign.work, counted=False))
    assert (again.worker, release, live) == (other, left(one), Live(version=1))


def test_a_common_hand_over_does_not_wait_for_one_that_has_left():
    machine = staffed(staleness=3, update="wait_idle", together=True)
    trained(machine, "a")
    (assign,) = admit(machine, "b")
    one, other = assign.worker, ({"generators-0", "generators-1"} - {assign.worker}).pop()
    assert [type(c) for c in machine.handle(Exported(version=1))] == [Wait, Wait]
    leaving(machine, one)
    assert machine.handle(lost(assign.work, counted=False)) == [left(one), Send(version=1, workers=(other,))]
    assert works(machine.handle(Acked(worker=other, version=1))) == [(other, "Sample")]


def test_one_that_joins_works_only_with_the_current_weights():
    machine = staffed("generators-0", "generators-1", "verifiers-0", staleness=3)
    trained(machine, "a")
    machine.handle(Exported(version=1))
    for worker in ("generators-0", "generators-1"):
        machine.handle(Acked(worker=worker, version=1))
        leaving(machine, worker)
    assert admit(machine, "b") == []
    assert up(machine, "generators-2", ticket=1) == [Send(version=1, workers=("generators-2",), alone=True)]
    assert works(machine.handle(Acked(worker="generators-2", version=1))) == [("generators-2", "Sample")]


def test_hires_that_fail_are_tried_again_ever_later_and_then_end_the_run():
    config = control_config(groups=1, strategy="grpo_pp")
    config = replace(config, pools=replace(config.pools, replace_backoff_s=1.0, max_deaths_in_a_row=3))
    machine = Machine(config, make_strategy(config.algorithm))
    begun(machine, "generators-0", "verifiers-0")
    delays = []
    for ticket in (1, 2, 3):
        (hire,) = machine.handle(Unhired(ticket=ticket, role="generators", why="no room"))
        delays.append(hire.delay_s)
    assert delays == [1.0, 2.0, 4.0]
    with pytest.raises(RunFailed, match=r"pools\.max_deaths_in_a_row.*a new one of generators: no room"):
        machine.handle(Unhired(ticket=4, role="generators", why="no room"))


def grown(machine: Machine, at: float = 10.0) -> list:
    """Looks at the pools at 8.9, 9.0 and 10.0 seconds, say; nobody is idle. What is done at the last of them."""
    machine.handle(Utilization(at=at - 1.1, idle=()))
    assert machine.handle(Utilization(at=at - 1.0, idle=())) == []
    return machine.handle(Utilization(at=at, idle=()))


def test_a_pool_grows_while_its_tasks_wait_and_shrinks_when_nothing_is_left():
    """Four tasks of 4 rollouts, and room for 4 on each of two generators."""
    machine = staffed(elastic=True)
    given = [c for task in (-1, -2, -3, -4) for c in machine.handle(Asked(task=task, role="generators", weight=4))]
    assert [c.worker for c in given] == ["generators-0", "generators-1"]
    hires = [Hire(ticket=1, role="generators"), Hire(ticket=2, role="generators")]
    assert grown(machine) == [*hires, SetPoolTarget(role="generators", actors=4)]
    (third,) = up(machine, "generators-2", ticket=1)
    assert (third.task, third.worker) == (-3, "generators-2")
    for task in (-1, -2, -3, -4):
        machine.handle(Answered(task=task))
    idle = (("generators", 1.0),)
    assert machine.handle(Utilization(at=12.9, idle=idle)) == []
    assert machine.handle(Utilization(at=13.1, idle=idle)) == [
        Dismiss(ticket=2),  # who is not up yet comes first
        SetPoolTarget(role="generators", actors=1),
        *(left(worker, "the pool is made smaller") for worker in ("generators-2", "generators-1")),
    ]


def test_one_with_work_that_its_pool_does_not_need_any_more_ends_it_first():
    machine = staffed(elastic=True)
    machine.handle(Utilization(at=0.0, idle=(("generators", 1.0),)))
    first_loan, second = [c for task in (-1, -2) for c in machine.handle(Asked(task=task, role="generators", weight=1))]
    commands = machine.handle(Utilization(at=3.0, idle=(("generators", 1.0),)))
    leaves = commands[-1].key.removeprefix("leave ")
    assert commands == [SetPoolTarget(role="generators", actors=1), Wait(key=f"leave {leaves}", seconds=5.0)]
    loan = first_loan if first_loan.worker == leaves else second
    assert machine.handle(Answered(task=loan.task)) == [left(leaves, "the pool is made smaller")]


def test_an_engine_moves_to_the_pool_whose_tasks_wait_and_works_there():
    machine = staffed(
        "generators-0",
        "generators-1",
        "explorers-0",
        "explorers-1",
        "verifiers-0",
        strategy="fr3e",
        elastic=True,
        groups=3,
        staleness=3,
    )
    for uid in "abcdef":
        admit(machine, uid)
    idle = (("explorers", 1.0),)
    for at in (8.9, 9.0):
        assert machine.handle(Utilization(at=at, idle=idle)) == []
    move, *rest = machine.handle(Utilization(at=10.0, idle=idle))
    assert move == Move(worker="explorers-1", role="generators")
    assert ("explorers-1", "Sample") in works(rest)
