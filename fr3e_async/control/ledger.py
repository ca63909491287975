"""The ledger: which group is where, what it still owes, and what to do next. A pure state machine.

Events in, commands out. No clock, no Ray, no tokens: the same sequence of events gives the same sequence of commands.

    Admitted ─► Sample(trunk), …, Sample(other bases)
    Delivered(trunk) ─► Branch(all anchors), Score        a branch waits for its own trunk only
    Delivered(trunk) ─► Rescore, Score; Rescored ─► Branch     where the learner knows the entropies
    Delivered ─► Score                                     Lost ─► the same ids again, or given up
    Judged ─► group complete ─► credited ─► ready | Retire(rejected_…)
    head of the queue ready ─► Train                       in admission order: that is what bounds staleness
    Trained ─► Retire(trained), Train(next)                Published ─► the batch's slots are free

**Staleness bound.** Let G = groups_per_step, η = max_staleness, capacity C = (η + 1)·G. A group holds a slot from
admission until the weights that it helped to make are live. A group admitted while version v is live has fewer than C
groups before it, each of them part of a batch that makes a version above v. Batches are filled in admission order with G
groups each, so at most floor((C - 1) / G) = η batches are trained before the group's own: the learner is then at
version v + η at most, and no token of the group is older than v. A rejection before it only moves it forward. ∎

**Conservation.** admitted = trained + rejected + failed + in flight, checked after every event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fr3e_async.algorithm.strategies import Strategy
from fr3e_async.config import Config
from fr3e_async.control.batch import train_items
from fr3e_async.control.budget import TokenBudget
from fr3e_async.control.group import Group, Status, choose_trunks
from fr3e_async.control.messages import (
    Admitted,
    Branch,
    Command,
    Delivered,
    Event,
    Judged,
    Lost,
    Published,
    Rescore,
    Rescored,
    Retire,
    Sample,
    Score,
    Train,
    Trained,
)
from fr3e_async.errors import RunFailed
from fr3e_async.types import RolloutId, Verdict


class StarvedError(RunFailed):
    """Too many degenerate groups in a row: there is nothing to learn from these prompts with this policy."""


class LedgerError(RunFailed):
    """The books do not balance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """What survives a restart. Groups in flight do not: their prompts go back to the stream and are admitted again."""

    version: int
    admitted: int
    fates: dict[str, int]
    budget: dict[str, float]  # the account of ``budget.TokenBudget``

    @property
    def settled(self) -> int:
        """Groups that had retired: the rows of groups.jsonl."""
        return sum(self.fates.values())


class Ledger:
    """See the module's docstring. ``version`` is the learner's; ``live`` is the one that every engine serves."""

    def __init__(self, config: Config, strategy: Strategy, *, state: LedgerState | None = None) -> None:
        self._config, self._strategy = config, strategy
        self._budget = TokenBudget(strategy.plan, config.budget.tokens_per_prompt, state=state.budget if state else None)
        self.version = state.version if state else 0
        self.live = self.version
        self.admitted = state.admitted if state else 0
        self.fates: Counter[str] = Counter(state.fates if state else {})
        self.duplicates = 0  # results that arrived a second time
        self.retries = 0  # rollouts issued again
        self.given_up = 0  # rollouts that failed for good
        self._open: dict[str, Group] = {}  # in admission order: being made, or ready
        self._training: dict[str, Group] = {}
        self._unlive: dict[int, list[str]] = {}  # version -> groups whose slots it will free
        self._rejected_in_a_row = 0
        self._reasons: Counter[str] = Counter()  # of the verdicts in these groups
        self._next_task = 0
        self.closed = False  # set by stop(): nothing is admitted or trained any more

    # ---- queries ----

    @property
    def in_flight(self) -> int:
        return len(self._open) + len(self._training)

    @property
    def slots_held(self) -> int:
        return self.in_flight + sum(len(groups) for groups in self._unlive.values())

    @property
    def ready(self) -> int:
        return sum(group.credit is not None for group in self._open.values())

    @property
    def training(self) -> bool:
        """A batch is with the learner, or on its way there."""
        return bool(self._training)

    @property
    def finished(self) -> bool:
        """All batches of the run are trained and live."""
        return self.version >= self._config.run.steps and not self._training and self.live >= self.version

    def admissible(self) -> int:
        """How many groups may be admitted now: free slots, but no more than the remaining batches can use."""
        if self.closed:
            return 0
        batches_left = self._config.run.steps - self.version - bool(self._training)
        wanted = batches_left * self._config.flow.groups_per_step - len(self._open)
        return max(0, min(self._config.flow.capacity - self.slots_held, wanted))

    def state(self) -> LedgerState:
        """Books without what is in flight, as if those groups had never been admitted."""
        return LedgerState(
            version=self.version,
            admitted=self.admitted - self.in_flight,
            fates=dict(self.fates),
            budget=self._budget.state(),
        )

    @property
    def settled(self) -> int:
        """Groups that have retired, over the whole run."""
        return sum(self.fates.values())

    def waiting(self) -> list[str]:
        """Who waits for what, oldest group first: for the watchdog's diagnosis."""
        lines = []
        for group in self._open.values():
            owed = Counter(r.status.name.lower() for r in group.rollouts.values())
            lines.append(f"{group.name}: " + ("ready" if group.credit else ", ".join(f"{n} {s}" for s, n in owed.items())))
        return lines

    # ---- events ----

    def handle(self, event: Event) -> list[Command]:
        """Apply one event; returns what is to be done now. Raises ``RunFailed`` kinds where going on would be wrong."""
        match event:
            case Admitted():
                commands = self._admit(event)
            case Delivered():
                commands = self._delivered(event)
            case Rescored():
                commands = self._rescored(event)
            case Lost():
                commands = self._lost(event)
            case Judged():
                commands = self._judged(event)
            case Trained():
                commands = self._trained(event)
            case Published():
                commands = self._published(event)
        self.check()
        return commands

    def stop(self) -> None:
        """No admission and no new batch from now on."""
        self.closed = True

    def check(self) -> None:
        """The conservation law; raises ``LedgerError`` with the numbers."""
        if self.admitted != self.settled + self.in_flight:
            raise LedgerError(f"admitted {self.admitted} != settled {dict(self.fates)} + in flight {self.in_flight}")
        if self.slots_held > self._config.flow.capacity:
            raise LedgerError(f"{self.slots_held} slots held of {self._config.flow.capacity}")

    def _task(self) -> int:
        self._next_task += 1
        return self._next_task

    def _admit(self, event: Admitted) -> list[Command]:
        if event.group in self._open or event.group in self._training:
            raise LedgerError(f"group {event.group} is admitted already")
        plan = self._budget.admit(event.group)
        bases = [RolloutId(event.group, 0, branch) for branch in range(plan.bases)]
        seed = (self._config.run.seed, *event.group.encode())  # by name: the same trunk after a resume
        candidates, trunks = choose_trunks(bases, self._config.algorithm.trunk if plan.rule else None, seed=seed)
        group = Group(name=event.group, prompt=event.prompt, plan=plan, candidates=candidates, trunks=trunks)
        group.issue(bases)
        self._open[event.group] = group
        self.admitted += 1
        return self._sample(group, bases)

    def _sample(self, group: Group, ids: list[RolloutId]) -> list[Command]:
        """A task for each base that may be a trunk, so that nothing waits for another one, and one for the others."""
        parts: list[tuple[tuple[RolloutId, ...], bool]] = [((id,), True) for id in ids if id in group.candidates]
        if others := tuple(id for id in ids if id not in group.candidates):
            parts.append((others, False))
        return [Sample(task=self._task(), prompt=group.prompt, ids=part, trunk=trunk) for part, trunk in parts]

    def _delivered(self, event: Delivered) -> list[Command]:
        group = self._open.get(event.group)
        if group is None:
            self.duplicates += len(event.notes)
            return []
        taken = [note.id for row, note in enumerate(event.notes) if group.accept(note, payload=event.payload, row=row)]
        # Of rows that were not taken, a duplicate leaves nothing owed, an aborted or empty one does.
        owed = [n.id for n in event.notes if n.id not in taken and group.rollouts[n.id].status is Status.ISSUED]
        self.duplicates += len(event.notes) - len(taken) - len(owed)
        if event.task in group.ended:
            owed = []  # that failure was counted when the task ended; these ids are with another task
        group.ended.add(event.task)
        trunks = tuple(id for id in taken if id in group.candidates)
        commands = self._score(group, event.payload) if taken else []
        if trunks and event.anchors is None:
            notes = {note.id: note for note in event.notes}
            lengths = tuple(notes[id].context + notes[id].length for id in trunks)
            commands.append(Rescore(task=self._task(), group=group.name, payload=event.payload, trunks=trunks, lengths=lengths))
        elif event.anchors is not None:
            group.learn_anchors(trunks, event.anchors)
        return [*commands, *self._again(group, owed)]

    def _rescored(self, event: Rescored) -> list[Command]:
        group = self._open.get(event.group)
        if group is None:
            return []
        group.learn_anchors(event.trunks, event.anchors)
        return self._advance(group)

    def _score(self, group: Group, payload: int) -> list[Command]:
        due = [r for r in group.rollouts.values() if r.payload == payload and r.status is Status.SAMPLED]
        if not due:
            return []
        ids, rows = tuple(r.id for r in due), tuple(r.row for r in due)
        return [Score(task=self._task(), payload=payload, prompt=group.prompt, ids=ids, rows=rows)]

    def _advance(self, group: Group) -> list[Command]:
        """Pick and branch trunks as soon as that is possible, then settle the group if nothing is owed any more."""
        group.pick_trunks()
        commands: list[Command] = []
        for trunk in group.open_trunks():
            commands += self._branch(group, group.branch(trunk))
        return commands + self._settle(group)

    def _branch(self, group: Group, ids: Sequence[RolloutId]) -> list[Command]:
        """One task for each trunk that these branches grow from."""
        commands: list[Command] = []
        for trunk in sorted({group.trunk_of(id.node) for id in ids}):
            own = tuple(id for id in ids if group.trunk_of(id.node) == trunk)
            commands.append(
                Branch(
                    task=self._task(),
                    group=group.name,
                    ids=own,
                    trunk=trunk,
                    trunk_payload=group.rollouts[trunk].payload,
                    anchors=group.anchors_of[trunk],
                )
            )
        return commands

    def _again(self, group: Group, ids: list[RolloutId]) -> list[Command]:
        """Issue failed rollouts again, or give them up; a group whose trunk is given up keeps its other rollouts."""
        before = sum(r.status is Status.GIVEN_UP for r in group.rollouts.values())
        again = group.fail(ids, max_attempts=self._config.flow.max_attempts)
        self.given_up += sum(r.status is Status.GIVEN_UP for r in group.rollouts.values()) - before
        self.retries += len(again)
        commands = self._sample(group, [id for id in again if id.node == 0])
        commands += self._branch(group, [id for id in again if id.node > 0])
        return commands + self._advance(group)

    def _lost(self, event: Lost) -> list[Command]:
        group = self._open.get(event.group)
        if group is None or event.task in group.ended:
            return []
        group.ended.add(event.task)
        if not event.scoring:
            return self._again(group, list(event.ids))
        attempts = group.scoring_attempts.get(event.payload, 1)
        if attempts < self._config.flow.max_attempts:
            group.scoring_attempts[event.payload] = attempts + 1
            return self._score(group, event.payload)
        self.given_up += group.give_up(event.ids)
        return self._advance(group)

    def _judged(self, event: Judged) -> list[Command]:
        group = self._open.get(event.group)
        return [] if group is None else self._record(group, dict(zip(event.ids, event.verdicts, strict=True)))

    def _record(self, group: Group, verdicts: dict[RolloutId, Verdict]) -> list[Command]:
        zero = self._config.verifiers.on_unknown == "zero"
        for id, verdict in verdicts.items():
            group.judge(id, verdict, unknown_is_zero=zero)
        return self._advance(group)

    # ---- complete groups ----

    def _settle(self, group: Group) -> list[Command]:
        """Credit a group the moment it is complete; a degenerate one gives its slot back here and nowhere else."""
        if not group.complete or group.credit is not None:
            return []
        group.credit = self._strategy.credit(group.outcome())
        if not group.credit.rejected:
            self._rejected_in_a_row = 0
            self._reasons.clear()
            return self._train()
        lost_all = all(r.status is Status.GIVEN_UP for r in group.rollouts.values())
        fate = "failed_given_up" if lost_all else f"rejected_{group.credit.rejected}"
        del self._open[group.name]
        retired = self._close(group, fate)
        self._count_rejection(retired)
        return [retired, *self._train()]

    def _count_rejection(self, group: Retire) -> None:
        self._rejected_in_a_row += 1
        self._reasons.update(group.reasons)
        bound = self._config.flow.max_rejected_in_a_row
        if self._rejected_in_a_row > bound:
            raise StarvedError(
                f"{self._rejected_in_a_row} groups in a row taught nothing (fates so far: {dict(self.fates)}; "
                f"their verdicts: {', '.join(f'{count} {reason}' for reason, count in self._reasons.most_common(3))}); "
                f"flow.max_rejected_in_a_row is {bound}. Are the problems far too easy or too hard, or answers unreadable?"
            )

    def _close(self, group: Group, fate: str) -> Retire:
        self.fates[fate] += 1
        self._budget.settle(
            group.name, group.plan, base_lengths=group.lengths(bases=True), branch_lengths=group.lengths(bases=False)
        )
        return group.retire(fate)

    def _train(self) -> list[Command]:
        """A batch of the first G groups, once all of them are ready. Waiting for a slow head is what bounds staleness."""
        size = self._config.flow.groups_per_step
        head = list(self._open.values())[:size]
        if self.closed or self._training or len(head) < size or any(group.credit is None for group in head):
            return []
        for group in head:
            self._training[group.name] = self._open.pop(group.name)
        items = train_items(
            head,
            version=self.version,
            max_staleness=self._config.flow.max_staleness,
            minibatches=self._config.learner.minibatches,
        )
        return [Train(version=self.version + 1, groups=tuple(g.name for g in head), items=tuple(items))]

    def _trained(self, event: Trained) -> list[Command]:
        if event.version != self.version + 1:
            raise LedgerError(f"the learner made version {event.version} from {self.version}")
        self.version = event.version
        done, self._training = self._training, {}
        self._unlive[event.version] = list(done)
        return [*(self._close(group, "trained") for group in done.values()), *self._train()]

    def _published(self, event: Published) -> list[Command]:
        self.live = max(self.live, event.version)
        for version in [v for v in self._unlive if v <= self.live]:
            del self._unlive[version]
        return []
