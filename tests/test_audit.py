"""The audit: each broken law is told at its line, a sound ledger passes whatever was killed, and the run's other files agree."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from fr3e_async.cli.main import run as fr3e
from fr3e_async.errors import StorageError
from fr3e_async.files.jsonl import to_json
from fr3e_async.store.checkpoints import CheckpointStore
from fr3e_async.store.ledger_audit import LedgerReport, audit
from fr3e_async.store.ledger_log import (
    AdmittedRecord,
    BeginRecord,
    CutRecord,
    EndRecord,
    LedgerLog,
    LedgerRecord,
    LiveRecord,
    SettledRecord,
    TrainedRecord,
    TrainRecord,
    read_ledger_log,
)

G, BOUND = 2, 1  # groups a batch, versions; (1 + 1) · 2 = 4 slots


def begin(session: int = 1, version: int = 0, admitted: int = 0, settled: int = 0, open: Sequence[str] = ()) -> BeginRecord:
    return BeginRecord(session=session, version=version, admitted=admitted, settled=settled, open=tuple(open), time_s=0.5)


def adm(group: str, live: int) -> AdmittedRecord:
    return AdmittedRecord(group=group, live=live)


def train(version: int, groups: str, oldest: int) -> TrainRecord:
    return TrainRecord(version=version, groups=tuple(groups), oldest=oldest)


def cut(version: int, admitted: int, settled: int, open: str) -> CutRecord:
    return CutRecord(version=version, admitted=admitted, settled=settled, open=tuple(open))


def rejected(group: str) -> SettledRecord:
    return SettledRecord(group=group, outcome="rejected_no_spread")


def sound_ledger() -> list[LedgerRecord]:
    """Two batches with a rejection, a cut while the second one is with the learner, and an end."""
    return [
        begin(),  # 1
        adm("a", 0),
        adm("b", 0),
        adm("c", 0),
        adm("d", 0),  # 5: all four slots
        train(1, "ab", 0),
        rejected("c"),
        adm("e", 0),  # 8: again all four
        TrainedRecord(version=1),
        LiveRecord(version=1),  # 10: open are d and e
        adm("f", 1),
        adm("g", 1),
        train(2, "de", 0),  # 13: a version behind, which is the bound
        cut(1, 7, 3, "defg"),
        TrainedRecord(version=2),  # 15
        LiveRecord(version=2),
        SettledRecord(group="f", outcome="failed"),
        cut(2, 7, 6, "g"),
        EndRecord(version=2, reason="finished"),
    ]


def numbered(records: Sequence[LedgerRecord]) -> list[tuple[int, LedgerRecord]]:
    return list(enumerate(records, 1))


def read(path: Path) -> list[LedgerRecord]:
    return [record for _, record in read_ledger_log(path)]


def judged(records: Sequence[LedgerRecord]) -> LedgerReport:
    return audit(numbered(records), groups_per_step=G, max_staleness=BOUND)


def broken(records: Sequence[LedgerRecord]) -> list[tuple[str, int, str]]:
    return [(violation.kind, violation.line, violation.group) for violation in judged(records).violations]


# ---- sound ledgers ----


def test_a_sound_ledger_passes() -> None:
    report = judged(sound_ledger())
    assert report.violations == ()
    assert (report.sessions, report.version, report.admitted, report.open, report.ended) == (1, 2, 7, ("g",), True)
    assert report.counts == {"trained": 4, "rejected_no_spread": 1, "failed": 1}
    assert list(report.outcomes) == ["c", "a", "b", "d", "e", "f"]
    assert (report.void_groups, report.void_batches) == (0, 0)


def test_a_session_goes_back_to_a_cut_and_what_came_after_is_void() -> None:
    killed = [*sound_ledger()[:17], adm("h", 2)]  # f has failed, d and e are trained, h is new: all after the cut in line 14
    again = [
        begin(2, 1, 7, 3, "defg"),
        rejected("d"),
        adm("h", 1),
        train(2, "ef", 0),
        TrainedRecord(version=2),
        LiveRecord(version=2),
        EndRecord(version=2, reason="stopped"),
    ]
    report = judged([*killed, *again])
    assert report.violations == ()
    assert dict(report.outcomes) == {"a": "trained", "b": "trained", "c": "rejected_no_spread", "d": "rejected_no_spread"} | {
        "e": "trained",
        "f": "trained",
    }
    assert (report.sessions, report.admitted, report.open) == (2, 8, ("g", "h"))
    assert report.void_groups == 4  # d, e, f and h
    assert report.void_batches == 1  # d and e
    assert [one.version for one in report.cuts] == [1]


def test_a_session_may_go_back_twice_and_behind_a_cut() -> None:
    records = sound_ledger()[:18]  # the checkpoint of the cut in line 18 never became whole
    records += [
        begin(2, 1, 7, 3, "defg"),
        train(2, "de", 0),
        begin(3, 1, 7, 3, "defg"),
        train(2, "de", 0),
        TrainedRecord(version=2),
    ]
    report = judged([*records, cut(2, 7, 5, "fg")])
    assert report.violations == ()
    assert report.void_batches == 2  # trained in the first session, with the learner in the second
    assert report.abandoned == {2}
    assert [(one.version, one.open) for one in report.cuts] == [(1, tuple("defg")), (2, tuple("fg"))]


def test_a_session_may_begin_afresh() -> None:
    report = judged([*sound_ledger()[:13], *sound_ledger()])
    assert report.violations == ()
    assert (report.admitted, report.void_groups, report.void_batches) == (7, 7, 2)


def test_of_two_cuts_of_a_version_a_session_goes_on_from_either() -> None:
    """A run that is stopped between two batches saves the version that it has saved before."""
    start = [*sound_ledger()[:14], rejected("g"), cut(1, 7, 4, "def")]
    for goes_on, open in ((begin(2, 1, 7, 3, "defg"), "defg"), (begin(2, 1, 7, 4, "def"), "def")):
        report = judged([*start, goes_on])
        assert report.violations == ()
        assert report.open == tuple(open)


def test_an_empty_file_has_no_records() -> None:
    report = judged([])
    assert (report.sessions, report.ended, report.violations) == (0, False, ())


# ---- broken laws: the edit of the sound ledger, and the violation that must follow, alone ----


def at(line: int, *records: LedgerRecord) -> Callable[[list[LedgerRecord]], list[LedgerRecord]]:
    """In place of a line."""
    return lambda s: [*s[: line - 1], *records, *s[line:]]


def before(line: int, *records: LedgerRecord) -> Callable[[list[LedgerRecord]], list[LedgerRecord]]:
    return lambda s: [*s[: line - 1], *records, *s[line - 1 :]]


def upto(line: int, *records: LedgerRecord) -> Callable[[list[LedgerRecord]], list[LedgerRecord]]:
    return lambda s: [*s[:line], *records]


BROKEN: dict[str, tuple[Callable[[list[LedgerRecord]], list[LedgerRecord]], tuple[str, int, str]]] = {
    "the first line is no begin": (lambda s: s[1:5], ("order", 1, "")),
    "a line after the end": (upto(19, rejected("g")), ("order", 20, "")),
    "admitted twice, open": (before(6, adm("a", 0)), ("admitted", 6, "a")),
    "admitted twice, settled": (before(8, adm("c", 0)), ("admitted", 8, "c")),
    "admitted again after continuing": (upto(14, begin(2, 1, 7, 3, "defg"), adm("d", 1)), ("admitted", 16, "d")),
    "admitted at a version that is not live": (at(12, adm("g", 0)), ("live", 12, "g")),
    "settled twice": (before(8, rejected("c")), ("settled", 8, "c")),
    "settled after training": (before(11, rejected("a")), ("settled", 11, "a")),
    "settled and void, and settled before the cut": (
        upto(14, begin(2, 1, 7, 3, "defg"), rejected("c")), ("settled", 16, "c"),
    ),
    "settled with the learner": (before(7, rejected("a")), ("settled", 7, "a")),
    "settled and never admitted": (before(11, rejected("x")), ("settled", 11, "x")),
    "a outcome that is none": (at(17, SettledRecord(group="f", outcome="trained")), ("settled", 17, "f")),
    "trained twice": (upto(16, train(3, "fa", 1)), ("train", 17, "a")),
    "trained after rejection": (upto(16, train(3, "fc", 1)), ("train", 17, "c")),
    "trained and never admitted": (upto(16, train(3, "fx", 1)), ("train", 17, "x")),
    "too small a batch": (upto(16, train(3, "f", 1)), ("train", 17, "")),
    "too large a batch": (upto(12, train(2, "def", 0)), ("train", 13, "")),
    "a group twice in a batch": (upto(16, train(3, "ff", 1)), ("train", 17, "")),
    "a version left out": (upto(16, train(4, "fg", 1)), ("train", 17, "")),
    "a version again": (upto(16, train(2, "fg", 1)), ("train", 17, "")),
    "a batch before the last one is made": (upto(13, train(3, "fg", 1)), ("train", 14, "")),
    "made of no batch": (upto(5, TrainedRecord(version=1)), ("trained", 6, "")),
    "another version made": (upto(14, TrainedRecord(version=3)), ("trained", 15, "")),
    "the word that it was made is missing": (
        lambda s: [*s[:14], LiveRecord(version=1), train(3, "fg", 1)], ("train", 16, ""),
    ),
    "a token too old": (upto(16, train(3, "fg", 0)), ("staleness", 17, "")),
    "a token of the future": (upto(12, train(2, "de", 2)), ("staleness", 13, "")),
    "a token older than its group": (
        upto(16, rejected("f"), rejected("g"), adm("h", 2), adm("i", 2), train(3, "hi", 1)), ("staleness", 21, ""),
    ),
    "a group too old, with young tokens": (upto(12, train(2, "df", 1), TrainedRecord(version=2), LiveRecord(version=2), adm("h", 2), train(3, "eh", 2)), ("staleness", 17, "e")),
    "a slot too many, open": (upto(5, adm("x", 0)), ("slots", 6, "")),
    "a slot too many, with the learner": (upto(8, adm("x", 0)), ("slots", 9, "")),
    "a slot too many, not live": (upto(9, adm("x", 0)), ("slots", 10, "")),
    "live before it is made": (upto(9, LiveRecord(version=2)), ("live", 10, "")),
    "live falls": (before(17, LiveRecord(version=1)), ("live", 17, "")),
    "a cut of another version": (at(14, cut(2, 7, 3, "defg")), ("cut", 14, "")),
    "a cut in another order": (at(14, cut(1, 7, 3, "degf")), ("cut", 14, "")),
    "a cut without those in training": (at(14, cut(1, 7, 5, "fg")), ("cut", 14, "")),
    "a cut that counts an admission too many": (at(14, cut(1, 8, 3, "defg")), ("conservation", 14, "")),
    "a cut that counts a settlement too few": (at(14, cut(1, 7, 2, "defg")), ("conservation", 14, "")),
    "a cut that counts one of each too many": (at(14, cut(1, 8, 4, "defg")), ("conservation", 14, "")),
    "a begin with other counts": (upto(14, begin(2, 1, 6, 3, "defg")), ("begin", 15, "")),
    "a begin that has lost a group": (upto(14, begin(2, 1, 7, 3, "def")), ("begin", 15, "")),
    "a begin in another order": (upto(14, begin(2, 1, 7, 3, "edfg")), ("begin", 15, "")),
    "a begin at no cut": (upto(17, begin(2, 2, 7, 6, "g")), ("begin", 18, "")),
    "a begin at a cut that is void": (upto(18, begin(2, 1, 7, 3, "defg"), begin(3, 2, 7, 6, "g")), ("begin", 20, "")),
    "a fresh begin with a group": (lambda s: [begin(1, 0, 1, 0, "z"), *s[1:4]], ("begin", 1, "")),
    "an end at another version": (at(19, EndRecord(version=3, reason="finished")), ("end", 19, "")),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_law_is_told_at_its_line(name: str) -> None:
    edit, violation = BROKEN[name]
    assert broken(edit(sound_ledger())) == [violation]


def test_a_violation_in_words() -> None:
    (violation,) = judged([*sound_ledger()[:14], begin(2, 1, 7, 2, "degf")]).violations
    assert str(violation) == (
        "line 15, session 2: begin: it is not the cut of version 1: settled 2 instead of 3, open group g instead of f"
    )
    (violation,) = judged([*sound_ledger()[:16], train(3, "fg", 0)]).violations
    assert str(violation) == (
        "line 17, session 1: staleness: a token of version 0 is trained at version 2; flow.max_staleness is 1"
    )


def test_crowded_slots_are_told_once() -> None:
    assert broken([*sound_ledger()[:5], adm("x", 0), adm("y", 0)]) == [("slots", 6, "")]


def test_a_wrong_count_is_told_once() -> None:
    """A begin that does not count what its cut had: every later cut is off by as much."""
    off = [
        *sound_ledger()[:14],
        begin(2, 1, 8, 4, "defg"),
        cut(1, 8, 4, "defg"),
        rejected("d"),
        cut(1, 8, 5, "efg"),
    ]
    assert broken(off) == [("begin", 15, "")]


# ---- random ledgers ----


@dataclass(slots=True)
class Teller:
    """Plays a run as it should be, and kills it now and then."""

    random: random.Random
    groups_per_step: int
    bound: int
    records: list[LedgerRecord] = field(default_factory=list)
    live_at: dict[str, int] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    batch: list[str] = field(default_factory=list)
    unlive: dict[int, int] = field(default_factory=dict)
    version: int = 0
    live: int = 0
    admitted: int = 0
    settled: int = 0
    named: int = 0  # group names; one that is void may be used again, but need not
    cuts: list[CutRecord] = field(default_factory=list)  # whose checkpoints are whole
    session: int = 0

    def tell(self, steps: int, *, end: bool) -> list[LedgerRecord]:
        self.begin()
        for _ in range(steps):
            act = self.random.choice(
                [self.admit] * 4 + [self.settle, self.train, self.train, self.made, self.made, self.publish, self.cut]
            )
            act()
            if self.random.random() < 0.04:
                self.begin()
        if end:
            self.cut()
            self.records.append(EndRecord(version=self.version, reason="stopped"))
        return self.records

    def begin(self) -> None:
        self.session += 1
        cut = self.random.choice(self.cuts[-2:]) if self.cuts else None  # the newest may have been damaged
        self.cuts = self.cuts[: self.cuts.index(cut) + 1] if cut else []
        self.version, self.admitted, self.settled = (cut.version, cut.admitted, cut.settled) if cut else (0, 0, 0)
        self.open, self.batch, self.unlive, self.live = list(cut.open) if cut else [], [], {}, self.version
        self.records.append(begin(self.session, self.version, self.admitted, self.settled, self.open))

    def admit(self) -> None:
        if len(self.open) + sum(self.unlive.values()) < (self.bound + 1) * self.groups_per_step:
            self.named, self.admitted = self.named + 1, self.admitted + 1
            name = f"q{self.named}@0"
            self.live_at[name] = self.live
            self.open.append(name)
            self.records.append(adm(name, self.live))

    def settle(self) -> None:
        if waiting := [group for group in self.open if group not in self.batch]:
            group = self.random.choice(waiting)
            self.open.remove(group)
            self.settled += 1
            self.records.append(SettledRecord(group=group, outcome=self.random.choice(["rejected_no_spread", "failed"])))

    def train(self) -> None:
        if not self.batch and len(self.open) >= self.groups_per_step:
            self.batch = self.open[: self.groups_per_step]
            oldest = self.random.randint(min(self.live_at[group] for group in self.batch), self.version)
            self.records.append(TrainRecord(version=self.version + 1, groups=tuple(self.batch), oldest=oldest))

    def made(self) -> None:
        if self.batch:
            self.version += 1
            self.open = self.open[len(self.batch) :]
            self.settled += len(self.batch)
            self.unlive[self.version] = len(self.batch)
            self.batch = []
            self.records.append(TrainedRecord(version=self.version))

    def publish(self) -> None:
        if self.live < self.version:
            self.live = self.random.randint(self.live + 1, self.version)
            self.unlive = {version: count for version, count in self.unlive.items() if version > self.live}
            self.records.append(LiveRecord(version=self.live))

    def cut(self) -> None:
        made = cut(self.version, self.admitted, self.settled, "")
        made = replace(made, open=tuple(self.open))
        self.records.append(made)
        if self.random.random() < 0.7:
            self.cuts.append(made)


seeds = st.integers(0, 10**6)
sizes = st.tuples(st.integers(1, 3), st.integers(0, 2))  # groups a batch, bound


def told(seed: int, size: tuple[int, int], *, end: bool = True) -> list[LedgerRecord]:
    teller = Teller(random.Random(seed), *size)
    return teller.tell(teller.random.randint(0, 120), end=end)


@given(seeds, sizes, st.booleans())
def test_every_sound_ledger_passes(seed: int, size: tuple[int, int], end: bool) -> None:
    records = told(seed, size, end=end)
    report = audit(numbered(records), groups_per_step=size[0], max_staleness=size[1])
    assert [str(violation) for violation in report.violations] == []
    assert report.admitted == len(report.outcomes) + len(report.open)
    assert report.sessions == sum(isinstance(record, BeginRecord) for record in records)
    assert report.ended == end


def changed(record: LedgerRecord, draw: random.Random) -> list[LedgerRecord]:
    """What one fault may make of a line: nothing, it twice, or another one. All of them must show."""
    match record:
        case BeginRecord():
            other = [replace(record, **{name: getattr(record, name) + 1}) for name in ("version", "admitted", "settled")]
            return [draw.choice([*other, replace(record, open=("nobody@0", *record.open))])]
        case AdmittedRecord():
            return draw.choice([[], [record, record], [replace(record, live=record.live + 1)], [replace(record, group="x@0")]])
        case TrainRecord():
            others = [
                replace(record, version=record.version + 1), replace(record, oldest=record.version),
                replace(record, groups=record.groups[1:]), replace(record, groups=(*record.groups[1:], "nobody@0")),
                replace(record, groups=record.groups + record.groups[:1]),
            ]  # fmt: skip
            return draw.choice([[], [record, record], *([other] for other in others)])
        case TrainedRecord():
            return draw.choice([[], [record, record], [TrainedRecord(version=record.version + 1)]])
        case LiveRecord():
            return [LiveRecord(version=draw.choice([record.version + 1000, record.version - 1 if record.version > 1 else 99]))]
        case SettledRecord():
            return draw.choice([[], [record, record], [replace(record, group="x@0")], [replace(record, outcome="trained")]])
        case CutRecord():
            more = [replace(record, **{name: getattr(record, name) + 1}) for name in ("version", "admitted", "settled")]
            return [draw.choice([*more, replace(record, open=(*record.open, "nobody@0"))])]
        case EndRecord():
            return draw.choice([[record, record], [EndRecord(version=record.version + 1, reason="")]])
    raise AssertionError(record)


@given(seeds, sizes, st.data())
def test_any_single_fault_shows(seed: int, size: tuple[int, int], data: st.DataObject) -> None:
    records = told(seed, size)
    last = max(index for index, record in enumerate(records) if isinstance(record, BeginRecord))
    # What is void later may be wrong unseen if it was merely left out; what survives to the last cut may not.
    index = data.draw(st.integers(last, len(records) - 1))
    faulty = changed(records[index], random.Random(data.draw(seeds)))
    if isinstance(records[index], TrainRecord) and not faulty:
        assume(any(isinstance(record, TrainedRecord) for record in records[index:]))
    if isinstance(records[index], LiveRecord):
        lower = faulty[0].version < records[index].version
        before = [r.version for r in records[last:index] if isinstance(r, LiveRecord | BeginRecord)][-1]
        assume(not lower or faulty[0].version < before)
    report = audit(numbered([*records[:index], *faulty, *records[index + 1 :]]), groups_per_step=size[0], max_staleness=size[1])
    assert report.violations


# ---- the file ----


def written(path: Path, records: Sequence[LedgerRecord]) -> Path:
    """By the writer, a session at a time."""
    ledger_log: LedgerLog | None = None
    for record in records:
        if isinstance(record, BeginRecord):
            if ledger_log is not None:
                ledger_log.close()
            ledger_log = LedgerLog(path)
        assert ledger_log is not None
        ledger_log.write(record)
    if ledger_log is not None:
        ledger_log.close()
        ledger_log.close()
    return path


@given(seeds)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    records = told(seed, (2, 1))
    path = written(tmp_path_factory.mktemp("ledger") / "ledger.jsonl", records)
    assert read_ledger_log(path) == numbered(records)


@given(st.text(st.characters(), max_size=9))
def test_any_name_is_read_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    records = [begin(), adm(name, 0), cut(0, 1, 0, ""), rejected(name)]
    assert read(written(tmp_path_factory.mktemp("ledger") / "ledger.jsonl", records)) == records


def test_the_lines_are_those_of_the_format(tmp_path: Path) -> None:
    path = written(tmp_path / "ledger.jsonl", sound_ledger())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"what": "begin", "session": 1, "version": 0, "admitted": 0, "settled": 0, "open": [], "time_s": 0.5}
    assert lines[1] == {"what": "admitted", "group": "a", "live": 0}
    assert lines[5] == {"what": "train", "version": 1, "groups": ["a", "b"], "oldest": 0}
    assert lines[6] == {"what": "settled", "group": "c", "outcome": "rejected_no_spread"}
    assert lines[8:10] == [{"what": "trained", "version": 1}, {"what": "live", "version": 1}]
    assert lines[13] == {"what": "cut", "version": 1, "admitted": 7, "settled": 3, "open": ["d", "e", "f", "g"]}
    assert lines[18] == {"what": "end", "version": 2, "reason": "finished"}


def test_a_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    ledger_log = LedgerLog(tmp_path / "ledger.jsonl")
    ledger_log.write(adm("a@0", 3))
    assert read(tmp_path / "ledger.jsonl") == [adm("a@0", 3)]
    ledger_log.close()


def test_a_cut_is_durable_and_nothing_else_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[LedgerRecord]] = []
    monkeypatch.setattr("fr3e_async.store.ledger_log.fsync_path", lambda path: synced.append(read(path)))
    written(tmp_path / "ledger.jsonl", sound_ledger())
    assert synced == [sound_ledger()[:14], sound_ledger()[:18]]


@given(st.data())
def test_a_file_that_was_cut_off_anywhere_has_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("ledger") / "ledger.jsonl", sound_ledger())
    whole = path.read_bytes()
    left = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:left])
    lines = whole[: left + 1].count(b"\n")  # a line that lacks nothing but its end is whole
    assert read(path) == sound_ledger()[:lines]
    more = written(path, [begin(2), adm("b", 0)])  # another session continues in the same file
    assert read(more) == [*sound_ledger()[:lines], begin(2), adm("b", 0)]
    assert read_ledger_log(more)[-1][0] == len(more.read_bytes().split(b"\n")) - 1


def damaged(path: Path, lines: Sequence[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StorageError) as error:
        read_ledger_log(path)
    return str(error.value)


def test_half_lines_stand_before_a_begin_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first, second, third = (to_json(record).decode() for record in (begin(), adm("a", 0), begin(2)))
    path.write_text("\n".join([first, second[:9], third[:20], third, second]) + "\n")  # a begin was cut short, too
    assert [(line, type(record)) for line, record in read_ledger_log(path)] == [
        (1, BeginRecord),
        (4, BeginRecord),
        (5, AdmittedRecord),
    ]
    error = damaged(path, [first, second[:9], second])
    assert error == f"{path}:2 is damaged: it is no JSON object, and no session begins after it"
    assert ":2 is damaged" in damaged(path, [first, "", second])
    assert ":2 is damaged" in damaged(path, [first, second[:9], second[:9], second])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"what": "other"}', "no record of a ledger"),
        ('{"version": 1}', "no record of a ledger (Object missing required field `what`)"),
        ('{"what": "live"}', "Object missing required field `version`"),
        ('{"what": "live", "version": "1"}', "Expected `int`, got `str` - at `$.version`"),
        ('{"what": "live", "version": -1}', "Expected `int` >= 0 - at `$.version`"),
        ('{"what": "live", "version": true}', "Expected `int`, got `bool` - at `$.version`"),
        ('{"what": "live", "version": 1, "line": 3}', "unknown field `line`"),
        ('{"what": "train", "version": 1, "oldest": 0, "groups": ["a", 1]}', "Expected `str`, got `int` - at `$.groups[1]`"),
    ],
)
def test_a_line_that_is_no_record_is_damage_even_at_the_end(tmp_path: Path, line: str, says: str) -> None:
    assert says in damaged(tmp_path / "ledger.jsonl", [to_json(begin()).decode(), line])


def test_a_full_disk_is_told() -> None:
    ledger_log = LedgerLog(Path("/dev/full"))
    with pytest.raises(StorageError, match="the disk is full"):
        ledger_log.write(TrainedRecord(version=1))


# ---- the command ----

GROUP_OUTCOMES = {"c": "rejected_no_spread", "a": "trained", "b": "trained", "d": "trained", "e": "trained", "f": "failed"}


def named(records: Sequence[LedgerRecord]) -> list[LedgerRecord]:
    """With group names of epoch 1, and of epoch 0 for a and b."""

    def full(name: str) -> str:
        return f"{name}@{int(name not in 'ab')}"

    changes: list[LedgerRecord] = []
    for record in records:
        said: dict[str, Any] = {}
        if isinstance(record, AdmittedRecord | SettledRecord):
            said["group"] = full(record.group)
        for many in ("groups", "open"):
            if hasattr(record, many):
                said[many] = tuple(map(full, getattr(record, many)))
        changes.append(replace(record, **said))
    return changes


def add_checkpoint(run: Path, step: int, *, consumed: dict[str, list[str]], epoch: int = 1) -> Path:
    store = CheckpointStore(run / "checkpoints")
    folder = store.begin(step)
    stream = {"seed": 0, "epoch": epoch, "consumed": consumed, "prompts": ""}
    (folder / "control.json").write_text(json.dumps({"stream": stream}))
    return store.commit(folder, step)


def write_groups(run: Path, outcomes: dict[str, str]) -> None:
    rows = [{"group": f"{name}@{int(name not in 'ab')}", "outcome": outcome, "tokens": 5} for name, outcome in outcomes.items()]
    (run / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of the sound ledger, with the checkpoint of its last cut; epoch 0 is wholly consumed by then."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"flow:\n  groups_per_step: {G}\n  max_staleness: {BOUND}\nlearner:\n  lr: 1e-6\n")
    written(folder / "ledger.jsonl", named(sound_ledger()))
    write_groups(folder, GROUP_OUTCOMES)
    add_checkpoint(folder, 2, consumed={"1": ["c", "d", "e", "f"]})
    return folder


def audited(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = fr3e(["audit", str(run)])
    return code, capsys.readouterr().out.splitlines()


def test_a_sound_run_passes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = audited(run, capsys)
    assert code == 0
    assert [re.split(" {2,}", line) for line in lines] == [
        ["sessions", "1"],
        ["version", "2"],
        ["admitted", "7"],
        ["trained", "4"],
        ["failed", "1"],
        ["rejected_no_spread", "1"],
        ["open", "1"],
        ["thrown away", "0 groups, 0 batches, by sessions that went back"],
        ["checkpoint", "step-00000002"],
        ["end", "yes"],
        ["PASS"],
    ]


def failure(run: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    code, lines = audited(run, capsys)
    assert code == 1
    assert lines[-1].startswith("FAIL: ")
    return lines[next(number for number, line in enumerate(lines, 1) if line.startswith("end ")) : -1]


def test_a_broken_law_fails_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger_log = LedgerLog(run / "ledger.jsonl")
    ledger_log.write(SettledRecord(group="g@1", outcome="rejected_no_spread"))
    ledger_log.close()
    assert failure(run, capsys)[0] == "line 20, session 1: order: 'settled' stands outside of a session"


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ({**GROUP_OUTCOMES, "g": "trained"}, "groups.jsonl: group g@1 is trained; it is not settled in the ledger"),
        ({**GROUP_OUTCOMES, "d": "rejected_x"}, "groups.jsonl: group d@1 is rejected_x; it is trained in the ledger"),
        ({k: v for k, v in GROUP_OUTCOMES.items() if k != "f"}, "groups.jsonl: group f@1 has no row; it is failed in the ledger"),
    ],
)
def test_rows_that_are_not_the_ledgers_fail(run: Path, outcomes: dict, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(run, outcomes)
    assert failure(run, capsys) == [says]


def test_a_row_twice_fails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(run / "groups.jsonl", "a") as file:
        file.write('{"group": "f@1", "outcome": "failed"}\n')
    assert failure(run, capsys) == ["groups.jsonl: group f@1 has 2 rows"]


KILLED = [*sound_ledger()[:14], TrainedRecord(version=2), rejected("f")]  # after the cut of version 1, d, e and f were settled
SETTLED = {"c": "rejected_no_spread", "a": "trained", "b": "trained"}


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (SETTLED, 0),  # no row after the cut arrived
        ({**SETTLED, "d": "trained", "e": "trained", "f": "rejected_no_spread"}, 0),
        ({**SETTLED, "g": "rejected_no_spread"}, 0),  # a row whose line in the ledger did not arrive
        ({**SETTLED, "d": "rejected_no_spread"}, 1),  # another outcome is never well
        ({**SETTLED, "x": "trained"}, 1),  # the ledger knows no such group
        ({"a": "trained", "b": "trained"}, 1),  # before the cut
    ],
)
def test_a_killed_run_may_lack_what_came_after_its_last_cut(
    run: Path, outcomes: dict, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "ledger.jsonl").unlink()
    written(run / "ledger.jsonl", named(KILLED))
    with open(run / "ledger.jsonl", "a") as file:
        file.write('{"what": "set')
    write_groups(run, outcomes)
    with open(run / "groups.jsonl", "a") as file:
        file.write('{"group": "f@')
    (run / "checkpoints" / "step-00000002").rename(run / "elsewhere")
    (run / "checkpoints" / "latest").unlink()
    found, lines = audited(run, capsys)
    assert found == code
    assert ["end", "no: the last session was killed, or is still going"] in [line.split(None, 1) for line in lines]
    assert ["checkpoint", "none"] in [line.split(None, 1) for line in lines]


def test_a_damaged_row_is_bad_input(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / "groups.jsonl").read_text()
    for broken, why in (("{" + text, "JSON object"), ('{"group": "a"}\n' + text, "row of a settled group")):
        (run / "groups.jsonl").write_text(broken)
        assert fr3e(["audit", str(run)]) == 2
        assert capsys.readouterr().err == f"error: {run}/groups.jsonl:1 is damaged: it is no {why}\n"


@pytest.mark.parametrize(
    ("consumed", "epoch", "says"),
    [
        ({"1": ["c", "d", "e"]}, 1, ["group f@1 is settled in the ledger and its prompt is not consumed"]),
        ({"1": ["c", "d", "e", "f", "g"]}, 1, ["the prompt of g@1 is consumed, and the group is not settled in the ledger"]),
        ({"0": ["a"], "1": ["c", "d", "e", "f"]}, 0, ["group b@0 is settled in the ledger and its prompt is not consumed"]),
        ({"0": ["a", "b"], "1": ["c", "d", "e", "f"]}, 0, []),
    ],
)
def test_a_checkpoint_has_consumed_what_the_ledger_settled(
    run: Path, consumed: dict, epoch: int, says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add_checkpoint(run, 2, consumed=consumed, epoch=epoch)
    if not says:
        assert audited(run, capsys)[0] == 0
    else:
        assert failure(run, capsys) == [f"step-00000002: {text}" for text in says]


def test_a_checkpoint_without_its_cut_fails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_checkpoint(run, 3, consumed={})
    assert failure(run, capsys) == ["step-00000003: the ledger has no cut of version 3"]


def test_a_checkpoint_of_another_form_fails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(run / "checkpoints")
    folder = store.begin(2)
    (folder / "control.json").write_text('{"stream": []}')
    store.commit(folder, 2)
    (problem,) = failure(run, capsys)
    assert "control.json is not readable" in problem


def test_damaged_checkpoints_fail(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000002" / "control.json").write_text("")
    (problem,) = failure(run, capsys)
    assert "none of the checkpoints" in problem


def go_back(run: Path, goes_on: BeginRecord) -> None:
    """The run resumes from an earlier place and is killed before it saves again; the later checkpoint is still there."""
    (run / "ledger.jsonl").unlink()
    written(run / "ledger.jsonl", named([*sound_ledger()[:18], goes_on]))
    write_groups(run, SETTLED if goes_on.version else {})


def test_a_checkpoint_that_the_run_went_back_behind_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_checkpoint(run, 1, consumed={"1": ["c"]})
    add_checkpoint(run, 2, consumed={"1": ["c", "d", "e", "f"]})  # a session found it damaged
    go_back(run, begin(2, 1, 7, 3, "defg"))
    code, lines = audited(run, capsys)
    assert (code, lines[-1]) == (0, "PASS")
    assert ["checkpoint", "step-00000001"] in [line.split(None, 1) for line in lines]


def test_a_version_that_is_made_again_has_its_own_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run went back behind version 2, made it again of the same groups but without f, and saved it."""
    (run / "ledger.jsonl").unlink()
    again = [begin(2, 1, 7, 3, "defg"), train(2, "de", 0), TrainedRecord(version=2), cut(2, 7, 5, "fg")]
    written(run / "ledger.jsonl", named([*sound_ledger()[:18], *again]))
    write_groups(run, {**SETTLED, "d": "trained", "e": "trained"})
    add_checkpoint(run, 1, consumed={"1": ["c"]})
    add_checkpoint(run, 2, consumed={"1": ["c", "d", "e", "f"]})
    assert failure(run, capsys) == ["step-00000002: the prompt of f@1 is consumed, and the group is not settled in the ledger"]
    add_checkpoint(run, 2, consumed={"1": ["c", "d", "e"]})
    assert audited(run, capsys)[0] == 0


def test_a_fresh_begin_beside_a_checkpoint_fails(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_back(run, begin(2))
    assert failure(run, capsys) == ["step-00000002: the ledger has no cut of version 2"]


def test_many_violations_are_not_all_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger_log = LedgerLog(run / "ledger.jsonl")
    for number in range(60):
        ledger_log.write(SettledRecord(group=f"x{number}@1", outcome="rejected_no_spread"))
    ledger_log.close()
    lines = failure(run, capsys)
    assert len(lines) == 51
    assert lines[-1] == "… and 11 more"


def test_bad_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, says in ((tmp_path / "nowhere", "is no folder"), (tmp_path, "it has no ledger.jsonl")):
        assert fr3e(["audit", str(folder)]) == 2
        assert says in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    (run / "config.yaml").write_text("flow: 3")
    assert fr3e(["audit", str(run)]) == 2
    assert "config.yaml is not readable" in capsys.readouterr().err
    assert fr3e(["audit"]) == 2
    assert "see fr3e audit --help" in capsys.readouterr().err


def test_the_command_needs_no_heavy_library(run: Path) -> None:
    code = "import sys\nfrom fr3e_async.cli.main import run\nassert run(['audit', *sys.argv[1:]]) == 0\nprint([n for n in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["PASS", "[]"]
