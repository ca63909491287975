"""What an engine fetches, copies and loads: the buckets with something new, and nothing twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from test_weights_bundle import named, pairs

from fr3e_async.rollout.held_weights import HeldWeights
from fr3e_async.types import WeightBucket, WeightBundle
from fr3e_async.weights import collect, pack_tensors, stream


def version(number: int, **changed: float) -> WeightBundle:
    return collect(stream(pairs(named(**changed)), version=number, dtype="float32"))


class Store:
    """Buckets behind numbers, and which of them were asked for. ``broken``: a number that cannot be had."""

    def __init__(self, bundle: WeightBundle, broken: int = -1) -> None:
        self.bundle = replace(bundle, buckets=tuple(range(len(bundle.buckets))))
        self._buckets, self._broken = bundle.buckets, broken
        self.asked: list[int] = []

    async def fetch(self, number: int) -> WeightBucket:
        self.asked.append(number)
        if number == self._broken:
            raise OSError("gone")
        return self._buckets[number]


def receive(held: HeldWeights, store: Store) -> tuple[int, int]:
    receipt = asyncio.run(held.receive(store.bundle, store.fetch))
    return receipt.copied_bytes, receipt.skipped_bytes


def test_only_buckets_with_something_new_are_fetched_and_only_new_tensors_copied():
    held, first, second = HeldWeights(), Store(version(1)), Store(version(2, w2=5.0))
    assert receive(held, first) == (84, 0)
    assert receive(held, second) == (12, 72)
    assert (first.asked, second.asked) == ([0, 1, 2], [1])
    held.close()


def test_what_the_model_lacks_does_not_depend_on_what_the_buffer_has():
    """A version that was received and then refused is in the buffer; the model is still without it."""
    held, first, second = HeldWeights(), version(1), version(2, w2=5.0)
    receive(held, Store(first))
    assert held.changed(first.manifest) == list(first.manifest.names)
    held.loaded(first.manifest, [list(first.manifest.names)])
    assert held.same(first.manifest)
    receive(held, Store(second))
    assert held.changed(second.manifest) == ["w2"]
    assert not held.same(second.manifest)
    receive(held, Store(first))
    assert held.changed(first.manifest) == []
    held.close()


def test_fewer_tensors_are_not_the_same_weights():
    held, whole = HeldWeights(), pack_tensors(named(), version=1).manifest
    held.loaded(whole, [[]])
    part = pack_tensors(named(count=5), version=2).manifest
    assert held.changed(part) == []
    assert not held.same(part)


def test_verified_are_those_that_every_worker_has_compared_and_that_have_not_changed_since():
    held, first, second = HeldWeights(), version(1), version(2, w2=5.0, w3=6.0)
    held.loaded(first.manifest, [["w0", "w1", "w2"], ["w1", "w2", "w3"]])
    assert held.verified == 2
    held.loaded(second.manifest, [["w3"], ["w3", "w2"]])
    assert held.verified == 2, "w1 from before and w3; w2 is new and one worker has not seen it"
    assert held.checksum(second.manifest) == second.checksum


@pytest.mark.parametrize("broken", [0, 2])
def test_a_bucket_that_cannot_be_had_can_be_asked_for_again(broken):
    held = HeldWeights()
    with pytest.raises(OSError, match="gone"):
        receive(held, Store(version(1), broken))
    copied, skipped = receive(held, Store(version(1)))
    assert (copied, skipped) == ((84, 0) if broken == 0 else (44, 40))
    held.close()
