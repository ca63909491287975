"""What the loop tells of itself: a row after every batch, the state at every heartbeat. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.crew import ROLES
from fr3e_async.control.keeping import Keeper, span
from fr3e_async.control.machine import Machine
from fr3e_async.control.messages import Retire
from fr3e_async.control.ports import Reporter
from fr3e_async.control.progress import Progress
from fr3e_async.control.silence import Silence
from fr3e_async.control.tally import PolicyWatch, Tally
from fr3e_async.control.vitals import vitals_of
from fr3e_async.control.watch import Watch


class Teller:
    """See the module's docstring."""

    def __init__(
        self,
        config: Config,
        machine: Machine,
        watch: Watch,
        keeper: Keeper,
        *,
        progress: Progress,
        reporter: Reporter,
        learner: Callable[[], str],
        evaluations: Callable[[], Collection[str]],
        learner_restarts: int,
        clock: Clock,
    ) -> None:
        """``learner``: what it does, or an empty text; ``evaluations``: labels of those under way."""
        self._config, self._machine, self._watch, self._keeper = config, machine, watch, keeper
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
        desk, step_s = self._machine.desk, max(self._silence.batch(), 1e-9)
        queues = {f"queue/{role}": float(desk.queued(role)) for role in ROLES}
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
        vitals = vitals_of(
            config=self._config, machine=self._machine, watch=self._watch, progress=self._progress, now=self._clock(),
            saved_version=self._keeper.version, saved_at=self._keeper.at, learner_restarts=self._restarts,
        )  # fmt: skip
        self._reporter.beat(vitals)

    def awaited(self, left_s: float | None) -> str:
        """What a stop waits for, and how long that takes. ``left_s``: of the batch in training; None: nobody knows."""
        ledger, parts = self._machine.ledger, []
        if ledger.training:
            how_long = "the first of this session: nobody knows how long" if left_s is None else f"about {span(left_s)} more"
            parts.append(f"the batch in training is waited for ({how_long})")
        if parts or ledger.version:
            took = self._keeper.took_s
            parts.append("a checkpoint is written" + (f" (about {span(took)})" if took else ""))
        return ", then ".join(parts) or "no batch is trained, so there is nothing to save"
