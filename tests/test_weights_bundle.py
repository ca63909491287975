"""Weight bundles: round trip, checksum, bfloat16 as bits, shared memory between processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.types import WeightBundle
from fr3e_async.weights import SharedBuffer, checksum, named_tensors, open_shared, pack_tensors, unpack, verify


def damaged(bundle: WeightBundle) -> WeightBundle:
    flat = bundle.flat.copy()
    flat.view(np.uint8)[3] ^= 1
    return WeightBundle(
        version=bundle.version, names=bundle.names, shapes=bundle.shapes, dtype=bundle.dtype, flat=flat, checksum=bundle.checksum
    )


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5), st.sampled_from(["float32", "bfloat16"]))
def test_round_trip_is_exact(shapes, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{i}": torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for i, shape in enumerate(shapes)}
    bundle = pack_tensors(tensors.items(), version=3, dtype=dtype)
    back = dict(unpack(bundle))
    assert bundle.flat.dtype == (np.uint16 if dtype == "bfloat16" else np.float32)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_bfloat16_bits_are_torchs():
    bundle = pack_tensors([("w", torch.tensor([1.0, -2.0, 3.140625]))], version=1, dtype="bfloat16")
    assert bundle.flat.tolist() == [0x3F80, 0xC000, 0x4049]
    again = pack_tensors([("w", bundle.flat)], version=1, dtype="bfloat16")  # uint16 arrays are taken as bits
    assert again.checksum == bundle.checksum


def test_packing_copies_and_leaves_the_source_alone():
    source = torch.ones(4)
    bundle = pack_tensors([("w", source), ("half", np.ones(2, dtype=np.float16))], version=1)
    source.zero_()
    assert bundle.flat.tolist() == [1.0] * 6


def test_unpacks_read_only_buffers_without_touching_them():
    bundle = pack_tensors([("w", torch.arange(3.0))], version=1)
    bundle.flat.setflags(write=False)
    dict(unpack(bundle))["w"].fill_(9)
    assert bundle.flat.tolist() == [0.0, 1.0, 2.0]


def test_checksum_is_crc32_of_the_bytes():
    assert checksum(np.frombuffer(b"1234", dtype=np.uint8)) == 0x9BE3E0A3


def test_one_flipped_bit_is_found():
    bundle = damaged(pack_tensors([("w", torch.arange(3.0))], version=5))
    with pytest.raises(ValueError, match="weights v5 are damaged"):
        verify(bundle)
    with pytest.raises(ValueError, match="weights v5 are damaged"):
        dict(unpack(bundle))


@pytest.mark.parametrize(
    ("tensors", "dtype", "message"),
    [
        ([], "float32", "0 tensors"),
        ([("w", torch.ones(1)), ("w", torch.ones(1))], "float32", "2 tensors of 1 names"),
        ([("w", np.ones(1, dtype=np.uint16))], "float32", "uint16 cannot travel as float32"),
        ([("w", torch.ones(1))], "float16", "dtype must be one of"),
    ],
)
def test_refuses(tensors, dtype, message):
    with pytest.raises(ValueError, match=message):
        pack_tensors(tensors, version=1, dtype=dtype)


def test_named_tensors_are_views():
    flat = np.arange(6, dtype=np.float32)
    views = dict(named_tensors(flat, ["a", "b"], [[2, 2], [2]], "float32"))
    views["b"].fill_(7)
    assert flat.tolist() == [0, 1, 2, 3, 7, 7]
    assert views["a"].tolist() == [[0, 1], [2, 3]]


def test_another_process_sees_the_shared_buffer_and_keeps_it():
    array = np.arange(1000, dtype=np.float32)
    script = (
        "import sys; from fr3e_async.weights.shared import open_shared; a = open_shared(sys.argv[1], sys.argv[2]);"
        "print('mapped', flush=True); sys.stdin.readline(); print(len(a), a.sum())"
    )
    with SharedBuffer(array) as buffer:
        assert buffer.array.tolist() == array.tolist()
        child = subprocess.Popen(
            [sys.executable, "-c", script, buffer.path, buffer.dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "mapped\n"
    out, _ = child.communicate("go\n", timeout=60)  # the owner has closed its side by now
    assert out == "1000 499500.0\n"
    with pytest.raises(OSError, match="No such file"):
        open_shared(buffer.path, buffer.dtype)
