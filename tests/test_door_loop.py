"""The door within the loop: who is asked and when, who is kept out, and what two deaths of the same cause mean. On fakes."""

from __future__ import annotations

import asyncio
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import virtual_time
from loop_support import World, replayed

from fr3e_async.config import PoolsConfig
from fr3e_async.control.door import Door
from fr3e_async.errors import RunFailed, StartRefused, with_cause
from fr3e_async.machine.dispatch import GENERATORS, Dispatcher
from fr3e_async.rollout.door import Questions
from fr3e_async.testing.fakes import ActorFault, FakePayloads
from fr3e_async.wiring import first_questions

BOUND = 0.2  # the fakes' entropies are no exact match
ROWS = (np.asarray([3], dtype=np.int32), np.asarray([3, 4, 5], dtype=np.int32))


class AtTheDoor(World):
    """A run of fakes with a door; ``flat_from``: the learner's numbers are others from that version on."""

    def __init__(self, folder: Path, *, flat_from: int = 10**6, **settings: Any) -> None:
        self.compared: list[tuple[str, int]] = []  # engine, version
        self.flat_from = flat_from
        super().__init__(folder, **settings)

    @cached_property
    def door(self) -> Door:
        world = self

        class Learner(Door):
            async def learned(self, version: int) -> None:
                world.learner.flat = 3.0 if version >= world.flat_from else 1.0
                await super().learned(version)

        return Learner(
            Questions(rows=ROWS), learner=self.workers.learner, payloads=FakePayloads(), temperature=1.0, bound=BOUND, limit_s=5.0,
            record=lambda text, kind, **fields: self.compared.append((fields["actor"], fields["version"])),
        )  # fmt: skip

    async def go(self) -> str:
        await self.door.learned(self.state.version if self.state else 0)
        if not self.source:
            assert await self.door.ask_all(self.engines) == {}
        return await super().go()


def test_every_engine_is_asked_with_its_first_weights_and_after_its_first_update(tmp_path: Path) -> None:
    world = AtTheDoor(tmp_path / "run", faults={"generators": {("sample", 3): ActorFault.DIE}})
    assert world.run() == "finished"
    engines = {name for name, _ in world.compared}
    assert len(engines) == 5, "four, and one in place of the first"
    by_engine = {name: [version for who, version in world.compared if who == name] for name in engines - {"generator-0"}}
    assert all(len(versions) == 2 for versions in by_engine.values()), by_engine
    assert all(first < second for first, second in by_engine.values())
    assert {versions[0] for versions in by_engine.values()} == {0}
    replayed(world.folder, world.config)


def test_after_a_resume_engines_are_asked_before_they_serve(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"run": {"steps": 4, "checkpoint_every": 2}}
    AtTheDoor(tmp_path / "run", **settings).run()
    again = AtTheDoor(tmp_path / "run", resume=True, run={"steps": 8, "checkpoint_every": 2})
    assert again.run() == "finished"
    assert min(version for _, version in again.compared) >= 4
    assert len({name for name, _ in again.compared}) == 4


def test_engines_that_serve_something_else_after_an_update_end_the_run_with_the_cause(tmp_path: Path) -> None:
    world = AtTheDoor(
        tmp_path / "run", flat_from=1, pools={"replace_backoff_s": 0.0, "max_deaths_in_a_row": 100}, run={"steps": 10**4}
    )
    with pytest.raises(
        RunFailed, match=r"two workers in a row .* differs from the learner .* the likeliest cause: a temperature"
    ):
        world.run()
    assert world.said("the likeliest cause: a temperature")


def test_an_engine_that_dies_at_its_first_request_says_so(tmp_path: Path) -> None:
    world = AtTheDoor(tmp_path / "run", faults={"generators": {("sample", 1): ActorFault.DIE}})

    async def whys() -> dict[str, str]:
        await world.door.learned(0)
        return await world.door.ask_all(world.engines)

    assert asyncio.run(whys()) == {"generator-0": "it failed at its first request: generator-0 died (injected)"}


# ---- before the run ----


class Deployed:
    """A deployment, as far as the first questions need it."""

    def __init__(self, world: World) -> None:
        self.workers, self._world = world.workers, world

    def publisher(self) -> Any:
        return self._world.publisher


def questioned(world: AtTheDoor, *, door: bool = True) -> int:
    async def ask() -> int:
        await world.door.learned(0)
        weights = await world.learner.export(0)
        return await first_questions(Deployed(world), weights, world.door if door else None)  # type: ignore[arg-type]

    return asyncio.run(ask())


def test_every_engine_is_given_the_learners_weights_and_the_first_is_asked_again(tmp_path: Path) -> None:
    world = AtTheDoor(tmp_path / "run")
    assert questioned(world) == 4
    assert sorted(name for name, _ in world.compared) == ["explorer-0", "explorer-1", "generator-0", "generator-0", "generator-1"]
    assert [engine.loaded for engine in world.engines] == [[0], [0], [0], [0]]


def test_without_a_door_the_weights_are_given_all_the_same(tmp_path: Path) -> None:
    world = AtTheDoor(tmp_path / "run")
    questioned(world, door=False)
    assert (world.compared, [engine.loaded for engine in world.engines]) == ([], [[0]] * 4)


@pytest.mark.parametrize("door", [True, False])
def test_an_engine_that_joins_before_the_first_update_is_given_the_weights_before_it_serves(tmp_path: Path, door: bool) -> None:
    world = (AtTheDoor if door else World)(tmp_path / "run", faults={"generators": {("sample", 3): ActorFault.DIE}})

    async def go() -> str:
        world.publisher.offer(await world.learner.export(0))
        return await world.go()

    assert virtual_time.run(go()) == "finished"
    replacement = next(engine for engine in world.engines if engine.name == "generator-2")
    assert replacement.loaded[0] == 0, "version 0 before any other, though it was started with it"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"faults": {"generators": {("sample", 1): ActorFault.DIE}}}, "it failed at its first request: generator-0 died"),
        ({"faults": {"generators": {("sample", 2): ActorFault.DIE}}}, "it failed at a request after its first update"),
        (
            {"faults": {"generators": {("load_weights", 1): ActorFault.DIE}}},
            "it did not take the learner's weights: generator-0 died",
        ),
        ({"flat_from": 0}, "differs from the learner by .* the likeliest cause: a temperature"),
    ],
)
def test_what_the_first_questions_find_is_refused(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(StartRefused, match=rf"^model\.path or engine\.options: generator-0.*{said}"):
        questioned(AtTheDoor(tmp_path / "run", **settings))


# ---- deaths ----


def dispatcher(**settings: Any) -> Dispatcher:
    at = Dispatcher({GENERATORS: 4}, PoolsConfig(max_deaths_in_a_row=5, replace_backoff_s=0.0, **settings))
    for n in range(6):
        at.slot_up(GENERATORS, f"g{n}")
    return at


def test_two_deaths_in_a_row_of_the_same_cause_are_enough() -> None:
    at = dispatcher()
    at.slot_down("g0", with_cause("died", "ValueError: head size 16 in process 7"))
    with pytest.raises(
        RunFailed, match=r"two workers in a row .*; g1: died; the likeliest cause: ValueError: head size 16 in process 8"
    ):
        at.slot_down("g1", with_cause("died", "ValueError: head size 16 in process 8"))


def test_other_causes_unknown_ones_and_work_between_are_not() -> None:
    at = dispatcher()
    at.slot_down("g0", with_cause("died", "ValueError: head"))
    at.slot_down("g1", with_cause("died", "MemoryError: heap"))
    at.slot_down("g2", "died")
    at.slot_down("g3", "died")
    at.not_started(GENERATORS, with_cause("did not start", "ValueError: head"))
    with pytest.raises(RunFailed, match="same cause"):
        at.not_started(GENERATORS, with_cause("did not start", "ValueError: head"))
