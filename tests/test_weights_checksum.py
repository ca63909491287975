"""The checksum: a table written out by hand, what it must see, and that every device finds the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fr3e_async.weights.checksum import BLOCK, ROW, checksum, checksum_of_tensor

RNG = np.random.default_rng(7)
WORDS = RNG.integers(0, 2**63, 3 * BLOCK * ROW // 2 + 5, dtype=np.int64)  # several blocks, a half one and a rest
LENGTH = len(WORDS)


def by_hand(data: bytes) -> int:
    """The definition, with Python's integers."""
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    count = len(data) // (8 * ROW) + 1
    table = [(words[r * ROW : (r + 1) * ROW] + [0] * ROW)[:ROW] for r in range(count)]
    sums = [sum(row) % 2**64 for row in table] + [sum(column) % 2**64 for column in zip(*table, strict=True)]
    told = len(data).to_bytes(8, "little") + b"".join(value.to_bytes(8, "little") for value in sums)
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 8 * ROW - 1, 8 * ROW, 8 * ROW + 3, 8 * ROW * (BLOCK + 1) + 1])
def test_is_what_the_text_says(size):
    data = RNG.integers(0, 256, size, dtype=np.uint8)
    assert checksum(data) == by_hand(data.tobytes())
    assert checksum_of_tensor(torch.from_numpy(data)) == checksum(data)


def test_a_known_value():
    """Weights that one release wrote are checked by the next."""
    assert checksum(np.arange(5000, dtype="<f4")) == 0x34DC4A6C8B838827


def test_type_and_shape_do_not_matter_and_order_does():
    table = WORDS[: 6 * ROW].reshape(6, ROW)
    assert checksum(table) == checksum(table.view(np.float32)) == checksum(table.reshape(3, 2, ROW))
    assert checksum(table) != checksum(np.ascontiguousarray(table.T))
    with pytest.raises(ValueError, match="not contiguous"):
        checksum(table.T)


@given(st.integers(0, LENGTH * 64 - 1))
def test_every_flipped_bit_is_seen(bit):
    words = WORDS.copy()
    words.view(np.uint8)[bit // 8] ^= 1 << bit % 8
    assert checksum(words) != checksum(WORDS)


@given(st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1), st.integers(0, 63))
def test_two_words_that_change_places_are_seen(i, j, bit):
    """Also when they differ in one bit only, in whatever rows and columns they stand."""
    words = WORDS.copy()
    words[j] = words[i] ^ (1 << bit if bit < 63 else np.iinfo(np.int64).min)
    before = checksum(words)
    words[[i, j]] = words[[j, i]]
    assert (checksum(words) == before) == (i == j)


@given(st.integers(1, LENGTH - 1), st.integers(0, LENGTH - 1), st.integers(1, 4 * ROW))
def test_shifted_torn_and_swapped_blocks_are_seen(shift, start, length):
    other = RNG.integers(0, 2**63, LENGTH, dtype=np.int64)
    torn = WORDS.copy()
    torn[start : start + length] = other[start : start + length]
    assert checksum(torn) != checksum(WORDS)
    assert checksum(np.roll(WORDS, shift)) != checksum(WORDS)
    swapped = WORDS[: 2 * length].copy()
    half = len(swapped) // 2
    assert checksum(np.concatenate([swapped[half:], swapped[:half]])) != checksum(swapped)


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 1, 0]])
def test_whole_rows_that_change_places_are_seen(rows):
    """Column sums alone would not see it."""
    table = WORDS[: 3 * ROW].reshape(3, ROW)
    assert checksum(table[rows]) != checksum(table)


def test_zeros_of_another_length_are_other_bytes():
    assert len({checksum(np.zeros(n, np.uint8)) for n in (0, 1, 8, 16, 8 * ROW, 16 * ROW)}) == 6
