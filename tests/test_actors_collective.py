"""The driver's side of vLLM's own transfer: who meets whom, what a lost engine leads to, and what the learner waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import virtual_time
from builders import small_config
from bundles import pack_tensors
from test_weights_bundle import named

from fr3e_async.actors.collective import CollectiveLearner
from fr3e_async.control.ports import WorkerLost
from fr3e_async.errors import LearnerLost
from fr3e_async.weights.manifest import WeightAck, WeightManifest
from fr3e_async.wiring import Deployment


def manifest(version: int) -> WeightManifest:
    return pack_tensors(named(version), version=version).manifest


class Engine:
    """An engine's proxy. ``join`` and ``receive``: what these calls do instead of going well."""

    def __init__(self, name: str, *, join: str = "", receive: str = "") -> None:
        self.name, self.join, self.receive = name, join, receive
        self.ranks: list[tuple[int, int]] = []  # (rank, world) of each meeting

    async def _act(self, how: str) -> None:
        if how == "hang":
            await asyncio.Event().wait()
        if how:
            raise WorkerLost(f"{self.name}: {how}")

    async def join_transfer(self, meeting: Any, *, rank: int) -> None:
        await self._act(self.join)
        self.ranks.append((rank, meeting.world))

    async def receive_weights(self, told: WeightManifest) -> WeightAck:
        await self._act(self.receive)
        return WeightAck(
            version=told.version, checksum=told.checksum, verified_tensors=6, loaded_tensors=6, copied_bytes=84, skipped_bytes=0,
            copy_s=0.0, load_s=0.0, verify_s=0.0, pause_s=0.0,
        )  # fmt: skip


class Call:
    """``actor.method.remote(...)`` of a rank that is no actor."""

    def __init__(self, rank: Rank, name: str) -> None:
        self._rank, self._name = rank, name

    def remote(self, *args: Any) -> Any:
        return self._rank.act(self._name, *args)


class Rank:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.hang = ""

    def __getattr__(self, name: str) -> Call:
        return Call(self, name)

    async def act(self, name: str, *args: Any) -> Any:
        self.calls.append(name)
        if name == self.hang:
            await asyncio.Event().wait()
        return {"describe": lambda: manifest(args[0]), "address": lambda: ("here", 5)}.get(name, lambda: None)()


def learner(rank: Rank) -> CollectiveLearner:
    return CollectiveLearner([rank], None, bucket_bytes=1, backend="gloo", timeout_s=0.1)


def hand_over(collective: CollectiveLearner, engines: list[Engine], version: int) -> list[WeightAck | str]:
    return virtual_time.run(collective.hand_over(engines, manifest(version)))


def test_one_group_serves_all_updates_of_the_same_engines():
    rank = Rank()
    collective, engines = learner(rank), [Engine("a"), Engine("b")]
    for version in (1, 2):
        assert [ack.version for ack in hand_over(collective, engines, version)] == [version] * 2
    assert [engine.ranks for engine in engines] == [[(1, 3)], [(2, 3)]]
    assert rank.calls == ["address", "open_transfer", "send", "send"]


def test_the_group_is_made_again_when_the_engines_change():
    collective, (a, b, c) = learner(Rank()), (Engine(name) for name in "abc")
    for version, engines in enumerate([[a, b], [a], [a, c]], start=1):
        hand_over(collective, engines, version)
    assert a.ranks == [(1, 3), (1, 2), (1, 3)]
    assert (b.ranks, c.ranks) == ([(2, 3)], [(2, 3)])


@pytest.mark.parametrize("how", ["died", "hang"])
def test_an_engine_that_does_not_join_is_left_out_and_the_others_continue(how):
    collective, good, bad = learner(Rank()), Engine("good"), Engine("bad", join=how)
    lost, ack = hand_over(collective, [bad, good], 1)
    assert lost == ("bad: died" if how == "died" else "no answer within weights.ack_timeout_s (0.1 s)")
    assert ack.version == 1
    assert good.ranks == [(2, 3), (1, 2)]


def test_after_a_loss_on_the_way_the_group_is_made_again():
    collective, good, bad = learner(Rank()), Engine("good"), Engine("bad", receive="died")
    ack, lost = hand_over(collective, [good, bad], 1)
    assert (ack.version, lost) == (1, "bad: died")
    bad.receive = ""
    assert all(isinstance(reply, WeightAck) for reply in hand_over(collective, [good, bad], 2))
    assert good.ranks == [(1, 3)] * 2


def test_a_learner_that_is_stuck_fails_the_run():
    rank = Rank()
    rank.hang = "send"
    with pytest.raises(LearnerLost, match=r"stuck in a hand-over of weights for 0\.2 s .*weights\.ack_timeout_s"):
        hand_over(learner(rank), [Engine("a")], 1)


def test_training_waits_until_the_exported_weights_are_sent():
    rank = Rank()
    collective = learner(rank)

    async def main() -> None:
        bundle = await collective.export(1)
        assert (bundle.manifest, bundle.buckets) == (manifest(1), (None,))
        training = asyncio.create_task(collective.train([], version=2))
        await asyncio.sleep(0.02)
        assert "train" not in rank.calls
        await collective.hand_over([Engine("a")], bundle.manifest)
        await training

    virtual_time.run(main())
    assert rank.calls == ["describe", "address", "open_transfer", "send", "train"]


def test_only_an_export_for_a_common_hand_over_makes_the_learner_wait():
    made = learner(Rank())
    assert not made.waits()
    virtual_time.run(made.export(3))
    assert made.waits(), "until engines have them"


def test_a_resumed_run_takes_stored_weights_which_make_nobody_wait():
    """Engines join one by one then: no common hand-over would ever release the learner."""
    taken: list[str] = []

    class Learner(CollectiveLearner):
        async def stored(self) -> Any:
            taken.append("stored")

    deployment = Deployment.__new__(Deployment)
    deployment.config = small_config()
    deployment.workers = SimpleNamespace(learner=Learner([Rank()], None, bucket_bytes=1, backend="gloo", timeout_s=0.1))
    virtual_time.run(deployment.weights(3))
    assert taken == ["stored"]
    assert not deployment.workers.learner.waits()
