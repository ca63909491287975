"""Service times of a finished run, from its journal. Least squares on sums that the journal has; no search.

**Engines.** A task that runs from s to e, whose longest rollout has L tokens, sees L decode steps. A step takes a + b·n, so

    e - s = task + a · L + b · (tokens that the engine made from s to e) + c · (context that it prefilled then) + pauses

because Σ n over steps is the number of tokens made. That is linear in task, a, b and c. When each rollout of a task ended
is not recorded; it is taken that the task continued evenly, so that a rollout of l tokens ended at s + (e - s) · l / L.

**Shared cores.** With k threads at work on c cores everyone runs at min(1, c / k). The journal says who was at work when, so
wall time is turned into work time first (``work_time``), and all is fitted in that.

**Learner.** fixed + token · (tokens of the batch); token alone where a fixed part explains little more. **Verifier.** task + answer · (answers ahead of and in the task) / workers.
A verdict that needs no process (plain integers) shows as an answer that takes no time. What this leaves of each call is kept,
for a batch waits for its slowest verdict.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fr3e_async.errors import StorageError
from fr3e_async.files.durable import reading
from fr3e_async.machine.dispatch import VERIFIERS
from fr3e_async.simulate.recording import Batch, Recording, Span
from fr3e_async.simulate.service import EngineTimes, LearnerTimes, Service, SystemModel, VerifierTimes, WeightTimes
from fr3e_async.simulate.work_time import Array, Ramps, Staircase, WorkTime, robust
from fr3e_async.simulate.workload import MeasuredWorkload

MOST_CASES = 4096  # groups of a run that are kept to draw from
MOST_SAMPLES = 512  # calls to verifiers that are kept to draw from
ALL_PARTS = 5  # coefficients of an engine's task
BETTER = 0.7  # of its error that a fixed part must leave of a fit without one, to be believed
ROUNDS = 2  # that the step counter is made better


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """``errors``: median relative error of the durations of tasks or batches, by role."""

    model: SystemModel
    errors: dict[str, float]
    rows: dict[str, int]  # durations that were fitted

    def render(self) -> str:
        s = self.model.service
        rows = [
            ("engine", f"step {1e3 * s.engine.step_s:.3g} ms + {1e6 * s.engine.request_s:.3g} µs a request, prefill "
             f"{1e6 * s.engine.prefill_s:.3g} µs a token, task {1e3 * s.engine.task_s:.3g} ms"),
            ("verifier", f"answer {1e3 * s.verifier.answer_s:.3g} ms, task {1e3 * s.verifier.task_s:.3g} ms"),
            ("learner", f"batch {s.learner.fixed_s:.3g} s + {1e6 * s.learner.token_s:.3g} µs a token of one rank, export "
             f"{s.learner.export_s:.3g} s"),
            ("weights", f"fetch {s.weights.fetch_s:.3g} s, pause {s.weights.pause_s:.3g} s"),
        ]  # fmt: skip
        lines = [f"service times of {self.model.source}, in seconds of work"]
        lines += [
            f"  {name:<10}{text}"
            + (f"; off by {100 * self.errors[name]:.0f} % (median of {self.rows[name]})" if name in self.errors else "")
            for name, text in rows
        ]
        return "\n".join(lines)


def calibrate(recording: Recording, *, source: str, cores: float = 0, pause_s: float | None = None) -> Fit:
    """``cores`` of the one machine that all shared, or 0. ``pause_s``: of an engine for new weights, where it was measured.

    Raises ``StorageError``: too little was recorded.
    """
    verifier, *_ = _verifiers(recording, WorkTime([], 0))
    clock = WorkTime(_at_work(recording, verifier), cores)
    verifier, verifier_error, verifier_rows = _verifiers(recording, clock)
    engine, pause, engine_error, engine_rows = _engines(recording, clock, pause_s)
    learner, learner_error = _learner(recording, clock)
    handed = [acked - sent for _, sent, acked in recording.loads]
    weights = WeightTimes(fetch_s=max(0.0, float(np.median(handed)) - pause) if handed else 0.0, pause_s=pause)
    if not recording.cases:
        raise StorageError(f"{source}: no prompt group was settled in this session")
    workload = MeasuredWorkload(recording.cases[-MOST_CASES:])
    service = Service(engine=engine, verifier=verifier, learner=learner, weights=weights)
    return Fit(
        model=SystemModel(service=service, workload=workload, source=source),
        errors={"engine": engine_error, "verifier": verifier_error, "learner": learner_error},
        rows={"engine": engine_rows, "verifier": verifier_rows, "learner": len(_whole_batches(recording))},
    )


def pause_of(run: Path) -> float | None:
    """Mean pause that the engines themselves measured, of metrics.jsonl; None without such numbers."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return None
    with reading(path):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [row["time/pause_s"] for row in rows if "time/pause_s" in row]
    return float(np.mean(found)) if found else None


def _at_work(recording: Recording, verifier: VerifierTimes) -> Iterator[tuple[float, float, float]]:
    """(start, end, threads) of what used the processor: engines with a task, verdicts, the learner's ranks."""
    config = recording.config
    for worker, spans in _by_worker(recording).items():
        if recording.roles.get(worker) == VERIFIERS:
            for span in spans:  # a call may wait for long: what it needs is spread over its time
                yield span.start, span.end, min(verifier.answer_s * span.answers / (span.end - span.start), 1.0)
            continue
        level, since = 0, 0.0
        for time, change in sorted((t, d) for s in spans for t, d in ((s.start, 1), (s.end, -1))):
            if level > 0 and time > since:
                yield since, time, config.engine.threads
            level, since = level + change, time
    for batch in _whole_batches(recording):
        yield batch.start, batch.exported or batch.end, config.learner.ranks * config.learner.threads


def _by_worker(recording: Recording) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for span in recording.spans:
        if span.end > span.start:
            found[span.worker].append(span)
    return found


# ---- engines ----


def _engines(recording: Recording, clock: WorkTime, pause_s: float | None) -> tuple[EngineTimes, float, float, int]:
    """Fit engine times to the recorded tasks. Returns (times, seconds of an update's pause, error of the fit, rows used)."""
    parts = [
        _engine_rows(recording, worker, spans, clock)
        for worker, spans in _by_worker(recording).items()
        if recording.roles.get(worker) != VERIFIERS
    ]
    parts = [part for part in parts if len(part)]
    if not parts or sum(map(len, parts)) < 2 * ALL_PARTS:
        raise StorageError("too few tasks of engines were recorded to measure them")
    table = np.concatenate(parts)
    values, columns = table[:, 0], table[:, 1:]
    if pause_s is not None:
        values, columns = np.maximum(values - pause_s * columns[:, -1], 1e-6), columns[:, :-1]
    found, error = robust(columns, values)
    task, step, request, prefill, *pause = (float(x) for x in found)
    times = EngineTimes(step_s=step, request_s=request, prefill_s=prefill, task_s=task)
    return times, pause[0] if pause_s is None else pause_s, error, len(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What one engine did, as vectors over its tasks, or over their rollouts (``of``: the task of each)."""

    starts: Array  # of tasks, work seconds
    ends: Array
    longest: Array  # tokens of the longest rollout
    of: NDArray[np.int64]
    lengths: Array  # tokens
    fresh: Array  # context tokens that the prefix cache did not have
    acked: Array  # when new weights were acknowledged


def _engine_tables(rollouts: Rollouts, *, clear_cache: bool) -> Array:
    """A row for each task: its duration, and what each coefficient of the module's formula is multiplied with.

    First as if each task continued evenly, then by the steps that follow from this: dS/dt = 1 / (a + b · n).
    """
    table, stops = _table(rollouts, steps=lambda times: np.asarray(times, dtype=np.float64), clear_cache=clear_cache)
    for _ in range(ROUNDS):
        found, _ = robust(table[:, 1:], table[:, 0])
        steps = _step_counter(rollouts, stops, step_s=float(found[1]), request_s=float(found[2]))
        table, stops = _table(rollouts, steps=steps, clear_cache=clear_cache)
    return table


def _step_counter(rollouts: Rollouts, stops: Array, *, step_s: float, request_s: float) -> Callable[[ArrayLike], Array]:
    """Decode steps made until a moment. Only ratios of its differences are used, so it may run on while nothing does."""
    times = np.concatenate([rollouts.starts[rollouts.of], stops])
    order = np.argsort(times, kind="stable")
    ones = np.ones(len(stops))
    running = np.cumsum(np.concatenate([ones, -ones])[order])[:-1]
    rates = 1 / np.maximum(step_s + request_s * running, 1e-9)
    at = times[order]
    steps = np.concatenate([[0.0], np.cumsum(rates * np.diff(at))])
    return lambda moments: np.interp(np.asarray(moments, dtype=np.float64), at, steps)


def _table(r: Rollouts, *, steps: Callable[[ArrayLike], Array], clear_cache: bool) -> tuple[Array, Array]:
    """Build the regression's rows of one worker. Returns (rows, when each rollout ended)."""
    first, last = steps(r.starts), steps(r.ends)
    stops = first[r.of] + (last - first)[r.of] * r.lengths / r.longest[r.of]  # in steps
    made = Ramps(first[r.of], stops, r.lengths)
    again = np.zeros(len(r.acked))
    if clear_cache:  # what is running is prefilled again
        for number, at in enumerate(steps(r.acked)):
            running = (first[r.of] < at) & (at < stops)
            done = r.lengths * (at - first[r.of]) / np.maximum(stops - first[r.of], 1e-9)
            again[number] = np.sum((r.fresh + done)[running])
    prefilled = Staircase(np.concatenate([r.starts[r.of], r.acked]), np.concatenate([r.fresh, again]))
    loads = Staircase(r.acked, np.ones(len(r.acked)))
    rows = np.column_stack(
        [
            r.ends - r.starts,
            np.ones(len(r.starts)),
            r.longest,
            made(last) - made(first),
            prefilled(r.ends) - prefilled(r.starts),
            loads(r.ends) - loads(np.nextafter(r.starts, np.inf)),  # a task that begins with an acknowledgement had no pause
        ]
    )
    known, times = np.unique(np.concatenate([first, last])), np.unique(np.concatenate([r.starts, r.ends]))
    return rows, (np.interp(stops, known, times) if len(known) == len(times) else r.starts[r.of])


def _engine_rows(recording: Recording, worker: str, spans: list[Span], clock: WorkTime) -> Array:
    tasks = [span for span in spans if span.notes]
    strange = [(s.start, s.end) for s in spans if not s.notes]  # lost, or an evaluation: what it cost is not known
    if len(tasks) < ALL_PARTS:
        return np.zeros((0, ALL_PARTS + 1))
    rollouts = Rollouts(
        starts=clock([s.start for s in tasks]),
        ends=clock([s.end for s in tasks]),
        longest=np.array([max(note.length for note in s.notes) for s in tasks], dtype=np.float64),
        of=np.repeat(np.arange(len(tasks)), [len(s.notes) for s in tasks]),
        lengths=np.array([note.length for s in tasks for note in s.notes], dtype=np.float64),
        fresh=np.array([note.context - note.cached for s in tasks for note in s.notes], dtype=np.float64),
        acked=clock([at for name, _, at in recording.loads if name == worker]),
    )
    rows = _engine_tables(rollouts, clear_cache=recording.config.engine.clear_cache_on_update)
    each = np.array([len(s.notes) for s in tasks], dtype=np.float64)
    begun = np.nextafter(rollouts.starts, np.inf)
    there = Staircase(rollouts.starts, each)(begun) - Staircase(rollouts.ends, each)(begun)
    whole = there <= recording.config.engine.max_running  # else some waited inside of the engine
    clean = np.array([all(end <= s.start or start >= s.end for start, end in strange) for s in tasks])
    return rows[clean & whole & (rows[:, 0] > 0)]


# ---- verifiers, learner ----


def _verifiers(recording: Recording, clock: WorkTime) -> tuple[VerifierTimes, float, int]:
    workers = recording.config.verifiers.workers
    rows, values = [], []
    for worker, spans in _by_worker(recording).items():
        whole = [s for s in spans if s.whole]
        if recording.roles.get(worker) != VERIFIERS or not whole:
            continue
        starts, ends = clock([s.start for s in whole]), clock([s.end for s in whole])
        answers = np.array([s.answers for s in whole], dtype=np.float64)
        before = Staircase(starts, answers)(starts) - Staircase(ends, answers)(np.nextafter(starts, np.inf))
        before += [answers[:number][starts[:number] == at].sum() for number, at in enumerate(starts)]  # came with it, ahead of it
        ahead = np.maximum(before - answers.mean() / 2, 0.0)  # half of the call that is being scored is done
        rows.append(np.column_stack([np.ones(len(whole)), np.maximum(1.0, (ahead + answers) / workers)]))
        values.append(np.maximum(ends - starts, 1e-6))
    if sum(map(len, values)) < 4:
        raise StorageError("too few verdicts were recorded to measure the verifiers")
    columns, seconds = np.concatenate(rows), np.concatenate(values)
    found, error = robust(columns, seconds)
    rest = np.maximum(seconds - columns[:, 1] * found[1], 0.0)
    samples = np.sort(rest)[:: -max(1, len(rest) // MOST_SAMPLES)]  # the longest one is among them
    times = VerifierTimes(answer_s=float(found[1]), task_s=float(found[0]), task_samples=tuple(map(float, samples)))
    return times, error, len(seconds)


def _whole_batches(recording: Recording) -> list[Batch]:
    return [batch for batch in recording.batches if batch.end > batch.start]


def _learner(recording: Recording, clock: WorkTime) -> tuple[LearnerTimes, float]:
    """``token_s`` is of one rank, with ranks taken as scaling without loss."""
    batches = _whole_batches(recording)
    starts, ends = clock([b.start for b in batches]), clock([b.end for b in batches])
    tokens = np.array([b.tokens for b in batches], dtype=np.float64) / recording.config.learner.ranks
    columns, values = np.column_stack([np.ones(len(batches)), tokens]), np.maximum(ends - starts, 1e-6)
    found, error = robust(columns, values)
    alone, alone_error = robust(columns * [0.0, 1.0], values)
    if error > BETTER * alone_error:  # nothing tells the two apart; then a larger batch takes longer
        found, error = alone, alone_error
    exports = [clock(b.exported) - clock(b.end) for b in batches if b.exported]
    return LearnerTimes(
        fixed_s=float(found[0]), token_s=float(found[1]), export_s=float(np.median(exports)) if exports else 0.0
    ), error  # fmt: skip
