"""The wall clock may be set at any moment: no duration, age or limit notices it. Stamps of a run never go back."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from builders import small_config
from hypothesis import given
from hypothesis import strategies as st
from loop_support import World, audited, replayed

from fr3e_async.actors import cluster
from fr3e_async.clock import RemoteClock, RunClock
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.observe.console import ConsoleView, make_console
from fr3e_async.observe.recorder import Recorder
from fr3e_async.store.ledger_log import read_ledger_log
from fr3e_async.store.run_dir import RunDir
from fr3e_async.store.summary import write_problems
from fr3e_async.testing.fakes import ActorFault

ROOT = Path(__file__).parent.parent
HOUR = 3600.0
QUICK = {"watchdog": {"stuck_s": 0.5, "timeout_s": 20.0}, "flow": {"lease_s": 60.0}, "run": {"steps": 6}}


class WallClock:
    """Steady time is virtual, and the wall clock is wherever it was set."""

    def __init__(self) -> None:
        self.off = 1.7e9

    def __call__(self) -> float:
        return virtual_time.now() + self.off

    def step(self, seconds: float) -> None:
        self.off += seconds


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    made = WallClock()
    monkeypatch.setattr("fr3e_async.clock.steady", virtual_time.now)
    monkeypatch.setattr(time, "time", made)
    return made


# ---- the clocks ----


def test_a_run_clock_is_the_wall_clock_of_its_beginning_moved_on(wall: WallClock) -> None:
    began = wall()
    clock = RunClock()
    assert clock() == began
    wall.step(-HOUR)
    virtual_time.advance(5.0)
    assert clock() == pytest.approx(began + 5.0, abs=1e-5)


def test_the_clock_of_a_later_session_is_not_before_what_is_past(wall: WallClock) -> None:
    first = RunClock()
    last = first()
    wall.step(-HOUR)
    assert RunClock(after=last)() == last
    wall.step(2 * HOUR)
    assert RunClock(after=last)() == last + HOUR, "the wall clock counts where it is ahead"


times = st.floats(0.0, 1e3)


@given(st.floats(-1e9, 1e9), st.lists(st.tuples(times, times, times, st.floats(0.0, 100.0)), min_size=1, max_size=8))
def test_another_clocks_times_are_placed_within_the_call_that_told_them(ahead: float, calls: Any) -> None:
    """``ahead``: of theirs before ours. A call: the time before it, there, and back; and how long before its answer they worked."""
    clock, now = RemoteClock(), 0.0
    for before, there, back, ago in calls:
        asked = now + before
        answered_there, now = asked + there, asked + there + back
        theirs = answered_there + ahead
        ((start, end),) = clock.ours([(theirs - ago, theirs)], theirs=theirs, asked=asked, answered=now)
        assert end - start == pytest.approx(ago, abs=1e-5)
        assert asked - 1e-5 <= end <= now + 1e-5, "neither before it was asked for nor after it was there"


def test_intervals_of_two_answers_keep_their_distance_whatever_the_calls_took() -> None:
    clock = RemoteClock()
    assert clock.ours([(500.0, 501.0)], theirs=501.0, asked=9.9, answered=10.1) == ((9.0, 10.0),)
    assert clock.ours([(501.0, 502.0)], theirs=502.0, asked=10.0, answered=14.0) == ((10.0, 11.0),)


def test_a_clock_that_drifts_or_begins_again_is_followed() -> None:
    clock = RemoteClock()
    clock.ours([], theirs=100.0, asked=10.0, answered=10.0)
    assert clock.ours([(4.0, 5.0)], theirs=5.0, asked=20.0, answered=20.5) == ((19.0, 20.0),)


# ---- nodes that go ----


def test_a_notice_is_counted_down_steadily_once_it_was_seen(wall: WallClock, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines: dict[str, int] = {"unknown": 0, "far": 2**63}
    monkeypatch.setattr(cluster, "steady", virtual_time.now)
    monkeypatch.setattr(cluster.state, "get_draining_nodes", lambda: deadlines)
    nodes = cluster.DrainingNodes()
    assert nodes() == {"unknown": 0.0, "far": 0.0}
    deadlines = {"a": int((wall() + 90) * 1000)}
    assert nodes()["a"] == pytest.approx(90, abs=0.1)
    for step in (HOUR, -2 * HOUR):
        wall.step(step)
        virtual_time.advance(30.0)
        left = nodes()["a"]
    assert left == pytest.approx(30, abs=0.1)
    virtual_time.advance(60.0)
    assert nodes() == {"a": 1.0}, "known, and at its end"
    deadlines = {"a": int((wall() + 20) * 1000)}
    assert nodes()["a"] == pytest.approx(20, abs=0.1), "another notice"


# ---- whole runs ----


def run_of(folder: Path, wall: WallClock, **sections: Any) -> World:
    """Its clocks as ``session`` makes them; what it should not read is the wall clock, and whatever reads it notices."""
    world = World(folder, clock=RunClock(), delay_s=0.02, prompts=200, **QUICK | sections)
    assert world.controller.context.clock() == pytest.approx(wall())
    return world


def beside(world: World, then: Callable[[], None], when: Callable[[], bool], *, after_s: float = 0.0) -> str:
    async def scenario() -> str:
        run = asyncio.create_task(world.go())
        await world.until(when)
        await asyncio.sleep(after_s)
        then()
        return await run

    return virtual_time.run(scenario())


def negative(world: World) -> list[tuple[str, float]]:
    """Whatever is measured in seconds, as a part of a time or by a rate, and is below zero or longer than the run has been."""
    measured = [item for row in world.notes.steps.values() for item in row.items()]
    measured += [(name, value) for beat in world.notes.heartbeats for name in ("stalled_s", "wall_s", "checkpoint_age_s")
                 for value in [getattr(beat, name)]]  # fmt: skip
    measured += [(f"busy {role}", its.busy_s) for beat in world.notes.heartbeats for role, its in beat.roles.items()]
    return [
        (name, value) for name, value in measured if value < 0 or (name.endswith("_s") and value > 100 and "rate" not in name)
    ]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_of_the_wall_clock_during_work_is_noticed_by_nobody(tmp_path: Path, wall: WallClock, step: float) -> None:
    world = run_of(tmp_path, wall, pools={"grow_after_s": 0.1, "shrink_after_s": 0.4}, run={"steps": 6, "max_wall_s": 600.0})
    assert beside(world, lambda: wall.step(step), lambda: world.ledger.version >= 2) == "finished"
    assert (world.replaced(), world.ledger.retries, world.ledger.failed) == ({}, 0, 0)
    assert not world.said("stuck")
    assert negative(world) == []
    assert 0 < world.controller.progress.wall_s(world.controller.context.clock()) < 100
    at = [json.loads(line)["t"] for line in world.journal.path.read_text().splitlines()[1:]]
    assert at == sorted(at)
    assert at[-1] - at[0] < 100
    audited(tmp_path, world.config)
    replayed(tmp_path, world.config)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
@pytest.mark.parametrize("role", ["generators", "explorers", "verifiers"])
def test_a_worker_that_hangs_is_found_in_its_time_though_the_wall_clock_is_set(
    tmp_path: Path, wall: WallClock, role: str, step: float
) -> None:
    call = {"generators": "sample", "explorers": "branch", "verifiers": "judge"}[role]
    world = run_of(tmp_path, wall, faults={role: {(call, 3): ActorFault.HANG}})
    actor = world.of(role)[0]
    hung: list[float] = []

    def then() -> None:
        hung.append(virtual_time.now())
        wall.step(step)

    assert beside(world, then, lambda: actor.calls[call] >= 3, after_s=0.2) == "finished"
    assert world.replaced() == {role: 1}, "it alone"
    assert "has not got on for" in world.said(f"{actor.name} is stuck")
    assert virtual_time.now() - hung[0] < 10
    assert negative(world) == []


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_learner_that_hangs_is_found_in_its_time_though_the_wall_clock_is_set(
    tmp_path: Path, wall: WallClock, step: float
) -> None:
    world = run_of(tmp_path, wall, faults={"learner": {("train", 3): ActorFault.HANG}})
    with pytest.raises(LearnerLost, match=r"the learner is stuck: it trains v3 and has not got on for [01] s"):
        beside(world, lambda: wall.step(step), lambda: world.learner.calls["train"] >= 3, after_s=0.2)
    assert negative(world) == []


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_run_in_which_nothing_moves_ends_in_its_time_though_the_wall_clock_is_set(
    tmp_path: Path, wall: WallClock, step: float
) -> None:
    limits = {"watchdog": {"timeout_s": 3.0, "stuck_s": 60.0}}
    world = run_of(tmp_path, wall, faults={"learner": {("train", 3): ActorFault.HANG}}, **limits)
    began = virtual_time.now()
    with pytest.raises(RunFailed, match=r"nothing moved for 3 s \(watchdog\.timeout_s is 3\)"):
        beside(world, lambda: wall.step(step), lambda: world.learner.calls["train"] >= 3, after_s=2.0)
    assert virtual_time.now() - began < 20


@pytest.mark.parametrize("ahead", [HOUR, -HOUR, -1e6])
def test_engines_with_another_clock_count_as_if_it_were_ours(tmp_path: Path, wall: WallClock, ahead: float) -> None:
    """On another machine, or started after a step of the wall clock: the same overlap and the same idle times."""
    measured = []
    for number, off in enumerate((0.0, ahead)):
        virtual_time.restart()
        world = run_of(tmp_path / str(number), wall)
        for engine in world.engines:
            engine.clock = lambda off=off: virtual_time.now() + off
        assert world.run() == "finished"
        measured.append(world.controller.watch.utilisation())
    assert measured[0]["overlap/fraction"] > 0
    assert measured[1] == pytest.approx(measured[0], abs=1e-3)


# ---- what is in the files ----


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_stamps_of_a_run_never_go_back_over_a_step_and_a_resume(tmp_path: Path, wall: WallClock, step: float) -> None:
    config = replace(small_config(), resume="auto")
    mode, console = make_console("off")
    stamps: list[float] = []
    for session in range(2):
        run_dir = RunDir.open(tmp_path / "run", config=config, config_yaml="")
        clock = RunClock(after=run_dir.last_stamp())
        view = ConsoleView(mode=mode, console=console, name="test", steps=4)
        recorder = Recorder(run_dir, config=config.observe, view=view, clock=clock, resumed_from=session)
        recorder.note("one")
        virtual_time.advance(1.0)
        recorder.step(session + 1, {"train/loss": 0.5})
        wall.step(step)
        virtual_time.advance(1.0)
        recorder.note("two")
        recorder.close()
        run_dir.close()
    run_dir.close()
    for name in ("logs/events.jsonl", "metrics.jsonl"):
        stamps = [json.loads(line)["time_s"] for line in (tmp_path / "run" / name).read_text().splitlines()]
        assert len(stamps) in (2, 4)
        assert stamps == sorted(stamps)
    assert len([*(tmp_path / "run" / "tensorboard").iterdir()]) == 2
    names = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["0", "1"], "readers take them in the order of their sessions"


def test_the_last_stamp_is_the_newest_of_what_was_written(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path / "run", config=small_config(), config_yaml="")
    assert run_dir.last_stamp() == 0.0
    (run_dir.logs / "events.jsonl").write_text('{"time_s": 5.0}\n{"time_s": 7.0}\n{"time_s": 9')
    assert run_dir.last_stamp() == 7.0
    run_dir.journal.mkdir()
    (run_dir.journal / "0000.jsonl").write_text('{"format": 2}\n{"t": 99.0}\n')
    (run_dir.journal / "0001.jsonl").write_text('{"format": 2}\n{"t": 8.5}\n{"t": 8.7')
    assert run_dir.last_stamp() == 8.5
    run_dir.close()


def test_the_ledger_log_of_a_session_begins_by_its_clock(tmp_path: Path, wall: WallClock) -> None:
    world = run_of(tmp_path, wall)
    assert world.run() == "finished"
    _, begin = read_ledger_log(tmp_path / "ledger.jsonl")[0]
    assert begin.time_s == pytest.approx(wall(), abs=60)


def test_the_oldest_results_go_first_though_the_wall_clock_was_set_back(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "outcomes": "r" * 1000} for i in range(400)]  # 0.4 MiB
    hour_ahead = time.time_ns() + 3_600 * 10**9
    for step in range(4):
        write_problems(tmp_path, f"step {step}-gsm8k", rows, keep_mib=1)
        if step == 0:
            os.utime(tmp_path / "evaluations" / "step-0-gsm8k.jsonl", ns=(hour_ahead, hour_ahead))
    assert sorted(path.name for path in (tmp_path / "evaluations").iterdir()) == ["step-2-gsm8k.jsonl", "step-3-gsm8k.jsonl"]


# ---- who may read the wall clock ----

WALL = {
    ("time", "time"), ("time", "time_ns"), ("time", "ctime"), ("time", "asctime"), ("datetime", "now"), ("datetime", "utcnow"),
    ("datetime", "today"), ("date", "today"), ("time", "CLOCK_REALTIME"),
}  # fmt: skip
ALLOWED = {
    "fr3e_async/clock.py": 1,  # wall()
    "cluster/preemption_notice.py": 2,  # a stamp of its log; what is left until a stamp of the cloud
}
READERS_OF_WALL = {
    "fr3e_async/run/preparing.py",  # the name of a folder; the age of this process, of which the system gives a stamp
    "fr3e_async/observe/recorder.py",  # the heartbeat, which others compare with their wall clock
    "fr3e_async/actors/cluster.py",  # what is left until a stamp of Ray's
}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def readings(tree: ast.Module) -> int:
    """How often the wall clock is read, or named to be read by others."""
    named = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute)
    ]
    owners = [(node.value.id if isinstance(node.value, ast.Name) else node.value.attr, node.attr) for node in named]
    brought = [(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return sum(owner in WALL for owner in [*owners, *brought])


def test_the_wall_clock_is_read_where_stamps_are_made_and_nowhere_else() -> None:
    found = {name: count for name, tree in sources("fr3e_async", "benchmarks", "scripts", "cluster") if (count := readings(tree))}
    assert found == ALLOWED, "durations, ages and limits come from fr3e_async.clock"


def test_what_stamps_are_for_is_known() -> None:
    users = {
        name
        for name, tree in sources("fr3e_async", "benchmarks")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "fr3e_async.clock"
        for alias in node.names
        if alias.name == "wall"
    }
    assert users == READERS_OF_WALL


@pytest.mark.parametrize(
    ("text", "count"),
    [("import time\ntime.time()", 1), ("from time import time", 1), ("f(clock=time.time)", 1), ("datetime.now(UTC)", 1),
     ("datetime.datetime.utcnow()", 1), ("time.monotonic() - time.perf_counter()", 0), ("row.time", 0)],
)  # fmt: skip
def test_readings_are_found(text: str, count: int) -> None:
    assert readings(ast.parse(text)) == count
