"""From the groups of a batch to the rows that are trained: which optimiser step, which advantage, and is it fresh enough? Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fr3e_async.algorithm.batching import Load, minibatch_of
from fr3e_async.control.group import Group
from fr3e_async.control.messages import TrainItem
from fr3e_async.errors import RunFailed
from fr3e_async.types import RolloutNote


class StalenessError(RunFailed):
    """A token is older than the bound allows: a defect of the control plane, never silently trained."""


def train_items(head: Sequence[Group], *, version: int, max_staleness: int, minibatches: int) -> list[TrainItem]:
    """The rows of credited groups, in admission order and by rollout id within a group.

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
            items.append(TrainItem(rollout.payload, rollout.row, advantage, Load(part, index, note.context, note.length)))
    return items


def _too_old(note: RolloutNote, *, version: int, max_staleness: int) -> StalenessError:
    return StalenessError(
        f"rollout {note.id} is {version - note.oldest_version} versions old (v{note.oldest_version}, learner at v{version}); "
        f"flow.max_staleness is {max_staleness}"
    )
