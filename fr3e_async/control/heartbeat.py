"""What a session writes and reports of itself: journal, ledger log and rows of groups; a row a batch, the state at every heartbeat,
and why there is no batch. What happened is written before what follows from it is begun. Decides nothing.
"""

from collections.abc import Mapping, Sequence

from fr3e_async.control.checkpointing import Checkpointing, span
from fr3e_async.control.context import RunContext
from fr3e_async.control.evaluating import EvaluationSchedule
from fr3e_async.control.watchdog import Watchdog
from fr3e_async.control.workers import ROLES
from fr3e_async.errors import RunFailed
from fr3e_async.machine.dispatch import Dispatcher
from fr3e_async.machine.events import Event, Trained
from fr3e_async.machine.ledger_state import StarvedError
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Command, Retire
from fr3e_async.machine.tally import PolicyWatch, Tally
from fr3e_async.observe.heartbeat import EngineHeartbeat, Heartbeat, RoleHeartbeat
from fr3e_async.outcomes import GroupOutcome, Outcome
from fr3e_async.store.ledger_log import BeginRecord, records_of

FIRST_S = 30.0
LONGEST_S = 300.0  # between two lines


def heartbeat_of(context: RunContext, watch: Watchdog, checkpointing: Checkpointing, *, learner_restarts: int) -> Heartbeat:
    """The state of a session as plain numbers, for people and monitors. Times in seconds of the run's clock."""
    config, machine, progress, now = context.config, context.machine, context.progress, context.clock()
    ledger, idle = machine.ledger, watch.utilisation()
    roles = {role: _of_pool(role, machine, watch, idle) for role in machine.autoscaler.pools}
    ranks = config.learner.ranks
    roles["learner"] = RoleHeartbeat(
        up=ranks,
        wanted=ranks,
        busy_s=watch.busy_s["learner"] * ranks,
        idle=idle.get("idle/learner_fraction"),
        replaced=learner_restarts,
    )
    return Heartbeat(
        roles=roles,
        engines=_engines(machine.dispatcher, watch),
        admitted=ledger.admitted,
        outcomes=dict.fromkeys(GroupOutcome, 0)
        | dict(ledger.outcomes),  # all from the beginning, so that a first increment shows as one
        in_flight=ledger.in_flight,
        ready=ledger.ready,
        slots_held=ledger.slots_held,
        slots=config.flow.capacity,
        trained=ledger.version,
        live=ledger.live,
        steps=config.run.steps,
        staleness=ledger.version - ledger.oldest_born,
        staleness_bound=config.flow.max_staleness,
        verdicts=dict.fromkeys(Outcome, 0) | dict(progress.verdicts),
        tokens_generated=progress.tokens_generated,
        tokens_prefilled=progress.tokens_prefilled,
        tokens_reused=progress.tokens_reused,
        tokens_useful=progress.tokens_useful,
        tokens_trained=progress.tokens_trained,
        optimiser_steps=progress.optimiser_steps,
        stalled_s=now - context.moved_at,
        stall_limit_s=config.watchdog.timeout_s,
        wall_s=progress.wall_s(now),
        checkpoint_age_s=now - checkpointing.at,
        checkpoint_batches=ledger.version - checkpointing.version,
        checkpoint_every=config.run.checkpoint_every,
        node_notices=len(watch.notices),
        heldout_accuracy=progress.evaluations[-1]["accuracy"] if progress.evaluations else None,
    )


def _of_pool(role: str, machine: Machine, watch: Watchdog, idle: Mapping[str, float]) -> RoleHeartbeat:
    dispatcher, pool = machine.dispatcher, machine.autoscaler.pools[role]
    return RoleHeartbeat(
        up=dispatcher.roles[role].slots,
        wanted=pool.wanted,
        pending=len(pool.hiring),
        queued=dispatcher.queued(role),
        in_flight=dispatcher.in_flight(role),
        busy_s=watch.busy_s[role],
        idle=idle.get(f"idle/{role}_fraction"),
        replaced=dispatcher.roles[role].replacements,
    )


def _engines(dispatcher: Dispatcher, watch: Watchdog) -> list[EngineHeartbeat]:
    """List the state of each engine in service that has answered at least once."""
    return [
        EngineHeartbeat(
            name=name, role=slot.role, version=stats.version, running=stats.running, waiting=stats.waiting, kv_used=stats.kv_used,
            limit=slot.limit,
        )
        for name, slot in dispatcher.slots.items()
        if (stats := watch.stats.get(name)) is not None
    ]  # fmt: skip


class Teller:
    """Reports the session: a row after every batch, the state at every heartbeat, and why there is no batch."""

    def __init__(
        self, context: RunContext, watch: Watchdog, checkpointing: Checkpointing, evaluations: EvaluationSchedule, *,
        learner_restarts: int,
    ) -> None:  # fmt: skip
        self._context, self._watch, self._checkpointing, self._restarts = context, watch, checkpointing, learner_restarts
        self._machine, self._progress, self._reporter = context.machine, context.progress, context.reporter
        self._tally, self.policies = Tally(context.config.reward_range), PolicyWatch(usual=self._progress.policy_share)
        self._silence = Silence(context, self._tally, evaluations)

    def begin(self) -> None:
        """Start to count the time without a batch."""
        self._silence.batch()

    def retired(self, group: Retire) -> None:
        self._tally.add(group)

    def step(self, version: int) -> None:
        """Report the metrics row of the batch that made ``version``."""
        dispatcher, step_s = self._machine.dispatcher, max(self._silence.batch(), 1e-9)
        queues = {f"queue/{role}": float(dispatcher.queued(role)) for role in ROLES}
        queues["queue/ready_groups"] = float(self._machine.ledger.ready)
        taken = self._tally.take()
        if warning := self.policies.alarm(taken):
            self._reporter.note(warning, "policy_verdicts", version=version)
        self._progress.policy_share = self.policies.usual
        rates = {"time/step_s": step_s, "tokens/rate_per_s": taken["tokens/generated"] / step_s}
        self._reporter.step(
            version, {**taken, **queues, **rates, **self._watch.utilisation(), **self._progress.take_step_metrics()}
        )

    def beat(self) -> None:
        """Report the run's state, and why there is no batch if it takes long."""
        self._silence.beat()
        heartbeat = heartbeat_of(self._context, self._watch, self._checkpointing, learner_restarts=self._restarts)
        self._reporter.beat(heartbeat)

    def awaited(self, left_s: float | None) -> str:
        """Describe what a stop waits for, and for how long. ``left_s``: seconds left of the batch in training; None: unknown."""
        ledger, parts = self._machine.ledger, []
        if ledger.training:
            how_long = "the first of this session: nobody knows how long" if left_s is None else f"about {span(left_s)} more"
            parts.append(f"the batch in training is waited for ({how_long})")
        if parts or ledger.version:
            took = self._checkpointing.took_s
            parts.append("a checkpoint is written" + (f" (about {span(took)})" if took else ""))
        return ", then ".join(parts) or "no batch is trained, so there is nothing to save"


class Silence:
    """Says why there is no batch: shown from 30 s on, and written as a line after 30 s, 1 min, 2 min, 4 min, then every few minutes.

    *Example*: ``no batch for 31 s: 3 of 32 groups ready, 29 in the making; since the last batch 212 groups rejected (180 all wrong,
    32 too few), 4% of 5,088 verdicts unknown, 67,012 tokens generated; the oldest group toy-12@0: 4 to be scored, 12 scored``
    """

    def __init__(self, context: RunContext, tally: Tally, evaluations: EvaluationSchedule) -> None:
        """``tally``: counts of the groups that retired since the last batch."""
        self._context, self._tally, self._evaluations = context, tally, evaluations
        self._ledger, self._clock = context.machine.ledger, context.clock
        self._since, self._due_s = self._clock(), FIRST_S

    def batch(self) -> float:
        """Note a trained batch. Returns the seconds since the previous one, or since the session began."""
        before, self._since, self._due_s = self._since, self._clock(), FIRST_S
        return self._since - before

    def beat(self) -> None:
        waited = self._clock() - self._since
        if waited < FIRST_S:
            return
        text = self.text(waited)
        self._context.reporter.waits(text)
        if waited >= self._due_s:
            while waited >= self._due_s:
                self._due_s += min(self._due_s, LONGEST_S)
            self._context.reporter.note(text, "no_batch", version=self._ledger.version, seconds=round(waited, 3))

    def text(self, waited_s: float) -> str:
        work = [f"the learner {does}" for does in [self._context.learner.does] if does]
        work += [f"evaluation {label!r} continues" for label in sorted(self._evaluations.labels)]
        if self._ledger.closed or self._ledger.version >= self._context.config.run.steps:
            return f"nothing more to train for {waited_s:.0f} s: {'; '.join(work) or 'the run ends'}"
        ready, wanted = self._ledger.ready, self._context.config.flow.groups_per_step
        work.append(f"{ready} of {wanted} groups ready, {self._ledger.in_flight - ready} in the making")
        oldest = [f"the oldest group {line}" for line in [self._ledger.oldest()] if line]
        return f"no batch for {waited_s:.0f} s: {'; '.join([*work, self._spent(), *oldest])}"

    def _spent(self) -> str:
        """Describe what the groups that retired since the last batch cost and how they ended."""
        sums = self._tally.sums
        if not sums:
            return "no group has ended since the last batch"
        ended = ", ".join(
            f"{n:,} {outcome.removeprefix('rejected_').replace('_', ' ')}"
            for outcome, n in self._tally.outcomes.most_common()
            if outcome != "trained"
        )
        verdicts = int(sums["rollouts"] - sums["failed"])
        unknown = f"{sums['unknown'] / verdicts:.0%} of {verdicts:,} verdicts unknown" if verdicts else "no verdict"
        lost = sum(n for outcome, n in self._tally.outcomes.items() if outcome != "trained")
        groups = f"{lost:,} groups rejected ({ended})" if lost else "no group rejected"
        return f"since the last batch {groups}, {unknown}, {int(sums['generated']):,} tokens generated"


class Records:
    """Records what the machine does: ``take`` passes it an event and writes the event and its commands to disk."""

    def __init__(self, context: RunContext, teller: Teller) -> None:
        self._context, self._machine, self._teller, self._clock = context, context.machine, teller, context.clock
        self._journal, self.trees, self._ledger_log = context.files.journal, context.files.trees, context.files.ledger_log
        self._settled = self._machine.ledger.settled  # groups, over the whole run

    def begin(self, session: int) -> list[Command]:
        """Start the machine. Returns the commands that groups from a checkpoint need."""
        state = self._machine.ledger.state()
        self._ledger_log.write(
            BeginRecord(
                session=session,
                version=state.version,
                admitted=state.admitted,
                settled=state.settled,
                open=tuple(group.name for group in state.groups),
                time_s=self._clock(),
            )
        )
        commands = self._machine.start()
        self._log(None, commands)
        return commands

    def take(self, event: Event) -> list[Command]:
        """Pass one event to the machine and record both; returns its commands. Raises ``RunFailed`` kinds, recorded first."""
        try:
            commands = self._machine.handle(event)
        except RunFailed as error:
            if self._journal is not None:
                self._journal.refused(event, error, self._clock())
            if isinstance(error, StarvedError):
                self._log(event, [error.retired])
                self._retire(error.retired)
            raise
        if self._journal is not None:
            self._journal.write(event, commands, self._clock())
        self._log(event, commands)
        for command in commands:
            if isinstance(command, Retire):
                self._retire(command)
        if isinstance(event, Trained):
            self._teller.step(event.version)
        return commands

    def _log(self, event: Event | None, commands: Sequence[Command]) -> None:
        for record in records_of(event, commands, live=self._machine.ledger.live):
            self._ledger_log.write(record)

    def _retire(self, group: Retire) -> None:
        self._teller.retired(group)
        self._context.progress.retired(group)
        self._context.reporter.group(group.row())
        self._context.stream.mark_consumed(group.group)
        self._settled += 1
        if self.trees is not None:
            prompt, handle = self._context.stream.prompt(group.group), self._context.table.__getitem__
            self.trees.offer(group, prompt, handle, step=self._machine.ledger.version, settled=self._settled)
        self._context.table.release(group.group)

    def flush(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    async def finish(self) -> None:
        """Wait for the trees that are being written; for a session that ends well."""
        if self.trees is not None:
            await self.trees.finish()

    def close(self) -> None:
        """Discard trees that are not written yet and close the journal, however the session ends."""
        if self.trees is not None:
            self.trees.stop()
        if self._journal is not None:
            self._journal.close()
