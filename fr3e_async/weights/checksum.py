"""A checksum of numbers at about the speed of memory: two-dimensional wrap-around sums. numpy and torch only.

The bytes, read as little-endian 64-bit words and padded with zeros, are the rows of a table of ``ROW`` columns. All row
sums and all column sums (modulo 2^64), with the number of bytes, are hashed to 64 bits by BLAKE2b. The table is read once,
and the hash sees about one part in ``ROW`` of it. The result is the same on every machine and every device.

Sums that differ are certain for every change of

* any bits inside one word, and any words inside one row or inside one column: a sum that holds one of them changes;
* two different words that change places: either their columns or their rows differ;
* the length.

Other damage (rows in another order, a block of an older version, shifted data) is missed only if all row sums *and* all
column sums stay as they were. On top of that two different sets of sums hash alike once in 2^64. It is no defence against
someone who wants to deceive.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

ROW = 2048  # words: 16 KiB, so that column sums stay in the nearest cache
BLOCK = 16  # rows summed at once: 256 KiB, so that the second sum reads the cache
WORD = np.dtype("<u8")


def checksum(array: NDArray) -> int:
    """64 bits of a contiguous array of any type. ``ValueError`` if it is not contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError("checksum: the array is not contiguous")
    return _summed(array.reshape(-1).view(np.uint8), None)


def copy_checked(target: NDArray[np.uint8], source: NDArray[np.uint8]) -> int:
    """Copy the bytes, and give the checksum of the copy: of each block while it is in the cache. Both [n], contiguous."""
    return _summed(target, source)


def _summed(flat: NDArray[np.uint8], source: NDArray[np.uint8] | None) -> int:
    """The checksum of ``flat``, which first takes ``source``'s bytes, block by block, if there is one."""
    full = len(flat) // (8 * ROW) * (8 * ROW)  # bytes of whole rows
    table = flat[:full].view(WORD).reshape(-1, ROW)
    incoming = None if source is None else source[:full].view(WORD).reshape(-1, ROW)
    if source is not None:
        flat[full:] = source[full:]
    last = np.zeros(8 * ROW, dtype=np.uint8)
    last[: len(flat) - full] = flat[full:]
    sums = np.empty(len(table) + 1, dtype=WORD)
    sums[-1] = last.view(WORD).sum(dtype=WORD)
    columns = last.view(WORD)
    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK]
        if incoming is not None:
            np.copyto(rows, incoming[start : start + BLOCK])
        np.add.reduce(rows, axis=1, out=sums[start : start + len(rows)])
        columns += np.add.reduce(rows, axis=0)
    return _hashed(len(flat), sums, columns)


def checksum_of_tensor(tensor: torch.Tensor) -> int:
    """``checksum`` of a tensor's bytes, computed on its device; only the sums leave it."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.device.type == "cpu":
        return checksum(flat.view(torch.uint8).numpy()) if flat.numel() else checksum(np.empty(0, np.uint8))
    count = flat.numel() * flat.element_size()
    words = torch.zeros((count // (8 * ROW) + 1) * ROW, dtype=torch.int64, device=flat.device)
    words.view(torch.uint8)[:count].copy_(flat.view(torch.uint8))
    table = words.view(-1, ROW)
    rows, columns = (table.sum(dim).cpu().numpy().view(WORD) for dim in (1, 0))
    return _hashed(count, rows, columns)


def _hashed(count: int, rows: NDArray[np.uint64], columns: NDArray[np.uint64]) -> int:
    digest = hashlib.blake2b(count.to_bytes(8, "little"), digest_size=8)
    digest.update(np.ascontiguousarray(rows, dtype=WORD).data)
    digest.update(np.ascontiguousarray(columns, dtype=WORD).data)
    return int.from_bytes(digest.digest(), "little")
