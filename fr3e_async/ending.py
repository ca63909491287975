"""How a run ends: by a person's or the cluster's wish, and with which result."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fr3e_async.control.controller import Controller
from fr3e_async.evaluation.suite import HELDOUT
from fr3e_async.observe.summary import Summary


@dataclass(slots=True)
class Stop:
    """A person's or the cluster's wish to end: first politely, through the controller; after the grace time for good."""

    grace_s: float
    reason: str = ""
    task: asyncio.Task[None] | None = None
    controller: Controller | None = None  # while one runs

    def listen(self) -> None:
        """SIGTERM (``ray job stop``) and Ctrl-C. After ``ray.init``, which puts its own handler in place."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask, f"stopped by {signal.Signals(number).name}")

    def ask(self, reason: str) -> None:
        """A second Ctrl-C ends at once; a second SIGTERM does not, since launchers like to send it twice."""
        again, self.reason = bool(self.reason), reason
        if self.controller is None or (again and "SIGINT" in reason):
            self._give_up()
        elif not again:
            self.controller.stop(reason)
            asyncio.get_running_loop().call_later(self.grace_s, self._give_up)

    def _give_up(self) -> None:
        if self.task is not None:
            self.task.cancel()


def summary_of(controller: Controller, *, name: str, reason: str, now: float) -> Summary:
    """``reason``: why it ended. ``now``: by the run's clock."""
    progress, ledger, used = controller.progress, controller.machine.ledger, controller.progress.utilisation
    by_label = {e["label"]: e for e in progress.evaluations}
    syncs = progress.syncs
    return Summary(
        name=name,
        exit_reason=reason,
        steps=ledger.version,
        optimiser_steps=progress.optimiser_steps,
        version=ledger.version,
        resumed_from=progress.resumed_from,
        wall_s=progress.wall_s(now),
        first_step_s=progress.first_step_s,
        accuracy_before=progress.accuracy_before,
        accuracy_after=progress.accuracy_after,
        accuracy_intervals={
            label: [by_label[label]["low"], by_label[label]["high"]] for label in ("before", "after") if label in by_label
        },
        **_rewards(by_label),
        evaluations=progress.evaluations,
        benchmarks=[row for row in progress.benchmarks if row["benchmark"] != HELDOUT],
        overlap_fraction=used.get("overlap/fraction", 0.0),
        idle_fraction={
            name.removeprefix("idle/").removesuffix("_fraction"): value
            for name, value in used.items()
            if name.startswith("idle/")
        },
        staleness_max=progress.staleness_max,
        staleness_mean=progress.staleness_mean,
        tokens_generated=progress.tokens_generated,
        tokens_prefilled=progress.tokens_prefilled,
        tokens_reused=progress.tokens_reused,
        tokens_useful=progress.tokens_useful,
        tokens_per_prompt=progress.tokens_generated / ledger.settled if ledger.settled else None,
        tokens_trained=progress.tokens_trained,
        groups={**ledger.fates, "in_flight": ledger.in_flight},
        verdicts=dict(progress.verdicts),
        verdict_reasons=dict(progress.reasons),
        retries=ledger.retries,
        duplicates=ledger.duplicates,
        replaced=controller.watch.replaced(),
        cache_hit_fraction=used.get("cache/hit_fraction"),
        sync_s=sum(s for s, _ in syncs) / len(syncs) if syncs else None,
        pause_s=sum(p for _, p in syncs) / len(syncs) if syncs else None,
    )


def _rewards(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary's keys of held-out mean rewards, by evaluations by label."""
    found = {label: evaluations[label]["reward"] for label in ("before", "after") if label in evaluations}
    values = {f"reward_{label}": reward["value"] for label, reward in found.items()}
    return {**values, "reward_intervals": {label: [its["low"], its["high"]] for label, its in found.items()}}
