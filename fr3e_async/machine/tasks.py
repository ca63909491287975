"""Turn what a group owes into tasks, each with a number unique in the session. Pure, private to control."""

from collections.abc import Iterable, Sequence

from fr3e_async.machine.group import Group, Status
from fr3e_async.machine.messages import Branch, LedgerCommand, Rescore, Sample, Score
from fr3e_async.types import RolloutId


class Issuer:
    """Makes the tasks of groups and numbers them. A group knows its tasks: each of them ends once."""

    def __init__(self) -> None:
        self._last = 0

    def sample(self, group: Group, ids: Sequence[RolloutId]) -> list[LedgerCommand]:
        """Make one task for each base that may become a trunk, so that none waits for another, and one for all other bases."""
        parts: list[tuple[tuple[RolloutId, ...], bool]] = [((id,), True) for id in ids if id in group.candidates]
        if others := tuple(id for id in ids if id not in group.candidates):
            parts.append((others, False))
        return [
            Sample(task=self._number(group, part), ids=part, trunk=trunk, attempt=group.attempt_of(part), age=group.number)
            for part, trunk in parts
        ]

    def score(self, group: Group, payload: int) -> list[LedgerCommand]:
        """A task for the rows of a payload that have no verdict yet; none if all have one."""
        due = [r for r in group.issued if r.payload == payload and r.status is Status.SAMPLED]
        if not due:
            return []
        ids, rows = tuple([r.id for r in due]), tuple([r.row for r in due])
        attempt = group.scoring_attempts.get(payload, 1)
        return [Score(task=self._number(group, ids), payload=payload, ids=ids, rows=rows, attempt=attempt, age=group.number)]

    def rescore(self, group: Group, payload: int, trunks: Sequence[RolloutId]) -> Rescore:
        notes = [group.rollouts[id].note for id in trunks]
        lengths = tuple(note.context + note.length for note in notes if note is not None)
        return Rescore(task=self._number(group, trunks), group=group.name, payload=payload, trunks=tuple(trunks), lengths=lengths)

    def branch(self, group: Group, ids: Sequence[RolloutId]) -> list[LedgerCommand]:
        """One task for each trunk that these branches grow from."""
        own: dict[int, list[RolloutId]] = {}  # by the trunk's branch index
        for id in ids:
            own.setdefault(group.anchors[id.node].trunk, []).append(id)
        commands: list[LedgerCommand] = []
        for branch in sorted(own):
            trunk = group.base(branch)
            commands.append(
                Branch(
                    task=self._number(group, own[branch]),
                    group=group.name,
                    ids=tuple(own[branch]),
                    trunk=trunk,
                    trunk_payload=group.rollouts[trunk].payload,
                    attempt=group.attempt_of(own[branch]),
                    age=group.number,
                )
            )
        return commands

    def owed(self, group: Group) -> list[LedgerCommand]:
        """Return the tasks that a group needs after a resume, since no worker runs them."""
        issued = [r.id for r in group.rollouts.values() if r.status is Status.ISSUED]
        payloads = sorted({r.payload for r in group.rollouts.values() if r.status is Status.SAMPLED})
        commands = self.sample(group, [id for id in issued if id.node == 0])
        commands += self.branch(group, [id for id in issued if id.node > 0])
        for payload in payloads:
            commands += self.score(group, payload)
        unknown: dict[int, list[RolloutId]] = {}  # trunks whose anchors the learner was to choose
        for trunk in sorted(group.candidates):
            if trunk.branch not in group.anchors_of and group.rollouts[trunk].note is not None:
                unknown.setdefault(group.rollouts[trunk].payload, []).append(trunk)
        return commands + [self.rescore(group, payload, trunks) for payload, trunks in unknown.items()]

    def _number(self, group: Group, ids: Iterable[RolloutId]) -> int:
        self._last += 1
        group.tasks[self._last] = set(ids)
        return self._last
