"""What a heartbeat tells of the control plane, as plain numbers for who watches a run. Reads; changes and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.checkpointing import Checkpointing, span
from fr3e_async.control.ports import Reporter
from fr3e_async.control.progress import Progress
from fr3e_async.control.silence import Silence
from fr3e_async.control.watchdog import Watchdog
from fr3e_async.control.workers import ROLES
from fr3e_async.machine.dispatch import Dispatcher
from fr3e_async.machine.machine import Machine
from fr3e_async.machine.messages import Retire
from fr3e_async.machine.tally import PolicyWatch, Tally
from fr3e_async.observe.heartbeat import EngineHeartbeat, Heartbeat, RoleHeartbeat

# Series that are there from the beginning, with 0, so that their first increment shows as one.
FATES = ("trained", "rejected_all_right", "rejected_all_wrong", "rejected_no_spread", "rejected_too_few", "failed_given_up")
VERDICTS = ("right", "wrong", "unknown", "given_up")


def heartbeat_of(
    *,
    config: Config,
    machine: Machine,
    watch: Watchdog,
    progress: Progress,
    now: float,
    saved_version: int,
    saved_at: float,
    learner_restarts: int = 0,
) -> Heartbeat:
    """``saved_*``: version and time of the last checkpoint, or of the session's beginning. Times in seconds of one clock."""
    ledger, idle = machine.ledger, watch.utilisation()
    roles = {role: _of_pool(role, machine, watch, idle) for role in machine.autoscaler.pools}
    ranks = config.learner.ranks
    roles["learner"] = RoleHeartbeat(
        up=ranks,
        wanted=ranks,
        busy_s=watch.busy_s("learner") * ranks,
        idle=idle.get("idle/learner_fraction"),
        replaced=learner_restarts,
    )
    return Heartbeat(
        roles=roles,
        engines=_engines(machine.dispatcher, watch),
        admitted=ledger.admitted,
        fates=dict.fromkeys(FATES, 0) | dict(ledger.fates),
        in_flight=ledger.in_flight,
        ready=ledger.ready,
        slots_held=ledger.slots_held,
        slots=config.flow.capacity,
        trained=ledger.version,
        live=ledger.live,
        steps=config.run.steps,
        staleness=ledger.version - ledger.oldest_born,
        staleness_bound=config.flow.max_staleness,
        verdicts=dict.fromkeys(VERDICTS, 0) | dict(progress.verdicts),
        tokens_generated=progress.tokens_generated,
        tokens_prefilled=progress.tokens_prefilled,
        tokens_reused=progress.tokens_reused,
        tokens_useful=progress.tokens_useful,
        tokens_trained=progress.tokens_trained,
        optimiser_steps=progress.optimiser_steps,
        stalled_s=now - watch.last_progress,
        stall_limit_s=config.watchdog.timeout_s,
        wall_s=progress.wall_s(now),
        checkpoint_age_s=now - saved_at,
        checkpoint_batches=ledger.version - saved_version,
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
        busy_s=watch.busy_s(role),
        idle=idle.get(f"idle/{role}_fraction"),
        replaced=dispatcher.roles[role].replacements,
    )


def _engines(dispatcher: Dispatcher, watch: Watchdog) -> list[EngineHeartbeat]:
    """Those in service that have answered."""
    return [
        EngineHeartbeat(
            name=name, role=slot.role, version=stats.version, running=stats.running, waiting=stats.waiting, kv_used=stats.kv_used,
            limit=slot.limit,
        )
        for name, slot in dispatcher.slots.items()
        if (stats := watch.stats_of(name)) is not None
    ]  # fmt: skip


# ---- What the loop tells of itself: a row after every batch, the state at every heartbeat ----


class Teller:
    """What the loop tells of itself: a row after every batch, the state at every heartbeat."""

    def __init__(
        self,
        config: Config,
        machine: Machine,
        watch: Watchdog,
        checkpointing: Checkpointing,
        *,
        progress: Progress,
        reporter: Reporter,
        learner: Callable[[], str],
        evaluations: Callable[[], Collection[str]],
        learner_restarts: int,
        clock: Clock,
    ) -> None:
        """``learner``: what it does, or an empty text; ``evaluations``: labels of those under way."""
        self._config, self._machine, self._watch, self._checkpointing = config, machine, watch, checkpointing
        self._progress, self._reporter, self._restarts, self._clock = progress, reporter, learner_restarts, clock
        self._tally, self._policies = Tally(config.reward_range), PolicyWatch(usual=progress.policy_share)
        self._silence = Silence(
            config, machine.ledger, self._tally, learner=learner, evaluations=evaluations, reporter=reporter, clock=clock
        )

    def begin(self) -> None:
        """The session's work begins now."""
        self._silence.batch()

    def retired(self, group: Retire) -> None:
        self._tally.add(group)

    def step(self, version: int) -> None:
        """The row of the batch that made ``version``."""
        dispatcher, step_s = self._machine.dispatcher, max(self._silence.batch(), 1e-9)
        queues = {f"queue/{role}": float(dispatcher.queued(role)) for role in ROLES}
        queues["queue/ready_groups"] = float(self._machine.ledger.ready)
        taken = self._tally.take()
        if warning := self._policies.alarm(taken):
            self._reporter.note(warning, "policy_verdicts", version=version)
        self._progress.policy_share = self._policies.usual
        rates = {"time/step_s": step_s, "tokens/rate_per_s": taken["tokens/generated"] / step_s}
        self._reporter.step(
            version, {**taken, **queues, **rates, **self._watch.utilisation(), **self._progress.take_step_metrics()}
        )

    def beat(self) -> None:
        """The state, for who watches the run, and why there is no batch."""
        self._silence.beat()
        vitals = heartbeat_of(
            config=self._config, machine=self._machine, watch=self._watch, progress=self._progress, now=self._clock(),
            saved_version=self._checkpointing.version, saved_at=self._checkpointing.at, learner_restarts=self._restarts,
        )  # fmt: skip
        self._reporter.beat(vitals)

    def awaited(self, left_s: float | None) -> str:
        """What a stop waits for, and how long that takes. ``left_s``: of the batch in training; None: nobody knows."""
        ledger, parts = self._machine.ledger, []
        if ledger.training:
            how_long = "the first of this session: nobody knows how long" if left_s is None else f"about {span(left_s)} more"
            parts.append(f"the batch in training is waited for ({how_long})")
        if parts or ledger.version:
            took = self._checkpointing.took_s
            parts.append("a checkpoint is written" + (f" (about {span(took)})" if took else ""))
        return ", then ".join(parts) or "no batch is trained, so there is nothing to save"
