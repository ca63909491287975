"""What a heartbeat tells of the control plane, as plain numbers for who watches a run. Reads; changes and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping

from fr3e_async.config import Config
from fr3e_async.control.dispatch import Dispatcher
from fr3e_async.control.machine import Machine
from fr3e_async.control.progress import Progress
from fr3e_async.control.watch import Watch
from fr3e_async.observe.vitals import EngineVitals, RoleVitals, Vitals

# Series that are there from the beginning, with 0, so that their first increment shows as one.
FATES = ("trained", "rejected_all_right", "rejected_all_wrong", "rejected_no_spread", "rejected_too_few", "failed_given_up")
VERDICTS = ("right", "wrong", "unknown", "given_up")


def vitals_of(
    *,
    config: Config,
    machine: Machine,
    watch: Watch,
    progress: Progress,
    now: float,
    saved_version: int,
    saved_at: float,
    learner_restarts: int = 0,
) -> Vitals:
    """``saved_*``: version and time of the last checkpoint, or of the session's beginning. Times in seconds of one clock."""
    ledger, idle = machine.ledger, watch.utilisation()
    roles = {role: _of_pool(role, machine, watch, idle) for role in machine.sizer.pools}
    ranks = config.learner.ranks
    roles["learner"] = RoleVitals(
        up=ranks,
        wanted=ranks,
        busy_s=watch.busy_s("learner") * ranks,
        idle=idle.get("idle/learner_fraction"),
        replaced=learner_restarts,
    )
    return Vitals(
        roles=roles,
        engines=_engines(machine.desk, watch),
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
        tokens={
            "generated": progress.tokens_generated,
            "prefilled": progress.tokens_prefilled,
            "reused": progress.tokens_reused,
            "useful": progress.tokens_useful,
            "trained": progress.tokens_trained,
        },
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


def _of_pool(role: str, machine: Machine, watch: Watch, idle: Mapping[str, float]) -> RoleVitals:
    desk, pool = machine.desk, machine.sizer.pools[role]
    return RoleVitals(
        up=desk.roles[role].seats,
        wanted=pool.wanted,
        pending=len(pool.hiring),
        queued=desk.queued(role),
        in_flight=desk.in_flight(role),
        busy_s=watch.busy_s(role),
        idle=idle.get(f"idle/{role}_fraction"),
        replaced=desk.roles[role].replacements,
    )


def _engines(desk: Dispatcher, watch: Watch) -> list[EngineVitals]:
    """Those in service that have answered."""
    return [
        EngineVitals(
            name=name, role=seat.role, version=stats.version, running=stats.running, waiting=stats.waiting, kv_used=stats.kv_used,
            limit=seat.limit,
        )
        for name, seat in desk.seats.items()
        if (stats := watch.stats_of(name)) is not None
    ]  # fmt: skip
