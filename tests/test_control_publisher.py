"""The hand-over of weights: what an engine must answer, what is told and measured, and how a newcomer is served."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import virtual_time

from fr3e_async.control.publisher import Publisher, Sync
from fr3e_async.errors import LearnerLost
from fr3e_async.testing.fakes import ActorFault, FakeEngineWorker, FakeLearner
from fr3e_async.weights.manifest import WeightAck, WeightBundle


class Lying(FakeEngineWorker):
    def __init__(self, **lies: int) -> None:
        super().__init__("liar")
        self._lies = lies

    async def load_weights(self, weights: WeightBundle) -> WeightAck:
        return replace(await super().load_weights(weights), **self._lies)


class Direct:
    """A learner that sends to all at once; its stored weights are those of ``version``."""

    def __init__(self, version: int) -> None:
        self.version, self.served = version, []

    async def hand_over(self, engines: Any, manifest: Any) -> list[Any]:
        self.served.append([engine.name for engine in engines])
        bundle = WeightBundle(manifest=manifest, buckets=(None,))
        return ["gone" if engine.name == "bad" else await engine.load_weights(bundle) for engine in engines]

    async def stored(self) -> WeightBundle:
        return await FakeLearner().export(self.version)


class Hearing:
    """A publisher, and what it tells: by engine, the version it has or why it has none."""

    def __init__(self, *, direct: Any = None) -> None:
        self.now = 0.0
        self.publisher = Publisher(ack_timeout_s=0.1, clock=lambda: self.now, direct=direct)
        self.heard: dict[str, int | str] = {}

    def told(self, name: str, reply: WeightAck | str) -> None:
        self.heard[name] = reply if isinstance(reply, str) else reply.version

    def hand_over(self, version: int, *engines: FakeEngineWorker, alone: bool = False) -> dict[str, int | str]:
        async def main() -> None:
            self.publisher.offer(await FakeLearner().export(version))
            await self.publisher.hand_over(engines, self.told, alone=alone)

        virtual_time.run(main())
        return self.heard


@pytest.mark.parametrize(
    ("lies", "message"),
    [({"version": 6}, r"acknowledged weights v6 with checksum"), ({"checksum": 3}, "checksum 0x0000000000000003 instead")],
)
def test_an_engine_with_another_version_or_other_weights_has_none(lies, message):
    hearing = Hearing()
    heard = hearing.hand_over(7, Lying(**lies), FakeEngineWorker("good"))
    assert message in str(heard["liar"])
    assert heard["good"] == 7
    assert len(hearing.publisher.sync(7).acks) == 1


def test_what_is_measured():
    hearing = Hearing()
    hearing.hand_over(1, FakeEngineWorker("a"), Lying(pause_s=0.009, copied_bytes=0, verified_tensors=5, probed_tensors=2))
    hearing.now = 2.5
    sync = hearing.publisher.sync(1)
    assert (sync.time_s, sync.pause_s) == (2.5, pytest.approx(0.005))
    assert sync.metrics == {
        "time/pause_max_s": 0.009,
        "time/copy_s": 0.001,
        "weights/sent_bytes": 4.0,
        "weights/skipped_bytes": 0.0,
        "weights/copied_bytes": 2.0,
        "weights/verified_tensors": 1.0,
        "weights/probed_tensors": 2.0,
    }


def test_acknowledgements_count_for_the_version_that_has_become_live():
    """Of versions 1 and 2 only the first is live everywhere: the second one's are counted later, and none of them twice."""
    hearing = Hearing()
    hearing.hand_over(1, FakeEngineWorker("a"), FakeEngineWorker("b"))
    hearing.hand_over(2, FakeEngineWorker("a"))
    assert [ack.version for ack in hearing.publisher.sync(1).acks] == [1, 1]
    hearing.hand_over(2, FakeEngineWorker("b"))
    assert [ack.version for ack in hearing.publisher.sync(2).acks] == [2, 2]
    assert hearing.publisher.sync(2).acks == ()


def test_a_hand_over_to_nobody_has_no_times_to_speak_of():
    sync = Sync(version=3, time_s=0.0, acks=())
    assert (sync.pause_s, sync.metrics["time/pause_max_s"], sync.metrics["weights/copied_bytes"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (ActorFault.DIE, r"slow died \(injected\)"),
        (ActorFault.HANG, r"no answer within weights\.ack_timeout_s \(0\.1 s\)"),
        (ActorFault.SILENT, r"no answer within weights\.ack_timeout_s \(0\.1 s\)"),
    ],
)
def test_one_that_does_not_take_them_holds_nobody_up(fault, why):
    slow = FakeEngineWorker("slow", faults={("load_weights", 1): fault})
    heard = Hearing().hand_over(2, slow, FakeEngineWorker("good"))
    assert list(heard) in (["good", "slow"], ["slow", "good"])
    assert heard["good"] == 2
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(heard["slow"])


def test_engines_get_the_newest_weights_whatever_was_asked_for():
    engine, hearing = FakeEngineWorker("a"), Hearing()

    async def scenario() -> None:
        for version in (1, 2):
            hearing.publisher.offer(await FakeLearner().export(version))
        await hearing.publisher.hand_over([engine], hearing.told)

    virtual_time.run(scenario())
    assert engine.loaded == [2]


def test_a_direct_hand_over_says_who_missed_it():
    direct = Direct(1)
    hearing = Hearing(direct=direct)
    assert hearing.hand_over(1, FakeEngineWorker("good"), FakeEngineWorker("bad")) == {"good": 1, "bad": "gone"}
    assert direct.served == [["good", "bad"]]
    assert len(hearing.publisher.sync(1).acks) == 1


def test_a_newcomer_takes_stored_weights_that_may_be_newer_than_those_of_the_others():
    hearing, newcomer = Hearing(direct=Direct(3)), FakeEngineWorker("new")
    assert hearing.hand_over(2, newcomer, alone=True) == {"new": 3}
    assert newcomer.loaded == [3]


def test_a_lie_of_a_direct_hand_over_is_told():
    assert "acknowledged weights v6" in str(Hearing(direct=Direct(7)).hand_over(7, Lying(version=6))["liar"])


def test_a_learner_that_gives_no_weights_for_a_newcomer_is_lost():
    class Stuck(Direct):
        async def stored(self) -> WeightBundle:
            await asyncio.Event().wait()
            raise AssertionError

    hearing = Hearing(direct=Stuck(7))
    hearing.publisher.export_timeout = 0.05
    with pytest.raises(LearnerLost, match="no weights within"):
        hearing.hand_over(7, FakeEngineWorker("new"), alone=True)
