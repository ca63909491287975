"""A run that is killed, at any point and as often as it may be, ends with the same groups as one that is not.

What a rollout is worth follows from its id (``ledger_support.World``), so what becomes of a group does. Which groups a run
consumes does, too, in both orders: groups are admitted in the order of the prompts, one only while fewer than steps · G of
those before it are known or hoped to be trained, and in the end none is open. So it is the prompts up to the one that is
the (steps · G)-th to have spread, each with its outcome. In admission order the batches are the same as well. With
``flow.order=window`` they are not: which group is ready first, hence which overtakes which, is a matter of time. What still
holds is that each such group is in one batch, and the staleness bound.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_support import (
    World,
    admit,
    anchors_held,
    anchors_of,
    delivered,
    drive,
    group_named,
    judged,
    kinds,
    lost,
    lost_score,
    make_ledger,
    payloads_of,
    through_json,
)
from machine_mishaps import first
from machine_plays import random_cluster
from machine_support import Cluster

from fr3e_async.machine.events import Rescored, Trained
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.messages import Branch, Live, Retire, Sample, Score, Train


def play_with_kills(cluster: Cluster, rng: random.Random, *, kills: int, after_batches: bool) -> int:
    """So many kills at random points; resumed from the last checkpoint, sometimes from an older one. Returns how many."""
    done = 0
    for _ in range(3_000):
        if cluster.machine.ledger.finished or done == kills:
            break
        chance = rng.random()
        if chance < 0.015:
            cluster.kill(first if rng.random() < 0.8 else rng.randrange)
            done += 1
            cluster.history.seen["killed in training"] += cluster.laws.train is not None
            cluster.history.seen["killed halfway"] += cluster.machine.ledger.version > 0
        elif chance < 0.08:
            cluster.act(rng.choice(cluster.BAD), rng.randrange)
        else:
            name = next(n for n in rng.sample(cluster.GOOD, len(cluster.GOOD)) if cluster.act(n, rng.randrange))
            often = 0.2 if cluster.laws.train else 0.05
            if name == "train" if after_batches else rng.random() < often:
                cluster.checkpoint()
    cluster.to_the_end()
    return done


def require_same_end(seed: int, *, kills: int = 12, **fixed: Any) -> Counter[str]:
    rng = random.Random(seed)
    shape = {"bases": 3, "world": World(seed=seed), "rescored": seed % 3 == 0}
    whole = random_cluster(random.Random(seed), **shape, **fixed)
    whole.to_the_end()
    killed = random_cluster(random.Random(seed), **shape, **fixed)
    done = play_with_kills(killed, rng, kills=kills, after_batches=seed % 2 == 0)
    assert killed.history.outcomes == whole.history.outcomes
    assert killed.history.trained.keys() == whole.history.trained.keys()
    batched = [group for batch in killed.history.batches for group in batch]
    assert sorted(batched) == sorted(group for group, outcome in whole.history.outcomes.items() if outcome == "trained")
    if not killed.config.flow.window:
        assert killed.history.batches == whole.history.batches
    assert whole.lives == 1
    assert killed.lives == done + 1
    return killed.history.seen + Counter(kills=done)


@pytest.mark.parametrize("window", [0, 2])
def test_a_killed_run_ends_like_one_that_is_not(window):
    seen = sum((require_same_end(seed, staleness=2, groups=2, window=window) for seed in range(45)), Counter())
    assert min(seen["kills"], seen["killed halfway"], seen["killed in training"]) > 3, seen


@pytest.mark.slow
def test_hundreds_of_kills_in_any_mode():
    seen = sum((require_same_end(seed, kills=40) for seed in range(200)), Counter())
    assert min(seen["kills"], seen["killed halfway"], seen["killed in training"]) > 50, seen


def test_a_run_that_is_killed_at_every_event_ends_the_same():
    """From each of its cuts in turn."""
    fixed = {"staleness": 1, "groups": 2, "steps": 2, "bases": 3, "window": 0, "adaptive": True, "world": World(seed=5)}
    whole = random_cluster(random.Random(1), **fixed)
    cuts = []
    while not whole.quiet():
        whole.turn()
        whole.checkpoint()
        cuts.append(whole.checkpoints[-1])
    assert len(cuts) > 40
    for cut in cuts:
        again = random_cluster(random.Random(1), **fixed)
        again.checkpoints = [cut]
        again.kill()
        again.to_the_end()
        assert again.history.outcomes == whole.history.outcomes
        assert again.history.batches == whole.history.batches


# ---- what a group owes after a restart ----


def resumed(ledger: Ledger, **fields: Any) -> tuple[Ledger, list[Any]]:
    """Through JSON, as a checkpoint goes."""
    again = make_ledger(state=through_json(ledger.state()), **fields)
    return again, again.resume()


def ids_of(commands: list[Any]) -> list[tuple[str, list[tuple[int, int]]]]:
    return [(type(c).__name__, [tuple(id[1:]) for id in c.ids]) for c in commands]


def test_what_was_with_an_engine_is_asked_for_again():
    ledger = make_ledger(groups=1)
    trunk, _ = admit(ledger, "a")
    ledger.handle(delivered(trunk, payload=7, anchors=(2, 4)))
    again, commands = resumed(ledger, groups=1)
    assert ids_of(commands) == [("Sample", [(0, 1)]), ("Branch", [(1, 0), (1, 1), (2, 0), (2, 1)]), ("Score", [(0, 0)])]
    _, branch, score = commands
    assert (branch.trunk, branch.trunk_payload) == (trunk.ids[0], 7)
    assert anchors_held(again, trunk.ids[0]) == anchors_of(trunk.ids[0], 2, 4)
    assert (score.payload, score.rows) == (7, (0,))
    assert again.admissible() == 1
    (train,) = drive(again, commands, rewards=lambda id: id.branch)
    assert (train.groups, len(train.items)) == (("a@0",), 6)


def test_attempts_are_remembered():
    ledger = make_ledger(groups=1, attempts=2, strategy="grpo_pp")
    (sample,) = admit(ledger, "a")
    ledger.handle(lost(sample))
    again, (second,) = resumed(ledger, groups=1, attempts=2, strategy="grpo_pp")
    assert second.attempt == 2
    (retired,) = again.handle(lost(second))
    assert retired.outcome == "failed"


def test_scoring_attempts_are_remembered():
    ledger = make_ledger(groups=1, attempts=2, strategy="grpo_pp")
    (sample,) = admit(ledger, "a")
    (score,) = ledger.handle(delivered(sample, payload=1))
    ledger.handle(lost_score(score))
    again, (second,) = resumed(ledger, groups=1, attempts=2, strategy="grpo_pp")
    assert (type(second), second.attempt) == (Score, 2)
    (retired,) = again.handle(lost_score(second))
    assert retired.outcome == "failed"


def test_anchors_that_the_learner_owed_are_asked_for_again():
    ledger = make_ledger(groups=1, trunk="all")
    one, other = admit(ledger, "a")
    ledger.handle(delivered(one, payload=1, rescored=True))
    ledger.handle(delivered(other, payload=2, rescored=True))
    ledger.handle(Rescored(task=4, group="a@0", trunks=one.ids, anchors=anchors_of(one.ids[0], 2)))
    again, commands = resumed(ledger, groups=1, trunk="all")
    assert sorted(kinds(commands)) == ["Branch", "Rescore", "Score", "Score"]
    (rescore,) = [c for c in commands if c.__class__.__name__ == "Rescore"]
    assert (rescore.trunks, rescore.payload, rescore.lengths) == (other.ids, 2, (9,))
    assert again.handle(Rescored(task=rescore.task, group="a@0", trunks=rescore.trunks, anchors=())) == []


def test_a_second_round_is_drawn_by_what_the_first_one_gave():
    fields = {"groups": 1, "branches": 3, "adaptive_first": 2}
    ledger = make_ledger(**fields)
    trunk, others = admit(ledger, "a")
    _, branch = ledger.handle(delivered(trunk, payload=1, anchors=(2, 4)))
    (score,) = ledger.handle(delivered(branch, payload=2))
    assert len(branch.ids) == 4
    again, commands = resumed(ledger, **fields)
    (score,) = [c for c in commands if isinstance(c, Score) and c.payload == 2]
    (more,) = again.handle(judged(score, 0, 1, 1, 1))  # node 1 is undecided, node 2 decided
    assert ids_of([more]) == [("Branch", [(1, 2), (1, 3)])]
    third, commands = resumed(again, **fields)
    assert [c.ids for c in commands if isinstance(c, Branch)] == [more.ids]  # and no third round
    assert others.ids not in [c.ids for c in commands if isinstance(c, Branch)]
    third.check()


def test_a_batch_that_was_with_the_learner_is_trained_again_from_the_same_weights():
    ledger = make_ledger(groups=1, staleness=2, strategy="grpo_pp")
    (first_batch,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: id.branch)
    drive(ledger, admit(ledger, "b"), rewards=lambda id: id.branch)
    assert first_batch.version == 1
    state = ledger.state()
    assert [group.name for group in state.groups] == ["a@0", "b@0"]
    assert (state.settled, payloads_of(ledger)) == (0, {101})
    again, (train,) = resumed(ledger, groups=1, staleness=2, strategy="grpo_pp")
    assert (train.groups, train.version, train.items) == (first_batch.groups, 1, first_batch.items)
    retired, following = again.handle(Trained(version=1))
    assert (retired.outcome, following.groups) == ("trained", ("b@0",))


def test_a_cut_right_after_a_batch_has_the_next_one_in_it():
    ledger = make_ledger(groups=1, staleness=2, strategy="grpo_pp")
    for uid in "ab":
        drive(ledger, admit(ledger, uid), rewards=lambda id: id.branch)
    ledger.handle(Trained(version=1))
    assert ledger.training
    again, (train,) = resumed(ledger, groups=1, staleness=2, strategy="grpo_pp")
    assert (train.groups, train.version) == (("b@0",), 2)
    assert (again.version, again.live, again.slots_held, dict(again.outcomes)) == (1, 1, 1, {"trained": 1})


def test_slots_of_batches_that_were_not_live_are_free_because_every_engine_begins_with_the_weights():
    ledger = make_ledger(groups=1, staleness=1, strategy="grpo_pp")
    for uid in "ab":
        drive(ledger, admit(ledger, uid), rewards=lambda id: id.branch)
    ledger.handle(Trained(version=1))
    ledger.handle(Trained(version=2))
    assert (ledger.live, ledger.admissible()) == (0, 0)
    again, _ = resumed(ledger, groups=1, staleness=1)
    assert (again.live, again.admissible()) == (2, 2)
    admit(again, "c")
    assert group_named(again, "c@0").born == 2


def test_the_birth_of_a_group_survives():
    """Or its tokens could be trained too late with a window."""
    ledger = make_ledger(groups=1, staleness=1, strategy="grpo_pp")
    drive(ledger, admit(ledger, "a"), rewards=lambda id: id.branch)
    admit(ledger, "b")
    ledger.handle(Trained(version=1))
    ledger.handle(Live(version=1))
    again, (sample,) = resumed(ledger, groups=1, staleness=1, strategy="grpo_pp")
    assert isinstance(sample, Sample)
    assert (group_named(again, "b@0").born, again.live) == (0, 1)


def test_groups_are_numbered_on():
    ledger = make_ledger(groups=2, strategy="grpo_pp")
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    admit(ledger, "b")
    again, _ = resumed(ledger, groups=2, strategy="grpo_pp")
    admit(again, "c")
    assert [(group.name, group.number) for group in again.state().groups] == [("b@0", 1), ("c@0", 2)]
    assert again.admitted == 3


def test_rejections_in_a_row_are_counted_on():
    ledger = make_ledger(rejected=5)
    for uid in "abc":
        drive(ledger, admit(ledger, uid), rewards=lambda id: 1)
    assert ledger.state().rejected_in_a_row == 3
    again, commands = resumed(ledger, rejected=5)
    assert commands == []
    assert again.state() == ledger.state()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), trunk=st.sampled_from(["first", "random", "all", "one_correct_one_wrong"]))
def test_the_account_of_a_token_budget_continues(seed, trunk):
    """Sizes stay whole numbers, and every open group is expected to cost what it was."""
    rng = random.Random(seed)
    fields = {"groups": 2, "staleness": 2, "budget": 150, "trunk": trunk, "bases": 3}
    ledger = make_ledger(**fields)
    open_tasks: list[Any] = []
    for n in range(60):
        if ledger.admissible():
            open_tasks += admit(ledger, f"p{ledger.admitted}")
        if n % 7 == 6:
            ledger, open_tasks = resumed(ledger, **fields)
        if open_tasks:
            command = open_tasks.pop(rng.randrange(len(open_tasks)))
            match command:
                case Sample() | Branch():
                    open_tasks += ledger.handle(
                        delivered(command, payload=n, version=ledger.live, anchors=(2, 4), length=rng.randint(5, 30))
                    )
                case Score():
                    open_tasks += ledger.handle(judged(command, *(rng.randint(0, 1) for _ in command.ids)))
                case Train():
                    open_tasks += ledger.handle(Trained(version=command.version))
                    open_tasks += ledger.handle(Live(version=command.version))
                case Retire():
                    pass
    for group in ledger.state().groups:
        assert isinstance(group.plan.branches, int)
    account = ledger.state().budget
    assert account is not None
    assert all(isinstance(number, int) for number in (account.largest, account.smallest_groups))
