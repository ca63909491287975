"""Who worked when: the lanes of a run's actors, from the journals of its sessions.

A task lasts from the decision ``assign`` (``rescore``, ``train``) to the one event that ends it, so the time in a worker's own
queue counts as work; a lane is idle where its actor had nothing to do. Does not know what the work was for.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fr3e_async.errors import StorageError
from fr3e_async.machine.events import Acked, Answered, Delivered, Lost, Refused, Rescored, Scored, WorkerDown, WorkerUp
from fr3e_async.observe.intervals import Interval, measure, union
from fr3e_async.report.rows import read_rows, text

KINDS = {"Sample": "base", "Branch": "branch", "Score": "verify", "Asked": "evaluate"}
ROLES = ("learner", "generators", "explorers", "verifiers")
PIECES = 6000  # that a session's time is divided into: what lies closer together than one is drawn as one
_ENDS = {kind.__name__ for kind in (Delivered, Rescored, Lost, Scored, Answered)} | {
    "Judged"
}  # events that end their ``task``; the last is an older word for Scored


@dataclass(slots=True)
class Lane:
    """One actor. Times in seconds since the epoch."""

    actor: str
    role: str
    work: dict[str, list[Interval]] = field(default_factory=dict)  # by kind of work
    up: list[Interval] = field(default_factory=list)  # in service

    def add(self, kind: str, start: float, end: float) -> None:
        self.work.setdefault(kind, []).append((start, end))

    @property
    def busy(self) -> list[Interval]:
        """Handing over weights is not work: an engine continues meanwhile."""
        return union(span for kind, spans in self.work.items() if kind != "weights" for span in spans)


@dataclass(slots=True)
class _Session:
    """Reads one journal. What is open at its end ended with it."""

    lanes: dict[str, Lane]
    open: list[tuple[float, int]]  # (time, groups open) where it changes
    tasks: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # task → actor, kind, start
    sent: dict[str, float] = field(default_factory=dict)
    there: dict[str, float] = field(default_factory=dict)  # actor → in service since
    groups: int = 0
    training: float | None = None
    trained: float | None = None  # not exported yet

    def begin(self, now: float) -> None:
        """The learner is there from the first event to the last."""
        self.there["learner"] = now
        self._lane("learner")

    def read(self, now: float, event: dict[str, Any], decisions: list[str]) -> None:
        kind, worker = event["type"], event.get("worker", "")
        if kind in _ENDS and not event.get("left"):  # else rollouts of the task are still being drawn
            self._end(str(event["task"]), now)
        elif kind == WorkerUp.__name__:
            self._lane(worker, event["role"])
            self.there.setdefault(worker, now)
        elif kind == WorkerDown.__name__:
            self._leave(worker, now)
        elif kind in (Acked.__name__, Refused.__name__) and worker in self.sent:
            self._lane(worker).add("weights", self.sent.pop(worker), now)
        elif kind == "Admitted":
            self._count(now, 1)
        elif kind == "Trained" and self.training is not None:
            self._lane("learner").add("train", self.training, now)
            self.training, self.trained = None, now
        elif kind == "Exported":
            self._exported(now)
        for decision in decisions:
            self._decide(now, decision.split(" "))

    def _decide(self, now: float, words: list[str]) -> None:
        match words:
            case ["assign", task, worker, kind, *_]:
                self.tasks[task] = (worker, KINDS.get(kind, kind), now)
            case ["rescore", task, *_]:
                self.tasks[task] = ("learner", "rescore", now)
            case ["train", *_]:
                self.training = now
            case ["send", _, *workers]:
                self.sent.update({worker: now for worker in workers if worker != "alone"})
            case ["release", worker, *_]:
                self._leave(worker, now)
            case ["retire", *_]:
                self._count(now, -1)

    def close(self, now: float) -> None:
        for task in list(self.tasks):
            self._end(task, now)
        if self.training is not None:
            self._lane("learner").add("train", self.training, now)
        for actor in list(self.there):
            self._leave(actor, now)

    def _end(self, task: str, now: float) -> None:
        if task in self.tasks:
            actor, kind, start = self.tasks.pop(task)
            self._lane(actor).add(kind, start, now)

    def _exported(self, now: float) -> None:
        if self.trained is not None:
            self._lane("learner").add("export", self.trained, now)
            self.trained = None
        if self.training is not None:  # the next batch was ready, and waited for the export
            self.training = now

    def _lane(self, actor: str, role: str = "") -> Lane:
        if actor not in self.lanes:
            self.lanes[actor] = Lane(actor, role or ("learner" if actor == "learner" else f"{actor.rpartition('-')[0]}s"))
        return self.lanes[actor]

    def _leave(self, actor: str, now: float) -> None:
        if actor in self.there:
            self._lane(actor).up.append((self.there.pop(actor), now))

    def _count(self, now: float, change: int) -> None:
        self.groups = max(0, self.groups + change)
        self.open.append((now, self.groups))


def read_timeline(run: Path) -> dict[str, Any] | None:
    """All sessions of a run as one object for the page; None if it kept no journal. Raises ``StorageError``.

    Times are seconds since ``start`` (seconds since the epoch). ``lanes[i].work[kind]`` is [start, end, start, end, …].
    """
    lanes: dict[str, Lane] = {}
    open_groups: list[tuple[float, int]] = []
    sessions: list[Interval] = []
    for path in sorted((run / "journal").glob("*.jsonl")):
        session, span = _Session(lanes, open_groups), None
        for line, row in read_rows(path):
            if isinstance(row.get("e", []), list):  # the header, or an event of an earlier version of this package
                continue
            try:
                now = float(row["t"])
                if not math.isfinite(now):
                    raise ValueError(now)
                if span is None:
                    session.begin(now)
                span = (span[0] if span else now, now)
                session.read(now, row["e"], row.get("c", []))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise StorageError(f"{path}:{line} is damaged: it is no event of a journal") from error
        if span is not None:
            session.close(span[1])
            sessions.append(span)
    return _for_page(lanes.values(), sessions, open_groups) if sessions else None


def _for_page(lanes: Iterable[Lane], sessions: list[Interval], open_groups: list[tuple[float, int]]) -> dict[str, Any]:
    start, end = min(s for s, _ in sessions), max(e for _, e in sessions)
    grain = max((end - start) / PIECES, 1e-3)
    order = sorted(lanes, key=lambda lane: (ROLES.index(lane.role) if lane.role in ROLES else len(ROLES), _natural(lane.actor)))
    return {
        "start": start,
        "end": round(end - start, 3),
        "grain": round(grain, 4),
        "sessions": [[round(s - start, 3), round(e - start, 3)] for s, e in sessions],
        "lanes": [_lane_for_page(lane, start, grain) for lane in order],
        "open": _thinned(open_groups, start, grain),
    }


def _lane_for_page(lane: Lane, start: float, grain: float) -> dict[str, Any]:
    busy, up = lane.busy, union(lane.up)
    waits = [b - a for (_, a), (b, _) in pairwise(busy)]
    return {
        "actor": text(lane.actor),
        "role": text(lane.role),
        "busy_s": round(measure(busy), 3),
        "up_s": round(measure([*up, *busy]), 3),
        "wait_s": round(max(waits, default=0.0), 3),  # the longest between two pieces of work
        "up": _flat(up, start),
        "work": {text(kind): _flat(_coarse(spans, grain), start) for kind, spans in lane.work.items()},
    }


def _coarse(spans: Iterable[Interval], grain: float) -> list[Interval]:
    """Join intervals that are less than ``grain`` seconds apart; the result is disjoint."""
    merged: list[Interval] = []
    for start, end in union((start, max(end, start + 1e-6)) for start, end in spans):
        if merged and start - merged[-1][1] < grain:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _flat(spans: Iterable[Interval], start: float) -> list[float]:
    return [round(moment - start, 3) for span in spans for moment in span]


def _thinned(counts: list[tuple[float, int]], start: float, grain: float) -> list[list[float]]:
    """[times, counts]: the last count of each ``grain`` seconds."""
    last = {int((now - start) / grain): (now, count) for now, count in counts}
    return [[round(now - start, 3) for now, _ in last.values()], [count for _, count in last.values()]]


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("-")
    return (head, int(tail)) if tail.isdecimal() else (name, -1)
