"""A disk that is nearly full is told of before a checkpoint fails on it; and a cut does not stop the loop, however many groups there are."""

from __future__ import annotations

import asyncio
import shutil
from collections import namedtuple

import virtual_time
from ledger_support import admit, lost, make_ledger
from loop_support import World

from fr3e_async.control.checkpointing import little_room
from fr3e_async.control.progress import GROUPS_A_TURN, Cut
from fr3e_async.files.jsonl import to_json

Usage = namedtuple("Usage", "total used free")


def test_room_for_two_more_is_room_enough(tmp_path, monkeypatch):
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "weights").write_bytes(bytes(3000))
    (tmp_path / "control.json").write_bytes(bytes(1000))
    for free, told in ((8000, False), (7999, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(10**6, 0, free))
        assert bool(little_room(tmp_path)) == told


def test_a_run_tells_of_it_and_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 0))
    world = World(tmp_path, run={"steps": 3, "checkpoint_every": 2})
    assert world.run() == "finished"
    assert world.said("run.dir: its disk has 0.0 GiB left")
    assert "storage_pressure" in world.notes.kinds


def test_no_turn_of_the_loop_encodes_more_than_a_few_of_10_000_groups():
    """Counted, not timed: what a cut encodes between two turns of another task, which tells the ledger an event in each of them."""
    ledger = make_ledger(groups=5_000, staleness=1, strategy="grpo_pp")
    samples = [admit(ledger, f"p{number}")[0] for number in range(10_000)]
    before, encoded, turns = to_json(ledger.state()), [], []

    def encode(group):
        encoded.append(group.name)
        return to_json(group)

    taken = Cut(version=0, groups=10_000, ledger=ledger.cut(encode), stream={}, progress={})
    assert encoded == [], "to take a cut is to encode nothing"

    async def work():
        while not taken.ledger.done:
            seen = len(encoded)
            ledger.handle(lost(samples.pop(), counted=True))  # the newest groups, which come last
            ledger.handle(lost(samples[len(samples) // 2], counted=True))
            await asyncio.sleep(0)
            turns.append(len(encoded) - seen)

    async def both():
        await asyncio.gather(work(), taken.encoded())

    virtual_time.run(both())
    assert len(encoded) == len(set(encoded)) == 10_000
    assert GROUPS_A_TURN <= max(turns) <= GROUPS_A_TURN + 2  # and the one of each event
    assert to_json(taken.ledger.state()) == before != to_json(ledger.state())
