"""Why there is no batch: shown from 30 s on, and written as a line after 30 s, 1 min, 2 min, 4 min, then every few minutes.

*Example*: ``no batch for 31 s: 3 of 32 groups ready, 29 in the making; since the last batch 212 groups rejected (180 all wrong,
32 too few), 4% of 5,088 verdicts unknown, 67,012 tokens generated; the oldest group toy-12@0: 4 to be judged, 12 judged``
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from fr3e_async.clock import Clock
from fr3e_async.config import Config
from fr3e_async.control.ports import Reporter
from fr3e_async.machine.ledger import Ledger
from fr3e_async.machine.tally import Tally

FIRST_S = 30.0
LONGEST_S = 300.0  # between two lines


class Silence:
    """The time without a batch. ``beat`` often; ``batch`` when one has been trained."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        tally: Tally,
        *,
        learner: Callable[[], str],
        evaluations: Callable[[], Collection[str]],
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        """``tally``: of the groups since the last batch. ``learner``: what it does, or an empty text; ``evaluations``: labels of
        those under way."""
        self._config, self._ledger, self._tally = config, ledger, tally
        self._learner, self._evaluations, self._reporter, self._clock = learner, evaluations, reporter, clock
        self._since, self._due_s = clock(), FIRST_S

    def batch(self) -> float:
        """One has been trained: seconds since the one before, or since the session began."""
        before, self._since, self._due_s = self._since, self._clock(), FIRST_S
        return self._since - before

    def beat(self) -> None:
        waited = self._clock() - self._since
        if waited < FIRST_S:
            return
        text = self.text(waited)
        self._reporter.waits(text)
        if waited >= self._due_s:
            while waited >= self._due_s:
                self._due_s += min(self._due_s, LONGEST_S)
            self._reporter.note(text, "no_batch", version=self._ledger.version, seconds=round(waited, 3))

    def text(self, waited_s: float) -> str:
        work = [f"the learner {does}" for does in [self._learner()] if does]
        work += [f"evaluation {label!r} continues" for label in sorted(self._evaluations())]
        if self._ledger.closed or self._ledger.version >= self._config.run.steps:
            return f"nothing more to train for {waited_s:.0f} s: {'; '.join(work) or 'the run ends'}"
        ready, wanted = self._ledger.ready, self._config.flow.groups_per_step
        work.append(f"{ready} of {wanted} groups ready, {self._ledger.in_flight - ready} in the making")
        oldest = [f"the oldest group {line}" for line in [self._ledger.oldest()] if line]
        return f"no batch for {waited_s:.0f} s: {'; '.join([*work, self._spent(), *oldest])}"

    def _spent(self) -> str:
        """Since the last batch, by groups that have ended."""
        sums = self._tally.sums
        if not sums:
            return "no group has ended since the last batch"
        ended = ", ".join(
            f"{n:,} {fate.partition('_')[2].replace('_', ' ')}"
            for fate, n in self._tally.fates.most_common()
            if fate != "trained"
        )
        verdicts = int(sums["rollouts"] - sums["given_up"])
        unknown = f"{sums['unknown'] / verdicts:.0%} of {verdicts:,} verdicts unknown" if verdicts else "no verdict"
        lost = sum(n for fate, n in self._tally.fates.items() if fate != "trained")
        groups = f"{lost:,} groups rejected ({ended})" if lost else "no group rejected"
        return f"since the last batch {groups}, {unknown}, {int(sums['generated']):,} tokens generated"
