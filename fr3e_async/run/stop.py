"""How a run ends: stops by signals, and the summary."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fr3e_async.control.controller import Controller
from fr3e_async.evaluation.suite import HELDOUT
from fr3e_async.signals import listen
from fr3e_async.store.summary import Summary

OF_PROGRESS = (  # what the summary takes from the progress as it is
    "optimiser_steps", "resumed_from", "first_step_s", "accuracy_before", "accuracy_after", "evaluations", "staleness_max", "staleness_mean",
    "tokens_generated", "tokens_prefilled", "tokens_reused", "tokens_useful", "tokens_trained",
)  # fmt: skip


@dataclass(slots=True)
class Stop:
    """A request to end the run: first through the controller, which writes a checkpoint; then at once.

    Ctrl-C has no time limit: the person can press it again to end at once. SIGTERM (a launcher) and SIGHUP (a terminal that is gone) end the
    run after ``grace_s`` seconds at the latest.
    """

    grace_s: float
    say: Callable[[str], None] = lambda text: None
    reason: str = ""
    hurry: str = ""  # why the stop no longer waits
    task: asyncio.Task[None] | None = None
    controller: Controller | None = None  # while one runs

    def listen(self) -> None:
        """To SIGTERM (``ray job stop``), SIGHUP and Ctrl-C. After ``ray.init``, which puts its own handler in place."""
        listen(self.ask)

    def ask(self, signal: str) -> None:
        """A second Ctrl-C ends at once; a second SIGTERM does not, since launchers like to send it twice."""
        again, person = bool(self.reason), signal == "SIGINT"
        self.reason = self.reason or f"stopped by {signal}"
        if self.controller is None:
            self._give_up("")
        elif again and person:
            self._give_up("a second Ctrl-C")
        elif not again:
            limit = "Ctrl-C again ends at once, without it" if person else f"run.stop_grace_s ends that after {self.grace_s:g} s"
            self.say(f"{self.reason}: {self.controller.awaited()}; {limit}")
            self.controller.stop(self.reason)
            if not person:
                late = f"run.stop_grace_s ({self.grace_s:g} s) is over"
                asyncio.get_running_loop().call_later(self.grace_s, self._give_up, late)

    def _give_up(self, why: str) -> None:
        self.hurry = self.hurry or why
        if self.task is not None:
            self.task.cancel()


def summary_of(controller: Controller, *, name: str, reason: str, now: float) -> Summary:
    """The result of a run, from its controller. ``reason``: why it ended; ``now``: time by the run's clock, s."""
    progress, ledger, used = controller.progress, controller.machine.ledger, controller.progress.utilisation
    by_label = {e["label"]: e for e in progress.evaluations}
    syncs = progress.syncs
    return Summary(
        **{field: getattr(progress, field) for field in OF_PROGRESS},
        name=name,
        exit_reason=reason,
        steps=ledger.version,
        version=ledger.version,
        wall_s=progress.wall_s(now),
        accuracy_intervals={
            label: [by_label[label]["low"], by_label[label]["high"]] for label in ("before", "after") if label in by_label
        },
        **_rewards(by_label),
        benchmarks=[row for row in progress.benchmarks if row["benchmark"] != HELDOUT],
        overlap_fraction=used.get("overlap/fraction", 0.0),
        idle_fraction={
            name.removeprefix("idle/").removesuffix("_fraction"): value
            for name, value in used.items()
            if name.startswith("idle/")
        },
        tokens_per_prompt=progress.tokens_generated / ledger.settled if ledger.settled else None,
        groups={**ledger.outcomes, "in_flight": ledger.in_flight},
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
    """Return the summary's fields of held-out mean rewards. ``evaluations``: by label."""
    found = {label: evaluations[label]["reward"] for label in ("before", "after") if label in evaluations}
    values = {f"reward_{label}": reward["value"] for label, reward in found.items()}
    return {**values, "reward_intervals": {label: [its["low"], its["high"]] for label, its in found.items()}}
