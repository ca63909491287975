"""Weights as buckets: round trip, bfloat16 as bits, what is sent again, and memory shared between processes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from bundles import collect, pack_tensors, unpack
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.weights.bundle import changed_buckets, joined, stream
from fr3e_async.weights.manifest import WeightBundle, WeightManifest
from fr3e_async.weights.shared import SharedBuffer, SharedMapping, SharedWeights, offsets, open_shared, shared_tensors

SCRIPT = (
    "import sys; from fr3e_async.weights.shared import open_shared; a = open_shared(sys.argv[1]).view('<f4');"
    "print('mapped', flush=True); sys.stdin.readline(); print(len(a), a.sum())"
)


def named(version: int = 0, count: int = 6, **changed: float) -> list[tuple[str, torch.Tensor]]:
    """Tensors w0, w1, ... of 1, 2, ... numbers; ``w2=5.0`` fills w2."""
    tensors = [(f"w{i}", torch.arange(i + 1.0) + 10 * i + version) for i in range(count)]
    return [(name, torch.full_like(t, changed[name]) if name in changed else t) for name, t in tensors]


def pairs(tensors):
    """Buckets of two tensors each."""
    return [tensors[i : i + 2] for i in range(0, len(tensors), 2)]


def damaged(bundle: WeightBundle) -> WeightBundle:
    (first, *rest), *others = bundle.buckets
    first = first.copy()
    first.view(np.uint8)[3] ^= 1
    return replace(bundle, buckets=((first, *rest), *others))


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(1, 6),
)
def test_round_trip_is_exact(shapes, dtype, bucket_size):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{i}": torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for i, shape in enumerate(shapes)}
    bundle = pack_tensors(tensors.items(), version=3, dtype=dtype, bucket_size=bucket_size)
    back = dict(unpack(bundle))
    assert all(array.dtype == (np.uint16 if dtype == "bfloat16" else np.float32) for bucket in bundle.buckets for array in bucket)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_bfloat16_bits_are_torchs():
    bundle = pack_tensors([("w", torch.tensor([1.0, -2.0, 3.140625]))], version=1, dtype="bfloat16")
    (bits,) = bundle.buckets[0]
    assert bits.tolist() == [0x3F80, 0xC000, 0x4049]


def test_packing_copies_and_leaves_the_source_alone():
    source = torch.ones(4)
    bundle = pack_tensors([("w", source), ("half", torch.ones(2, dtype=torch.float16))], version=1)
    source.zero_()
    assert [array.tolist() for array in bundle.buckets[0]] == [[1.0] * 4, [1.0] * 2]


def test_a_stream_sends_views():
    """The second whole copy that a learner has no memory for."""
    source = torch.ones(4)
    bucket, _ = stream([[("w", source)]], version=1, dtype="float32")
    assert np.shares_memory(bucket[0], source.numpy())


def test_unpacks_read_only_buffers_without_touching_them():
    bundle = pack_tensors([("w", torch.arange(3.0))], version=1)
    bundle.buckets[0][0].setflags(write=False)
    dict(unpack(bundle))["w"].fill_(9)
    assert bundle.buckets[0][0].tolist() == [0.0, 1.0, 2.0]


def test_one_flipped_bit_is_found():
    with pytest.raises(ValueError, match="weights v5 are damaged: w0 has checksum 0x"):
        dict(unpack(damaged(pack_tensors(named(), version=5))))


@pytest.mark.parametrize(
    ("tensors", "dtype", "message"),
    [
        ([], "float32", "0 tensors"),
        ([("w", torch.ones(1)), ("w", torch.ones(1))], "float32", "2 tensors of 1 names"),
        ([("w", torch.ones(1))], "float16", "dtype must be one of"),
    ],
)
def test_refuses(tensors, dtype, message):
    with pytest.raises(ValueError, match=message):
        pack_tensors(tensors, version=1, dtype=dtype)


# ---- what is not sent again ----


def test_only_changed_buckets_travel_and_the_others_stay_the_same_objects():
    first = collect(stream(pairs(named()), version=1, dtype="float32"))
    sent = list(stream(pairs(named(w2=5.0)), version=2, dtype="float32", held=first.manifest))
    assert [[array.tolist() for array in bucket] for bucket in sent[:-1]] == [[[5.0] * 3, [30.0, 31.0, 32.0, 33.0]]]
    second = joined(sent[-1], ["handle"], first)
    assert second.version == 2
    assert second.buckets == (first.buckets[0], "handle", first.buckets[2])
    assert second.buckets[0] is first.buckets[0]
    assert (second.sent_bytes, second.skipped_bytes) == (4 * 7, 4 * 14)
    assert (first.sent_bytes, first.skipped_bytes) == (4 * 21, 0)


def test_nothing_changed_is_a_new_version_of_the_same_weights():
    first = collect(stream(pairs(named()), version=1, dtype="float32"))
    (manifest,) = stream(pairs(named()), version=2, dtype="float32", held=first.manifest)
    assert (manifest.version, manifest.checksum) == (2, first.checksum)
    assert changed_buckets(manifest, first.manifest) == [False] * 3


def test_a_renamed_or_reshaped_tensor_counts_as_changed():
    told = pack_tensors([("a", torch.zeros(2, 2))], version=1).manifest
    for other in ([("b", torch.zeros(2, 2))], [("a", torch.zeros(4))]):
        manifest = pack_tensors(other, version=2).manifest
        assert manifest.checksums == told.checksums
        assert manifest.checksum != told.checksum
        assert changed_buckets(manifest, told) == [True]
    bits = pack_tensors([("a", torch.zeros(2, 2))], version=2, dtype="bfloat16").manifest
    assert changed_buckets(bits, told) == [True]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), max_size=4))
def test_whatever_changes_the_receiver_ends_with_the_senders_weights(updates):
    """Updates that each change some tensors; the receiver joins what it gets with what it has."""
    values = dict.fromkeys((f"w{i}" for i in range(6)), 0.0)
    held = collect(stream(pairs(named(**values)), version=0, dtype="float32"))
    for version, changes in enumerate(updates, start=1):
        values = {name: version if change else old for (name, old), change in zip(values.items(), changes, strict=True)}
        held = collect(stream(pairs(named(**values)), version=version, dtype="float32", held=held.manifest), held)
        assert held.sent_bytes + held.skipped_bytes == 4 * 21
        assert {name: tensor[0] for name, tensor in unpack(held)} == values


def test_a_stream_that_does_not_fit_is_refused():
    first = collect(stream(pairs(named()), version=1, dtype="float32"))
    with pytest.raises(ValueError, match="1 buckets arrived, 0 have changed"):
        joined(first.manifest, [first.buckets[0]], first)
    with pytest.raises(ValueError, match="ended without a manifest"):
        collect(first.buckets)
    with pytest.raises(ValueError, match="2 shapes, 1 checksums and buckets of 3 for 1 tensors"):
        WeightManifest(version=1, dtype="float32", names=("w",), shapes=((1,), (1,)), checksums=(0,), buckets=(3,))


# ---- shared memory ----


def fill(shared: SharedWeights, bundle: WeightBundle) -> list[int]:
    """Bytes copied from each bucket that was asked for."""
    return [shared.fill(bundle.manifest, n, bundle.buckets[n]) for n in shared.prepare(bundle.manifest)]


def held(shared: SharedWeights, manifest: WeightManifest) -> dict[str, torch.Tensor]:
    return dict(shared_tensors(open_shared(shared.path), manifest.names, manifest.shapes, offsets(manifest)[:-1], manifest.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shared_weights_copy_what_differs_and_keep_their_memory(dtype):
    shared = SharedWeights()
    first = collect(stream(pairs(named()), version=1, dtype=dtype))
    second = collect(stream(pairs(named(w2=5.0)), version=2, dtype=dtype))
    size = 4 if dtype == "float32" else 2
    assert fill(shared, first) == [3 * size, 7 * size, 11 * size]
    path, views = shared.path, held(shared, first.manifest)
    assert fill(shared, second) == [3 * size]
    assert shared.path == path
    for name, tensor in named(w2=5.0):
        assert torch.equal(views[name], tensor.to(views[name].dtype)), "a mapping made before sees the new numbers"
    assert all(start % 64 == 0 for start in offsets(first.manifest))
    shared.close()


def test_a_damaged_bucket_is_refused_and_taken_again_when_it_is_whole():
    shared = SharedWeights()
    bundle = pack_tensors(named(), version=5)
    with pytest.raises(ValueError, match="weights v5 are damaged: w0"):
        fill(shared, damaged(bundle))
    assert shared.prepare(bundle.manifest) == [0]
    with pytest.raises(ValueError, match="bucket 0 has 5 tensors, not 6"):
        shared.fill(bundle.manifest, 0, bundle.buckets[0][1:])
    with pytest.raises(ValueError, match="w0 has 8 bytes, not 4"):
        shared.fill(bundle.manifest, 0, (bundle.buckets[0][1], *bundle.buckets[0][1:]))
    assert fill(shared, bundle) == [4 * 21]
    shared.close()


def test_another_layout_gets_another_buffer():
    shared = SharedWeights()
    fill(shared, pack_tensors(named(), version=1))
    path = shared.path
    other = pack_tensors(named(count=3), version=2)
    assert fill(shared, other) == [4 * 6]
    assert torch.equal(held(shared, other.manifest)["w2"], named()[2][1])
    shared.close()
    with pytest.raises(OSError, match="No such file"):
        open_shared(path)


def test_a_mapping_is_kept_and_follows_a_path_that_names_another_buffer():
    mapping = SharedMapping()
    with SharedBuffer(8) as first:
        kept = mapping.of(first.path)
        assert mapping.of(first.path) is kept
    with SharedBuffer(8) as second:
        assert second.path == first.path, "the number of a closed file is used again"
        second.array[:] = 7
        assert mapping.of(second.path).tolist() == [7] * 8


def test_another_process_sees_the_shared_buffer_and_keeps_it():
    with SharedBuffer(4000) as buffer:
        buffer.array.view(np.float32)[:] = np.arange(1000)
        words = [sys.executable, "-c", SCRIPT, buffer.path]
        child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "mapped\n"
    out, _ = child.communicate("go\n", timeout=600)  # the owner has closed its side by now
    assert out == "1000 499500.0\n"
    with pytest.raises(OSError, match="No such file"):
        open_shared(buffer.path)
