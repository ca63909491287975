"""What an engine fetches, copies and loads: the buckets with something new, and nothing twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from bundles import collect, pack_tensors
from test_weights_bundle import named, pairs

from fr3e_async.rollout.held_weights import HeldWeights
from fr3e_async.rollout.load_trace import Region
from fr3e_async.rollout.loaded_weights import Proof, Unproven
from fr3e_async.weights.bundle import stream
from fr3e_async.weights.manifest import WeightBucket, WeightBundle


def version(number: int, **changed: float) -> WeightBundle:
    return collect(stream(pairs(named(**changed)), version=number, dtype="float32"))


def exactly(*names: str) -> Proof:
    return Proof(exact=frozenset(names))


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
    held.loaded(first.manifest, [exactly(*first.manifest.names)])
    assert held.same(first.manifest)
    receive(held, Store(second))
    assert held.changed(second.manifest) == ["w2"]
    assert not held.same(second.manifest)
    receive(held, Store(first))
    assert held.changed(first.manifest) == []
    held.close()


def test_fewer_tensors_are_not_the_same_weights():
    held, whole = HeldWeights(), version(1)
    receive(held, Store(whole))
    held.loaded(whole.manifest, [exactly(*whole.manifest.names)])
    part = pack_tensors(named(count=5), version=2).manifest
    assert held.changed(part) == []
    assert not held.same(part)


def test_a_tensor_that_was_probed_is_so_until_it_is_compared_as_a_whole():
    held, first, second = HeldWeights(), version(1), version(2, w2=5.0, w3=6.0)
    names = set(first.manifest.names)
    receive(held, Store(first))
    held.loaded(first.manifest, [exactly(*names), Proof(exact=frozenset(names - {"w1", "w3"}), probed=frozenset({"w1", "w3"}))])
    assert (held.verified, held.probed) == (4, 2), "one of two workers has compared all of w1 and w3"
    receive(held, Store(second))
    held.loaded(second.manifest, [exactly("w3"), Proof(exact=frozenset(), probed=frozenset({"w2"}))])
    assert (held.verified, held.probed) == (4, 2), "w1 from before, w2 now"


def test_a_tensor_that_no_worker_used_or_only_a_part_of_it_is_an_error():
    held, first = HeldWeights(), version(1)
    receive(held, Store(first))
    names = first.manifest.names
    with pytest.raises(Unproven, match=r"1 of the sent weights are not, or not wholly, in the engine, e\.g\. w4"):
        held.loaded(first.manifest, [exactly(*names[:3]), exactly(names[3], names[5])])
    half = Proof(exact=frozenset(names), taken={"w4": (Region(0, (1,), (1,)),)})
    with pytest.raises(Unproven, match=r"e\.g\. w4"):
        held.loaded(first.manifest, [half, half])
    assert not held.same(first.manifest)
    held.loaded(first.manifest, [half, exactly("w4")])
    assert held.same(first.manifest)


def test_what_is_acknowledged_is_what_the_workers_found():
    """By vLLM's own transfer nothing comes through the buffer."""
    held, first = HeldWeights(), version(1)
    found = dict(zip(first.manifest.names, first.manifest.checksums, strict=True))
    reply = exactly(*found).told() | {"checksums": found}
    held.proven(first.manifest, [reply, reply])
    assert held.checksum(first.manifest) == first.checksum
    held.proven(first.manifest, [reply | {"checksums": found | {"w0": 7}}])
    assert held.checksum(first.manifest) != first.checksum
    assert held.changed(first.manifest) == ["w0"]
    with pytest.raises(Unproven, match="w0 has come to the workers in different forms"):
        held.proven(first.manifest, [reply, reply | {"checksums": found | {"w0": 7}}])
    with pytest.raises(Unproven, match=r"e\.g\. w0"):
        held.proven(first.manifest, [reply | {"checksums": {}}])


def test_a_proof_travels_as_lists():
    proof = Proof(exact=frozenset("ab"), probed=frozenset("c"), taken={"a": (Region(3, (1, 2), (2, 1)),)})
    assert Proof.of(proof.told()) == proof


@pytest.mark.parametrize("broken", [0, 2])
def test_a_bucket_that_cannot_be_had_can_be_asked_for_again(broken):
    held = HeldWeights()
    with pytest.raises(OSError, match="gone"):
        receive(held, Store(version(1), broken))
    copied, skipped = receive(held, Store(version(1)))
    assert (copied, skipped) == ((84, 0) if broken == 0 else (44, 40))
    held.close()
