"""The ledger: hand-made scenarios, and its laws for any order of events (staleness, capacity, conservation, once only).

That order does not matter to what is trained is in test_machine_order.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import msgspec
import pytest
from ledger_support import (
    admit,
    anchors_held,
    anchors_of,
    control_config,
    delivered,
    drive,
    group_named,
    judged,
    kinds,
    lost,
    lost_score,
    make_ledger,
    note,
    payloads_of,
)

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.config import RewardConfig
from fr3e_async.config.reward import RewardRange
from fr3e_async.machine.events import Delivered, Rescored, Trained
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.ledger_state import LedgerError, StarvedError
from fr3e_async.machine.messages import Branch, Live, Retire, Train
from fr3e_async.machine.order import StalenessError
from fr3e_async.machine.tally import PolicyWatch, Tally
from fr3e_async.outcomes import Outcome
from fr3e_async.types import AdvantageSpan, Finish, RolloutId, Verdict

# ---- scenarios of one group ----


def test_a_branch_starts_when_its_own_trunk_ends():
    ledger = make_ledger()
    trunk, others = admit(ledger, "a")
    assert (trunk.trunk, len(trunk.ids), others.trunk, len(others.ids)) == (True, 1, False, 1)
    score, branch = ledger.handle(delivered(trunk, payload=1, anchors=(2, 4)))
    assert kinds([score, branch]) == ["Score", "Branch"]
    assert [tuple(id[1:]) for id in branch.ids] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert (branch.trunk, branch.trunk_payload) == (trunk.ids[0], 1)
    assert anchors_held(ledger, trunk.ids[0]) == anchors_of(trunk.ids[0], 2, 4)


def test_every_base_is_a_trunk_of_its_own():
    ledger = make_ledger(trunk="all", groups=1)
    first, second = admit(ledger, "a")
    assert [(s.trunk, s.ids) for s in (first, second)] == [(True, (RolloutId("a@0", 0, b),)) for b in (0, 1)]
    _, branch = ledger.handle(delivered(second, payload=1, anchors=(3,)))
    assert (branch.trunk.branch, [id.node for id in branch.ids]) == (1, [3, 3])  # node 1·K + 1
    _, branch = ledger.handle(delivered(first, payload=2, anchors=(2, 4)))
    assert (branch.trunk.branch, [id.node for id in branch.ids]) == (0, [1, 1, 2, 2])


def test_trunks_picked_by_reward_wait_for_all_verdicts_of_the_bases():
    ledger = make_ledger(trunk="one_correct_one_wrong", bases=4, groups=1)
    samples = admit(ledger, "a")
    assert [s.trunk for s in samples] == [True] * 4
    scores = [ledger.handle(delivered(s, payload=n, anchors=(2,)))[0] for n, s in enumerate(samples)]
    assert [ledger.handle(judged(score, r)) for score, r in zip(scores[1:], (1, 0, 0), strict=True)] == [[], [], []]
    branches = ledger.handle(judged(scores[0], 0))
    assert [(b.trunk.branch, b.trunk_payload) for b in branches] == [(0, 0), (1, 1)]  # first wrong, first right
    assert {id.node for b in branches for id in b.ids} == {1, 3}
    (train,) = drive(ledger, branches, rewards=lambda id: id.branch)
    assert len(train.items) == 8


@pytest.mark.parametrize(("rewards", "branched"), [((1, 1), [0]), ((0, 0), [0]), ((None, 1), [1]), ((None, None), [])])
def test_where_one_kind_is_missing_there_is_one_trunk_or_none(rewards, branched):
    ledger = make_ledger(trunk="one_correct_one_wrong", groups=1)
    samples = admit(ledger, "a")
    scores = [ledger.handle(delivered(s, payload=n))[0] for n, s in enumerate(samples)]
    commands = [c for score, r in zip(scores, rewards, strict=True) for c in ledger.handle(judged(score, r))]
    assert [c.trunk.branch for c in commands if isinstance(c, Branch)] == branched
    if not branched:
        assert [c.outcome for c in commands] == ["rejected_too_few"]


def test_without_branching_all_bases_are_one_task():
    ledger = make_ledger(strategy="grpo_pp", groups=1)
    (sample,) = admit(ledger, "a")
    assert (len(sample.ids), sample.trunk) == (2, False)
    assert kinds(drive(ledger, [sample], rewards=lambda id: id.branch)) == ["Train"]


def test_a_trunk_without_anchors_leaves_a_group_of_bases():
    ledger = make_ledger(groups=1)
    (train,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: id.branch, anchors=())
    assert [item.advantage for item in train.items] == [(AdvantageSpan(0, -0.5),), (AdvantageSpan(0, 0.5),)]


def test_a_vineppo_trunk_is_trained_in_steps():
    ledger = make_ledger(strategy="vineppo", groups=1)
    (train,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: id.node > 0 and id.branch, anchors=(2, 4))
    assert [item.advantage for item in train.items] == [(AdvantageSpan(0, 0.5), AdvantageSpan(2, 0.0), AdvantageSpan(4, -0.5))]


@pytest.mark.parametrize("overlong", [{"overlong_cache": 4}, {"overlong_filter": True}])
def test_overlong_responses_cost_reward_or_are_left_out(overlong: dict[str, Any]):
    config = control_config(strategy="rloo", groups=1, bases=3, **overlong)
    config = replace(config, sampling=replace(config.sampling, max_response=10))
    ledger = Ledger(config, make_strategy(config.algorithm))
    (sample,) = admit(ledger, "a")
    ends = [(8, Finish.STOP), (10, Finish.LENGTH), (5, Finish.STOP)]
    notes = tuple(note(id, length=length, finish=finish) for id, (length, finish) in zip(sample.ids, ends, strict=True))
    (score,) = ledger.handle(Delivered(task=sample.task, group="a@0", payload=1, notes=notes, anchors=None))
    (train,) = ledger.handle(judged(score, 1, 0, 0))
    found = [round(item.advantage[0].value, 9) for item in train.items]
    if "overlong_cache" in overlong:  # 2 and 4 of the last 4 tokens: rewards 1 - 1/4, 0 - 1/2, 0; each less the others' mean
        assert found == [1.0, -0.875, -0.125]
    else:  # the one that was cut off is in the mean, and not in the batch
        assert ([item.row for item in train.items], found) == ([0, 2], [1.0, -0.5])
    assert [group_named(ledger, "a@0").rollouts[id].reward for id in sample.ids] == [1, 0, 0]  # raw


def test_a_branch_is_as_long_as_its_whole_response():
    config = control_config(groups=1, overlong_cache=4, alpha=False, include_trunk=True)
    config = replace(config, sampling=replace(config.sampling, max_response=9))
    ledger = Ledger(config, make_strategy(config.algorithm))
    (train,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: id.branch, anchors=(4,))
    # branches end at 4 + 5 tokens: 0 - 1/2 and 1 - 1/2, whose mean with the trunk's 0 is 0; bases of 5 tokens have no penalty
    assert [item.advantage[0].value for item in train.items] == [-0.5, 0.5, -0.5, 0.5]


# ---- the learner gives the entropies ----


def test_a_rescored_trunk_is_branched_when_the_learner_has_answered():
    ledger = make_ledger(groups=1)
    trunk, others = admit(ledger, "a")
    score, rescore = ledger.handle(delivered(trunk, payload=1, rescored=True))
    assert kinds([score, rescore]) == ["Score", "Rescore"]
    assert (rescore.trunks, rescore.payload, rescore.lengths) == (trunk.ids, 1, (4 + 5,))
    assert ledger.handle(judged(score, 1)) == []
    assert drive(ledger, [others], rewards=lambda id: 1) == []  # not complete: the anchors are owed
    answer = Rescored(task=rescore.task, group="a@0", trunks=rescore.trunks, anchors=anchors_of(trunk.ids[0], 3))
    (branch,) = ledger.handle(answer)
    assert (branch.trunk_payload, anchors_held(ledger, trunk.ids[0])) == (1, answer.anchors)
    assert ledger.handle(msgspec.structs.replace(answer, anchors=anchors_of(trunk.ids[0], 1))) == []
    (again,) = ledger.handle(lost(branch))
    assert anchors_held(ledger, trunk.ids[0]) == answer.anchors  # the first word counts
    assert again.ids == branch.ids


def test_a_rescored_trunk_that_was_lost_is_rescored_once_it_has_come():
    ledger = make_ledger(groups=1)
    trunk, _ = admit(ledger, "a")
    (again,) = ledger.handle(lost(trunk))
    score, rescore = ledger.handle(delivered(again, payload=5, rescored=True))
    assert (score.payload, rescore.payload, rescore.trunks) == (5, 5, trunk.ids)


def test_an_aborted_trunk_is_not_rescored():
    ledger = make_ledger(groups=1)
    trunk, _ = admit(ledger, "a")
    assert kinds(ledger.handle(delivered(trunk, payload=1, rescored=True, finish=Finish.ABORT))) == ["Sample"]


@pytest.mark.parametrize("verdict_first", [False, True])
def test_a_trunk_whose_verdict_failed_is_branched_all_the_same(verdict_first):
    """Its tokens are there; whether the learner or the loss of the verdict comes first must not matter."""
    ledger = make_ledger(groups=1, attempts=1)
    trunk, others = admit(ledger, "a")
    score, rescore = ledger.handle(delivered(trunk, payload=1, rescored=True))
    answer = Rescored(task=rescore.task, group="a@0", trunks=rescore.trunks, anchors=anchors_of(trunk.ids[0], 3))
    events = [lost_score(score), answer]
    commands = [c for event in (events if verdict_first else events[::-1]) for c in ledger.handle(event)]
    assert kinds(commands) == ["Branch"]
    (train,) = drive(ledger, [*commands, others], rewards=lambda id: id.branch)
    assert len(train.items) == 2  # the branches; of the bases only one has a verdict


def test_an_answer_for_a_group_that_has_gone_is_nothing():
    ledger = make_ledger(groups=1)
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    assert ledger.handle(Rescored(task=9, group="a@0", trunks=(RolloutId("a@0", 0, 0),), anchors=())) == []


# ---- losses and duplicates ----


def test_a_lost_trunk_is_issued_again_then_failed_and_the_bases_continue():
    ledger = make_ledger(attempts=2, groups=1)
    trunk, others = admit(ledger, "a")
    (again,) = ledger.handle(lost(trunk))
    assert (again.ids, again.trunk) == (trunk.ids, True)
    assert ledger.handle(lost(again)) == []
    (retired,) = drive(ledger, [others], rewards=lambda id: 1)
    assert (retired.outcome, retired.failed, ledger.failed) == ("rejected_too_few", 1, 1)


def test_lost_branches_are_asked_for_again_from_the_same_trunk():
    ledger = make_ledger(attempts=2, groups=1)
    trunk, _ = admit(ledger, "a")
    _, branch = ledger.handle(delivered(trunk, payload=7, anchors=(2, 4)))
    (again,) = ledger.handle(lost(branch))
    assert (again.ids, again.trunk, again.trunk_payload) == (branch.ids, branch.trunk, 7)
    assert again.task != branch.task


def test_an_aborted_rollout_is_owed_again_and_a_duplicate_is_not():
    ledger = make_ledger(strategy="grpo_pp")
    (sample,) = admit(ledger, "a")
    notes = (note(sample.ids[0]), note(sample.ids[1], finish=Finish.ABORT))
    score, again = ledger.handle(Delivered(task=sample.task, group="a@0", payload=1, notes=notes))
    assert (score.rows, again.ids) == ((0,), (sample.ids[1],))
    assert ledger.handle(Delivered(task=sample.task, group="a@0", payload=2, notes=notes[:1])) == []
    assert ledger.duplicates == 1


def test_a_rollout_that_comes_twice_in_one_answer_is_taken_once():
    ledger = make_ledger(strategy="grpo_pp", groups=1)
    (sample,) = admit(ledger, "a")
    first, second = (note(id) for id in sample.ids)
    (score,) = ledger.handle(Delivered(task=sample.task, group="a@0", payload=1, notes=(first, first, second)))
    assert (score.ids, score.rows, ledger.duplicates) == (sample.ids, (0, 2), 1)
    (train,) = ledger.handle(judged(score, 1, 0))
    assert [item.row for item in train.items] == [0, 2]


def test_a_task_that_ended_cannot_fail_once_more():
    """A repeated report of one loss must not use up the attempts of the retry that is under way."""
    ledger = make_ledger(strategy="grpo_pp", attempts=2, groups=1)
    (sample,) = admit(ledger, "a")
    aborted = delivered(sample, payload=1, finish=Finish.ABORT)
    (again,) = ledger.handle(aborted)
    assert ledger.handle(aborted) == []
    assert ledger.handle(lost(sample)) == []
    assert kinds(drive(ledger, [again], rewards=lambda id: id.branch)) == ["Train"]
    assert (ledger.retries, ledger.failed) == (2, 0)


def test_a_result_that_comes_after_its_loss_was_told_is_a_duplicate():
    """A task ends once, so its rollouts are with one worker at a time."""
    ledger = make_ledger(strategy="grpo_pp", groups=1)
    (sample,) = admit(ledger, "a")
    (again,) = ledger.handle(lost(sample))
    assert ledger.handle(delivered(sample, payload=1)) == []
    assert ledger.duplicates == 2
    (score,) = ledger.handle(delivered(again, payload=2))
    (train,) = ledger.handle(judged(score, 1, 0))
    assert {item.payload for item in train.items} == {2}


def test_a_withdrawn_task_is_given_out_again_and_is_no_attempt():
    ledger = make_ledger(strategy="grpo_pp", groups=1, attempts=1)
    (sample,) = admit(ledger, "a")
    for _ in range(3):
        (sample,) = ledger.handle(lost(sample, counted=False))
        assert sample.attempt == 1
    (score,) = ledger.handle(delivered(sample, payload=1))
    (again,) = ledger.handle(lost(score, scoring=True, payload=1, counted=False))
    assert (again.ids, again.attempt) == (score.ids, 1)
    (retired,) = ledger.handle(lost_score(again))
    assert (retired.outcome, ledger.failed) == ("failed", 2)


def test_a_task_tells_which_attempt_it_is():
    """The highest of its rollouts: of those that are asked for again together some may have failed more often."""
    ledger = make_ledger(strategy="grpo_pp", attempts=9)
    (sample,) = admit(ledger, "a")
    (again,) = ledger.handle(lost(sample))
    notes = (note(sample.ids[0]), note(sample.ids[1], finish=Finish.ABORT))
    score, third = ledger.handle(Delivered(task=again.task, group="a@0", payload=1, notes=notes))
    assert (sample.attempt, again.attempt, score.attempt, third.attempt) == (1, 2, 1, 3)


def test_a_lost_score_is_asked_for_again_then_given_up():
    ledger = make_ledger(strategy="grpo_pp", attempts=2)
    (sample,) = admit(ledger, "a")
    (score,) = ledger.handle(delivered(sample, payload=1))
    (again,) = ledger.handle(lost_score(score))
    assert (again.ids, again.rows) == (score.ids, score.rows)
    (retired,) = ledger.handle(lost_score(again))
    assert (retired.outcome, retired.unknown, retired.failed) == ("failed", 0, 2)


def test_verdicts_that_come_after_their_loss_was_told_are_not_taken():
    ledger = make_ledger(strategy="grpo_pp", attempts=3, groups=1)
    (sample,) = admit(ledger, "a")
    (score,) = ledger.handle(delivered(sample, payload=1))
    (again,) = ledger.handle(lost_score(score))
    assert ledger.handle(judged(score, 1, 1)) == []
    assert ledger.handle(lost_score(score)) == []  # nor does a loss that is told twice use up an attempt
    (train,) = ledger.handle(judged(again, 1, 0))
    assert len(train.items) == 2
    assert ledger.handle(judged(again, 1, 0)) == []


@pytest.mark.parametrize(("on_unknown", "outcome", "rewarded"), [("drop", "rejected_too_few", 1), ("zero", None, 2)])
def test_an_unknown_answer_is_left_out_or_wrong_by_policy(on_unknown, outcome, rewarded):
    ledger = make_ledger(strategy="grpo_pp", groups=1, on_unknown=on_unknown)
    (sample,) = admit(ledger, "a")
    (end,) = drive(ledger, [sample], rewards=lambda id: None if id.branch else 1)
    if outcome:
        assert (end.outcome, end.rewarded, end.unknown) == (outcome, rewarded, 1)
    else:
        assert isinstance(end, Train)
        (retired,) = ledger.handle(Trained(version=1))
        assert (retired.rewarded, retired.unknown, retired.reward_sum) == (rewarded, 1, 1.0)


# ---- batches ----


def test_a_batch_is_trained_in_admission_order_and_frees_slots_when_live():
    ledger = make_ledger(groups=1, staleness=1)
    assert ledger.admissible() == 2
    first, second = admit(ledger, "a"), admit(ledger, "b")
    assert ledger.admissible() == 0
    assert drive(ledger, second, rewards=lambda id: id.branch) == []  # b is ready, but a comes first
    (train,) = drive(ledger, first, rewards=lambda id: id.branch)
    assert (train.groups, train.version) == (("a@0",), 1)
    retired, train_b = ledger.handle(Trained(version=1))
    assert (retired.outcome, train_b.groups) == ("trained", ("b@0",))
    assert ledger.admissible() == 0  # a's slot is held until version 1 is live
    ledger.handle(Live(version=1))
    assert ledger.admissible() == 1


def test_minibatches_follow_admission_order():
    ledger = make_ledger(strategy="grpo_pp", groups=2, minibatches=2)
    (a,), (b,) = admit(ledger, "a"), admit(ledger, "b")
    assert drive(ledger, [b], rewards=lambda id: id.branch, payload=10) == []
    (train,) = drive(ledger, [a], rewards=lambda id: id.branch, payload=20)
    assert [(item.payload, item.load.minibatch) for item in train.items] == [(21, 0), (21, 0), (11, 1), (11, 1)]


def test_a_degenerate_group_gives_its_slot_back_at_once():
    ledger = make_ledger(groups=1)
    (retired,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    assert (retired.outcome, ledger.admissible(), ledger.in_flight) == ("rejected_all_correct", 2, 0)


def test_a_token_older_than_the_bound_is_never_trained():
    ledger = make_ledger(groups=1, strategy="grpo_pp", staleness=1)
    for version, uid in enumerate("ab", start=1):
        drive(ledger, admit(ledger, uid), rewards=lambda id: id.branch)
        ledger.handle(Trained(version=version))
        ledger.handle(Live(version=version))
    (sample,) = admit(ledger, "c")
    (score,) = ledger.handle(delivered(sample, payload=9, version=0))
    with pytest.raises(StalenessError, match=r"2 versions old .* flow\.max_staleness is 1"):
        ledger.handle(judged(score, 1, 0))


def test_starvation_is_an_error_with_the_knob():
    ledger = make_ledger(rejected=1)
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    with pytest.raises(StarvedError) as caught:
        drive(ledger, admit(ledger, "b"), rewards=lambda id: 1)
    assert "flow.max_rejected_in_a_row is 1" in str(caught.value)
    assert "their verdicts: " in str(caught.value)


def test_no_more_groups_are_admitted_than_the_remaining_steps_need():
    ledger = make_ledger(steps=1, groups=2, staleness=3)
    assert ledger.admissible() == 2


def test_the_conservation_law_is_checked_after_every_event():
    ledger = make_ledger(groups=1)
    trunk, _ = admit(ledger, "a")
    ledger.admitted += 1
    with pytest.raises(LedgerError, match=r"^admitted 2 != settled .* \+ in flight 1$"):
        ledger.handle(delivered(trunk, payload=1, anchors=(2,)))


def test_one_group_cannot_be_admitted_twice():
    ledger = make_ledger()
    admit(ledger, "a")
    with pytest.raises(LedgerError, match="admitted already"):
        admit(ledger, "a")


def test_the_state_has_the_counts_and_the_open_groups():
    """What they owe after a restart is in test_control_resume.py."""
    ledger = make_ledger(groups=1, budget=50)
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1)
    trunk, _ = admit(ledger, "b")
    ledger.handle(delivered(trunk, payload=9))
    state = ledger.state()
    assert (state.version, state.admitted, state.outcomes, state.budget.bases) == (0, 2, {"rejected_all_correct": 1}, 2)
    assert ([group.name for group in state.groups], state.settled, payloads_of(ledger)) == (["b@0"], 1, {9})
    again = make_ledger(groups=1, budget=50, state=state)
    again.resume()
    again.check()
    assert again.admissible() == 1
    assert again.state() == state


def test_a_ready_group_overtakes_a_slow_one_with_a_window():
    ledger = make_ledger(strategy="grpo_pp", groups=1, staleness=1, window=1)
    (slow,), (quick,) = admit(ledger, "a"), admit(ledger, "b")
    (train,) = drive(ledger, [quick], rewards=lambda id: id.branch)
    assert train.groups == ("b@0",)
    ledger.handle(Trained(version=1))
    ledger.handle(Live(version=1))
    (quick,) = admit(ledger, "c")
    assert drive(ledger, [quick], rewards=lambda id: id.branch) == []  # once more, and a would be too late
    (train,) = drive(ledger, [slow], rewards=lambda id: id.branch, payload=200)
    assert train.groups == ("a@0",)


def test_a_group_is_as_old_as_the_weights_that_all_engines_have_when_it_is_admitted():
    """Not as the learner's, which no engine may have yet."""
    ledger = make_ledger(strategy="grpo_pp", groups=1, staleness=1)
    drive(ledger, admit(ledger, "a"), rewards=lambda id: id.branch)
    ledger.handle(Trained(version=1))
    admit(ledger, "b")
    assert group_named(ledger, "b@0").born == 0


# ---- the counts of a group ----


def test_a_retired_group_can_be_written_as_json():
    ledger = make_ledger(groups=1)
    (retired,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: 1, anchors=(2, 4))
    row = json.loads(json.dumps(retired.row()))
    assert row["reasons"] == {"told": 6}
    assert [(s["node"], s["parent"], s["position"], s["value"]) for s in row["states"]] == [
        (0, None, 0, 1.0), (1, 0, 2, 1.0), (2, 1, 4, 1.0),
    ]  # fmt: skip
    assert row["tokens"] == {"generated": 30, "prefilled": 24, "reused": 0, "trained": 0, "useful": 0}


def test_useful_tokens_are_those_with_an_advantage():
    ledger = make_ledger(groups=1, strategy="vineppo")
    drive(ledger, admit(ledger, "a"), rewards=lambda id: id.node > 0 and id.branch, anchors=(2, 4))
    (retired,) = [c for c in ledger.handle(Trained(version=1)) if isinstance(c, Retire)]
    # one trunk of 5 tokens: [0, 2) gains 1/2, [2, 4) nothing, [4, 5) loses 1/2
    assert (retired.tokens.trained, retired.tokens.useful) == (5, 3)


def test_a_completion_whose_advantage_is_0_is_trained_and_not_useful():
    ledger = make_ledger(strategy="grpo_pp", groups=1, bases=3)
    (sample,) = admit(ledger, "a")
    (score,) = ledger.handle(delivered(sample, payload=1, length=5))
    (train,) = ledger.handle(judged(score, 1, 0.5, 0))  # the mean is 1/2
    assert train.items[1].advantage == (AdvantageSpan(0, 0.0),)
    (retired,) = [c for c in ledger.handle(Trained(version=1)) if isinstance(c, Retire)]
    assert (retired.tokens.trained, retired.tokens.useful) == (15, 10)
    tally = Tally()
    tally.add(retired)
    found = tally.take()
    assert (found["prompt/trained_tokens"], found["prompt/useful_fraction"]) == (15, 10 / 15)
    assert found["rollout/length_tokens"] == 5  # of a completion, not of a group


def test_the_tally_counts_what_retired():
    ledger, tally = make_ledger(groups=1), Tally()
    (retired,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: 1, anchors=(2, 4))
    tally.add(msgspec.structs.replace(retired, anchors_certain=1))
    (train,) = drive(ledger, admit(ledger, "b"), rewards=lambda id: id.branch, anchors=(2,))
    assert isinstance(train, Train)
    (trained, *_) = ledger.handle(Trained(version=1))
    tally.add(trained)
    found = tally.take()
    names = ("groups/trained", "groups/all_correct", "states/kept", "states/all_correct", "verify/correct", "verify/wrong")
    assert [found[name] for name in names] == [1, 1, 2, 3, 8, 2]
    assert found["reward/accuracy"] == 3 / 4
    assert found["prompt/generated_tokens"] == (30 + 20) / 2
    assert found["prompt/trained_tokens"] == 20 / 2
    assert found["rollout/anchors_certain_fraction"] == 2 / 3
    # a: two bases of 5 tokens, two branches at 2 and two at 4; b: two bases, two branches at 2
    assert found["rollout/length_tokens"] == (4 * 5 + 4 * (2 + 5) + 2 * (4 + 5)) / 10
    assert (found["prompt/all_correct_fraction"], found["prompt/all_wrong_fraction"]) == (1 / 2, 0)
    assert "reward/mean" not in tally.take()  # afresh


def test_every_number_of_the_tally_by_hand():
    """Two bases (right; unknown and cut) and four branches at 2 and 4, of which one is right, two are wrong and one is unknown."""
    ledger, tally = make_ledger(groups=1), Tally()
    trunk, other = admit(ledger, "a")
    branch, score = sorted(ledger.handle(delivered(trunk, payload=1, anchors=(2, 4))), key=lambda c: type(c).__name__)
    ledger.handle(judged(score, 1))
    (unclear,) = ledger.handle(delivered(other, payload=2, length=10, finish=Finish.LENGTH))
    ledger.handle(judged(unclear, None))
    (last,) = ledger.handle(delivered(branch, payload=3, length=3))
    ledger.handle(judged(last, 1, 0, 0, None))
    (retired,) = [c for c in ledger.handle(Trained(version=1)) if isinstance(c, Retire)]
    tally.add(retired)
    zero = ("groups/all_correct", "groups/all_wrong", "groups/no_spread", "groups/too_few", "groups/failed", "states/all_correct",
            "states/all_wrong", "states/no_spread", "states/not_trained", "verify/scored_again", "verify/failed",
            "prompt/all_wrong_fraction", "prompt/reused_tokens")  # fmt: skip
    assert tally.take() == pytest.approx(dict.fromkeys(zero, 0) | {
        "groups/trained": 1, "states/kept": 1, "states/too_few": 2,
        "states/interval_width": (2 * 0.793451 + 0.810938) / 3,  # Wilson's of 1 of 1, 0 of 1 and 1 of 2
        "verify/correct": 2, "verify/wrong": 2, "verify/unknown": 2, "verify/policy_fraction": 0, "reward/accuracy": 1, "reward/mean": 2 / 4,
        "tokens/generated": 5 + 10 + 4 * 3, "prompt/generated_tokens": 27, "prompt/prefilled_tokens": 6 * 4,
        "prompt/trained_tokens": 2 * 3, "prompt/useful_fraction": 6 / 27, "prompt/all_correct_fraction": 1,
        "rollout/entropy_nats": 6 / 27, "rollout/entropy_error_nats": 6 * 0.5 / 27,
        "rollout/length_tokens": (5 + (2 + 3) + (2 + 3) + (4 + 3)) / 4, "rollout/truncated_fraction": 1 / 6,
        "rollout/anchors": 2, "rollout/anchors_certain_fraction": 1,
    }, abs=1e-6)  # fmt: skip


def test_a_prompt_is_all_correct_by_its_bases_whatever_its_branches_are():
    """Of a trained, an unknown, a given-up and a rejected group; the counts of rejected groups see the last one alone."""
    ledger, tally = make_ledger(groups=1, attempts=1), Tally()
    drive(ledger, admit(ledger, "a"), rewards=lambda id: 1 if id.node == 0 else id.branch)  # bases right, branches mixed
    (a, *_) = ledger.handle(Trained(version=1))
    (b,) = drive(ledger, admit(ledger, "b"), rewards=lambda id: None)
    (c,) = [command for sample in admit(ledger, "c") for command in ledger.handle(lost(sample))]
    (d,) = drive(ledger, admit(ledger, "d"), rewards=lambda id: 0)
    for group in (a, b, c, d):
        tally.add(group)
    assert [group.outcome for group in (a, b, c, d)] == ["trained", "rejected_too_few", "failed", "rejected_all_wrong"]
    found = tally.take()
    assert (found["prompt/all_correct_fraction"], found["prompt/all_wrong_fraction"]) == (1 / 2, 1 / 2)
    assert (found["groups/all_correct"], found["groups/all_wrong"], found["groups/too_few"], found["groups/failed"]) == (
        0,
        1,
        1,
        1,
    )
    assert (found["verify/correct"], found["verify/wrong"], found["verify/unknown"], found["verify/failed"]) == (3, 5, 4, 2)


def test_lengths_are_of_judged_responses_and_cuts_of_drawn_ones():
    """A rollout that was never drawn is no completion; one that nobody could judge has no say in the length."""
    ledger, tally = make_ledger(groups=1, attempts=1), Tally()
    trunk, other = admit(ledger, "a")
    assert ledger.handle(lost(other)) == []
    commands = ledger.handle(delivered(trunk, payload=1, anchors=(3,), length=9, finish=Finish.LENGTH))
    rewards = {(0, 0): 1, (1, 0): 0, (1, 1): None}
    (retired,) = drive(ledger, commands, rewards=lambda id: rewards[id.node, id.branch], length=4)
    tally.add(retired)
    found = tally.take()
    assert found["rollout/length_tokens"] == (9 + (3 + 4)) / 2
    assert found["rollout/truncated_fraction"] == 1 / 3
    assert found["tokens/generated"] == 9 + 4 + 4


def test_a_group_that_is_given_up_late_counts_its_verdicts_once():
    """Its rollouts were judged before their tokens were lost: they have failed, and are neither correct nor unknown as well."""
    ledger, tally = make_ledger(groups=1, attempts=1, anchors=1), Tally()
    trunk, other = admit(ledger, "a")
    branch, score = sorted(ledger.handle(delivered(trunk, payload=1)), key=lambda c: type(c).__name__)
    ledger.handle(judged(score, 1))
    (other_score,) = ledger.handle(delivered(other, payload=2))
    ledger.handle(judged(other_score, None))
    (retired,) = [c for c in ledger.handle(lost(branch, gone=True)) if isinstance(c, Retire)]
    assert retired.outcome == "failed"
    tally.add(retired)
    found = tally.take()
    names = ("verify/correct", "verify/wrong", "verify/unknown", "verify/failed")
    assert [found[name] for name in names] == [0, 0, 0, 4]


def test_a_rise_of_verdicts_by_policy_is_told_once():
    ledger, tally, watch = make_ledger(groups=1), Tally(), PolicyWatch()
    (retired,) = drive(ledger, admit(ledger, "a"), rewards=lambda id: 1, anchors=(2, 4))
    tally.add(msgspec.structs.replace(retired, correct=8, reasons={"policy: rounded": 2, "number": 6}))
    found = tally.take()
    assert found["verify/policy_fraction"] == 2 / 8
    assert watch.alarm(found) == ""  # what is usual is not known yet
    shares = [0.25, 0.51, 0.9, 0.25, 0.8, 0.1]
    assert [bool(watch.alarm({"verify/policy_fraction": share})) for share in shares] == [False, True, False, False, True, False]
    assert not PolicyWatch(usual=0.01).alarm({"verify/policy_fraction": 0.19})
    assert watch.alarm({}) == ""


def test_a_group_whose_rollouts_are_gone_is_made_again_in_its_slot():
    ledger = make_ledger(groups=1, staleness=0)
    trunk, others = admit(ledger, "p")
    (branch, score) = sorted(ledger.handle(delivered(trunk, payload=1)), key=lambda c: type(c).__name__)
    ledger.handle(judged(score, 1))
    forget, *again = ledger.handle(lost(branch, gone=True))
    assert forget.tasks == (others.task,)
    assert kinds(again) == ["Sample", "Sample"]
    assert [c.ids for c in again] == [trunk.ids, others.ids]
    assert (ledger.slots_held, ledger.admitted, ledger.retries) == (1, 1, 2)
    assert ledger.handle(delivered(others, payload=2)) == [], "a task of the first beginning does not count any more"
    rest = drive(ledger, again, rewards=lambda id: id.branch == 0)
    assert kinds(rest) == ["Train"]
    assert {item.payload for item in rest[0].items} & {1, 2} == set()


def test_a_group_whose_rollouts_are_gone_again_and_again_is_given_up():
    ledger = make_ledger(groups=1, staleness=0, attempts=2)
    commands = admit(ledger, "p")
    for beginning in (1, 2):
        found = ledger.handle(delivered(commands[0], payload=beginning))
        branch = next(c for c in found if isinstance(c, Branch))
        forget, *commands = ledger.handle(lost(branch, gone=True))
        assert len(forget.tasks) == 2, "the other bases and the verdict"
    assert [(c.group, c.outcome) for c in commands] == [("p@0", "failed")]
    assert (ledger.slots_held, ledger.outcomes) == (0, {"failed": 1})


# ---- rewards in any declared range: strategies see shares of it, people see the numbers themselves ----


def ranged(low: float, high: float, **more: Any) -> Ledger:
    return make_ledger(groups=1, rewards=[RewardConfig(function="m:f", range=[low, high])], **more)


def scored(high: float) -> Callable[[float | None], Verdict]:
    """As the pool says it: right at the highest number only."""

    def verdict_of(reward: float | None) -> Verdict:
        if reward is None:
            return Verdict(outcome=Outcome.UNKNOWN, reason="nobody knows")
        return Verdict(outcome=Outcome.CORRECT if reward == high else Outcome.WRONG, reason="reward", score=reward)

    return verdict_of


def play(ledger: Ledger, uid: str, rewards: Callable[[RolloutId], float | None], high: float, **tokens: Any) -> list[Any]:
    with mock.patch("ledger_support.verdict", scored(high)):
        return drive(ledger, admit(ledger, uid), rewards=rewards, **tokens)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 2.0), (10.0, 30.0), (-1.0, 0.0)])
def test_advantages_and_alpha_do_not_depend_on_the_declared_range(low: float, high: float) -> None:
    """fr3e, K = 1, M = 2: bases (highest, lowest) have V = 1/2; branches (highest, middle) V = 3/4, so alpha = exp(-1/4)."""
    middle = (low + high) / 2

    def reward(id: RolloutId) -> float:
        return ((high, low) if id.node == 0 else (high, middle))[id.branch]

    ledger = ranged(low, high, anchors=1)
    (train,) = play(ledger, "a", reward, high, count=1)
    alpha = math.exp(-1 / 4)
    expected = {(0, 0): 0.5, (0, 1): -0.5, (1, 0): 0.25 * alpha, (1, 1): -0.25 * alpha}
    (group,) = ledger.state().groups
    assert group.credit is not None
    assert {id[1:]: advantage[0].value for id, advantage in group.credit.advantages.items()} == pytest.approx(expected)
    assert sorted(item.advantage[0].value for item in train.items) == pytest.approx(sorted(expected.values()))
    (retired, *_) = ledger.handle(Trained(version=1))
    assert [(s.reward_sum, s.scored, s.value) for s in retired.states] == [(1.0, 2, 0.5), (1.5, 2, 0.75)]
    tally = Tally(RewardRange(low, high))
    tally.add(retired)
    found = tally.take()
    assert found["reward/mean"] == pytest.approx((2 * high + low + middle) / 4)
    assert (found["reward/accuracy"], found["verify/correct"]) == (1 / 2, 2)


@pytest.mark.parametrize(
    ("all_of_them", "outcome"),
    [(0.5, "rejected_all_correct"), (-1.5, "rejected_all_wrong"), (0.0, "rejected_no_spread"), (None, "rejected_too_few")],
)
def test_groups_are_rejected_by_the_ends_of_the_range(all_of_them: float | None, outcome: str) -> None:
    """0 and 1 are no ends here: a group of equal rewards of 0 has no spread, and is not "all wrong"."""
    (retired,) = play(ranged(-1.5, 0.5), "a", lambda id: all_of_them, 0.5)
    assert retired.outcome == outcome
    assert retired.reward_sum == {0.5: 4.0, -1.5: 0.0, 0.0: 3.0, None: 0.0}[all_of_them]


def test_an_unknown_that_counts_as_zero_has_the_lowest_reward() -> None:
    """Bases: highest, unknown: advantages 1/2 and -1/2, and a mean of (2 - 4) / 2."""
    ledger = ranged(-4.0, 2.0, strategy="grpo_pp", on_unknown="zero", std_normalise="false")
    (train,) = play(ledger, "a", lambda id: 2.0 if id.branch == 0 else None, 2.0)
    assert [i.advantage[0].value for i in train.items] == [0.5, -0.5]
    (retired, *_) = ledger.handle(Trained(version=1))
    tally = Tally(RewardRange(-4.0, 2.0))
    tally.add(retired)
    assert tally.take()["reward/mean"] == -1.0
