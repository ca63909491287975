"""Which groups make the next batch, so that no token is ever older than ``flow.max_staleness`` versions. Pure.

Let G = groups_per_step, η = max_staleness, capacity C = (η + 1)·G. A group holds a slot from admission until the weights
that it helped to make are live, that is served by every engine. Let V be the learner's version, v the live one, and b
(``born``) the live version when a group was admitted. Engines never serve less than the live version, so no token of the
group is older than b. The group is in time if it is trained while the learner is at b + η at most.

**A plan in admission order always exists.** Claim: with the open groups in admission order, the group at index p (from 0)
can be trained while the learner is at V' + floor(p / G), V' being the version after a batch that may be in training, and
this is at most b + η. When the group is admitted its index is p = the number of open groups. The slots that are held are
these p, those of a batch in training (T·G, T is 0 or 1), and (V - v)·G of batches that are trained and not live. One more
was free: p + T·G + (V - v)·G ≤ C - 1. So floor(p / G) ≤ η - (V - v) - T, and V + T + floor(p / G) ≤ v + η = b + η. Later
events keep the claim: a rejection moves groups to the front; training the first G raises V' by one and lowers each
index by G; nothing is ever put before an open group. ∎

**flow.order=admission** trains the first G open groups, once all of them are ready: the plan itself.

**flow.order=window** may take G *ready* groups out of the first G + W, when the others can still follow the plan behind
them: for the group at index q among those left behind, V' + 1 + floor(q / G) ≤ b + η. If this does not hold, the batch
waits for an older group. Taking ready groups in admission order is the best choice, since births never fall from one
group to the next, so the left ones have the latest deadlines that G choices can leave. By the same claim nothing is ever
trained too late: the bound is η in both orders. Waiting costs time, never staleness: versions move by training only.
With W > 0 a slow group can be overtaken, by at most W groups at a time and for as long as the plan holds. ∎
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from fr3e_async.algorithm.batching import RowCost, minibatch_of, span_lengths
from fr3e_async.errors import RunFailed
from fr3e_async.machine.group import Group
from fr3e_async.machine.messages import TrainItem
from fr3e_async.types import Advantage, AdvantageSpan, RolloutSummary


def next_batch(open_groups: Iterable[Group], *, size: int, window: int, version: int, max_staleness: int) -> list[Group] | None:
    """Return the groups to train next, in admission order, or None to wait. Call it only while no batch is in training.

    ``open_groups``: in admission order. ``version``: the learner's. ``window``: 0 for admission order.
    """
    first: list[Group] = []
    for group in itertools.islice(open_groups, size + window):
        if not window and group.credit is None:
            return None
        first.append(group)
    ready = [group for group in first if group.credit is not None][:size]
    if len(ready) < size:
        return None
    if ready[-1] is first[size - 1]:  # the plan itself
        return ready
    chosen = {group.name for group in ready}
    left = itertools.takewhile(lambda group: group is not ready[-1], first)
    left_behind = [group for group in left if group.name not in chosen]
    # Those behind the last one chosen stand where the plan has them.
    return ready if in_time(left_behind, size=size, version=version + 1, max_staleness=max_staleness) else None


def in_time(groups: Sequence[Group], *, size: int, version: int, max_staleness: int) -> bool:
    """Whether the bound holds if these groups train in this order, ``size`` at a time, from learner ``version`` on."""
    return all(version + index // size <= group.born + max_staleness for index, group in enumerate(groups))


# ---- From the groups of a batch to the rows that are trained: which optimiser step, which advantage, and is it fresh enough? Pure ----


class StalenessError(RunFailed):
    """A token is older than the staleness bound: a control-plane bug. The batch is not trained."""


def train_items(head: Sequence[Group], *, version: int, max_staleness: int, minibatches: int) -> list[TrainItem]:
    """Return the rows of credited groups, in admission order and by rollout id within a group.

    ``version``: of the learner. Raises ``StalenessError``.
    """
    items = []
    for index, group in enumerate(head):
        assert group.credit is not None, "only credited groups are trained"
        part = minibatch_of(index, groups=len(head), minibatches=minibatches)
        for id, advantage in sorted(group.credit.advantages.items()):
            rollout = group.rollouts[id]
            note = rollout.note
            assert note is not None
            if version - note.oldest_version > max_staleness:
                raise _too_old(note, version=version, max_staleness=max_staleness)
            items.append(TrainItem(rollout.payload, rollout.row, advantage, RowCost(part, index, note.context, note.length)))
    return weighted(items)


def weighted(items: list[TrainItem]) -> list[TrainItem]:
    """Put the weights of the spans into their advantages, as shares of a mean weight of 1 over the tokens of a minibatch.

    The learner divides by the number of tokens, so its mean is Σ weight · advantage / Σ weight.
    """
    if all(span.weight == 1 for item in items for span in item.advantage):
        return items
    tokens: Counter[int] = Counter()
    weights: dict[int, float] = defaultdict(float)
    for item in items:
        tokens[item.load.minibatch] += item.load.completion
        weights[item.load.minibatch] += span_weights(item.advantage, item.load.completion)
    mean = {part: weights[part] / tokens[part] for part in tokens}
    return [
        item._replace(
            advantage=tuple(AdvantageSpan(s.start, s.value * s.weight / mean[item.load.minibatch]) for s in item.advantage)
        )
        for item in items
    ]


def span_weights(advantage: Advantage, length: int) -> float:
    """Sum the loss weights over the tokens of a completion."""
    return sum(span.weight * tokens for span, tokens in span_lengths(advantage, length))


def _too_old(note: RolloutSummary, *, version: int, max_staleness: int) -> StalenessError:
    return StalenessError(
        f"rollout {note.id} is {version - note.oldest_version} versions old (v{note.oldest_version}, learner at v{version}); "
        f"flow.max_staleness is {max_staleness}"
    )
