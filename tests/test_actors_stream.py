"""Rollouts that leave an engine actor as they end, over a real Ray: what is kept, what is cancelled, what the driver never fetches."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.exceptions
from make_support import figures
from ray._private import serialization

from fr3e_async.actors.engine import EngineActor
from fr3e_async.actors.proxies import RayEngine, RayLearner, references
from fr3e_async.algorithm.anchors import AnchorRule, with_anchors
from fr3e_async.control.ports import Delivery, Trunks, WorkerLost
from fr3e_async.rollout.port import EngineDead, SampleRequest
from fr3e_async.rollout.rollout_worker import RolloutWorker, TokenTexts
from fr3e_async.testing.fakes import fake_anchors
from fr3e_async.types import Completion, Draw, Finish, Prompt, RolloutBatch, RolloutId
from fr3e_async.weights.checksum import checksum
from fr3e_async.weights.manifest import WeightManifest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
LONG = 60_000  # tokens of a rollout: far more than Ray carries by value


class NoText:
    """A tokenizer whose tokens are no text."""

    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: dict[int, Any] = {}

    def decode(self, ids: Any, **_: Any) -> str:
        return "." * len(ids)


def branch_of(request: SampleRequest) -> int:
    return int(request.request_id.split("#")[0].split("/")[2])


class ByBranch:
    """An engine whose rollout ends after its branch index in tenths of a second; branch 99 never does, branch 98 finds it dead."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.contexts: list[Any] = []  # [C] token ids of every request

    async def sample(self, request: SampleRequest) -> Completion:
        branch = branch_of(request)
        self.contexts.append(request.context)
        self.running.add(request.request_id)
        try:
            await asyncio.sleep({99: 600.0, 98: 0.5}.get(branch, branch / 10))
            if branch == 98:
                raise EngineDead("the core is gone")
        finally:
            self.running.discard(request.request_id)
        numbers = np.zeros(LONG, dtype=np.float32)
        return Completion(
            tokens=np.full(LONG, branch, dtype=np.int32), logprobs=numbers, entropies=numbers, entropy_errors=numbers,
            versions=np.zeros(LONG, dtype=np.int32), finish=Finish.STOP,
        )  # fmt: skip


class StreamingActor(EngineActor):
    """The real actor on an engine without a model."""

    def __init__(self) -> None:
        self._loop = asyncio.get_event_loop()
        self._engine: Any = ByBranch()
        self._rescored = False
        rule = AnchorRule(name="uniform", count=2, min_gap=1)
        self._rollout_worker = RolloutWorker(self._engine, TokenTexts(NoText()), rule, seed=0)

    def running(self) -> int:
        return len(self._engine.running)

    def pid(self) -> int:
        return os.getpid()

    def first_token(self, batch: RolloutBatch) -> int:
        return int(batch.tokens[0])

    def contexts(self) -> list[tuple[int, int]]:
        """Of every request so far its context's length, and how many of its tokens are the trunk's."""
        return [(len(context), int((context == 3).sum())) for context in self._engine.contexts]

    def views(self, batch: RolloutBatch) -> list[tuple[bool, int]]:
        """Whether the tokens and the anchors may be written to, and where in memory they lie."""
        assert batch.anchors is not None
        return [(its.flags.writeable, its.__array_interface__["data"][0]) for its in (batch.tokens, batch.anchors)]

    def anchors(self, batch: RolloutBatch) -> Any:
        return None if batch.anchors is None else batch.anchors.tolist()


class ExportingRank:
    """A learner rank whose export and re-scoring are made of nothing, as ``LearnerActor`` streams them."""

    def export(self, version: int, held: Any, bucket_bytes: int) -> Iterator[Any]:
        tensor = np.full(LONG, version, dtype=np.float32)
        yield (tensor,)
        yield WeightManifest(
            version=version, dtype="float32", names=("w",), shapes=((LONG,),), checksums=(checksum(tensor),), buckets=(1,)
        )

    def rescore(self, payloads: list[Any], trunks: list[Any]) -> list[Any]:
        batches = ray.get(payloads)
        chosen = [tuple(a for id in ids for a in fake_anchors(id.branch)) for ids in trunks]
        return [chosen, None, *map(with_anchors, batches, chosen)]

    def broken(self) -> Iterator[Any]:
        yield 1
        raise ValueError("the disk is full")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parent.parent}"}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def actor(cluster: None) -> Iterator[Any]:
    made = ray.remote(num_cpus=0, max_concurrency=100)(StreamingActor).remote()
    ray.get(made.pid.remote())
    yield made
    ray.kill(made)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every array that comes into this process, out of the object store or with a message."""
    seen: list[int] = []
    plain = serialization.unpack_pickle5_buffers

    def unpack(data: Any) -> Any:
        in_band, buffers = plain(data)
        seen.extend(len(buffer) for buffer in map(memoryview, buffers))
        return in_band, buffers

    monkeypatch.setattr(serialization, "unpack_pickle5_buffers", unpack)
    return seen


def rollouts(engine: RayEngine, branches: list[int], *, trunk: bool = False) -> AsyncIterator[tuple[Delivery, Any]]:
    prompt = Prompt(uid="q", text="", reference="", token_ids=np.array([5, 6, 7], np.int32))
    ids = [RolloutId("q@0", 0, branch) for branch in branches]
    return engine.sample([prompt] * len(ids), ids, Draw(max_tokens=2 * LONG), trunk=trunk)


def within(seconds: float, scenario: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, seconds))


async def nothing_runs(actor: Any) -> None:
    while await actor.running.remote():
        await asyncio.sleep(0.02)


def test_rollouts_come_one_by_one_and_the_driver_fetches_none(actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unpickled: list[int] = []
    monkeypatch.setattr(RolloutBatch, "__setstate__", lambda self, state: unpickled.append(1), raising=False)

    async def scenario() -> tuple[list[list[int]], list[Any], int]:
        came, payloads, anchors = [], [], 0
        async for delivery, payload in rollouts(RayEngine("e", actor), [9, 1, 5], trunk=True):
            came.append([note.id.branch for note in delivery.notes])
            payloads.append(payload)
            anchors += len(delivery.anchors or ())
        return came, payloads, anchors

    came, payloads, anchors = within(120, scenario())
    assert came == [[1], [5], [9]]
    assert anchors == 3 * 2
    assert [ray.get(actor.first_token.remote(payload)) for payload in payloads] == [1, 5, 9], "handed on by reference"
    assert unpickled == []
    ray.get(payloads[0])
    assert unpickled == [1], "or the count would see nothing"


def test_an_explorer_reads_prefix_and_anchors_from_the_published_object(actor: Any, counted: list[int]) -> None:
    """It is given a reference and ids, and opens the generator's object where it lies: arrays that are views of the store, never written."""

    async def scenario() -> tuple[Any, Any, list[list[int]], Any]:
        engine = RayEngine("e", actor)
        ((delivery, payload),) = [one async for one in rollouts(engine, [3], trunk=True)]
        ids = [RolloutId("q@0", anchor.node, 1) for anchor in delivery.anchors or ()]
        branches = [
            [note.context for note in told.notes]
            async for told, _ in engine.branch(payload, RolloutId("q@0", 0, 3), ids, Draw(max_tokens=2 * LONG))
        ]
        return delivery.anchors, payload, branches, await actor.contexts.remote()

    anchors, payload, branches, contexts = within(120, scenario())
    positions = sorted((anchor.position for anchor in anchors), reverse=True)
    assert len(positions) == 2
    assert sorted([context for told in branches for context in told], reverse=True) == [3 + position for position in positions]
    assert contexts[1:] == [(3 + position, position) for position in positions], "the prefix is the trunk's own tokens"
    assert ray.get(actor.anchors.remote(payload)) == [(a.node, a.position, 0.0, a.score) for a in anchors]
    first, second = ray.get([actor.views.remote(payload) for _ in range(2)])
    assert [writeable for writeable, _ in first] == [False, False]
    assert first == second, "two calls see the same memory: the store's"
    assert counted == []


def test_weights_and_rescored_trunks_pass_the_driver_as_references(actor: Any, counted: list[int]) -> None:
    rank = ray.remote(num_cpus=0)(ExportingRank).remote()
    learner = RayLearner([rank], None, bucket_bytes=1)

    async def scenario() -> tuple[Any, Any, Any]:
        bundle = await learner.export(7)
        ((_, payload),) = [one async for one in rollouts(RayEngine("e", actor), [3])]
        return bundle, payload, await learner.rescore([Trunks(payload=payload, ids=(RolloutId("q@0", 0, 3),), length=9)])

    bundle, payload, ((anchors, anchored),) = within(120, scenario())
    assert (bundle.version, bundle.manifest.names) == (7, ("w",))
    assert isinstance(bundle.buckets[0], ray.ObjectRef)
    assert anchors == fake_anchors(3)
    told = ray.get([actor.anchors.remote(one) for one in (payload, anchored)])
    assert told == [None, [(a.node, a.position, 0.0, a.score) for a in anchors]]
    assert counted == [], "no array came here"
    ((bucket,), batch) = ray.get([bundle.buckets[0], anchored])
    assert (bucket.tolist()[:2], len(batch)) == ([7.0, 7.0], 1)
    assert len(counted) > 1, "or the count would see nothing"
    ray.kill(rank)


def test_a_stream_that_fails_gives_its_error_and_no_references(cluster: None) -> None:
    rank = ray.remote(num_cpus=0)(ExportingRank).remote()
    with pytest.raises(ray.exceptions.RayTaskError, match="the disk is full"):
        within(60, references(rank.broken.options(num_returns="streaming").remote()))
    ray.kill(rank)


async def until_lost(deliveries: AsyncIterator[tuple[Delivery, Any]], kill: Any = None) -> tuple[list[int], list[Any]]:
    """Branches and payloads that came before the worker was lost; ``kill``: the actor, once branch 2 is here."""
    came: list[int] = []
    payloads = []
    try:
        async for delivery, payload in deliveries:
            came += [note.id.branch for note in delivery.notes]
            payloads.append(payload)
            if kill is not None and 2 in came:
                os.kill(await kill.pid.remote(), signal.SIGKILL)
    except WorkerLost:
        return came, payloads
    raise AssertionError("it was not lost")


def test_an_actor_that_is_killed_loses_only_what_it_had_not_delivered(actor: Any) -> None:
    came, payloads = within(120, until_lost(rollouts(RayEngine("e", actor), [1, 2, 99]), kill=actor))
    assert came == [1, 2]
    assert [batch.tokens[0] for payload in payloads for batch in [ray.get(payload)]] == [1, 2]


def test_an_engine_that_dies_ends_its_process_after_what_had_ended(actor: Any) -> None:
    came, _ = within(120, until_lost(rollouts(RayEngine("e", actor), [1, 98, 99])))
    assert came == [1]


def test_a_stream_that_is_left_leaves_nothing_in_its_engine(actor: Any) -> None:
    async def scenario() -> None:
        deliveries = rollouts(RayEngine("e", actor), [1, 99])
        delivery, _ = await anext(deliveries)
        assert [note.id.branch for note in delivery.notes] == [1]
        assert await actor.running.remote() == 1
        await deliveries.aclose()
        await nothing_runs(actor)

    within(120, scenario())


def test_a_wait_that_is_cancelled_leaves_nothing_in_its_engine(actor: Any) -> None:
    async def scenario() -> None:
        async def wait() -> None:
            async for _ in rollouts(RayEngine("e", actor), [99]):
                pass

        waiting = asyncio.create_task(wait())
        while not await actor.running.remote():
            await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await nothing_runs(actor)

    within(120, scenario())


def test_many_streams_of_one_actor_do_not_mix(actor: Any) -> None:
    async def one(engine: RayEngine, branches: list[int]) -> list[int]:
        return [note.id.branch async for delivery, _ in rollouts(engine, branches) for note in delivery.notes]

    async def scenario() -> list[list[int]]:
        engine = RayEngine("e", actor)
        return await asyncio.gather(*(one(engine, [i % 7, i % 5, 3]) for i in range(20)))

    assert [sorted(found) for found in within(120, scenario())] == [sorted([i % 7, i % 5, 3]) for i in range(20)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_ways_to_deliver_are_compared(tmp_path: Path) -> None:
    program = Path(__file__).parent.parent / "benchmarks" / "delivery.py"
    subprocess.run([sys.executable, program, "--quick", "--json", tmp_path / "out.json"], check=True, stdout=subprocess.DEVNULL)
    found = figures(tmp_path / "out.json")
    assert {row["way"] for row in found["cost"]} == {"task", "call", "stream", "batch"}
    assert all(row["all"] > 0 for row in found["cost"])
    kept = {
        row["way"]: [row[fault]["readable elsewhere"] for fault in ("killed within", "cancelled within")]
        for row in found["faults"]
    }
    assert kept["task"] == [0, 0]
    assert kept["batch"] == kept["stream"] == kept["call"]
    assert min(kept["batch"]) >= 1
    assert {row["way"]: row["killed after"]["notes"] for row in found["faults"]} == dict.fromkeys(kept, 8)
