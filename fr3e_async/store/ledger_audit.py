"""Plays the records of ``ledger.jsonl`` again: what survives the roll-backs, and every law that a record breaks. Pure.

    surviving history = what was written, without whatever stands between a cut and a ``begin`` that resumes from it

The laws are those of ``machine/ledger.py``; this module shares no code with it, so that a defect there shows here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fr3e_async.store.ledger_log import (
    AdmittedRecord,
    BeginRecord,
    CutRecord,
    EndRecord,
    LedgerRecord,
    LiveRecord,
    SettledRecord,
    TrainedRecord,
    TrainRecord,
    what,
)

TRAINED = "trained"
GROUP_OUTCOMES = ("rejected_", "failed")  # what the outcome of a group that was not trained begins with


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A law that a line breaks. *Example*: ``line 9, session 2: settled: group q3@0 was settled before, as trained``."""

    kind: str
    text: str
    group: str = ""  # empty: it is not about one group
    session: int
    line: int

    def __str__(self) -> str:
        return f"line {self.line}, session {self.session}: {self.kind}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPoint:
    """Where the surviving history may be rolled back to."""

    version: int
    admitted: int  # the first so many admissions
    settled: int  # the first so many settlements
    open: tuple[str, ...]  # in admission order
    stated: CutRecord  # what the record said


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """The run's state at the end of the log, over all its sessions, and every broken law."""

    sessions: int
    version: int
    admitted: int  # groups of the surviving history
    outcomes: Mapping[str, str]  # group → outcome, in the order of settlement: the prompts that are consumed
    open: tuple[str, ...]  # groups without an outcome, in admission order
    cuts: tuple[CutPoint, ...]  # of the surviving history
    abandoned: frozenset[int]  # versions of cuts that a session went back behind: their checkpoints may still lie there
    void_groups: int  # groups whose admission or outcome was made void
    void_batches: int  # batches given to the learner for nothing
    ended: bool  # the last session said its end
    violations: tuple[Violation, ...]

    @property
    def counts(self) -> Counter[str]:
        """Count the settled groups by outcome."""
        return Counter(self.outcomes.values())

    @property
    def settled_at_last_cut(self) -> int:
        return self.cuts[-1].settled if self.cuts else 0


def audit(records: Sequence[tuple[int, LedgerRecord]], *, groups_per_step: int, max_staleness: int) -> LedgerReport:
    """Play the records, each with its line, and check each of them: a violation for each law that is broken, at the line that breaks it.

    After a violation the record is believed as far as it can be, so that one fault is told once. The replay's own counts
    balance by construction (an event that would unbalance them is a violation), so conservation is checked where records
    state counts: at each begin and cut.
    """
    replay = _Replay(groups_per_step=groups_per_step, max_staleness=max_staleness)
    for line, record in records:
        replay.take(line, record)
    return replay.report()


@dataclass(slots=True, kw_only=True)
class _Replay:
    """Rebuilds a run's state from its ledger records, and checks each record against it."""

    groups_per_step: int
    max_staleness: int
    admitted: dict[str, int | None] = field(default_factory=dict)  # group → version live at its admission, if known; in order
    outcomes: dict[str, str] = field(default_factory=dict)  # in order
    open: list[str] = field(default_factory=list)  # in admission order; those with the learner are among them
    batch: TrainRecord | None = None  # with the learner
    unlive: dict[int, int] = field(default_factory=dict)  # version → groups whose slots it will free
    version: int = 0
    live: int = 0
    cuts: list[CutPoint] = field(default_factory=list)
    abandoned: set[int] = field(default_factory=set)
    sessions: int = 0
    void_groups: int = 0
    void_batches: int = 0
    violations: list[Violation] = field(default_factory=list)
    _session: int = 0
    _line: int = 0
    _running: bool = False  # between begin and end
    _crowded: bool = False  # too many slots are held; reported once
    _gap: tuple[int, int] = (0, 0)  # how far the recorded counts were off when last reported

    def take(self, line: int, record: LedgerRecord) -> None:
        self._line = line
        if not self._running and not isinstance(record, BeginRecord):
            self._break("order", f"{what(type(record))!r} stands outside of a session")
            self._running = True  # reported once
        match record:
            case BeginRecord():
                self._begin(record)
            case AdmittedRecord():
                self._admit(record)
            case TrainRecord():
                self._train(record)
            case TrainedRecord():
                self._trained(record)
            case LiveRecord():
                self._go_live(record)
            case SettledRecord():
                self._settle(record)
            case CutRecord():
                self._cut(record)
            case EndRecord():
                self._end(record)

    def report(self) -> LedgerReport:
        return LedgerReport(
            sessions=self.sessions,
            version=self.version,
            admitted=len(self.admitted),
            outcomes=self.outcomes,
            open=tuple(self.open),
            cuts=tuple(self.cuts),
            abandoned=frozenset(self.abandoned),
            void_groups=self.void_groups,
            void_batches=self.void_batches,
            ended=bool(self.sessions) and not self._running,
            violations=tuple(self.violations),
        )

    # ---- sessions ----

    def _begin(self, record: BeginRecord) -> None:
        self._session, self._running, self.sessions = record.session, True, self.sessions + 1
        stated = (record.admitted, record.settled, record.open)
        there = [cut for cut in reversed(self.cuts) if cut.version == record.version]
        exact = [cut for cut in there for its in (cut, cut.stated) if stated == (its.admitted, its.settled, its.open)]
        if exact:
            self._roll_back(exact[0])
        elif record.version == 0 and stated == (0, 0, ()):
            self._roll_back(None)
        else:
            self._begin_again(record, there[0] if there else None)
        self._gap = (record.admitted - len(self.admitted), record.settled - len(self.outcomes))
        self._check_slots()

    def _begin_again(self, record: BeginRecord, nearest: CutPoint | None) -> None:
        """Take over the state of a ``begin`` that fits no cut, so that one broken law does not cause further reports."""
        if nearest is None:
            earlier = [cut for cut in reversed(self.cuts) if cut.version < record.version]
            self._break("begin", f"it resumes from version {record.version}, of which there is no cut")
            self._roll_back(earlier[0] if earlier else None)
        else:
            self._break("begin", f"it is not the cut of version {record.version}: {_differences(record, nearest)}")
            self._roll_back(nearest)
        self.version = self.live = record.version
        self.open = [group for group in record.open if group not in self.outcomes]
        there = {*self.open, *self.outcomes}
        self.admitted = {group: live for group, live in self.admitted.items() if group in there}
        self.admitted |= {group: None for group in self.open if group not in self.admitted}

    def _roll_back(self, cut: CutPoint | None) -> None:
        """Return to an earlier cut; None: to the start of the run, which needs no checkpoint."""
        admitted, settled = (cut.admitted, cut.settled) if cut else (0, 0)
        self.void_groups += len({*list(self.admitted)[admitted:], *list(self.outcomes)[settled:]})
        kept = self.cuts[: self.cuts.index(cut) + 1] if cut else []
        gone = {later.version for later in self.cuts[len(kept) :]}
        self.abandoned = self.abandoned | gone if cut else set()  # a fresh start means that no checkpoint was there
        self.cuts = kept
        version = cut.version if cut else 0
        self.void_batches += max(self.version - version, 0) + (self.batch is not None)
        self.admitted, self.outcomes = _first(self.admitted, admitted), _first(self.outcomes, settled)
        self.open = list(cut.open) if cut else []
        self.version = self.live = version
        self.batch, self.unlive = None, {}

    def _cut(self, record: CutRecord) -> None:
        point = CutPoint(
            version=self.version, admitted=len(self.admitted), settled=len(self.outcomes), open=tuple(self.open), stated=record
        )
        gap = (record.admitted - point.admitted, record.settled - point.settled)
        if record.version != self.version:
            self._break("cut", f"it is of version {record.version}, the learner's is {self.version}")
        elif record.open != point.open:
            self._break("cut", f"its open groups are not those of the history: {_differences(record, point)}")
        elif gap not in ((0, 0), self._gap):
            self._break("conservation", f"it does not count what the history has: {_differences(record, point)}")
        self._gap = gap
        self.cuts.append(point)

    def _end(self, record: EndRecord) -> None:
        if record.version != self.version:
            self._break("end", f"it is at version {record.version}, the learner's is {self.version}")
        self._running = False

    # ---- groups ----

    def _admit(self, record: AdmittedRecord) -> None:
        group = record.group
        if group in self.admitted:
            self._break("admitted", f"group {group} was admitted before", group)
            return
        if record.live != self.live:
            self._break("live", f"group {group} is admitted at version {record.live}, {self.live} is live", group)
        self.admitted[group] = record.live
        self.open.append(group)
        self._check_slots()

    def _settle(self, record: SettledRecord) -> None:
        group = record.group
        if not record.outcome.startswith(GROUP_OUTCOMES):
            self._break("settled", f"group {group} has the outcome {record.outcome!r}, which only a trained batch gives", group)
        if self.batch is not None and group in self.batch.groups:
            self._break("settled", f"group {group} is with the learner and cannot be {record.outcome}", group)
        elif problem := self._not_open(group):
            self._break("settled", problem, group)
        else:
            self._close(group, record.outcome)

    def _close(self, group: str, outcome: str) -> None:
        self.open.remove(group)
        self.outcomes[group] = outcome

    def _not_open(self, group: str) -> str:
        if group in self.outcomes:
            return f"group {group} was settled before, as {self.outcomes[group]}"
        return "" if group in self.admitted else f"group {group} was never admitted"

    # ---- versions ----

    def _train(self, record: TrainRecord) -> None:
        if self.batch is not None:
            self._break("train", f"a batch for version {record.version} before version {self.batch.version} is made")
            if record.version != self.batch.version + 1:
                return
            self._make(self.batch.version)  # what is missing is the record that the version was made
        if record.version != self.version + 1:
            self._break("train", f"a batch for version {record.version} after version {self.version}")
        if len(record.groups) != self.groups_per_step or len(set(record.groups)) != len(record.groups):
            self._break("train", f"a batch of {len(set(record.groups))} groups; flow.groups_per_step is {self.groups_per_step}")
        for group in dict.fromkeys(record.groups):
            if problem := self._not_open(group):
                self._break("train", problem, group)
        self._check_ages(record)
        self.batch = record

    def _check_ages(self, record: TrainRecord) -> None:
        bound = f"flow.max_staleness is {self.max_staleness}"
        born = {group: live for group in self.open if group in record.groups and (live := self.admitted[group]) is not None}
        if record.oldest > self.version:
            self._break("staleness", f"its tokens are of version {record.oldest}, the learner is at {self.version}")
        elif self.version - record.oldest > self.max_staleness:
            self._break("staleness", f"a token of version {record.oldest} is trained at version {self.version}; {bound}")
        elif len(born) == len(record.groups) and record.oldest < min(born.values(), default=0):
            self._break("staleness", f"a token of version {record.oldest}, but its groups were admitted at {min(born.values())}")
        for group, live in born.items():
            if self.version - live > self.max_staleness:
                self._break(
                    "staleness", f"group {group}, admitted at {live}, is trained at version {self.version}; {bound}", group
                )

    def _trained(self, record: TrainedRecord) -> None:
        if self.batch is None:
            self._break("trained", f"version {record.version} is made of no batch")
            self.version = max(self.version, record.version)
            return
        expected = (self.batch.version, self.version + 1)  # they differ if the batch was already reported as wrong
        if record.version not in expected:
            self._break("trained", f"version {record.version} is made of the batch for version {self.batch.version}")
        self._make(record.version if record.version in expected else self.batch.version)

    def _make(self, version: int) -> None:
        groups = [group for group in dict.fromkeys(self.batch.groups if self.batch else ()) if group in self.open]
        for group in groups:
            self._close(group, TRAINED)
        self.version, self.batch = version, None
        self.unlive[version] = len(groups)

    def _go_live(self, record: LiveRecord) -> None:
        if not self.live <= record.version <= self.version:
            self._break("live", f"version {record.version} is live; {self.live} was, and the learner's is {self.version}")
        self.live = record.version
        self.unlive = {version: count for version, count in self.unlive.items() if version > self.live}

    # ---- slots ----

    @property
    def _capacity(self) -> int:
        return (self.max_staleness + 1) * self.groups_per_step

    def _slots(self) -> int:
        return len(self.open) + sum(self.unlive.values())

    def _check_slots(self) -> None:
        """Only an admission and a begin can take slots; training keeps them, and all else frees some."""
        crowded = self._slots() > self._capacity
        if crowded and not self._crowded:
            self._break("slots", f"{self._slots()} slots are held of {self._capacity}")
        self._crowded = crowded

    def _break(self, kind: str, text: str, group: str = "") -> None:
        self.violations.append(Violation(kind=kind, text=text, group=group, session=self._session, line=self._line))


def _differences(record: BeginRecord | CutRecord, cut: CutPoint) -> str:
    """Describe how two states differ: the counts, and the first open group that is not the same."""
    said = []
    for name in ("admitted", "settled"):
        ours, theirs = getattr(record, name), getattr(cut, name)
        if ours != theirs:
            said.append(f"{name} {ours} instead of {theirs}")
    if record.open != cut.open:
        pairs = zip([*record.open, "none"], [*cut.open, "none"], strict=False)
        said += next(([f"open group {ours} instead of {theirs}"] for ours, theirs in pairs if ours != theirs), [])
    return ", ".join(said)


def _first(mapping: dict[str, Any], count: int) -> dict[str, Any]:
    return dict(list(mapping.items())[:count])
