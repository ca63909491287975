"""Actors brought up side by side, and what an autoscaler is told meanwhile: stand-ins for what Ray starts. Real ones are in the tests with a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from builders import small_config

from fr3e_async.clock import steady
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.wiring import PolicyFiles, room
from fr3e_async.wiring.deployment import Deployment

Asked = list[tuple[dict[str, float], dict[str, str]]]
SPOT = {"ray.io/market-type": "spot"}
CONFIG = small_config(
    ray={"autoscaling": True, "room_timeout_s": 5.0},
    generators={"count": 2, "min": 1, "labels": SPOT},
    verifiers={"cpus": 0.5},
    learner={"ranks": 2, "cpus": 3.0, "step_timeout_s": 0.01},
)
LEARNER: Asked = [({"CPU": 3.0}, {})] * 2
ENGINES: Asked = [({"CPU": 1.0}, SPOT), ({"CPU": 1.0}, SPOT), ({"CPU": 1.0}, {})]
VERIFIER: Asked = [({"CPU": 0.5}, {})]


class Actor:
    def __init__(self, name: str) -> None:
        self.name, self.closed, self.node = name, 0, "node"

    async def close(self) -> None:
        self.closed += 1

    async def export(self, version: int) -> int:
        return version if version < 9 else await asyncio.sleep(60)  # type: ignore[func-returns-value]


class Starts:
    """Stands in for ``Starter``: records what is started, and fails for one role."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[tuple[str, Any]] = []
        self.up: list[Actor] = []

    async def worker(self, role: str, *, room_s: float | None) -> Actor:
        return await self._start(role, room_s)

    async def learner(self, resume_from: Path | None) -> Actor:
        return await self._start("learner", resume_from)

    async def _start(self, name: str, told: Any) -> Actor:
        self.calls.append((name, told))
        await asyncio.sleep(0)
        if name == self.fails:
            raise RunFailed(f"{name}-0 died")
        self.up.append(Actor(name))
        return self.up[-1]

    def first_error(self, name: str) -> str:
        return f"error of {name}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What the autoscaler was asked for, each time."""
    found: list[Asked] = []
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 3.0, "object_store_memory": 1e9}}])
    monkeypatch.setattr(room, "request", found.append)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    return found


def deployment(starts: Any) -> Deployment:
    folders: Any = SimpleNamespace(logs=Path("logs"), dumps=Path("dumps"))
    return Deployment(CONFIG, PolicyFiles(path="folder", end_token_ids=(1,)), folders, clock=steady, starter=starts)


def test_all_that_is_wanted_is_asked_for_while_the_least_comes_up(asked: list[Asked]) -> None:
    starts = Starts()
    made = deployment(starts)

    async def scenario() -> None:
        await made.start(resume_from=Path("step"))
        assert asked == [[*ENGINES, *VERIFIER, *LEARNER], []]
        await made.start_worker("generators")
        await made.close()

    asyncio.run(scenario())
    told = [("learner", Path("step")), ("generators", 5.0), ("explorers", 5.0), ("verifiers", 5.0)]
    assert starts.calls == [*told, ("generators", None)]
    assert asked == [[*ENGINES, *VERIFIER, *LEARNER], []] * 2
    assert [actor.closed for actor in starts.up] == [1, 1, 1, 1, 0]  # who came last was never given to the workers


def test_an_evaluation_alone_wants_neither_explorers_nor_a_learner(asked: list[Asked]) -> None:
    starts = Starts()
    asyncio.run(deployment(starts).start_serving())
    assert starts.calls == [("generators", 5.0), ("verifiers", 5.0)]
    assert asked == [[*ENGINES[:2], *VERIFIER], []]


def test_the_first_failure_is_the_starts(asked: list[Asked]) -> None:
    starts = Starts(fails="explorers")
    made = deployment(starts)
    with pytest.raises(RunFailed, match=r"^explorers-0 died$"):
        asyncio.run(made.start(resume_from=None))
    assert not hasattr(made, "workers")
    assert asked[-1] == []


def test_another_learner_takes_the_place_of_one_that_is_ended(asked: list[Asked]) -> None:
    starts = Starts()
    made = deployment(starts)

    async def scenario() -> None:
        await made.start(resume_from=None)
        first = made.workers.learner
        await made.restart_learner(resume_from=Path("later"))
        assert (made.workers.learner is starts.up[-1], first.closed, starts.calls[-1]) == (True, 1, ("learner", Path("later")))  # type: ignore[attr-defined]
        assert await made.weights(4) == 4
        with pytest.raises(LearnerLost, match=r"^the learner did not export v9 within learner\.step_timeout_s \(0\.01 s\)$"):
            await made.weights(9)

    asyncio.run(scenario())
