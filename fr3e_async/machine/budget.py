"""Group sizes that make a prompt cost a set number of generated tokens on average. Pure, private to control.

For comparisons of strategies at equal tokens (``budget.tokens_per_prompt``). One number of a group follows the budget:
the branches of an anchor where the strategy branches, else the rollouts of the prompt. It is fixed when the group is
admitted, from what *earlier* groups cost, so it does not depend on the group's own rollouts and no value is biased by it.

The account: every admission adds the budget, and every group subtracts its cost (while it is open, its expected cost).
The next group is sized so that the account comes back to 0; what rounding to whole rollouts leaves is carried on.
"""

import copy
import math
from dataclasses import replace

import msgspec

from fr3e_async.algorithm.strategies import GroupPlan
from fr3e_async.errors import RunFailed

SMALLEST = 2  # rollouts of a state: one alone has no advantage
MEMORY = 256  # groups after which an old length counts 1/e: lengths change as the policy learns
TRUSTED = 32  # groups of the smallest size that settle before a budget is called too small,
DOUBT = 4.0  # and standard errors by which their mean cost must exceed it: lengths vary, and a high mean may be luck
SWING = 0.5  # part of the budget by which one group may make up for others
GROWTH = 2  # times the largest size settled so far that a size may be: a few short answers must not make a huge group


class BudgetError(RunFailed):
    """The smallest group costs more than the budget."""


class Account(msgspec.Struct, omit_defaults=True):
    """Running sums: decayed ones for mean lengths, exact ones for the balance. What a checkpoint keeps."""

    balance: float = 0.0  # tokens: budget of the settled groups minus their cost
    base_tokens: float = 0.0
    bases: float = 0.0
    branch_tokens: float = 0.0
    branches: float = 0.0  # that were drawn
    possible: float = 0.0  # trunks · K · M of the plans: fewer token positions are eligible than asked for
    largest: int = 0  # size of a settled group
    smallest_groups: int = 0  # that settled with the smallest size,
    smallest_cost: float = 0.0  # their tokens,
    smallest_squares: float = 0.0  # and the sum of the squares


class TokenBudget:
    """``admit`` gives the plan of the next group, ``settle`` takes what one has cost."""

    def __init__(self, plan: GroupPlan, tokens_per_prompt: int, *, account: Account | None = None) -> None:
        """``plan``: the configured plan; with a budget of 0 it is used unchanged."""
        self._plan, self._budget = plan, tokens_per_prompt
        self._account = account or Account()
        self._expected: dict[str, float] = {}  # open groups

    def state(self) -> Account:
        return copy.copy(self._account)

    def admit(self, group: str) -> GroupPlan:
        """Choose the plan of a group to admit now. Raises ``BudgetError`` if even the smallest plan can never fit the budget."""
        if not self._budget:
            return self._plan
        if not self._account.bases:  # no group has settled yet: use the configured plan
            self._expected[group] = float(self._budget)
            return self._plan
        balance = self._account.balance + sum(self._budget - cost for cost in self._expected.values())
        swing = SWING * self._budget
        size = self._size_for(self._budget + max(-swing, min(swing, balance)))
        plan = self._sized(size)
        self._expected[group] = self._cost(plan)
        return plan

    def expect(self, group: str, plan: GroupPlan) -> None:
        """Register a group that was admitted with this plan before a restart and is still open."""
        if self._budget:
            self._expected[group] = self._cost(plan) if self._account.bases else float(self._budget)

    def settle(self, group: str, plan: GroupPlan, *, base_lengths: list[int], branch_lengths: list[int]) -> None:
        """Take the lengths of the rollouts that were drawn for an admitted group."""
        if not self._budget:
            return
        del self._expected[group]
        account, keep = self._account, 1 - 1 / MEMORY
        account.balance += self._budget - sum(base_lengths) - sum(branch_lengths)
        account.base_tokens = keep * account.base_tokens + sum(base_lengths)
        account.bases = keep * account.bases + len(base_lengths)
        account.branch_tokens = keep * account.branch_tokens + sum(branch_lengths)
        account.branches = keep * account.branches + len(branch_lengths)
        account.possible = keep * account.possible + plan.rollouts - plan.bases
        account.largest = max(account.largest, self._size(plan))
        if self._size(plan) <= SMALLEST:
            cost = sum(base_lengths) + sum(branch_lengths)
            account.smallest_groups += 1
            account.smallest_cost += cost
            account.smallest_squares += cost * cost

    def _size(self, plan: GroupPlan) -> int:
        """Return the number in the plan that the budget controls: branches, or bases without branching."""
        return plan.branches if plan.rule else plan.bases

    def _sized(self, size: int) -> GroupPlan:
        return replace(self._plan, branches=size) if self._plan.rule else replace(self._plan, bases=size)

    def _cost(self, plan: GroupPlan) -> float:
        """Estimate the tokens that a group of this plan will generate, from the mean lengths so far."""
        account = self._account
        cost = plan.bases * account.base_tokens / account.bases
        if account.branches and account.possible:
            cost += (plan.rollouts - plan.bases) * account.branch_tokens / account.possible
        return cost

    def _size_for(self, target: float) -> int:
        """The size whose expected cost is nearest to ``target``; not below the smallest."""
        smallest = self._cost(self._sized(SMALLEST))
        each = self._cost(self._sized(SMALLEST + 1)) - smallest
        self._require_enough()
        most = GROWTH * max(self._account.largest, self._size(self._plan))
        return min(most, SMALLEST + max(0, round((target - smallest) / each))) if each > 0 else SMALLEST

    def _require_enough(self) -> None:
        """Raise ``BudgetError`` once groups of the smallest size have cost more than the budget beyond doubt."""
        account, count = self._account, self._account.smallest_groups
        if count < TRUSTED:
            return
        mean = account.smallest_cost / count
        error = math.sqrt(max(0.0, account.smallest_squares / count - mean * mean) / count)
        if mean - DOUBT * error > self._budget:
            raise BudgetError(
                f"budget.tokens_per_prompt is {self._budget}, but the smallest group ({self._sized(SMALLEST).rollouts} rollouts) "
                f"costs {mean:.0f} tokens on average; raise it, or lower algorithm.bases or algorithm.anchors"
            )
