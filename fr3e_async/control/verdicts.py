"""The verdicts of a session as they come: the first failure of each kind is told, and a judge that only fails ends the run. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fr3e_async.errors import RunFailed
from fr3e_async.types import Outcome, Verdict
from fr3e_async.verify.jobs import SAID_UNKNOWN
from fr3e_async.verify.responses import UNREADABLE
from fr3e_async.verify.rewards import MATH

FIRST = 64  # verdicts: if all of them failed, something is wrong with the judge and not with the answers
TOLD = 8  # kinds of failures that are told; others are counted with the verdicts


class FirstVerdicts:
    """``take`` every verdict of a process, evaluations' included."""

    def __init__(self, functions: Sequence[str]) -> None:
        """``functions``: that make the reward."""
        self._users = any(name != MATH for name in functions)
        self._judge = f"reward={functions[0]}" if len(functions) == 1 else "rewards"
        self._told: dict[str, str] = {}  # reason -> its line
        self._failed: Counter[str] = Counter()  # of the first ones, by reason
        self._healthy = False  # one of them was none

    def take(self, verifier: str, verdicts: Sequence[Verdict]) -> list[str]:
        """Lines for a person, about failures of a user's function. Raises ``RunFailed`` if the first 64 verdicts all failed."""
        lines = []
        for verdict in verdicts:
            failed = verdict.outcome is Outcome.UNKNOWN and not verdict.reason.endswith(SAID_UNKNOWN)
            if failed and self._users and verdict.reason not in self._told and len(self._told) < TOLD:
                said, log = verdict.reason, ""
                if verdict.complaint:
                    named = verdict.reason.split()[-1] in verdict.complaint  # the exception
                    said = verdict.complaint if named else f"{verdict.reason}: {verdict.complaint}"
                    log = f"; all of it is in logs/{verifier}.log"
                self._told[verdict.reason] = said
                lines.append(f"{self._judge}: {said}{log}; more of these are only counted")
            if not (self._users and verdict.reason == UNREADABLE):  # no function has seen it
                self._count(verdict.reason, failed=failed)
        return lines

    def _count(self, reason: str, *, failed: bool) -> None:
        self._healthy = self._healthy or not failed
        if self._healthy:
            return
        self._failed[reason] += 1
        if self._failed.total() == FIRST:
            kinds = ", ".join(f"{count} × {self._told.get(reason, reason)}" for reason, count in self._failed.most_common(3))
            raise RunFailed(f"{self._judge}: the first {FIRST} verdicts all failed: {kinds}")
