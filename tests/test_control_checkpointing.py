"""A disk that is nearly full is told of before a checkpoint fails on it."""

from __future__ import annotations

import shutil
from collections import namedtuple

from loop_support import World

from fr3e_async.control.checkpointing import little_room

Usage = namedtuple("Usage", "total used free")


def test_room_for_two_more_is_room_enough(tmp_path, monkeypatch):
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "weights").write_bytes(bytes(3000))
    (tmp_path / "control.json").write_bytes(bytes(1000))
    for free, told in ((8000, False), (7999, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(10**6, 0, free))
        assert bool(little_room(tmp_path)) == told


def test_a_run_tells_of_it_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 0))
    world = World(tmp_path, run={"steps": 3, "checkpoint_every": 2})
    assert world.run() == "finished"
    assert world.said("run.dir: its disk has 0.0 GiB left")
    assert "storage_pressure" in world.notes.kinds
