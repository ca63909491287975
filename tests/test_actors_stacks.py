"""What actors tell when they are stuck, and how the loss of a process behind them shows: on threads, on fakes, on real actors."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import virtual_time
from engine_world import END, build_model, core_below, save_tokenizer
from learner_support import make_samples, make_spec
from ray.exceptions import RayActorError, RayTaskError

from fr3e_async.actors.engine import EngineActor
from fr3e_async.actors.learner import LearnerActor
from fr3e_async.actors.proxies import RayEngine, RayLearner, RayVerifier
from fr3e_async.actors.verifier import VerifierActor
from fr3e_async.actors.watch import FRAMES, Watched, watchable
from fr3e_async.config import EngineConfig, VerifierPoolConfig
from fr3e_async.control.ports import WorkerLost
from fr3e_async.errors import LearnerLost, RunFailed
from fr3e_async.learner.spec import rank_environment
from fr3e_async.rollout import EngineSpec, engine_environment
from fr3e_async.types import Draw, Prompt, RolloutId

# ---- what is told ----


def held(gate: threading.Event, depth: int) -> None:
    gate.wait() if depth == 0 else held(gate, depth - 1)


def told_of_a_thread(depth: int) -> str:
    """What is said while a thread has called ``held`` so deep."""
    gate = threading.Event()
    thread = threading.Thread(target=held, args=(gate, depth), name="the-stuck-one", daemon=True)
    with ThreadPoolExecutor(1, thread_name_prefix="idle-pool") as pool:
        pool.submit(int).result()
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while "wait" not in (stacks := Watched().stacks()).split("the-stuck-one")[-1] and time.monotonic() < deadline:
                time.sleep(0.01)
            return stacks
        finally:
            gate.set()
            thread.join()


def test_a_stuck_thread_is_told_by_name_and_place_and_idle_ones_are_left_out():
    stacks = told_of_a_thread(2)
    part = stacks[stacks.index("thread the-stuck-one:") :].split("\nthread ")[0]
    assert part.count("tests/test_actors_stacks.py:") == part.count(" held") == 3
    assert "idle-pool" not in stacks
    assert "told_of_a_thread" not in stacks, "nor the one that asks"


def test_no_more_than_the_innermost_calls_are_told():
    stacks = told_of_a_thread(3 * FRAMES)
    part = stacks[stacks.index("thread the-stuck-one:") :].split("\nthread ")[0]
    assert len(part.splitlines()) == 1 + FRAMES
    assert part.splitlines()[-1].endswith(" wait")
    assert "_bootstrap" not in part


def test_tasks_are_told_by_what_they_wait_for_and_alike_ones_once():
    class Actor(Watched):
        async def outer(self, gate: asyncio.Event) -> None:
            await self.inner(gate)

        async def inner(self, gate: asyncio.Event) -> None:
            await gate.wait()

    async def main() -> str:
        actor, gate = Actor(), asyncio.Event()
        actor.loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(actor.outer(gate)) for _ in range(3)] + [asyncio.create_task(actor.inner(gate))]
        await asyncio.sleep(0)
        stacks = await asyncio.to_thread(actor.stacks)
        gate.set()
        await asyncio.gather(*tasks)
        return stacks

    stacks = asyncio.run(main())
    three = stacks[stacks.index("3 tasks:") :].splitlines()[1:4]
    assert [line.rsplit(" ", 1)[1] for line in three] == ["outer", "inner", "wait"]
    assert "1 task:" in stacks


# ---- the learner's proxy, on fake ranks ----


@dataclass
class Rank:
    """An actor's handle: ``acts`` says what a method does."""

    acts: dict[str, Callable[[], Awaitable[Any]]]

    def __getattr__(self, name: str) -> Any:
        @dataclass
        class Call:
            act: Callable[[], Awaitable[Any]]

            def options(self, **_: Any) -> Call:
                return self

            def remote(self, *_: Any) -> Awaitable[Any]:
                return self.act()

        return Call(self.acts[name])


def giving(value: Any, *, after: float = 0.0) -> Callable[[], Awaitable[Any]]:
    async def act() -> Any:
        await asyncio.sleep(after)
        if isinstance(value, Exception):
            raise value
        return value

    return act


DEAD, REFUSED = RayActorError(), RayTaskError("save", "RuntimeError: Connection closed by peer", RuntimeError("closed"))


def group(*ranks: dict[str, Callable[[], Awaitable[Any]]]) -> RayLearner:
    return RayLearner([Rank(acts) for acts in ranks], None, bucket_bytes=1)


def save(learner: RayLearner) -> None:
    virtual_time.run(learner.save(Path("x")))


def test_a_dead_rank_is_a_lost_learner():
    hangs = giving(None, after=60)
    with pytest.raises(LearnerLost, match=r"^learner rank 1: RayActorError$"):
        save(group({"save": hangs}, {"save": giving(DEAD)}))


def test_a_rank_that_raises_because_its_peer_died_is_no_fault_of_the_run():
    alive = {"save": giving(REFUSED), "pulse": giving(1)}
    with pytest.raises(LearnerLost, match="learner rank 1: RayActorError"):
        save(group(alive, {"save": giving(None, after=60), "pulse": giving(DEAD, after=0.1)}))


def test_a_rank_that_raises_while_all_live_fails_the_run(monkeypatch):
    monkeypatch.setattr("fr3e_async.actors.proxies.ASK_S", 0.1)
    alive = {"save": giving(REFUSED), "pulse": giving(1)}
    for other in (giving(2), giving(2, after=60)):
        with pytest.raises(RunFailed, match="Connection closed by peer") as failure:
            save(group(alive, {"save": giving(None), "pulse": other}))
        assert not isinstance(failure.value, LearnerLost)


def test_stacks_of_a_group_come_within_the_limit_and_pulses_add_up():
    learner = group(
        {"stacks": giving("in train"), "pulse": giving(3)},
        {"stacks": giving("late", after=60), "pulse": giving(4)},
        {"stacks": giving(DEAD), "pulse": giving(5)},
    )
    stacks = virtual_time.run(learner.stacks(0.1))
    assert stacks == ["in train", "does not answer within 0.1 s", "learner rank 2: RayActorError"]
    assert virtual_time.run(learner.pulse()) == 12


# ---- real actors ----


@dataclass
class Actors:
    """An engine, a verifier whose loop can be blocked, a learner of one rank that hangs in ``train`` after its update."""

    engine: RayEngine
    verifier: RayVerifier
    learner: RayLearner
    rank: Any


def actors_of(folder: Path) -> Actors:
    """Started side by side. The classes are made here, so that Ray sends them by value."""

    class BlockedVerifier(VerifierActor):
        async def judge(self, *_: Any) -> list[Any]:
            time.sleep(30)
            return []

    class HangingLearner(LearnerActor):
        def train(self, samples: Any, *_: Any) -> Any:
            self._rank.train(samples, version=1)
            self._hang_after_the_update()

        def _hang_after_the_update(self) -> None:
            threading.Event().wait()

    model, log = str(folder / "model"), str(folder / "log")
    build_model(folder / "model", tied=True)
    save_tokenizer(folder / "model")
    spec = EngineSpec(
        model=model, end_token_ids=(END,), max_model_len=64,
        engine=EngineConfig(dtype="float32", kv_cache_gib=0.02, block_size=32, max_running=4),
    )  # fmt: skip
    learning = make_spec(Path(model))
    engine = (
        watchable(EngineActor)
        .options(num_cpus=0, max_concurrency=100, runtime_env={"env_vars": engine_environment(spec)})
        .remote(spec, None, 0, log)
    )
    verifier = watchable(BlockedVerifier).options(num_cpus=0).remote(VerifierPoolConfig(workers=1), model, "", False, log)
    rank = (
        watchable(HangingLearner)
        .options(num_cpus=0, runtime_env={"env_vars": rank_environment(learning)})
        .remote(learning, None, log)
    )
    starting = engine.start.remote()
    ray.get([starting, rank.start.remote(0, 1, *ray.get(rank.address.remote()), "")])  # the verifier has nothing to load
    return Actors(
        engine=RayEngine("engine-0", engine),
        verifier=RayVerifier("verifier-0", verifier),
        learner=RayLearner([rank], None, bucket_bytes=1 << 20),
        rank=rank,
    )


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actors]:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        object_store_memory=100_000_000,
    )  # fmt: skip
    yield actors_of(tmp_path_factory.mktemp("actors"))
    ray.shutdown()


def pid_of(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def gone(pid: int, *, within: float) -> bool:
    deadline = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def within(seconds: float, call: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(call, seconds)

    return asyncio.run(main())


def on_real_actors(test: Any) -> Any:
    for mark in (pytest.mark.ray, pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(240)):
        test = mark(test)
    return test


@on_real_actors
def test_weights_go_from_a_learner_to_an_engine_and_both_pulses_tell(actors):
    before = [within(60, port.pulse()) for port in (actors.learner, actors.engine)]
    bundle = within(60, actors.learner.export(1))
    ack = within(60, actors.engine.load_weights(bundle))
    assert (ack.version, ack.checksum) == (1, bundle.checksum)
    after = [within(60, port.pulse()) for port in (actors.learner, actors.engine)]
    assert after[0] > before[0]
    assert after[1] == before[1] + 1


@on_real_actors
def test_an_actor_whose_loop_is_blocked_still_answers(actors):
    async def main() -> tuple[str, int]:
        judging = asyncio.ensure_future(actors.verifier.judge(None, [], []))
        await asyncio.sleep(0.5)
        try:
            return await asyncio.wait_for(actors.verifier.stacks(), 25), await asyncio.wait_for(actors.verifier.pulse(), 25)
        finally:
            judging.cancel()

    stacks, pulse = asyncio.run(main())
    assert "tests/test_actors_stacks.py:" in stacks
    assert " judge" in stacks
    assert pulse == 0


@on_real_actors
def test_a_learner_answers_from_inside_train_and_its_death_is_a_lost_learner(actors, tmp_path):
    pid, before = pid_of(actors.rank), within(60, actors.learner.pulse())
    actors.rank.train.remote(make_samples(1))
    stacks = ""
    deadline = time.monotonic() + 60
    while "_hang_after_the_update" not in stacks and time.monotonic() < deadline:
        (stacks,) = within(60, actors.learner.stacks(30))
        time.sleep(0.05)
    assert " train" in stacks
    assert within(60, actors.learner.pulse()) - before >= 2 * 4 + 4, "4 optimiser steps, each of a micro-batch or more"

    os.kill(pid, signal.SIGSTOP)
    assert within(60, actors.learner.stacks(0.3)) == ["does not answer within 0.3 s"]
    os.kill(pid, signal.SIGCONT)

    async def main() -> None:
        saving = asyncio.ensure_future(actors.learner.save(tmp_path))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LearnerLost, match=r"^learner rank 0: "):
            await saving

    within(60, main())


def sampled(engine: RayEngine) -> None:
    prompts = [Prompt(uid=f"p{i}", text="", reference="", token_ids=np.array([5, 6, i], np.int32)) for i in range(3)]
    ids = [RolloutId(f"p{i}@0", 0, 0) for i in range(3)]

    async def main() -> list[RolloutId]:
        return [
            note.id
            async for delivery, _ in engine.sample(prompts, ids, Draw(max_tokens=20), trunk=False)
            for note in delivery.notes
        ]

    assert sorted(within(60, main())) == ids


@on_real_actors
def test_an_engine_whose_core_dies_while_nobody_samples_ends_at_the_next_heartbeat(actors):
    engine = actors.engine
    before = within(60, engine.pulse())
    sampled(engine)
    assert within(60, engine.pulse()) - before >= 2 * 3 + 1
    assert isinstance(within(60, engine.stacks()), str)
    pid = pid_of(engine.actor)
    os.kill(core_below(pid), signal.SIGKILL)

    async def beat() -> None:
        while True:
            await engine.stats()
            await asyncio.sleep(0.2)

    with pytest.raises(WorkerLost):
        within(60, beat())
    assert gone(pid, within=2)
    for call in (engine.stacks, engine.pulse, engine.stats):
        with pytest.raises(WorkerLost):
            within(60, call())
