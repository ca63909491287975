"""The hand-over by the control loop: what an engine must answer, what is measured, and how a newcomer is served."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fr3e_async.control.ports import WorkerLost
from fr3e_async.control.publisher import Publisher, Sync
from fr3e_async.errors import RunFailed
from fr3e_async.testing import FakeEngineWorker, FakeLearner
from fr3e_async.types import WeightAck, WeightBundle


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


def publisher(*workers: FakeEngineWorker, direct: Any = None) -> tuple[Publisher, list[str]]:
    retired: list[str] = []
    pool: Any = SimpleNamespace(workers=list(workers), retire=lambda worker: retired.append(worker.name))
    return Publisher([pool], ack_timeout_s=0.1, clock=lambda: 0.0, direct=direct), retired


def publish(made: Publisher, version: int) -> Sync:
    async def main() -> Sync:
        return await made.publish(version, await FakeLearner().export(version))

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("lies", "message"),
    [({"version": 6}, r"liar acknowledged weights v6 with checksum"), ({"checksum": 3}, "checksum 0x0000000000000003 instead")],
)
def test_another_version_or_other_weights_fail_the_run(lies, message):
    with pytest.raises(RunFailed, match=message):
        publish(publisher(Lying(**lies))[0], 7)


def test_what_is_measured():
    slow = Lying(pause_s=0.009, copied_bytes=0)
    sync = publish(publisher(FakeEngineWorker("a"), slow)[0], 1)
    assert sync.pause_s == pytest.approx(0.005)
    assert sync.metrics == {
        "time/pause_max_s": 0.009,
        "time/copy_s": 0.001,
        "weights/sent_bytes": 4.0,
        "weights/skipped_bytes": 0.0,
        "weights/copied_bytes": 2.0,
    }


def test_a_direct_hand_over_quarantines_who_missed_it():
    direct = Direct(1)
    made, retired = publisher(FakeEngineWorker("good"), FakeEngineWorker("bad"), direct=direct)
    sync = publish(made, 1)
    assert (sync.quarantined, retired, len(sync.acks)) == ({"bad": "gone"}, ["bad"], 1)
    assert direct.served == [["good", "bad"]]


def test_a_newcomer_takes_stored_weights_that_may_be_newer_than_those_of_the_others():
    made, _ = publisher(direct=Direct(3))
    publish(made, 2)
    newcomer = FakeEngineWorker("new")
    asyncio.run(made.bring_up(newcomer))
    assert newcomer.loaded == [3]


def test_a_newcomer_that_does_not_answer_is_lost():
    made, _ = publisher()
    publish(made, 2)
    newcomer = FakeEngineWorker("new")
    newcomer.refuse_weights = True
    with pytest.raises(WorkerLost, match=r"new did not take weights v2: no answer within weights\.ack_timeout_s"):
        asyncio.run(made.bring_up(newcomer))
