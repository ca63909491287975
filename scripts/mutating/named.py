"""Faults that were once made by hand and lived through all tests. Each must die, wherever a run is put together."""

from __future__ import annotations

from dataclasses import dataclass

from mutating.operators import Mutation, MutationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """``before`` stands once in the file, or the fault has to be written again."""

    what: str
    file: str
    before: str
    after: str

    def mutation(self, text: str) -> Mutation:
        """Raises ``MutationError`` if the text does not stand in the file exactly once."""
        if text.count(self.before) != 1:
            raise MutationError(
                f"{self.file}: {self.before!r} ({self.what}) stands there {text.count(self.before)} times instead of once"
            )
        start = text.index(self.before)
        line = text.count("\n", 0, start) + 1
        lines = (line, line + self.before.count("\n"))
        return Mutation(
            file=self.file, function=self.what, operator="named", before=self.before, after=self.after, nth=1,
            start=len(text[:start].encode()), lines=lines,
        )  # fmt: skip


NAMED = (
    Named(
        what="a resumed run begins its data again",
        file="fr3e_async/run/session.py",
        before="state=resumed.stream if resumed else None",
        after="state=None",
    ),
    Named(
        what="the weights of a mixture are dropped",
        file="fr3e_async/run/session.py",
        before="                parts=self.datasets.parts,\n",
        after="",
    ),
    Named(
        what="the largest age is never taken down",
        file="fr3e_async/control/progress.py",
        before='self.staleness_max = max(self.staleness_max, int(report.metrics.get("lag/versions_max", 0)))',
        after="pass",
    ),
    Named(
        what="the lower bound of the loss is that of the upper one",
        file="fr3e_async/algorithm/losses.py",
        before="ratio_T.clamp(1 - config.clip_low,",
        after="ratio_T.clamp(1 - config.clip_high,",
    ),
    Named(
        what="what the lower bound stops is counted by the upper one",
        file="fr3e_async/algorithm/losses.py",
        before="(ratio_T < 1 - config.clip_low) & (",
        after="(ratio_T < 1 - config.clip_high) & (",
    ),
    Named(
        what="the mean length is one of groups",
        file="fr3e_async/machine/tally.py",
        before='"rollout/length_tokens": (',
        after='"rollout/length_tokens": (s["generated"], s["groups"]) if s else (',
    ),
    Named(
        what="tokens of a completion without an advantage are useful",
        file="fr3e_async/machine/group.py",
        before="return length if advantage[0].value else 0",
        after="return length",
    ),
    Named(
        what="tokens of a span without an advantage are useful",
        file="fr3e_async/machine/group.py",
        before="in span_lengths(advantage, length) if span.value)",
        after="in span_lengths(advantage, length))",
    ),
    Named(
        what="a rollout is taken a second time",
        file="fr3e_async/machine/group.py",
        before="rollout is None or rollout.status is not Status.ISSUED or",
        after="rollout is None or",
    ),
    Named(
        what="a checkpoint is named before it is durable",
        file="fr3e_async/store/checkpoints.py",
        before="fsync_tree(folder)\n",
        after="pass\n",
    ),
    Named(
        what="latest names a checkpoint that is not there yet",
        file="fr3e_async/store/checkpoints.py",
        before="""            os.replace(folder, final)
            fsync_path(self.root)
            with self._pointers:
                write_atomically(self.root / POINTER, final.name + "\\n")
""",
        after="""            with self._pointers:
                write_atomically(self.root / POINTER, final.name + "\\n")
            os.replace(folder, final)
            fsync_path(self.root)
            with self._pointers:
""",
    ),
)
