"""A run that is killed at any moment, any number of times, consumes what an uninterrupted run does, each group once.

A kill is an exception out of everything that leaves a trace outside of the process: ledger log, journal, reports, checkpoints,
the learner. From then on each of them refuses, all tasks are cancelled, and nothing in memory is used again. The next
session begins from what is on disk, as ``session`` does it. Rollouts are correct or wrong by their ids alone.
"""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from loop_support import World, audited, loop_config, replayed

from fr3e_async.control.progress import load_control_state
from fr3e_async.machine.dispatch import EXPLORERS, GENERATORS, VERIFIERS
from fr3e_async.testing.fakes import ActorFault

PLAIN = {"flow": {"groups_per_step": 2, "max_staleness": 1, "max_attempts": 100}, "run": {"steps": 3, "checkpoint_every": 1}}
DEATHS = {
    GENERATORS: {("sample", 4): ActorFault.DIE},
    EXPLORERS: {("branch", 2): ActorFault.DIE},
    VERIFIERS: {("judge", 9): ActorFault.DIE},
}
# Sections of the config beside those of PLAIN, and what else the world is told.
KINDS: dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any]]] = {
    "plain": ({}, {}),
    "far behind": ({"flow": {"max_staleness": 3}, "run": {"checkpoint_every": 2}}, {}),
    "window": ({"flow": {"max_staleness": 2, "order": "window", "window": 3}}, {}),
    "paused": ({"weights": {"update": "wait_idle"}}, {}),
    "begun again": ({"weights": {"update": "abort_retry"}, "pools": {"flexible_roles": True}}, {}),
    "two rounds": ({"algorithm": {"branches": 3, "adaptive_first": 2, "trunk": "all"}}, {"correct": 0.02}),
    "trunks by reward": ({"algorithm": {"trunk": "one_correct_one_wrong"}}, {}),
    "re-scored": ({"algorithm": {"trunk": "random"}, "engine": {"entropy": "learner"}}, {"rescored": True}),
    "workers die": ({"pools": {"max_deaths_in_a_row": 50, "replace_backoff_s": 0.0}}, {"faults": DEATHS}),
}


class Killed(Exception):
    """The process is gone."""


class Killer:
    """Counts moments; at one of them the process ends."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.moments, self.dead, self.last = at, 0, False, ""

    def moment(self, where: str) -> None:
        if self.dead:
            raise Killed
        self.moments, self.last = self.moments + 1, where
        if self.moments == self.at:
            self.dead = True
            raise Killed

    def wrap(self, part: Any) -> Any:
        return Mortal(part, self)


class Mortal:
    """A part of the run, with a moment before and after each of its calls."""

    def __init__(self, part: Any, killer: Killer) -> None:
        self._part, self._killer = part, killer

    def __getattr__(self, name: str) -> Any:
        call, killer = getattr(self._part, name), self._killer
        where = f"{type(self._part).__name__}.{name}"
        if not callable(call) or name in ("flush", "close", "pulse", "stacks"):
            return call

        async def awaited(*args: Any, **named: Any) -> Any:
            killer.moment(f"before {where}")
            result = await call(*args, **named)
            killer.moment(f"after {where}")
            return result

        def called(*args: Any, **named: Any) -> Any:
            killer.moment(f"before {where}")
            result = call(*args, **named)
            killer.moment(f"after {where}")
            return result

        return awaited if asyncio.iscoroutinefunction(call) else called


class Life:
    """A run over its sessions; what its learners were given, apart from the ledger log."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        sections, self.options = KINDS[kind]
        self.config = loop_config(**{name: PLAIN.get(name, {}) | sections.get(name, {}) for name in {**PLAIN, **sections}})
        self.batches: dict[int, set[str]] = {}  # by version: the last one that was trained for it
        self.kills: list[str] = []
        self.moments = 0

    def session(self, at: int | None, chance: random.Random) -> bool:
        """One session, which is killed at its moment number ``at``; did it come to the end?"""
        killer, before = Killer(at), set(threading.enumerate())
        world = World(
            self.folder,
            config=self.config,
            resume=True,
            prompts=5,
            delay_s=0.0,
            gain=0.0,
            wrap=killer.wrap,
            **{"correct": 0.1, **self.options},
        )
        start = world.state.version if world.state else 0
        try:
            assert world.run() == "finished"
        except Killed:
            self.kills.append(killer.last)
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
        self.batches |= {
            start + number: {row.payload.ids[row.row].group for row in rows}
            for number, rows in enumerate(world.learner.trained, start=1)
        }
        made = {id for engine in world.engines for id in engine.made}
        assert not made & set(world.kept), "a rollout that was in the checkpoint was sampled again"
        self.moments = killer.moments
        if killer.dead:
            world.journal.close()
            tear(world.journal.path, chance)
            tear_ledger_log(self.folder / "ledger.jsonl", chance)
        return not killer.dead

    def check(self) -> dict[str, str]:
        """The laws of a finished run; the outcome of every group."""
        report = audited(self.folder, self.config)
        assert (report.version, report.open) == (self.config.run.steps, ())
        trained = [group for groups in self.batches.values() for group in groups]
        assert len(trained) == len(set(trained)), "a group was trained twice"
        assert set(trained) == {group for group, outcome in report.outcomes.items() if outcome == "trained"}
        newest = load_control_state(self.folder / "checkpoints" / f"step-{self.config.run.steps:08d}")
        assert newest.ledger.outcomes == dict(report.counts)
        replayed(self.folder, self.config)
        return dict(report.outcomes)


def tear(journal: Path, chance: random.Random) -> None:
    """What was not handed to the system is gone; the header always was."""
    content = journal.read_bytes()
    header = content.index(b"\n") + 1
    journal.write_bytes(content[: chance.randint(header, len(content))])


def tear_ledger_log(ledger_log: Path, chance: random.Random) -> None:
    """A line may have been begun."""
    if chance.random() < 0.5:
        with open(ledger_log, "a") as file:
            file.write('{"what": "admitted", "gro')


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By kind of run: outcomes of an uninterrupted one, and its number of moments."""
    known: dict[str, tuple[dict[str, str], int]] = {}

    def of(kind: str) -> tuple[dict[str, str], int]:
        if kind not in known:
            life = Life(tmp_path_factory.mktemp("undisturbed"), kind)
            assert life.session(None, random.Random(0))
            known[kind] = life.check(), life.moments
            assert {"trained", "rejected_all_wrong"} <= set(known[kind][0].values())
            assert any(group.endswith("@1") for group in known[kind][0]), "a second epoch was begun"
        return known[kind]

    return of


def lives_through(folder: Path, kind: str, kills: list[int], undisturbed, chance: random.Random) -> int:
    """Kills a run so, lets it come to its end and compares; how many kills there were."""
    life = Life(folder, kind)
    outcomes, _ = undisturbed(kind)
    over = any(life.session(at, chance) for at in [*kills, None])
    assert over
    case = f"{kind}, killed {life.kills}"
    assert life.check() == outcomes, case
    return len(life.kills)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_consumes_what_an_uninterrupted_one_does(tmp_path, kind, undisturbed):
    chance = random.Random(kind)
    _, moments = undisturbed(kind)
    assert lives_through(tmp_path, kind, [chance.randint(1, moments) for _ in range(3)], undisturbed, chance) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_kill_points(tmp_path, kind, undisturbed):
    chance = random.Random(f"many {kind}")
    _, moments = undisturbed(kind)
    killed = 0
    for number in range(24):
        kills = [chance.randint(1, moments) for _ in range(chance.randint(1, 4))]
        killed += lives_through(tmp_path / str(number), kind, kills, undisturbed, chance)
    assert killed >= 30
