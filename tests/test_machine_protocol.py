"""One protocol inside the machine: ``handle`` alone, each part on its own state, and few returns for an event."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import FrameType
from typing import get_args

import pytest
from ledger_support import control_config, delivered, judged, lost
from machine_plays import play, random_cluster

from fr3e_async.algorithm.strategies import make_strategy
from fr3e_async.machine import machine as router
from fr3e_async.machine.events import Admitted, Event, Exported, WorkerUp
from fr3e_async.machine.machine import OUTWARD, Machine, routes
from fr3e_async.machine.messages import Assign, Branch, Command, Inner, Score

FOLDER = Path(router.__file__).parent
PARTS = {"machine": "machine", "dispatch": "dispatcher", "slots": "dispatcher", "fleet": "fleet", "sizing": "autoscaler"}
MOST = 6  # returns of one event that brings a rollout


def part_of(frame: FrameType | None) -> str:
    """The part that a frame's code belongs to; groups, tasks and the rest are the ledger's, and outside is the world."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.stem in ("messages", "events"):
            frame = frame.f_back
            continue
        return PARTS.get(path.stem, "ledger") if path.parent == FOLDER else "world"
    return "world"


def returns(machine: Machine, event: Event) -> tuple[list[Command], list[str]]:
    """What the machine decides, and the returns from one part of it into another, or within or out of the router, in their order."""
    seen: list[str] = []

    def watch(frame: FrameType, what: str, _: object) -> None:
        if what == "return" and Path(frame.f_code.co_filename).parent == FOLDER:
            here, there = part_of(frame), part_of(frame.f_back)
            if here == "machine" or (here != there and there != "world"):
                seen.append(f"{here} to {there}")

    sys.setprofile(watch)
    try:
        commands = machine.handle(event)
    finally:
        sys.setprofile(None)
    return commands, seen


def staffed() -> Machine:
    config = control_config(groups=1, staleness=1, flexible=True)
    machine = Machine(config, make_strategy(config.algorithm))
    for role in ("generators", "explorers", "verifiers"):
        machine.handle(WorkerUp(role=role, worker=f"{role}-0"))
    return machine


def work(commands: list[Command]) -> list:
    return [command.work for command in commands if isinstance(command, Assign)]


def test_an_event_that_brings_a_rollout_makes_six_returns_at_most():
    """A trunk ends: dispatcher and ledger hear of it, its score and its branches are queued, all is assigned, and the world hears."""
    machine = staffed()
    commands, seen = returns(machine, Admitted(group="a@0"))
    assert len(seen) <= MOST
    trunk, others = work(commands)
    commands, seen = returns(machine, delivered(trunk, payload=1, anchors=(2, 4)))
    assert {type(one) for one in work(commands)} == {Score, Branch}
    assert seen == [*["dispatcher to machine", "ledger to machine"], *["dispatcher to machine"] * 3, "machine to world"]
    assert len(seen) == MOST
    (score,) = [one for one in work(commands) if isinstance(one, Score)]
    (branch,) = [one for one in work(commands) if isinstance(one, Branch)]
    for event in (lost(branch, counted=False), delivered(others, payload=2), judged(score, *[1] * len(score.ids))):
        _, seen = returns(machine, event)
        assert len(seen) <= MOST - 1


def test_parts_call_nobody_but_are_called_by_the_machine():
    """Whatever happens, returns go from a part to the machine and from the machine to the world: no part looks into another."""
    pairs: set[str] = set()
    for seed in range(4):
        cluster = random_cluster(random.Random(seed), elastic=True, flexible=True, alike=True)
        play(cluster, random.Random(seed), moves=60, mishaps=0.3, kills=0.0)
        machine = cluster.fresh()
        machine.start()
        for event in cluster.scenario:
            pairs |= set(returns(machine, event)[1])
    assert pairs == {"machine to world", *(f"{part} to machine" for part in ("ledger", "dispatcher", "fleet", "autoscaler"))}


def test_every_message_has_somebody_who_hears_it():
    """Events and what parts say to each other are routed; what is routed nowhere goes to the world."""
    parts = [object() for _ in range(4)]
    table = routes(*parts)  # type: ignore[arg-type]
    assert set(get_args(Event)) | set(get_args(Inner)) <= set(table)
    assert OUTWARD.isdisjoint(get_args(Event))
    assert OUTWARD.isdisjoint(get_args(Inner))
    assert set(table) <= {*get_args(Event), *get_args(Inner), *OUTWARD}
    assert {part for heard in table.values() for part in heard} == set(parts)


def test_a_message_to_nobody_is_an_error_and_is_not_passed_over():
    machine = staffed()
    with pytest.raises(KeyError):
        machine.ledger.handle(Exported(version=1))
