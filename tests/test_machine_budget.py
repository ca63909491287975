"""Equal-token comparisons: what a prompt costs on average, whatever lengths do and in whatever order groups settle."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_support import World, admit, control_config, delivered, drive, make_ledger
from machine_plays import any_order
from machine_support import Cluster

from fr3e_async.algorithm.anchors import AnchorRule
from fr3e_async.algorithm.strategies import GroupPlan
from fr3e_async.files.jsonl import to_json
from fr3e_async.machine.budget import MEMORY, TRUSTED, Account, BudgetError, TokenBudget

FLAT = GroupPlan(bases=16)
TREE = GroupPlan(bases=4, trunks=1, branches=4, rule=AnchorRule(name="entropy", count=3, min_gap=1))
FOREST = replace(TREE, trunks=4)
PLANS = {"flat": FLAT, "tree": TREE, "forest": FOREST}


class Run:
    """Groups of random lengths, up to ``open_groups`` at once, settled in any order."""

    def __init__(self, plan: GroupPlan, budget: int, length: Callable[[int], float], *, seed: int, open_groups: int = 12) -> None:
        self.plan, self.tokens, self.length, self.open_groups = plan, budget, length, open_groups
        self.budget = TokenBudget(plan, budget)
        self.rng = random.Random(seed)
        self.open: dict[str, GroupPlan] = {}
        self.costs: list[int] = []
        self.plans: list[GroupPlan] = []
        self.admitted = 0

    def play(self, groups: int) -> Run:
        end = len(self.costs) + groups
        while len(self.costs) < end:
            if len(self.open) < self.open_groups and self.rng.random() < 0.7:
                name = f"g{self.admitted}"
                self.admitted += 1
                self.open[name] = self.budget.admit(name)
                self.plans.append(self.open[name])
            elif self.open:
                self.settle(self.rng.choice(list(self.open)))
        return self

    def settle(self, name: str) -> None:
        plan = self.open.pop(name)
        bases = [self.draw(1.0) for _ in range(plan.bases)]
        anchors = sum(self.rng.choice([0, 1, 2, plan.anchors]) for _ in range(plan.trunks))
        branches = [self.draw(0.5) for _ in range(anchors * plan.branches)]
        self.budget.settle(name, plan, base_lengths=bases, branch_lengths=branches)
        self.costs.append(sum(bases) + sum(branches))

    def draw(self, part: float) -> int:
        """A geometric length, so that single groups differ much."""
        mean = max(1.0, part * self.length(len(self.costs)))
        return 1 + int(self.rng.expovariate(1 / mean))

    def restart(self) -> None:
        """From a checkpoint: what is open is admitted again, under other names."""
        account = msgspec.json.decode(to_json(self.budget.state()), type=Account)
        self.budget = TokenBudget(self.plan, self.tokens, account=account)
        self.open.clear()

    @property
    def mean(self) -> float:
        return sum(self.costs) / len(self.costs)


LENGTHS: dict[str, Callable[[int], float]] = {
    "steady": lambda n: 50.0,
    "growing": lambda n: 30.0 + n / 20,
    "shrinking": lambda n: max(20.0, 90.0 - n / 20),
    "jumping": lambda n: 70.0 if n // 300 % 2 else 35.0,
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_cost_is_the_budget(plan, lengths, seed):
    run = Run(PLANS[plan], 1200, LENGTHS[lengths], seed=seed).play(1200)
    assert run.mean == pytest.approx(1200, rel=0.02)


@pytest.mark.parametrize("plan", PLANS)
def test_the_sizes_really_follow(plan):
    """Teeth for the test above: the sizes as configured would miss the budget by far, and small ones too."""
    run = Run(PLANS[plan], 1200, LENGTHS["growing"], seed=3).play(1200)
    sizes = [p.rollouts for p in run.plans]
    early, late = sizes[100:300], sizes[-200:]
    assert sum(early) / 200 > 1.3 * sum(late) / 200
    free = Run(PLANS[plan], 0, LENGTHS["growing"], seed=3).play(1200)
    assert abs(free.mean / 1200 - 1) > 0.1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(PLANS)), st.integers(1, 60), st.integers(600, 3000))
def test_the_mean_cost_is_the_budget_for_any_order_and_any_number_in_flight(seed, plan, open_groups, budget):
    run = Run(PLANS[plan], budget, LENGTHS["steady"], seed=seed, open_groups=open_groups).play(1000)
    assert run.mean == pytest.approx(budget, rel=0.02 + 0.5 * open_groups / 1000)  # what is open was sized for what is settled


@pytest.mark.parametrize("plan", PLANS)
def test_a_run_resumes_from_its_checkpoints(plan):
    run = Run(PLANS[plan], 1200, LENGTHS["jumping"], seed=5)
    for _ in range(12):
        run.play(100)
        before = run.budget.state()
        run.restart()
        assert run.budget.state() == before
    assert run.mean == pytest.approx(1200, rel=0.02)


def test_one_number_of_the_plan_follows():
    for plan in PLANS.values():
        run = Run(plan, 1200, LENGTHS["jumping"], seed=2).play(300)
        constant = {"branches"} if plan.rule else {"bases"}
        assert {replace(p, **dict.fromkeys(constant, 9)) for p in run.plans} == {replace(plan, **dict.fromkeys(constant, 9))}
        assert len(set(run.plans)) > 1
        assert all(p.branches >= 2 if plan.rule else p.bases >= 2 for p in run.plans)


def test_without_a_budget_groups_are_as_configured():
    run = Run(TREE, 0, LENGTHS["jumping"], seed=0).play(50)
    assert set(run.plans) == {TREE}
    assert run.budget.state() == Account()


def test_a_groups_size_depends_on_neither_its_own_lengths_nor_those_settled_after_its_admission():
    def sizes(own: int, beside: int) -> tuple[int, int]:
        """Branches of a group whose trunk has this length, and of a group that is admitted after another one of that length."""
        ledger = make_ledger(groups=4, staleness=3, budget=120, anchors=1, branches=4)
        for n in range(3):
            drive(ledger, admit(ledger, f"early{n}"), rewards=lambda id: 1, length=10, count=1)
        trunk, _ = admit(ledger, "own")
        drive(ledger, admit(ledger, "beside"), rewards=lambda id: 1, length=beside, count=1)
        _, branch = ledger.handle(delivered(trunk, payload=1, length=own, count=1))
        trunk, _ = admit(ledger, "after")
        _, later = ledger.handle(delivered(trunk, payload=2, count=1))
        return len(branch.ids), len(later.ids)

    plain, long_own, long_beside = sizes(10, 10), sizes(500, 10), sizes(10, 60)
    assert plain == long_own
    assert plain[0] == long_beside[0]
    assert long_beside[1] < plain[1]  # teeth: lengths do count, for later groups


def test_the_first_groups_are_as_configured_and_the_account_makes_up_for_them():
    run = Run(FLAT, 400, LENGTHS["steady"], seed=1, open_groups=10)
    plans = [run.budget.admit(f"f{n}") for n in range(10)]
    assert set(plans) == {FLAT}  # each costs about 800, twice the budget
    run.open = {f"f{n}": plan for n, plan in enumerate(plans)}
    run.play(400)
    assert run.mean == pytest.approx(400, rel=0.02)


@pytest.mark.parametrize(
    ("plan", "budget", "rollouts"),
    [(FLAT, 90, 2), (TREE, 190, 4 + 3 * 2)],
)
def test_a_budget_below_the_smallest_group_is_an_error_with_the_knobs(plan, budget, rollouts):
    run = Run(plan, budget, LENGTHS["steady"], seed=0)
    with pytest.raises(BudgetError) as caught:
        run.play(3000)
    text = str(caught.value)
    assert f"budget.tokens_per_prompt is {budget}, but the smallest group ({rollouts} rollouts) costs" in text
    assert "algorithm.bases" in text
    assert len(run.costs) >= TRUSTED  # a few long answers at the start are no proof
    assert run.mean > 1.05 * budget


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_just_above_the_smallest_group_is_no_error(seed):
    """Two rollouts cost 100 on average; the first wave is of the configured size and leaves the account deep in debt."""
    assert Run(FLAT, 102, LENGTHS["steady"], seed=seed, open_groups=64).play(1500).mean < 2 * 102


def test_a_run_of_long_answers_is_no_proof_that_the_budget_is_too_small():
    """A group of the smallest size costs 500 here, give or take 180: its mean of 45 groups may well look like 604."""
    assert Run(FOREST, 600, LENGTHS["steady"], seed=52380, open_groups=16).play(1000).mean == pytest.approx(600, rel=0.02)


def test_groups_without_a_single_rollout_do_not_upset_the_account():
    budget = TokenBudget(TREE, 500)
    for n in range(5):
        budget.settle(f"g{n}", budget.admit(f"g{n}"), base_lengths=[], branch_lengths=[])
    assert budget.admit("next") == TREE
    assert budget.state().balance == 5 * 500


def test_trunks_without_places_leave_branches_to_grow_when_there_are_some():
    budget = TokenBudget(TREE, 500)
    for n in range(40):
        budget.settle(f"g{n}", budget.admit(f"g{n}"), base_lengths=[20] * 4, branch_lengths=[])
    plan = budget.admit("next")
    assert plan.branches >= 2
    for n in range(40, 400):
        budget.settle(f"g{n}", plan := budget.admit(f"g{n}"), base_lengths=[20] * 4, branch_lengths=[10] * 3 * plan.branches)
    assert budget.admit("last").branches >= 10  # (500 - 80) / 30 = 14, and the account has much to spend


def test_a_few_short_answers_make_no_huge_group():
    budget = TokenBudget(TREE, 1000)
    budget.settle("first", budget.admit("first"), base_lengths=[20] * 4, branch_lengths=[1])
    sizes = []
    for n in range(8):
        plan = budget.admit(f"g{n}")
        sizes.append(plan.branches)
        budget.settle(f"g{n}", plan, base_lengths=[20] * 4, branch_lengths=[1])
    assert sizes == [8, 16, 32, 64, 128, 256, 512, 1024]  # a group may be twice as large as one that has settled


def test_what_rounding_leaves_is_carried_on_while_groups_are_open():
    budget = TokenBudget(FLAT, 100)
    budget.settle("known", replace(budget.admit("known"), bases=3), base_lengths=[30, 35, 35], branch_lengths=[])
    sizes = [budget.admit(f"g{n}").bases for n in range(30)]  # a rollout is expected to cost 100 / 3
    assert set(sizes) == {3}
    budget.settle("g0", FLAT, base_lengths=[30] * 3, branch_lengths=[])  # now a little less: 31.7
    sizes = [budget.admit(f"h{n}").bases for n in range(60)]
    assert set(sizes) == {3, 4}
    assert abs(sum(sizes) * 31.7 - 6000) < 60


def test_old_lengths_are_forgotten():
    budget = TokenBudget(FLAT, 1000)
    for n in range(2 * MEMORY):
        plan = budget.admit(f"a{n}")
        budget.settle(f"a{n}", plan, base_lengths=[100] * plan.bases, branch_lengths=[])
    for n in range(4 * MEMORY):
        plan = budget.admit(f"b{n}")
        budget.settle(f"b{n}", plan, base_lengths=[20] * plan.bases, branch_lengths=[])
    assert 45 <= budget.admit("last").bases <= 55


@pytest.mark.parametrize("strategy", ["fr3e", "rloo"])
def test_a_ledgers_groups_cost_the_budget_and_it_continues_after_a_restart(strategy):
    since = None
    for part in range(3):
        config = control_config(steps=40 * (part + 1), strategy=strategy, bases=3, budget=250)
        cluster = Cluster(config, world=World(seed=7), since=since)
        any_order(cluster, random.Random(part), faults=0.1, bad=("lose", "repeat", "come_late"))
        cluster.checkpoint()
        since = cluster.checkpoints[-1]
    costs = [retired.tokens.generated for retired in cluster.history.retired.values()]
    assert len(costs) > 200
    assert sum(costs) / len(costs) == pytest.approx(250, rel=0.02)
