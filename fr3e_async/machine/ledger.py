"""The ledger: which group is where, what it still owes, and what to do next. A pure state machine.

Events in, commands out. No clock, no Ray, no tokens: the same sequence of events gives the same sequence of commands.

    Admitted ─► Sample(trunk), …, Sample(other bases)
    Delivered(trunk) ─► Branch(all anchors), Score        a branch waits for its own trunk only
    Delivered(trunk) ─► Rescore, Score; Rescored ─► Branch     where the learner knows the entropies
    Delivered ─► Score                                     Lost ─► the same ids again, or failed
    Scored ─► group complete ─► credited ─► ready | Retire(rejected_…)
    the next groups ready ─► Train                         see ``order``: that is what bounds staleness
    Trained ─► Retire(trained), Train(next)                Live ─► the batch's slots are free

**Staleness bound.** ``order`` has the rule by which groups make a batch, and the proof that no token is older than
``flow.max_staleness`` versions when it is trained.

**Conservation.** admitted = trained + rejected + failed + in flight, checked after every event.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fr3e_async.algorithm.anchors import choose_trunks
from fr3e_async.algorithm.strategies import GroupPlan, Strategy
from fr3e_async.config import Config
from fr3e_async.machine.budget import TokenBudget
from fr3e_async.machine.events import Admitted, Delivered, Lost, Rescored, Scored, Stopped, Trained
from fr3e_async.machine.group import Group, Status
from fr3e_async.machine.ledger_state import LedgerCut, LedgerError, LedgerState, RejectionStreak, state_of
from fr3e_async.machine.messages import Forget, LedgerCommand, Live, Message, Retire, Start, Train
from fr3e_async.machine.order import next_batch, train_items
from fr3e_async.machine.tasks import Issuer
from fr3e_async.outcomes import GroupOutcome
from fr3e_async.types import RolloutId


class Ledger:
    """See the module's docstring. ``version`` is the learner's; ``live`` is the one that every engine serves."""

    def __init__(self, config: Config, strategy: Strategy, *, state: LedgerState | None = None) -> None:
        self._config, self._strategy = config, strategy
        self._capacity, self._rewards = config.flow.capacity, config.reward_range
        self._budget = TokenBudget(strategy.plan, config.budget.tokens_per_prompt, account=state.budget if state else None)
        self.version = state.version if state else 0
        self.live = self.version
        self.admitted = state.admitted if state else 0
        self.outcomes: Counter[str] = Counter(state.outcomes if state else {})
        self.duplicates = 0  # results that arrived a second time
        self.retries = 0  # rollouts issued again
        self.failed = 0  # rollouts that failed for good
        self._open: dict[str, Group] = {}  # in admission order: being made, or ready
        self._training: dict[str, Group] = {}
        self._unlive: dict[int, int] = {}  # version -> groups whose slots it will free,
        self._unlive_groups = 0  # and how many these are together
        self._settled = self.outcomes.total()
        self._ready = 0  # open groups with credit
        self._streak = RejectionStreak(config.flow.max_rejected_in_a_row, state.rejected_in_a_row if state else 0)
        self._issue = Issuer()
        self._cuts: list[LedgerCut] = []  # that are being encoded
        self.closed = False  # after ``Stopped`` nothing is admitted or trained any more
        for group in state.groups if state else ():
            self._open[group.name] = group
        self._handlers: dict[type, Callable[[Any], list[LedgerCommand]]] = {
            Start: lambda _: self.resume(),
            Admitted: self._admit,
            Delivered: self._delivered,
            Rescored: self._rescored,
            Lost: self._lost,
            Scored: self._scored,
            Trained: self._trained,
            Live: self._went_live,
            Stopped: self._stopped,
        }

    # ---- queries ----

    @property
    def in_flight(self) -> int:
        return len(self._open) + len(self._training)

    @property
    def oldest_born(self) -> int:
        """Live version when the oldest open group was admitted: none of its tokens is older."""
        return next((group.born for group in self._open.values()), self.version)

    @property
    def slots_held(self) -> int:
        return self.in_flight + self._unlive_groups

    @property
    def ready(self) -> int:
        return self._ready

    @property
    def training(self) -> bool:
        """True while a batch is with the learner, or on its way there."""
        return bool(self._training)

    @property
    def finished(self) -> bool:
        """True when all batches of the run are trained and every engine in service serves their weights."""
        return self.version >= self._config.run.steps and not self._training and self.live >= self.version

    def admissible(self) -> int:
        """How many groups may be admitted now: free slots, but no more than the remaining batches can use."""
        if self.closed:
            return 0
        batches_left = self._config.run.steps - self.version - bool(self._training)
        wanted = batches_left * self._config.flow.groups_per_step - len(self._open)
        return max(0, min(self._capacity - self.slots_held, wanted))

    def state(self) -> LedgerState:
        """The state between two events. It shares the groups with the ledger: encode it before the next event, or take a ``cut``."""
        return LedgerState(
            version=self.version,
            admitted=self.admitted,
            outcomes=dict(self.outcomes),
            budget=self._budget.state(),
            groups=tuple(sorted([*self._training.values(), *self._open.values()], key=lambda group: group.number)),
            rejected_in_a_row=self._streak.count,
        )

    def cut(self, encode: Callable[[Group], bytes]) -> LedgerCut:
        """Take a consistent cut, which ``LedgerCut.step`` encodes bit by bit while further events arrive."""
        self._cuts.append(cut := LedgerCut(self.state(), encode))
        return cut

    def resume(self) -> list[LedgerCommand]:
        """Return the commands that resumed groups still need. Call it once, before any event."""
        commands: list[LedgerCommand] = []
        for group in list(self._open.values()):
            self._budget.expect(group.name, group.plan)
            commands += self._issue.owed(group)
            if group.complete:
                group.credit = group.credited(self._strategy, self._config)
                self._ready += 1
        return commands + self._train()

    @property
    def settled(self) -> int:
        """How many groups have retired, over all sessions of the run."""
        return self._settled

    def waiting(self) -> list[str]:
        """Describe what each open group waits for, oldest first, for the watchdog's diagnosis."""
        return [state_of(group) for group in self._open.values()]

    def oldest(self) -> str:
        """The oldest group that is not ready, and what it waits for; "" without one."""
        return next((state_of(group) for group in self._open.values() if group.credit is None), "")

    # ---- events ----

    def handle(self, message: Message) -> list[LedgerCommand]:
        """Apply one event, or ``Live``; return the commands that follow. Raises kinds of ``RunFailed`` where the run must not continue."""
        commands = self._handlers[type(message)](message)
        self.check()
        return commands

    def check(self) -> None:
        """Check that admitted = settled + in flight, and the slots. Raises ``LedgerError`` with the numbers."""
        in_flight = len(self._open) + len(self._training)
        if self.admitted != self._settled + in_flight:
            raise LedgerError(f"admitted {self.admitted} != settled {dict(self.outcomes)} + in flight {in_flight}")
        if in_flight + self._unlive_groups > self._capacity:
            raise LedgerError(f"{self.slots_held} slots held of {self._capacity}")

    def _admit(self, event: Admitted) -> list[LedgerCommand]:
        if event.group in self._open or event.group in self._training:
            raise LedgerError(f"group {event.group} is admitted already")
        plan = self._budget.admit(event.group)
        bases = [RolloutId(event.group, 0, branch) for branch in range(plan.bases)]
        candidates, trunks = self._choose(bases, plan)
        group = Group(name=event.group, plan=plan, number=self.admitted, born=self.live, candidates=candidates, trunks=trunks)
        group.issue(bases)
        self._open[event.group] = group
        self.admitted += 1
        return self._issue.sample(group, bases)

    def _choose(self, bases: list[RolloutId], plan: GroupPlan) -> tuple[frozenset[RolloutId], tuple[RolloutId, ...] | None]:
        seed = (self._config.run.seed, *bases[0].group.encode())  # by name: the same trunk after a resume
        return choose_trunks(bases, self._config.algorithm.trunk if plan.rule else None, seed=seed)

    def _to_change(self, name: str) -> Group | None:
        """Return an open group that an event may change, None if it has retired. Cuts of the ledger keep it as it is now."""
        if self._cuts:
            for cut in self._cuts:
                cut.keep(name)
            self._cuts = [cut for cut in self._cuts if not cut.done]
        return self._open.get(name)

    def _ended(self, event: Rescored | Scored) -> Group | None:
        """Return the group of a task that has just ended; None if the task had ended before or its group has retired."""
        group = self._to_change(event.group)
        return None if group is None or group.tasks.pop(event.task, None) is None else group

    def _delivered(self, event: Delivered) -> list[LedgerCommand]:
        group = self._to_change(event.group)
        due = group.tasks.get(event.task, set()) if group is not None else set()
        before, taken, owed = len(due), [], []
        for row, note in enumerate(event.notes):
            if group is not None and (id := note.id) in due:
                due.remove(id)
                if group.accept(note, payload=event.payload, row=row):
                    taken.append(id)
                elif group.rollouts[id].status is Status.ISSUED:  # aborted or empty: it is owed again
                    owed.append(id)
        self.duplicates += len(event.notes) - len(taken) - len(owed)
        if group is None or len(due) == before:
            return []
        if not due:
            del group.tasks[event.task]
        trunks = [id for id in taken if id in group.candidates]
        commands = self._issue.score(group, event.payload) if taken else []
        if trunks and event.anchors is None:
            commands.append(self._issue.rescore(group, event.payload, trunks))
        elif event.anchors is not None:
            group.learn_anchors(trunks, event.anchors)
        return commands + (self._again(group, owed) if owed else self._advance(group))

    def _rescored(self, event: Rescored) -> list[LedgerCommand]:
        group = self._ended(event)
        if group is None:
            return []
        group.learn_anchors(event.trunks, event.anchors)
        return self._advance(group)

    def _advance(self, group: Group) -> list[LedgerCommand]:
        """Pick and branch trunks as soon as that is possible, then settle the group if nothing is owed any more."""
        group.pick_trunks()
        commands: list[LedgerCommand] = []
        for trunk in group.open_trunks():
            commands += self._issue.branch(group, group.branch(trunk))
        for trunk in group.unsettled_trunks():
            commands += self._issue.branch(group, group.branch_again(trunk))
        return commands + self._settle(group)

    def _again(self, group: Group, ids: Sequence[RolloutId], *, counted: bool = True) -> list[LedgerCommand]:
        """Issue failed rollouts again, or count them as failed; a group whose trunk has failed keeps its other rollouts."""
        owed = sum(group.rollouts[id].status is Status.ISSUED for id in ids)
        again = group.fail(ids, max_attempts=self._config.flow.max_attempts, counted=counted)
        self.failed += owed - len(again)
        self.retries += len(again)
        commands = self._issue.sample(group, [id for id in again if id.node == 0])
        commands += self._issue.branch(group, [id for id in again if id.node > 0])
        return commands + self._advance(group)

    def _lost(self, event: Lost) -> list[LedgerCommand]:
        group = self._to_change(event.group)
        due = group.tasks.pop(event.task, None) if group is not None else None
        if group is None or due is None:
            return []
        if event.gone:
            return self._begin_again(group)
        if not event.scoring:
            return self._again(group, [id for id in event.ids if id in due], counted=event.counted)
        attempts = group.scoring_attempts.get(event.payload, 1)
        if not event.counted or attempts < self._config.flow.max_attempts:
            group.scoring_attempts[event.payload] = attempts + event.counted
            return self._issue.score(group, event.payload)
        self.failed += group.give_up(event.ids)
        return self._advance(group)

    def _begin_again(self, group: Group) -> list[LedgerCommand]:
        """Sample a group again, in its slot, because its rollouts are gone from the object store (with their node).

        Later tokens are no older than the slot allows, so the bound holds.
        """
        forget = Forget(tasks=tuple(sorted(group.tasks)))
        if group.beginnings >= self._config.flow.max_attempts:
            self.failed += group.abandon()
            return [forget, *self._advance(group)]
        _, trunks = self._choose([group.base(branch) for branch in range(group.plan.bases)], group.plan)
        bases = group.begin_again(trunks)
        self.retries += len(bases)
        return [forget, *self._issue.sample(group, bases)]

    def _scored(self, event: Scored) -> list[LedgerCommand]:
        group = self._ended(event)
        if group is None:
            return []
        zero = self._config.verifiers.on_unknown == "zero"
        for id, verdict in zip(event.ids, event.verdicts, strict=True):
            group.judge(id, verdict, unknown_is_zero=zero, rewards=self._rewards)
        return self._advance(group)

    # ---- complete groups ----

    def _settle(self, group: Group) -> list[LedgerCommand]:
        """Credit a group the moment it is complete; a degenerate one gives its slot back here and nowhere else."""
        if not group.complete or group.credit is not None:
            return []
        group.credit = group.credited(self._strategy, self._config)
        if not group.credit.rejected:
            self._ready += 1
            self._streak.end()
            return self._train()
        lost_all = all(r.status is Status.FAILED for r in group.rollouts.values())
        outcome = GroupOutcome.FAILED if lost_all else GroupOutcome(f"rejected_{group.credit.rejected}")
        del self._open[group.name]
        retired = self._close(group, outcome)
        self._streak.add(retired, self.outcomes)
        return [retired, *self._train()]

    def _close(self, group: Group, outcome: GroupOutcome) -> Retire:
        self.outcomes[outcome] += 1
        self._settled += 1
        self._budget.settle(
            group.name, group.plan, base_lengths=group.lengths(bases=True), branch_lengths=group.lengths(bases=False)
        )
        return group.retire(outcome)

    def _train(self) -> list[LedgerCommand]:
        """Start the next batch once ``order`` finds its groups ready; else return no command."""
        flow = self._config.flow
        if self.closed or self._training or self._ready < flow.groups_per_step or self.version >= self._config.run.steps:
            return []
        batch = next_batch(
            self._open.values(), size=flow.groups_per_step, window=flow.window, version=self.version, max_staleness=flow.max_staleness,
        )  # fmt: skip
        if batch is None:
            return []
        self._ready -= len(batch)
        for group in batch:
            self._training[group.name] = self._open.pop(group.name)
        items = train_items(
            batch, version=self.version, max_staleness=flow.max_staleness, minibatches=self._config.learner.minibatches
        )
        oldest = min(group.oldest_version for group in batch)
        return [Train(version=self.version + 1, groups=tuple(g.name for g in batch), items=tuple(items), oldest=oldest)]

    def _trained(self, event: Trained) -> list[LedgerCommand]:
        if event.version != self.version + 1:
            raise LedgerError(f"the learner made version {event.version} from {self.version}")
        self.version = event.version
        done, self._training = self._training, {}
        if event.version > self.live:  # an engine that joined may serve it before this event arrives
            self._unlive[event.version] = len(done)
            self._unlive_groups += len(done)
        return [*(self._close(group, GroupOutcome.TRAINED) for group in done.values()), *self._train()]

    def _stopped(self, event: Stopped) -> list[LedgerCommand]:
        self.closed = True
        return []

    def _went_live(self, command: Live) -> list[LedgerCommand]:
        self.live = max(self.live, command.version)
        for version in [v for v in self._unlive if v <= self.live]:
            self._unlive_groups -= self._unlive.pop(version)
        return []
